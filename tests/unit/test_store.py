# SPDX-License-Identifier: Apache-2.0
"""The saved state: what a cut, a torn file, a full disk and a second process leave of it."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import update_agent
from update_agent import store as module
from update_agent.errors import StoreError
from update_agent.log import Log
from update_agent.store import BusyError, Store

FILE, PREVIOUS = "update-agent.json", "update-agent.json.previous"


class Cut(BaseException):
    """The power goes."""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "store").mkdir()
    return tmp_path / "store"


def opened(directory: Path) -> Store:
    return Store(str(directory), Log(level="error"))


def values(directory: Path) -> dict[str, str | None]:
    store = opened(directory)
    return {key: store.get(key) for key in ("state", "artifact-name")}


def test_what_was_written_is_there_again(directory: Path) -> None:
    opened(directory).write({"state": "{}", "artifact-name": "ümlaut \0 \n"})
    assert values(directory) == {"state": "{}", "artifact-name": "ümlaut \0 \n"}


def test_values_are_deleted_and_others_stay(directory: Path) -> None:
    store = opened(directory)
    store.write({"state": "x", "artifact-name": "a"})
    store.write({"state": None, "never-there": None})
    assert store.get("state") is None
    assert values(directory) == {"state": None, "artifact-name": "a"}


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.text(), st.text()))
def test_any_text_survives(directory: Path, content: dict[str, str]) -> None:
    shutil.rmtree(directory)
    directory.mkdir()
    opened(directory).write(dict(content))
    store = opened(directory)
    assert {key: store.get(key) for key in content} == content


def test_the_file_is_for_root_only(directory: Path) -> None:
    opened(directory).write({"state": "x"})
    assert (directory / FILE).stat().st_mode & 0o777 == 0o600


def test_nothing_is_written_when_nothing_changes(directory: Path) -> None:
    store = opened(directory)
    store.write({"state": "x"})
    before = (directory / FILE).stat().st_ino
    store.write({"state": "x"})
    assert (directory / FILE).stat().st_ino == before


def test_json_values(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = opened(directory)
    store.write({"good": '{"a":"b"}', "bad": "{"})
    assert store.get_json("good") == {"a": "b"}
    assert (store.get_json("bad"), store.get_json("absent")) == (None, None)
    assert "'bad' is not JSON" in capsys.readouterr().err


# Damage


def damage_truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


def damage_empty(_: bytes) -> bytes:
    return b""


def damage_zeros(data: bytes) -> bytes:
    return bytes(len(data))


def damage_value(data: bytes) -> bytes:
    return data.replace(b"newer", b"newex")


def damage_garbage(_: bytes) -> bytes:
    return b"\xff\xfe[]{}"


def damage_shape(_: bytes) -> bytes:
    return b"[1, 2]"


def damage_types(_: bytes) -> bytes:
    return b'{"format": 1, "crc32": "00000000", "values": {"a": 1}}'


DAMAGES = [
    damage_truncated,
    damage_empty,
    damage_zeros,
    damage_value,
    damage_garbage,
    damage_shape,
    damage_types,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_answered_with_the_one_before(
    directory: Path, damage: Callable[[bytes], bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    store = opened(directory)
    store.write({"artifact-name": "older"})
    store.write({"artifact-name": "newer"})
    path = directory / FILE
    path.write_bytes(damage(path.read_bytes()))
    assert values(directory)["artifact-name"] == "older"
    told = capsys.readouterr().err
    assert f"{path} is damaged" in told


def test_damage_to_both_files_starts_with_nothing_and_goes_on(directory: Path) -> None:
    store = opened(directory)
    store.write({"artifact-name": "older"})
    store.write({"artifact-name": "newer"})
    for name in (FILE, PREVIOUS):
        (directory / name).write_bytes(b"\0" * 100)
    assert values(directory)["artifact-name"] is None
    opened(directory).write({"artifact-name": "again"})
    assert values(directory)["artifact-name"] == "again"


def test_every_truncation_and_every_flipped_byte_is_noticed(directory: Path) -> None:
    store = opened(directory)
    store.write({"state": "older"})
    store.write({"state": "newer"})
    path = directory / FILE
    data = path.read_bytes()
    for length in range(len(data) - 1):  # the last byte is a line end, of which nothing depends
        path.write_bytes(data[:length])
        assert values(directory)["state"] == "older", f"after {length} bytes"
    for index in range(len(data)):
        path.write_bytes(data[:index] + bytes([data[index] ^ 0x01]) + data[index + 1 :])
        assert values(directory)["state"] in {"older", "newer"}, f"with byte {index} flipped"


def test_a_newer_format_is_not_guessed_at(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    opened(directory).write({"state": "x"})
    path = directory / FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2}))
    assert values(directory)["state"] is None
    assert "has format 2, this agent knows 1" in capsys.readouterr().err


def test_a_huge_file_is_not_read_whole(directory: Path) -> None:
    with open(directory / FILE, "wb") as file:
        file.truncate(1 << 40)
    assert values(directory)["state"] is None


# Power cuts: after every call to the kernel that changes something


def cut_after(count: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[], bool]:
    """Let that many changing calls pass, then no more. Returns whether the cut came."""
    state = {"left": count, "cut": False}

    def wrapped(name: str) -> Callable[..., object]:
        real = getattr(os, name)

        def call(*arguments: object, **keywords: object) -> object:
            if not state["left"]:
                state["cut"] = True
                raise Cut(name)
            state["left"] -= 1
            if name == "write" and len(arguments[1]) > 8:  # type: ignore[arg-type]
                return real(arguments[0], arguments[1][:8])  # type: ignore[index]
            return real(*arguments, **keywords)

        return call

    for name in ("open", "write", "fsync", "replace", "link", "unlink"):
        monkeypatch.setattr(module.os, name, wrapped(name))
    return lambda: state["cut"]


def test_a_cut_anywhere_leaves_the_old_or_the_new_values(tmp_path: Path) -> None:
    points = 0
    for count in range(1000):
        directory = tmp_path / str(count)
        directory.mkdir()
        opened(directory).write({"state": "0", "artifact-name": "0"})
        store = opened(directory)
        store.write({"state": "1", "artifact-name": "1"})
        with pytest.MonkeyPatch.context() as monkeypatch:
            was_cut = cut_after(count, monkeypatch)
            try:
                store.write({"state": "2", "artifact-name": "2"})
            except Cut:
                pass
        found = values(directory)
        expected = ["1", "2"] if was_cut() else ["2"]
        assert found in [{"state": text, "artifact-name": text} for text in expected], (
            f"cut after {count} calls"
        )
        opened(directory).write({"state": "3"})  # what the cut left behind is in nobody's way
        assert values(directory)["state"] == "3"
        if not was_cut():
            break
        points += 1
    assert points > 10


@pytest.mark.parametrize("count", range(4))
def test_a_cut_while_damage_is_mended_leaves_the_values_there_were(directory: Path, count: int) -> None:
    """The damaged file must not take the place of the good one before it."""
    store = opened(directory)
    store.write({"artifact-name": "older"})
    store.write({"artifact-name": "newer"})
    (directory / FILE).write_bytes(b"\0" * 512)
    store = opened(directory)
    with pytest.MonkeyPatch.context() as monkeypatch:
        cut_after(count, monkeypatch)
        with pytest.raises(Cut):
            store.write({"artifact-name": "newest"})
    assert values(directory)["artifact-name"] == "older"
    opened(directory).write({"artifact-name": "newest"})
    assert values(directory)["artifact-name"] == "newest"


def test_damage_is_mended_by_a_write_that_changes_nothing(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = opened(directory)
    store.write({"artifact-name": "older"})
    store.write({"artifact-name": "newer"})
    (directory / FILE).write_bytes(b"")
    opened(directory).write({"artifact-name": "older"})
    capsys.readouterr()
    assert values(directory)["artifact-name"] == "older"
    assert capsys.readouterr().err == ""


def test_the_content_is_on_the_medium_before_its_name(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)

        def call(*arguments: object, real: Callable[..., object] = real, name: str = name) -> object:
            target = os.readlink(f"/proc/self/fd/{arguments[0]}") if name == "fsync" else str(arguments[1])
            calls.append(f"{name} {os.path.basename(target)}")
            return real(*arguments)

        monkeypatch.setattr(module.os, name, call)
    opened(directory).write({"state": "x"})
    assert calls == [f"fsync {FILE}.new", f"replace {FILE}", "fsync store"]


# Disks that refuse


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_disk_that_refuses_changes_nothing(
    directory: Path, monkeypatch: pytest.MonkeyPatch, number: int, call: str
) -> None:
    store = opened(directory)
    store.write({"state": "before"})

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(module.os, call, refuse)
        with pytest.raises(StoreError, match="mounted, writable and not full") as caught:
            store.write({"state": "after"})
    assert os.strerror(number) in caught.value.message
    assert store.get("state") == "before"
    assert values(directory)["state"] == "before"
    store.write({"state": "after"})
    assert values(directory)["state"] == "after"


def test_a_file_system_without_links_has_no_previous_file(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(module.os, "link", refuse)
    for text in ("1", "2"):
        opened(directory).write({"state": text})
    assert values(directory)["state"] == "2"
    assert not (directory / PREVIOUS).exists()


def test_a_directory_that_is_not_there_is_an_error_when_written(tmp_path: Path) -> None:
    store = opened(tmp_path / "absent")
    assert store.get("state") is None
    with pytest.raises(StoreError, match="No such file or directory"):
        store.write({"state": "x"})


# Two processes

_HOLDER = """
import sys
from update_agent.log import Log
from update_agent.store import BusyError, Store
store = Store(sys.argv[1], Log(level="error"))
store.lock()
store.write({"state": "theirs"})
print("locked", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def other_process(directory: Path):
    environment = {**os.environ, "PYTHONPATH": str(Path(update_agent.__file__).parents[1])}
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == "locked\n"
    yield process
    process.stdin.close()
    process.stdout.close()
    process.wait(30)


def test_only_one_process_may_update(directory: Path, other_process: subprocess.Popen[str]) -> None:
    store = opened(directory)
    with pytest.raises(StoreError, match="another update process is at work"):
        store.lock()
    with pytest.raises(StoreError, match="another update process is at work"):
        store.amend({"artifact-name": "ours"})
    other_process.kill()
    other_process.wait(30)
    store.lock()  # a killed process leaves no lock behind
    store.unlock()


@pytest.mark.skipif(os.geteuid() != 0, reason="another user is needed, so root is")
def test_another_user_is_told_who_may(directory: Path) -> None:
    opened(directory).lock()
    told = []
    for what in ("lock", "write"):
        pid = os.fork()
        if pid == 0:
            os.setuid(65534)
            try:
                store = Store(str(directory), Log("fatal"))
                store.lock() if what == "lock" else store.write({"state": "x"})
            except StoreError as error:
                os._exit(7 if "only root may" in str(error) and not isinstance(error, BusyError) else 1)
            os._exit(0)
        told.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    assert told == [7, 7]


def test_a_change_between_updates_keeps_what_others_saved(directory: Path) -> None:
    store = opened(directory)
    store.write({"artifact-name": "a"})
    opened(directory).write({"state": "theirs"})
    store.amend({"artifact-name": "ours"})
    assert values(directory) == {"state": "theirs", "artifact-name": "ours"}


def test_unlocking_counts_although_a_child_has_a_copy_of_the_descriptor(tmp_path: Path) -> None:
    one, other = (Store(str(tmp_path), Log("error")) for _ in range(2))
    one.lock()
    copy = os.dup(one._lock_fd)  # as fork makes one
    try:
        with pytest.raises(BusyError):
            other.lock()
        one.unlock()
        other.lock()
    finally:
        os.close(copy)
        other.unlock()
