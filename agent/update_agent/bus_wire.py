# SPDX-License-Identifier: Apache-2.0
"""D-Bus as it goes over the wire: address, authentication, messages. No I/O.

By hand because libraries bring `socket`, `typing` and `enum`: 2.5 MB of a daemon that is idle. All types but
file descriptors; the names of header fields are those of the D-Bus specification.
"""

from __future__ import annotations

import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

METHOD_CALL, METHOD_RETURN, ERROR, SIGNAL = 1, 2, 3, 4
NO_REPLY_EXPECTED = 1
MAX_MESSAGE_BYTES = 8 << 20  # the bus allows 128 MiB; nothing that is sent to us comes near this
_MAX_DEPTH = 64
_DEFAULT_ADDRESS = "unix:path=/var/run/dbus/system_bus_socket"
_FIELDS = {  # code: name, signature
    1: ("path", "o"),
    2: ("interface", "s"),
    3: ("member", "s"),
    4: ("error_name", "s"),
    5: ("reply_serial", "u"),
    6: ("destination", "s"),
    7: ("sender", "s"),
    8: ("signature", "g"),
}
_CODES = {name: (code, signature) for code, (name, signature) in _FIELDS.items()}
# Numbers: type: struct format. All are aligned to their size.
_NUMBERS = {"y": "B", "n": "h", "q": "H", "i": "i", "u": "I", "b": "I", "x": "q", "t": "Q", "d": "d"}
_ALIGN = {
    **{kind: struct.calcsize(form) for kind, form in _NUMBERS.items()},
    "s": 4,
    "o": 4,
    "g": 1,
    "v": 1,
    "a": 4,
    "(": 8,
    "{": 8,
}


class WireError(ValueError):
    """The peer sent something that is not D-Bus, or more than we take."""


# Address and authentication


def system_bus(environ: Mapping[str, str] = os.environ) -> str:
    """Socket of the system bus: of DBUS_SYSTEM_BUS_ADDRESS or the usual one; abstract ones begin with NUL.

    Raises WireError for an address of another kind.
    """
    text = environ.get("DBUS_SYSTEM_BUS_ADDRESS") or _DEFAULT_ADDRESS
    for address in text.split(";"):
        transport, _, rest = address.partition(":")
        options = dict(pair.partition("=")[::2] for pair in rest.split(","))
        if transport == "unix":
            for key, start in (("path", ""), ("abstract", "\0")):
                if key in options:
                    return start + _unescaped(options[key])
    raise WireError(f"the address {text!r} is none of a Unix socket")


def _unescaped(text: str) -> str:
    first, *rest = text.split("%")
    try:
        return first + "".join(chr(int(part[:2], 16)) + part[2:] for part in rest)
    except ValueError as error:
        raise WireError(f"the address has a wrong escape in {text!r}") from error


class Authenticator:
    """Proves who we are by the socket's credentials. Send HELLO first, BEGIN when `feed` returned True."""

    HELLO = b"\0AUTH EXTERNAL %s\r\n"
    BEGIN = b"BEGIN\r\n"

    def __init__(self) -> None:
        self._line = b""

    def hello(self) -> bytes:
        """What to send first."""
        return self.HELLO % str(os.geteuid()).encode().hex().encode()

    def feed(self, data: bytes) -> bool:
        """Take what the bus says; True when we are accepted. Raises WireError when not."""
        self._line += data
        if b"\r\n" not in self._line:
            if len(self._line) > 1024:
                raise WireError("the bus does not authenticate us: its answer has no end")
            return False
        line = self._line.partition(b"\r\n")[0]
        if not line.startswith(b"OK "):
            raise WireError(
                f"the bus does not authenticate us: {line[:80].decode(errors='backslashreplace')}"
            )
        return True


# Messages


class Message:
    """One message. `fields` has what is given of the header fields, `body` the arguments."""

    __slots__ = ("body", "fields", "flags", "kind", "serial")

    def __init__(self, kind: int, fields: dict[str, Any], body: tuple[Any, ...] = (), flags: int = 0) -> None:
        self.kind = kind
        self.fields = fields
        self.body = body
        self.flags = flags
        self.serial = 0

    def encode(self, serial: int) -> bytes:
        """The message as it is sent, with this serial number."""
        self.serial = serial
        body = bytearray()
        for kind, value in zip(_split(self.fields.get("signature", "")), self.body, strict=True):
            _put(body, kind, value)
        fields = []
        for name, value in self.fields.items():
            code, kind = _CODES[name]
            if value:
                fields.append((code, (kind, value)))
        data = bytearray(struct.pack("<cBBBII", b"l", self.kind, self.flags, 1, len(body), serial))
        _put(data, "a(yv)", fields)
        _pad(data, 8)
        return bytes(data + body)

    def reply(self, signature: str, body: tuple[Any, ...]) -> Message:
        """The answer to a call."""
        return Message(METHOD_RETURN, {**self._back(), "signature": signature}, body)

    def refuse(self, name: str, text: str) -> Message:
        """The error that answers a call."""
        return Message(ERROR, {**self._back(), "error_name": name, "signature": "s"}, (text,))

    def _back(self) -> dict[str, Any]:
        return {"reply_serial": self.serial, "destination": self.fields.get("sender", "")}


def call_bus(member: str, signature: str = "", body: tuple[Any, ...] = ()) -> Message:
    """A call to the bus itself."""
    name = "org.freedesktop.DBus"
    address = {"path": "/org/freedesktop/DBus", "destination": name, "interface": name}
    return Message(METHOD_CALL, {**address, "member": member, "signature": signature}, body)


