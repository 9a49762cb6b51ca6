# SPDX-License-Identifier: Apache-2.0
"""What a payload's way onto the medium promises: content, no needless write, every fault seen.

The medium is a file on a disk (O_DIRECT), a file on a tmpfs (which may refuse it), or a loop device.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from update_agent import medium
from update_agent.errors import SlotError
from update_agent.medium import COMPARE_BYTES, SAMPLE_EVERY_BYTES, Medium, Volume
from update_agent.ring import BLOCK_BYTES, aligned

MIB = 1 << 20


class File:
    """A file as medium."""

    def __init__(self, path: Path, *, direct: bool = True) -> None:
        self.path = path
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT)
        self.medium = Medium(self.fd, path.name)
        if not direct:
            self.medium._set_direct(False)

    def put(self, data: bytes) -> None:
        block = aligned(BLOCK_BYTES)
        for position in range(0, len(data), BLOCK_BYTES):
            part = data[position : position + BLOCK_BYTES]
            block[: len(part)] = part
            self.medium.take(block[: len(part)], position)
        self.medium.finish(hashlib.sha256(data).hexdigest())


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A directory on a file system that takes O_DIRECT."""
    path = tmp_path / "probe"
    path.write_bytes(bytes(4096))
    fd = os.open(path, os.O_RDWR)
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_DIRECT)
    except OSError:
        pytest.skip("the temporary directory takes no O_DIRECT")
    finally:
        os.close(fd)
    return tmp_path


