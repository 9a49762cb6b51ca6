# SPDX-License-Identifier: Apache-2.0
"""A device in the field: one board, the server that it knows, and what was deployed to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from update_tools.server import rollout
from update_tools.server.client import Management

from .device import Device, Slot, until
from .systems import Systems

SETTINGS = {
    "UpdatePollIntervalSeconds": 2,
    "InventoryPollIntervalSeconds": 600,
    "RetryPollIntervalSeconds": 5,
    # Twice the poll interval by default: a busy host must not let the map expire.
    "UpdateControlMapExpirationTimeSeconds": 3600,
}
PAUSES = {
    "ArtifactInstall_Enter": "pause_before_installing",
    "ArtifactReboot_Enter": "pause_before_rebooting",
    "ArtifactCommit_Enter": "pause_before_committing",
}
FINAL = {"success", "failure"}


class Field:
    """Each update is judged at its end: which slot runs, what the server was told, what U-Boot does next."""

    def __init__(self, device: Device, management: Management, systems: Systems) -> None:
        self.device = device
        self.management = management
        self.systems = systems
        self.slot = device.runs_from()
        self.installed = device.artifact()
        self.deployment = ""
        self.coming = ""
        self._other_holds = ""
        self._uploaded: set[str] = set()

    def deploy(self, variant: str = "good", *, pauses: tuple[str, ...] = ()) -> None:
        """Deploy a system in a variant, paused at these points by the server."""
        self.choose(variant)
        states = {point: {"action": "pause"} for point in pauses}
        self.begin_deployment({"states": states} if states else None)

    def choose(self, variant: str) -> None:
        """Have the next system on the server: one that is in neither slot, or nothing would be written."""
        names = [f"{variant}-{number}" for number in (1, 2, 3)]
        self.coming = next(name for name in names if name not in {self.installed, self._other_holds})
        self._other_holds = self.coming
        if self.coming not in self._uploaded:
            self.management.upload(self.systems.artifact(self.coming, variant))
            self._uploaded.add(self.coming)

    def begin_deployment(self, control: dict[str, Any] | None) -> None:
        """Deploy what was chosen, with a control map."""
        self.deployment = self.management.deploy(
            f"{self.coming} to {self.device.type}", self.coming, [self.id], map=control, force=True
        )

    @property
    def id(self) -> str:
        """The device as the server knows it."""
        return str(self.management.known_devices("accepted")[0]["id"])

    @property
    def told(self) -> dict[str, Any]:
        """The device in the deployment, as the server shows it."""
        (device,) = self.management.devices(self.deployment)
        return device

    def statuses(self) -> list[str]:
        """All statuses that the device has sent in this deployment; live reports of scripts are none."""
        events = self.management.events(self.deployment, self.told["id"])
        words = [event["word"] for event in events if event["source"] == "device"]
        return [word for word in words if word in rollout.REPORTABLE]

    def until(self, is_there: Callable[[], Any], what: str) -> None:
        """Wait for something on the board or the server."""
        until(is_there, what, self.device)

    def until_status(self, *words: str) -> None:
        """Wait until the server has been told one of these."""
        self.until(
            lambda: self.told["status"] in {*words, *FINAL}, f"the server's word of {' or '.join(words)}"
        )
        assert self.told["status"] in words, f"{self.told}\n{self.log()}"

    def until_paused(self, point: str) -> None:
        """Wait until the server shows a pause at a point, and the device, asked for itself, says so too.

        In this order: a board that is still on its way to the pause may reboot under the question.
        """
        self.until_status(PAUSES[point])
        self.device.log_in()
        self.until(lambda: self.device.paused_at() == point, f"the device's pause at {point}")

    def ends(self) -> str:
        """Wait for the end, whichever it is, and check that everything agrees with what was reported."""
        self.until_status(*FINAL)
        status = str(self.told["status"])
        self.device.log_in()
        if status == "success":
            self._other_holds = self.installed
            self.slot, self.installed = self.device.other(self.slot), self.coming
        else:
            self.until(lambda: self.told["log"], "the deployment log")
        self.is_settled()
        return status

    def ends_as(self, status: str, cause: str = "") -> None:
        """Wait for the end; it must be this one, for this reason."""
        ended = self.ends()
        assert (ended, cause in self.told["substate"]) == (status, True), self.told
        if status == "failure":
            assert cause in self.log()
            assert "success" not in self.statuses()

    def cut(self) -> Slot:
        """Power cut, and on again; whatever had been reported is still true then. Returns what came up."""
        told = self.told["status"]
        came_up = self.device.cut_and_boot()
        print(f"cut when the server had been told {told}: {came_up} came up")
        assert came_up in self.device.slots
        if told == "success":
            assert came_up == self.device.other(self.slot), (
                "reported as a success, and gone after a power cut"
            )
        if told == "failure":
            assert came_up == self.slot, "reported as a failure, and there after a power cut"
        return came_up

    def is_settled(self) -> None:
        """What runs is what was reported last, and nothing is under way."""
        assert self.device.runs_from() == self.slot
        assert self.device.artifact() == self.installed
        environment = self.device.environment()
        assert environment["mender_boot_part"] == str(self.slot.number)
        assert environment["upgrade_available"] == "0"

    def log(self) -> str:
        """The deployment log that the device has sent."""
        return self.management.log(self.deployment, self.told["id"])

    def runs_in(self, slot: Slot) -> None:
        """Have this slot running, by an update if need be."""
        if self.slot != slot:
            self.deploy()
            self.ends_as("success")
