# SPDX-License-Identifier: Apache-2.0
"""Decompression: every decoder there may be on a device, against what the usual tools write."""

from __future__ import annotations

import gzip
import io
import lzma
import os
import random
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
import zstandard
from tests.support.artifacts import COMPRESS

from update_agent import compression, native
from update_agent.compression import EngineSource, Inflate, NativeSource, isal_engine, zstd_engine
from update_agent.errors import ArtifactError
from update_agent.tarstream import StreamSource

if TYPE_CHECKING:
    from update_agent.tarstream import Source

LIMIT = 96 << 20
MIXED = random.Random(1).randbytes(300_000) + bytes(900_000) + b"text, text, text. " * 20_000


def native_gzip(source: Source, limit: int) -> Source:
    return NativeSource(source, native.Gzip(), "m", limit)


def module_gzip(source: Source, limit: int) -> Source:
    return EngineSource(source, Inflate, "m", limit)


def isal_gzip(source: Source, limit: int) -> Source:
    engine = isal_engine()
    if engine is None:
        pytest.skip("isal is not installed: it has wheels for x86-64 and arm64 only")
    return EngineSource(source, engine, "m", limit)


def native_xz(source: Source, limit: int) -> Source:
    return NativeSource(source, native.Xz(limit), "m", limit)


def module_xz(source: Source, limit: int) -> Source:
    def engine() -> lzma.LZMADecompressor:
        return lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=limit)

    return EngineSource(source, engine, "m", limit)


def native_zstd(source: Source, limit: int) -> Source:
    return NativeSource(source, native.Zstd(limit.bit_length() - 1), "m", limit)


def python_zstd(source: Source, limit: int) -> Source:
    for name in ("compression.zstd", "backports.zstd"):
        engine = zstd_engine(name, limit.bit_length() - 1)
        if engine is not None:
            return EngineSource(source, engine, "m", limit)
    if os.environ.get("CI") == "true":
        pytest.fail("backports.zstd is not installed")
    pytest.skip("neither Python 3.14 nor backports.zstd is here")


Make = Callable[["Source", int], "Source"]
DECODERS = [
    pytest.param(native_gzip, ".gz", id="gzip-libz"),
    pytest.param(module_gzip, ".gz", id="gzip-zlib"),
    pytest.param(isal_gzip, ".gz", id="gzip-isal"),
    pytest.param(native_xz, ".xz", id="xz-liblzma"),
    pytest.param(module_xz, ".xz", id="xz-lzma"),
    pytest.param(native_zstd, ".zst", id="zstd-libzstd"),
    pytest.param(python_zstd, ".zst", id="zstd-python"),
]


class Counted(io.RawIOBase):
    """A stream that gives `step` bytes at a time and counts how often it is asked."""

    def __init__(self, data: bytes, step: int) -> None:
        self.file = io.BytesIO(data)
        self.step = step
        self.calls = 0

    def read(self, n: int = -1, /) -> bytes:
        self.calls += 1
        return self.file.read(min(n, self.step))

    readinto = None  # type: ignore[assignment]


def unpack(
    make: Make, data: bytes, *, step: int = 1 << 20, view_bytes: int = 65536, limit: int = LIMIT
) -> bytes:
    source = make(StreamSource(Counted(data, step)), limit)
    out, view = bytearray(), memoryview(bytearray(view_bytes))
    while got := source.readinto(view):
        out += view[:got]
    assert source.readinto(view) == 0  # and stays at its end
    return bytes(out)


@pytest.mark.parametrize(("make", "suffix"), DECODERS)
@pytest.mark.parametrize(
    ("step", "view_bytes"), [(1 << 20, 1 << 20), (1000, 65536), (1 << 20, 1000), (1, 1 << 20)]
)
def test_round_trip(make: Make, suffix: str, step: int, view_bytes: int) -> None:
    data = MIXED if step > 1 else MIXED[295_000:310_000]
    assert unpack(make, COMPRESS[suffix](data), step=step, view_bytes=view_bytes) == data


@pytest.mark.parametrize(("make", "suffix"), DECODERS)
def test_nothing_inside(make: Make, suffix: str) -> None:
    assert unpack(make, COMPRESS[suffix](b"")) == b""


@pytest.mark.parametrize(("make", "suffix"), DECODERS)
def test_pieces_joined_are_one(make: Make, suffix: str) -> None:
    """As parallel compressors write them."""
    pack = COMPRESS[suffix]
    assert unpack(make, pack(MIXED) + pack(b"") + pack(b"end"), step=70_000) == MIXED + b"end"


@pytest.mark.parametrize(("make", "suffix"), DECODERS)
def test_cut_off_anywhere_is_seen(make: Make, suffix: str) -> None:
    data = COMPRESS[suffix](b"some text, some text, some text" * 10)
    for length in range(len(data)):
        with pytest.raises(ArtifactError, match="m is cut off inside its compressed data"):
            unpack(make, data[:length])


