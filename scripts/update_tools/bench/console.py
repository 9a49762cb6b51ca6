# SPDX-License-Identifier: Apache-2.0
"""The serial console of a running board: QEMU writes all of it to a file, and takes input on a socket.

Reading is always from the file, so nothing is lost between calls. The socket is held only while something is
typed, so a person can attach between two commands of a script; meanwhile it is drained, else the board stops.
"""

from __future__ import annotations

import base64
import fcntl
import re
import secrets
import select
import socket
import struct
import termios
import time
from typing import TYPE_CHECKING

from .tools import BenchError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_TERMINAL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")
_LINE_LIMIT = 600


class Said:
    """What a command said on the board, and its exit status."""

    __slots__ = ("code", "output")

    def __init__(self, code: int, output: str) -> None:
        self.code = code
        self.output = output


class Console:
    """`alive` tells whether the board still has power; waiting for a dead board ends at once."""

    def __init__(self, log: Path, path: Path, alive: Callable[[], bool]) -> None:
        self.log = log
        self._path = path
        self._alive = alive
        self._mark = log.stat().st_size if log.exists() else 0
        self._socket: socket.socket | None = None

    def rewind(self) -> None:
        """Wait for things from the beginning of the log again."""
        self._mark = 0

    def text(self) -> str:
        """What was said since the last match."""
        with open(self.log, "rb") as file:
            file.seek(self._mark)
            return file.read().decode(errors="replace")

    def wait_for(self, pattern: str, timeout_s: float = 120.0) -> re.Match[str]:
        """The first match after the last one. Raises BenchError with the last lines if it does not come."""
        compiled = re.compile(pattern)
        deadline = time.monotonic() + timeout_s
        while True:
            alive = self._alive()  # asked before reading: what was said last is still seen
            self.drain()
            text = self.text()
            if match := compiled.search(text):
                self._mark += len(text[: match.end()].encode(errors="replace"))
                return match
            if not alive:
                qemu = self.log.with_name("qemu.log").read_text(errors="replace").strip()
                raise BenchError(f"the board lost power before it said {pattern!r}", hint=qemu or _tail(text))
            if time.monotonic() >= deadline:
                raise BenchError(
                    f"the board did not say {pattern!r} within {timeout_s:g} s", hint=_tail(text)
                )
            time.sleep(0.02)

    def type(self, text: str) -> None:
        """Type; the caller lets go of the keyboard with `release`."""
        if self._socket is None:
            try:
                self._socket = socket.socket(socket.AF_UNIX)
                self._socket.settimeout(10)
                self._socket.connect(str(self._path))
            except OSError as error:
                self._close()
                raise BenchError(
                    f"the board's console cannot be reached: {error}", hint="is the board on?"
                ) from error
        try:
            self._socket.sendall(text.encode())
        except OSError as error:
            self._close()
            raise BenchError(f"the board's console went away: {error}") from error

    def release(self) -> None:
        """Let others type, once the board has taken what was typed: its port holds 16 characters only."""
        deadline = time.monotonic() + 20
        while self._untaken() and time.monotonic() < deadline and self._alive():
            self.drain()
            time.sleep(0.005)
        self._close()

    def _untaken(self) -> bool:
        if self._socket is None:
            return False
        (left,) = struct.unpack("i", fcntl.ioctl(self._socket, termios.TIOCOUTQ, bytes(4)))
        return bool(left)

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def shell(self, command: str, timeout_s: float = 60.0) -> Said:
        """Run a command in the root shell of a booted board."""
        name = secrets.token_hex(4)
        packed = base64.b64encode(command.encode()).decode()
        try:
            source = f"echo {packed}"
            if len(packed) > _LINE_LIMIT:
                source = f"cat /tmp/.{name}"
                for start in range(0, len(packed), _LINE_LIMIT):
                    self.type(
                        f"printf %s {packed[start : start + _LINE_LIMIT]} >>/tmp/.{name}; echo '+'{name}\n"
                    )
                    self.wait_for(rf"\+{name}", timeout_s)
            self.type(
                f"echo '<'{name}; (eval \"$({source} | base64 -d)\") </dev/null 2>&1; echo '>'{name} $?\n"
            )
            self.wait_for(rf"<{name}\r?\n", timeout_s)
            match = self.wait_for(rf">{name} (\d+)\r?\n", timeout_s)
        finally:
            self.release()
        return Said(int(match[1]), _TERMINAL.sub("", match.string[: match.start()]))

    def uboot(self, command: str, timeout_s: float = 30.0) -> str:
        """Run a command at U-Boot's prompt and return what it said."""
        name = secrets.token_hex(4)
        try:
            self.type(f"{command}; echo '>'{name}\n")
            self.wait_for(rf"echo '>'{name}\r?\n", timeout_s)
            match = self.wait_for(rf">{name}\r?\n", timeout_s)
        finally:
            self.release()
        return _TERMINAL.sub("", match.string[: match.start()])

    def interrupt_uboot(self, timeout_s: float = 60.0) -> None:
        """Keep pressing a key until U-Boot shows its prompt."""
        deadline = time.monotonic() + timeout_s
        try:
            while True:
                self.type(" ")
                try:
                    self.wait_for(r"\n=> ", 0.05)
                    self.type("\x03")  # forget the spaces
                    return
                except BenchError:
                    if time.monotonic() >= deadline or not self._alive():
                        raise
        finally:
            self.release()

    def drain(self) -> None:
        """Take what QEMU sends while the keyboard is held; the same is in the log."""
        while self._socket is not None and select.select([self._socket], [], [], 0)[0]:
            try:
                if not self._socket.recv(65536):
                    self._close()
            except OSError:
                self._close()


def _tail(text: str) -> str:
    lines = [line for line in _TERMINAL.sub("", text).splitlines() if line.strip()]
    return "it said last:\n" + "\n".join(lines[-15:]) if lines else "it said nothing"
