# SPDX-License-Identifier: Apache-2.0
"""`ota flash` on real loop devices, with all that goes wrong. Another device beside them stays as it is."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pexpect
import pytest
from tests.support.tools import need
from tests.unit import flash_card
from tests.unit.flash_card import PACKERS, loop

from update_tools import __main__ as ota
from update_tools.flash import bmap, devices, source, target, writer
from update_tools.flash.errors import FlashError

MIB = 1 << 20
SIZE = flash_card.TOTAL_BYTES


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """In memory, if there is room: a busy disk makes every fsync a wait."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or shutil.disk_usage(memory).free < 400 * MIB:
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="flash-", dir=memory) as name:
        yield Path(name)


@pytest.fixture
def card(tmp_path: Path) -> Path:
    return flash_card.make(tmp_path / "card.wic")


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Path]:
    """A medium with something on it, and one beside it that must stay as it is."""
    if os.geteuid() != 0:
        pytest.skip("loop devices need root")
    need("losetup")
    with loop(tmp_path / "medium", 40 * MIB) as medium, loop(tmp_path / "other", 34 * MIB) as other:
        before = digest(other)
        yield medium
        assert digest(other) == before, "another device was written"


def digest(path: Path, size: int | None = None) -> str:
    with path.open("rb") as file:
        return hashlib.sha256(file.read() if size is None else file.read(size)).hexdigest()


def medium_at(device: Path) -> devices.Medium:
    return devices.find(device, devices.attached())


def opened(device: Path) -> target.Target:
    medium = medium_at(device)
    return target.open_device(medium, devices.sequence(medium))


def does_not_boot(path: Path) -> bool:
    """No partition table, and nothing else in the first MiB."""
    with path.open("rb") as file:
        return not file.read(MIB).strip(b"\0")


def flash(*words: object) -> int:
    return ota.main(["flash", *map(str, words)])


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


# What is written


