# SPDX-License-Identifier: Apache-2.0
"""A server in a process of its own, for the demo and the tests."""

from __future__ import annotations

import os
import secrets
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from update_agent.errors import UpdateError
from update_tools.server.client import Management

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0


class Server:
    """A running server: `.url`, `.token` (admin), `.pid`, `.log` (its stderr), `.stop()`, `.kill()`."""

    def __init__(self, process: subprocess.Popen[bytes], url: str, token: str, log: Path) -> None:
        self._process = process
        self.url = url
        self.token = token
        self.log = log
        self.pid = process.pid

    def management(self) -> Management:
        """Its management side, with the token it was started with."""
        return Management(self.url, self.token)

    @property
    def port(self) -> int:
        """Port it listens on, on loopback."""
        return int(self.url.rpartition(":")[2])

    @property
    def exit_code(self) -> int | None:
        """How it ended; None while it runs."""
        return self._process.poll()

    def is_running(self) -> bool:
        """Whether the process still lives."""
        return self._process.poll() is None

    def stop(self) -> None:
        """End it in good order."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a crash would: no chance to write anything more."""
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> None:
        if self._process.poll() is None:
            self._process.send_signal(number)
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def start(
    data_dir: Path,
    port: int = 0,
    *,
    host: str = "127.0.0.1",
    auto_accept: bool = False,
    public_url: str = "",
    needs_login: bool = True,
    options: Sequence[str] = (),
    outlives_us: bool = False,
) -> Server:
    """Start a server and return when it listens. Raises UpdateError with the end of its log.

    It ends with the thread that called this, unless `outlives_us`. `options` are more of its command line.
    """
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    log = data_dir / "server.log"
    token = f"ota_{secrets.token_urlsafe(32)}"
    reading, writing = os.pipe()
    token_reading, token_writing = os.pipe()
    argv = [sys.executable, "-m", "update_tools.server", "--host", host, "--port", str(port)]
    argv += ["--data", str(data_dir), "--ready-fd", str(writing), "--bench-token-fd", str(token_reading)]
    argv += options
    if not outlives_us:
        argv += ["--parent", str(os.getpid())]
    if auto_accept:
        argv.append("--auto-accept")
    if public_url:
        argv += ["--public-url", public_url]
    if not needs_login:
        argv.append("--insecure-no-login")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    try:
        os.write(token_writing, token.encode())  # a pipe holds it; nobody sees it in the process list
        os.close(token_writing)
        with log.open("ab") as errors:
            process = subprocess.Popen(
                argv,
                pass_fds=(writing, token_reading),
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                env=environment,
                start_new_session=True,  # Ctrl-C in the demo is the demo's to handle
            )
    finally:
        os.close(writing)
        os.close(token_reading)
    try:
        url = _first_line(reading, time.monotonic() + START_TIMEOUT_S)
    finally:
        os.close(reading)
    if not url:
        process.kill()
        process.wait()
        tail = log.read_text(errors="replace").strip().splitlines()[-3:]
        raise UpdateError(f"the control server did not start: {' / '.join(tail)}", hint=f"see {log}")
    return Server(process, url, token, log)


def _first_line(descriptor: int, deadline: float) -> str:
    text = b""
    while not text.endswith(b"\n"):
        ready, _, _ = select.select([descriptor], [], [], max(deadline - time.monotonic(), 0))
        chunk = os.read(descriptor, 4096) if ready else b""
        if not chunk:
            return ""
        text += chunk
    return text.decode().strip()
