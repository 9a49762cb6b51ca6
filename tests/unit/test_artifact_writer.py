# SPDX-License-Identifier: Apache-2.0
"""The desk side of artifacts: write, sign, read, dump; the same bytes every time; why it refuses."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import random
from pathlib import Path

import pytest
import zstandard
from tests.support.artifacts import Artifact, SigningKey, header

from update_agent.artifact import Reader
from update_agent.errors import ArtifactError
from update_tools import packing
from update_tools.__main__ import main
from update_tools.artifact import Contents, Packing, Software, sign, with_software, write
from update_tools.keys import PrivateKey

IMAGE = random.Random(5).randbytes(400_000) + bytes(3_000_000)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.ext4"
    path.write_bytes(IMAGE)
    return path


@pytest.fixture
def contents(image: Path) -> Contents:
    script = image.parent / "ArtifactInstall_Enter_10_a"
    script.write_text("#!/bin/sh\n")
    return Contents(
        "release-2",
        ["virt64"],
        "module",
        files=[image],
        scripts=[script],
        meta_data=b"{}",
        provides={"a": "b"},
    )


def read_back(path: Path, **options: object) -> tuple[Reader, dict[str, bytes]]:
    with path.open("rb") as stream:
        reader = Reader(stream, **options)  # type: ignore[arg-type]
        return reader, {file.name: file.read(file.size) for file in reader.files()}


@pytest.mark.parametrize("compression", ["none", "gzip", "xz", "lzma", "zstd"])
def test_device_reads_what_was_written(contents: Contents, tmp_path: Path, compression: str) -> None:
    path = tmp_path / "a.mender"
    write(contents, path, Packing(compression))
    reader, files = read_back(path)
    assert files == {"image.ext4": IMAGE}
    assert reader.header.name == "release-2"
    assert reader.header.scripts == [("ArtifactInstall_Enter_10_a", b"#!/bin/sh\n")]
    assert reader.header.meta_data == b"{}"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [
        "ArtifactInstall_Enter_10_a",
        "a.mender",
        "image.ext4",
    ]


@pytest.mark.parametrize("size", [0, 1, 3_999, 4_000, 4_001, 41_234])
def test_gzip_in_members(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """The same bytes whatever the pieces it is written in and the number of threads."""
    monkeypatch.setattr(packing, "MEMBER_BYTES", 4_000)
    plain = (IMAGE * 2)[:size]
    results = set()
    for threads, piece in ((1, 1_000), (3, 9_000), (7, 1 << 20)):
        target = io.BytesIO()
        pack = packing.Gzip(target, 6, threads)
        for at in range(0, size, piece):
            pack.write(plain[at : at + piece])
        pack.close()
        assert gzip.decompress(target.getvalue()) == plain
        results.add(target.getvalue())
    assert len(results) == 1


def test_gzip_bytes_are_those_of_the_pinned_libdeflate() -> None:
    """Another version may make others: then this fails, and releases made with it are not reproduced."""
    target = io.BytesIO()
    pack = packing.Gzip(target, packing.DEFAULT_LEVELS["gzip"])
    pack.write(b"".join(b"%d %x\n" % (n, n * n) for n in range(20_000)))
    pack.close()
    assert (
        hashlib.sha256(target.getvalue()).hexdigest()
        == "b98ac9013a536f89f75b46c00d08313e9060649926d06585c85677a8ed495862"
    )


def test_gzip_tells_what_went_wrong_in_a_thread() -> None:
    pack = packing.Gzip(io.BytesIO(), 13)
    pack.write(b"x")
    with pytest.raises(ValueError, match="level"):
        pack.close()


def test_file_that_grows_while_it_is_read(contents: Contents, tmp_path: Path) -> None:
    def grow(_: int) -> None:
        with contents.files[0].open("ab") as file:
            file.write(b"more")

    for compression in ("none", "gzip"):
        with pytest.raises(ArtifactError, match="changed while it was read"):
            write(contents, tmp_path / "a.mender", Packing(compression), progress=grow)
        assert not (tmp_path / "a.mender").exists()


@pytest.mark.parametrize("chosen", [Packing("none"), Packing("gzip"), Packing("xz", 1), Packing("zstd", 3)])
def test_same_input_same_bytes(contents: Contents, tmp_path: Path, chosen: Packing) -> None:
    """Whatever time it is, who asks, and under which umask the files were made."""
    write(contents, tmp_path / "one", chosen)
    for path in (*contents.files, *contents.scripts):
        os.utime(path, (1, 1))
        path.chmod(0o640)
        os.chown(path, os.getuid(), os.getgid())
    contents.scripts[0].chmod(0o600)
    write(contents, tmp_path / "two", chosen)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    write(contents, tmp_path / "three", chosen, mtime=1_700_000_000)
    assert (tmp_path / "one").read_bytes() != (tmp_path / "three").read_bytes()


@pytest.mark.parametrize("level", [1, 9])
def test_zstd_bytes_do_not_depend_on_the_number_of_cores(level: int) -> None:
    one, many = (
        zstandard.ZstdCompressor(level=level, threads=threads).compress(IMAGE * 3) for threads in (1, 4)
    )
    assert one == many


def test_source_date_epoch(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["artifact", "write", "rootfs-image", "-n", "r", "-t", "t", "-f", str(image), "-o"]
    outputs = [image.parent / name for name in ("one", "two", "three")]
    for output, epoch in zip(outputs, ["0", "1700000000", "1700000000"], strict=True):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", epoch)
        assert main([*arguments, str(output)]) == 0
    one, two, three = (output.read_bytes() for output in outputs)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "")  # as if it were not set
    assert main([*arguments, str(image.parent / "four")]) == 0
    assert (image.parent / "four").read_bytes() == one
    assert one != two
    assert two == three


def test_software_version_of_a_root_file_system(image: Path, tmp_path: Path) -> None:
    base = Contents("release-2", ["virt64"], "rootfs-image", files=[image])
    write(with_software(base, Software()), tmp_path / "a.mender")
    read = read_back(tmp_path / "a.mender")[0].header
    checksum = hashlib.sha256(IMAGE).hexdigest()
    assert read.provides == {"rootfs-image.version": "release-2", "rootfs-image.checksum": checksum}
    assert read.clears == ["artifact_group", "rootfs_image_checksum", "rootfs-image.*"]


@pytest.mark.parametrize("kind", ["rsa", "ec", "ed25519"])
def test_signed_at_once_and_afterwards(contents: Contents, tmp_path: Path, kind: str) -> None:
    pair = SigningKey.make(tmp_path, kind)
    key = PrivateKey.load(pair.private)
    write(contents, tmp_path / "at-once", key=key)
    write(contents, tmp_path / "plain")
    sign(tmp_path / "plain", tmp_path / "afterwards", key)
    for name in ("at-once", "afterwards"):
        reader, files = read_back(tmp_path / name, verify_keys=[str(pair.public)])
        assert reader.verified_by == str(pair.public)
        assert files == {"image.ext4": IMAGE}
    if kind != "ec":  # ECDSA signatures contain a random number
        assert (tmp_path / "at-once").read_bytes() == (tmp_path / "afterwards").read_bytes()
    with pytest.raises(ArtifactError, match=r"is signed already \(replace the signature with --force\)"):
        sign(tmp_path / "at-once", tmp_path / "at-once", key)
    sign(tmp_path / "at-once", tmp_path / "at-once", key, force=True)
    assert read_back(tmp_path / "at-once", verify_keys=[str(pair.public)])[1] == files


@pytest.mark.parametrize(
    ("kind", "message"), [("rsa1024", "1024 bits is too short"), ("p384", "of a kind that devices do not")]
)
def test_keys_that_devices_refuse(tmp_path: Path, kind: str, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        PrivateKey.load(SigningKey.make(tmp_path, kind).private)


def test_keys_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"missing\.pem cannot be read: No such file"):
        PrivateKey.load(tmp_path / "missing.pem")
    (tmp_path / "key.pem").write_text("no key")
    with pytest.raises(ArtifactError, match=r"key\.pem is no private key"):
        PrivateKey.load(tmp_path / "key.pem")


def changed(contents: Contents, **fields: object) -> Contents:
    return Contents(**{**vars(contents), **fields})


REFUSED = {
    "no name": ({"name": ""}, "expected a string with text"),
    "no device type": ({"device_types": []}, "expected a list with at least one string"),
    "an empty device type": ({"device_types": ["x", ""]}, "is the variable in -t set?"),
    "a payload type that is a path": ({"payload_type": "a/b"}, "cannot be the name of an update module"),
    "a payload type that is a directory": ({"payload_type": ".."}, "cannot be the name of an update module"),
    "no payload type": ({"payload_type": ""}, "expected a string with text"),
    "meta-data no object": ({"meta_data": b"[]"}, "meta-data is not a JSON object"),
    "bootstrap with files": ({"payload_type": None}, "has no files, scripts or meta-data"),
    "no image": ({"payload_type": "rootfs-image", "files": []}, "a rootfs-image is one file, not 0"),
    "conflicting depends": ({"depends": {"device_type": "x"}}, "nothing can satisfy the artifact"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_and_nothing_left_behind(contents: Contents, tmp_path: Path, case: str) -> None:
    fields, message = REFUSED[case]
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ArtifactError) as caught:
        write(changed(contents, **fields), tmp_path / "a.mender")
    assert message in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before


def test_files_refused(contents: Contents, tmp_path: Path) -> None:
    bad_name = tmp_path / "a b"
    bad_name.write_text("x")
    (tmp_path / "d").mkdir()
    same = tmp_path / "d" / "image.ext4"
    same.write_text("x")
    bad_script = tmp_path / "Download_Enter_10"
    bad_script.write_text("x")
    fifo = tmp_path / "ArtifactInstall_Enter_10"
    os.mkfifo(fifo)
    empty = tmp_path / "empty.ext4"
    empty.touch()
    for fields, message in (
        ({"files": [bad_name]}, "payload file named 'a b'"),
        ({"files": [*contents.files, same]}, "two files are named image.ext4"),
        ({"files": [tmp_path / "missing"]}, "cannot read .*missing: No such file"),
        ({"files": [Path("/dev/null")]}, "/dev/null is not a regular file"),
        ({"files": [fifo]}, f"{fifo} is not a regular file"),
        ({"scripts": [fifo]}, f"{fifo} is not a regular file"),
        ({"payload_type": "rootfs-image", "files": [empty], "meta_data": None}, "empty.ext4 is empty"),
        ({"scripts": [bad_script]}, "state script named 'scripts/Download_Enter_10'"),
    ):
        with pytest.raises(ArtifactError, match=message):
            write(changed(contents, **fields), tmp_path / "a.mender")
    with pytest.raises(ArtifactError, match=r"cannot write .*a\.mender: No such file"):
        write(contents, tmp_path / "nowhere" / "a.mender")


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (Packing("bzip2"), "unknown compression 'bzip2' .*none, gzip, xz, lzma, zstd"),
        (Packing("gzip", 13), "gzip has no level 13"),
        (Packing("gzip", 0), "gzip has no level 0"),
        (Packing("xz", 10), "xz has no level 10"),
        (Packing("zstd", 23), "zstd has no level 23"),
    ],
)
def test_packing_refused(contents: Contents, tmp_path: Path, chosen: Packing, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        write(contents, tmp_path / "a.mender", chosen)


# --- the command line ---


def test_read_shows_what_is_in_it(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = image.parent / "a.mender"
    (image.parent / "scripts").mkdir()
    (image.parent / "scripts" / "ArtifactCommit_Enter_50").write_text("#!/bin/sh\n")
    arguments = ["-n", "release-2", "-t", "a", "-t", "b", "-T", "app", "-f", str(image), "-d", "modem:3"]
    scripts = ["-s", str(image.parent / "scripts")]
    assert main(["artifact", "write", "module-image", *arguments, *scripts, "-o", str(path)]) == 0
    assert "a.mender: release-2, " in capsys.readouterr().out
    assert main(["artifact", "read", str(path)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "Name:           release-2",
        "Payload type:   app",
        "Device types:   a",
        "                b",
        "Signed:         no",
        "State scripts:  ArtifactCommit_Enter_50",
        "Depends:        modem: 3",
        "Provides:       rootfs-image.app.version: release-2",
        "Clears:         rootfs-image.app.*",
        f"Files:          image.ext4  sha256 {hashlib.sha256(IMAGE).hexdigest()}",
    ]


def test_dump(image: Path) -> None:
    path, target = image.parent / "a.mender", image.parent / "out"
    path.write_bytes(
        Artifact(
            files={"x": b"1", "y": b""}, scripts={"ArtifactCommit_Enter_50": b"#!"}, meta_data=b"{}"
        ).build()
    )
    assert main(["artifact", "dump", str(path), str(target)]) == 0
    names = sorted(str(entry.relative_to(target)) for entry in target.rglob("*") if entry.is_file())
    assert names == [
        "files/x",
        "files/y",
        "header-info",
        "meta-data",
        "scripts/ArtifactCommit_Enter_50",
        "type-info",
    ]
    assert (target / "files" / "x").read_bytes() == b"1"
    assert os.access(target / "scripts" / "ArtifactCommit_Enter_50", os.X_OK)
    assert main(["artifact", "dump", str(path), str(target)]) == 2  # not empty


def test_exit_codes_and_messages(image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = tmp_path / "good.mender", tmp_path / "bad.mender"
    good.write_bytes(Artifact().build())
    bad.write_bytes(Artifact().build()[:-2000])
    key = SigningKey.make(tmp_path, "ec")
    assert main(["artifact", "validate", str(good)]) == 0
    assert "good.mender: valid, 1 payload file(s), 800 bytes" in capsys.readouterr().out
    for arguments, message in (
        (["validate", str(bad)], "is cut off at byte"),
        (["validate", str(good), "-k", str(key.public)], "is not signed"),
        (["read", str(tmp_path / "missing")], "missing: No such file"),
        (["read", str(image)], "is not a tar archive"),
        (["sign", str(image), "-k", str(key.private)], "is not a tar archive"),
        (["write", "rootfs-image", "-n", "r", "-t", "t", "-f", "x", "-o", "y", "-p", "nocolon"], "KEY:VALUE"),
        (
            ["write", "rootfs-image", "-n", "r", "-t", "t", "-f", "x", "-o", "y", "-d", "a:1", "-d", "a:2"],
            "--depends a:2: a has the value 1 already",
        ),
        (["write", "rootfs-image", "-n", "r"], "are required: -t/--device-type"),
    ):
        assert main(["artifact", *arguments]) == 2
        assert message in capsys.readouterr().err
    assert image.read_bytes() == IMAGE


def test_ed25519_warns(contents: Contents, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(contents, tmp_path / "a.mender")
    key = SigningKey.make(tmp_path, "ed25519")
    assert main(["artifact", "sign", str(tmp_path / "a.mender"), "-k", str(key.private)]) == 0
    assert "only update-agent accepts its signatures" in capsys.readouterr().err


def test_hand_made_extension_headers_survive_signing(tmp_path: Path) -> None:
    """Offsets are taken from what was read, not from what is usual."""
    comment = header("pax", 13, kind=b"g") + b"13 comment=x\n".ljust(512, b"\0")
    path = tmp_path / "a.mender"
    data = Artifact().build()
    path.write_bytes(comment + data)
    pair = SigningKey.make(tmp_path, "rsa")
    sign(path, path, PrivateKey.load(pair.private))
    signed = path.read_bytes()
    assert signed.startswith(comment)
    assert Reader(io.BytesIO(signed), verify_keys=[str(pair.public)]).header.signed
