# SPDX-License-Identifier: Apache-2.0
"""Pause points that only this device knows: held, cut, let go, failed, and told in the reference's words."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.flow.test_pause_survives import BEFORE, ROLLBACK, SUCCESS

from update_agent.ctl import ask
from update_agent.states import POINTS, WIRE_POINTS, resume_after
from update_agent.update import Update, from_text
from update_tools.conform import scenarios
from update_tools.conform.lab import Lab
from update_tools.conform.peer import Peer

STATUS = {
    "Download_Enter": "downloading",
    "Download_Leave": "downloading",
    "ArtifactInstall_Leave": "installing",
    "ArtifactReboot_Leave": "rebooting",
}
AFTER = {
    "Download_Enter": "",  # the very first
    "Download_Leave": "module:Download",
    "ArtifactInstall_Leave": "module:ArtifactInstall",
    "ArtifactReboot_Leave": "module:ArtifactVerifyReboot",
}
FAILED_EARLY = ["module:Cleanup", "status:failure", "logs"]
WHOLE = [
    event for point, before in BEFORE.items() for event in (*before, f"control:{point}=continue")
] + SUCCESS


def play(point: str, there: list[str], rest: list[str], name: str, **given: Any) -> None:
    """Play an update that goes its way to a point, does what is `there`, and then the rest."""
    position = WHOLE.index(AFTER[point]) + 1 if AFTER[point] else 0
    trace = WHOLE[:position] + there + (WHOLE[position:] if rest is SUCCESS else rest)
    scenarios.play(
        {
            "id": f"local-{point}",
            "mode": "daemon",
            "given": {
                "supports_rollback": True,
                "needs_reboot": "Yes",
                "faults": [],
                "config": {"PauseSurvivesRestart": True},
                **given,
            },
            "expect": {"trace": trace, "artifact_name": name},
        }
    )


def hook(point: str, limit_s: int, at_limit: str) -> dict[str, Any]:
    return {"10-hold.json": {"point": point, "when": "always", "limit_s": limit_s, "at_limit": at_limit}}


def paused(point: str) -> list[str]:
    return [f"control:{point}=pause", f"status:{STATUS[point]}"]


def went_on(point: str) -> list[str]:
    """The server is told again; before the download its report comes anyway."""
    told = [] if point == "Download_Enter" else [f"status:{STATUS[point]}"]
    return [f"control:{point}=continue", *told]


def test_these_are_all() -> None:
    assert set(STATUS) == set(POINTS) - set(WIRE_POINTS)


@pytest.mark.parametrize("point", STATUS)
def test_a_hook_holds_over_power_cuts_and_lets_go(point: str) -> None:
    there = [*paused(point), *["kill", "boot", *paused(point)] * 2, *went_on(point)]
    events = [{"type": "kill"}] * 2
    play(point, there, SUCCESS, "new", pause_hooks=hook(point, 6, "continue"), control_events=events)


@pytest.mark.parametrize("point", STATUS)
def test_a_failed_update_is_undone_as_far_as_it_had_come(point: str) -> None:
    there = [*paused(point), f"control:{point}=fail"]
    rest = ROLLBACK
    if point.startswith("Download"):
        rest = FAILED_EARLY if point == "Download_Leave" else FAILED_EARLY[1:]
    play(point, there, rest, "old", pause_hooks=hook(point, 1, "fail"))


@pytest.mark.parametrize("point", STATUS)
def test_an_abort_on_the_server_ends_it(point: str) -> None:
    there = [f"control:{point}=pause", f"status:{STATUS[point]}=409"]
    number = {"ArtifactInstall_Leave": "installing#2", "ArtifactReboot_Leave": "rebooting#2"}.get(
        point, STATUS[point]
    )
    if point == "Download_Leave":
        number = "downloading#2"
    rest = ROLLBACK
    if point.startswith("Download"):
        rest = FAILED_EARLY if point == "Download_Leave" else FAILED_EARLY[1:]
    play(
        point,
        there,
        rest,
        "old",
        pause_hooks=hook(point, 60, "continue"),
        status_failures={number: "aborted"},
    )


@pytest.mark.parametrize(
    ("point", "rest", "name"),
    [
        ("Download_Leave", ["module:Cleanup", "status:failure", "logs"], "old"),
        ("ArtifactInstall_Leave", ROLLBACK, "old"),
        ("ArtifactReboot_Leave", ROLLBACK, "old"),
    ],
)
def test_for_strict_compatibility_a_power_cut_is_one_in_the_state(
    point: str, rest: list[str], name: str
) -> None:
    play(
        point,
        [*paused(point), "kill", "boot"],
        rest,
        name,
        pause_hooks=hook(point, 60, "continue"),
        control_events=[{"type": "kill"}],
        config={"PauseSurvivesRestart": False},
    )


def test_for_strict_compatibility_a_download_that_had_not_begun_is_offered_again() -> None:
    point = "Download_Enter"
    play(
        point,
        [*paused(point), "kill", "boot", *paused(point), *went_on(point)],
        SUCCESS,
        "new",
        pause_hooks=hook(point, 2, "continue"),
        control_events=[{"type": "kill"}],
        config={"PauseSurvivesRestart": False},
    )


@pytest.mark.parametrize(
    ("point", "script"),
    [
        ("Download_Leave", "Download_Leave_00"),
        ("ArtifactInstall_Leave", "ArtifactInstall_Leave_00"),
        ("ArtifactReboot_Leave", "ArtifactReboot_Leave_00"),
    ],
)
def test_a_power_cut_after_the_pause_is_as_without_one(point: str, script: str) -> None:
    rest = FAILED_EARLY if point.startswith("Download") else ROLLBACK
    play(
        point,
        [*paused(point), *went_on(point), f"script:{script}", "kill", "boot"],
        rest,
        "old",
        pause_hooks=hook(point, 1, "continue"),
        faults=[{"at": script, "do": "kill"}],
    )


def test_a_server_that_has_a_map_is_not_asked_at_a_local_point() -> None:
    """The map's pause at another point is obeyed there; the local one is the hook's alone."""
    point = "ArtifactInstall_Leave"
    refreshed = [
        each
        for event in WHOLE
        for each in (("map_refresh:200", event) if event.startswith("control:") else (event,))
    ]
    position = refreshed.index(AFTER[point]) + 1
    trace = [*refreshed[:position], *paused(point), *went_on(point), *refreshed[position:]]
    scenarios.play(
        {
            "id": "local-with-server-map",
            "mode": "daemon",
            "given": {
                "supports_rollback": True,
                "needs_reboot": "Yes",
                "faults": [],
                "config": {"PauseSurvivesRestart": True},
                "pause_hooks": hook(point, 3, "continue"),
                "server_map": {"states": {}},
            },
            "expect": {"trace": trace, "artifact_name": "new"},
        }
    )


# By command and over the socket, without D-Bus

APP = "01234567-89ab-cdef-0123-456789abcdef"
GIVEN = {
    "supports_rollback": True,
    "needs_reboot": "Yes",
    "faults": [],
    "config": {"PauseSurvivesRestart": True},
}


class Device:
    """The daemon on a throw-away device, and who talks to it."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.peer = Peer(GIVEN, lab.journal, lab.artifact)
        self.agent: subprocess.Popen[bytes] | None = None
        lab.configure(self.peer.url)

    def start(self) -> None:
        self.agent = subprocess.Popen(
            self.lab.command("daemon"), env=self.lab.environment(), start_new_session=True
        )
        self.until(lambda: self.run("status").returncode == 0, "the agent")

    def kill(self) -> None:
        """As a power cut does."""
        if self.agent is not None:
            os.killpg(self.agent.pid, signal.SIGKILL)
            self.agent.wait()
            self.agent = None

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.lab.command(*words), env=self.lab.environment(), capture_output=True, text=True, check=False
        )

    def set_map(self, document: dict[str, Any]) -> object:
        answers: list[object] = []
        path = self.lab.environment()["UPDATE_CONTROL_SOCKET"]
        ask(path, {"verb": "set-map", "map": json.dumps(document)}, answers.append)
        return answers[0]

    def paused_at(self) -> str:
        said = self.run("status", "--json")
        pause = json.loads(said.stdout)["pause"] if said.returncode == 0 else None
        return pause["point"] if pause else ""

    def until(self, is_so: Any, what: str) -> None:
        deadline = time.monotonic() + 60
        while not is_so():
            assert time.monotonic() < deadline, f"{what} did not come\n" + "\n".join(self.lab.journal.lines())
            time.sleep(0.02)


