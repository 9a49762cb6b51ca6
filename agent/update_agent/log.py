# SPDX-License-Identifier: Apache-2.0
"""Log lines to stderr and, while a deployment is open, to its log file (state-machine.md section 10)."""

from __future__ import annotations

import os
import sys
import time

from update_agent.lean import json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TextIO

LEVELS = {"trace": 0, "debug": 1, "info": 2, "warning": 3, "error": 4, "fatal": 5}
_JOURNAL = {"trace": 7, "debug": 7, "info": 6, "warning": 4, "error": 3, "fatal": 2}
_KEEP_FILES = 5
_MIN_FREE_BYTES = 100 * 1024


def timestamp() -> str:
    """Now, as RFC 3339 in UTC with milliseconds (wall clock: it may jump at the first time sync)."""
    now = time.time()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"


def tell(text: str, end: str = "\n") -> str:
    """Print for whoever gave the command. Returns why that failed, empty if it did not.

    A reader that is gone, or a full disk, ends what is printed but never the update.
    """
    try:
        print(text, end=end, flush=True)
        return ""
    except OSError as error:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - until this process ends
        return os.strerror(error.errno or 0)


def _deployment_logs(directory: str) -> list[str]:
    """Names of deployment logs, newest (0000) first."""
    try:
        names = os.listdir(directory)
    except OSError:
        return []
    return sorted(
        name
        for name in names
        if name.startswith("deployments.") and name.endswith(".log") and name[12:16].isdigit()
    )


class Log:
    """Writes to stderr (journal priorities when systemd listens) and to an open deployment log.

    A full or broken disk never stops an update: the deployment log then loses lines, stderr does not.
    """

    def __init__(self, level: str = "info", stream: TextIO | None = None, path: str | None = None) -> None:
        self.level = level
        self._stream = stream or sys.stderr
        if path:
            self._stream = open(path, "a", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
        self._journal = not path and stream is None and "JOURNAL_STREAM" in os.environ
        self._deployment_fd = -1
        self.deployment_path = ""

    def debug(self, message: str) -> None:
        """For developers."""
        self.write("debug", message)

    def info(self, message: str) -> None:
        """What happened."""
        self.write("info", message)

    def warning(self, message: str) -> None:
        """Went on, but someone should look."""
        self.write("warning", message)

    def error(self, message: str) -> None:
        """Something failed."""
        self.write("error", message)

    def write(self, level: str, message: str) -> None:
        """One line for each line of `message`."""
        for line in message.splitlines() or [""]:
            if LEVELS[level] >= LEVELS[self.level]:
                prefix = f"<{_JOURNAL[level]}>" if self._journal else f"{timestamp()} {level.upper()}: "
                try:
                    self._stream.write(f"{prefix}{line}\n")
                    self._stream.flush()
                except (OSError, ValueError):
                    pass  # a closed stderr must not stop an update
            if self._deployment_fd >= 0:
                entry = {"timestamp": timestamp(), "level": level, "message": line}
                try:
                    os.write(self._deployment_fd, json.dumps(entry).encode() + b"\n")
                except OSError:
                    pass

    def open_deployment(self, directory: str, deployment_id: str) -> None:
        """Append to the log of this deployment from now on; older deployments' logs are renumbered upwards.

        At most five files are kept, fewer while less than 100 KiB is free. Errors are logged, not raised.
        """
        self.close_deployment()
        path = os.path.join(directory, f"deployments.0000.{deployment_id}.log")
        try:
            if not os.path.exists(path):
                _rotate(directory)
        except OSError as error:
            self.error(f"cannot put the old deployment logs aside: {os.strerror(error.errno or 0)}")
        # O_APPEND: child processes of a step write to the same file.
        self._open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)

    def _open(self, path: str, flags: int) -> None:
        try:
            self._deployment_fd = os.open(path, flags, 0o600)
            self.deployment_path = path
        except OSError as error:
            self.error(f"cannot open the deployment log {path}: {os.strerror(error.errno or 0)}")

    def follow_deployment(self, path: str) -> None:
        """Write to the deployment log that another process has open; empty: to none."""
        if path != self.deployment_path:
            self.close_deployment()
            if path:
                self._open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)

    def close_deployment(self) -> None:
        """Stop writing to a deployment log; the file stays."""
        if self._deployment_fd >= 0:
            try:
                os.fsync(self._deployment_fd)
            except OSError:
                pass
            os.close(self._deployment_fd)
            self._deployment_fd = -1
            self.deployment_path = ""


def _rotate(directory: str) -> None:
    names = _deployment_logs(directory)
    for number, name in reversed(list(enumerate(names))):
        old = os.path.join(directory, name)
        space = os.statvfs(directory)
        if number + 1 >= _KEEP_FILES or (number > 0 and space.f_bavail * space.f_frsize < _MIN_FREE_BYTES):
            os.unlink(old)
        else:
            os.rename(old, os.path.join(directory, f"deployments.{number + 1:04d}{name[16:]}"))
