# SPDX-License-Identifier: Apache-2.0
"""Completion of `scripts/ota`: what it offers, and that real shells take it."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pexpect
import pytest
from tests.support.tools import need

from update_tools.__main__ import SUBCOMMANDS, main
from update_tools.completion.shells import SCRIPTS
from update_tools.completion.trees import root
from update_tools.completion.words import FILES, FOLDERS, NOTHING, Command, Option, Value, joined, offer

REPOSITORY = Path(__file__).parents[2]
ENV = {**os.environ, "TERM": "dumb", "LC_ALL": "C.UTF-8"}


def words(answer_words: list[str]) -> tuple[str, set[str]]:
    found = offer(root(SUBCOMMANDS), answer_words[:-1], answer_words[-1])
    return found.kind, {word for word, _ in found.choices}


# line, kind, words among the offered, words not among them
CASES: tuple[tuple[str, str, str, str], ...] = (
    ("", NOTHING, "board server artifact flash inspect completion", "-h"),
    ("fl", NOTHING, "flash", "board"),
    ("-", NOTHING, "-h --help", "--install-completion flash"),
    ("no-such ", NOTHING, "board", ""),
    ("flash ", FILES, "", "flash"),
    ("flash --", NOTHING, "--yes --to-file --wifi --json", "-y"),
    ("flash -", NOTHING, "-y --yes -h", ""),
    ("flash --yes ", FILES, "", ""),
    ("flash --wifi ", NOTHING, "", "--yes"),
    ("flash --wifi net --host-keys ", FOLDERS, "", ""),
    ("flash --bmap=ca", FILES, "", ""),
    ("flash a.wic --to-file ", FILES, "", ""),
    ("flash -- --", FILES, "", "--yes"),
    ("artifact ", NOTHING, "write sign read validate dump", ""),
    ("artifact write ", NOTHING, "rootfs-image module-image bootstrap-artifact", ""),
    ("artifact write rootfs-image --comp", NOTHING, "--compression", "--level"),
    ("artifact write rootfs-image --compression ", NOTHING, "gzip xz zstd none", ""),
    ("artifact write rootfs-image --compression=z", NOTHING, "--compression=zstd", "--compression=xz"),
    ("artifact write rootfs-image -f image.ext4 -n ", NOTHING, "", ""),
    ("artifact write bootstrap-artifact --", NOTHING, "--artifact-name", "--file --script"),
    ("artifact read ", FILES, "", ""),
    ("artifact read a.mender ", NOTHING, "", ""),
    ("inspect --", NOTHING, "--json --strict", ""),
    ("inspect ", FILES, "footprint", "inspect"),
    ("inspect foot", FILES, "footprint", ""),
    ("inspect --strict ", FILES, "", "footprint"),
    ("inspect card.wic ", NOTHING, "", "footprint"),
    ("inspect footprint ", FILES, "", "footprint"),
    ("inspect footprint --", NOTHING, "--without --budget --json", "--strict"),
    ("inspect footprint --without ", FILES, "", ""),
    ("board ", NOTHING, "create boot console shell power-cut reset status", ""),
    ("board create --", NOTHING, "--kind --dir --version", "--show-completion"),
    ("board create --dir ", FOLDERS, "", ""),
    ("board create --kind ", NOTHING, "virt64", ""),
    ("server ", NOTHING, "token user", ""),
    ("server --", NOTHING, "--host --port --data", "--ready-fd --parent"),
    ("server --port 80 token ", NOTHING, "create list revoke", ""),
    ("server token create --scope ", NOTHING, "read deploy admin", ""),
    ("server --tls-cert ", FILES, "", ""),
    ("bench-server --", NOTHING, "--devices --servers", ""),
    ("completion ", NOTHING, "bash zsh fish", ""),
)


@pytest.mark.parametrize(("line", "kind", "offered", "not_offered"), CASES)
def test_what_is_offered(line: str, kind: str, offered: str, not_offered: str) -> None:
    got_kind, got = words([*line.split(" ")])
    assert got_kind == kind
    assert set(offered.split()) <= got
    assert not set(not_offered.split()) & got


def test_every_command_has_options_and_every_option_a_text() -> None:
    def walk(path: str, command: Command) -> None:
        assert command.option("--help"), path
        for option in command.options:
            assert option.text, f"{path} {option.names}"
        for name, (text, load) in command.commands.items():
            assert text, f"{path} {name}"
            walk(f"{path} {name}", load())

    walk("ota", root(SUBCOMMANDS))


def commands(path: tuple[str, ...], command: Command) -> Iterator[tuple[tuple[str, ...], Command]]:
    """All commands below one, and itself."""
    yield path, command
    for name, (_, load) in command.commands.items():
        yield from commands((*path, name), load())


def test_commands_and_options_are_those_of_the_help(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each command that is offered has a help of its own, which names the same commands and options."""
    monkeypatch.setenv("COLUMNS", "200")
    for path, command in commands((), root(SUBCOMMANDS)):
        assert main([*path, "--help"]) == 0, path
        told = capsys.readouterr().out
        assert re.search(rf"(?i)usage: {' '.join(('ota', *path))}\b", told), path
        lines = [line.strip(" │*") for line in told.splitlines() if re.match(r"[ │*]", line)]
        options = {
            word
            for line in lines
            if line.startswith("-")
            for word in re.findall(r"(?<![\w-])--?\w[\w-]*", line)
        }
        offered = {name for option in command.options for name in option.names}
        assert offered <= options, path
        assert {line.split()[0].rstrip(",") for line in lines if line.startswith("--")} <= offered, path
        below = re.split(r"(?m)^.*(?:─ Commands ─|  COMMAND$|  KIND$|^commands, ).*$", told)[1:]
        listed = {found for part in below for found in re.findall(r"(?m)^(?:│ |    )(\w[\w-]*)(?: |$)", part)}
        assert listed == set(command.commands), path