@pytest.fixture
def device() -> Iterator[Device]:
    with Lab(GIVEN) as lab:
        lab.furnish()
        made = Device(lab)
        try:
            yield made
        finally:
            made.kill()
            made.peer.close()


@pytest.mark.parametrize("verb", ["continue", "fail"])
def test_one_update_is_held_at_every_point_by_command_and_over_the_socket(device: Device, verb: str) -> None:
    """By turns; at each point the power is cut once. The last decision is the verb's."""
    device.start()
    by_command, by_map = POINTS[::2], POINTS[1::2]
    device.run("pause", *by_command)
    states = {point: {"action": "pause"} for point in by_map}
    assert device.set_map({"id": APP, "states": states}) == 1800
    device.peer.offer()
    for point in POINTS:
        device.until(lambda p=point: device.paused_at() == p, point)
        device.kill()
        device.start()
        device.until(lambda p=point: device.paused_at() == p, f"{point} again")
        who = "a command on this device" if point in by_command else f"application {APP}, priority 0"
        screen = device.run("status").stdout
        assert f"Paused at   {point}\nHeld by     {who}" in screen
        if point == POINTS[-1]:
            device.run(verb)
        elif point in by_command:
            device.run("continue", point)
        else:
            del states[point]
            device.set_map({"id": APP, "states": states})
    device.until(device.lab.journal.has_ended, "the end")
    last = "status:success" if verb == "continue" else "logs"
    assert device.lab.journal.trace()[-1] == last
    assert device.lab.artifact_name() == ("new" if verb == "continue" else "old")


