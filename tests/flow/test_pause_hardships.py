# SPDX-License-Identifier: Apache-2.0
"""Decisions and pauses when things are wrong: a full disk, a clock that jumps, nonsense from strangers."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jeepney import DBusAddress, MessageType, new_method_call
from jeepney.io.blocking import DBusConnection, open_dbus_connection
from tests.flow.test_bus import pytestmark
from tests.support.bus_device import APP, OURS_SET, Device, device, on_a_bus, pause_map

from update_agent.bus_objects import FAILED, OWN
from update_agent.control import parse
from update_agent.errors import ControlError
from update_agent.states import POINTS

__all__ = ["device", "pytestmark"]

# Read by every Python at its start: time.time(), and nothing else, is as far off as a file says.
CLOCK = """\
import time
real = time.time
def wrong():
    try:
        with open({path!r}) as file:
            return real() + float(file.read())
    except (OSError, ValueError):
        return real()
time.time = wrong
"""
YEARS_S = 10 * 365 * 86400


def agent(device: Device, *words: str) -> subprocess.CompletedProcess[str]:
    """A command of a person."""
    return subprocess.run(
        device.lab.command(*words), env=device.environment, capture_output=True, text=True, check=False
    )


# A full or read-only disk


@pytest.fixture
def small_disk(device: Device) -> Iterator[Path]:
    """The agent's datastore is a tmpfs with hardly any room."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    store = Path(device.lab.store_dir)
    shutil.copytree(store, f"{store}.old")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k,mode=755", "none", store], check=True)
    try:
        shutil.copytree(f"{store}.old", store, dirs_exist_ok=True)
        yield store
    finally:
        device.kill()
        subprocess.run(["umount", "-l", store], check=True)


@pytest.mark.parametrize("harm", ["full", "read-only"])
def test_a_decision_that_cannot_be_saved_is_refused(device: Device, small_disk: Path, harm: str) -> None:
    device.start()
    device.until_on_bus()
    device.until_logged("Authorized by")  # its key is on the disk
    filler = small_disk / "filler"
    if harm == "full":
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(b"x" * 4096)
        reason = "No space left on device"
    else:
        subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
        reason = "Read-only file system"
    refused = device.set_map(pause_map())
    assert refused.stderr.startswith(
        f"Error {FAILED}: Method returned error, see Mender logs for more details"
    )
    assert reason in device.log()
    ours = device.call_ours(OURS_SET, pause_map()).stderr
    assert f"{OWN.name}.Error.Refused" in ours
    assert reason in ours
    said = agent(device, "pause", POINTS[0])
    assert (said.returncode, reason in said.stderr) == (1, True)
    assert agent(device, "maps").stdout == "No control maps.\n"
    if harm == "full":
        filler.unlink()
    else:
        subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    device.peer.offer()  # nobody holds it: what was refused does not act
    device.until(device.lab.journal.has_ended, "the end")
    assert "status:success" in device.lab.journal.trace()
    assert device.set_map(pause_map()).returncode == 0


# A clock that jumps


def wrong_clock(device: Device, seconds: float) -> None:
    path = Path(device.lab.path("clock"))
    beside = path.with_suffix(".new")
    beside.write_text(str(seconds))
    beside.rename(path)


def start_with_clock(device: Device, **config: object) -> None:
    path = Path(device.lab.path("site/sitecustomize.py"))
    path.parent.mkdir()
    path.write_text(CLOCK.format(path=device.lab.path("clock")))
    environment = device.lab.environment()
    environment["PYTHONPATH"] = f"{path.parent}:{environment['PYTHONPATH']}"
    device.lab.environment = lambda: environment  # type: ignore[method-assign]
    wrong_clock(device, 0)
    device.start(**config)
    device.until_on_bus()


def test_a_clock_that_jumps_does_not_let_a_map_expire(device: Device) -> None:
    start_with_clock(device)
    device.set_map(pause_map())
    device.peer.offer()
    device.until_paused("ArtifactInstall_Enter")
    for jump in (YEARS_S, -YEARS_S):
        wrong_clock(device, jump)
        device.set_map(pause_map("ArtifactCommit_Enter", number=1))  # wakes the pause
        device.until_logged("Control point ArtifactInstall_Enter: pause", 2 if jump > 0 else 3)
        said = json.loads(agent(device, "status", "--json").stdout)
        assert 3500 < said["pause"]["expires_in_s"] <= 3600
        device.until_paused("ArtifactInstall_Enter")
    device.set_map(json.dumps({"id": APP}))
    device.until_paused("ArtifactCommit_Enter")


@pytest.mark.parametrize("jump", [YEARS_S, -YEARS_S])
def test_a_clock_that_jumps_neither_ends_nor_prolongs_a_hook_s_hold(device: Device, jump: float) -> None:
    hook = {"point": "Download_Leave", "when": "always", "limit_s": 3, "at_limit": "continue"}
    directory = Path(device.lab.path("conf/pause.d"))
    directory.mkdir()
    (directory / "10-hold.json").write_text(json.dumps(hook))
    start_with_clock(device)
    device.peer.offer()
    device.until_paused("Download_Leave")
    begun = time.monotonic()
    wrong_clock(device, jump)
    device.set_map(pause_map("ArtifactCommit_Enter"))  # wakes the pause
    device.until_paused("ArtifactCommit_Enter")  # comes at all: it was not prolonged
    assert time.monotonic() - begun > 1.5  # and not at once: it was not ended


# Strangers


@pytest.fixture(scope="module")
def idle() -> Iterator[tuple[Device, DBusConnection]]:
    """An idle agent, and a connection to its bus."""
    with on_a_bus() as made:
        made.start()
        made.until_on_bus()
        with open_dbus_connection(made.bus.address) as connection:
            yield made, connection


def usually(usual: Any) -> st.SearchStrategy[Any]:
    """Mostly what is right, sometimes anything that JSON has."""
    leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    anything = st.recursive(
        leaves, lambda c: st.lists(c, max_size=3) | st.dictionaries(st.text(), c, max_size=3)
    )
    return st.one_of(usual, usual, usual, usual, anything)


ACTION = usually(st.sampled_from(["continue", "force_continue", "pause", "fail"]))
STATE = st.fixed_dictionaries(
    {}, optional={"action": ACTION, "on_map_expire": ACTION, "on_action_executed": ACTION, "Action": ACTION}
)
MAP = st.fixed_dictionaries(
    {
        "id": usually(st.just(APP)),
        "states": usually(st.dictionaries(st.sampled_from(POINTS), usually(STATE))),
    },
    optional={"priority": usually(st.integers(-12, 12)), "colour": st.just("red")},
)
TEXT = st.one_of(
    MAP.map(json.dumps),
    st.tuples(MAP.map(json.dumps), st.text(max_size=3)).map("".join),
    MAP.map(lambda document: json.dumps(document)[:-1]),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(text=TEXT)
def test_malformed_maps_change_nothing_and_are_refused_by_one_name(
    idle: tuple[Device, DBusConnection], text: str
) -> None:
    device, connection = idle
    target = DBusAddress("/io/mender/UpdateManager", "io.mender.UpdateManager", "io.mender.Update1")
    before = device.saved_maps()
    reply = connection.send_and_get_reply(new_method_call(target, "SetUpdateControlMap", "s", (text,)))
    try:
        parse(text)
    except ControlError:
        assert reply.header.message_type is MessageType.error
        assert reply.header.fields[4] == FAILED
        assert device.saved_maps() == before
    else:
        assert reply.body == (1800,)
    assert device.agent is not None
    assert device.agent.poll() is None
