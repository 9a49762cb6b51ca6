# SPDX-License-Identifier: Apache-2.0
"""The tar reader: what tars in the field look like, what is refused, and that it never guesses."""

from __future__ import annotations

import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.artifacts import END, Entry, header, long_name, padded, pax, tar

from update_agent import tarstream
from update_agent.errors import ArtifactError
from update_agent.tarstream import StreamSource, TarStream


class Dribble:
    """A stream that gives a few bytes at a time, as a network does."""

    def __init__(self, data: bytes, step: int) -> None:
        self._file = io.BytesIO(data)
        self._step = step

    def read(self, n: int, /) -> bytes:
        return self._file.read(min(n, self._step))


def walk(data: bytes, step: int = 1 << 20) -> list[tuple[str, bytes]]:
    """All members with their content; raises like the reader does."""
    archive = TarStream(StreamSource(Dribble(data, step)), "x.tar")
    members = []
    while (member := archive.next()) is not None:
        members.append((member.name, archive.read(member.size)))
    archive.finish()
    return members


NAME = st.text(st.characters(codec="utf-8", exclude_characters="\0/", exclude_categories=("Cs",)), min_size=1)
NAMES = st.lists(NAME.filter(lambda name: name not in (".", "..")), min_size=1, max_size=3).map("/".join)


@given(
    members=st.lists(st.tuples(NAMES, st.binary(max_size=1500)), max_size=5),
    style=st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    step=st.integers(1, 700),
)
def test_reads_what_python_s_tarfile_writes(members: list[tuple[str, bytes]], style: int, step: int) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=style) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            try:
                archive.addfile(info, io.BytesIO(data))
            except ValueError:  # too long for ustar
                return
    assert walk(stream.getvalue(), step) == members


@given(data=st.binary(max_size=3000))
def test_noise_is_refused(data: bytes) -> None:
    with pytest.raises(ArtifactError):
        walk(data)


GOOD = tar([Entry("one", b"1" * 700), Entry("two", b""), Entry("three", b"3" * 512)])


@given(position=st.integers(0, len(GOOD) - 1), bit=st.integers(0, 7))
def test_a_flipped_bit_is_seen_or_is_in_content_or_padding(position: int, bit: int) -> None:
    broken = bytearray(GOOD)
    broken[position] ^= 1 << bit
    try:
        found = walk(bytes(broken))
    except ArtifactError:
        return
    good = walk(GOOD)
    assert [(name, len(data)) for name, data in found] == [(name, len(data)) for name, data in good]


def test_cut_off_anywhere_is_seen() -> None:
    for length in range(len(GOOD)):
        with pytest.raises(ArtifactError, match="is cut off at byte"):
            walk(GOOD[:length])


def test_skips_what_was_not_read() -> None:
    archive = TarStream(StreamSource(io.BytesIO(GOOD)), "x.tar")
    assert archive.next() is not None
    assert archive.read(3) == b"111"
    assert (second := archive.next()) is not None
    assert second.name == "two"
    assert archive.readinto(memoryview(bytearray(10))) == 0


