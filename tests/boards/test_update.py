# SPDX-License-Identifier: Apache-2.0
"""Whole updates on a real board: agent, server, U-Boot, two root partitions; good, broken, interrupted.

Every test ends by asking the same three things: which slot runs, what the server was told, and whether both
the environment's content and its copies are as they should be.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from update_tools.bench.qemu import DESK, Board
from update_tools.demo.artifacts import make_artifact
from update_tools.server import rollout, run

from .conftest import Images, NewBoard

pytestmark = pytest.mark.board

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
LIMIT_S = 600.0
A, B = 2, 3


class Field:
    """A device in the field: one board, the server that it knows, and what was deployed."""

    def __init__(self, board: Board, server: run.Server, artifacts: Callable[..., Path]) -> None:
        self.board = board
        self.management = server.management()
        self._artifacts = artifacts
        self.deployment = ""
        self.image = Path()

    def until_known(self) -> None:
        """Wait until the server has accepted the device."""
        deadline = time.monotonic() + LIMIT_S
        while not self.management.known_devices():
            assert time.monotonic() < deadline, self.board.shell(
                "tail -n 30 /data/log/update-agent.log"
            ).output
            time.sleep(0.2)

    def deploy(self, variant: str = "good", *scripts: str, pauses: tuple[str, ...] = ()) -> None:
        """Deploy version 2 in a variant."""
        artifact = self._artifacts(variant, *scripts)
        self.image = artifact.with_suffix(".ext4")
        self.management.upload(artifact)
        states = {point: {"action": "pause"} for point in pauses}
        control = {"states": states} if pauses else None
        self.deployment = self.management.deploy("update", artifact.stem, map=control)

    @property
    def device(self) -> dict[str, Any]:
        """The device in the deployment, as the server shows it."""
        (device,) = self.management.devices(self.deployment)
        return device

    def statuses(self) -> list[str]:
        """All statuses that the device has sent in this deployment; live reports of scripts are none."""
        events = self.management.events(self.deployment, self.device["id"])
        words = [event["word"] for event in events if event["source"] == "device"]
        return [word for word in words if word in rollout.REPORTABLE]

    def until(self, is_there: Callable[[], Any], what: str) -> None:
        """Wait for something on the board or the server."""
        deadline = time.monotonic() + LIMIT_S
        while not is_there():
            assert time.monotonic() < deadline, f"{what} did not come; statuses so far: {self.statuses()}"
            assert self.board.is_running(), f"the board went off before {what}"
            time.sleep(0.1)

    def until_paused(self, point: str) -> None:
        """Wait until the server shows a pause at a point, and the device, asked for itself, says so too.

        In this order: a board that is still on its way to the pause may reboot under the question.
        """
        self.until(lambda: self.device["status"] == PAUSES[point], f"the server's word of a pause at {point}")
        self.until(lambda: self.paused_at() == point, f"the device's pause at {point}")

    def paused_at(self) -> str:
        """Where the agent on the board says that it waits; empty if it does not, or is not up yet."""
        said = self.board.shell("update-agent status --json")
        pause = json.loads(said.output)["pause"] if said.code == 0 else None
        return str(pause["point"]) if pause else ""

    def ends_as(self, status: str, slot: int, version: str, cause: str = "") -> None:
        """Assert how it ended, on the server, in the slots, and in the environment."""
        self.until(lambda: self.device["status"] in {"success", "failure"}, "the end")
        assert (self.device["status"], cause in self.device["substate"]) == (status, True), self.device
        if status == "failure":
            self.until(lambda: self.device["log"], "the deployment log")
            assert cause in self.management.log(self.deployment, self.device["id"])
        shown = self.board.check("cat /proc/cmdline; cat /etc/update-version; update-agent show-artifact")
        assert f"root=/dev/mmcblk0p{slot} " in shown
        assert shown.split()[-2] == version
        environment = self.board.read_env()
        assert environment.newer is not None, "no copy of the environment is valid"
        assert environment.values["mender_boot_part"] == str(slot)
        assert environment.values["upgrade_available"] == "0"

    def cut_and_boot(self) -> int:
        """Power cut, and on again. Returns the partition that came up."""
        self.board.power_cut()
        return self.board.boot().part


@pytest.fixture(scope="session")
def artifacts(images: Images, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Artifacts of version 2 by variant and extra state scripts, made once."""
    place = tmp_path_factory.mktemp("artifacts")
    made: dict[tuple[str, ...], Path] = {}

    def artifact(variant: str, *scripts: str) -> Path:
        key = (variant, *scripts)
        if key not in made:
            image = place / f"{'-'.join(('version-2', *key))}.ext4"
            image.symlink_to(images("2", variant))
            made[key] = make_artifact(image, image.stem, "virt64", *scripts)
        return made[key]

    return artifact


