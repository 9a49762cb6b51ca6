# SPDX-License-Identifier: Apache-2.0
"""What is installed: an ext4 image of this machine's files, its successor, and their artifacts. Made once.

The image is a mixture of /usr: programs, libraries, text, nine tenths of the file system. In the successor
3 % of the files are others, replaced as a package manager does it: written beside, then renamed.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench.run import BenchError

from update_tools import artifact
from update_tools.artifact import Contents, Packing
from update_tools.bench import cache
from update_tools.bench.tools import run

if TYPE_CHECKING:
    from collections.abc import Iterator

VERSION = "3"
SOURCE = Path("/usr")
SMALL_SOURCE = Path("/usr/bin")  # for a small image, without looking through everything
FILL = 0.87  # of what the journal leaves; the rest is inodes, directories and room
CHANGED = 0.03
SUFFIX = {"none": "", "gzip": ".gz", "zstd": ".zst", "xz": ".xz"}
# As for release: what a device downloads often may take long to pack once.
PACKINGS = {
    "none": Packing("none"),
    "gzip": Packing("gzip"),
    "zstd": Packing("zstd", 19),
    "xz": Packing("xz", 9),
}
QUICK = {"none": Packing("none"), "gzip": Packing("gzip"), "zstd": Packing("zstd", 3), "xz": Packing("xz", 1)}


class Material:
    """A directory with everything: image.ext4, changed.ext4, COMPRESSION.mender, payload.tar.SUFFIX."""

    def __init__(self, folder: Path, size_bytes: int) -> None:
        self.folder = folder
        self.size_bytes = size_bytes

    @property
    def image(self) -> Path:
        """The image as it is."""
        return self.folder / "image.ext4"

    @property
    def changed(self) -> Path:
        """The image with 3 % other files."""
        return self.folder / "changed.ext4"

    def artifact(self, compression: str, *, changed: bool = False) -> Path:
        """The artifact of the image."""
        return self.folder / f"{'changed-' if changed else ''}{compression}.mender"

    def packed(self, compression: str) -> Path:
        """The payload alone, for a decompressor: the same bytes as in the artifact."""
        return self.folder / f"payload.tar{SUFFIX[compression]}"


def material(size_mib: int, *, quick: bool = False) -> Material:
    """Everything of this size, from the cache if it was made before. `quick`: lowest levels, for tests."""
    name = cache.key(VERSION, f"{size_mib} {quick}")
    size = size_mib << 20

    def make(folder: Path) -> None:
        made = Material(folder, size)
        source = SOURCE if size_mib >= 64 else SMALL_SOURCE
        files = list(_chosen(source, int((size - _journal(size)) * FILL)))
        _make_image(files, made.image, size)
        _make_changed(made.image, made.changed)
        for compression, packing in (QUICK if quick else PACKINGS).items():
            _say(f"making the {compression} artifact" + (" (minutes)" if packing.level in {9, 19} else ""))
            _pack(made.image, made.artifact(compression), packing)
            if compression != "none":
                _take_payload(made.artifact(compression), made.packed(compression))
        _pack(made.changed, made.artifact("gzip", changed=True), Packing("gzip"))

    return Material(cache.made("speed", name, make), size)


def _say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


def _chosen(source: Path, budget: int) -> Iterator[Path]:
    """Files of `source` in an order that mixes them and is the same every time, until the budget is spent."""
    _say("making the image, once")
    files = []
    for folder, _, names in os.walk(source):
        for name in names:
            path = os.path.join(folder, name)
            if os.path.isfile(path) and not os.path.islink(path):
                files.append(path)
    files.sort(key=lambda path: hashlib.sha256(path.encode()).digest())
    largest = budget // 40
    known: set[str] = set()
    for path in files:
        folders = {str(parent) for parent in Path(path).parents} - known
        size = os.path.getsize(path)
        needed = (size + 4095 & ~4095) + 256 + 4096 * len(folders)
        if size > largest or needed > budget:
            continue
        budget -= needed
        known |= folders
        yield Path(path)
    if budget > 1 << 20:
        raise BenchError(f"{source} has too few files to fill the image: {budget} bytes are left")


def _journal(size: int) -> int:
    """Bytes of the journal: what mke2fs gives a root file system, none where it would be half of it."""
    return 16 << 20 if size >= 128 << 20 else 0


def _make_image(files: list[Path], image: Path, size: int) -> None:
    tree = image.with_suffix(".tree")
    for file in files:
        target = tree / file.relative_to("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    # Names are hashed with a seed, inodes have generation numbers: given, for the same image every time.
    fixed = ["-U", "00000000-0000-4000-8000-000000000001"]
    fixed += ["-E", "hash_seed=00000000-0000-4000-8000-000000000002,lazy_itable_init=0"]
    journal = _journal(size)
    fixed += ["-J", f"size={journal >> 20}"] if journal else ["-O", "^has_journal"]
    run(["mke2fs", "-q", "-t", "ext4", "-b", "4096", "-m", "0", *fixed, "-d", tree, image, f"{size >> 10}k"])
    shutil.rmtree(tree)


def _make_changed(image: Path, changed: Path) -> None:
    shutil.copyfile(image, changed)
    point = changed.with_suffix(".mnt")
    point.mkdir()
    run(["mount", "-o", "loop", changed, point])
    try:
        files = sorted(path for path in point.rglob("*") if path.is_file())
        wanted = [path for number, path in enumerate(files) if number % int(1 / CHANGED) == 7]
        for path in wanted:
            data = bytearray(path.read_bytes())
            for at in range(0, len(data), 97):  # a new build of the same source: alike, but not in one block
                data[at] ^= 0x15
            beside = path.with_name(".new")
            with beside.open("wb") as file:
                file.write(b"\x7f\x15\x15\x15" + data)
                beside.rename(path)
                os.fsync(file.fileno())  # before that, the blocks of the old file are not free
    finally:
        run(["umount", point])
        point.rmdir()
    _empty_journal(image, changed)


def _empty_journal(image: Path, changed: Path) -> None:
    """A release is built, not booted: its journal is as empty as that of the image before."""
    extents = run(["debugfs", "-R", "stat <8>", image])
    with image.open("rb") as source, changed.open("r+b") as target:
        for first, last in re.findall(r"\(\d+-\d+\):(\d+)-(\d+)", extents):
            source.seek(int(first) * 4096)
            target.seek(int(first) * 4096)
            target.write(source.read((int(last) - int(first) + 1) * 4096))


def _pack(image: Path, output: Path, packing: Packing) -> None:
    contents = Contents(
        f"bench-{output.stem}", ["bench"], "rootfs-image", files=[image], checksum_key="rootfs-image.checksum"
    )
    artifact.write(contents, output, packing)


def _take_payload(source: Path, output: Path) -> None:
    with tarfile.open(source) as archive, output.open("wb") as target:
        member = next(entry for entry in archive if entry.name.startswith("data/"))
        data = archive.extractfile(member)
        assert data is not None
        shutil.copyfileobj(data, target, 1 << 20)
