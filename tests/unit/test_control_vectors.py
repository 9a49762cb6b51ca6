# SPDX-License-Identifier: Apache-2.0
"""The specification's vectors of control maps, and the runner that people use on their own files."""

from __future__ import annotations

import copy
import json
import subprocess
from pathlib import Path

import pytest

from update_agent.errors import UpdateError
from update_tools.conform import control_maps

ROOT = Path(__file__).parents[2]
VECTORS = ROOT / "tests/vectors/control-map-vectors.json"
ALL = control_maps.load(str(VECTORS))


@pytest.mark.parametrize("vector", ALL, ids=[vector["id"] for vector in ALL])
def test_vector(vector: dict) -> None:
    assert control_maps.check(vector) is None


def test_the_file_is_complete() -> None:
    assert len(ALL) == 45


def _conform(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ROOT / "scripts/conform", "control-maps", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def test_command_counts_what_passed() -> None:
    result = _conform(VECTORS)
    assert (result.returncode, result.stdout.splitlines()[-1]) == (0, "45 passed, 0 failed")


def test_command_reports_the_first_difference(tmp_path: Path) -> None:
    """Each wrong expectation is one failure, told with vector, step and place; all files are run."""
    document = json.loads(VECTORS.read_text())
    by_id = {vector["id"]: vector for vector in document["vectors"]}
    by_id["pause-holds"]["steps"][1]["expect"]["action"] = "fail"
    by_id["defaults-filled"]["steps"][1]["expect"]["maps"][0]["priority"] = 7
    by_id["wait-server"]["steps"][3]["expect"]["seconds"] = 801
    changed = tmp_path / "changed.json"
    changed.write_text(json.dumps(document))
    point = by_id["pause-holds"]["steps"][1]["point"]
    result = _conform(changed, VECTORS)
    assert result.returncode == 1
    assert result.stdout.splitlines() == [
        f'FAIL pause-holds ({changed}): step 2 (evaluate {point}): action: expected "fail", found "pause"',
        f"FAIL defaults-filled ({changed}): step 2 (pool): maps[0].priority: expected 7, found 0",
        f"FAIL wait-server ({changed}): step 4 (pause_wait): seconds: expected 801, found 800.0",
        "87 passed, 3 failed",
    ]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "cannot read vectors"),
        ('{"vectors": []}', "no list `vectors`"),
        ('{"vectors": [{"id": "x"}]}', "vector 0"),
        ('{"vectors": [{"id": "x", "steps": [{"op": "fly"}]}]}', "unknown operation 'fly'"),
        ('{"vectors": [{"id": "x", "steps": [{"op": "evaluate"}]}]}', "vector x is malformed"),
    ],
)
def test_a_file_that_tests_nothing_is_an_error(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "vectors.json"
    path.write_text(content)
    with pytest.raises(UpdateError, match=words.replace("(", r"\(")):
        control_maps.run([str(path)], print)


def test_command_ends_with_2_for_bad_input(tmp_path: Path) -> None:
    result = _conform(tmp_path / "missing.json")
    assert result.returncode == 2
    assert "missing.json" in result.stderr


def test_every_wrong_expectation_is_found() -> None:
    """Mutate every expectation of every vector: the runner must notice each, or it compares nothing."""
    for vector in ALL:
        for number, step in enumerate(vector["steps"]):
            for key, value in step.get("expect", {}).items():
                changed = copy.deepcopy(vector)
                changed["steps"][number]["expect"][key] = _other(value)
                assert control_maps.check(changed), (vector["id"], number, key)


def _other(value: object) -> object:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return [*value, {}] if isinstance(value, list) else f"{value}?"