def test_each_command_line_of_the_sources_is_offered() -> None:
    """Also one that a command makes by itself, beside the help."""
    offered = {" ".join(("ota", *path)) for path, _ in commands((), root(SUBCOMMANDS))}
    sources = (REPOSITORY / "scripts/update_tools").rglob("*.py")
    made = {name for path in sources for name in re.findall(r'prog="(ota\b[^"]*)"', path.read_text())}
    assert "ota inspect footprint" in made
    assert made <= offered


def test_an_argument_without_end_and_one_behind_the_last() -> None:
    many = Command([Option(["-x"], "", None)], [Value(FILES), Value(FOLDERS)], endless=True)
    assert [offer(many, ["a"] * count, "").kind for count in range(4)] == [FILES, FOLDERS, FOLDERS, FOLDERS]
    two = Command([], [Value(FILES), Value(FOLDERS)])
    assert [offer(two, ["a"] * count, "").kind for count in range(3)] == [FILES, FOLDERS, NOTHING]


def test_what_bash_took_apart() -> None:
    assert joined(["flash", "--bmap", "=", "x", "y"]) == ["flash", "--bmap=x", "y"]
    assert joined(["flash", "--bmap", "="]) == ["flash", "--bmap="]
    assert joined(["a", "=", "b"]) == ["a", "=", "b"]


@pytest.mark.parametrize("shell", SCRIPTS)
def test_the_scripts_are_printed(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    assert capsys.readouterr().out == SCRIPTS[shell]


def test_other_shells_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "tcsh"]) == 2
    assert "tcsh" in capsys.readouterr().err


# The shells themselves, with the real scripts/ota. It must be set up: they cannot wait for that.


@pytest.fixture(scope="module")
def _is_set_up() -> None:
    if not (REPOSITORY / ".venv/bin/python").exists():
        pytest.skip("scripts/setup was not run")


