# SPDX-License-Identifier: Apache-2.0
"""A link that expires while the real agent is held before the download: it gets a fresh one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from tests.server.conftest import ThreadServer

from update_tools.conform.lab import Lab

POINT = "Download_Enter"
GIVEN = {
    "supports_rollback": True,
    "needs_reboot": "No",
    "faults": [],
    "config": {"PauseSurvivesRestart": True},
}
PATIENCE_S = 60


class Agent:
    """The daemon on a throw-away device, and a person at it."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            self._lab.command("daemon"), env=self._lab.environment(), start_new_session=True
        )

    def kill(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def say(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self._lab.command(*words),
            env=self._lab.environment(),
            capture_output=True,
            text=True,
            check=False,
        )

    def is_paused(self) -> bool:
        said = self.say("status", "--json")
        return said.returncode == 0 and (json.loads(said.stdout)["pause"] or {}).get("point") == POINT

    def link(self) -> str:
        """As saved for the time after a power cut."""
        saved = json.loads(self._lab.saved("state") or "")
        return str(saved["UpdateInfo"]["Artifact"]["Source"]["URI"])

    def until(self, is_so: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not is_so():
            assert time.monotonic() < deadline, f"{what} did not come\n" + "\n".join(
                self._lab.journal.lines()
            )
            time.sleep(0.05)


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(GIVEN) as made:
        made.furnish()
        yield made


@pytest.mark.parametrize("cut", [False, True], ids=["", "power-cut"])
def test_a_link_that_expired_during_the_pause_is_fetched_again(
    serve: Callable[..., ThreadServer], lab: Lab, cut: bool
) -> None:
    server = serve(auto_accept=True, link_lifetime_s=5)
    management = server.management()
    lab.configure(server.url)
    agent = Agent(lab)
    agent.start()
    try:
        agent.until(lambda: agent.say("pause", POINT).returncode == 0, "the agent")
        agent.until(lambda: bool(management.known_devices()), "the device")
        management.upload(Path(lab.path("artifact.mender")))
        deployment_id = management.deploy("held", "new")
        agent.until(agent.is_paused, "the pause")
        old = agent.link()
        agent.until(lambda: httpx.get(old).status_code == 403, "the link's end")
        (device,) = management.devices(deployment_id)
        assert (device["status"], device["substate"]) == ("downloading", f"paused at {POINT}")
        if cut:
            agent.kill()
            agent.start()
            agent.until(agent.is_paused, "the pause after the cut")
        assert agent.say("continue", POINT).returncode == 0
        agent.until(lab.journal.has_ended, "the end")
        (device,) = management.devices(deployment_id)
        assert (device["status"], device["substate"]) == ("success", ""), lab.journal.lines()
    finally:
        agent.kill()


def test_a_deployment_that_was_aborted_meanwhile_ends(serve: Callable[..., ThreadServer], lab: Lab) -> None:
    server = serve(auto_accept=True)
    management = server.management()
    lab.configure(server.url)
    agent = Agent(lab)
    agent.start()
    try:
        agent.until(lambda: agent.say("pause", POINT).returncode == 0, "the agent")
        agent.until(lambda: bool(management.known_devices()), "the device")
        management.upload(Path(lab.path("artifact.mender")))
        deployment_id = management.deploy("held", "new")
        agent.until(agent.is_paused, "the pause")
        management.abort(deployment_id)
        assert agent.say("continue").returncode == 0
        agent.until(lab.journal.has_ended, "the end")
        assert "does not offer the deployment any more" in "\n".join(lab.journal.lines())
        assert not [event for event in lab.journal.trace() if event.startswith(("script:", "module:"))]
        assert lab.artifact_name() == "old"
    finally:
        agent.kill()