def patterned(size: int, seed: int = 1) -> bytes:
    """Every 4 KiB differ from all others."""
    return b"".join(hashlib.sha256(b"%d %d" % (seed, n)).digest() * 128 for n in range(-(-size // 4096)))[
        :size
    ]


SIZES = st.one_of(
    st.integers(0, 3 * COMPARE_BYTES),
    st.sampled_from([BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, MIB + 512, 2 * MIB + 4096, 3 * MIB - 1]),
)


@pytest.mark.parametrize("direct", [True, False])
@given(
    size=SIZES,
    present=st.integers(0, 3 * MIB),
    changed=st.lists(st.integers(0, 3 * MIB), max_size=5),
)
def test_the_medium_has_the_payload_and_only_differences_are_written(
    direct: bool, size: int, present: int, changed: list[int]
) -> None:
    """Whatever was there before: shorter, longer, equal in parts."""
    new = patterned(size)
    old = bytearray(patterned(present))
    for position in changed:
        if position < len(old):
            old[position] ^= 1
    with tempfile.NamedTemporaryFile() as file:
        file.write(old)
        file.flush()
        target = File(Path(file.name), direct=direct)
        try:
            target.put(new)
        finally:
            os.close(target.fd)
        assert Path(file.name).read_bytes() == new + old[size:]
    # No block is written that was there; a direct write has a last piece below 4096 of its own.
    needed = sum(
        min(COMPARE_BYTES, size - start)
        for start in range(0, size, COMPARE_BYTES)
        if old[start : start + COMPARE_BYTES][: size - start] != new[start : start + COMPARE_BYTES]
    )
    assert needed - COMPARE_BYTES < target.medium.written_bytes <= needed


def test_a_slot_with_another_system_is_read_less_until_something_is_equal_again(disk: Path) -> None:
    foreign = medium.FOREIGN_BYTES
    # The next block that is read after the first that are all foreign: here begins what is equal.
    look = (foreign // BLOCK_BYTES // medium.LOOK_AT_ONE_OF + 1) * medium.LOOK_AT_ONE_OF * BLOCK_BYTES
    new = patterned(look + 8 * BLOCK_BYTES, seed=2)
    old = bytearray(patterned(len(new), seed=3))
    old[foreign + BLOCK_BYTES : foreign + 2 * BLOCK_BYTES] = new[
        foreign + BLOCK_BYTES : foreign + 2 * BLOCK_BYTES
    ]
    old[look:] = new[look:]
    path = disk / "slot"
    path.write_bytes(old)
    file = File(path)
    file.put(new)
    assert path.read_bytes() == new
    # An equal block among the unread ones is written needlessly; from the next look on nothing is.
    assert file.medium.written_bytes == look


def test_direct_io_is_used_where_it_can_be(disk: Path) -> None:
    target = File(disk / "slot")
    target.put(patterned(MIB + 100))
    assert target.medium.is_direct
    assert fcntl.fcntl(target.fd, fcntl.F_GETFL) & os.O_DIRECT
    os.close(target.fd)


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="no tmpfs at /dev/shm")
def test_tmpfs() -> None:
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
        target = File(Path(file.name))
        target.put(patterned(MIB + 100))
        os.close(target.fd)
        assert Path(file.name).read_bytes() == patterned(MIB + 100)


def with_faults(
    monkeypatch: pytest.MonkeyPatch,
    *,
    read: Callable[[int, list[memoryview], int], int] | None = None,
    write: Callable[[int, memoryview, int], int] | None = None,
) -> None:
    """Put a fault between us and the kernel."""
    if read is not None:
        monkeypatch.setattr(medium.os, "preadv", read)
    if write is not None:
        monkeypatch.setattr(medium.os, "pwrite", write)


@pytest.mark.parametrize("first", ["read", "write"])
def test_a_file_system_that_takes_the_flag_and_refuses_the_operation(
    disk: Path, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    preadv, pwrite = os.preadv, os.pwrite

    def refuse(fd: int, what: str) -> None:
        if what == first and fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no")

    def read(fd: int, buffers: list[memoryview], position: int) -> int:
        refuse(fd, "read")
        return preadv(fd, buffers, position)

    def write(fd: int, view: memoryview, position: int) -> int:
        refuse(fd, "write")
        return pwrite(fd, view, position)

    with_faults(monkeypatch, read=read, write=write)
    target = File(disk / "slot")
    target.put(patterned(MIB + 100))
    os.close(target.fd)
    assert not target.medium.is_direct
    assert (disk / "slot").read_bytes() == patterned(MIB + 100)


@pytest.mark.parametrize("direct", [True, False])
def test_short_reads_and_writes(disk: Path, monkeypatch: pytest.MonkeyPatch, direct: bool) -> None:
    preadv, pwrite = os.preadv, os.pwrite
    with_faults(
        monkeypatch,
        read=lambda fd, buffers, position: preadv(fd, [buffers[0][:12288]], position),
        write=lambda fd, view, position: pwrite(fd, view[:8192], position),
    )
    old = bytearray(patterned(2 * MIB))
    old[MIB] ^= 1
    (disk / "slot").write_bytes(old)
    target = File(disk / "slot", direct=direct)
    target.put(patterned(2 * MIB))
    os.close(target.fd)
    assert target.medium.written_bytes == COMPARE_BYTES
    assert (disk / "slot").read_bytes() == patterned(2 * MIB)


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("at", [0, 70_000, MIB + 5, 2 * MIB + 7])
def test_a_medium_that_changes_data_is_noticed(
    disk: Path, monkeypatch: pytest.MonkeyPatch, direct: bool, at: int
) -> None:
    pwrite = os.pwrite

    def write(fd: int, view: memoryview, position: int) -> int:
        if position <= at < position + len(view):
            was = view[at - position]
            view[at - position] = was ^ 4
            count = pwrite(fd, view, position)
            view[at - position] = was
            return count
        return pwrite(fd, view, position)

    with_faults(monkeypatch, write=write)
    target = File(disk / "slot", direct=direct)
    with pytest.raises(SlotError, match=r"slot: what was read back differs .*\(the medium loses"):
        target.put(patterned(2 * MIB + 10))
    os.close(target.fd)


def test_a_medium_that_drops_writes_is_noticed(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_faults(monkeypatch, write=lambda _fd, view, _position: len(view))
    (disk / "slot").write_bytes(bytes(2 * MIB))
    target = File(disk / "slot")
    with pytest.raises(SlotError, match=f"differs from .* in the {BLOCK_BYTES} bytes from byte 0 on"):
        target.put(patterned(2 * MIB))
    os.close(target.fd)


def test_a_card_with_less_room_than_it_claims_is_noticed(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Addresses wrap around: right after each write all is there, but late writes went over early ones."""
    preadv, pwrite, capacity = os.preadv, os.pwrite, 2 * MIB
    with_faults(
        monkeypatch,
        read=lambda fd, buffers, position: preadv(fd, buffers, position % capacity),
        write=lambda fd, view, position: pwrite(fd, view, position % capacity),
    )
    (disk / "slot").write_bytes(bytes(3 * MIB))
    target = File(disk / "slot")
    with pytest.raises(SlotError, match="looked at again after the last write"):
        target.put(patterned(3 * MIB))
    os.close(target.fd)


def test_a_cache_that_is_lost_is_noticed(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Right after the write the device answers from its cache; what it has flushed is something else."""
    fsync = os.fsync

    def flush(fd: int) -> None:
        other = os.open(disk / "slot", os.O_WRONLY)
        os.pwrite(other, bytes(SAMPLE_EVERY_BYTES), MIB)
        fsync(other)
        os.close(other)
        fsync(fd)

    monkeypatch.setattr(medium.os, "fsync", flush)
    target = File(disk / "slot")
    with pytest.raises(SlotError, match="looked at again after the last write"):
        target.put(patterned(3 * MIB))
    os.close(target.fd)


@pytest.mark.parametrize("direct", [True, False])
def test_a_limit_in_the_way_is_told_with_its_place(disk: Path, direct: bool) -> None:
    """The kernel's own refusal, EFBIG, in the middle of a write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    target = File(disk / "slot", direct=direct)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB + 8192, before[1]))
    try:
        with pytest.raises(
            SlotError, match=rf"cannot write slot at byte {MIB}: File too large \(the kernel log"
        ):
            target.put(patterned(2 * MIB))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        os.close(target.fd)


def test_a_full_medium_is_told() -> None:
    fd = os.open("/dev/full", os.O_RDWR)
    target = Medium(fd, "full")
    assert not target.is_direct
    block = aligned(4096)
    block[0] = 1  # /dev/full reads as zeros
    with pytest.raises(SlotError, match="cannot write full at byte 0: No space left on device"):
        target.take(block, 0)
    os.close(fd)


@pytest.mark.parametrize("fails", ["fsync", "preadv"])
def test_an_error_of_the_flush_or_the_last_look_is_told(
    disk: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    target = File(disk / "slot")

    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "x")

    finish = target.medium.finish

    def finish_with_fault(digest: str) -> None:
        monkeypatch.setattr(medium.os, fails, fail)
        finish(digest)

    monkeypatch.setattr(target.medium, "finish", finish_with_fault)
    with pytest.raises(SlotError, match=f"cannot flush slot at byte {MIB}: Input/output error"):
        target.put(patterned(MIB))
    monkeypatch.undo()
    os.close(target.fd)


# Real block devices


@pytest.fixture
def loop(disk: Path) -> Iterator[Callable[[int], str]]:
    """Makes loop devices of a size, over a file system that has room for 3 MiB."""
    if os.geteuid() != 0 or not shutil.which("losetup") or not shutil.which("mkfs.ext4"):
        pytest.skip("loop devices need root, losetup and mkfs.ext4")
    devices: list[str] = []
    point = disk / "small"
    point.mkdir()

    def attach(path: Path) -> str:
        made = subprocess.run(
            ["losetup", "--find", "--show", path], capture_output=True, text=True, check=False
        )
        if made.returncode != 0:
            pytest.skip(f"no loop devices here: {made.stderr.strip()}")
        devices.append(made.stdout.strip())
        return devices[-1]

    def make(size: int) -> str:
        host = disk / "host"
        with open(host, "wb") as file:
            file.truncate(4 * MIB)
        subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", host], check=True)
        if subprocess.run(["mount", attach(host), point], check=False, capture_output=True).returncode != 0:
            pytest.skip("mount is not allowed here")
        with open(point / "sparse", "wb") as file:
            file.truncate(size)
        return attach(point / "sparse")

    try:
        yield make
    finally:
        for device in devices[1:]:
            subprocess.run(["losetup", "--detach", device], check=False)
        subprocess.run(["umount", "--lazy", point], check=False, capture_output=True)
        for device in devices[:1]:
            subprocess.run(["losetup", "--detach", device], check=False)


@pytest.mark.parametrize("direct", [True, False])
def test_a_device_that_fails_in_the_middle(loop: Callable[[int], str], direct: bool) -> None:
    """Behind this block device is less room than it has: real errors of its driver.

    Or none: the loop driver takes a write that its file system cut short for a success. Reading back tells.
    """
    device = loop(16 * MIB)
    fd = os.open(device, os.O_RDWR | os.O_EXCL)
    target = Medium(fd, "loop")
    if not direct:
        target._set_direct(False)
    block = aligned(BLOCK_BYTES)

    def put() -> None:
        for position in range(0, 16 * MIB, BLOCK_BYTES):
            block[:] = patterned(BLOCK_BYTES, position)
            target.take(block, position)
        target.finish("0" * 64)

    try:
        with pytest.raises(SlotError, match=r"Input/output error|No space left on device|read back differs"):
            put()
    finally:
        os.close(fd)


def test_a_device_of_an_odd_number_of_sectors(loop: Callable[[int], str]) -> None:
    size = 2 * MIB + 3 * 512
    device = loop(size)
    fd = os.open(device, os.O_RDWR | os.O_EXCL)
    target = Medium(fd, "loop")
    assert target.is_direct
    data = patterned(size)
    block = aligned(BLOCK_BYTES)
    for position in range(0, size, BLOCK_BYTES):
        part = data[position : position + BLOCK_BYTES]
        block[: len(part)] = part
        target.take(block[: len(part)], position)
    target.finish("")
    os.close(fd)
    assert Path(device).read_bytes() == data


# UBI: the ioctl is the kernel's; where there is no raw flash, a file takes the writes


def test_a_volume_is_announced_written_and_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    announced = []
    monkeypatch.setattr(medium.fcntl, "ioctl", lambda _fd, request, size: announced.append((request, size)))
    data = patterned(MIB + 5)
    fd = os.open(tmp_path / "ubi0_1", os.O_RDWR | os.O_CREAT)
    volume = Volume(fd, "ubi0_1", len(data))
    view = memoryview(bytearray(data))
    volume.take(view[:MIB], 0)
    volume.take(view[MIB:], MIB)
    volume.finish(hashlib.sha256(data).hexdigest())
    assert announced == [(0x40084F00, (MIB + 5).to_bytes(8, "little"))]
    assert (tmp_path / "ubi0_1").read_bytes() == data
    os.pwrite(fd, b"y", 50_000)
    with pytest.raises(SlotError, match=r"ubi0_1: what was read back differs .*SHA-256"):
        volume.finish(hashlib.sha256(data).hexdigest())
    os.close(fd)


def test_what_is_no_volume_is_told(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "ubi0_1", os.O_RDWR | os.O_CREAT)
    with pytest.raises(SlotError, match="cannot start to write ubi0_1 at byte 0: Inappropriate ioctl"):
        Volume(fd, "ubi0_1", 5)
    os.close(fd)
