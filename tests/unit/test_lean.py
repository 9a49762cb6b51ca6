# SPDX-License-Identifier: Apache-2.0
"""`lean` does what the complete modules do; each case runs in a process that has not imported them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from update_agent import lean

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(VALUES)
def test_what_is_written_is_what_json_writes_and_is_read_back(value: object) -> None:
    for separators in ((", ", ": "), (",", ":")):
        text = lean.json.dumps(value, sort_keys=True, separators=separators)
        assert text == json.dumps(value, sort_keys=True, separators=separators)
        assert lean.json.loads(text) == lean.json.loads(f" {text}\n".encode()) == value


@given(st.text() | st.text('[]{}:,"\\\\ 0123456789.eEtrufalsn-NaIity\n'))
def test_any_text_is_read_or_refused_as_json_does(text: str) -> None:
    def outcome(module: object) -> object:
        try:
            return repr(module.loads(text))  # type: ignore[attr-defined]
        except ValueError as error:
            return str(error)

    assert outcome(lean.json) == outcome(json)


def fresh(code: str) -> str:
    """What a process prints that has imported nothing yet."""
    agent = Path(lean.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"from update_agent.lean import json\n{code}"],
        env={**os.environ, "PYTHONPATH": str(agent)},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.mark.parametrize("text", ['{"a": [1, 2.5, "\\u00e4"], "b": null}', '"x"', " 1 "])
def test_reading_and_writing_imports_nothing(text: str) -> None:
    code = f"print(json.dumps(json.loads({text!r})))\n"
    code += "import sys; print({'re', 'enum', 'json'} & set(sys.modules))"
    assert fresh(code).splitlines() == [json.dumps(json.loads(text)), "set()"]


@pytest.mark.parametrize("text", ["", "{", "[1,]", "1 2", '"\x01"', '{"a" 1}', "[NaN, -Infinity]", "\ufeff1"])
def test_errors_are_those_of_json(text: str) -> None:
    code = f"try: print(json.loads({text!r}))\nexcept ValueError as error: print(error)"
    try:
        expected = str(json.loads(text))
    except ValueError as error:
        expected = str(error)
    assert fresh(code) == expected


@pytest.mark.parametrize("data", [b"\xff", "\ufeff1".encode(), '"ä"'.encode("utf-16")])
def test_bytes_in_other_encodings(data: bytes) -> None:
    code = f"try: print(ascii(json.loads({data!r})))\nexcept ValueError as error: print(error)"
    try:
        expected = ascii(json.loads(data))
    except ValueError as error:
        expected = str(error)
    assert fresh(code) == expected


def test_hooks_are_obeyed() -> None:
    def refuse(name: str) -> object:
        raise ValueError(f"no {name}")

    assert lean.json.loads('{"a": 1, "a": 2}', object_pairs_hook=list) == [("a", 1), ("a", 2)]
    with pytest.raises(ValueError, match="no NaN"):
        lean.json.loads("NaN", parse_constant=refuse)


def test_what_is_nested_too_deeply_is_a_value_error_like_all_that_cannot_be_read() -> None:
    for text in ("[" * 200_000, '{"a":' * 200_000):
        with pytest.raises(ValueError, match="nested too deeply"):
            lean.json.loads(text)


@pytest.mark.parametrize(("value", "is_text"), [("ü", True), ("a\0", False), ("\ud800", False), (1, False)])
def test_text_that_programs_can_be_given(value: object, is_text: bool) -> None:
    assert lean.is_text(value) is is_text


def test_what_cannot_be_json() -> None:
    with pytest.raises(TypeError, match="bytes"):
        lean.json.dumps({"a": b"x"})


def test_accepting(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    listener = lean.socket.socket(lean.socket.AF_UNIX, lean.socket.SOCK_STREAM)
    listener.bind(path)
    listener.listen(1)
    client = socket.socket(socket.AF_UNIX)
    client.connect(path)
    connection = lean.accept(listener)
    assert not os.get_inheritable(connection.fileno())
    connection.sendall(b"hello")
    assert client.recv(5) == b"hello"
    for end in (listener, client, connection):
        end.close()
