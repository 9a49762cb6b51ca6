# SPDX-License-Identifier: Apache-2.0
"""Real processes of an agent that is no more, or still is."""

from __future__ import annotations

import io
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from update_agent import leftovers
from update_agent.log import Log


class Child:
    """A program as the agent starts them: a group of its own, the mark in its environment."""

    def __init__(self, script: str, mark: str) -> None:
        read_fd, write_fd = os.pipe()
        self.pid = os.posix_spawn(
            "/bin/sh",
            ["sh", "-c", script],
            {**os.environ, leftovers.MARK: mark},
            file_actions=[(os.POSIX_SPAWN_DUP2, write_fd, 1)],
            setpgroup=0,
        )
        os.close(write_fd)
        self.output = os.fdopen(read_fd, "rb", buffering=0)
        self.pidfd = os.pidfd_open(self.pid)

    def is_running(self) -> bool:
        return not select.select([self.pidfd], [], [], 0)[0]

    def close(self) -> None:
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        os.waitpid(self.pid, 0)
        os.close(self.pidfd)
        self.output.close()


@pytest.fixture
def children() -> Iterator[list[Child]]:
    made: list[Child] = []
    yield made
    for child in made:
        child.close()


@pytest.fixture
def dead_agent(tmp_path: Path) -> str:
    """The mark of a process that marked itself and was killed."""
    script = (
        "import os, signal, sys; from update_agent import leftovers; leftovers.mark(sys.argv[1]);"
        "print(os.environ[leftovers.MARK], flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    return done.stdout.strip()


def end(datastore: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(leftovers, "_PATIENCE_S", 0.05)
    said = io.StringIO()
    leftovers.end(str(datastore), Log(stream=said))
    return said.getvalue()


def test_a_program_of_a_dead_agent_is_ended_with_what_it_started(
    children: list[Child], dead_agent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = Child("echo up; sleep 600; echo not reached", dead_agent)
    children.append(child)
    assert child.output.read(3) == b"up\n"
    said = end(tmp_path, monkeypatch)
    assert f"Process {child.pid}, left running by an agent that was killed, is ended" in said
    ended = os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED | os.WNOWAIT)
    assert ended is not None
    assert ended.si_status == signal.SIGKILL
    assert child.output.read() == b""  # the pipe is at its end: its `sleep` is gone as well


def test_what_is_about_to_end_may_do_so(children: list[Child], dead_agent: str, tmp_path: Path) -> None:
    child = Child("trap 'echo whole; exit 0' TERM; echo up; while :; do sleep 0.05; done", dead_agent)
    children.append(child)
    assert child.output.read(3) == b"up\n"

    def wait(fds: Iterable[int], deadline: float | None) -> list[int]:
        os.kill(child.pid, signal.SIGTERM)
        return select.select(list(fds), [], [], 30)[0]

    said = io.StringIO()
    leftovers.end(str(tmp_path), Log(stream=said), wait)
    assert said.getvalue() == ""
    assert child.output.read(6) == b"whole\n"


@pytest.mark.parametrize("whose", ["of a living agent", "of another datastore", "not of an agent"])
def test_all_others_are_left_alone(
    whose: str, children: list[Child], dead_agent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = dead_agent
    if whose == "of a living agent":
        monkeypatch.setenv(leftovers.MARK, "")
        leftovers.mark(str(tmp_path))
        mark = os.environ[leftovers.MARK]
    elif whose == "of another datastore":
        mark += "-other"
    else:
        mark = "nonsense"
    child = Child("echo up; sleep 600", mark)
    children.append(child)
    assert child.output.read(3) == b"up\n"
    assert end(tmp_path, monkeypatch) == ""
    assert child.is_running()


def test_what_a_finished_program_left_behind_is_left_alone(
    children: list[Child], dead_agent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = Child("sleep 600 & echo up", dead_agent)
    children.append(child)
    assert child.output.read(3) == b"up\n"
    os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED | os.WNOWAIT)
    assert end(tmp_path, monkeypatch) == ""
    os.killpg(child.pid, 0)  # its group is still there
