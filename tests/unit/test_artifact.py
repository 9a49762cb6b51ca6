# SPDX-License-Identifier: Apache-2.0
"""The artifact reader: what it reads, what it refuses and why, and how little memory it needs."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import random
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.artifacts import (
    COMPRESS,
    END,
    Artifact,
    Entry,
    SigningKey,
    header,
    pax,
    replace,
    tar,
)

import update_agent
from update_agent import artifact as module
from update_agent.artifact import Reader
from update_agent.errors import ArtifactError, TransferError
from update_agent.header import MAX_UNPACKED_BYTES

SCRIPTS = {"ArtifactInstall_Enter_10_a": b"#!/bin/sh\n", "ArtifactCommit_Error_99": b"#!/bin/sh\nexit 1\n"}


class Pipe:
    """A stream with nothing but `read`."""

    def __init__(self, data: bytes, step: int = 1 << 20) -> None:
        self._file = io.BytesIO(data)
        self._step = step

    def read(self, n: int, /) -> bytes:
        return self._file.read(min(n, self._step))


def install(data: bytes, *, step: int = 1 << 20) -> dict[str, bytes]:
    """Read all of an artifact the way an installation does; the payload's files."""
    files = {}
    for file in Reader(Pipe(data, step)).files():
        content, view = bytearray(), memoryview(bytearray(10_000))
        while got := file.readinto(view):
            content += view[:got]
        assert file.verified
        assert file.digest == file.expected_digest == hashlib.sha256(content).hexdigest()
        files[file.name] = bytes(content)
    return files


def refuse(data: bytes, reason: str) -> str:
    """Reading all of it must end in an ArtifactError with this reason; the whole message."""
    with pytest.raises(ArtifactError) as caught:
        install(data)
    assert reason in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("header_compression", COMPRESS)
def test_every_compression(compression: str, header_compression: str) -> None:
    files = {"a.bin": random.Random(1).randbytes(300_000), "empty": b"", "b-1.0_x,y": b"text " * 100_000}
    data = Artifact(
        files=files, scripts=SCRIPTS, compression=compression, header_compression=header_compression
    ).build()
    assert install(data) == files


@given(step=st.integers(1, 600))
@settings(max_examples=20)
def test_bytes_arrive_as_they_like(step: int) -> None:
    assert install(Artifact(compression=".gz").build(), step=step) == {"payload.bin": b"payload " * 100}


def test_header_is_complete_before_the_payload() -> None:
    made = Artifact(
        scripts=SCRIPTS,
        header_info={
            "payloads": [{"type": "module"}],
            "artifact_provides": {"artifact_name": "release-2", "artifact_group": "beta", "later": 1},
            "artifact_depends": {
                "device_type": ["a", "b"],
                "artifact_name": ["release-1"],
                "artifact_group": ["alpha"],
            },
            "unknown": None,
        },
        type_info={
            "type": "module",
            "artifact_provides": {"app": "2"},
            "artifact_depends": {"app": "1", "modem": ["3", "4"], "device_type": ["b", "c"]},
            "clears_artifact_provides": ["app", "x.*"],
        },
        meta_data=b' {"k" :\n1} ',
    )
    read = Reader(Pipe(made.build())).header
    assert (read.name, read.group, read.payload_type) == ("release-2", "beta", "module")
    assert read.device_types == ["a", "b"]
    assert read.depends == {
        "device_type": ["b"],
        "artifact_name": ["release-1"],
        "artifact_group": ["alpha"],
        "app": ["1"],
        "modem": ["3", "4"],
    }
    assert read.provides == {"app": "2"}
    assert read.clears == ["app", "x.*"]
    assert read.scripts == list(SCRIPTS.items())
    assert read.signed is False
    documents = {entry.name: entry.data for entry in made.header_members()}
    assert read.header_info == documents["header-info"]
    assert read.type_info == documents["headers/0000/type-info"]
    assert read.meta_data == b' {"k" :\n1} '


@pytest.mark.parametrize(("given_clears", "clears"), [({}, None), ({"clears_artifact_provides": []}, [])])
def test_absent_clears_differ_from_empty(
    given_clears: dict[str, list[str]], clears: list[str] | None
) -> None:
    assert Reader(Pipe(Artifact(type_info={"type": "module"} | given_clears).build())).header.clears == clears


@pytest.mark.parametrize("type_info", [{}, {"type": ""}, {"type": None}, {"type": "rootfs-image"}])
def test_type_info_of_a_rootfs_image_may_lack_the_type(type_info: dict[str, str]) -> None:
    data = Artifact(payload_type="rootfs-image", type_info=type_info).build()
    assert Reader(Pipe(data)).header.payload_type == "rootfs-image"


@pytest.mark.parametrize("meta_data", [None, b"", b"{}"])
def test_meta_data_as_it_is(meta_data: bytes | None) -> None:
    assert Reader(Pipe(Artifact(meta_data=meta_data).build())).header.meta_data == meta_data