def test_takes_a_stream_with_readinto() -> None:
    class Both(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise AssertionError("copies")

    archive = TarStream(StreamSource(Both(GOOD)), "x.tar")
    member = archive.next()
    assert member is not None
    assert archive.read(member.size) == b"1" * 700


def test_names_from_all_places() -> None:
    name = "d/" + "n" * 120
    assert walk(long_name(name) + tar([Entry("short", b"x")])) == [(name, b"x")]
    assert walk(pax({"path": name, "mtime": "1.5"}) + tar([Entry("short", b"x")])) == [(name, b"x")]
    assert walk(tar([Entry("", b"x", head=header("n", 1, prefix=b"d"))])) == [("d/n", b"x")]
    # GNU keeps times where ustar has the prefix
    gnu = header("n", 1, magic=b"ustar  \0", prefix=b"000001")
    assert walk(tar([Entry("", b"x", head=gnu)])) == [("n", b"x")]


def test_sizes_from_all_places() -> None:
    base256 = b"\x80" + (5).to_bytes(11, "big")
    assert walk(tar([Entry("", b"12345", head=header("n", base256))])) == [("n", b"12345")]
    assert walk(pax({"size": "5"}) + tar([Entry("", b"12345", head=header("n", 0))])) == [("n", b"12345")]
    archive = TarStream(
        StreamSource(io.BytesIO(header("n", b"\x80" + (10 << 30).to_bytes(11, "big")))), "x.tar"
    )
    member = archive.next()
    assert member is not None
    assert member.size == 10 << 30


def test_global_pax_header_is_passed_over() -> None:
    assert walk(pax({"comment": "built by hand"}, kind=b"g") + tar([Entry("n", b"x")])) == [("n", b"x")]


def test_binary_pax_values_are_no_problem() -> None:
    data = b"30 SCHILY.xattr.user.x=\xff\xfe\xfd\xfc\xfb\xfa\n"
    extension = header("x", len(data), kind=b"x") + padded(data)
    assert walk(extension + tar([Entry("n", b"x")])) == [("n", b"x")]


def test_padding_to_a_record_is_fine_up_to_a_limit() -> None:
    assert walk(GOOD + bytes(10240)) == walk(GOOD)
    with pytest.raises(ArtifactError, match="more than 1048576 bytes of padding"):
        walk(GOOD + bytes(tarstream.MAX_TRAILER_BYTES + 1))


def one(**fields: object) -> bytes:
    return tar([Entry("", b"", head=header(**{"name": "n", "size": 0} | fields))])  # type: ignore[arg-type]


ENTRY = tar([Entry("n", b"x")])

REFUSED = {
    "symbolic link": (one(kind=b"2", link=b"/etc/passwd"), "'n', which is a symbolic link"),
    "hard link": (one(kind=b"1", link=b"version"), "a hard link"),
    "character device": (one(kind=b"3"), "a character device"),
    "block device": (one(kind=b"4"), "a block device"),
    "directory": (one(name="d/", kind=b"5"), "a directory"),
    "fifo": (one(kind=b"6"), "a FIFO"),
    "sparse": (one(kind=b"S"), "a sparse file"),
    "sparse by PAX": (pax({"GNU.sparse.major": "1"}) + ENTRY, "a sparse file"),
    "multi-volume": (one(kind=b"M"), "a continued file"),
    "unknown type": (one(kind=b"Z"), "of unknown type b'Z'"),
    "absolute name": (one(name="/etc/passwd"), "stay inside"),
    "absolute by prefix": (one(name="passwd", prefix=b"/etc"), "stay inside"),
    "dot-dot": (one(name="a/../../b"), "stay inside"),
    "dot-dot in a PAX path": (pax({"path": "../b"}) + ENTRY, "stay inside"),
    "dot-dot in a long name": (long_name("../b") + ENTRY, "stay inside"),
    "no name": (one(name=""), "stay inside"),
    "zero byte in a PAX path": (pax({"path": "a\0b"}) + ENTRY, "stay inside"),
    "name not UTF-8": (one(name=b"\xff\xfe"), "not UTF-8"),
    "negative size": (one(size=b"\xff" * 12), "size out of range"),
    "size beyond all": (one(size=b"\x80\x7f" + b"\xff" * 10), "size out of range"),
    "size no number": (one(size=b"12x45678901\0"), "size that is no number"),
    "size empty": (one(size=bytes(12)), "size that is no number"),
    "size with sign": (one(size=b"-0000000001\0"), "size that is no number"),
    "PAX size negative": (pax({"size": "-1"}) + ENTRY, "with the size '-1'"),
    "PAX size enormous": (pax({"size": "9" * 19}) + ENTRY, "claims 9999999999999999999 bytes"),
    "PAX size too long": (pax({"size": "9" * 5000}) + ENTRY, "with the size"),
    "mode no number": (one(mode=b"rwxr-xr-"), "mode that is no number"),
    "wrong checksum": (one(checksum=b"000000\0 "), "damaged member header"),
    "no magic": (one(magic=bytes(8)), "not a tar archive"),
    "PAX header too large": (
        one(kind=b"x", size=b"\x80" + (10 << 30).to_bytes(11, "big")),
        "PAX header of 10737418240 bytes",
    ),
    "long name too large": (one(kind=b"L", size=4098), "long name of 4098 bytes"),
    "PAX path too long": (pax({"path": "n" * 5000}) + ENTRY, "name longer than 4096"),
    "endless extension headers": (pax({"comment": "x"}, kind=b"g") * 1000 + ENTRY, "more than 4 extension"),
    "two long names": (long_name("a") + long_name("b") + ENTRY, "two long names"),
    "two PAX headers": (pax({"path": "a"}) + pax({"path": "b"}) + ENTRY, "two PAX headers"),
    "PAX key twice": (
        header("x", 18, kind=b"x") + padded(b"9 path=a\n9 path=b\n") + ENTRY,
        "'path' twice",
    ),
    "PAX record too long": (header("x", 9, kind=b"x") + padded(b"99 path=a") + ENTRY, "malformed PAX"),
    "PAX record without length": (header("x", 7, kind=b"x") + padded(b"path=a\n") + ENTRY, "malformed PAX"),
    "PAX record of length 0": (header("x", 9, kind=b"x") + padded(b"0 path=a\n") + ENTRY, "malformed PAX"),
    "PAX record without =": (header("x", 8, kind=b"x") + padded(b"8 patha\n") + ENTRY, "malformed PAX"),
    "PAX path not UTF-8": (header("x", 9, kind=b"x") + padded(b"9 path=\xff\n") + ENTRY, "not UTF-8"),
    "global path": (pax({"path": "a"}, kind=b"g") + ENTRY, "all members one name"),
    "extension without member": (pax({"path": "a"}) + END, "belongs to no member"),
    "lone zero block": (bytes(512) + ENTRY, "a lone zero block"),
    "archive after archive": (GOOD + GOOD, "goes on after its end"),
    "gzip, not tar": (b"\x1f\x8b" + bytes(1000), "not a tar archive"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_the_reason(case: str) -> None:
    data, reason = REFUSED[case]
    with pytest.raises(ArtifactError) as caught:
        walk(data)
    assert reason in str(caught.value)
    assert str(caught.value).startswith("x.tar ")


def test_signed_checksums_of_old_tars_are_accepted() -> None:
    block = header("n\u00e4me", 0)
    plain = sum(block[:148]) + sum(block[156:]) + 8 * 32
    high = sum(byte > 127 for byte in block[:148] + block[156:])
    assert high
    signed = block[:148] + b"%06o\0 " % (plain - 256 * high) + block[156:]
    assert walk(signed + END) == [("n\u00e4me", b"")]
