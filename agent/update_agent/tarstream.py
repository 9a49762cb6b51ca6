# SPDX-License-Identifier: Apache-2.0
"""Read a tar archive from a stream: regular files only, bounded memory, every oddity refused.

`tarfile` is not used: it is lenient where an update must be strict (links, duplicate meanings of a name,
missing ends), seeks, and costs 2.6 MB. Understood: ustar, GNU long names and large sizes, PAX path and size.
"""

from __future__ import annotations

import io

from update_agent.errors import ArtifactError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    class Stream(Protocol):
        """Bytes from a file, a socket, a download: `read(n)` gives 1 to n bytes, b"" at the end."""

        def read(self, n: int, /) -> bytes: ...

    class Source(Protocol):
        """Bytes that go where the caller wants them; 0 at the end, short otherwise at will."""

        def readinto(self, view: memoryview, /) -> int: ...


BLOCK = 512
MAX_NAME_BYTES = 4096  # PATH_MAX; GNU long names and PAX paths
MAX_PAX_BYTES = 64 << 10  # one PAX header
MAX_EXTENSION_HEADERS = 4  # before one member: a PAX header and a long name are two
MAX_SIZE_BYTES = 1 << 62
MAX_TRAILER_BYTES = 1 << 20  # zero bytes after the end-of-archive marker (tar pads to its blocking factor)
SCRATCH_BYTES = 64 << 10

_ZERO = bytes(SCRATCH_BYTES)
_KINDS = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a character device",
    b"4": "a block device",
    b"5": "a directory",
    b"6": "a FIFO",
    b"7": "a contiguous file",
    b"S": "a sparse file",
    b"V": "a volume label",
    b"M": "a continued file",
}


def collect(size: int, readinto: Callable[[memoryview], int]) -> bytes:
    """Call `readinto` until `size` bytes are together or it returns 0; the bytes, never held twice."""
    if size <= 0:
        return b""
    # BytesIO hands out its own buffer; bytes(bytearray) would copy it.
    buffer = io.BytesIO()
    buffer.seek(size - 1)
    buffer.write(b"\0")
    done = 0
    with buffer.getbuffer() as view:
        while done < size and (got := readinto(view[done:])):
            done += got
    buffer.truncate(done)
    return buffer.getvalue()


class StreamSource:
    """A stream that only has `read` (or also a `readinto`, then without a copy) as a source."""

    def __init__(self, stream: Stream) -> None:
        self._read = stream.read
        self._readinto = getattr(stream, "readinto", None)

    def readinto(self, view: memoryview, /) -> int:
        """At most len(view) bytes; 0 at the end."""
        if self._readinto is not None:
            return int(self._readinto(view) or 0)
        data = self._read(len(view))
        view[: len(data)] = data
        return len(data)


class Member:
    """One regular file of the archive: its name as stored, size in bytes, permission bits."""

    __slots__ = ("mode", "name", "size")

    def __init__(self, name: str, size: int, mode: int) -> None:
        self.name = name
        self.size = size
        self.mode = mode