def signal(path: str, interface: str, member: str, signature: str, body: tuple[Any, ...]) -> Message:
    """A signal to all who listen."""
    fields = {"path": path, "interface": interface, "member": member, "signature": signature}
    return Message(SIGNAL, fields, body)


class Parser:
    """Bytes in, messages out."""

    def __init__(self) -> None:
        self._data = b""

    def feed(self, data: bytes) -> None:
        """Take what came in."""
        self._data += data

    def next(self) -> Message | None:
        """The next message, None until it is complete.

        Raises WireError: a message that cannot be read, which is skipped. When `is_lost` nothing more can be
        read.
        """
        if len(self._data) < 16:
            return None
        order, body_bytes, fields_bytes = self._sizes()
        size = 16 + fields_bytes + -fields_bytes % 8 + body_bytes
        if self.is_lost:
            raise WireError("not D-Bus, or a message that is too long")
        if len(self._data) < size:
            return None
        data, self._data = self._data[:size], self._data[size:]
        return _decode(data, order, size - body_bytes)

    @property
    def is_lost(self) -> bool:
        """What came in is not the beginning of a message."""
        if len(self._data) < 16:
            return False
        _, body_bytes, fields_bytes = self._sizes()
        return (
            self._data[:1] not in (b"l", b"B")
            or self._data[3] != 1
            or body_bytes + fields_bytes > MAX_MESSAGE_BYTES
        )

    def _sizes(self) -> tuple[str, int, int]:
        order = ">" if self._data[:1] == b"B" else "<"
        return order, *struct.unpack_from(f"{order}4xI4xI", self._data)


def _decode(data: bytes, order: str, body_at: int) -> Message:
    reader = _Reader(data, order)
    try:
        _, kind, flags, _, _, serial, fields = (reader.take(kind) for kind in ("y", *"yyyuu", "a(yv)"))
        known = {_FIELDS[code][0]: value for code, (_, value) in fields if code in _FIELDS}
        reader.at = body_at
        body = tuple(reader.take(part) for part in _split(known.get("signature", "")))
    except (struct.error, IndexError, KeyError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise WireError(f"a message could not be read: {error!r}") from error
    message = Message(kind, known, body, flags)
    message.serial = serial
    return message


# Values


def _end(signature: str, at: int, depth: int = 0) -> int:
    """Index after the complete type that begins at `at`. Raises WireError."""
    kind = signature[at : at + 1]
    if depth > _MAX_DEPTH or not kind or (kind not in _ALIGN):
        raise WireError(f"the signature {signature[:80]!r} is not valid")
    if kind == "a":
        return _end(signature, at + 1, depth + 1)
    if kind in "({":
        close = ")" if kind == "(" else "}"
        at = _end(signature, at + 1, depth + 1)  # an empty structure would take no bytes, without end
        while signature[at : at + 1] != close:
            at = _end(signature, at, depth + 1)
    return at + 1


def _split(signature: str) -> list[str]:
    """The complete types of a signature, one by one."""
    parts, at = [], 0
    while at < len(signature):
        end = _end(signature, at)
        parts.append(signature[at:end])
        at = end
    return parts


def _pad(data: bytearray, align: int) -> None:
    data += bytes(-len(data) % align)


def _put(data: bytearray, kind: str, value: Any) -> None:
    """Append a value of one complete type."""
    first = kind[0]
    _pad(data, _ALIGN[first])
    if first in _NUMBERS:
        data += struct.pack("<" + _NUMBERS[first], value)
    elif first in "sog":
        text = value.encode()
        data += struct.pack("<B" if first == "g" else "<I", len(text)) + text + b"\0"
    elif first == "v":
        _put(data, "g", value[0])
        _put(data, *value)
    elif first == "a":
        at = len(data)
        data += bytes(4)
        _pad(data, _ALIGN[kind[1]])
        start = len(data)
        if kind[1] == "{":
            value = value.items()
        for item in value:
            _put(data, kind[1:], item)
        struct.pack_into("<I", data, at, len(data) - start)
    else:
        for part, item in zip(_split(kind[1:-1]), value, strict=True):
            _put(data, part, item)


class _Reader:
    """Values out of a message, one after the other."""

    def __init__(self, data: bytes, order: str) -> None:
        self.at = 0
        self._data = data
        self._order = order
        self._depth = 0

    def _number(self, form: str) -> Any:
        (value,) = struct.unpack_from(self._order + form, self._data, self.at)
        self.at += struct.calcsize(form)
        return value

    def take(self, kind: str) -> Any:
        """The next value, of one complete type. Raises ValueError and others for a message that is none."""
        first = kind[0]
        self.at += -self.at % _ALIGN[first]
        if first in _NUMBERS:
            value = self._number(_NUMBERS[first])
            return bool(value) if first == "b" else value
        if first in "sog":
            size = self._number("B" if first == "g" else "I")
            text = self._data[self.at : self.at + size]
            self.at += size + 1
            if len(text) != size or self._data[self.at - 1] != 0:
                raise WireError("a text without end")
            return text.decode()
        if first == "v":
            self._depth += 1
            (inner,) = _split(self.take("g"))
            if self._depth > _MAX_DEPTH:
                raise WireError("variants in variants in variants")
            value = inner, self.take(inner)
            self._depth -= 1
            return value
        if first == "a":
            return self._array(kind[1:])
        return tuple(self.take(part) for part in _split(kind[1:-1]))

    def _array(self, item: str) -> Any:
        size = self._number("I")
        self.at += -self.at % _ALIGN[item[0]]
        end = self.at + size
        if end > len(self._data):
            raise WireError("an array longer than the message")
        values = []
        while self.at < end:
            values.append(self.take(item))
        return dict(values) if item[0] == "{" else values
