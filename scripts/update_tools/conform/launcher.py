# SPDX-License-Identifier: Apache-2.0
"""Starts agents by the thousand: a process that has imported the agent once and forks for each start.

An interpreter's start and imports are most of what a run of the kill matrix would cost. What runs in the fork
is the agent as `faults` starts it, in a session, a directory and an environment of its own.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

from update_agent.errors import UpdateError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Json = dict[str, Any]


class Agent:
    """One agent. When it has ended it stays a zombie until `reap`: its pid, and so its session, is ours."""

    def __init__(self, launcher: Launcher, pid: int) -> None:
        self._launcher = launcher
        self.pid = pid
        self._pidfd = os.pidfd_open(pid)

    def signal(self, number: int) -> None:
        """Send a signal; a zombie takes it."""
        signal.pidfd_send_signal(self._pidfd, number)

    def ended(self, timeout_s: float = 0) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        if not select.select([self._pidfd], [], [], timeout_s)[0]:
            return None
        code: int = self._launcher.ask({"status": self.pid})
        return code

    def reap(self) -> None:
        """Wait for its end, and forget it."""
        self._launcher.ask({"reap": self.pid})
        os.close(self._pidfd)


class Launcher:
    """The side of those who want agents; may be used by several threads. Use as a context manager."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Launcher:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def start(self, folder: str, arguments: Sequence[str], *, env: Mapping[str, str], output: str) -> Agent:
        """Start the agent in a folder (faults.py); what it prints is appended to the file `output`."""
        request = {"folder": folder, "arguments": [*arguments], "env": dict(env), "output": output}
        return Agent(self, self.ask({"start": request}))

    def ask(self, request: Json) -> Any:
        """One request, one answer. Raises UpdateError when the launcher could not start."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        if not answer:
            raise UpdateError("the process that starts agents has ended", hint="stderr says why")
        return json.loads(answer)


def serve() -> None:
    """Answer requests until there are no more. The other side."""
    from update_agent import daemon, intake, server, standalone  # noqa: F401 - what it imports when it must
    from update_tools.conform import faults  # and with it the agent

    for line in sys.stdin:
        request = json.loads(line)
        if "start" in request:
            answer = os.fork()
            if answer == 0:
                _become(faults.main, request["start"])
        elif "status" in request:
            info = os.waitid(os.P_PID, request["status"], os.WEXITED | os.WNOWAIT)
            assert info is not None
            answer = info.si_status if info.si_code == os.CLD_EXITED else -info.si_status
        else:
            answer = os.waitpid(request["reap"], 0)[1]
        print(json.dumps(answer), flush=True)


def _become(main: Any, start: Json) -> None:
    """In the fork: run the agent, and never come back."""
    code = 1
    try:
        os.setsid()
        output = os.open(start["output"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.closerange(3, 64)
        os.chdir(start["folder"])
        os.environ.clear()
        os.environ.update(start["env"])
        code = main(start["folder"], start["arguments"])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
