# SPDX-License-Identifier: Apache-2.0
"""A throw-away device with the agent's daemon on a real bus."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.support.system_bus import PrivateBus

from update_agent.bus_objects import OWN
from update_agent.log import Log
from update_agent.store import Store
from update_tools.conform.lab import Lab
from update_tools.conform.peer import Peer

GIVEN = {"supports_rollback": True, "needs_reboot": "Yes", "faults": []}
UPDATE = ("io.mender.UpdateManager", "/io/mender/UpdateManager")
OURS = (OWN.bus_name, OWN.path)
SET = "io.mender.Update1.SetUpdateControlMap"
OURS_SET = f"{OWN.name}.SetControlMap"
APP = "01234567-89ab-cdef-0123-456789abcdef"
PATIENCE_S = 60


def pause_map(point: str = "ArtifactInstall_Enter", action: str = "pause", number: int = 0) -> str:
    map_id = f"{number:08x}{APP[8:]}" if number else APP
    return json.dumps({"id": map_id, "priority": 0, "states": {point: {"action": action}}})


class Device:
    """A throw-away device with a bus, a server and the agent's daemon."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.bus = PrivateBus(lab.path("system-bus"))
        self.peer = Peer(GIVEN, lab.journal, lab.artifact)
        self.agent: subprocess.Popen[bytes] | None = None
        lab.bus_address = self.bus.address

    def start(self, *, dbus: bool = True, **config: object) -> None:
        self.lab.configure(self.peer.url)
        path = Path(self.lab.path("conf/mender.conf"))
        path.write_text(json.dumps({**json.loads(path.read_text()), "DBus": {"Enabled": dbus}, **config}))
        self.restart()

    @property
    def environment(self) -> dict[str, str]:
        control_socket = self.lab.path("control.sock")
        return {
            **self.lab.environment(),
            "DBUS_SYSTEM_BUS_ADDRESS": self.bus.address,
            "UPDATE_CONTROL_SOCKET": control_socket,
        }

    def restart(self) -> None:
        """SIGKILL, as a power cut does, and start again."""
        self.kill()
        self.agent = subprocess.Popen(
            self.lab.command("daemon"), env=self.environment, cwd=self.lab.root, start_new_session=True
        )

    def kill(self) -> None:
        if self.agent is not None:
            os.killpg(self.agent.pid, signal.SIGKILL)
            self.agent.wait()
            self.agent = None

    def saved_maps(self) -> str | None:
        return Store(self.lab.store_dir, Log("error")).get("update-control-maps")

    def log(self) -> str:
        return "\n".join(self.lab.journal.lines())

    def until(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, f"{what} did not happen\n{self.log()}"
            assert self.agent is None or self.agent.poll() is None, self.log()
            time.sleep(0.02)

    def until_logged(self, text: str, times: int = 1) -> None:
        self.until(lambda: self.log().count(text) >= times, text)

    def until_on_bus(self, times: int = 1) -> None:
        """Until the agent has its last name, for the n-th time."""
        self.until_logged(f"D-Bus: the agent has {OWN.bus_name}", times)

    def until_paused(self, point: str) -> None:
        self.until(lambda: self.get("PausedAt") == f"(<'{point}'>,)", f"pause at {point}")

    def set_map(self, text: str) -> subprocess.CompletedProcess[str]:
        return self.bus.call(*UPDATE, SET, f"string:{text}")

    def gdbus(self, *words: str, user: str = "") -> subprocess.CompletedProcess[str]:
        """gdbus on our bus, if wanted as another user."""
        as_user = ["setpriv", f"--reuid={user}", "--regid=nogroup", "--clear-groups"] if user else []
        command = [*as_user, "gdbus", words[0], "--system", *words[1:]]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)

    def call_ours(self, member: str, *words: str, user: str = "") -> subprocess.CompletedProcess[str]:
        target = ("--dest", OURS[0], "--object-path", OURS[1], "--method", member)
        return self.gdbus("call", *target, *words, user=user)

    def get(self, name: str, user: str = "") -> str:
        result = self.call_ours("org.freedesktop.DBus.Properties.Get", OWN.name, name, user=user)
        return result.stdout.strip() or result.stderr


@contextmanager
def on_a_bus() -> Iterator[Device]:
    """A device whose bus runs; its daemon is still to be started. Nothing of it outlives the block."""
    with Lab(GIVEN) as lab:
        os.chmod(lab.root, 0o755)  # another user must reach the bus
        lab.furnish()
        made = Device(lab)
        try:
            made.bus.start()
            yield made
        finally:
            made.kill()
            made.bus.stop()
            made.peer.close()


@pytest.fixture
def device() -> Iterator[Device]:
    with on_a_bus() as made:
        yield made
