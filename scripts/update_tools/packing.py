# SPDX-License-Identifier: Apache-2.0
"""Compress while writing to a file: gzip by the fastest program there is, xz, zstd, or not at all.

The same program, version and level make the same bytes, on one core or many. gzip programs differ from each
other: who wants the same bytes on different machines names the program.
"""

from __future__ import annotations

import gzip
import lzma
import shutil
import subprocess
from typing import IO, Protocol

import zstandard

from update_agent.errors import ArtifactError

Data = bytes | bytearray | memoryview
SUFFIXES = {"none": "", "gzip": ".gz", "xz": ".xz", "lzma": ".xz", "zstd": ".zst"}
DEFAULT_LEVELS = {"gzip": 6, "xz": 6, "zstd": 9}
GZIP_PROGRAMS = ("igzip", "pigz", "zlib")  # fastest first; igzip only knows levels 0 to 3


class Packer(Protocol):
    """Takes plain bytes; `close` completes the compressed data in the file."""

    def write(self, data: Data, /) -> object: ...
    def close(self) -> None: ...


def packer(target: IO[bytes], compression: str, level: int | None = None, gzip_program: str = "") -> Packer:
    """What compresses into the (unbuffered or flushed) file. The file stays open.

    Raises ArtifactError for an unknown compression, a level it does not have or a missing program.
    """
    if compression not in SUFFIXES:
        raise ArtifactError(f"unknown compression {compression!r}", hint=f"known are {', '.join(SUFFIXES)}")
    if compression == "none":
        return _Plain(target)
    if compression == "gzip":
        return _gzip(target, level, gzip_program)
    kind = "zstd" if compression == "zstd" else "xz"
    chosen = DEFAULT_LEVELS[kind] if level is None else level
    try:
        if kind == "zstd":
            # Any number of threads makes the same bytes, none at all others: -1 is at least one.
            return zstandard.ZstdCompressor(level=chosen, threads=-1, write_checksum=True).stream_writer(
                target, closefd=False
            )
        return lzma.LZMAFile(target, "wb", preset=chosen)
    except (ValueError, lzma.LZMAError, zstandard.ZstdError) as error:
        raise ArtifactError(f"{kind} has no level {chosen}: {error}") from error


class _Plain:
    def __init__(self, target: IO[bytes]) -> None:
        self.write = target.write

    def close(self) -> None:
        """Nothing to complete."""


class _Child:
    """A compressing program between us and the file."""

    def __init__(self, argv: list[str], target: IO[bytes]) -> None:
        target.flush()
        self._argv = argv
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=target)

    def write(self, data: Data, /) -> None:
        """Feed the program."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(data)
        except BrokenPipeError:
            self.close()

    def close(self) -> None:
        """Wait for the program; ArtifactError if it failed."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            pass
        if self._process.wait() != 0:
            raise ArtifactError(
                f"{' '.join(self._argv)} exited with {self._process.returncode}", hint="is the disk full?"
            )


def _gzip(target: IO[bytes], level: int | None, program: str) -> Packer:
    if program and program not in GZIP_PROGRAMS:
        raise ArtifactError(f"unknown gzip program {program!r}", hint=f"known are {', '.join(GZIP_PROGRAMS)}")
    if level is not None and not 1 <= level <= 9:
        raise ArtifactError(f"gzip has no level {level}: 1 to 9 are known")
    for name in [program] if program else GZIP_PROGRAMS:
        if name == "zlib":
            break
        if name == "igzip" and level is not None and not program:
            continue
        path = shutil.which(name)
        if path is not None:
            options = ["-2"] if name == "igzip" else [f"-{level or DEFAULT_LEVELS['gzip']}"]
            return _Child([path, *options, "-n", "-c"], target)
        if program:
            raise ArtifactError(f"{program} is not installed")
    # No file name and no time in the header: they would differ from run to run.
    return gzip.GzipFile("", "wb", level or DEFAULT_LEVELS["gzip"], target, mtime=0)
