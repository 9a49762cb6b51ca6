# SPDX-License-Identifier: Apache-2.0
"""The saved state: one small file of named values, replaced whole, durable before `write` returns.

Keys and values are those of the reference's database (config.md section 6); the file is our own: a JSON
object `{"format": 1, "crc32": HEX, "values": {...}}`, where the checksum covers the canonical `values`.
The file before the last write is kept beside as `.previous`; it is read when the newer one is damaged.
"""

from __future__ import annotations

import errno
import fcntl
import os
import zlib

from update_agent.errors import StoreError
from update_agent.lean import json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from update_agent.log import Log

FORMAT = 1
_MAX_BYTES = 8 << 20


def replace(path: str, data: bytes, mode: int = 0o600) -> None:
    """Put `data` at `path` so that a power cut leaves the old or the new content, and the new after return.

    Raises OSError; the old file is then untouched. The one place in the agent that replaces files.
    """
    directory = os.path.dirname(path) or "."
    beside = f"{path}.new"
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(beside, path)
    except OSError:
        try:
            os.unlink(beside)
        except OSError:
            pass
        raise
    sync_directory(directory)


def sync_directory(directory: str) -> None:
    """Make renames, creations and removals in `directory` durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _checksum(values: Mapping[str, str]) -> str:
    # CRC-32 finds torn and rotten files; hashlib would pull libcrypto (3.6 MB) into the idle daemon.
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return f"{zlib.crc32(text.encode()):08x}"


def _encode(values: Mapping[str, str]) -> bytes:
    document = {"format": FORMAT, "crc32": _checksum(values), "values": dict(values)}
    return json.dumps(document, separators=(",\n", ": ")).encode() + b"\n"


def _decode(path: str) -> dict[str, str]:
    """The values in `path`. Raises StoreError when it is damaged, FileNotFoundError when it is not there."""
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        hint = _hint(error) if error.errno == errno.EACCES else ""
        raise StoreError(f"cannot read {path}: {os.strerror(error.errno or 0)}", hint=hint) from error
    try:
        document = json.loads(data)
        if document["format"] != FORMAT:
            raise StoreError(
                f"{path} has format {document['format']!r}, this agent knows {FORMAT}",
                hint="was it written by a newer agent?",
            )
        values = document["values"]
        if not all(isinstance(value, str) for value in values.values()):
            raise StoreError(f"{path} is damaged: a value is not text")
        good = document["crc32"] == _checksum(values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{path} is damaged: {error or 'not a state file'}") from error
    if not good:
        raise StoreError(f"{path} is damaged: its checksum does not match")
    return dict(values)


def _hint(error: OSError, usual: str = "is the data partition mounted and writable?") -> str:
    return "only root may" if error.errno == errno.EACCES and os.geteuid() else usual


class BusyError(StoreError):
    """Another process carries out an update."""


class Store:
    """Named text values that survive power loss; several change together or not at all."""

    def __init__(self, directory: str, log: Log) -> None:
        """Load the values. Damage is logged and answered with the previous file, else with no values."""
        self.path = os.path.join(directory, "update-agent.json")
        self._lock_path = os.path.join(directory, "update-agent.lock")
        self._former = os.path.join(directory, "mender-store")
        self._log = log
        self._lock_fd = -1
        self._values: dict[str, str] = {}
        self._is_damaged = False  # the newer file
        self.reload()

    def reload(self) -> None:
        """Read the file again (another process may have written it).

        Where another client kept its state, what that did since we looked is taken over, and written down.
        """
        self._values = {}
        self._is_damaged = False
        for path in (self.path, f"{self.path}.previous"):
            try:
                self._values = _decode(path)
                break
            except FileNotFoundError:
                continue
            except StoreError as error:
                self._log.error(f"Cannot use the saved state: {error}")
                self._is_damaged = self._is_damaged or path == self.path
        if os.path.exists(self._former):
            self._take_over()

    def _take_over(self) -> None:
        from update_agent import mender_store

        try:
            values = mender_store.read(self._former, self.get(mender_store.TRANSACTION))
        except StoreError as error:
            self._log.error(str(error))
            return
        if values is None:
            return
        self._log.info(f"Taking over what another client saved in {self._former}")
        try:
            self.write({**dict.fromkeys(self._values), **values})
        except StoreError as error:
            self._log.error(str(error))
            self._values = values

    def lock(self) -> None:
        """Claim the store for this process until it ends. Raises BusyError when another one has it."""
        try:
            self._lock_fd = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.unlock()
            if error.errno == errno.EWOULDBLOCK:
                raise BusyError(
                    "another update process is at work", hint="is the daemon in an update?"
                ) from error
            raise StoreError(
                f"cannot lock {self._lock_path}: {os.strerror(error.errno or 0)}", hint=_hint(error)
            ) from error

    def unlock(self) -> None:
        """Let other processes have the store."""
        if self._lock_fd >= 0:
            try:
                fcntl.flock(self._lock_fd, fcntl.LOCK_UN)  # a child that lives has a copy of the descriptor
            except OSError:
                pass
            os.close(self._lock_fd)
            self._lock_fd = -1

    def get(self, key: str) -> str | None:
        """The value, or None."""
        return self._values.get(key)

    def get_json(self, key: str) -> object:
        """The value decoded; None when it is absent or not JSON (the latter is logged)."""
        text = self._values.get(key)
        if text is None:
            return None
        try:
            decoded: object = json.loads(text)
            return decoded
        except ValueError as error:
            self._log.error(f"Saved value {key!r} is not JSON: {error}")
            return None

    def write(self, changes: Mapping[str, str | None]) -> None:
        """Set (text) or delete (None) values in one durable step, or raise StoreError and change none."""
        values = dict(self._values)
        for key, value in changes.items():
            if value is None:
                values.pop(key, None)
            else:
                values[key] = value
        if values == self._values and not self._is_damaged and os.path.exists(self.path):
            return
        try:
            if not self._is_damaged:
                self._keep_previous()
            replace(self.path, _encode(values))
        except OSError as error:
            raise StoreError(
                f"cannot save the update's state to {self.path}: {os.strerror(error.errno or 0)}",
                hint=_hint(error, "is the data partition mounted, writable and not full?"),
            ) from error
        self._values = values
        self._is_damaged = False

    def amend(self, changes: Mapping[str, str | None]) -> None:
        """`write` at any time, also between updates: what another process has saved meanwhile stays.

        Raises StoreError, changing nothing, while another process carries out an update.
        """
        if self._lock_fd >= 0:
            self.write(changes)
            return
        self.lock()
        try:
            self.reload()
            self.write(changes)
        finally:
            self.unlock()

    def _keep_previous(self) -> None:
        previous = f"{self.path}.previous"
        beside = f"{previous}.new"
        try:
            os.link(self.path, beside)
        except FileNotFoundError:
            return  # first write
        except FileExistsError:
            os.unlink(beside)
            os.link(self.path, beside)
        except OSError as error:
            if error.errno in {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}:
                return  # a file system without links: there is only the one file
            raise
        os.replace(beside, previous)
