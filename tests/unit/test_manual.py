# SPDX-License-Identifier: Apache-2.0
"""Manual page and completion: what the table gives, readers that do not complain, real TAB keys."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pexpect
import pytest

from update_agent import config
from update_agent.log import LEVELS, Log
from update_agent.options import COMMANDS, EXIT_CODES, OPTIONS, usage_text
from update_agent.states import POINTS, STOP_BEFORE
from update_agent.store import Store
from update_tools import manual

PAGE = manual.AGENT / "man/update-agent.8"
COMPLETION = manual.AGENT / "completion/update-agent"


@pytest.mark.parametrize("path", manual.OUTPUTS, ids=lambda path: path.name)
def test_committed_files_are_those_of_the_table(path: Path) -> None:
    assert path.read_text() == manual.OUTPUTS[path](), "run: python -m update_tools.manual renew"


def test_printed_as_committed(capsys: pytest.CaptureFixture[str]) -> None:
    assert manual.main(["man"]) == 0
    assert capsys.readouterr().out == PAGE.read_text()
    assert manual.main(["bash"]) == 0
    assert capsys.readouterr().out == COMPLETION.read_text()
    assert manual.main([]) == 2
    assert "man|bash" in capsys.readouterr().err


# What is told beside the table


def test_longer_texts_belong_to_something() -> None:
    assert set(manual.MORE_COMMANDS) <= {command.name for command in COMMANDS}
    own = [option for command in COMMANDS for option in command.options]
    assert set(manual.MORE_OPTIONS) <= {option.attribute for option in (*OPTIONS, *own)}


def test_environment_is_what_the_agent_reads() -> None:
    package = manual.AGENT / "update_agent"
    text = "".join(path.read_text() for path in package.glob("*.py"))
    read = set(re.findall(r'os\.environ\.get\("(\w+)"|"(\w+)" in os\.environ', text))
    names = {name for pair in read for name in pair if name} - {"PATH"}
    assert names == {name for name in manual.ENVIRONMENT if "proxy" not in name}


def test_files_are_where_the_agent_looks(tmp_path: Path) -> None:
    assert os.path.basename(Store(str(tmp_path), Log("error")).path) == "update-agent.json"
    files = manual.files()
    assert f"{config.DATASTORE}/update-agent.json" in files
    assert f"{config.DATA_DIR}/modules/v3/" in files


def test_files_do_not_depend_on_who_makes_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MENDER_CONF_DIR", "MENDER_DATA_DIR", "MENDER_DATASTORE_DIR", "UPDATE_CONTROL_SOCKET"):
        monkeypatch.setenv(name, "/elsewhere")
    assert manual.manual() == PAGE.read_text()


def test_help_tells_the_exit_codes() -> None:
    for code, text in EXIT_CODES:
        assert re.search(rf"^  {code} +{re.escape(text)}$", usage_text(), re.MULTILINE)


# The page


def _program(name: str) -> str:
    program = shutil.which(name)
    if not program:
        pytest.skip(f"{name} is not installed")
    return program


@pytest.mark.parametrize(
    "command",
    [
        ("groff", "-mandoc", "-ww", "-z", "-Tutf8"),
        ("man", "--warnings", "-Tutf8", "-l"),
        ("mandoc", "-Tlint", "-Wwarning"),
    ],
    ids=lambda command: command[0],
)
def test_no_reader_complains(command: tuple[str, ...], tmp_path: Path) -> None:
    """With a page that must be complained about, so that silence means something."""
    bad = tmp_path / "bad.8"
    bad.write_text(PAGE.read_text().replace(".Sh FILES", ".El\n.Xx\n.Sh FILES"))
    complaints = []
    for page in (PAGE, bad):
        words = [_program(command[0]), *command[1:], page]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        complaints.append(done.stderr + (done.stdout if command[0] == "mandoc" else ""))
    assert complaints[0] == ""
    assert complaints[1] != ""


def test_a_reader_finds_everything() -> None:
    """As shown: nothing that was taken for a macro or lost in an escape."""
    env = {**os.environ, "MANWIDTH": "200", "GROFF_NO_SGR": "1", "LC_ALL": "C.UTF-8", "MANOPT": "--nj --nh"}
    done = subprocess.run([_program("man"), "-l", PAGE], capture_output=True, text=True, check=True, env=env)
    text = " ".join(re.sub(".\b", "", done.stdout).replace("\u2010", "-").split())
    for option in OPTIONS:
        assert f" {', '.join(option.names)} {option.value}".rstrip() in text
    for command in COMMANDS:
        assert f"{command.name} {command.argument.replace('...', ' ...')}".strip() in text
        assert command.help[1:].replace("`", "") in text
    for name in (*manual.ENVIRONMENT, *manual.files(), *STOP_BEFORE, *POINTS):
        assert name in text
    for _, text_of_code in EXIT_CODES:
        assert text_of_code[1:].replace("`", "") in text


def test_text_that_troff_would_obey() -> None:
    assert manual._prose(".so it is") == ["\\&.so it is"]
    assert manual._prose("'tis `x-y`\\n") == ["\\&'tis \\fBx\\-y\\fP\\en"]
    with pytest.raises(ValueError, match="not ASCII"):
        manual._prose("1 … 2")


# The completion


def test_shellcheck() -> None:
    shellcheck = Path(sys.executable).with_name("shellcheck")
    subprocess.run([shellcheck, COMPLETION], check=True)


def complete(*words: str) -> tuple[list[str], str]:
    """What bash would offer for the last of these words, and what it asks readline for (`compopt -o`)."""
    program = (
        'source "$1"; shift; compopt() { asked=$2; }; asked=; COMPREPLY=(old); COMP_WORDS=("$@"); '
        'COMP_CWORD=$(($# - 1)); _update_agent; printf "%s\\n" "$asked" "${COMPREPLY[@]}"'
    )
    command = [_program("bash"), "--norc", "-euc", program, "bash", COMPLETION, "update-agent", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    asked, *replies = done.stdout.rstrip("\n").split("\n") if done.stdout.strip() else [""]
    return [reply for reply in replies if reply], asked


def test_every_command_and_option_is_offered() -> None:
    assert complete("")[0] == [command.name for command in COMMANDS]
    assert complete("-")[0] == [name for option in OPTIONS for name in option.names]
    for command in COMMANDS:
        names = [name for option in (*command.options, OPTIONS[-1]) for name in option.names]
        assert complete(command.name, "-") == (names, "")


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["show"], ["show-artifact", "show-provides"]),
        (["--log"], ["--log-file", "--log-level"]),
        (["-l", ""], list(LEVELS)),
        (["--log-level", "=", "de"], ["debug"]),
        (["--log-level", "="], list(LEVELS)),
        (["--skipverify", "-c", "daemon", "st"], ["status"]),  # daemon is a file's name here
        (["-l", "debug", "commit", "--st"], ["--stop-before"]),
        (["commit", "--stop-before", "ArtifactC"], ["ArtifactCommit_Enter", "ArtifactCommit_Leave"]),
        (["resume", "--stop-before", "Cleanup", "--stop-before", "Cl"], ["Cleanup"]),
        (["pause", POINTS[0], ""], list(POINTS)),
        (["fail", ""], list(POINTS)),
        (["continue", POINTS[0], ""], []),
        (["commit", ""], []),
        (["commit", "-c"], []),
        (["install", "a.mender", ""], []),
        (["pause", "--", "-"], []),
        (["install", "a", "=", "b"], []),
        (["-c", "a", ":", "c"], []),
        (["nonsense", ""], []),
        (["nonsense", "-"], []),
    ],
)
def test_words(words: list[str], offered: list[str]) -> None:
    assert complete(*words) == (offered, "")


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        (["-c", ""], "default"),
        (["--trusted-certs", "=", "/etc"], "default"),
        (["--data", ""], "dirnames"),
        (["install", ""], "default"),
        (["install", "--reboot-exit-code", "rel"], "default"),
        (["install", "--", "-odd"], "default"),
        (["install", "--stop-before", "=", "Cleanup", "rel"], "default"),
        (["-c", "a", ":", "b", "install", ""], "default"),
    ],
)
def test_files(words: list[str], asked: str) -> None:
    assert complete(*words) == ([], asked)


@pytest.mark.parametrize("program", ["update-agent", "mender-update"])
@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("che", ["check-update"]),
        ("--skipverify --log-level=de", ["--skipverify", "--log-level=debug"]),
        ("-d dir", ["-d", "directory/"]),
        ("commit --stop-before=Cl", ["commit", "--stop-before=Cleanup"]),
        ("pause ArtifactC", ["pause", POINTS[-1]]),
        ("install re", ["install", "release 2.mender"]),
        ("commit di", ["commit", "di"]),
    ],
)
def test_tab_key(tmp_path: Path, program: str, typed: str, words: list[str]) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "release 2.mender").touch()
    (tmp_path / "dir.txt").touch()
    env = {"PATH": os.defpath, "HOME": str(tmp_path), "TERM": "dumb", "LC_ALL": "C", "INPUTRC": "/dev/null"}
    options = {"cwd": tmp_path, "env": env, "encoding": "utf-8", "timeout": 30, "dimensions": (24, 200)}
    with pexpect.spawn(_program("bash"), ["--norc", "--noprofile"], **options) as shell:
        shell.sendline(
            f"bind 'set enable-bracketed-paste off'; PS1=; source '{COMPLETION}'; echo is-\"\"ready"
        )
        shell.expect_exact("is-ready\r\n")
        # Completed, the line is not run but its words are printed: Ctrl-A and Ctrl-E put that around it.
        shell.send(f"{program} {typed}\t\x01printf '<%s>\\n' \x05; exit\r")
        shell.expect(pexpect.EOF)
    assert re.findall(r"^<(.*)>\r$", shell.before, re.MULTILINE) == [program, *words], shell.before
