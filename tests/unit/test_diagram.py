# SPDX-License-Identifier: Apache-2.0
"""The README's picture of the flow is the one that the table gives."""

from pathlib import Path

from update_agent.states import POINTS
from update_tools import diagram

README = Path(__file__).parents[2] / "README.md"


def test_readme_shows_the_table():
    text = README.read_text()
    assert diagram.BEGIN in text, "README.md has lost the marker of the flow's picture"
    assert diagram.renewed(text) == text, "run: python -m update_tools.diagram README.md"


def test_every_state_is_reached_and_left():
    edges = diagram.edges()
    nodes = {state for edge in edges for state in edge}
    assert {start for start, _ in edges} == {end for _, end in edges} == nodes
    assert len(nodes) == 10


def test_pauses_lie_before_the_states_of_the_pause_points():
    paused = {end for (_, end), kind in diagram.edges().items() if kind == "pause"}
    assert paused == {point.partition("_")[0] for point in POINTS}
