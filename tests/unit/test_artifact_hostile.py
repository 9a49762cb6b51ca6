# SPDX-License-Identifier: Apache-2.0
"""Artifacts that are refused: each with its reason, in little memory, whatever is done to them."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.artifacts import COMPRESS, Artifact, Entry, replace, tar
from tests.support.hostile import CASES, FILE, HEAD, PAYLOAD, TYPE, raw_header, raw_payload
from tests.support.reading import Pipe, install, refuse

import update_agent
from update_agent import artifact as module
from update_agent.artifact import Reader
from update_agent.errors import ArtifactError
from update_agent.header import MAX_UNPACKED_BYTES

SCRIPTS = {"ArtifactInstall_Enter_10_a": b"#!/bin/sh\n", "ArtifactCommit_Error_99": b"#!/bin/sh\nexit 1\n"}


@pytest.mark.parametrize("case", CASES)
def test_refused_with_the_reason(case: str) -> None:
    make, reason = CASES[case]
    refuse(make(), reason)


@pytest.mark.parametrize("compression", COMPRESS)
def test_cut_off_at_every_boundary(compression: str) -> None:
    """Every block of the outer tar, every byte around it, and every byte of the compressed payload."""
    data = Artifact(compression=compression, header_compression="", scripts=SCRIPTS).build()
    for length in range(len(data)):
        if length % 512 in (0, 1, 511) or compression:
            with pytest.raises(ArtifactError, match="cut off"):
                install(data[:length])


@pytest.mark.parametrize("compression", COMPRESS)
def test_cut_off_at_every_block_inside(compression: str) -> None:
    """The archives in the artifact end early, while everything around them and every checksum is right."""
    made = Artifact(scripts=SCRIPTS, meta_data=b"{}", files={"a": b"a" * 700, "b": b"b"})
    pack = COMPRESS[compression]
    whole = tar(made.header_members())
    for length in range(0, len(whole), 512):
        with pytest.raises(ArtifactError, match=r"header.*is cut off at byte"):
            install(raw_header(pack(whole[:length]), compression))
    members = replace(made.members(), "data/0000.tar", name=f"data/0000.tar{compression}")
    whole = tar([Entry("a", b"a" * 700), Entry("b", b"b")])
    for length in range(0, len(whole), 512):
        cut = replace(members, f"data/0000.tar{compression}", data=pack(whole[:length]))
        with pytest.raises(ArtifactError, match=r"data/0000.*is cut off at byte"):
            install(tar(cut))


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
def test_pieces_that_make_one_archive_are_one(suffix: str) -> None:
    """As parallel compressors write them: no reason to refuse."""
    pack = COMPRESS[suffix]
    header, payload = tar([HEAD, TYPE]), tar([FILE])
    assert install(raw_header(pack(header[:700]) + pack(header[700:]), suffix)) == {FILE.name: PAYLOAD}
    assert install(raw_payload(pack(payload[:700]) + pack(payload[700:]), suffix)) == {FILE.name: PAYLOAD}


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


def test_type_info_of_an_empty_payload() -> None:
    assert install(Artifact(payload_type=None, files={}, type_info={"type": None}).build()) == {}
    refuse(Artifact(payload_type=None, files={}, type_info={}).build(), "'type' in the artifact's type-info")
    refuse(Artifact(payload_type=None, files={}, meta_data=b"{}").build(), "has meta-data but no payload")


@pytest.mark.parametrize("meta_data", [b" ", b"null", b"[]", b"1", b"{", b'{"a":Infinity}', b"\xff"])
def test_meta_data_refused(meta_data: bytes) -> None:
    refuse(Artifact(meta_data=meta_data).build(), "the artifact's meta-data is not ")


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


EVERY = """
import os, resource, sys
from update_agent.artifact import Reader
from update_agent.errors import ArtifactError

with open("/proc/self/statm") as statm:
    size = int(statm.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + int(sys.argv[2]),) * 2)
view = memoryview(bytearray(1 << 20))
for name in sorted(os.listdir(sys.argv[1])):
    try:
        with open(os.path.join(sys.argv[1], name), "rb", buffering=0) as file:
            for part in Reader(file).files():
                while part.readinto(view):
                    pass
    except ArtifactError:
        continue
    print(name, "was not refused")
"""
BOUND_BYTES = module.MAX_HEADER_BYTES + MAX_UNPACKED_BYTES + (8 << 20)


def test_no_case_needs_more_memory_than_the_stated_bound(tmp_path: Path) -> None:
    """A process that cannot get more refuses all of them, one after the other, and not for lack of memory."""
    for number, (make, _) in enumerate(CASES.values()):
        (tmp_path / f"{number:03}").write_bytes(make())
    done = subprocess.run(
        [sys.executable, "-S", "-c", EVERY, str(tmp_path), str(BOUND_BYTES)],
        env=os.environ | {"PYTHONPATH": str(Path(update_agent.__file__).parent.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


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