def by_bash(line: str, folder: Path) -> set[str]:
    """What bash would offer, by its own completion function; `line` is split as bash splits it."""
    split = [
        part
        for word in line.split(" ")
        for part in (word.replace("=", " = ").split(" ") if "=" in word else [word])
    ]
    program = SCRIPTS["bash"] + f"COMP_WORDS=({shlex.join([str(REPOSITORY / 'scripts/ota'), *split])})\n"
    program += 'COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _ota; printf "%s\\n" "${COMPREPLY[@]}"'
    done = subprocess.run(
        ["bash", "--norc", "-c", program], capture_output=True, text=True, check=True, cwd=folder, env=ENV
    )
    assert done.stderr == ""
    return set(done.stdout.split("\n")) - {""}


def by_fish(line: str, folder: Path) -> set[str]:
    need("fish")
    program = SCRIPTS["fish"] + f"complete -C {shlex.quote(f'{REPOSITORY}/scripts/ota {line}')}"
    done = subprocess.run(
        ["fish", "--no-config", "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
        env=ENV,
    )
    assert done.stderr == ""
    return {row.partition("\t")[0] for row in done.stdout.splitlines()}


SHELLS: dict[str, Callable[[str, Path], set[str]]] = {"bash": by_bash, "fish": by_fish}


@pytest.mark.usefixtures("_is_set_up")
@pytest.mark.parametrize("shell", SHELLS)
def test_shells_offer_the_same(shell: str, tmp_path: Path) -> None:
    (tmp_path / "card.wic").touch()
    (tmp_path / "a folder").mkdir()
    table = (
        ("fla", {"flash"}),
        ("artifact write roo", {"rootfs-image"}),
        ("artifact write rootfs-image --compression g", {"gzip"}),
        ("flash --wifi-c", {"--wifi-country"}),
        ("flash car", {"card.wic"}),
        ("flash --bmap card", {"card.wic"}),
        ("flash --wifi ", set()),
    )
    for line, expected in table:
        assert SHELLS[shell](line, tmp_path) == expected, line
    files = {name.rstrip("/") for name in SHELLS[shell]("flash ", tmp_path)}
    assert {"card.wic", "a folder"} <= {name.replace("\\", "") for name in files}
    only = {name.rstrip("/").replace("\\", "") for name in SHELLS[shell]("flash --host-keys ", tmp_path)}
    assert only == {"a folder"}


@pytest.mark.usefixtures("_is_set_up")
def test_bash_behind_an_equals_sign(tmp_path: Path) -> None:
    (tmp_path / "card.bmap").touch()
    assert by_bash("flash --bmap=ca", tmp_path) == {"card.bmap"}
    assert by_bash("artifact write rootfs-image --compression=zs", tmp_path) == {"zstd"}


TYPED = {
    "bash": (["--norc", "--noprofile"], "", "PS1='$ '"),
    "zsh": (["-f"], "autoload -Uz compinit; compinit -u -D", "PS1='$ '"),
}


@pytest.mark.usefixtures("_is_set_up")
@pytest.mark.parametrize("shell", TYPED)
def test_typed_with_tab(shell: str, tmp_path: Path) -> None:
    """The whole way: a person at a shell, who presses Tab and then Enter."""
    arguments, first, prompt = TYPED[shell]
    (tmp_path / "picture.wic").touch()
    script = tmp_path / "script"
    script.write_text(SCRIPTS[shell])
    terminal = pexpect.spawn(
        need(shell), arguments, env=ENV, cwd=str(tmp_path), encoding="utf-8", timeout=60, dimensions=(50, 200)
    )
    for line in (prompt, first, f"source {script}", "echo rea''dy"):
        terminal.sendline(line)
    terminal.expect_exact("ready")
    terminal.send(f"{REPOSITORY}/scripts/ota fla\tpict\t--to-f\t")
    terminal.send("\x01echo \r")  # to the start of the line, and let the shell say what it has become
    terminal.expect(r"\n[^\n]*scripts/ota flash picture.wic --to-file *\r")
    terminal.sendline("exit")
    terminal.expect(pexpect.EOF)
