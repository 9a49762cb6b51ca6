# SPDX-License-Identifier: Apache-2.0
"""Programs as children: real shells, real signals. Limits are small; no test looks at how long it took."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.leftovers import children, descriptors

from update_agent import proc
from update_agent.errors import ProcError
from update_agent.loop import plain_wait

FOREVER_S = 60.0


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """No descriptor and no unreaped child stays behind."""
    before, others = descriptors(), children()
    yield
    assert not descriptors() - before
    assert not children() - others


def shell(text: str) -> list[str]:
    return ["sh", "-c", text]


class Collected:
    """What came out of a program, by stream."""

    def __init__(self) -> None:
        self.stdout = self.stderr = b""

    def feed(self, stream: str, chunk: bytes) -> None:
        setattr(self, stream, getattr(self, stream) + chunk)


@pytest.mark.parametrize(
    ("text", "code", "number", "words"),
    [
        ("exit 0", 0, None, "exited with 0"),
        ("exit 21", 21, None, "exited with 21"),
        ("kill -9 $$", None, 9, "was killed by signal 9"),
    ],
)
def test_how_it_ended(text: str, code: int | None, number: int | None, words: str) -> None:
    result = proc.run(shell(text), timeout_s=FOREVER_S)
    assert (result.code, result.signal, result.timed_out) == (code, number, False)
    assert result.describe() == words
    assert result.ok is (code == 0)


def test_output_by_stream_also_the_last_of_it() -> None:
    out = Collected()
    text = "head -c 300000 /dev/zero; echo last; echo oops >&2"
    assert proc.run(shell(text), timeout_s=FOREVER_S, on_output=out.feed).ok
    assert out.stdout == bytes(300_000) + b"last\n"
    assert out.stderr == b"oops\n"


def test_directory_environment_and_standard_input(tmp_path: Path) -> None:
    here = os.getcwd()
    _, stdout, _ = proc.output(
        ["/bin/sh", "-c", "pwd; cat; echo $KEY"],
        timeout_s=FOREVER_S,
        cwd=str(tmp_path),
        env={"KEY": "value"},
        stdin=b"typed\n",
    )
    assert stdout.decode().splitlines() == [str(tmp_path), "typed", "value"]
    assert os.getcwd() == here


@pytest.mark.parametrize("size", [0, 1, 4096, 4097, 300_000])
def test_standard_input_of_any_size(size: int) -> None:
    data = os.urandom(size)
    assert proc.output(["cat"], timeout_s=FOREVER_S, stdin=data)[1] == data


def test_output_is_cut() -> None:
    text = "printf 0123456789; printf abc >&2"
    _, stdout, stderr = proc.output(shell(text), timeout_s=FOREVER_S, limit_bytes=4)
    assert (stdout, stderr) == (b"0123", b"abc")


def test_signals_are_as_a_program_expects_them() -> None:
    # Python ignores these two; a shell pipeline depends on the first, `ulimit -f` on the other.
    _, stdout, _ = proc.output(["cat", "/proc/self/status"], timeout_s=FOREVER_S)
    masks = dict(line.split(":\t") for line in stdout.decode().splitlines() if line.startswith("Sig"))
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        assert not int(masks["SigIgn"], 16) & 1 << (number - 1)
    assert int(masks["SigBlk"], 16) == 0


# Programs that cannot be started


def test_not_on_path() -> None:
    with pytest.raises(ProcError, match=r"cannot start no-such-program: not found on PATH \(is its package"):
        proc.run(["no-such-program"], timeout_s=FOREVER_S)


@pytest.mark.parametrize(
    ("content", "mode", "reason"),
    [
        (None, 0, "No such file"),
        ("#!/bin/sh\n", 0o644, "Permission denied"),
        ("#!/no/such/interpreter\n", 0o755, "No such file"),
        ("\0\0\0", 0o755, "Exec format error"),
    ],
)
def test_not_startable(tmp_path: Path, content: str | None, mode: int, reason: str) -> None:
    path = tmp_path / "program"
    if content is not None:
        path.write_text(content)
        path.chmod(mode)
    with pytest.raises(ProcError, match=f"cannot start {path}: {reason}.*interpreter"):
        proc.run([str(path)], timeout_s=FOREVER_S)


def test_what_the_kernel_cannot_hand_over() -> None:
    with pytest.raises(ProcError, match="cannot start /bin/true: embedded null byte"):
        proc.run(["/bin/true"], timeout_s=FOREVER_S, env={"NAME": "a\0b"})


# The time limit


def test_the_limit_kills_the_whole_group(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    text = f"sleep 1000 & echo $! > {pid_file}; wait"
    result = proc.run(shell(text), timeout_s=0.3)
    assert (result.timed_out, result.ok, result.signal) == (True, False, signal.SIGKILL)
    assert "ran into its time limit" in result.describe()
    state = subprocess.run(
        ["ps", "-o", "stat=", "-p", pid_file.read_text()], capture_output=True, text=True, check=False
    )
    assert state.stdout.strip()[:1] in {"", "Z"}


def test_with_grace_the_program_may_end_by_itself() -> None:
    out = Collected()
    text = "trap 'echo ending; exit 0' TERM; while :; do sleep 0.02; done"
    result = proc.run(shell(text), timeout_s=0.2, grace_s=FOREVER_S, on_output=out.feed)
    assert out.stdout == b"ending\n"
    assert result.code == 0
    assert not result.ok  # too late is too late


def test_after_the_grace_it_is_killed() -> None:
    result = proc.run(shell("trap '' TERM; while :; do sleep 0.02; done"), timeout_s=0.1, grace_s=0.1)
    assert (result.timed_out, result.signal) == (True, signal.SIGKILL)


@pytest.mark.parametrize("grace_s", [0.0, 0.1])
def test_a_program_that_never_stops_printing_has_a_limit(grace_s: float) -> None:
    result = proc.run(shell("trap '' TERM; while :; do echo x; done"), timeout_s=0.2, grace_s=grace_s)
    assert (result.timed_out, result.signal) == (True, signal.SIGKILL)


# What a program leaves behind


@pytest.mark.parametrize("rest", ["sleep 1000", "while :; do echo x; done"])
def test_background_processes_are_not_waited_for_and_not_killed(tmp_path: Path, rest: str) -> None:
    pid_file = tmp_path / "pid"
    assert proc.run(shell(f"({rest}) & echo $! > {pid_file}"), timeout_s=FOREVER_S).ok
    os.kill(int(pid_file.read_text()), signal.SIGKILL)  # raises if it is not there


@pytest.mark.parametrize("place", ["on_output", "wait"])
def test_an_exception_ends_the_program(tmp_path: Path, place: str) -> None:
    class Stop(BaseException):
        pass

    pid_file = tmp_path / "pid"

    def stop(*_: object) -> list[int]:
        raise Stop

    def on_output(stream: str, chunk: bytes) -> None:
        stop()

    with pytest.raises(Stop):
        proc.run(
            shell(f"echo $$ > {pid_file}; echo; exec sleep 1000"),
            timeout_s=FOREVER_S,
            on_output=on_output,
            wait=plain_wait if place == "on_output" else stop,  # type: ignore[arg-type]
        )
    if pid_file.exists() and pid_file.read_text():
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid_file.read_text()), 0)
