# SPDX-License-Identifier: Apache-2.0
"""The command line: what is understood, and the words for what is not."""

from __future__ import annotations

import pytest

from update_agent.options import COMMANDS, OPTIONS, Usage, parse, usage_text
from update_agent.states import STOP_BEFORE


def test_options_before_the_verb_and_its_own_after_it() -> None:
    options = parse(
        ["-c", "m.conf", "--log-level=debug", "--skipverify", "install", "--reboot-exit-code", "a.mender"]
    )
    assert (options.config, options.log_level, options.skip_verify) == ("m.conf", "debug", True)
    assert (options.verb, options.reboot_exit_code, options.artifact) == ("install", True, "a.mender")


@pytest.mark.parametrize("words", [["-d", "/x"], ["--datastore", "/x"], ["--data=/x"], ["-d=/x"]])
def test_spellings_of_one_option(words: list[str]) -> None:
    assert parse([*words, "commit"]).datastore == "/x"


def test_stop_before_may_be_repeated() -> None:
    words = [word for state in STOP_BEFORE for word in ("--stop-before", state)]
    assert parse(["resume", *words]).stop_before == list(STOP_BEFORE)
    assert list(STOP_BEFORE) == [
        "ArtifactInstall_Enter",
        "ArtifactCommit_Enter",
        "ArtifactCommit_Leave",
        "ArtifactRollback_Enter",
        "ArtifactFailure_Enter",
        "Cleanup",
    ]


def test_a_double_dash_ends_options() -> None:
    assert parse(["install", "--", "--odd-name"]).artifact == "--odd-name"


@pytest.mark.parametrize("word", ["-h", "--help"])
def test_help_needs_nothing_else(word: str) -> None:
    assert parse([word]).help
    assert parse(["install", word]).verb == "install"


def test_version_stands_alone() -> None:
    assert parse(["--version"]).version
    with pytest.raises(Usage, match="cannot be combined"):
        parse(["-v", "daemon"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "a command is needed"),
        (["instal", "a"], "unknown command 'instal'"),
        (["install"], "install needs FILE_OR_URL"),
        (["install", "a", "b"], "surplus argument 'b'"),
        (["commit", "now"], "surplus argument 'now'"),
        (["--colour", "daemon"], "unknown option --colour"),
        (["daemon", "--skipverify"], "unknown option --skipverify"),
        (["--reboot-exit-code", "install", "a"], "unknown option --reboot-exit-code"),
        (["commit", "--reboot-exit-code"], "unknown option --reboot-exit-code"),
        (["-c"], "option -c needs a value, FILE"),
        (["-c", "-d", "x", "daemon"], "option -c needs a value"),
        (["--skipverify=yes", "daemon"], "option --skipverify takes no value"),
        (["commit", "--stop-before", "Cleanup_Enter"], "it must be one of ArtifactInstall_Enter"),
    ],
)
def test_wrong_usage_is_named(words: list[str], message: str) -> None:
    with pytest.raises(Usage) as caught:
        parse(words)
    assert message in str(caught.value)


def test_wrong_usage_of_a_command_shows_its_help() -> None:
    with pytest.raises(Usage) as caught:
        parse(["install"])
    assert usage_text(caught.value.verb).startswith("usage: update-agent install [OPTIONS] FILE_OR_URL")


def test_help_lists_everything() -> None:
    text = usage_text()
    for command in COMMANDS:
        assert f"\n  {command.name}" in text
        own = usage_text(command.name)
        assert command.help in own.replace("\n", " ")
        assert max(map(len, own.splitlines())) <= 110
    for option in OPTIONS:
        assert ", ".join(option.names) in text
    assert "--stop-before STATE" in usage_text("commit")
    assert max(len(line) for line in text.splitlines()) < 120
