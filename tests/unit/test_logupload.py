# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from update_agent import logupload


def line(second: int, message: str = "m", level: str = "info") -> bytes:
    entry = {"timestamp": f"2026-01-01T00:00:{second:02d}.123Z", "level": level, "message": message}
    return json.dumps(entry).encode() + b"\n"


def messages(body: bytes) -> list[dict[str, str]]:
    document = json.loads(body)
    assert list(document) == ["messages"]
    found: list[dict[str, str]] = document["messages"]
    return found


def test_entries_go_as_logged_and_blank_lines_are_skipped() -> None:
    body = logupload.body([line(1, "ä\u2028", "warning"), b"\n", b"  \n", line(2)])
    assert messages(body) == [json.loads(line(1, "ä\u2028", "warning")), json.loads(line(2))]


def test_an_empty_log() -> None:
    assert logupload.body([]) == b'{"messages":[]}'


def test_broken_lines_are_replaced_and_announced() -> None:
    found = messages(logupload.body([b"\x00\xff\n", line(3), b'{"level": "info"}\n', b"[1]\n", line(4)]))
    assert [(entry["timestamp"][-7:], entry["level"], entry["message"]) for entry in found] == [
        ("03.123Z", "ERROR", logupload.INVALID),
        ("000000Z", "ERROR", logupload.CORRUPTED),
        ("03.123Z", "info", "m"),
        ("03.123Z", "ERROR", logupload.CORRUPTED),
        ("03.123Z", "ERROR", logupload.CORRUPTED),
        ("04.123Z", "info", "m"),
    ]
    assert found[1]["timestamp"] == logupload.NO_TIMESTAMP


def test_only_broken_lines() -> None:
    found = messages(logupload.body([b"x\n"]))
    assert {entry["timestamp"] for entry in found} == {logupload.NO_TIMESTAMP}


def test_the_oldest_entries_are_dropped_at_an_entry_boundary() -> None:
    lines = [line(number % 60, f"{number:06d}" + "x" * 200) for number in range(10_000)]
    body = logupload.body(lines)
    assert len(body) <= 1_000_000
    first, *rest = messages(body)
    assert (first["level"], first["message"]) == ("WARNING", logupload.TRUNCATED)
    numbers = [int(entry["message"][:6]) for entry in rest]
    assert numbers == list(range(10_000 - len(rest), 10_000))
    assert len(body) > 990_000


SCRIPT = "Collected output (stdout) while running script: "
MODULE = "Update Module output (stderr): "


def output(number: int, lines: int, prefix: str = SCRIPT) -> list[bytes]:
    """A log of one script: what came before, its output, its end."""
    printed = [line(1, f"{prefix}{number}.{index} {'x' * 80}") for index in range(lines)]
    return [
        line(0, f"begin {number}"),
        *printed,
        line(2, f"State script {number} exited with 1 after 1.00 s"),
    ]


def test_long_output_is_cut_to_its_end_before_anything_else_is_dropped() -> None:
    """Whatever one of them prints, each script's last 10 KiB and every other line get through."""
    logs = [
        output(1, 20),
        output(2, 60_000),
        output(3, 500),
        output(4, 20_000, MODULE),
    ]
    body = logupload.body(entry for log in logs for entry in log)
    assert len(body) <= 1_000_000
    first, *rest = (entry["message"] for entry in messages(body))
    assert first == logupload.TRUNCATED
    for script, log in enumerate(logs, 1):
        sent = [message for message in rest if f": {script}." in message]
        whole = [json.loads(entry)["message"] for entry in log[1:-1]]
        assert sent == whole[-len(sent) :]
        assert len(sent) == len(whole) or 10 << 10 <= sum(map(len, sent)) < (10 << 10) + 200
        assert f"begin {script}" in rest
        assert f"State script {script} exited with 1 after 1.00 s" in rest
        if len(sent) < len(whole):
            assert f"(THE FIRST {len(whole) - len(sent)} LINES OF THIS OUTPUT ARE LEFT OUT)" in rest


def test_output_that_fits_is_sent_whole() -> None:
    log = output(1, 4000)
    assert messages(logupload.body(log)) == [json.loads(entry) for entry in log]


@given(st.lists(st.binary(max_size=60)), st.integers(0, 300))
def test_any_content_makes_a_valid_body(lines: list[bytes], limit: int) -> None:
    for entry in messages(logupload.body(lines, limit)):
        assert set(entry) == {"timestamp", "level", "message"}