@pytest.mark.parametrize("kind", ["plain", *PACKERS])
def test_image_arrives(kind: str, card: Path, device: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = card
    if kind != "plain":
        image = card.with_name(f"card.wic.{kind}")
        image.write_bytes(flash_card.packed(kind))
    behind = device.read_bytes()[SIZE:]
    assert flash(image, device, "--yes") == 0
    assert device.read_bytes() == card.read_bytes() + behind
    out, err = capsys.readouterr()
    assert f"{device}: 26 MiB of {image.name}, verified" in out
    assert err == ""


def test_several_packed_streams_are_one_image(card: Path, tmp_path: Path) -> None:
    """As pbzip2, pixz and pigz make them, with padding behind."""
    content = card.read_bytes()
    for kind, pack in PACKERS.items():
        image = tmp_path / f"several.{kind}"
        image.write_bytes(pack(content[: 9 * MIB]) + pack(content[9 * MIB :]) + bytes(512))
        opened_image = source.open_image(image)
        rest = b"".join(iter(lambda: opened_image.read(3 * MIB), b""))  # noqa: B023
        assert opened_image.head + rest == content, kind


@pytest.fixture
def mapped(card: Path) -> Path:
    need("bmaptool")
    subprocess.run(["bmaptool", "create", "-o", f"{card}.bmap", card], check=True, capture_output=True)
    return card


def test_with_a_block_map_less_is_written_and_nothing_old_survives(
    mapped: Path, device: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert flash(mapped, device, "--yes", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["bmap"] == f"{mapped}.bmap"
    assert document["written_bytes"] < SIZE / 2
    content, image = device.read_bytes(), mapped.read_bytes()
    for part in bmap.load(Path(f"{mapped}.bmap")).ranges:
        assert content[part.start : part.end] == image[part.start : part.end]
    layout = flash_card.LAYOUT
    assert content[: layout.offset("BOOT")] == image[: layout.offset("BOOT")]
    assert not content[layout.offset("B") :][:MIB].strip(b"\0"), "an old system in slot B is still found"
    assert content[layout.offset("B") + MIB :][:MIB].strip(b"\0"), "the map was not used"


def test_a_map_is_used_for_a_packed_image(mapped: Path, device: Path) -> None:
    packed = mapped.with_name("card.wic.bz2")
    packed.write_bytes(flash_card.packed("bz2"))
    assert flash(packed, device, "--yes") == 0
    assert digest(device, MIB) == digest(mapped, MIB)


def test_bmaptool_wrote_the_same(mapped: Path, device: Path, tmp_path: Path) -> None:
    """Where the map has data, our medium is as the field's own tool makes it."""
    theirs = tmp_path / "theirs"
    theirs.touch()
    subprocess.run(["bmaptool", "copy", mapped, theirs], check=True, capture_output=True)
    assert flash(mapped, device, "--yes") == 0
    assert digest(device, 8 * MIB) == digest(theirs, 8 * MIB)


def test_the_second_table_of_an_old_gpt_goes(card: Path, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("loop devices need root")
    old = tmp_path / "old"
    with open(old, "wb") as file:
        file.truncate(40 * MIB)
    subprocess.run(
        ["sfdisk", "--quiet", old], input="label: gpt\n,\n", text=True, check=True, capture_output=True
    )
    with loop(old) as device:
        assert b"EFI PART" in device.read_bytes()[-512:]
        assert flash(card, device, "--yes") == 0
        assert b"EFI PART" not in device.read_bytes()
        table = subprocess.run(["sfdisk", "--json", device], capture_output=True, text=True, check=True)
        assert len(json.loads(table.stdout)["partitiontable"]["partitions"]) == 4


def test_an_image_with_a_gpt(device: Path, tmp_path: Path) -> None:
    image = tmp_path / "gpt.wic"
    with open(image, "wb") as file:
        file.truncate(12 * MIB)
    table = "label: gpt\nstart=2048, size=8192\nstart=10240, size=8192\n"
    subprocess.run(["sfdisk", "--quiet", image], input=table, text=True, check=True, capture_output=True)
    with open(image, "r+b") as file:
        file.seek(5 * MIB)
        file.write(os.urandom(MIB))
    assert [part.size for part in source.open_image(image).partitions] == [4 * MIB, 4 * MIB]
    assert flash(image, device, "--yes") == 0
    assert digest(device, 12 * MIB) == digest(image)


def test_to_a_file(card: Path, tmp_path: Path) -> None:
    virtual = tmp_path / "virtual.img"
    assert flash(card, "--to-file", virtual) == 0
    assert digest(virtual) == digest(card)
    assert virtual.stat().st_blocks * 512 < SIZE / 2, "holes were filled"
    os.truncate(virtual, SIZE * 2)
    assert flash(card, "--to-file", virtual, "--yes") == 0
    assert virtual.stat().st_size == SIZE * 2
    assert digest(virtual, SIZE) == digest(card)


# What is refused before anything is written


def refused(words: list[object], device: Path, capsys: pytest.CaptureFixture[str]) -> str:
    before = digest(device)
    assert flash(*words) == 2
    assert digest(device) == before
    return said(capsys)


def test_too_small(card: Path, tmp_path: Path, device: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with loop(tmp_path / "small", 16 * MIB) as small:
        told = refused([card, small, "--yes"], small, capsys)
    assert "too small: 16 MiB, and the image needs 26 MiB" in told


def test_a_packed_image_tells_its_size_before_it_is_unpacked(
    card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packed = tmp_path / "card.wic.xz"
    packed.write_bytes(flash_card.packed("xz"))
    with loop(tmp_path / "small", 16 * MIB) as small:
        assert "the image needs 24 MiB" in refused([packed, small, "--yes"], small, capsys)


def test_read_only(card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with loop(tmp_path / "locked", 40 * MIB, "--read-only") as locked:
        assert "it is read-only" in refused([card, locked, "--yes"], locked, capsys)


def test_large_sectors(card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The partition table would be read as one of partitions eight times as large."""
    with loop(tmp_path / "large", 40 * MIB, "--sector-size=4096") as large:
        assert "has sectors of 4096 bytes" in refused([card, large, "--yes"], large, capsys)


def test_in_use_by_another_flash(card: Path, device: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with opened(device):
        assert "is in use" in refused([card, device, "--yes"], device, capsys)


@contextmanager
def with_partitions(card: Path, tmp_path: Path) -> Iterator[Path]:
    with loop(shutil.copy(card, tmp_path / "used"), SIZE, "--partscan") as used:
        subprocess.run(["partx", "--update", used], check=False, capture_output=True)
        yield used


def test_mounted(card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "place"
    place.mkdir()
    with with_partitions(card, tmp_path) as used:
        subprocess.run(["mount", "-o", "ro", f"{used}p4", place], check=True)
        try:
            told = refused([card, used, "--yes"], used, capsys)
        finally:
            subprocess.run(["umount", place], check=True)
    assert f"{used}p4 is mounted at {place}" in told
    assert f"umount {used}p4" in told


def test_mounted_where_we_do_not_see_it(
    card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In another mount namespace, as in a container: the kernel itself says no."""
    (tmp_path / "place").mkdir()
    with with_partitions(card, tmp_path) as used:
        script = f"mount -o ro {used}p4 {tmp_path}/place && echo mounted && read word"
        argv = ["unshare", "--mount", "sh", "-c", script]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as away:
            assert away.stdout is not None
            assert away.stdout.readline() == "mounted\n"
            told = refused([card, used, "--yes"], used, capsys)
            away.communicate("done\n")
    assert "is in use" in told


def test_swap_in_use(card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    need("mkswap")
    with with_partitions(card, tmp_path) as used:
        subprocess.run(["mkswap", f"{used}p3"], check=True, capture_output=True)
        if subprocess.run(["swapon", f"{used}p3"], check=False, capture_output=True).returncode:
            pytest.skip("no swap on loop devices here")
        try:
            told = refused([card, used, "--yes"], used, capsys)
        finally:
            subprocess.run(["swapoff", f"{used}p3"], check=True)
    assert f"{used}p3 is swap in use" in told


def test_a_partition(card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with with_partitions(card, tmp_path) as used:
        told = refused([card, f"{used}p4", "--yes"], used, capsys)
    assert f"a part of {used}, not a whole medium" in told


def test_the_disk_of_this_machine(card: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for medium in devices.attached():
        if any("/" in part.mounts for part in medium.all):
            assert flash(card, medium.path, "--yes") == 2
            assert "this machine runs from it" in said(capsys)


def test_another_medium_than_the_one_that_was_shown(card: Path, tmp_path: Path) -> None:
    with loop(tmp_path / "first", 40 * MIB) as device:
        medium = medium_at(device)
        seen = devices.sequence(medium)
        if not seen:
            pytest.skip("the kernel does not count media")
        subprocess.run(["losetup", "--detach", device], check=True)
        subprocess.run(["truncate", "-s", "40M", tmp_path / "second"], check=True)
        subprocess.run(["losetup", device, tmp_path / "second"], check=True)
        with pytest.raises(FlashError, match="another medium than a moment ago"):
            target.open_device(medium, seen)


WRONG_IMAGES: dict[str, tuple[str, Callable[[bytes], bytes], str]] = {
    "plain, cut off": ("card.wic", lambda data: data[: 20 * MIB], "is cut off: it has 20971520 bytes"),
    "empty": ("card.wic", lambda data: b"", "no image of a card"),
    "zeros": ("card.wic", lambda data: bytes(2 * MIB), "has no partition table"),
    "text": ("card.wic", lambda data: b"<html>404</html>" * 999, "has no partition table"),
    "a boot partition": (
        "card.wic",
        lambda data: data[flash_card.LAYOUT.offset("BOOT") :][: 4 * MIB],
        "it has no partitions",
    ),
    "a root file system": (
        "root.ext4",
        lambda data: data[flash_card.LAYOUT.offset("A") :][: 4 * MIB],
        "no image of a card",
    ),
}


@pytest.mark.parametrize("name", WRONG_IMAGES)
def test_wrong_images_are_refused(
    name: str, card: Path, device: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, change, message = WRONG_IMAGES[name]
    wrong = tmp_path / "wrong" / file
    wrong.parent.mkdir()
    wrong.write_bytes(change(card.read_bytes()))
    assert message in refused([wrong, device, "--yes"], device, capsys)


def test_other_words(card: Path, device: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifact = tmp_path / "a.mender"
    argv = ["artifact", "write", "bootstrap-artifact", "-n", "r", "-t", "x", "-o", str(artifact)]
    assert ota.main(argv) == 0
    capsys.readouterr()
    table: list[tuple[list[object], str]] = [
        ([], "IMAGE is missing"),
        ([card, device, "--to-file", tmp_path / "x"], "one of them"),
        ([tmp_path / "none.wic", device], "is not there"),
        ([tmp_path, device], "is no file"),
        ([artifact, device], "is an artifact"),
        ([card, "--yes"], "DEVICE is missing"),
        ([card, device], "nobody can be asked"),
        ([card, tmp_path / "file.img", "--yes"], "does not exist"),
        ([card, card, "--yes"], "no block device"),
        ([card, "--to-file", card, "--yes"], "is the image itself"),
        ([card, "--to-file", device, "--yes"], "is no plain file"),
        ([card, "--to-file", tmp_path / "no/such/file"], "is not there mkdir -p"),
        ([card, device, "--bmap", tmp_path / "none.bmap"], "cannot read the block map"),
    ]
    before = digest(device)
    for words, message in table:
        assert flash(*words) == 2, words
        assert message in said(capsys), words
    assert digest(device) == before


def test_what_is_given_is_not_overwritten(
    mapped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not even with --yes: the block map, that is beside the image too, and what is put into the card."""
    token, beside = tmp_path / "token", Path(f"{mapped}.bmap")
    token.write_text("secret")
    (tmp_path / "link").symlink_to(token)
    before = beside.read_text()
    for words, name in (
        (["--to-file", beside], "bmap"),
        (["--to-file", token, "--tenant-token", tmp_path / "link"], "tenant-token"),
    ):
        assert flash(mapped, *words, "--yes") == 2
        assert f"would be overwritten: it is given as --{name}" in said(capsys)
    assert (token.read_text(), beside.read_text()) == ("secret", before)


# What goes wrong in the middle. The medium must not boot afterwards, and starting over must help.


def fails(image: Path, device: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert flash(image, device, "--yes") == 2
    assert does_not_boot(device)
    return said(capsys)


@pytest.mark.parametrize("kind", PACKERS)
@pytest.mark.parametrize("damage", ["cut off", "damaged"])
def test_a_packed_image_that_is_damaged(
    kind: str, damage: str, card: Path, device: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packed = bytearray(flash_card.packed(kind))
    if damage == "cut off":
        del packed[len(packed) * 2 // 3 :]
    else:
        packed[len(packed) * 2 // 3] ^= 0xFF
    image = tmp_path / f"wrong.wic.{kind}"
    image.write_bytes(packed)
    told = fails(image, device, capsys)
    assert "is cut off" in told or "cannot unpack" in told
    assert flash(card, device, "--yes") == 0
    assert digest(device, SIZE) == digest(card)


def test_a_packed_image_whose_last_partition_is_not_there(
    card: Path, device: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "wrong.wic.gz"
    image.write_bytes(gzip.compress(card.read_bytes()[: 20 * MIB]))
    assert "its partitions go up to 25165824" in fails(image, device, capsys)


def test_the_map_of_another_image(mapped: Path, device: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open(mapped, "r+b") as file:
        file.seek(flash_card.LAYOUT.offset("A") + MIB)
        file.write(b"another build")
    told = fails(mapped, device, capsys)
    assert f"the block map {mapped}.bmap does not fit the image" in told
    assert "--no-bmap" in told
    assert flash(mapped, device, "--yes", "--no-bmap") == 0


def test_the_map_of_an_image_of_another_size(
    mapped: Path, device: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.truncate(mapped, SIZE + 4096)
    assert "it is of one of" in refused([mapped, device, "--yes"], device, capsys)


def _when(doing: str, at: int, act: Callable[[], object]) -> writer.Progress:
    """Acts once, at a point of the work."""
    acted = []

    def progress(now: str, done: int, total: int) -> None:
        if now == doing and done >= at and not acted:
            acted.append(True)
            act()

    return progress


@pytest.mark.parametrize("doing", ["writing", "verifying"])
def test_pulled_out(doing: str, card: Path, device: Path, tmp_path: Path) -> None:
    def pull() -> None:
        os.truncate(tmp_path / "medium", 0)
        subprocess.run(["losetup", "--set-capacity", device], check=True)

    with (
        opened(device) as place,
        pytest.raises(FlashError, match=f"{device} is gone: it was pulled out while") as caught,
    ):
        writer.flash(source.open_image(card), place, None, progress=_when(doing, 10 * MIB, pull))
    assert "the same command starts over" in caught.value.hint


def test_write_errors(card: Path, tmp_path: Path) -> None:
    """A medium whose blocks cannot all be written: a file in a file system without room behind it."""
    if os.geteuid() != 0:
        pytest.skip("loop devices need root")
    room = tmp_path / "room"
    room.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=15m", "none", room], check=True)
    try:
        (room / "medium").touch()
        os.truncate(room / "medium", 40 * MIB)
        with loop(room / "medium") as device:
            with opened(device) as place, pytest.raises(FlashError, match="failed: ") as caught:
                writer.flash(source.open_image(card), place, None)
            assert does_not_boot(device)
        assert f"writing {device} at 1" in caught.value.message
        assert "a bad medium" in caught.value.hint
    finally:
        subprocess.run(["umount", room], check=True)


def test_a_file_without_room(card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    room = tmp_path / "room"
    room.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", room], check=True)
    try:
        assert flash(card, "--to-file", room / "card.img") == 2
        assert "No space left on device is the disk full?" in said(capsys)
        assert does_not_boot(room / "card.img")
    finally:
        subprocess.run(["umount", room], check=True)


@pytest.mark.parametrize("at", [0, MIB // 2, 11 * MIB, 25 * MIB])
def test_a_medium_that_does_not_keep_what_it_is_given(
    at: int, card: Path, device: Path, tmp_path: Path
) -> None:
    def spoil() -> None:
        with open(tmp_path / "medium", "r+b") as file:
            file.seek(at)
            file.write(b"spoilt")

    image = source.open_image(card)
    with opened(device) as place:
        if at < MIB:  # written last: spoilt between writing and reading
            write = place.write

            def spoiling(offset: int, data: bytes) -> None:
                write(offset, data)
                if offset <= at < offset + len(data):
                    spoil()

            place.write = spoiling  # type: ignore[assignment,method-assign]
            progress: writer.Progress = lambda doing, done, total: None  # noqa: E731
        else:
            progress = _when("verifying", 0, spoil)
        with pytest.raises(FlashError, match="does not keep what it is given"):
            writer.flash(image, place, None, progress=progress)


@pytest.mark.parametrize(("doing", "at"), [("writing", MIB), ("writing", 20 * MIB), ("verifying", 10 * MIB)])
def test_interrupted_and_started_over(
    doing: str, at: int, card: Path, device: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with opened(device) as place, pytest.raises(KeyboardInterrupt):
        writer.flash(source.open_image(card), place, None, progress=_when(doing, at, interrupt))
    assert does_not_boot(device)
    assert flash(card, device, "--yes") == 0
    assert digest(device, SIZE) == digest(card)


@pytest.mark.parametrize(("doing", "at"), [("writing", MIB), ("writing", 25 * MIB), ("verifying", 20 * MIB)])
def test_killed_and_started_over(doing: str, at: int, card: Path, device: Path) -> None:
    child = os.fork()
    if child == 0:
        try:
            kill = _when(doing, at, lambda: os.kill(os.getpid(), signal.SIGKILL))
            writer.flash(source.open_image(card), opened(device), None, progress=kill)
        finally:
            os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert does_not_boot(device)
    assert flash(card, device, "--yes") == 0
    assert digest(device, SIZE) == digest(card)


# What people see


def ota_command(*words: object) -> list[str]:
    program = "import sys; from update_tools.__main__ import main; sys.exit(main())"
    return [sys.executable, "-c", program, *map(str, words)]


ENV = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TERM": "xterm"}


def on_a_terminal(*words: object) -> pexpect.spawn:
    program, *arguments = ota_command(*words)
    return pexpect.spawn(program, arguments, env=ENV, encoding="utf-8", dimensions=(40, 120), timeout=60)


def test_it_asks_and_tells_what_is_lost(card: Path, device: Path) -> None:
    assert flash(card, device, "--yes") == 0
    before = digest(device)
    terminal = on_a_terminal("flash", card, device)
    terminal.expect_exact(f"{device}: no name, 41.9 MB, loop")
    terminal.expect_exact(f"Overwrite all of {device}? [y/N] ")
    terminal.sendline("")
    terminal.expect("nothing was written")
    terminal.expect(pexpect.EOF)
    assert terminal.wait() == 2
    assert digest(device) == before


def test_yes_writes_with_progress_on_a_terminal(card: Path, device: Path) -> None:
    terminal = on_a_terminal("flash", card, device)
    terminal.expect_exact("[y/N] ")
    terminal.sendline("y")
    for text in ("writing", "/s", "verifying", "verified, "):
        terminal.expect_exact(text)
    terminal.expect(pexpect.EOF)
    assert terminal.wait() == 0
    assert digest(device, SIZE) == digest(card)


def test_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    """What is removable differs from machine to machine; loop devices never are."""
    assert flash("--list", "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert [medium for medium in listed if not medium["removable"]] == []
    assert flash("--list") == 0
    out, err = capsys.readouterr()
    assert ("no removable medium" in out) == (not listed)
    assert err == ""
