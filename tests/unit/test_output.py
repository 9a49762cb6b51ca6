# SPDX-License-Identifier: Apache-2.0
"""What programs print, as log lines."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from update_agent.log import Log
from update_agent.output import OutputLines


def logged(chunks: list[tuple[str, bytes]], limit_bytes: int | None = None) -> list[str]:
    stream = io.StringIO()
    lines = OutputLines(Log(stream=stream), "(%s): ", limit_bytes=limit_bytes)
    for name, chunk in chunks:
        lines.feed(name, chunk)
    lines.close()
    lines.close()  # says nothing twice
    return [line.split(" INFO: ", 1)[1] for line in stream.getvalue().splitlines()]


def test_lines_are_put_together_from_chunks_for_each_stream() -> None:
    chunks = [("stdout", b"on"), ("stderr", b"oo"), ("stdout", b"e\ntwo\n\nend"), ("stderr", b"ps\n")]
    assert logged(chunks) == [
        "(stdout): one",
        "(stdout): two",
        "(stdout): ",
        "(stderr): oops",
        "(stdout): end",
    ]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"a\xffb\n", ["a\\xffb"]),
        (b"a\0b\n", ["a\\x00b"]),
        ("Größe ✓\n".encode(), ["Größe ✓"]),
        (b"10%\r20%\r30%\n", ["10%", "20%", "30%"]),
        (b"<3>not a priority\n", ["<3>not a priority"]),
    ],
)
def test_bytes_that_are_no_plain_text(data: bytes, expected: list[str]) -> None:
    assert logged([("stderr", data)]) == [f"(stderr): {line}" for line in expected]


def test_a_character_may_be_split_between_chunks() -> None:
    data = "ü\n".encode()
    assert logged([("stdout", data[:1]), ("stdout", data[1:])]) == ["(stdout): ü"]


def test_a_line_without_end_is_broken_and_nothing_of_it_lost() -> None:
    lines = logged([("stdout", b"x" * 1000)] * 20)
    assert len(lines) == 5
    assert "".join(line.removeprefix("(stdout): ") for line in lines) == "x" * 20_000


def test_the_limit_counts_both_streams_and_is_told_once() -> None:
    chunks = [("stdout", b"12345\n"), ("stderr", b"6789abc\n"), ("stdout", b"more\n"), ("stderr", b"more\n")]
    assert logged(chunks, limit_bytes=10) == [
        "(stdout): 12345",
        "(stderr): 6789",
        "(stderr): [output truncated after 10 bytes]",
        # the end of each is what a program says last
        "(stdout): more",
        "(stderr): abc",
        "(stderr): more",
    ]


def test_of_what_is_left_out_the_end_is_told() -> None:
    noise = b"".join(b"step %d\n" % number for number in range(100_000))
    lines = logged([("stdout", noise), ("stderr", b"error: no such thing\n"), ("stdout", noise)], 10_000)
    truncated = lines.index("(stdout): [output truncated after 10000 bytes]")
    assert sum(len(line) - 9 for line in lines[:truncated]) == 10_000
    tail = lines[truncated + 1 :]
    assert tail[-2:] == ["(stdout): step 99999", "(stderr): error: no such thing"]
    assert 1500 < sum(len(line) - 9 for line in tail) < 3000
    assert all(line.startswith("(stdout): step 99") for line in tail[:-1])


def test_very_many_short_lines_have_a_limit_of_their_own() -> None:
    """An entry of the log is a hundred times as long as an empty line."""
    lines = logged([("stdout", b"y\n" * 200_000)], 256 << 10)
    assert lines.index("(stdout): [output truncated after 10240 lines]") == 10240
    assert len(lines) < 12_000
    assert logged([("stdout", b"y\n" * 10240)], 256 << 10) == ["(stdout): y"] * 10240
    assert len(logged([("stdout", b"y\n" * 20_000)])) == 20_000


def test_exactly_the_limit_is_not_truncated() -> None:
    assert logged([("stdout", b"12345\n")], limit_bytes=6) == ["(stdout): 12345"]


@given(st.lists(st.binary(max_size=50), max_size=20))
def test_chunking_does_not_matter(chunks: list[bytes]) -> None:
    whole = b"".join(chunks)
    assert logged([("stdout", chunk) for chunk in chunks]) == logged([("stdout", whole)])


@given(st.lists(st.binary(max_size=50), max_size=20), st.integers(1, 100))
def test_with_a_limit_chunking_does_not_matter_either(chunks: list[bytes], limit_bytes: int) -> None:
    whole = b"".join(chunks)
    assert logged([("stdout", chunk) for chunk in chunks], limit_bytes) == logged(
        [("stdout", whole)], limit_bytes
    )
