# SPDX-License-Identifier: Apache-2.0
"""Pauses on a real board: each point is held by a hook, a command, D-Bus or the server, over power cuts.

Every column of the tables is one point, every row one update: between them each way to hold an update is
used at each point. One board carries out all updates of a test, which spares most of its boots.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from update_agent.states import POINTS, WIRE_POINTS

from .conftest import VIRTUAL, Lab, opened
from .field import FINAL, PAUSES, Field

pytestmark = [pytest.mark.board, pytest.mark.xdist_group("pauses")]

APP = "01234567-89ab-cdef-0123-456789abcdef"
REPORTED = {"Download": "downloading", "ArtifactInstall": "installing", "ArtifactReboot": "rebooting"}
ASK = """\
#!/bin/sh
# A product's own decision, as a test makes it: the exit code that a file says, 0 without one.
file=/data/hooks/${UPDATE_STATE}_$UPDATE_ACTION
[ -e "$file" ] || exit 0
exit "$(cat "$file")"
"""
# fmt: off
#        Download_Enter  _Leave     Install_Enter  _Leave     Reboot_Enter  _Leave     Commit_Enter
HELD = (("hook",         "command", "server",      "dbus",    "command",    "hook",    "dbus"),
        ("command",      "dbus",    "hook",        "command", "server",     "dbus",    "hook"),
        ("dbus",         "hook",    "command",     "hook",    "dbus",       "command", "server"),
        ("",             "",        "dbus",        "",        "hook",       "",        "command"))
FAILED = ("dbus",        "hook",    "server",      "command", "hook",       "dbus",    "server")
# fmt: on


class Product(Field):
    """A device whose image has pause hooks at every point that ask a program, and people who hold updates."""

    def command(self, text: str) -> str:
        return self.device.check(text)

    def dbus(self, member: str, argument: str) -> None:
        target = "--dest=org.metaupdate.Update /org/metaupdate/Update"
        self.command(
            f"dbus-send --system --print-reply {target} org.metaupdate.Update1.{member} 'string:{argument}'"
        )

    def theirs(self, document: dict[str, Any]) -> None:
        """Set a map on the reference's interface."""
        target = "--dest=io.mender.UpdateManager /io/mender/UpdateManager"
        member = "io.mender.Update1.SetUpdateControlMap"
        self.command(f"dbus-send --system --print-reply {target} {member} 'string:{json.dumps(document)}'")

    def answer(self, point: str, code: int) -> None:
        """What the hook's program says from now on."""
        self.command(f"mkdir -p /data/hooks; echo {code} >/data/hooks/{point}; sync")

    def begin(self, ways: dict[str, str]) -> None:
        """Hold the next update at these points in these ways, then deploy."""
        self.choose("good")
        states: dict[str, Any] = {}
        for point, way in ways.items():
            if way == "hook":
                self.answer(point, 21)
            elif way == "command":
                self.command(f"update-agent pause {point}")
            elif way == "server":
                states[point] = {"action": "pause"}
        local = {point: {"action": "pause"} for point, way in ways.items() if way == "dbus"}
        if local.keys() <= set(WIRE_POINTS):
            self.theirs({"id": APP, "states": local})
        else:
            self.dbus("SetControlMap", json.dumps({"id": APP, "states": local}))
        self._app_states = local
        self.begin_deployment({"states": states} if states else None)

    def until_held(self, point: str, way: str) -> None:
        """Until server and device say so, each in its words, and the device names who holds it.

        The server first: a board that is still on its way may reboot under the question.
        """
        words = (PAUSES.get(point, ""), "")
        if point not in WIRE_POINTS:
            words = (REPORTED[point.partition("_")[0]], f"paused at {point}")

        def told() -> tuple[str, str]:
            return self.told["status"], self.told["substate"]

        self.until(lambda: told() == words or told()[0] in FINAL, f"the report {words}")
        assert told() == words, self.log()
        self.until(lambda: self.device.paused_at() == point, f"the device's pause at {point}")
        who = {
            "hook": "pause hook /etc",
            "command": "a command",
            "dbus": "application",
            "server": "the server",
        }
        assert f"Held by     {who[way]}" in self.command("update-agent status")

    def let_go(self, point: str, way: str) -> None:
        if way == "hook":
            self.command(f"rm /data/hooks/{point}; sync")
        elif way == "command":
            self.command(f"update-agent continue {point}")
        elif way == "server":
            self.management.continue_(self.deployment, point)
        else:
            del self._app_states[point]
            self.dbus("SetControlMap", json.dumps({"id": APP, "states": self._app_states}))

    def fail(self, point: str, way: str) -> None:
        if way == "hook":
            self.answer(point, 1)
        elif way == "command":
            self.command("update-agent fail")
        elif way == "server":
            self.management.roll_back(self.deployment, point)
        else:
            self.dbus("Fail", "")


@pytest.fixture(scope="module")
def product_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A board whose systems have the hooks; both tests use it."""
    when = {"program": "/usr/libexec/ask", "interval_s": 2}
    files = {
        f"/etc/mender/pause.d/{number}0-{point.lower()}.json": json.dumps(
            {"point": point, "when": when, "limit_s": 3600, "at_limit": "fail"}
        )
        for number, point in enumerate(POINTS, 1)
    }
    files["/usr/libexec/ask"] = ASK
    with opened(VIRTUAL[0], tmp_path_factory.mktemp("product"), files) as made:
        yield made


@pytest.fixture
def product(product_lab: Lab) -> Product:
    """The board, with nothing held."""
    product = Product(product_lab.device, product_lab.server.management(), product_lab.systems)
    product.command("rm -rf /data/hooks")
    product.theirs({"id": APP})
    return product


def test_every_point_is_held_over_a_power_cut_and_let_go(product: Product) -> None:
    for row, held in enumerate(HELD):
        ways = {point: way for point, way in zip(POINTS, held, strict=True) if way}
        new = product.device.other(product.slot)
        product.begin(ways)
        for point, way in ways.items():
            product.until_held(point, way)
            slot = new if point in {"ArtifactReboot_Leave", "ArtifactCommit_Enter"} else product.slot
            if row == 0:  # the others show who can hold, this one that it lasts
                assert product.device.cut_and_boot() == slot, f"paused at {point}"
                product.until_held(point, way)
            assert product.device.runs_from() == slot
            if way == "dbus":
                # The clock is set, as by the first synchronization: the map does not expire by that.
                product.command("date -s '2035-01-01 00:00:00'")
                product.until_held(point, way)
            product.let_go(point, way)
        product.ends_as("success")


def test_every_point_is_held_over_a_power_cut_and_failed(product: Product) -> None:
    new = product.device.other(product.slot)
    for point, way in zip(POINTS, FAILED, strict=True):
        product.begin({point: way})
        product.until_held(point, way)
        slot = new if point in {"ArtifactReboot_Leave", "ArtifactCommit_Enter"} else product.slot
        if not point.startswith("Download"):  # seen above, and nothing is at stake there
            assert product.device.cut_and_boot() == slot, f"paused at {point}"
            product.until_held(point, way)
        product.fail(point, way)
        product.ends_as("failure", "told to fail")
        product.command("rm -rf /data/hooks")
        product.theirs({"id": APP})
