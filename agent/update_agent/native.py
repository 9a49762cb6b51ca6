# SPDX-License-Identifier: Apache-2.0
"""The system's libz, liblzma and libzstd through ctypes: decompress from one buffer straight into another.

Why not only Python's modules: no bytes object and no copy per chunk saves 12 % CPU and 2 MB on a device
(gzip, 256 MiB image, x86-64). Why libzstd: Python has zstd from 3.14 on, and the library is there because
the package manager uses it. The GIL is free during each step.
"""

from __future__ import annotations

import ctypes

from update_agent.errors import ArtifactError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class Codec(Protocol):
        """A decoder that works on addresses."""

        between: bool  # not inside a piece (gzip member, zstd frame): the data may end here

        def step(self, source: int, source_bytes: int, target: int, target_bytes: int) -> tuple[int, int]:
            """Decode some; bytes taken, bytes made. Raises ArtifactError with the library's reason."""
            ...


class _ZStream(ctypes.Structure):
    _fields_ = [
        ("next_in", ctypes.c_void_p),
        ("avail_in", ctypes.c_uint),
        ("total_in", ctypes.c_ulong),
        ("next_out", ctypes.c_void_p),
        ("avail_out", ctypes.c_uint),
        ("total_out", ctypes.c_ulong),
        ("msg", ctypes.c_char_p),
        ("state", ctypes.c_void_p),
        ("zalloc", ctypes.c_void_p),
        ("zfree", ctypes.c_void_p),
        ("opaque", ctypes.c_void_p),
        ("data_type", ctypes.c_int),
        ("adler", ctypes.c_ulong),
        ("reserved", ctypes.c_ulong),
    ]


class Gzip:
    """libz, gzip members. Raises OSError when the library cannot be loaded."""

    def __init__(self) -> None:
        self._lib = ctypes.CDLL("libz.so.1")
        self._lib.zlibVersion.restype = ctypes.c_char_p
        self._stream = _ZStream()
        self._ref = ctypes.byref(self._stream)
        version = self._lib.zlibVersion()
        # 16 + 15: gzip header, any window
        if self._lib.inflateInit2_(self._ref, 31, ctypes.c_char_p(version), ctypes.sizeof(_ZStream)) != 0:
            raise OSError("inflateInit2 refused")
        self.between = True

    def step(self, source: int, source_bytes: int, target: int, target_bytes: int) -> tuple[int, int]:
        """Inflate until a buffer is used up or a member ends."""
        stream = self._stream
        stream.next_in, stream.avail_in = source, source_bytes
        stream.next_out, stream.avail_out = target, target_bytes
        if self.between:
            self._lib.inflateReset(self._ref)
            self.between = False
        code = self._lib.inflate(self._ref, 0)
        if code == 1:  # Z_STREAM_END
            self.between = True
        elif code not in (0, -5):  # Z_BUF_ERROR: nothing to do
            reason = stream.msg.decode("ascii", "replace") if stream.msg else f"zlib error {code}"
            raise ArtifactError(reason)
        return source_bytes - stream.avail_in, target_bytes - stream.avail_out

    def __del__(self) -> None:
        if hasattr(self, "between"):
            self._lib.inflateEnd(self._ref)