@pytest.mark.parametrize(("make", "suffix"), DECODERS)
@pytest.mark.parametrize("junk", [b"x", b"something else", bytes(64)])
def test_junk_after_the_end_is_refused(make: Make, suffix: str, junk: bytes) -> None:
    with pytest.raises(ArtifactError, match=r"m (cannot be decompressed|is cut off)"):
        unpack(make, COMPRESS[suffix](b"text") + junk)


@pytest.mark.parametrize(("make", "suffix"), DECODERS)
def test_damage_is_refused(make: Make, suffix: str) -> None:
    with pytest.raises(ArtifactError, match="m cannot be decompressed: "):
        unpack(make, b"not compressed at all, in no way")
    data = bytearray(COMPRESS[suffix](MIXED))
    data[len(data) // 2] ^= 0xFF
    if suffix != ".zst":  # zstandard writes no content checksum by default
        with pytest.raises(ArtifactError, match="m cannot be decompressed: "):
            unpack(make, bytes(data))


def test_zstd_leaves_the_checksum_of_a_frame_to_the_manifest() -> None:
    """libzstd is told so; Python's decoder has no such switch. What it says is what went in, either way."""
    data = bytearray(zstandard.ZstdCompressor(write_checksum=True).compress(MIXED))
    data[-1] ^= 1
    assert unpack(native_zstd, bytes(data)) == MIXED
    with pytest.raises(ArtifactError, match=r"m cannot be decompressed: .*checksum"):
        unpack(python_zstd, bytes(data))
    with pytest.raises(ArtifactError, match="m is cut off"):
        unpack(native_zstd, bytes(data[:-1]))


@pytest.mark.parametrize(("make", "suffix"), DECODERS)
def test_endless_empty_pieces_are_refused(make: Make, suffix: str) -> None:
    with pytest.raises(ArtifactError, match="more than 10000 compressed pieces"):
        unpack(make, COMPRESS[suffix](b"") * 11_000, step=4096)


@pytest.mark.parametrize("make", [native_zstd, python_zstd])
def test_zstd_window_above_the_memory_limit_is_refused(make: Make) -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=25, enable_ldm=True)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    data = compressor.compress(MIXED) + compressor.flush()
    assert unpack(make, data) == MIXED
    with pytest.raises(
        ArtifactError, match=r"m needs more memory .* limit of 16 MiB \(write the artifact with"
    ):
        unpack(make, data, limit=16 << 20)


@pytest.mark.parametrize("make", [native_xz, module_xz])
def test_xz_dictionary_above_the_memory_limit_is_refused(make: Make) -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 1, "dict_size": 64 << 20}]
    data = lzma.compress(b"text", filters=filters)  # as mender-artifact writes it
    assert unpack(make, data) == b"text"
    with pytest.raises(
        ArtifactError, match=r"m needs more memory .* limit of 32 MiB \(write the artifact with"
    ):
        unpack(make, data, limit=32 << 20)


@pytest.mark.parametrize(("make", "suffix"), DECODERS)
def test_input_is_pulled_in_large_chunks(make: Make, suffix: str) -> None:
    stream = Counted(COMPRESS[suffix](random.Random(2).randbytes(2 << 20)), 1 << 30)
    source = make(StreamSource(stream), LIMIT)
    view = memoryview(bytearray(1 << 20))
    while source.readinto(view):
        pass
    assert stream.calls <= 2 * (2 << 20) // compression.INPUT_BYTES


def test_no_compression_is_no_copy() -> None:
    source = StreamSource(io.BytesIO(b"x"))
    assert compression.decompress(source, "", "m", LIMIT) is source


def test_unknown_suffix() -> None:
    with pytest.raises(ArtifactError, match=r"m has an unknown compression .*zstd \(\.zst\)"):
        compression.decompress(StreamSource(io.BytesIO(b"")), ".bz2", "m", LIMIT)


def test_device_without_libz_uses_python_s(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise OSError("libz.so.1: cannot open shared object file")

    monkeypatch.setattr(compression, "isal_engine", lambda: None)
    monkeypatch.setattr(native, "Gzip", missing)
    source = compression.decompress(StreamSource(io.BytesIO(gzip.compress(b"x"))), ".gz", "m", LIMIT)
    assert isinstance(source, EngineSource)
    assert source.readinto(memoryview(bytearray(5))) == 1


def test_device_without_liblzma_uses_python_s(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise OSError("liblzma.so.5: cannot open shared object file")

    monkeypatch.setattr(native, "Xz", missing)
    source = compression.decompress(StreamSource(io.BytesIO(lzma.compress(b"x"))), ".xz", "m", LIMIT)
    assert isinstance(source, EngineSource)
    assert source.readinto(memoryview(bytearray(5))) == 1


def test_device_without_zstd_says_what_to_add(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise OSError("libzstd.so.1: cannot open shared object file")

    monkeypatch.setattr(native, "Zstd", missing)
    monkeypatch.setattr(compression, "zstd_engine", lambda *_: None)
    with pytest.raises(ArtifactError, match=r"cannot decompress \(add libzstd\.so\.1"):
        compression.decompress(StreamSource(io.BytesIO(b"")), ".zst", "m", LIMIT)
