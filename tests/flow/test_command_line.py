# SPDX-License-Identifier: Apache-2.0
"""The command line as a whole: the reference's verbs and options, with real processes and a terminal."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

from update_agent import __version__
from update_agent.options import COMMANDS, OPTIONS
from update_tools.conform.lab import MODULE, Lab

GIVEN = {"supports_rollback": True, "needs_reboot": "No", "faults": []}

# The reference's (config.md sections 4 and 8), name by name.
THEIR_OPTIONS = {
    *("-c", "--config", "-b", "--fallback-config", "-d", "--datastore", "--data", "-L", "--log-file"),
    *("-l", "--log-level", "-E", "--trusted-certs", "--skipverify"),
    *("--passphrase-file", "--no-syslog"),  # of version 3
    *("-v", "--version", "-h", "--help"),
}
THEIR_VERBS = {
    "daemon": set(),
    "install": {"--reboot-exit-code", "--stop-before", "--passphrase-file"},  # the last of version 3
    "resume": {"--reboot-exit-code", "--stop-before"},
    "commit": {"--stop-before"},
    "rollback": {"--stop-before"},
    "show-artifact": set(),
    "show-provides": set(),
    "check-update": set(),
    "send-inventory": set(),
    "bootstrap": {"-F", "--forcebootstrap"},  # of mender-auth, and of mender before
}
OUR_VERBS = {"status", "pause", "continue", "fail", "maps"}


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(GIVEN) as made:
        made.furnish()
        made.configure("http://127.0.0.1:9")
        yield made


def run(lab: Lab, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "update_agent", *arguments]
    environment = lab.environment()
    return subprocess.run(
        argv, env=environment, cwd=lab.root, input=stdin, capture_output=True, text=True, check=False
    )


def test_options_and_verbs_are_theirs_and_ours() -> None:
    assert {name for option in OPTIONS for name in option.names} == THEIR_OPTIONS
    own = {c.name: {name for option in c.options for name in option.names} for c in COMMANDS}
    assert {name: own[name] for name in own if name not in OUR_VERBS} == THEIR_VERBS


@pytest.mark.parametrize("verb", sorted([*THEIR_VERBS, *OUR_VERBS]))
def test_every_verb_has_help_and_refuses_what_it_does_not_know(lab: Lab, verb: str) -> None:
    shown = run(lab, verb, "--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.startswith(f"usage: update-agent {verb} ")
    wrong = run(lab, verb, "--no-such-option")
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert wrong.stderr.startswith(shown.stdout)
    assert wrong.stderr.endswith("Could not fulfill request: unknown option --no-such-option\n")


def test_version_is_printed_alone(lab: Lab) -> None:
    assert run(lab, "--version").stdout == f"{__version__}\n"


def test_log_options(lab: Lab) -> None:
    log = lab.path("log")
    Path(log).write_text("before\n")
    assert run(lab, "-L", log, "install", lab.path("artifact.mender")).stderr == ""
    assert Path(log).read_text().startswith("before\n")
    assert "INFO: State script ArtifactInstall_Enter_00 exited with 0" in Path(log).read_text()
    quiet = run(lab, "--log-level", "error", "commit")
    assert (quiet.returncode, quiet.stderr) == (0, "")
    wrong = run(lab, "-l", "loud", "show-artifact")
    assert wrong.returncode == 1
    assert "log level 'loud' is not one of trace, debug, info" in wrong.stderr


@pytest.mark.parametrize(
    ("level", "warning"), [("loud", "DaemonLogLevel is ignored: log level 'loud'"), ("WARNING", "")]
)
def test_a_log_level_of_the_configuration_does_not_keep_updates_away(
    lab: Lab, level: str, warning: str
) -> None:
    Path(lab.path("conf/mender.conf")).write_text(json.dumps({"DaemonLogLevel": level}))
    done = run(lab, "show-artifact")
    assert (done.returncode, done.stdout) == (0, "old\n")
    assert warning in done.stderr
    assert bool(warning) == bool(done.stderr)


def test_a_log_file_that_cannot_be_opened_is_named(lab: Lab) -> None:
    wrong = run(lab, "-L", lab.path("none/log"), "show-artifact")
    assert wrong.returncode == 1
    assert wrong.stderr == (
        f"Could not fulfill request: cannot write the log file {lab.path('none/log')}: "
        "No such file or directory\n"
    )


# Who listens goes away, or was never there


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_standard_streams_may_be_closed(lab: Lab, closed: str) -> None:
    """Scripts and modules still have their own, and print what they like."""
    for name, body in (("Download_Enter_50", "echo out; echo err >&2"), ("Download_Leave_50", "cat")):
        script = Path(lab.path(f"conf/scripts/{name}"))
        script.write_text(f"#!/bin/sh\n{body}\n")
        script.chmod(0o755)
    words = [
        sys.executable,
        "-m",
        "update_agent",
        "-L",
        lab.path("log"),
        "install",
        lab.path("artifact.mender"),
    ]
    done = subprocess.run(
        ["sh", "-c", f'"$@" {closed}', "sh", *words],
        env=lab.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    log = Path(lab.path("log")).read_text()
    assert "Collected output (stdout) while running script: out\n" in log
    assert "Collected output (stderr) while running script: err\n" in log
    without_log = f'"$@" commit {closed}'
    done = subprocess.run(["sh", "-c", without_log, "sh", *words[:3]], env=lab.environment(), check=False)
    assert done.returncode == 0
    assert run(lab, "show-artifact").stdout == "new\n"


def run_unheard(lab: Lab, *arguments: str) -> tuple[int, str]:
    """Exit code and stderr of a command whose standard output takes nothing."""
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "update_agent", *arguments],
            env=lab.environment(),
            cwd=lab.root,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    return done.returncode, done.stderr


@pytest.mark.parametrize("words", [["show-artifact"], ["show-provides"], ["--version"], ["pause", "--help"]])
def test_an_answer_that_reaches_nobody_is_a_failure(lab: Lab, words: list[str]) -> None:
    code, said = run_unheard(lab, *words)
    assert code == 1
    assert said.endswith(
        "Could not fulfill request: cannot write to the standard output: No space left on device\n"
    )
    assert "Traceback" not in said


def test_an_update_goes_on_when_nobody_reads_its_progress(lab: Lab) -> None:
    code, said = run_unheard(lab, "-l", "error", "install", lab.path("artifact.mender"))
    assert (code, said) == (0, "")
    assert run(lab, "commit").stdout == "Committed.\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_update_that_is_interrupted_ends_its_programs_and_can_be_undone(lab: Lab, number: int) -> None:
    began = Path(lab.path("began"))
    os.mkfifo(began)
    module = Path(lab.path(f"data/modules/v3/{MODULE}"))
    usual = module.read_text()
    slow = f'if [ "$1" = ArtifactInstall ]; then echo $$ >"{began}"; exec sleep 600; fi\n'
    module.write_text(f"#!/bin/sh\n{slow}{usual}")
    # Who runs the tests may ignore signals (nohup, a job in the background), and the agent respects that.
    argv = ["env", "--default-signal=INT,TERM,HUP", sys.executable, "-m", "update_agent", "install"]
    with subprocess.Popen(
        [*argv, lab.path("artifact.mender")],
        env=lab.environment(),
        cwd=lab.root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        program = os.pidfd_open(int(began.read_text()))
        process.send_signal(number)
        try:
            stdout, stderr = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert stdout.splitlines()[-1] == "Interrupted. Use 'resume' to go on, or 'rollback' to undo."
    assert "Traceback" not in stderr
    assert select.select([program], [], [], 60)[0], "the module still runs"
    os.close(program)
    assert run(lab, "rollback").stdout == "Rolled back.\n"


def test_a_program_that_was_started_an_instant_before_the_interrupt_is_ended(lab: Lab) -> None:
    """The signal comes when the program runs already and the agent has not noted it yet."""
    body = (
        "import os, sys, signal\n"
        "from update_agent.__main__ import main\n"
        "def between(pid):\n"
        "    print('started', pid, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    raise AssertionError('the signal did not come')\n"
        "os.pidfd_open = between\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    Path(lab.path("conf/scripts/Download_Enter_00")).write_text("#!/bin/sh\nexec sleep 600\n")
    argv = [sys.executable, "-c", body, "install", lab.path("artifact.mender")]
    done = subprocess.run(
        argv, env=lab.environment(), cwd=lab.root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 130
    pid = int(done.stdout.partition("started ")[2].split()[0])
    try:
        program = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    assert select.select([program], [], [], 10)[0], "the script still runs"
    os.close(program)


# Progress


def test_progress_is_lines_where_nobody_watches(lab: Lab) -> None:
    lines = run(lab, "install", lab.path("artifact.mender")).stdout.splitlines()
    assert lines[0] == "Installing artifact..."
    assert lines[-3:] == [
        "100 %",
        "Installed, but not committed.",
        "Use 'commit' to update, or 'rollback' to roll back the update.",
    ]
    assert all(line.endswith(" %") for line in lines[1:-2])


def test_progress_is_a_bar_on_a_terminal(lab: Lab) -> None:
    command = ["-m", "update_agent", "-l", "error", "install", lab.path("artifact.mender")]
    with pexpect.spawn(
        sys.executable, command, env=lab.environment(), cwd=lab.root, encoding="utf-8", timeout=60
    ) as terminal:
        terminal.expect_exact("Installing artifact...\r\n")
        terminal.expect(r"\r\[#* +\] +\d+ % of \d+\.\d MB")
        terminal.expect_exact(f"\r[{'#' * 50}] 100 % of 0.1 MB\r\n")
        terminal.expect_exact("Installed, but not committed.\r\n")
        terminal.expect(pexpect.EOF)
    assert terminal.exitstatus == 0


def test_a_bar_that_ends_early_leaves_its_line(lab: Lab) -> None:
    path = Path(lab.path("artifact.mender"))
    path.write_bytes(path.read_bytes()[:-20_000])
    command = ["-m", "update_agent", "-l", "fatal", "install", str(path)]
    with pexpect.spawn(
        sys.executable, command, env=lab.environment(), cwd=lab.root, encoding="utf-8", timeout=60
    ) as terminal:
        terminal.expect(r" of \d\.\d MB\r\nStreaming failed\.\r\nSystem not modified\.\r\n")
        terminal.expect_exact("Could not fulfill request: ")
        terminal.expect(pexpect.EOF)
    assert terminal.exitstatus == 1


# The device key


def test_bootstrap_makes_the_key_once(lab: Lab) -> None:
    key = Path(lab.path("store/mender-agent.pem"))
    assert run(lab, "bootstrap").returncode == 0
    first = key.read_bytes()
    assert run(lab, "bootstrap").returncode == 0
    assert key.read_bytes() == first
    assert run(lab, "bootstrap", "-F").returncode == 0
    assert key.read_bytes() != first
    key.write_text("broken")
    broken = run(lab, "bootstrap")
    assert broken.returncode == 1
    assert f"reading the device key {key} failed" in broken.stderr


def test_the_passphrase_comes_from_a_file_or_standard_input(lab: Lab) -> None:
    key, phrase = lab.path("store/mender-agent.pem"), lab.path("phrase")
    Path(phrase).write_text("s3 cret\nsecond line\n")
    argv = ["openssl", "genpkey", "-algorithm", "ED25519", "-aes256", "-pass", f"file:{phrase}", "-out", key]
    subprocess.run(argv, check=True, capture_output=True)
    assert run(lab, "bootstrap").returncode == 1
    assert run(lab, "--passphrase-file", phrase, "bootstrap").returncode == 0
    assert run(lab, "--passphrase-file=-", "bootstrap", stdin="s3 cret\n").returncode == 0
    missing = run(lab, "--passphrase-file", lab.path("none"), "bootstrap")
    assert missing.returncode == 1
    assert f"cannot read the passphrase from {lab.path('none')}" in missing.stderr


# Waking the daemon


@pytest.fixture
def daemon(lab: Lab) -> Iterator[subprocess.Popen[str]]:
    """A daemon that has polled once, in vain, and would not do so again for an hour."""
    path = Path(lab.path("conf/mender.conf"))
    hours = {"UpdatePollIntervalSeconds": 3600, "InventoryPollIntervalSeconds": 3600}
    hours |= {"RetryPollIntervalSeconds": 3600, "RetryFirstIntervalSeconds": 3600}
    path.write_text(json.dumps(json.loads(path.read_text()) | hours))
    process = subprocess.Popen(
        [sys.executable, "-m", "update_agent", "daemon"],
        env=lab.environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    until(process, "No answer to the deployment poll")
    yield process
    process.terminate()
    assert process.stderr is not None
    process.stderr.close()
    assert process.wait(60) == 0


def until(process: subprocess.Popen[str], words: str) -> None:
    assert process.stderr is not None
    assert any(words in line for line in process.stderr), f"never: {words}"


TOLD = {
    "check-update": "No answer to the deployment poll",
    "send-inventory": "Inventory was not submitted",
}


@pytest.mark.parametrize("verb", TOLD)
def test_the_daemon_is_woken_without_systemd(lab: Lab, daemon: subprocess.Popen[str], verb: str) -> None:
    answer = run(lab, verb)
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "", "")
    until(daemon, TOLD[verb])


@pytest.mark.parametrize("verb", TOLD)
def test_the_daemon_is_woken_through_systemd_when_it_has_no_socket(
    lab: Lab, daemon: subprocess.Popen[str], verb: str
) -> None:
    os.unlink(lab.path("control.socket"))
    systemctl = Path(lab.path("bin/systemctl"))
    systemctl.write_text(
        '#!/bin/sh\n[ "$*" = "show --property=MainPID mender-updated.service" ] || exit 1\n'
        f"echo MainPID={daemon.pid}\n"
    )
    systemctl.chmod(0o755)
    assert run(lab, verb).returncode == 0
    until(daemon, TOLD[verb])


@pytest.mark.parametrize("verb", TOLD)
def test_without_a_daemon_there_is_nobody_to_wake(lab: Lab, verb: str) -> None:
    systemctl = Path(lab.path("bin/systemctl"))
    systemctl.write_text("#!/bin/sh\necho MainPID=0\n")
    systemctl.chmod(0o755)
    answer = run(lab, verb)
    assert answer.returncode == 1
    assert "Could not fulfill request: the update daemon is not running" in answer.stderr
