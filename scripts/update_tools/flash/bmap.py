# SPDX-License-Identifier: Apache-2.0
"""Block maps (.bmap): which blocks of an image hold data, and the checksum of each range of them.

bmaptool's format, versions 1.2 to 2.0. Its own library writes in one go, start first, and does not read back
what the medium keeps; here the start is written last, so only the format is shared.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from .errors import FlashError

if TYPE_CHECKING:
    from pathlib import Path

_LIMIT_BYTES = 64 << 20
_RANGE = re.compile(r"\s*(\d{1,15})(?:\s*-\s*(\d{1,15}))?\s*")
_COMPRESSED = {".bz2", ".gz", ".xz", ".zst", ".zstd"}


class Range:
    """Bytes `start` up to `end` of an image; `checksum` is empty where the map has none."""

    __slots__ = ("checksum", "end", "start")

    def __init__(self, start: int, end: int, checksum: str = "") -> None:
        self.start = start
        self.end = end
        self.checksum = checksum


class Bmap:
    """A block map. `algorithm` is one of hashlib's."""

    __slots__ = ("algorithm", "image_bytes", "name", "ranges")

    def __init__(self, name: str, image_bytes: int, algorithm: str, ranges: list[Range]) -> None:
        self.name = name
        self.image_bytes = image_bytes
        self.algorithm = algorithm
        self.ranges = ranges

    @property
    def mapped_bytes(self) -> int:
        """How much of the image holds data."""
        return sum(part.end - part.start for part in self.ranges)


def beside(image: Path) -> Path | None:
    """The map that belongs to an image by its name: of `a.wic.bz2` it is `a.wic.bz2.bmap` or `a.wic.bmap`."""
    stems = [image]
    if image.suffix in _COMPRESSED:
        stems.append(image.with_suffix(""))
    for stem in stems:
        path = stem.with_name(stem.name + ".bmap")
        if path.is_file():
            return path
    return None


def load(path: Path) -> Bmap:
    """Read a map. Raises FlashError if it cannot be read, is damaged, or is of a version not known here."""
    try:
        with path.open("rb") as file:
            content = file.read(_LIMIT_BYTES)
    except OSError as error:
        raise FlashError(f"cannot read the block map {path}: {error.strerror}") from error
    return parse(content, str(path))


def parse(content: bytes, name: str) -> Bmap:
    """The map in these bytes. Raises FlashError for anything that is none."""
    if b"<!ENTITY" in content:  # a few bytes of them can stand for gigabytes
        raise _damaged(name, "it declares entities")
    try:
        root = ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise _damaged(name, f"no XML: {error}") from error
    version = root.get("version", "")
    if root.tag != "bmap" or not re.fullmatch(r"(1\.[234]|2\.0)", version):
        raise FlashError(
            f"block map {name} is of version {version[:10]!r}",
            hint="1.2 to 2.0 are read; make it with bmaptool",
        )
    algorithm = _text(root, "ChecksumType", "").lower() or "sha1"
    if algorithm not in hashlib.algorithms_guaranteed or algorithm.startswith("shake"):
        raise _damaged(name, f"checksums of kind {algorithm[:20]!r}")
    _check_itself(content, root, algorithm, name)
    block = _number(root, "BlockSize", name)
    size = _number(root, "ImageSize", name)
    if not block or block % 512 or not size:
        raise _damaged(name, f"blocks of {block} bytes, an image of {size}")
    ranges: list[Range] = []
    for item in root.findall("BlockMap/Range"):
        match = _RANGE.fullmatch(item.text or "")
        if match is None:
            raise _damaged(name, f"a range {item.text!r}")
        first = int(match[1])
        start, end = first * block, (int(match[2] or first) + 1) * block
        if start >= end or end >= size + block or (ranges and start < ranges[-1].end):
            raise _damaged(
                name, f"range {(item.text or '').strip()} is out of order or behind the image's end"
            )
        checksum = (item.get("chksum") or item.get("sha1") or "").lower()
        ranges.append(Range(start, min(end, size), checksum))
    return Bmap(name, size, algorithm, ranges)


def _check_itself(content: bytes, root: ElementTree.Element, algorithm: str, name: str) -> None:
    """The map's checksum is made with zeros in its own place."""
    for tag, kind in (("BmapFileChecksum", algorithm), ("BmapFileSHA1", "sha1")):
        said = _text(root, tag, "")
        if not said:
            continue
        zeroed = content.replace(said.encode(), b"0" * len(said), 1)
        if hashlib.new(kind, zeroed, usedforsecurity=False).hexdigest() != said.lower():
            raise _damaged(name, "its own checksum is another")


def _text(root: ElementTree.Element, tag: str, default: str) -> str:
    return (root.findtext(tag) or default).strip()


def _number(root: ElementTree.Element, tag: str, name: str) -> int:
    text = _text(root, tag, "")
    if not re.fullmatch(r"\d{1,15}", text):
        raise _damaged(name, f"{tag} is {text[:20]!r}")
    return int(text)


def _damaged(name: str, what: str) -> FlashError:
    return FlashError(f"block map {name} is damaged: {what}", hint="copy it again, or use --no-bmap")