class TarStream:
    """Walks the members of one archive: `next()`, `readinto` or `read`, and so on; `finish()` after the last.

    `label` names the archive in messages. All problems are ArtifactErrors; nothing is tolerated but what a
    tar writer does in normal operation.
    """

    def __init__(self, source: Source, label: str) -> None:
        self._source = source
        self._label = label
        self._offset = 0  # in this archive, for messages
        self._left = 0  # bytes of the current member not yet read
        self._padding = 0
        self._inside = ""  # the member being read, for messages
        self._scratch = memoryview(bytearray(SCRATCH_BYTES))

    @property
    def left(self) -> int:
        """Bytes of the current member that were not read yet."""
        return self._left

    def next(self) -> Member | None:
        """The next regular file, or None at the end-of-archive marker. What was not read is skipped."""
        self._skip(self._left + self._padding)
        self._left = self._padding = 0
        long_name: str | None = None
        pax: dict[str, str] = {}
        for _ in range(MAX_EXTENSION_HEADERS + 1):
            where = self._offset
            self._inside = f"the header block at byte {where}"
            block = self._exactly(BLOCK)
            if block == _ZERO[:BLOCK]:
                if long_name is not None or pax:
                    raise self._error("ends after an extension header that belongs to no member")
                self._inside = "the end-of-archive marker"
                if self._exactly(BLOCK) != _ZERO[:BLOCK]:
                    raise self._error(f"has a lone zero block at byte {where} where a member should begin")
                return None
            self._check(block, where)
            kind = block[156:157]
            size = self._number(block[124:136], "size", where)
            if kind == b"L":
                if long_name is not None:
                    raise self._error(f"has two long names for one member at byte {where}")
                long_name = self._text(
                    self._extension(size, MAX_NAME_BYTES + 1, "long name").rstrip(b"\0"), where
                )
            elif kind == b"x":
                if pax:
                    raise self._error(f"has two PAX headers for one member at byte {where}")
                pax = self._pax(self._extension(size, MAX_PAX_BYTES, "PAX header"), where)
            elif kind == b"g":
                if {"path", "size"} & self._pax(
                    self._extension(size, MAX_PAX_BYTES, "PAX header"), where
                ).keys():
                    raise self._error(
                        f"gives all members one name or size (global PAX header at byte {where})"
                    )
            else:
                return self._member(block, kind, size, long_name, pax, where)
        raise self._error(f"has more than {MAX_EXTENSION_HEADERS} extension headers before one member")

    def readinto(self, view: memoryview, /) -> int:
        """At most len(view) bytes of the current member; 0 at its end."""
        if self._left == 0 or len(view) == 0:
            return 0
        if len(view) > self._left:
            view = view[: self._left]
        got = self._source.readinto(view)
        if got == 0:
            raise self._truncated()
        self._left -= got
        self._offset += got
        return got

    def read(self, n: int) -> bytes:
        """Exactly n bytes of the current member, fewer only at its end."""
        return collect(min(n, self._left), self.readinto)

    def read_whole(self, member: Member, limit_bytes: int) -> bytes:
        """The whole current member, refused before the first byte if it is larger than the limit."""
        if member.size > limit_bytes:
            raise self._error(f"has {member.name} of {member.size} bytes; at most {limit_bytes} are accepted")
        return self.read(member.size)

    def finish(self) -> None:
        """After the end-of-archive marker: read to the end of the stream, where only zero padding may be."""
        total = 0
        while got := self._source.readinto(self._scratch):
            if self._scratch[:got] != _ZERO[:got]:
                raise self._error(
                    f"goes on after its end (byte {self._offset + total})", hint="two files joined together?"
                )
            total += got
            if total > MAX_TRAILER_BYTES:
                raise self._error(f"has more than {MAX_TRAILER_BYTES} bytes of padding after its end")

    def _member(
        self, block: bytes, kind: bytes, size: int, long_name: str | None, pax: dict[str, str], where: int
    ) -> Member:
        name = long_name
        if name is None:
            raw = block[:100].split(b"\0", 1)[0]
            prefix = block[345:500].split(b"\0", 1)[0] if block[257:263] == b"ustar\0" else b""
            name = self._text(prefix + b"/" + raw if prefix else raw, where)
        name = pax.get("path", name)
        if kind not in (b"0", b"\0"):
            what = _KINDS.get(kind, f"of unknown type {kind!r}")
            raise self._error(f"has {name!r}, which is {what}; only regular files are accepted")
        if any(key.startswith("GNU.sparse.") for key in pax):
            raise self._error(f"has {name!r}, which is a sparse file; only regular files are accepted")
        if "size" in pax:
            if not (pax["size"].isascii() and pax["size"].isdigit() and len(pax["size"]) < 20):
                raise self._error(f"has a PAX header with the size {pax['size'][:40]!r} at byte {where}")
            size = int(pax["size"])
        if size > MAX_SIZE_BYTES:
            raise self._error(f"claims {size} bytes for {name!r}")
        if not name or "\0" in name or name.startswith("/") or ".." in name.split("/"):
            raise self._error(f"has a member named {name!r}; names must stay inside the archive")
        self._inside = name
        self._left, self._padding = size, -size % BLOCK
        return Member(name, size, self._number(block[100:108], "mode", where) & 0o7777)

    def _check(self, block: bytes, where: int) -> None:
        if block[257:262] != b"ustar":
            raise self._error(
                f"is not a tar archive at byte {where}", hint="is this an artifact, and is it complete?"
            )
        stored = self._number(block[148:156], "checksum", where)
        plain = sum(block) - sum(block[148:156]) + 8 * 0x20
        # Old tars summed signed characters; the two differ only for bytes above 127.
        if stored not in (plain, plain - 256 * sum(byte > 127 for byte in block[:148] + block[156:])):
            raise self._error(f"has a damaged member header at byte {where} (checksum)")

    def _number(self, field: bytes, what: str, where: int) -> int:
        """Octal digits, or GNU base-256 when the top bit is set."""
        if field[0] & 0x80:
            value = int.from_bytes(field, "big") & ((1 << (8 * len(field) - 1)) - 1)
            if field[0] & 0x40 or value > MAX_SIZE_BYTES:
                raise self._error(f"has a {what} out of range at byte {where}")
            return value
        digits = field.split(b"\0", 1)[0].strip(b" ")
        if not digits or digits.strip(b"01234567"):
            raise self._error(f"has a {what} that is no number at byte {where}: {digits!r}")
        return int(digits, 8)

    def _text(self, raw: bytes, where: int) -> str:
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise self._error(f"has a name that is not UTF-8 at byte {where}: {raw[:100]!r}") from None

    def _extension(self, size: int, limit_bytes: int, what: str) -> bytes:
        if size > limit_bytes:
            raise self._error(f"has a {what} of {size} bytes; at most {limit_bytes} are accepted")
        self._inside = f"a {what}"
        data = self._exactly(size)
        self._exactly(-size % BLOCK)
        return data

    def _pax(self, data: bytes, where: int) -> dict[str, str]:
        """Records `length key=value newline`; the length counts itself."""
        records: dict[str, str] = {}
        while data:
            digits, blank, _ = data[:20].partition(b" ")
            length = int(digits) if blank and digits.isdigit() else 0
            record = data[len(digits) + 1 : length]
            key, equals, value = record[:-1].partition(b"=")
            if length > len(data) or not record.endswith(b"\n") or not equals or not key:
                raise self._error(f"has a malformed PAX header at byte {where}")
            name = self._text(key, where)
            if name in records:
                raise self._error(f"has a PAX header with {name!r} twice at byte {where}")
            # Values nobody asks for (binary extended attributes) need not be text.
            records[name] = self._text(value, where) if name in ("path", "size") else ""
            data = data[length:]
        if len(records.get("path", "").encode()) > MAX_NAME_BYTES:
            raise self._error(f"has a name longer than {MAX_NAME_BYTES} bytes at byte {where}")
        return records

    def _exactly(self, size: int) -> bytes:
        """The next bytes of the archive, whatever they belong to."""
        data = bytearray(size)
        view, done = memoryview(data), 0
        while done < size:
            got = self._source.readinto(view[done:])
            if got == 0:
                raise self._truncated()
            done += got
            self._offset += got
        return bytes(data)

    def _skip(self, size: int) -> None:
        while size:
            got = self._source.readinto(self._scratch[: min(size, SCRATCH_BYTES)])
            if got == 0:
                raise self._truncated()
            size -= got
            self._offset += got

    def _truncated(self) -> ArtifactError:
        return self._error(
            f"is cut off at byte {self._offset}, in {self._inside}", hint="was the download or copy complete?"
        )

    def _error(self, what: str, *, hint: str = "") -> ArtifactError:
        return ArtifactError(f"{self._label} {what}", hint=hint)