class _LzmaStream(ctypes.Structure):
    _fields_ = [
        ("next_in", ctypes.c_void_p),
        ("avail_in", ctypes.c_size_t),
        ("total_in", ctypes.c_uint64),
        ("next_out", ctypes.c_void_p),
        ("avail_out", ctypes.c_size_t),
        ("total_out", ctypes.c_uint64),
        ("allocator", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
        ("reserved_pointers", ctypes.c_void_p * 4),
        ("reserved_longs", ctypes.c_uint64 * 2),
        ("reserved_sizes", ctypes.c_size_t * 2),
        ("reserved_enums", ctypes.c_int * 2),
    ]


_LZMA_ERRORS = {
    6: "more memory needed than the limit",
    7: "not the xz format",
    8: "a filter or option that is not supported",
    9: "damaged data",
    10: "damaged data (no progress)",
}


class Xz:
    """liblzma, xz streams whose decoder needs no more memory than the limit. Raises OSError without it."""

    def __init__(self, memory_limit_bytes: int) -> None:
        self._lib = ctypes.CDLL("liblzma.so.5")
        self._lib.lzma_stream_decoder.argtypes = [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint32]
        self._limit = memory_limit_bytes
        self._stream = _LzmaStream()
        self._ref = ctypes.byref(self._stream)
        self.between = True

    def step(self, source: int, source_bytes: int, target: int, target_bytes: int) -> tuple[int, int]:
        """Decode until a buffer is used up or a stream ends."""
        stream = self._stream
        if self.between and source_bytes:
            self._checked(self._lib.lzma_stream_decoder(self._ref, self._limit, 0))
            self.between = False
        stream.next_in, stream.avail_in = source, source_bytes
        stream.next_out, stream.avail_out = target, target_bytes
        code = self._lib.lzma_code(self._ref, 0)
        if code == 1:  # LZMA_STREAM_END
            self.between = True
        elif code != 10 or source_bytes:  # LZMA_BUF_ERROR: asked for more output, there was none
            self._checked(code)
        return source_bytes - stream.avail_in, target_bytes - stream.avail_out

    def _checked(self, code: int) -> None:
        if code == 5:
            raise MemoryError("liblzma")
        if code:
            raise ArtifactError(_LZMA_ERRORS.get(code, f"liblzma error {code}"))

    def __del__(self) -> None:
        if hasattr(self, "between"):
            self._lib.lzma_end(self._ref)


class _ZBuffer(ctypes.Structure):
    _fields_ = [("address", ctypes.c_void_p), ("size", ctypes.c_size_t), ("pos", ctypes.c_size_t)]


_WINDOW_LOG_MAX = 100  # ZSTD_d_windowLogMax
# ZSTD_d_forceIgnoreChecksum, from 1.4.5 on. Each frame may end in an XXH64 of its content: a tenth of the CPU
# time, for bytes whose SHA-256 the artifact's manifest has.
_IGNORE_CHECKSUM = 1002


class Zstd:
    """libzstd, frames with a window of at most 2**window_log bytes. Raises OSError without the library."""

    def __init__(self, window_log: int) -> None:
        lib = ctypes.CDLL("libzstd.so.1")
        lib.ZSTD_createDCtx.restype = ctypes.c_void_p
        lib.ZSTD_freeDCtx.argtypes = [ctypes.c_void_p]
        lib.ZSTD_DCtx_setParameter.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int]
        lib.ZSTD_DCtx_setParameter.restype = ctypes.c_size_t
        lib.ZSTD_decompressStream.argtypes = [
            ctypes.c_void_p,
            ctypes.POINTER(_ZBuffer),
            ctypes.POINTER(_ZBuffer),
        ]
        lib.ZSTD_decompressStream.restype = ctypes.c_size_t
        lib.ZSTD_isError.argtypes = [ctypes.c_size_t]
        lib.ZSTD_getErrorName.argtypes = [ctypes.c_size_t]
        lib.ZSTD_getErrorName.restype = ctypes.c_char_p
        self._lib = lib
        self._context = lib.ZSTD_createDCtx()
        if not self._context:
            raise OSError("ZSTD_createDCtx: out of memory")
        self._in, self._out = _ZBuffer(), _ZBuffer()
        self.between = True
        self._checked(lib.ZSTD_DCtx_setParameter(self._context, _WINDOW_LOG_MAX, window_log))
        lib.ZSTD_DCtx_setParameter(self._context, _IGNORE_CHECKSUM, 1)  # an older library checks it

    def _checked(self, code: int) -> int:
        if self._lib.ZSTD_isError(code):
            raise ArtifactError(self._lib.ZSTD_getErrorName(code).decode("ascii", "replace"))
        return code

    def step(self, source: int, source_bytes: int, target: int, target_bytes: int) -> tuple[int, int]:
        """Decode until a buffer is used up or a frame ends."""
        self._in.address, self._in.size, self._in.pos = source, source_bytes, 0
        self._out.address, self._out.size, self._out.pos = target, target_bytes, 0
        code = self._lib.ZSTD_decompressStream(self._context, ctypes.byref(self._out), ctypes.byref(self._in))
        self.between = self._checked(code) == 0
        return self._in.pos, self._out.pos

    def __del__(self) -> None:
        if getattr(self, "_context", None):
            self._lib.ZSTD_freeDCtx(self._context)


_memcmp = ctypes.CDLL(None).memcmp
_memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]


def is_equal(left: int, right: int, size: int) -> bool:
    """Whether two pieces of memory, by their addresses, are the same.

    Comparing memoryviews in Python takes ten times as long, and holds the GIL.
    """
    return size == 0 or _memcmp(left, right, size) == 0


def address(view: memoryview) -> int:
    """Where a writable buffer is in memory. It must stay referenced while the address is used."""
    return ctypes.addressof(ctypes.c_char.from_buffer(view))
