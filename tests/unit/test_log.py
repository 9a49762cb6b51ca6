# SPDX-License-Identifier: Apache-2.0
"""Log lines to stderr and into deployment logs, also when disk or stderr are gone."""

from __future__ import annotations

import io
import json
import os
import re
from pathlib import Path

import pytest

from update_agent.log import Log, timestamp


def logged(directory: Path, name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (directory / f"deployments.{name}.log").read_text().splitlines()]


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.glob("deployments.*.log"))


def test_a_line_has_time_and_level() -> None:
    stream = io.StringIO()
    Log(stream=stream).warning("one\ntwo")
    lines = stream.getvalue().splitlines()
    assert [line.split(" ", 1)[1] for line in lines] == ["WARNING: one", "WARNING: two"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", lines[0].split(" ")[0])


def test_the_journal_gets_priorities_instead(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "8:1")
    log = Log("debug")
    for level in ("debug", "info", "warning", "error"):
        log.write(level, level)
    assert capsys.readouterr().err.splitlines() == ["<7>debug", "<6>info", "<4>warning", "<3>error"]


def test_lines_below_the_level_go_into_the_deployment_log_only(tmp_path: Path) -> None:
    stream = io.StringIO()
    log = Log("error", stream=stream)
    log.open_deployment(str(tmp_path), "3f1c")
    log.debug("quiet")
    log.error("loud")
    log.close_deployment()
    log.error("after")
    assert "quiet" not in stream.getvalue()
    entries = logged(tmp_path, "0000.3f1c")
    assert [(entry["level"], entry["message"]) for entry in entries] == [
        ("debug", "quiet"),
        ("error", "loud"),
    ]


def test_entries_are_one_json_object_a_line(tmp_path: Path) -> None:
    log = Log(stream=io.StringIO())
    log.open_deployment(str(tmp_path), "3f1c")
    log.info('quote " and ümlaut\nsecond line\x00')
    entries = logged(tmp_path, "0000.3f1c")
    assert [entry["message"] for entry in entries] == ['quote " and ümlaut', "second line\x00"]
    assert all(entry.keys() == {"timestamp", "level", "message"} for entry in entries)
    assert entries[0]["timestamp"] <= timestamp()


def test_a_resumed_deployment_goes_on_in_its_log(tmp_path: Path) -> None:
    for word in ("before", "after"):
        log = Log(stream=io.StringIO())
        log.open_deployment(str(tmp_path), "3f1c")
        log.info(word)
    assert [entry["message"] for entry in logged(tmp_path, "0000.3f1c")] == ["before", "after"]
    assert names(tmp_path) == ["deployments.0000.3f1c.log"]


def test_the_last_five_logs_are_kept(tmp_path: Path) -> None:
    log = Log(stream=io.StringIO())
    (tmp_path / "deployments.txt").write_text("not a log")
    for number in range(7):
        log.open_deployment(str(tmp_path), f"id{number}")
        log.info(str(number))
    assert names(tmp_path) == [f"deployments.000{index}.id{6 - index}.log" for index in range(5)]
    assert logged(tmp_path, "0004.id2")[0]["message"] == "2"
    assert (tmp_path / "deployments.txt").exists()


def test_old_logs_make_room_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(stream=io.StringIO())
    for number in range(3):
        log.open_deployment(str(tmp_path), f"id{number}")
    real = os.statvfs(tmp_path)
    full = os.statvfs_result([real[0], 4096, real[2], 24, 24, *real[5:]])  # 96 KiB are free
    monkeypatch.setattr(os, "statvfs", lambda _: full)
    log.open_deployment(str(tmp_path), "id3")
    assert names(tmp_path) == ["deployments.0000.id3.log", "deployments.0001.id2.log"]


def test_a_missing_directory_costs_the_deployment_log_only(tmp_path: Path) -> None:
    stream = io.StringIO()
    log = Log(stream=stream)
    log.open_deployment(str(tmp_path / "absent"), "3f1c")
    log.info("goes on")
    assert "cannot open the deployment log" in stream.getvalue()
    assert stream.getvalue().endswith("INFO: goes on\n")


def test_a_closed_stderr_does_not_stop_anything(tmp_path: Path) -> None:
    stream = io.StringIO()
    log = Log(stream=stream)
    log.open_deployment(str(tmp_path), "3f1c")
    stream.close()
    log.info("still kept")
    assert logged(tmp_path, "0000.3f1c")[0]["message"] == "still kept"


def test_a_log_file_takes_any_file_name(tmp_path: Path) -> None:
    log = Log(path=str(tmp_path / "log"))
    log.info("State script Idle_Enter_00_\udcff is skipped")
    assert "State script Idle_Enter_00_\\udcff is skipped" in (tmp_path / "log").read_text()


def test_a_log_file_is_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "agent.log"
    path.write_text("earlier\n")
    Log(path=str(path)).info("later")
    lines = path.read_text().splitlines()
    assert lines[0] == "earlier"
    assert lines[1].endswith("INFO: later")
