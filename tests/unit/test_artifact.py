# SPDX-License-Identifier: Apache-2.0
"""The artifact reader: what it reads, and whose signature it takes."""

from __future__ import annotations

import hashlib
import io
import random
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.artifacts import (
    COMPRESS,
    END,
    Artifact,
    Entry,
    SigningKey,
    tar,
)
from tests.support.hostile import PAYLOAD
from tests.support.reading import Pipe, install

from update_agent.artifact import Reader
from update_agent.errors import ArtifactError, TransferError

SCRIPTS = {"ArtifactInstall_Enter_10_a": b"#!/bin/sh\n", "ArtifactCommit_Error_99": b"#!/bin/sh\nexit 1\n"}


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


@pytest.mark.parametrize("state", ["Install", "Reboot", "Rollback", "RollbackReboot", "Commit", "Failure"])
@pytest.mark.parametrize("action", ["Enter", "Leave", "Error"])
def test_script_names_accepted(state: str, action: str) -> None:
    names = [f"Artifact{state}_{action}_00", f"Artifact{state}_{action}_99_x.sh-\u00fc"]
    read = Reader(Pipe(Artifact(scripts=dict.fromkeys(names, b"x")).build())).header
    assert [name for name, _ in read.scripts] == names


def test_standard_tar_reads_what_the_tests_write() -> None:
    """The test support itself: its artifacts are tar archives in the eyes of others."""
    with tarfile.open(fileobj=io.BytesIO(Artifact(scripts=SCRIPTS).build())) as archive:
        assert archive.getnames() == ["version", "manifest", "header.tar", "data/0000.tar"]
        inner = archive.extractfile("header.tar")
        assert inner is not None
        with tarfile.open(fileobj=inner) as names:
            assert len(names.getnames()) == 4
