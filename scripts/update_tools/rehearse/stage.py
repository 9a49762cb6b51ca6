# SPDX-License-Identifier: Apache-2.0
"""Plays scenarios side by side: a process that has imported everything once, and forks for each machine."""

from __future__ import annotations

import json
import os
import pkgutil
import select
import signal
import subprocess
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from update_agent.errors import UpdateError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    Json = dict[str, Any]

_NOT_IMPORTED = {"update_agent.__main__", "update_agent.bus", "update_agent.bus_objects"}
_STDLIB = ("encodings.idna", "http.client", "http.server", "stringprep", "threading", "traceback", "zlib")


class StageError(UpdateError):
    """A machine could not be made, or its outside broke."""


class Stage:
    """The side of those who want something played. Use as a context manager."""

    def __init__(self, jobs: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(jobs)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            pass
        self._process.terminate()
        self._process.wait()

    def play(self, tasks: Iterable[Json]) -> Iterator[tuple[int, Json]]:
        """Play tasks and give (number, result) as they come. Raises StageError for the first that broke."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        count = 0
        for number, task in enumerate(tasks):
            self._process.stdin.write(json.dumps({"number": number, "task": task}) + "\n")
            count += 1
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        for _ in range(count):
            line = self._process.stdout.readline()
            if not line:
                raise StageError("the process that plays has ended", hint="stderr says why")
            answer = json.loads(line)
            if "error" in answer:
                raise StageError(answer["error"], hint=answer["hint"])
            yield answer["number"], answer["result"]


def _import_all() -> None:
    """All that the agent loads late: on the machine there is nothing to load it from."""
    import update_agent

    for module in pkgutil.iter_modules(update_agent.__path__, "update_agent."):
        if module.name not in _NOT_IMPORTED:
            import_module(module.name)
    for name in _STDLIB:
        import_module(name)


class _Played:
    """A machine that is at work, and what it has said so far."""

    def __init__(self, number: int, task: Json) -> None:
        self.number = number
        self._read, write = os.pipe()
        self._said = b""
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._read)
            _play(task, write)
        os.close(write)

    def fileno(self) -> int:
        return self._read

    def take(self) -> bool:
        """Read on; False at the end."""
        chunk = os.read(self._read, 1 << 20)
        self._said += chunk
        return bool(chunk)

    def result(self) -> Json:
        """What it said, or that it broke."""
        os.close(self._read)
        status = os.waitpid(self._pid, 0)[1]
        if not self._said:
            return {"error": f"the outside of a machine broke ({status})", "hint": "stderr says why"}
        answer: Json = json.loads(self._said)
        return answer


def _play(task: Json, write: int) -> None:
    code = 1
    try:
        os.setsid()
        from update_tools.rehearse.machine import play

        try:
            answer: Json = {"result": play(task)}
        except UpdateError as error:
            answer = {"error": error.message, "hint": error.hint}
        data = json.dumps(answer).encode()
        while data:
            data = data[os.write(write, data) :]
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def serve(jobs: int) -> None:
    """The other side: take lines of tasks, of which an empty one is the last; print a line for each."""
    from update_tools.rehearse import machine  # noqa: F401
    from update_tools.rehearse.sandbox import end_with_parent

    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started us decides what an interrupt means
    _import_all()
    waiting: list[Json] = []
    for line in sys.stdin:
        if line.strip():
            waiting.append(json.loads(line))
            continue
        waiting.reverse()
        playing: list[_Played] = []
        while waiting or playing:
            while waiting and len(playing) < jobs:
                task = waiting.pop()
                playing.append(_Played(task["number"], task["task"]))
            for played in select.select(playing, [], [])[0]:
                if not played.take():
                    playing.remove(played)
                    print(json.dumps({"number": played.number, **played.result()}), flush=True)


if __name__ == "__main__":
    serve(int(sys.argv[1]))
