# SPDX-License-Identifier: Apache-2.0
"""Where artifacts' bytes are: a folder here, or an S3 bucket (s3.py) that many servers share.

An upload's bytes come in by a writer, in order, and count once `commit` has put them on the medium.
`complete` makes them one file that can be read, `publish` gives it its final place; it is an artifact when
the database has its row. Whatever has no row is not there for anyone, and is swept away.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Protocol

from update_tools.server.faults import Refusal

State = Mapping[str, Any]
CHUNK_BYTES = 256 << 10
OWNER_FILE = "store.id"


class Writer(Protocol):
    """The end of an upload: more bytes go here."""

    def write(self, data: bytes) -> None:
        """Take bytes. Raises Refusal if there is no room."""

    def commit(self, *, is_last: bool = False) -> tuple[int, State]:
        """Put everything on the medium; returns the upload's length and the state to go on from."""

    def close(self) -> None:
        """Let go; what was not committed may be there or not."""


class Store(Protocol):
    """Ids are our own UUIDs, never a client's text."""

    def owner(self) -> str:
        """Whose it is, as `claim` said; empty for a new one."""

    def claim(self, owner: str) -> None:
        """Mark it as one database's, so that no other server takes its artifacts for left-overs."""

    def begin(self, upload_id: str) -> State:
        """Make an empty upload; returns its state."""

    def writer(self, upload_id: str, offset: int, state: State) -> Writer:
        """Go on at the committed offset. Raises Refusal (423) while another writer has it."""

    def complete(self, upload_id: str, state: State) -> None:
        """No more bytes will come. May be repeated."""

    @contextmanager
    def open(self, upload_id: str) -> Iterator[IO[bytes]]:
        """Read a completed upload or an artifact from its start, as a stream."""

    def publish(self, upload_id: str) -> None:
        """Give it its place among the artifacts. May be repeated."""

    def read(self, artifact_id: str, start: int, length: int) -> Iterator[bytes]:
        """A part of an artifact."""

    def path(self, artifact_id: str) -> Path | None:
        """Its file, if it is one of this machine."""

    def link(self, artifact_id: str, lifetime_s: int) -> str:
        """An address to download it from past this server; empty if there is none."""

    def discard(self, upload_id: str, state: State) -> None:
        """Remove an upload or artifact with everything that belongs to it. May be repeated."""

    def ids(self, *, older_than_s: float) -> Iterable[str]:
        """All uploads and artifacts that were last written so long ago."""


class FolderStore:
    """Files in `artifacts/`, uploads in `incoming/`, both under one folder (and so on one file system)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.artifacts = folder / "artifacts"
        self.incoming = folder / "incoming"
        for each in (folder, self.artifacts, self.incoming):
            each.mkdir(parents=True, exist_ok=True, mode=0o700)

    def owner(self) -> str:
        try:
            return (self.folder / OWNER_FILE).read_text().strip()
        except FileNotFoundError:
            return ""

    def claim(self, owner: str) -> None:
        (self.folder / OWNER_FILE).write_text(f"{owner}\n")
        _sync_folder(self.folder)

    def begin(self, upload_id: str) -> State:
        with _refusing():
            (self.incoming / upload_id).touch(mode=0o600)
        return {}

    def writer(self, upload_id: str, offset: int, state: State) -> Writer:
        with _refusing():
            return _FileWriter(self.incoming / upload_id, offset)

    def complete(self, upload_id: str, state: State) -> None:
        pass

    @contextmanager
    def open(self, upload_id: str) -> Iterator[IO[bytes]]:
        with self._found(upload_id).open("rb") as file:
            yield file

    def publish(self, upload_id: str) -> None:
        with _refusing():
            if (self.incoming / upload_id).exists():
                os.rename(self.incoming / upload_id, self._place(upload_id))
            for folder in (self.artifacts, self.incoming):
                _sync_folder(folder)

    def read(self, artifact_id: str, start: int, length: int) -> Iterator[bytes]:
        with self._place(artifact_id).open("rb") as file:
            file.seek(start)
            while length > 0 and (chunk := file.read(min(CHUNK_BYTES, length))):
                length -= len(chunk)
                yield chunk

    def path(self, artifact_id: str) -> Path | None:
        return self._place(artifact_id)

    def link(self, artifact_id: str, lifetime_s: int) -> str:
        return ""

    def discard(self, upload_id: str, state: State) -> None:
        for file in (self.incoming / upload_id, self._place(upload_id)):
            file.unlink(missing_ok=True)

    def ids(self, *, older_than_s: float) -> Iterable[str]:
        latest = time.time() - older_than_s
        for folder in (self.incoming, self.artifacts):
            for file in folder.iterdir():
                if file.stat().st_mtime <= latest:
                    yield file.stem

    def _place(self, artifact_id: str) -> Path:
        return self.artifacts / f"{artifact_id}.mender"

    def _found(self, upload_id: str) -> Path:
        beside = self.incoming / upload_id
        return beside if beside.exists() else self._place(upload_id)


class _FileWriter:
    """Appends to a file that it has to itself; the system lets go of it however this process ends."""

    def __init__(self, path: Path, offset: int) -> None:
        self._file = path.open("r+b", buffering=0)
        self._length = self._committed = offset
        try:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Refusal(
                    "another request writes this upload now", hint="try again", status=423
                ) from None
            self._file.truncate(offset)  # what lies behind was never acknowledged
            self._file.seek(offset)
        except BaseException:
            self._file.close()
            raise

    def write(self, data: bytes) -> None:
        with _refusing():
            view = memoryview(data)
            while view:
                view = view[self._file.write(view) :]
        self._length += len(data)

    def commit(self, *, is_last: bool = False) -> tuple[int, State]:
        with _refusing():
            os.fsync(self._file.fileno())
        self._committed = self._length
        return self._length, {}

    def close(self) -> None:
        with suppress(OSError):  # what was not committed only takes up room
            self._file.truncate(self._committed)
        self._file.close()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _refusing() -> Iterator[None]:
    """Errors of the file system in words for the one who uploads."""
    try:
        yield
    except FileNotFoundError as error:
        raise Refusal("the upload is gone", hint="start it again", status=410) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise no_room() from error
        raise Refusal(f"the artifact could not be stored: {error.strerror}", status=500) from error


def no_room() -> Refusal:
    """The medium is full."""
    return Refusal("no room for the artifact on the server", hint="remove old artifacts", status=507)
