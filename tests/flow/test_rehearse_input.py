# SPDX-License-Identifier: Apache-2.0
"""`ota rehearse` as people use it: wrong and odd input of all kinds, interrupts, streams that are closed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from tests.flow.test_rehearse import found, needs_machines, write

from update_tools.__main__ import main
from update_tools.rehearse import rehearsal
from update_tools.rehearse.html import page
from update_tools.rehearse.team import Team

PROGRAM = "import sys; from update_tools.__main__ import main; sys.exit(main())"
ENV = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
ONE = ["--quick", "--only", "success"]
HOOK = '{"point": "Download_Enter", "when": "always", "limit_s": 60, "at_limit": "continue"}'


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what commands are given, which is also where they are called."""
    write(tmp_path / "good", {"ArtifactInstall_Enter_10_x": "exit 0"})
    write(tmp_path / "again", {"ArtifactInstall_Enter_10_x": "exit 0"})
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("text")
    monkeypatch.chdir(tmp_path)
    return tmp_path


# Options behind `--scripts good`, and what the error must say. All are wrong input: 2, and no traceback.
WRONG: dict[str, str] = {
    "--jobs 0": "argument --jobs: 0 is no number from 1 on",
    "--jobs -1": "argument --jobs: -1 is no number from 1 on",
    "--sample 0": "argument --sample: 0 is no number from 1 on",
    "--timeout 0": "argument --timeout: 0 is no time in seconds",
    "--timeout nan": "argument --timeout: nan is no time in seconds",
    "--persistent data": "argument --persistent: 'data' is no path of the device",
    "--ignore log": "argument --ignore: 'log' is no path of the device",
    "--scripts again": "ArtifactInstall_Enter_10_x is in more than one of the folders",
    "--scripts file": "--scripts file is not a directory",
    "--hooks empty": "empty has no pause hooks",
    "--conf empty": "cannot read empty: Is a directory",
    "--root file": "--root file is not a directory",
    "--html no/x.html": "there is no folder no for x.html",
    "--html empty": "cannot write empty: it is a folder",
    "--html good/x.html": "good/x.html is among what is rehearsed",
    "--conf file --html file": "file is not JSON",
    "--board --only x --sample 2": "without --sample, --only",
}


