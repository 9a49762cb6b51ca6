# SPDX-License-Identifier: Apache-2.0
"""What another client left: the reference's database, an LMDB file, read once when this agent takes over.

Read-only and without a library: LMDB's data version 1 as 32-bit and 64-bit little-endian machines write it
(`mdb.c`, "Page structure"). The file is never touched. A roll-back to a root file system with the former
client finds it as it was, and what that client then writes has a new transaction number, so it is taken over
again by the next update (see `Store.reload`).
"""

from __future__ import annotations

import struct

from update_agent.errors import StoreError
from update_agent.lean import json

FILE = "mender-store"
TRANSACTION = "mender-store-transaction"  # key of ours: what was taken over
_STATE, _UNCOMMITTED = "state", "state-uncommitted"
_KEYS = (
    "artifact-name",
    "artifact-group",
    "artifact-provides",
    _STATE,
    _UNCOMMITTED,
    "standalone-state",
    "update-control-maps",
)
_MAX_BYTES = 16 << 20  # the clients' own limit is 1 MiB
_MAGIC = b"\xde\xc0\xef\xbe"
_BRANCH, _LEAF, _OVERFLOW = 1, 2, 4  # page flags
_BIG, _OTHER = 1, 6  # node flags: the value has pages of its own; the value is a database
_NODE = struct.Struct("<4H")


class _File:
    """An LMDB file in memory. Anything that is not as it should be is a ValueError or struct.error."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        words = [word for word in (8, 4) if data[8 + word : 12 + word] == _MAGIC]
        if not words:
            raise ValueError("it is no LMDB file")
        self._word = words[0]
        letter = "Q" if self._word == 8 else "I"
        self._page_head = struct.Struct(f"<{letter}4H")  # page number, padding, flags, lower and upper bound
        # magic, version, address, map size, two databases, last page, transaction; each database: padding
        # (of the first: the page size), flags, depth, three counts of pages, entries, root page
        self._meta = struct.Struct(f"<II2{letter}IHH5{letter}IHH5{letter}2{letter}")
        self._number = struct.Struct(f"<{letter}")
        self.page_bytes = self._read_meta(0)[4]
        if not 256 <= self.page_bytes <= 65536:
            raise ValueError(f"its page size is {self.page_bytes}")
        # The last transaction that was completed is the newer one of the two.
        newest = max(self._read_meta(0), self._read_meta(self.page_bytes), key=lambda meta: meta[-1])
        self.transaction, self._root = newest[-1], newest[-3]
        self._pages_left = len(data) // self.page_bytes

    def _read_meta(self, offset: int) -> tuple[int, ...]:
        meta: tuple[int, ...] = self._meta.unpack_from(self._data, offset + self._page_head.size)
        if meta[0] != int.from_bytes(_MAGIC, "little") or meta[1] != 1:
            raise ValueError(f"its data version is {meta[1]}, 1 is understood")
        return meta

    def values(self) -> dict[str, str]:
        """Those of the main database that an update needs."""
        found: dict[str, str] = {}
        if self._root != (1 << 8 * self._word) - 1:
            self._walk(self._root, found)
        return found

    def _walk(self, number: int, found: dict[str, str]) -> None:
        self._pages_left -= 1
        if self._pages_left < 0:
            raise ValueError("its pages go in circles")
        start, flags, lower = self._page(number)
        page = self._data[start : start + self.page_bytes]
        count = (lower - self._page_head.size) // 2
        for at in struct.unpack_from(f"<{count}H", page, self._page_head.size):
            low, high, node_flags, key_bytes = _NODE.unpack_from(page, at)
            size = low | high << 16
            if flags & _BRANCH:
                self._walk(size | (node_flags << 32 if self._word == 8 else 0), found)
                continue
            value_at = at + _NODE.size + key_bytes
            key = page[at + _NODE.size : value_at].decode(errors="replace")
            if key not in _KEYS or node_flags & _OTHER:
                continue
            if node_flags & _BIG:
                begin, big_flags, _ = self._page(self._number.unpack_from(page, value_at)[0])
                if not big_flags & _OVERFLOW:
                    raise ValueError("a long value is not where it should be")
                begin += self._page_head.size
                value = self._data[begin : begin + size]
            else:
                value = page[value_at : value_at + size]
            if len(value) != size:
                raise ValueError("a value is cut off")
            found[key] = value.decode(errors="replace")

    def _page(self, number: int) -> tuple[int, int, int]:
        """Offset, flags and lower bound of a page."""
        start = number * self.page_bytes
        if start + self.page_bytes > len(self._data):
            raise ValueError(f"it ends before page {number}")
        own, _, flags, lower, _ = self._page_head.unpack_from(self._data, start)
        if own != number or not flags & (_BRANCH | _LEAF | _OVERFLOW):
            raise ValueError(f"page {number} is damaged")
        return start, flags, lower


def read(path: str, known: str | None) -> dict[str, str] | None:
    """The values to go on with, and the transaction they are of under TRANSACTION. None if that is `known`.

    Raises StoreError for a file that cannot be read or is damaged.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise ValueError(f"it has more than {_MAX_BYTES >> 20} MiB")
        database = _File(data)
        if str(database.transaction) == known:
            return None
        values = database.values()
    except OSError as error:
        raise StoreError(f"cannot read the former client's state, {path}: {error.strerror}") from error
    except (ValueError, struct.error, RecursionError) as error:
        raise StoreError(
            f"cannot use the former client's state, {path}: {error}", hint="is the file damaged?"
        ) from error
    uncommitted = values.pop(_UNCOMMITTED, None)
    if _STATE in values:
        values[_STATE] = _current(values[_STATE], uncommitted)
    return {**values, TRANSACTION: str(database.transaction)}


def _current(state: str, uncommitted: str | None) -> str:
    """The saved deployment in version 2 (state-machine.md section 7): as it is, or brought there from 1.

    What nobody understands is handed on as it is; the daemon says so and starts in Idle.
    """
    old, new = _document(state), _document(uncommitted or "")
    version = old.get("Version")
    if version == 1:
        info = _object(old.get("UpdateInfo"))
        if new.get("Version") == 2 and _object(new.get("UpdateInfo")).get("ID") == info.get("ID"):
            return uncommitted or state
        artifact = {**_object(info.get("Artifact")), "PayloadTypes": ["rootfs-image"]}
        info = {
            **info,
            "Artifact": artifact,
            "RebootRequested": ["reboot-type-custom"],
            "SupportsRollback": "rollback-supported",
        }
        return json.dumps({**old, "Version": 2, "UpdateInfo": info}, separators=(",", ":"))
    return state if version == 2 else uncommitted or state


def _document(text: str) -> dict[str, object]:
    try:
        return _object(json.loads(text))
    except ValueError:
        return {}


def _object(value: object) -> dict[str, object]:
    return value if isinstance(value, dict) else {}
