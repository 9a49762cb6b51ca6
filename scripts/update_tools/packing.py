# SPDX-License-Identifier: Apache-2.0
"""Compress while writing to a file: gzip, xz, zstd, or not at all. The same input makes the same bytes.

On any machine and any number of cores: gzip is always made by libdeflate in the one version that this project
pins, never by whichever of igzip, pigz or zlib happens to be installed. Those differ from each other, igzip
even from one processor to the next. libdeflate is portable C whose output depends on version and level alone;
in its default level here it packs closer than igzip at half the time of zlib.

A gzip payload is a series of members (RFC 1952, section 2.2) of 4 MiB each, compressed side by side.
"""

from __future__ import annotations

import contextlib
import lzma
import os
import subprocess
import threading
from collections import deque
from queue import SimpleQueue
from typing import IO, Protocol

from update_agent.errors import ArtifactError

Data = bytes | bytearray | memoryview
SUFFIXES = {"none": "", "gzip": ".gz", "xz": ".xz", "lzma": ".xz", "zstd": ".zst"}
DEFAULT_LEVELS = {"gzip": 4, "xz": 6, "zstd": 9}
GZIP_LEVELS = range(1, 13)
ZSTD_LEVELS = range(1, 20)
MEMBER_BYTES = 4 << 20  # plain; an agent reads 10,000 members


class Packer(Protocol):
    """Takes plain bytes; `close` completes the compressed data in the file."""

    def write(self, data: Data, /) -> object: ...
    def close(self) -> None: ...


def packer(target: IO[bytes], compression: str, level: int | None = None) -> Packer:
    """What compresses into the file, which stays open.

    Raises ArtifactError for an unknown compression or a level it does not have.
    """
    if compression not in SUFFIXES:
        raise ArtifactError(f"unknown compression {compression!r}", hint=f"known are {', '.join(SUFFIXES)}")
    if compression == "none":
        return _Plain(target)
    kind = "xz" if compression == "lzma" else compression
    chosen = DEFAULT_LEVELS[kind] if level is None else level
    if kind == "gzip":
        if chosen not in GZIP_LEVELS:
            raise ArtifactError(f"gzip has no level {chosen}: 1 to {GZIP_LEVELS[-1]} are known")
        return Gzip(target, chosen)
    if kind == "zstd":
        return _zstd(target, chosen)
    try:
        return lzma.LZMAFile(target, "wb", preset=chosen)
    except (ValueError, lzma.LZMAError) as error:
        raise ArtifactError(f"{kind} has no level {chosen}: {error}") from error


def _zstd(target: IO[bytes], level: int) -> Packer:
    try:
        import zstandard
    except ModuleNotFoundError:  # in a Yocto build, which has the program
        return ZstdProgram(target, level)
    try:
        # Any number of threads makes the same bytes, none at all others: -1 is at least one.
        return zstandard.ZstdCompressor(level=level, threads=-1, write_checksum=True).stream_writer(
            target, closefd=False
        )
    except (ValueError, zstandard.ZstdError) as error:
        raise ArtifactError(f"zstd has no level {level}: {error}") from error


class _Plain:
    def __init__(self, target: IO[bytes]) -> None:
        self.write = target.write

    def close(self) -> None:
        """Nothing to complete."""


class ZstdProgram:
    """The program `zstd`, of whichever version: its bytes are those of that version."""

    def __init__(self, target: IO[bytes], level: int) -> None:
        if level not in ZSTD_LEVELS:
            raise ArtifactError(f"zstd has no level {level}: 1 to {ZSTD_LEVELS[-1]} are known")
        command = ["zstd", f"-{level}", "-T0", "--check", "--quiet", "--stdout"]
        try:
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        except OSError as error:
            raise ArtifactError(f"cannot start zstd: {error.strerror}") from error
        assert self._process.stdin is not None
        self._stdin = self._process.stdin
        # What it says must be read while it is written to.
        self._reader = threading.Thread(target=self._read, args=(target,), daemon=True)
        self._error: Exception | None = None
        self._reader.start()

    def write(self, data: Data, /) -> None:
        """Take plain bytes."""
        try:
            self._stdin.write(data)
        except BrokenPipeError:
            self.close()  # says why

    def close(self) -> None:
        """Wait until all is in the file."""
        if self._stdin.closed:
            return
        with contextlib.suppress(BrokenPipeError):
            self._stdin.close()
        self._reader.join()
        code = self._process.wait()
        if self._error is not None:
            raise self._error
        if code != 0:
            raise ArtifactError(f"zstd exited with {code}")

    def _read(self, target: IO[bytes]) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as stdout:
            try:
                while chunk := stdout.read(1 << 20):
                    target.write(chunk)
            except Exception as error:
                self._error = error


class _Member:
    """Plain bytes on their way to be a gzip member."""

    def __init__(self, plain: bytearray) -> None:
        self.plain = plain
        self.done = threading.Event()
        self.packed: Data = b""
        self.error: Exception | None = None


class Gzip:
    """gzip members, compressed by a thread for each core: libdeflate does not need Python's lock."""

    def __init__(self, target: IO[bytes], level: int, threads: int = 0) -> None:
        self._target = target
        self._level = level
        self._plain = bytearray()
        self._waiting: SimpleQueue[_Member | None] = SimpleQueue()
        self._members: deque[_Member] = deque()
        self._is_empty = True
        count = threads or len(os.sched_getaffinity(0))
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def write(self, data: Data, /) -> None:
        """Take plain bytes; what is compressed meanwhile goes into the file."""
        with memoryview(data).cast("B") as view:
            done = 0
            while done < len(view):
                piece = view[done : done + MEMBER_BYTES - len(self._plain)]
                self._plain += piece
                done += len(piece)
                if len(self._plain) == MEMBER_BYTES:
                    self._submit()

    def close(self) -> None:
        """Compress the rest, and end the threads. An empty input is one empty member."""
        if not self._threads:
            return
        try:
            if self._plain or self._is_empty:
                self._submit()
            while self._members:
                self._collect()
        finally:
            for _ in self._threads:
                self._waiting.put(None)
            for thread in self._threads:
                thread.join()
            self._threads = []

    def _submit(self) -> None:
        member = _Member(self._plain)
        self._plain, self._is_empty = bytearray(), False
        self._waiting.put(member)
        self._members.append(member)
        if len(self._members) > 2 * len(self._threads):
            self._collect()

    def _collect(self) -> None:
        """The oldest member into the file."""
        member = self._members.popleft()
        member.done.wait()
        if member.error is not None:
            raise member.error
        self._target.write(member.packed)

    def _work(self) -> None:
        import deflate

        while (member := self._waiting.get()) is not None:
            try:
                member.packed = deflate.gzip_compress(member.plain, self._level)  # no name, no time
            except Exception as error:
                member.error = error
            member.plain = bytearray()
            member.done.set()