@pytest.mark.parametrize("line", WRONG)
def test_wrong_options(line: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rehearse", "--scripts", "good", *line.split()]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert WRONG[line] in err
    assert [path.name for path in (place / "good").iterdir()] == ["ArtifactInstall_Enter_10_x"]


def test_a_script_that_cannot_be_read() -> None:
    if os.geteuid() != 0 or not all(path.stat().st_mode & 0o001 for path in Path(__file__).parents):
        pytest.skip("needs another user, and a checkout that is open for it")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        write(Path(folder) / "good", {"ArtifactInstall_Enter_10_x": "exit 0"}, mode=0)
        words = ["setpriv", "--reuid=65534", "--clear-groups", sys.executable, "-c", PROGRAM, "rehearse"]
        done = subprocess.run(
            [*words, "--scripts", "good"], capture_output=True, text=True, check=False, env=ENV, cwd=folder
        )
    assert (done.returncode, done.stdout) == (2, "")
    assert "cannot read good/ArtifactInstall_Enter_10_x: Permission denied" in done.stderr


@needs_machines
def test_a_pattern_that_no_scenario_has(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It would play nothing, and say that nothing is wrong."""
    assert (
        main(["rehearse", "--scripts", "good", "--quick", "--only", "instal=fail", "--only", "success"]) == 2
    )
    out, err = capsys.readouterr()
    assert out == ""
    assert "no scenario is called 'instal=fail' (--only)" in err
    assert "install=fail" in err.partition("nearest")[2]


def test_what_is_no_plain_file(place: Path) -> None:
    """A pipe is not waited for; a link may lead nowhere or in a circle."""
    os.mkfifo(place / "good/ArtifactInstall_Enter_20_x")
    for name, target in (("30", "nowhere"), ("40", "ArtifactInstall_Enter_40")):
        (place / f"good/ArtifactInstall_Enter_{name}").symlink_to(target)
    hooks = write(place / "hooks", {"10-x.json": HOOK})
    os.mkfifo(hooks / "20-x.json")
    (hooks / "30-x.json").mkdir()
    team = Team(place / "good", hooks=hooks)
    findings = rehearsal.Findings()
    rehearsal.team.check(team, findings, [Path("/")])
    assert [(f.name, f.where) for f in findings] == [
        ("script-bad-name", "ArtifactInstall_Enter_20_x"),
        ("script-bad-name", "ArtifactInstall_Enter_30"),
        ("script-bad-name", "ArtifactInstall_Enter_40"),
        ("hook-invalid", "20-x.json"),
        ("hook-invalid", "30-x.json"),
    ]


def test_what_lies_beside_scripts_is_nobodys(place: Path) -> None:
    """A README, Git's own; but no program, and nothing that is named like a script."""
    (place / "good/.git").mkdir()
    write(place / "good", {"README.md": "#!#", "ArtifactInstall_10": "#!#"}, mode=0o644)
    write(place / "good", {"helper": "exit 0"})
    findings = rehearsal.Findings()
    rehearsal.team.check(Team(place / "good"), findings, [Path("/")])
    assert [(f.name, f.where) for f in findings] == [
        ("script-bad-name", "ArtifactInstall_10"),
        ("script-bad-name", "helper"),
    ]


# Text of a script, and what is found of it without running it.
TEXTS: dict[str, list[str]] = {
    "#!/bin/sh\nexit 0\n": [],
    "#!/bin/sh\nset -eu\r\nexit 0\n": ["script-crlf: line 2 ends with CR LF"],
    "#!/bin/sh\r\nexit 0\r\n": ["script-crlf: line 1 ends with CR LF"],
    "#!/usr/bin/env bash\nexit 0\r\n": ["script-crlf: line 2 ends with CR LF"],
    "#!/usr/bin/python3\nimport sys\r\n": [],
    "#!\nexit 0\n": ["script-no-interpreter: its first line is not #!PROGRAM"],
    "#!sh\nexit 0\n": ["script-no-interpreter: there is no program sh"],
    "#!/etc\nexit 0\n": ["script-no-interpreter: there is no program /etc"],
    "#! /usr/bin/env no-such\n": ["script-no-interpreter: there is no program no-such"],
    "#!/usr/bin/env sh\n": [],
    "#!/usr/bin/env -S sh -eu\n": [],
}


@pytest.mark.parametrize("text", TEXTS)
def test_first_lines_and_line_ends(text: str, tmp_path: Path) -> None:
    (tmp_path / "ArtifactInstall_Enter_10_x").write_bytes(text.encode())
    findings = rehearsal.Findings()
    rehearsal.team.check(Team(tmp_path), findings, [Path("/")])
    assert [f"{f.name}: {f.what}" for f in findings] == TEXTS[text]


# Names and output that are no UTF-8


@needs_machines
def test_bytes_that_are_no_text(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """In a script, its name, its output, and the names of files that it makes."""
    script = b'#!/bin/sh\n# k\xe4se\necho "\xff\033[31mred" >&2\n>"$UPDATE_DATA_DIR/k\xe4se"\nexit 3\n'
    (place / "good/ArtifactInstall_Enter_10_x").write_bytes(script)
    odd = os.fsdecode(b"ArtifactInstall_Enter_20_k\xe4se")
    (place / "good" / odd).write_bytes(b"#!/bin/sh\nexit 0\n")
    words = ["rehearse", "--scripts", "good", *ONE]
    assert main([*words, "--json", "--html", "r.html"]) == 3
    document = json.loads(capfd.readouterr().out)
    assert [finding["name"] for finding in document["findings"]] == ["script-bad-name", "script-fails"]
    assert document["findings"][0]["where"] == odd
    assert document["scripts"][0]["changed"] == [os.fsdecode(b"/data/mender/k\xe4se")]
    assert r"/data/mender/k\xe4se" in (place / "r.html").read_text(encoding="utf-8")
    assert main(words) == 3
    out = capfd.readouterr().out
    assert "exit code 3, “\ufffd\ufffd[31mred”" in out
    assert r"ArtifactInstall_Enter_20_k\xe4se" in out
    assert all(line == line.rstrip() for line in out.splitlines()), "blanks at line ends in a pipe"


@needs_machines
def test_an_update_that_a_hook_lets_fail(tmp_path: Path) -> None:
    """No script failed; but nobody would call this rehearsal good."""
    hook = HOOK.replace('"continue"', '"fail"')
    done = rehearsal.rehearse(
        Team(hooks=write(tmp_path, {"10-x.json": hook})), rehearsal.Options(quick=True, only=["nothing more"])
    )
    assert found(done) == {"update-fails": "the update"}
    assert "10-x.json" in next(iter(done.findings)).what
    assert "update-fails" in page(done)


# Ends


def _running(parent: subprocess.Popen[str]) -> list[int]:
    """All below a process, as soon as the script is among them."""
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        try:
            fields = Path(f"/proc/{int(entry)}/stat").read_text().rpartition(")")[2].split()
            parents[int(entry)] = int(fields[1])
        except (OSError, ValueError):
            continue
    below = [parent.pid]
    for pid in below:
        below += [child for child, its in parents.items() if its == pid]
    lines = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in below if Path(f"/proc/{pid}").exists()]
    return below if any(line == b"sleep\x00300\x00" for line in lines) else []


@needs_machines
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(place: Path, how: signal.Signals) -> None:
    """In the middle, when machines are at work: no process, no folder and no mount is left."""
    temporary = place / "tmp"
    temporary.mkdir()
    write(place / "good", {"ArtifactInstall_Enter_10_x": "sleep 300"})
    mounts = Path("/proc/self/mountinfo").read_text()
    command = [
        sys.executable,
        "-c",
        PROGRAM,
        "rehearse",
        "--scripts",
        "good",
        "--jobs",
        "2",
        "--timeout",
        "300",
    ]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**ENV, "TMPDIR": str(temporary)},
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not (running := _running(process)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(how)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in err
    assert list(temporary.iterdir()) == []
    assert Path("/proc/self/mountinfo").read_text() == mounts
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in running):  # the kernel ends them one after the other
        assert time.monotonic() < deadline
        time.sleep(0.05)


@needs_machines
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed(place: Path, closed: str) -> None:
    """As cron and some services start programs."""
    command = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-c", PROGRAM]
    words = ["rehearse", "--scripts", "good", *ONE, "--html", "r.html"]
    done = subprocess.run([*command, *words], capture_output=True, text=True, check=False, env=ENV)
    assert done.returncode == 0, done.stderr
    assert "Nothing wrong was found" in (place / "r.html").read_text()
    assert ("nothing wrong was found" in done.stdout) == (">&-" not in closed.split())
