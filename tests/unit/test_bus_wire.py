# SPDX-License-Identifier: Apache-2.0
"""The wire format against another implementation of it, jeepney, in both directions."""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jeepney import Parser as PeerParser
from jeepney.low_level import Endianness, Header, HeaderFields, MessageFlag, MessageType
from jeepney.low_level import Message as PeerMessage

from update_agent import bus_wire as wire
from update_agent.bus_wire import Authenticator, Message, Parser, WireError

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
BASIC: dict[str, st.SearchStrategy[Any]] = {
    "y": st.integers(0, 0xFF),
    "b": st.booleans(),
    "n": st.integers(-(1 << 15), (1 << 15) - 1),
    "q": st.integers(0, (1 << 16) - 1),
    "i": st.integers(-(1 << 31), (1 << 31) - 1),
    "u": st.integers(0, (1 << 32) - 1),
    "x": st.integers(-(1 << 63), (1 << 63) - 1),
    "t": st.integers(0, (1 << 64) - 1),
    "d": st.floats(allow_nan=False),
    "s": TEXT,
    "o": st.just("/org/example"),
    "g": st.sampled_from(["", "a{sv}", "ss"]),
}


def _array(inner: tuple[str, st.SearchStrategy[Any]]) -> tuple[str, st.SearchStrategy[Any]]:
    kind, values = inner
    return "a" + kind, st.lists(values, max_size=4)


def _structure(inner: list[tuple[str, st.SearchStrategy[Any]]]) -> tuple[str, st.SearchStrategy[Any]]:
    return f"({''.join(kind for kind, _ in inner)})", st.tuples(*(values for _, values in inner))


def _dictionary(inner: tuple[str, st.SearchStrategy[Any]]) -> tuple[str, st.SearchStrategy[Any]]:
    kind, values = inner
    return f"a{{s{kind}}}", st.dictionaries(TEXT, values, max_size=4)


def _variant(inner: tuple[str, st.SearchStrategy[Any]]) -> tuple[str, st.SearchStrategy[Any]]:
    kind, values = inner
    return "v", values.map(lambda value: (kind, value))


BASIC_KINDS = st.sampled_from(list(BASIC.items()))
# Arrays of bytes are something else in jeepney, which has `bytes` for them.
KINDS = st.recursive(
    BASIC_KINDS,
    lambda inner: st.one_of(
        inner.filter(lambda pair: pair[0] != "y").map(_array),
        st.lists(inner, min_size=1, max_size=3).map(_structure),
        inner.map(_dictionary),
        inner.map(_variant),
    ),
    max_leaves=6,
)


@st.composite
def bodies(draw: st.DrawFn) -> tuple[str, tuple[Any, ...]]:
    """A signature and arguments for it."""
    pairs = draw(st.lists(KINDS, max_size=4))
    return "".join(kind for kind, _ in pairs), tuple(draw(values) for _, values in pairs)


def decoded(data: bytes) -> Message:
    parser = Parser()
    parser.feed(data)
    message = parser.next()
    assert message is not None
    assert parser.next() is None
    return message


@given(bodies(), st.integers(1, (1 << 32) - 1))
def test_what_we_send_is_read_by_another(content: tuple[str, tuple[Any, ...]], serial: int) -> None:
    signature, body = content
    parser = PeerParser()
    parser.add_data(wire.signal("/org/example", "org.example.A", "Changed", signature, body).encode(serial))
    read = parser.get_next_message()
    assert read is not None
    assert (read.header.message_type, read.header.serial) == (MessageType.signal, serial)
    assert read.header.fields[HeaderFields.member] == "Changed"
    assert read.header.fields.get(HeaderFields.signature, "") == signature
    assert read.body == body


@given(bodies(), st.sampled_from([Endianness.little, Endianness.big]))
def test_what_another_sends_is_read_by_us(content: tuple[str, tuple[Any, ...]], order: Endianness) -> None:
    signature, body = content
    fields = {HeaderFields.path: "/a", HeaderFields.member: "Call", HeaderFields.sender: ":1.7"}
    if signature:
        fields[HeaderFields.signature] = signature
    header = Header(order, MessageType.method_call, MessageFlag.no_reply_expected, 1, -1, 42, fields)
    message = decoded(PeerMessage(header, body).serialise())
    assert (message.kind, message.flags, message.serial) == (wire.METHOD_CALL, wire.NO_REPLY_EXPECTED, 42)
    assert message.fields["sender"] == ":1.7"
    assert message.body == body