def test_empty_payload() -> None:
    bare = Artifact(payload_type=None, files={})
    assert install(bare.build()) == {}
    members = bare.members()
    assert [entry.name for entry in members] == ["version", "manifest", "header.tar"]
    assert install(tar([*members, Entry("data/0000.tar", END)])) == {}
    assert Reader(Pipe(bare.build())).header.payload_type is None


def test_module_payload_without_files() -> None:
    assert install(Artifact(files={}).build()) == {}


def test_manifest_may_name_the_header_with_any_suffix() -> None:
    data = Artifact(
        header_compression=".gz", edit_manifest=lambda text: text.replace("header.tar.gz", "header.tar")
    ).build()
    assert install(data)


def test_unread_files_are_verified_all_the_same() -> None:
    made = Artifact(files={"a": b"a" * 700_000, "b": b"b"})
    assert [file.name for file in Reader(Pipe(made.build())).files()] == ["a", "b"]
    for file in Reader(Pipe(made.build())).files():
        file.read(1)
    made.data_entries = [Entry("a", b"a" * 699_999 + b"x"), Entry("b", b"b")]
    files = Reader(Pipe(made.build())).files()
    next(files).read(1)
    with pytest.raises(ArtifactError, match="wrong checksum of payload file a"):
        next(files)


def test_read_in_portions() -> None:
    file = next(Reader(Pipe(Artifact(files={"a": b"0123456789"}).build())).files())
    assert file.size == 10
    assert [file.read(4), file.read(100), file.read(1)] == [b"0123", b"456789", b""]


def test_views_are_filled_completely() -> None:
    file = next(Reader(Pipe(Artifact(files={"a": bytes(100_000)}).build(), step=1000)).files())
    view = memoryview(bytearray(65536))
    assert [file.readinto(view), file.readinto(view), file.readinto(view)] == [65536, 34464, 0]


def test_hashing_may_happen_elsewhere() -> None:
    """The seam for a data path with threads."""
    files = Reader(Pipe(Artifact(files={"a": b"0123456789", "b": b"x"}).build())).files()
    file = next(files)
    view = memoryview(bytearray(16))
    got = file.fill(view)
    with pytest.raises(ArtifactError, match="0 of 10 bytes were hashed"):
        file.verify()
    file.hash(view[:got])
    file.verify()
    assert next(files).name == "b"


def test_forgotten_hashing_is_noticed() -> None:
    files = Reader(Pipe(Artifact(files={"a": b"0123456789"}).build())).files()
    next(files).fill(memoryview(bytearray(16)))
    with pytest.raises(ArtifactError, match="0 of 10 bytes were hashed"):
        next(files)


def test_errors_of_the_stream_pass() -> None:
    class Broken(Pipe):
        def read(self, n: int, /) -> bytes:
            raise TransferError("connection lost")

    with pytest.raises(TransferError, match="connection lost"):
        Reader(Broken(b""))


# --- signatures ---


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, SigningKey]:
    directory = tmp_path_factory.mktemp("keys")
    return {kind: SigningKey.make(directory, kind) for kind in ("rsa", "ec", "ed25519")}


@pytest.mark.parametrize("kind", ["rsa", "ec", "ed25519"])
def test_signed(keys: dict[str, SigningKey], kind: str) -> None:
    data = Artifact(sign=keys[kind].sign).build()
    everyone = [str(key.public) for key in keys.values()]
    reader = Reader(Pipe(data), verify_keys=everyone)
    assert reader.verified_by == str(keys[kind].public)
    assert reader.header.signed is True
    assert reader.digests == {"payload.bin": hashlib.sha256(PAYLOAD).hexdigest()}
    unchecked = Reader(Pipe(data))
    assert (unchecked.header.signed, unchecked.verified_by) == (True, None)


def test_signature_by_another_key(keys: dict[str, SigningKey]) -> None:
    data = Artifact(sign=keys["rsa"].sign).build()
    with pytest.raises(ArtifactError, match="signature is not valid for any configured key"):
        Reader(Pipe(data), verify_keys=[str(keys["ec"].public)])


def test_unsigned_with_keys(keys: dict[str, SigningKey]) -> None:
    with pytest.raises(ArtifactError, match=r"is not signed, but ArtifactVerifyKey is set \(sign it"):
        Reader(Pipe(Artifact().build()), verify_keys=[str(keys["ec"].public)])


def test_signature_comes_before_all_else(keys: dict[str, SigningKey]) -> None:
    """Nothing of a manifest or header is interpreted before its signature is known to be good."""
    data = Artifact(edit_manifest=lambda _: "nonsense", sign=keys["rsa"].sign).build()
    with pytest.raises(ArtifactError, match="signature is not valid"):
        Reader(Pipe(data), verify_keys=[str(keys["ec"].public)])


# --- what is refused ---


