# SPDX-License-Identifier: Apache-2.0
"""The guide of `ota inspect`, its help and what Tab offers are those of the code."""

from __future__ import annotations

import re
import shlex

import pytest

from update_tools.__main__ import main
from update_tools.inspect import boards, cli, guide
from update_tools.inspect.findings import CATALOGUE, Finding


def test_the_guide_has_the_findings() -> None:
    text = guide.GUIDE.read_text()
    assert guide.BEGIN in text
    assert guide.renewed(text) == text, "run: python -m update_tools.inspect.guide"
    assert set(re.findall(r"^\| `([\w-]+)` \|", text, re.MULTILINE)) == set(CATALOGUE)


def test_a_finding_says_what_it_means_and_what_to_do() -> None:
    for name in CATALOGUE:
        finding = Finding(name, "where", "what")
        assert finding.severity in {"error", "warning"}
        assert len(finding.meaning) > 10
        assert len(finding.hint) > 10
        assert not finding.meaning.endswith(".")
        assert finding.meaning != finding.hint


def test_the_commands_of_the_guide_and_of_the_help_are_right() -> None:
    """Every option that they show is one."""
    known = {name for action in cli.parser()._actions for name in action.option_strings}
    lines = re.findall(
        r"^ +(?:scripts/)?ota inspect (.*)$", guide.GUIDE.read_text() + cli._ABOUT, re.MULTILINE
    )
    assert len(lines) > 5
    for line in lines:
        words = shlex.split(line.split("   ")[0].split("|")[0].split(">")[0])
        assert {word for word in words if word.startswith("-")} <= known


def test_every_exit_code_of_the_guide_is_said_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Exit codes: 0 no error, 2 cannot be inspected, 3 errors were found" in said
    assert f"| {cli.EXIT_FOUND} | errors were found |" in guide.GUIDE.read_text()


def test_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == list(CATALOGUE)
    assert max(map(len, lines)) < 140


def test_tab_offers_machines_and_architectures() -> None:
    names = {action.dest for action in cli.parser()._actions}
    assert set(cli.COMPLETE) <= names
    assert ("raspberrypi4-64", "") in cli.COMPLETE["machine"]()
    for name in boards.machines():
        assert boards.choose(name, "", "", "").architecture, f"boards.py does not say what {name} is"
    assert cli.COMPLETE["arch"]()[0] == ("aarch64", "")
