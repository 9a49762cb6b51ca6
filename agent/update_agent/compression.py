# SPDX-License-Identifier: Apache-2.0
"""Decompress a member while it arrives: gzip, xz, zstd, or not at all, within a memory limit.

Output goes into the caller's buffer and is never larger than it, so a compression bomb costs its reader time,
not memory. A member must end exactly where its compressed data ends.
"""

from __future__ import annotations

from update_agent.errors import ArtifactError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from update_agent.native import Codec
    from update_agent.tarstream import Source

    class Engine(Protocol):
        """The shape of `lzma.LZMADecompressor` and `compression.zstd.ZstdDecompressor`."""

        @property
        def eof(self) -> bool: ...
        @property
        def needs_input(self) -> bool: ...
        @property
        def unused_data(self) -> bytes: ...
        def decompress(self, data: bytes, max_length: int) -> bytes: ...


INPUT_BYTES = 128 << 10  # pulled from the stream at once
DEFAULT_MEMORY_LIMIT_BYTES = 96 << 20  # mender-artifact's lzma needs 65 MiB, xz -6 9 MiB, zstd -19 8 MiB
MAX_PIECES = 10_000  # concatenated gzip members, xz streams, zstd frames
NAMES = {"": "none", ".gz": "gzip", ".xz": "xz", ".zst": "zstd"}


def decompress(source: Source, suffix: str, label: str, memory_limit_bytes: int) -> Source:
    """The source as it was before compression; the suffix of the member's name tells how it was compressed.

    `label` names the member in messages. Raises ArtifactError when there is no decoder on this device; a
    member whose decoder would need more memory than the limit is refused at the first read.
    """
    if suffix == "":
        return source
    if suffix == ".gz":
        return _gzip(source, label, memory_limit_bytes)
    if suffix == ".xz":
        return _xz(source, label, memory_limit_bytes)
    if suffix == ".zst":
        return _zstd(source, label, memory_limit_bytes)
    raise ArtifactError(
        f"{label} has an unknown compression",
        hint="none, gzip (.gz), xz (.xz) and zstd (.zst) are understood",
    )


def _gzip(source: Source, label: str, memory_limit_bytes: int) -> Source:
    """ISA-L's decoder if the image has it (a third less CPU time, 3 MB more), libz, or Python's own."""
    engine = isal_engine()
    if engine is not None:
        return EngineSource(source, engine, label, memory_limit_bytes)
    try:
        from update_agent.native import Gzip

        return NativeSource(source, Gzip(), label, memory_limit_bytes)
    except (ImportError, OSError):
        return EngineSource(source, Inflate, label, memory_limit_bytes)


def isal_engine() -> Callable[[], Engine] | None:
    """Maker of decoders from the package python-isal; None without it."""
    try:
        igzip_lib = __import__("isal.igzip_lib", fromlist=["IgzipDecompressor"])
    except ImportError:
        return None

    def engine() -> Engine:
        decoder: Engine = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
        return decoder

    return engine


def _xz(source: Source, label: str, memory_limit_bytes: int) -> Source:
    try:
        from update_agent.native import Xz

        return NativeSource(source, Xz(memory_limit_bytes), label, memory_limit_bytes)
    except (ImportError, OSError):
        pass
    try:
        import lzma
    except ImportError:
        raise _no_decoder(label, "xz", "liblzma.so.5 (liblzma5) or Python's lzma module") from None

    def engine() -> Engine:
        return lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=memory_limit_bytes)

    return EngineSource(source, engine, label, memory_limit_bytes)


def _zstd(source: Source, label: str, memory_limit_bytes: int) -> Source:
    """Python's own decoder (3.14), its backport, or the system's library."""
    window_log = max(10, memory_limit_bytes.bit_length() - 1)
    engine = zstd_engine("compression.zstd", window_log) or zstd_engine("backports.zstd", window_log)
    if engine is not None:
        return EngineSource(source, engine, label, memory_limit_bytes)
    try:
        from update_agent.native import Zstd

        return NativeSource(source, Zstd(window_log), label, memory_limit_bytes)
    except (ImportError, OSError):
        raise _no_decoder(label, "zstd", "libzstd.so.1 (libzstd1) or Python 3.14") from None


def zstd_engine(module_name: str, window_log: int) -> Callable[[], Engine] | None:
    """Maker of decoders from a module with the interface of `compression.zstd`; None without the module."""
    try:
        module = __import__(module_name, fromlist=["ZstdDecompressor"])
    except ImportError:
        return None
    options = {module.DecompressionParameter.window_log_max: window_log}

    def engine() -> Engine:
        decoder: Engine = module.ZstdDecompressor(options=options)
        return decoder

    return engine