def swapped(first: str, second: str) -> Callable[[list[Entry]], list[Entry]]:
    def swap(members: list[Entry]) -> list[Entry]:
        names = [entry.name for entry in members]
        a, b = names.index(first), names.index(second)
        members[a], members[b] = members[b], members[a]
        return members

    return swap


def outer(change: Callable[[list[Entry]], list[Entry]], **fields: object) -> bytes:
    return tar(change(Artifact(**fields).members()))  # type: ignore[arg-type]


def with_payload(*entries: Entry, compression: str = "", **fields: object) -> bytes:
    return Artifact(data_entries=list(entries), compression=compression, **fields).build()  # type: ignore[arg-type]


PAYLOAD = b"payload " * 100
FILE = Entry("payload.bin", PAYLOAD)

HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing": (lambda: b"", "the artifact is cut off at byte 0"),
    "text": (lambda: b"<html>404</html>" * 100, "is not a tar archive at byte 0 (is this an artifact"),
    "empty tar": (lambda: END, "ends where version belongs"),
    "other tar": (
        lambda: tar([Entry("etc/passwd", b"x")]),
        "has 'etc/passwd' where version belongs (is this",
    ),
    "endless version": (
        lambda: Entry("version", claimed=4097).encode(),
        "has version of 4097 bytes; at most 4096",
    ),
    "version 1": (
        lambda: Artifact(version=b'{"format":"mender","version":1}').build(),
        "old format version 1",
    ),
    "version 2": (
        lambda: Artifact(version=b'{"format":"mender","version":2}').build(),
        "write it again with",
    ),
    "version 4": (
        lambda: Artifact(version=b'{"format":"mender","version":4}').build(),
        "format version 4; only",
    ),
    "version '3'": (
        lambda: Artifact(version=b'{"format":"mender","version":"3"}').build(),
        "version '3'; only",
    ),
    "version true": (lambda: Artifact(version=b'{"format":"mender","version":true}').build(), "version True"),
    "version missing": (lambda: Artifact(version=b'{"format":"mender"}').build(), "version None"),
    "other format": (lambda: Artifact(version=b'{"format":"x","version":3}').build(), "names another format"),
    "version no object": (lambda: Artifact(version=b"3").build(), "names another format"),
    "version no JSON": (lambda: Artifact(version=b"{").build(), "version is not valid JSON"),
    "version not UTF-8": (lambda: Artifact(version=b'{"\xff":1}').build(), "version is not valid JSON"),
    "version deeply nested": (lambda: Artifact(version=b"[" * 4000).build(), "version is not valid JSON"),
    "version twice": (lambda: outer(lambda m: [m[0], *m]), "has 'version' where manifest belongs"),
    "version changed": (
        lambda: outer(lambda m: replace(m, "version", data=b'{"format":"mender","version":3} ')),
        "wrong checksum of version",
    ),
    "manifest missing": (lambda: outer(lambda m: [m[0], *m[2:]]), "has 'header.tar' where manifest belongs"),
    "manifest before version": (lambda: outer(swapped("version", "manifest")), "'manifest' where version"),
    "endless manifest": (
        lambda: outer(lambda m: replace(m, "manifest", claimed=10 << 28)),
        "has manifest of 2684354560 bytes; at most 1048576",
    ),
    "endless signature": (
        lambda: outer(lambda m: [*m[:2], Entry("manifest.sig", claimed=1 << 20), *m[2:]]),
        "manifest.sig of 1048576 bytes",
    ),
    "two signatures": (
        lambda: outer(lambda m: [*m[:2], Entry("manifest.sig"), Entry("manifest.sig"), *m[2:]]),
        "has 'manifest.sig' where header.tar",
    ),
    "manifest empty": (
        lambda: Artifact(edit_manifest=lambda _: "").build(),
        "line 1 of the artifact's manifest",
    ),
    "manifest not UTF-8": (lambda: Artifact(edit_manifest=lambda _: b"\xff").build(), "not UTF-8 at byte 0"),
    "manifest upper case": (lambda: Artifact(edit_manifest=str.upper).build(), "is not '<sha256>  <name>'"),
    "manifest one space": (
        lambda: Artifact(edit_manifest=lambda text: text.replace("  ", " ")).build(),
        "line 1 of the artifact's manifest is not",
    ),
    "manifest CR LF": (
        lambda: Artifact(edit_manifest=lambda text: text.replace("\n", "\r\n")).build(),
        "line 1 of the artifact's manifest is not",
    ),
    "manifest empty line": (
        lambda: Artifact(edit_manifest=lambda text: text + "\n").build(),
        "line 4 of the",
    ),
    "manifest name too long": (
        lambda: Artifact(
            edit_manifest=lambda text: text + "0" * 64 + "  data/0000/" + "n" * 91 + "\n"
        ).build(),
        "line 4 of the artifact's manifest is not",
    ),
    "manifest without version": (
        lambda: Artifact(edit_manifest=lambda text: "".join(text.splitlines(True)[:2])).build(),
        "does not list version",
    ),
    "manifest without header": (
        lambda: Artifact(
            edit_manifest=lambda text: text.splitlines(True)[0] + text.splitlines(True)[2]
        ).build(),
        "does not list header.tar",
    ),
    "manifest entry twice": (
        lambda: Artifact(edit_manifest=lambda text: text + text.splitlines(True)[2]).build(),
        "lists version twice",
    ),
    "manifest with two headers": (
        lambda: Artifact(edit_manifest=lambda text: text + "0" * 64 + "  header.tar.gz\n").build(),
        "lists two headers",
    ),
    "manifest with a strange file": (
        lambda: Artifact(edit_manifest=lambda text: text + "0" * 64 + "  etc/passwd\n").build(),
        "lists 'etc/passwd', which is no part",
    ),
    "manifest with a second payload": (
        lambda: Artifact(edit_manifest=lambda text: text + "0" * 64 + "  data/0001/x\n").build(),
        "lists 'data/0001/x', which is no part",
    ),
    "manifest with dot-dot": (lambda: Artifact(files={"..": b""}).build(), "payload file named '..'"),
    "manifest with a path": (lambda: Artifact(files={"a/b": b""}).build(), "payload file named 'a/b'"),
    "manifest with a strange name": (
        lambda: Artifact(files={"a;b": b""}).build(),
        "payload file named 'a;b'",
    ),
    "manifest with a non-ASCII name": (lambda: Artifact(files={"\u00e4": b""}).build(), "payload file named"),
    "augmented manifest": (
        lambda: outer(lambda m: [*m[:2], Entry("manifest-augment", b"x"), *m[2:]]),
        "is augmented (manifest-augment), which is not supported",
    ),
    "augmented header": (
        lambda: outer(lambda m: [*m[:3], Entry("header-augment.tar.gz", b"x"), *m[3:]]),
        "is augmented (header-augment.tar.gz), which is not supported",
    ),
    "header missing": (lambda: outer(lambda m: [*m[:2], *m[3:]]), "has 'data/0000.tar' where header.tar"),
    "header twice": (lambda: outer(lambda m: [*m[:3], *m[2:]]), "has 'header.tar' where data/0000.tar"),
    "header after payload": (lambda: outer(swapped("header.tar", "data/0000.tar")), "where header.tar"),
    "header of another compression": (
        lambda: outer(lambda m: replace(m, "header.tar", name="header.tar.bz2")),
        "has 'header.tar.bz2' where header.tar (with .gz, .xz, .zst or without) belongs",
    ),
    "header compressed otherwise than named": (
        lambda: outer(lambda m: replace(m, "header.tar", name="header.tar.gz")),
        "header.tar.gz cannot be decompressed",
    ),
    "header changed": (
        lambda: outer(lambda m: replace(m, "header.tar", data=m[2].data + bytes(512))),
        "wrong checksum of header.tar: SHA-256 is",
    ),
    "header of 10 GiB": (
        lambda: tar(
            [
                *Artifact().members()[:2],
                Entry("", head=header("header.tar", b"\x80" + (10 << 30).to_bytes(11, "big"))),
            ]
        ),
        "has header.tar of 10737418240 bytes; at most 16777216",
    ),
    "payload missing": (lambda: outer(lambda m: m[:3]), "ends without its payload data/0000.tar"),
    "payload of another compression": (
        lambda: outer(lambda m: replace(m, "data/0000.tar", name="data/0000.tar.lz4")),
        "where data/0000.tar (with",
    ),
    "payload with another number": (
        lambda: outer(lambda m: replace(m, "data/0000.tar", name="data/0001.tar")),
        "where data/0000.tar (with",
    ),
    "second payload": (
        lambda: outer(lambda m: [*m, Entry("data/0001.tar", m[3].data)]),
        "has a second payload data/0001.tar",
    ),
    "same payload again": (lambda: outer(lambda m: [*m, m[3]]), "has a second payload data/0000.tar"),
    "member after the payload": (
        lambda: outer(lambda m: [*m, Entry("x", b"x")]),
        "has 'x' where the end belongs",
    ),
    "bytes after the end": (lambda: Artifact().build() + b"x", "the artifact goes on after its end"),
    "artifact after artifact": (lambda: Artifact().build() * 2, "two files joined together?"),
    "link in the outer tar": (
        lambda: outer(lambda m: replace(m, "data/0000.tar", kind=b"2")),
        "the artifact has 'data/0000.tar', which is a symbolic link",
    ),
    "payload changed": (
        lambda: with_payload(Entry("payload.bin", PAYLOAD[:-1] + b"x")),
        "wrong checksum of payload file payload.bin: SHA-256 is",
    ),
    "payload shorter": (
        lambda: with_payload(Entry("payload.bin", PAYLOAD[:-1])),
        "wrong checksum of payload file",
    ),
    "payload file empty": (lambda: with_payload(Entry("payload.bin")), "wrong checksum of payload file"),
    "payload file missing": (
        with_payload,
        "the payload lacks payload.bin, which the manifest lists",
    ),
    "payload file not listed": (
        lambda: with_payload(FILE, Entry("x", b"x")),
        "payload file 'x' is not listed",
    ),
    "payload file twice": (
        lambda: with_payload(FILE, FILE),
        "'payload.bin' is not listed in the manifest, or comes",
    ),
    "payload file with ./": (lambda: with_payload(Entry("./payload.bin", PAYLOAD)), "plain file names"),
    "payload file by number": (
        lambda: with_payload(Entry("data/0000/payload.bin", PAYLOAD)),
        "plain file names",
    ),
    "payload link": (
        lambda: with_payload(
            Entry("payload.bin", head=header("payload.bin", 0, kind=b"2", link=b"/dev/sda"))
        ),
        "data/0000.tar has 'payload.bin', which is a symbolic link",
    ),
    "payload device": (lambda: with_payload(Entry("payload.bin", kind=b"4")), "a block device"),
    "payload absolute": (lambda: with_payload(Entry("/etc/passwd", b"x")), "names must stay inside"),
    "payload dot-dot": (lambda: with_payload(Entry("../payload.bin", PAYLOAD)), "names must stay inside"),
    "payload dot-dot by PAX": (
        lambda: with_payload(Entry("", head=pax({"path": "../../etc/passwd"})), FILE),
        "names must stay inside",
    ),
    "payload claims 10 GiB": (
        lambda: with_payload(
            Entry("", PAYLOAD, head=header("payload.bin", b"\x80" + (10 << 30).to_bytes(11, "big")))
        ),
        "data/0000.tar is cut off at byte 2560, in payload.bin",
    ),
    "payload archive goes on": (
        lambda: outer(lambda m: replace(m, "data/0000.tar", data=m[3].data + b"x" * 512)),
        "data/0000.tar goes on after its end",
    ),
    "payload archive has no end": (
        lambda: outer(lambda m: replace(m, "data/0000.tar", data=m[3].data[:-1024])),
        "the header block at byte 1536",
    ),
    "junk after compressed payload": (
        lambda: outer(
            lambda m: replace(m, "data/0000.tar.gz", data=m[3].data + b"junk" * 10), compression=".gz"
        ),
        "data/0000.tar.gz cannot be decompressed",
    ),
    "zeros after compressed payload": (
        lambda: outer(
            lambda m: replace(m, "data/0000.tar.gz", data=gzip.compress(tar([FILE]) + bytes(2 << 20))),
            compression=".gz",
        ),
        "more than 1048576 bytes of padding",
    ),
    "empty payload with a file": (
        lambda: tar([*Artifact(payload_type=None).members()[:3], Entry("data/0000.tar", tar([FILE]))]),
        "has no payload type but a payload file payload.bin",
    ),
    "empty payload with a listed file": (
        lambda: tar(Artifact(payload_type=None).members()[:3]),
        "the payload lacks payload.bin",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_refused_with_the_reason(case: str) -> None:
    make, reason = HOSTILE[case]
    refuse(make(), reason)


@pytest.mark.parametrize("compression", COMPRESS)
def test_cut_off_at_every_boundary(compression: str) -> None:
    """Every block of the outer tar, every byte around it, and every byte of the compressed payload."""
    data = Artifact(compression=compression, header_compression="", scripts=SCRIPTS).build()
    for length in range(len(data)):
        if length % 512 in (0, 1, 511) or compression:
            with pytest.raises(ArtifactError, match="cut off"):
                install(data[:length])


@given(
    position=st.floats(0, 1, exclude_max=True),
    bit=st.integers(0, 7),
    compression=st.sampled_from([*COMPRESS]),
)
@settings(max_examples=300)
def test_a_flipped_bit_is_seen_or_harmless(position: float, bit: int, compression: str) -> None:
    """Either refused, or (padding, times, modes) what is read is exactly the same."""
    made = Artifact(compression=compression, scripts=SCRIPTS, meta_data=b"{}")
    data = bytearray(made.build())
    data[int(position * len(data))] ^= 1 << bit
    try:
        reader = Reader(Pipe(bytes(data)))
        files = {file.name: file.read(file.size) for file in reader.files()}
    except ArtifactError:
        return
    assert files == made.files
    assert reader.header.scripts == list(SCRIPTS.items())


@given(cut=st.floats(0, 1), insert=st.binary(min_size=1, max_size=600))
@settings(max_examples=200)
def test_inserted_bytes_never_change_what_is_read(cut: float, insert: bytes) -> None:
    data = Artifact(scripts=SCRIPTS).build()
    position = int(cut * len(data))
    try:
        files = install(data[:position] + insert + data[position:])
    except ArtifactError:
        return
    assert files == {"payload.bin": PAYLOAD}


@given(st.binary(max_size=2000))
def test_noise_is_an_artifact_error(data: bytes) -> None:
    with pytest.raises(ArtifactError):
        install(data)


# --- the header's documents ---

INFO = Artifact().info()
DEEP = b'{"payloads":' + b"[" * 100_000


def info(**fields: object) -> dict[str, object]:
    return {key: value for key, value in (INFO | fields).items() if value is not ...}


HEADER_INFO = {
    "no JSON": (b"x", "header-info is not valid JSON"),
    "empty": (b"", "header-info is not valid JSON"),
    "not UTF-8": (b'{"\xff": 1}', "header-info is not valid JSON"),
    "UTF-16": (json.dumps(INFO).encode("utf-16"), "header-info is not valid JSON"),
    "two documents": (json.dumps(INFO).encode() * 2, "header-info is not valid JSON"),
    "NaN": (b'{"payloads": NaN}', "NaN is no JSON number"),
    "deeply nested": (DEEP, "header-info is not valid JSON"),
    "endless number": (b'{"payloads": ' + b"1" * 10_000 + b"}", "header-info is not valid JSON"),
    "a list": (b"[]", "header-info is not a JSON object but a list of 0"),
    "no payloads": (info(payloads=...), "'payloads' in the artifact's header-info is missing"),
    "payloads null": (info(payloads=None), "'payloads' in the artifact's header-info is null"),
    "no payload": (info(payloads=[]), "is a list of 0; expected a list with exactly one payload"),
    "two payloads": (info(payloads=[{"type": "a"}, {"type": "b"}]), "is a list of 2; expected"),
    "payload a string": (info(payloads=["module"]), "header-info payloads is not a JSON object"),
    "payload without type": (info(payloads=[{}]), "'type' in the artifact's header-info payloads is missing"),
    "payload type empty": (info(payloads=[{"type": ""}]), "is the string ''; expected a string with text"),
    "payload type number": (info(payloads=[{"type": 1}]), "is a number; expected"),
    "payload type surrogate": (info(payloads=[{"type": "\ud800"}]), "is not valid Unicode"),
    "no provides": (
        info(artifact_provides=...),
        "'artifact_provides' in the artifact's header-info is missing",
    ),
    "provides a list": (info(artifact_provides=[]), "is a list of 0; expected an object"),
    "no name": (
        info(artifact_provides={}),
        "'artifact_name' in the artifact's header-info artifact_provides is",
    ),
    "empty name": (info(artifact_provides={"artifact_name": ""}), "expected a string with text"),
    "name number": (info(artifact_provides={"artifact_name": 7}), "is a number"),
    "name surrogate": (info(artifact_provides={"artifact_name": "\udfff"}), "is not valid Unicode"),
    "group null": (
        info(artifact_provides={"artifact_name": "n", "artifact_group": None}),
        "is null; expected a string",
    ),
    "no depends": (info(artifact_depends=...), "'artifact_depends' in the artifact's header-info is missing"),
    "no device type": (
        info(artifact_depends={}),
        "'device_type' in the artifact's header-info artifact_depends is",
    ),
    "empty device types": (
        info(artifact_depends={"device_type": []}),
        "expected a list with at least one string",
    ),
    "device type a string": (info(artifact_depends={"device_type": "a"}), "expected a list of strings"),
    "device types of numbers": (info(artifact_depends={"device_type": [1]}), "expected a list of strings"),
    "empty names": (
        info(artifact_depends={"device_type": ["a"], "artifact_name": []}),
        "expected a list with at least one string",
    ),
    "empty groups": (
        info(artifact_depends={"device_type": ["a"], "artifact_group": []}),
        "expected a list with at least one string",
    ),
}


@pytest.mark.parametrize("case", HEADER_INFO)
def test_header_info_refused(case: str) -> None:
    document, reason = HEADER_INFO[case]
    refuse(Artifact(header_info=document).build(), reason)


TYPE_INFO = {
    "no JSON": (b"", "type-info is not valid JSON"),
    "null": (b"null", "type-info is not a JSON object but null"),
    "no type": ({}, "'type' in the artifact's type-info is missing; expected the payload type 'module'"),
    "other type": (
        {"type": "other"},
        "is the string 'other'; expected the payload type 'module' of header-info",
    ),
    "type null": ({"type": None}, "is null; expected the payload type"),
    "provides a list": ({"type": "module", "artifact_provides": []}, "expected an object"),
    "provides a number": (
        {"type": "module", "artifact_provides": {"a": 1}},
        "'a' in the artifact's type-info",
    ),
    "provides a list inside": ({"type": "module", "artifact_provides": {"a": ["b"]}}, "expected a string"),
    "provides a surrogate key": ({"type": "module", "artifact_provides": {"\ud800": "b"}}, "valid Unicode"),
    "depends null": ({"type": "module", "artifact_depends": None}, "is null; expected an object"),
    "depends a number": ({"type": "module", "artifact_depends": {"a": 1}}, "expected a list of strings"),
    "depends nothing": ({"type": "module", "artifact_depends": {"a": []}}, "with at least one string"),
    "depends in conflict": (
        {"type": "module", "artifact_depends": {"device_type": "other"}},
        "nothing can satisfy the artifact: header-info asks for device_type virt64, type-info for other",
    ),
    "clears null": (
        {"type": "module", "clears_artifact_provides": None},
        "is null; expected a list of strings",
    ),
    "clears a string": ({"type": "module", "clears_artifact_provides": "*"}, "expected a list of strings"),
}


@pytest.mark.parametrize("case", TYPE_INFO)
def test_type_info_refused(case: str) -> None:
    document, reason = TYPE_INFO[case]
    refuse(Artifact(type_info=document).build(), reason)


def test_type_info_of_an_empty_payload() -> None:
    assert install(Artifact(payload_type=None, files={}, type_info={"type": None}).build()) == {}
    refuse(Artifact(payload_type=None, files={}, type_info={}).build(), "'type' in the artifact's type-info")
    refuse(Artifact(payload_type=None, files={}, meta_data=b"{}").build(), "has meta-data but no payload")


@pytest.mark.parametrize("meta_data", [b" ", b"null", b"[]", b"1", b"{", b'{"a":Infinity}', b"\xff"])
def test_meta_data_refused(meta_data: bytes) -> None:
    refuse(Artifact(meta_data=meta_data).build(), "the artifact's meta-data is not ")


HEAD = Entry("header-info", json.dumps(INFO).encode())
TYPE = Entry("headers/0000/type-info", b'{"type":"module"}')
META = Entry("headers/0000/meta-data", b"{}")
SCRIPT = Entry("scripts/ArtifactInstall_Enter_10", b"#!/bin/sh\n")

HEADER_MEMBERS = {
    "nothing": ([], "header has its end where header-info belongs"),
    "no header-info": ([TYPE], "has 'headers/0000/type-info' where header-info belongs"),
    "no type-info": ([HEAD], "has its end where headers/0000/type-info belongs"),
    "scripts first": ([SCRIPT, HEAD, TYPE], "where header-info belongs"),
    "scripts last": ([HEAD, TYPE, SCRIPT], "where the end belongs"),
    "scripts before meta-data": ([HEAD, TYPE, SCRIPT, META], "where the end belongs"),
    "meta-data first": ([HEAD, META, TYPE], "where headers/0000/type-info belongs"),
    "header-info twice": ([HEAD, HEAD, TYPE], "where headers/0000/type-info belongs"),
    "type-info twice": ([HEAD, TYPE, TYPE], "where the end belongs"),
    "meta-data twice": ([HEAD, TYPE, META, META], "where the end belongs"),
    "second index": ([HEAD, TYPE, META, Entry("headers/0001/type-info", b"{}")], "where the end belongs"),
    "other index": ([HEAD, Entry("headers/0001/type-info", b"{}")], "where headers/0000/type-info belongs"),
    "checksums of version 2": ([HEAD, TYPE, Entry("headers/0000/files", b"{}")], "where the end belongs"),
    "script twice": ([HEAD, SCRIPT, SCRIPT, TYPE], "has the state script ArtifactInstall_Enter_10 twice"),
    "script link": ([HEAD, Entry(SCRIPT.name, kind=b"2"), TYPE], "which is a symbolic link"),
    "header-info too large": ([Entry("header-info", b" " * (1 << 20) + b"x")], "at most 1048576"),
    "type-info too large": ([HEAD, Entry(TYPE.name, b" " * (1 << 20) + b"x")], "at most 1048576"),
    "meta-data too large": ([HEAD, TYPE, Entry(META.name, b" " * (1 << 20) + b"x")], "at most 1048576"),
    "too many scripts": (
        [HEAD, *(Entry(f"scripts/ArtifactInstall_Enter_10_{number}") for number in range(1001)), TYPE],
        "more than 1000 state scripts",
    ),
}


@pytest.mark.parametrize("case", HEADER_MEMBERS)
def test_header_members_refused(case: str) -> None:
    entries, reason = HEADER_MEMBERS[case]
    refuse(Artifact(header_entries=entries).build(), reason)


def test_header_archive_must_end() -> None:
    for broken, reason in (
        (tar([HEAD, TYPE], end=b""), "header.tar is cut off"),
        (tar([HEAD, TYPE]) + tar([HEAD]), "header.tar goes on after its end"),
    ):
        members = Artifact().members()
        digest = hashlib.sha256(members[2].data).hexdigest().encode()
        manifest = members[1].data.replace(digest, hashlib.sha256(broken).hexdigest().encode())
        members = replace(replace(members, "header.tar", data=broken), "manifest", data=manifest)
        refuse(tar(members), reason)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "../../etc/init.d/x",
        "ArtifactInstall_Enter_10/../../x",
        "ArtifactInstall_Enter_10_../x",
        "ArtifactInstall_Enter",
        "ArtifactInstall_Enter_1",
        "ArtifactInstall_Enter_100",
        "ArtifactInstall_Enter_10_a b",
        "ArtifactInstall_Enter_10_",
        "ArtifactInstall_Enter_10_x\n",
        "ArtifactInstall_Enter_\u0661\u0662",
        "ArtifactInstall_Begin_10",
        "Download_Enter_10",
        "Idle_Enter_10",
        "Sync_Leave_10",
        "artifactinstall_enter_10",
    ],
)
def test_script_names_refused(name: str) -> None:
    message = refuse(Artifact(scripts={name: b""}).build(), "scripts/")
    assert "has a state script named" in message or "names must stay inside" in message