def test_who_follows_the_status_sees_the_whole_update(device: Device) -> None:
    device.start()
    device.run("pause", "Download_Leave", "ArtifactReboot_Leave")
    seen = Path(device.lab.path("seen"))
    with seen.open("wb") as file:
        follower = subprocess.Popen(
            device.lab.command("status", "--json", "--follow"), env=device.lab.environment(), stdout=file
        )
    try:
        device.until(lambda: seen.stat().st_size > 0, "the first status")
        device.peer.offer()
        for point in ("Download_Leave", "ArtifactReboot_Leave"):
            device.until(lambda p=point: f'"pause": {{"point": "{p}"' in seen.read_text(), point)
            device.run("continue", point)
        device.until(device.lab.journal.has_ended, "the end")
        device.until(lambda: '"deployment": null' in seen.read_text().splitlines()[-1], "the end's status")
    finally:
        follower.kill()
        follower.wait()
    documents = [json.loads(line) for line in seen.read_text().splitlines()]
    states = [document["state"] for document in documents if document["deployment"]]
    order = list(dict.fromkeys(states))
    assert order[-4:] == ["Download", "ArtifactInstall", "ArtifactReboot", "ArtifactCommit"]
    assert documents[-1]["installed"] == "new"
    paused = [document["pause"]["by"][0]["from"] for document in documents if document["pause"]]
    assert set(paused) == {"command"}


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("pause-before-install", "control.install"),
        ("pause-before-reboot", "control.reboot"),
        ("pause-before-commit", "control.commit"),
    ],
)
def test_a_pause_that_the_former_version_saved_goes_on(name: str, step: str) -> None:
    """Stored names are forever: an update that brings this agent may have been paused under the old one."""
    assert resume_after(name).resume == step
    assert from_text(Update("3f1c", "https://example.com/a.mender").to_text(name))[0] == name