def test_replies_and_errors_go_back_to_the_caller() -> None:
    call = Message(wire.METHOD_CALL, {"path": "/a", "member": "M", "sender": ":1.7"})
    call.serial = 9
    reply, refusal = decoded(call.reply("s", ("yes",)).encode(1)), decoded(call.refuse("a.b", "no").encode(2))
    assert (reply.kind, reply.body, refusal.kind, refusal.body) == (
        wire.METHOD_RETURN,
        ("yes",),
        wire.ERROR,
        ("no",),
    )
    for answer in (reply, refusal):
        assert (answer.fields["reply_serial"], answer.fields["destination"]) == (9, ":1.7")
    assert refusal.fields["error_name"] == "a.b"
    assert decoded(call.reply("", ()).encode(3)).body == ()


def test_messages_arrive_in_pieces() -> None:
    one, two = wire.call_bus("Hello").encode(1), wire.call_bus("GetId").encode(2)
    parser, members = Parser(), []
    for byte in one + two:
        parser.feed(bytes([byte]))
        while message := parser.next():
            members.append(message.fields["member"])
    assert members == ["Hello", "GetId"]


@given(st.binary(min_size=16, max_size=400))
def test_any_bytes_are_read_refused_or_waited_for(data: bytes) -> None:
    for start in (b"", b"l\x04\x00\x01"):
        parser = Parser()
        parser.feed((start + data)[: len(data)])
        try:
            while parser.next():
                pass
        except WireError:
            pass


@given(bodies(), st.data())
def test_a_damaged_message_is_skipped_and_the_next_one_read(
    content: tuple[str, tuple[Any, ...]], data: st.DataObject
) -> None:
    good = wire.call_bus("Hello").encode(1)
    message = bytearray(wire.signal("/a", "a.b", "C", *content).encode(7))
    at = data.draw(st.integers(16, len(message) - 1))
    message[at] ^= data.draw(st.integers(1, 255))
    parser = Parser()
    parser.feed(bytes(message) + good)
    members = []
    for _ in range(2):
        try:
            read = parser.next()
        except WireError:
            continue
        if read is not None:
            members.append(read.fields.get("member"))
    assert members[-1] == "Hello"


def test_too_long_and_not_dbus_is_lost() -> None:
    head = wire.call_bus("Hello").encode(1)
    huge = head[:4] + (wire.MAX_MESSAGE_BYTES + 1).to_bytes(4, "little") + head[8:]
    for data in (huge, b"HTTP/1.1 200 OK\r\n\r\n"):
        parser = Parser()
        parser.feed(data)
        with pytest.raises(WireError):
            parser.next()
        assert parser.is_lost


def test_deep_nesting_is_refused() -> None:
    value: tuple[str, Any] = ("s", "x")
    for _ in range(100):
        value = ("v", value)
    data = wire.signal("/a", "a.b", "C", "v", (value,)).encode(1)
    parser = Parser()
    parser.feed(data)
    with pytest.raises(WireError, match="variants"):
        parser.next()
    assert not parser.is_lost
    for signature in ("a" * 200 + "s", "(" * 200 + "s" + ")" * 200, "a", "(s", "{sv", "z", ")", "()", "a()"):
        with pytest.raises(WireError, match="signature"):
            wire.signal("/a", "a.b", "C", signature, ((),)).encode(1)


# Address and authentication


@pytest.mark.parametrize(
    ("text", "path"),
    [
        (None, "/var/run/dbus/system_bus_socket"),
        ("", "/var/run/dbus/system_bus_socket"),
        ("unix:path=/run/bus,guid=abc", "/run/bus"),
        ("unix:guid=abc,path=/run/b%20s", "/run/b s"),
        ("unix:abstract=/tmp/x", "\0/tmp/x"),
        ("tcp:host=a,port=1;unix:path=/run/bus", "/run/bus"),
    ],
)
def test_the_address_of_the_bus(text: str | None, path: str) -> None:
    assert wire.system_bus({} if text is None else {"DBUS_SYSTEM_BUS_ADDRESS": text}) == path


@pytest.mark.parametrize("text", ["tcp:host=a,port=1", "unix:dir=/tmp", "x", "unix:path=%zz"])
def test_addresses_of_no_use(text: str) -> None:
    with pytest.raises(WireError, match="address"):
        wire.system_bus({"DBUS_SYSTEM_BUS_ADDRESS": text})


def test_authentication() -> None:
    auth = Authenticator()
    assert auth.hello() == b"\0AUTH EXTERNAL " + str(os.geteuid()).encode().hex().encode() + b"\r\n"
    assert not auth.feed(b"OK 1234")
    assert auth.feed(b"abcd\r\n")


@pytest.mark.parametrize("answer", [b"REJECTED EXTERNAL\r\n", b"ERROR\r\n", b"x" * 2000])
def test_a_bus_that_does_not_want_us(answer: bytes) -> None:
    with pytest.raises(WireError, match="does not authenticate us"):
        Authenticator().feed(answer)