@pytest.mark.parametrize("state", ["Install", "Reboot", "Rollback", "RollbackReboot", "Commit", "Failure"])
@pytest.mark.parametrize("action", ["Enter", "Leave", "Error"])
def test_script_names_accepted(state: str, action: str) -> None:
    names = [f"Artifact{state}_{action}_00", f"Artifact{state}_{action}_99_x.sh-\u00fc"]
    read = Reader(Pipe(Artifact(scripts=dict.fromkeys(names, b"x")).build())).header
    assert [name for name, _ in read.scripts] == names


# --- memory ---

CHILD = """
import sys
from update_agent.artifact import Reader
from update_agent.errors import ArtifactError

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

view = memoryview(bytearray(1 << 20))
before, total, reason = peak(), 0, ""
try:
    for file in Reader(open(sys.argv[1], "rb", buffering=0)).files():
        while got := file.readinto(view):
            total += got
except ArtifactError as error:
    reason = str(error)
print(before, peak(), total, reason)
"""


def measure(path: Path) -> tuple[int, int, str]:
    """KiB more than after the imports, payload bytes read, and why it was refused."""
    environment = os.environ | {"PYTHONPATH": str(Path(update_agent.__file__).parent.parent)}
    done = subprocess.run(
        [sys.executable, "-S", "-c", CHILD, str(path)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    before, peak, total, reason = done.stdout.rstrip("\n").split(" ", 3)
    return int(peak) - int(before), int(total), reason


@pytest.mark.parametrize(
    ("compression", "limit_kib"), [("", 2048), (".gz", 4096), (".xz", 8192), (".zst", 8192)]
)
def test_a_large_payload_needs_little_memory(tmp_path: Path, compression: str, limit_kib: int) -> None:
    """256 MiB, most of it zeros: a bomb by ratio, and no reason to refuse."""
    content = bytes(255 << 20) + random.Random(3).randbytes(1 << 20)
    path = tmp_path / "large.mender"
    path.write_bytes(Artifact(files={"image": content}, compression=compression).build())
    grown, total, reason = measure(path)
    assert (total, reason) == (256 << 20, "")
    assert grown < limit_kib


@pytest.mark.parametrize("compression", [".gz", ".xz", ".zst"])
@pytest.mark.parametrize("member", ["header-info", "scripts/ArtifactInstall_Enter_10"])
def test_a_bomb_in_the_header_is_refused_small(tmp_path: Path, compression: str, member: str) -> None:
    entries = [HEAD, Entry("scripts/ArtifactInstall_Enter_10", bytes(64 << 20)), TYPE]
    if member == "header-info":
        entries = [Entry("header-info", bytes(64 << 20)), TYPE]
    path = tmp_path / "bomb.mender"
    path.write_bytes(Artifact(header_entries=entries, header_compression=compression).build())
    grown, _, reason = measure(path)
    assert "at most 1048576" in reason or "unpacks to more than 33554432 bytes" in reason
    assert grown < 8192


def test_the_largest_header_stays_below_the_stated_bound(tmp_path: Path) -> None:
    """What is packed and what is unpacked, each held once."""
    noise = random.Random(4).randbytes(15 << 20)
    scripts = {"ArtifactInstall_Enter_10": noise, "ArtifactInstall_Enter_11": bytes(16 << 20)}
    path = tmp_path / "header.mender"
    path.write_bytes(Artifact(scripts=scripts, header_compression=".gz").build())
    grown, total, reason = measure(path)
    assert (total, reason) == (len(PAYLOAD), "")
    assert grown < (module.MAX_HEADER_BYTES + MAX_UNPACKED_BYTES >> 10) + 4096


def test_standard_tar_reads_what_the_tests_write() -> None:
    """The test support itself: its artifacts are tar archives in the eyes of others."""
    with tarfile.open(fileobj=io.BytesIO(Artifact(scripts=SCRIPTS).build())) as archive:
        assert archive.getnames() == ["version", "manifest", "header.tar", "data/0000.tar"]
        inner = archive.extractfile("header.tar")
        assert inner is not None
        with tarfile.open(fileobj=inner) as names:
            assert len(names.getnames()) == 4
