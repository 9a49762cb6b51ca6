# SPDX-License-Identifier: Apache-2.0
"""The desk tools' one entrance: exit codes, and that a command costs only its own imports."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from update_tools import __main__ as ota

COMMANDS = """
import typer
from update_agent.errors import UpdateError
app = typer.Typer()
@app.command()
def good() -> None: print("done")
@app.command()
def bad() -> None: raise UpdateError("card.img is not there", hint="make it with: ota board create")
@app.command()
def bug() -> None: raise ZeroDivisionError
@app.command()
def interrupted() -> None: raise KeyboardInterrupt
@app.command()
def three() -> None: raise typer.Exit(3)
"""


@pytest.fixture(autouse=True)
def _commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ota_sample.py").write_text(COMMANDS)
    (tmp_path / "ota_fast.py").write_text("def run(words): print(words); return len(words)")
    (tmp_path / "ota_other.py").write_text("raise ImportError('only its own command may import this')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "ota_sample", raising=False)
    monkeypatch.setattr(
        ota,
        "SUBCOMMANDS",
        {
            "fast": ("ota_fast", "Fast."),
            "sample": ("ota_sample", "A sample."),
            "other": ("ota_other", "O."),
            "gone": ("ota_gone.cli", "G."),
        },
    )


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("good", 0),
        ("--help", 0),
        ("bad", 2),
        ("good --no-such", 2),
        ("no-such", 2),
        ("interrupted", 130),
        ("three", 3),
    ],
)
def test_exit_code(words: str, code: int) -> None:
    assert ota.main(["sample", *words.split()]) == code


def test_error_is_told_with_its_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    ota.main(["sample", "bad"])
    assert capsys.readouterr().err == "ota: card.img is not there\n     make it with: ota board create\n"


def test_a_bug_shows_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        ota.main(["sample", "bug"])


def test_other_commands_are_not_imported_and_missing_ones_not_offered() -> None:
    assert ota.main(["sample", "good"]) == 0
    assert "ota_other" not in sys.modules
    assert ota.main(["gone"]) == 2


def test_a_command_with_run_gets_its_words_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert ota.main(["fast", "--help", "x"]) == 2
    assert capsys.readouterr().out == "['--help', 'x']\n"


def test_all_commands_are_listed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(ota.SUBCOMMANDS, "other")
    assert ota.main(["--help"]) == 0
    said = capsys.readouterr().out
    assert "A sample." in said
    assert "Fast." in said


def test_reading_an_artifact_loads_little() -> None:
    """What is asked in a loop by scripts must not load a command-line framework or the writer."""
    program = "import sys, update_tools.__main__ as ota; ota.main(['artifact', 'read', '/dev/null']); "
    program += "print(*{'typer', 'rich', 'zstandard', 'tarfile', 'ssl', 'subprocess'} & set(sys.modules))"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    argv = [sys.executable, "-c", program]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, env=env)
    assert done.stdout.strip() == ""
    assert "ota: " in done.stderr