@pytest.fixture
def field(
    tmp_path: Path, images: Images, new_board: NewBoard, artifacts: Callable[..., Path]
) -> Iterator[Field]:
    """A booted board that the server has accepted; version 1 runs from slot A."""
    with run.start(tmp_path / "server", auto_accept=True) as server:
        board = new_board(images("1"), settings={**SETTINGS, "ServerURL": f"http://{DESK}:{server.port}"})
        board.boot()
        field = Field(board, server, artifacts)
        field.until_known()
        yield field


def test_good_version_is_committed_and_stays(field: Field) -> None:
    field.deploy()
    field.ends_as("success", B, "2")
    assert field.statuses() == ["downloading", "installing", "rebooting", "installing", "success"]
    assert field.cut_and_boot() == B


@pytest.mark.parametrize(
    ("variant", "cause"), [("no-kernel", "partition 3: no kernel"), ("panic", "not committed after 1 boot")]
)
def test_version_that_does_not_boot_is_a_failure_with_the_boot_loaders_reason(
    field: Field, variant: str, cause: str
) -> None:
    field.deploy(variant)
    field.ends_as("failure", A, "1", cause)
    assert "success" not in field.statuses()


def test_version_that_its_own_script_refuses_is_rolled_back(field: Field) -> None:
    field.deploy("good", "refusing")
    field.ends_as("failure", A, "1", "ArtifactCommit_Enter_10_health-check exited with 1")
    log = field.management.log(field.deployment, field.device["id"])
    assert "the application does not answer on its port" in log


def test_power_cut_while_writing_leaves_the_running_system(field: Field) -> None:
    field.deploy()
    field.until(lambda: field.board.landed("B", field.image)[0] > 4 << 20, "4 MiB on the card")
    field.board.power_cut()
    landed, size = field.board.landed("B", field.image)
    assert 0 < landed < size, "the cut must fall into the write, else it tests nothing"
    assert field.board.boot().part == A
    field.ends_as("failure", A, "1", "restarted during")
    # Nothing of it is in the way of the next attempt.
    field.deployment = field.management.deploy("again", field.image.stem)
    field.ends_as("success", B, "2")


@pytest.mark.parametrize(
    ("torn", "status", "slot", "cause"),
    [
        # The newer copy has the boot count that the pause reset; the older one says that the trial's boot is
        # used up, so the board goes back.
        ("newer", "failure", A, "not committed after 1 boot"),
        ("older", "success", B, ""),
        ("both", "failure", A, "environment was lost"),
    ],
)
def test_torn_environment_before_the_commit(
    field: Field, torn: str, status: str, slot: int, cause: str
) -> None:
    field.deploy(pauses=("ArtifactCommit_Enter",))
    field.until_paused("ArtifactCommit_Enter")
    before = field.board.read_env()
    assert before.values["upgrade_available"] == "1"
    field.board.power_cut()
    field.board.tear_env(torn)  # type: ignore[arg-type]
    after = field.board.read_env()
    assert (after.newer is None) == (torn == "both")
    if torn == "newer":
        assert after.values["bootcount"] != before.values["bootcount"]
    assert field.board.boot().part == slot
    if status == "success":
        field.until_paused("ArtifactCommit_Enter")
        field.management.continue_(field.deployment)
    field.ends_as(status, slot, "2" if status == "success" else "1", cause)