class Inflate:
    """Python's gzip decoder in the shape of the other engines."""

    def __init__(self) -> None:
        import zlib

        self._zlib = zlib.decompressobj(wbits=31)  # 16 + 15: gzip header, any window
        self._flushed = True

    @property
    def eof(self) -> bool:
        """The gzip member is complete, its checksum verified."""
        return self._zlib.eof

    @property
    def needs_input(self) -> bool:
        """No more output without more input."""
        return self._flushed and not self._zlib.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        """What came after the end of the member."""
        return self._zlib.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        """At most max_length bytes. Data may only be given when input is needed."""
        out = self._zlib.decompress(data or self._zlib.unconsumed_tail, max_length)
        self._flushed = len(out) < max_length  # a full buffer may leave output inside zlib
        return out


class EngineSource:
    """Decompression by an object from Python's library."""

    def __init__(
        self, source: Source, make: Callable[[], Engine], label: str, memory_limit_bytes: int
    ) -> None:
        self._source = source
        self._make = make
        self._label = label
        self._limit = memory_limit_bytes
        self._engine: Engine | None = None  # None: between two pieces
        self._input = memoryview(bytearray(INPUT_BYTES))
        self._rest = b""
        self._pieces = 0

    def readinto(self, view: memoryview, /) -> int:
        """At most len(view) bytes; 0 at the end of the compressed data."""
        if not len(view):
            return 0
        while True:
            data = b""
            if self._engine is None:
                data = self._rest or self._pull()
                if not data and self._pieces:
                    return 0
                self._pieces = _count(self._pieces, self._label)
                self._engine = self._make()
            elif self._engine.needs_input:
                data = self._pull()
            if not data and self._engine.needs_input:
                raise _truncated(self._label)
            try:
                out = self._engine.decompress(data, len(view))
            except (ArtifactError, MemoryError):
                raise
            except (
                Exception
            ) as error:  # zlib.error, LZMAError, ZstdError: all are direct children of Exception
                raise _broken(self._label, str(error), self._limit) from error
            if self._engine.eof:
                self._rest = self._engine.unused_data
                self._engine = None
            if out:
                view[: len(out)] = out
                return len(out)

    def _pull(self) -> bytes:
        return bytes(self._input[: self._source.readinto(self._input)])


class NativeSource:
    """Decompression by a system library, from one fixed input buffer straight into the caller's."""

    def __init__(self, source: Source, codec: Codec, label: str, memory_limit_bytes: int) -> None:
        from update_agent.native import address

        self._source = source
        self._codec = codec
        self._label = label
        self._limit = memory_limit_bytes
        self._address = address
        self._input = memoryview(bytearray(INPUT_BYTES))
        self._base = address(self._input)
        self._pos = self._end = 0
        self._full = False  # the last step filled its buffer, so the decoder may hold more
        self._pieces = 0

    def readinto(self, view: memoryview, /) -> int:
        """At most len(view) bytes; 0 at the end of the compressed data."""
        if not len(view):
            return 0
        codec = self._codec
        while True:
            if self._pos == self._end and not self._full:
                self._pos, self._end = 0, self._source.readinto(self._input)
                if self._end == 0:
                    if codec.between and self._pieces:
                        return 0
                    raise _truncated(self._label)
            if codec.between and self._pos < self._end:
                self._pieces = _count(self._pieces, self._label)
            try:
                taken, made = codec.step(
                    self._base + self._pos, self._end - self._pos, self._address(view), len(view)
                )
            except ArtifactError as error:
                raise _broken(self._label, error.message, self._limit) from error
            self._pos += taken
            self._full = made == len(view) and not codec.between
            if made:
                return made


def _count(pieces: int, label: str) -> int:
    if pieces == MAX_PIECES:
        raise ArtifactError(f"{label} is made of more than {MAX_PIECES} compressed pieces")
    return pieces + 1


def _truncated(label: str) -> ArtifactError:
    return ArtifactError(f"{label} is cut off inside its compressed data", hint="was it written completely?")


def _broken(label: str, reason: str, memory_limit_bytes: int) -> ArtifactError:
    if "memory" in reason.lower():
        return ArtifactError(
            f"{label} needs more memory to decompress than the limit of {memory_limit_bytes >> 20} MiB",
            hint="write the artifact with a smaller dictionary (xz -6, zstd -19) or with gzip",
        )
    return ArtifactError(
        f"{label} cannot be decompressed: {reason}", hint="damaged, or joined with other data?"
    )


def _no_decoder(label: str, what: str, package: str) -> ArtifactError:
    return ArtifactError(
        f"{label} is compressed with {what}, which this device cannot decompress",
        hint=f"add {package} to the image, or write the artifact with gzip",
    )
