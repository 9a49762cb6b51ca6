# SPDX-License-Identifier: Apache-2.0
"""The agent on a real bus with the shipped policies, driven by programs that are not ours."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.support.bus_device import (
    APP,
    OURS,
    OURS_SET,
    PATIENCE_S,
    SET,
    UPDATE,
    Device,
    device,
    on_a_bus,
    pause_map,
)

from update_agent.bus_objects import INTERFACES, OWN
from update_agent.control import COMMAND_ID
from update_tools.conform.peer import DEPLOYMENT_ID

ROOT = Path(__file__).parents[2]
AUTH = ("io.mender.AuthenticationManager", "/io/mender/AuthenticationManager")

__all__ = ["device"]
pytestmark = [
    pytest.mark.skipif(not shutil.which("dbus-daemon"), reason="dbus-daemon is not installed (Debian: dbus)"),
    pytest.mark.skipif(not shutil.which("gdbus"), reason="gdbus is not installed (Debian: libglib2.0-bin)"),
]


def test_an_application_holds_an_update_and_lets_it_go(device: Device) -> None:
    device.start()
    device.until_on_bus()
    result = device.set_map(pause_map())
    assert (result.returncode, result.stdout.split()) == (0, ["int32", "1800"])
    saved = device.saved_maps() or ""
    assert json.loads(saved)["active"][0]["id"] == APP  # on disk before the reply
    device.peer.offer()
    device.until_paused("ArtifactInstall_Enter")
    assert device.get("DeploymentId") == f"(<'{DEPLOYMENT_ID}'>,)"
    assert device.get("ArtifactName") == "(<'new'>,)"
    assert device.get("State") == "(<'ArtifactInstall'>,)"
    assert device.get("PausedBy") == f"(<[('{APP}', 0)]>,)"
    assert device.get("AtExpiry") == "(<'fail'>,)"
    until = re.search(r"\d{9,}", device.get("PausedUntil"))
    assert until is not None
    assert abs(int(until[0]) - time.time() - 3600) < 300
    done = re.search(r"uint64 (\d+)", device.get("BytesDone"))
    assert done is not None
    assert int(done[1]) > 0
    assert device.get("BytesTotal") == device.get("BytesDone")
    device.set_map(pause_map(action="force_continue"))
    device.until(device.lab.journal.has_ended, "the end")
    assert "Control point ArtifactInstall_Enter: continue by map" in device.log()
    assert "status:success" in device.lab.journal.trace()


@pytest.mark.parametrize(
    ("point", "end"),
    [
        ("Download_Enter", "Continue"),
        ("Download_Leave", "Fail"),
        ("ArtifactInstall_Enter", "Continue"),
        ("ArtifactInstall_Enter", "Fail"),
        ("ArtifactInstall_Leave", "Continue"),
        ("ArtifactReboot_Enter", "Continue"),
        ("ArtifactReboot_Enter", "Fail"),
        ("ArtifactReboot_Leave", "Fail"),
        ("ArtifactCommit_Enter", "Continue"),
        ("ArtifactCommit_Enter", "Fail"),
    ],
)
def test_commands_over_our_interface_survive_a_power_cut(device: Device, point: str, end: str) -> None:
    device.start(PauseSurvivesRestart=True)
    device.until_on_bus()
    assert device.call_ours(f"{OWN.name}.Pause", f"['{point}']").returncode == 0
    device.peer.offer()
    device.until_paused(point)
    assert device.get("PausedBy") == f"(<[('{COMMAND_ID}', 10)]>,)"
    assert device.get("PausedUntil") == "(<uint64 0>,)"
    device.restart()
    device.until_on_bus(2)
    device.until_paused(point)
    assert device.call_ours(f"{OWN.name}.{end}", "").returncode == 0
    device.until(device.lab.journal.has_ended, "the end")
    wanted = "status:success" if end == "Continue" else "status:failure"
    assert wanted in device.lab.journal.trace()
    device.until(lambda: device.saved_maps() is None, "forgetting the command")


@pytest.mark.parametrize(
    ("target", "member", "arguments", "error"),
    [
        (UPDATE, SET, ["string:"], "io.mender.Failed: Method returned error, see Mender logs for more"),
        (UPDATE, SET, ["string:null"], "io.mender.Failed: "),
        (UPDATE, SET, ["string:" + pause_map("Idle_Enter")], "io.mender.Failed: "),
        (UPDATE, SET, ["string:" + pause_map("Download_Enter")], "io.mender.Failed: "),  # ours, not theirs
        (UPDATE, SET, ["string:" + "[" * 100_000], "io.mender.Failed: "),
        (OURS, OURS_SET, ["string:"], f"{OWN.name}.Error.Refused: control map: not JSON"),
        (
            OURS,
            OURS_SET,
            ["string:" + pause_map("Idle_Enter")],
            f'{OWN.name}.Error.Refused: control map: states."I',
        ),
        (UPDATE, SET, ["int32:1"], "org.freedesktop.DBus.Error.InvalidArgs: "),
        (UPDATE, SET, [], "org.freedesktop.DBus.Error.InvalidArgs: "),
        (UPDATE, SET, ["string:x", "string:x"], "org.freedesktop.DBus.Error.InvalidArgs: "),
        (UPDATE, "io.mender.Update1.Pause", [], "org.freedesktop.DBus.Error.UnknownMethod: "),
        (UPDATE, "io.mender.Authentication1.GetJwtToken", [], "org.freedesktop.DBus.Error.UnknownMethod: "),
        ((UPDATE[0], "/io/nobody"), SET, ["string:x"], "org.freedesktop.DBus.Error.UnknownObject: "),
        (OURS, f"{OWN.name}.Pause", ["array:string:x"], f"{OWN.name}.Error.Refused: 'x' is not a control"),
        (OURS, f"{OWN.name}.Pause", ["array:string:"], f"{OWN.name}.Error.Refused: "),
        (OURS, f"{OWN.name}.Continue", ["string:"], f"{OWN.name}.Error.NoUpdate: no update is paused"),
        (OURS, f"{OWN.name}.Fail", ["string:"], f"{OWN.name}.Error.NoUpdate: no update is in progress"),
        (
            OURS,
            "org.freedesktop.DBus.Properties.Set",
            [f"string:{OWN.name}", "string:State", "variant:string:Idle"],
            "org.freedesktop.DBus.Error.PropertyReadOnly: ",
        ),
        (
            OURS,
            "org.freedesktop.DBus.Properties.Get",
            [f"string:{OWN.name}", "string:Colour"],
            "org.freedesktop.DBus.Error.UnknownProperty: ",
        ),
    ],
)
def test_errors_have_their_exact_names(
    bus_device: Device, target: tuple[str, str], member: str, arguments: list[str], error: str
) -> None:
    result = bus_device.bus.call(*target, member, *arguments)
    assert result.returncode == 1
    assert result.stderr.startswith(f"Error {error}")
    assert bus_device.saved_maps() is None


@pytest.fixture(scope="module")
def bus_device() -> Iterator[Device]:
    """One idle device for all tests that change nothing on it."""
    with on_a_bus() as made:
        made.start()
        made.until_on_bus()
        yield made


def test_introspection_is_the_shipped_one(bus_device: Device) -> None:
    for interface in INTERFACES:
        target = ("--dest", interface.bus_name, "--object-path", interface.path, "--xml")
        root = ET.fromstring(bus_device.gdbus("introspect", *target).stdout)
        told = next(element for element in root if element.get("name") == interface.name)
        shipped = ET.parse(ROOT / "agent/dbus" / f"{interface.name}.xml").getroot()
        assert shipped.get("name") == interface.path
        assert ET.canonicalize(ET.tostring(shipped[0]), strip_text=True) == ET.canonicalize(
            ET.tostring(told), strip_text=True
        )
    tree = bus_device.gdbus("introspect", "--recurse", "--dest", OURS[0], "--object-path", "/").stdout
    for interface in INTERFACES:
        assert f"node {interface.path} {{" in tree


def test_peer_is_answered(bus_device: Device) -> None:
    assert bus_device.bus.call(*UPDATE, "org.freedesktop.DBus.Peer.Ping").returncode == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become other users")
def test_others_may_look_but_not_decide(bus_device: Device) -> None:
    target = ("--dest", UPDATE[0], "--object-path", UPDATE[1], "--method", SET)
    denied = "org.freedesktop.DBus.Error.AccessDenied"
    assert denied in bus_device.gdbus("call", *target, pause_map(), user="nobody").stderr
    # The same connection under its other name is no way in.
    smuggled = ("--dest", OURS[0], "--object-path", UPDATE[1], "--method", SET)
    assert denied in bus_device.gdbus("call", *smuggled, pause_map(), user="nobody").stderr
    token = ("--dest", OURS[0], "--object-path", AUTH[1], "--method", "io.mender.Authentication1.GetJwtToken")
    assert denied in bus_device.gdbus("call", *token, user="nobody").stderr
    arguments = {"Pause": "['ArtifactInstall_Enter']", "SetControlMap": pause_map()}
    for command in OWN.methods:
        argument = arguments.get(command, "")
        assert denied in bus_device.call_ours(f"{OWN.name}.{command}", argument, user="nobody").stderr
    assert bus_device.get("PausedAt", user="nobody") == "(<''>,)"
    assert bus_device.saved_maps() is None


class Monitor:
    """`gdbus monitor`, which subscribes to signals as an application does."""

    def __init__(self, device: Device, bus_name: str, user: str = "") -> None:
        as_user = ["setpriv", f"--reuid={user}", "--regid=nogroup", "--clear-groups"] if user else []
        self.path = Path(tempfile.mkstemp(dir=device.lab.root)[1])
        with self.path.open("w") as file:
            self.process = subprocess.Popen(
                [*as_user, "stdbuf", "-oL", "gdbus", "monitor", "--system", "--dest", bus_name],
                env=device.environment,
                stdout=file,
            )

    def text(self) -> str:
        return self.path.read_text()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def test_the_token_and_its_signal_which_only_root_may_see(device: Device) -> None:
    device.start()
    device.until_on_bus()
    device.peer.offer()
    device.until(device.lab.journal.has_ended, "the end")
    root = Monitor(device, AUTH[0])
    others = [Monitor(device, AUTH[0], user="nobody")] if os.geteuid() == 0 else []
    for monitor in (root, *others):
        device.until(lambda m=monitor: "is owned by" in m.text(), "the monitor's start")
    call = ("call", "--dest", AUTH[0], "--object-path", AUTH[1], "--method")
    for number in (1, 2):  # told each time, although the server gives the same token again
        assert device.gdbus(*call, "io.mender.Authentication1.FetchJwtToken").stdout == "(true,)\n"
        device.until(lambda n=number: root.text().count("JwtTokenStateChange") >= n, "the signal")
    session = device.gdbus(*call, "io.mender.Authentication1.GetJwtToken").stdout
    token, url = re.findall(r"'([^']*)'", session)
    assert token
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", url)
    assert url != device.peer.url  # a local forwarder, through which the server answers
    request = urllib.request.Request(f"{url}/artifact.mender", headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
        assert answer.read() == device.lab.artifact
    assert f"JwtTokenStateChange ('{token}', '{url}')" in root.text()
    for monitor in others:
        assert token not in monitor.text()
    failure = "JwtTokenStateChange ('', '')"
    failed_before = root.text().count(failure)  # a busy machine may have answered the first question too late
    device.peer.close()  # no server: a failure is told as two empty texts
    assert device.gdbus(*call, "io.mender.Authentication1.FetchJwtToken").stdout == "(true,)\n"
    device.until(lambda: root.text().count(failure) > failed_before, "the signal of the failure")
    assert device.gdbus(*call, "io.mender.Authentication1.GetJwtToken").stdout == "('', '')\n"
    for monitor in (root, *others):
        monitor.close()
    assert token not in device.log()


def test_changes_are_signalled(device: Device) -> None:
    device.start()
    device.until_on_bus()
    monitor = Monitor(device, OURS[0])
    device.until(lambda: "is owned by" in monitor.text(), "the monitor's start")
    device.set_map(pause_map())
    device.peer.offer()
    device.until(lambda: "'PausedAt': <'ArtifactInstall_Enter'>" in monitor.text(), "the signal")
    text = monitor.text()
    assert f"{OWN.path}: org.freedesktop.DBus.Properties.PropertiesChanged ('{OWN.name}', {{" in text
    assert f"'DeploymentId': <'{DEPLOYMENT_ID}'>" in text
    assert "'State': <'Download'>" in text
    device.set_map(json.dumps({"id": APP}))
    device.until(device.lab.journal.has_ended, "the end")
    device.until(lambda: "'DeploymentId': <''>" in monitor.text(), "the last signal")
    monitor.close()


def test_our_interface_takes_maps_for_every_point_and_tells_who_holds(device: Device) -> None:
    hook = {"point": "Download_Leave", "when": "always", "limit_s": 7200, "at_limit": "fail"}
    directory = Path(device.lab.path("conf/pause.d"))
    directory.mkdir()
    (directory / "10-hold.json").write_text(json.dumps(hook))
    device.start()
    device.until_on_bus()
    state = {"action": "pause", "on_map_expire": "continue"}
    document = json.dumps({"id": APP, "priority": 3, "states": {"Download_Leave": state}})
    assert device.call_ours(OURS_SET, document).stdout == "(1800,)\n"
    device.peer.offer()
    device.until_paused("Download_Leave")
    assert device.get("PausedBy") == f"(<[('{APP}', 3)]>,)"
    assert device.get("AtExpiry") == "(<'continue'>,)"
    held = device.get("PausedByHooks")
    found = re.fullmatch(r"\(<\[\('(.*)', 'always', uint64 (\d+), 'fail'\)\]>,\)", held)
    assert found is not None, held
    assert found[1] == str(directory / "10-hold.json")
    assert abs(int(found[2]) - time.time() - 7200) < 300
    assert device.call_ours(OURS_SET, json.dumps({"id": APP, "priority": 3})).returncode == 0
    device.until(lambda: device.get("PausedBy").endswith("[]>,)"), "the map's end")
    device.until_paused("Download_Leave")  # the hook holds on
    assert device.get("AtExpiry") == "(<'fail'>,)"
    assert device.call_ours(f"{OWN.name}.Continue", "").returncode == 0  # a person overrules it
    device.until(device.lab.journal.has_ended, "the end")
    assert device.get("PausedByHooks") == "(<@a(ssts) []>,)"
    assert "status:success" in device.lab.journal.trace()


def test_a_bus_that_is_killed_while_an_update_is_paused(device: Device) -> None:
    device.start()
    device.until_on_bus()
    device.set_map(pause_map())
    device.peer.offer()
    device.until_paused("ArtifactInstall_Enter")
    device.bus.stop()
    device.until_logged("updates go on, trying again")
    device.bus.start()
    device.until_on_bus(2)
    device.until_paused("ArtifactInstall_Enter")
    device.set_map(json.dumps({"id": APP}))
    device.until(device.lab.journal.has_ended, "the end")
    assert "status:success" in device.lab.journal.trace()


def test_an_update_without_a_bus_and_a_bus_that_comes_later(device: Device) -> None:
    device.bus.stop()
    device.start()
    device.until_logged("D-Bus: cannot connect")
    device.peer.offer()
    device.until(device.lab.journal.has_ended, "the end")
    assert "status:success" in device.lab.journal.trace()
    device.bus.start()
    device.until_on_bus()
    assert device.set_map(pause_map()).returncode == 0
    assert device.log().count("D-Bus: cannot connect") == 1  # said once, not at every try


def test_switched_off_there_is_nobody(device: Device) -> None:
    device.start(dbus=False)
    device.peer.offer()
    device.until(device.lab.journal.has_ended, "the end")
    assert "org.freedesktop.DBus.Error.ServiceUnknown" in device.set_map(pause_map()).stderr


def test_another_program_may_take_the_name_and_give_it_back(device: Device) -> None:
    device.start()
    device.until_on_bus()
    script = (
        "import sys\n"
        "from jeepney import new_method_call\n"
        "from jeepney.bus_messages import message_bus\n"
        "from jeepney.io.blocking import open_dbus_connection\n"
        "connection = open_dbus_connection('SYSTEM')\n"
        "connection.send_and_get_reply(message_bus.RequestName('io.mender.UpdateManager', 2))\n"
        "print('owner', flush=True)\n"
        "sys.stdin.read()\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", script],
        env=device.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert other.stdin is not None
    assert other.stdout is not None
    assert other.stdout.readline() == b"owner\n"
    device.until_logged("another program has taken io.mender.UpdateManager")
    other.stdin.close()
    other.wait()
    other.stdout.close()
    assert device.set_map(pause_map()).returncode == 0


def test_a_thousand_maps_from_one_client(device: Device) -> None:
    device.start()
    device.until_on_bus()
    script = (
        "import sys\n"
        "from jeepney import DBusAddress, new_method_call\n"
        "from jeepney.io.blocking import open_dbus_connection\n"
        "connection = open_dbus_connection('SYSTEM')\n"
        f"target = DBusAddress('{UPDATE[1]}', bus_name='{UPDATE[0]}', interface='io.mender.Update1')\n"
        "for line in sys.stdin:\n"
        "    call = new_method_call(target, 'SetUpdateControlMap', 's', (line,))\n"
        "    print(*connection.send_and_get_reply(call).body)\n"
    )
    maps = "\n".join(pause_map(number=number) for number in range(1, 1001))
    result = subprocess.run(
        [sys.executable, "-c", script],
        env=device.environment,
        input=maps,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stdout.split() == ["1800"] * 1000, result.stderr
    saved = json.loads(device.saved_maps() or "")
    assert len(saved["active"]) == 1000
    device.restart()
    device.until_on_bus(2)
    device.peer.offer()
    device.until_paused("ArtifactInstall_Enter")


def test_memory_of_the_idle_daemon_is_reported(
    device: Device, record_property: Callable[[str, object], None]
) -> None:
    for dbus in (False, True):
        device.start(dbus=dbus)
        if dbus:
            device.until_on_bus()
        else:
            device.until_logged("is running")
        assert device.agent is not None
        status_text = Path(f"/proc/{device.agent.pid}/status").read_text()
        for key in ("VmRSS", "RssAnon"):
            found = re.search(rf"{key}:\s+(\d+) kB", status_text)
            assert found is not None
            record_property(f"{key} {'with' if dbus else 'without'} bus, kB", int(found[1]))
            print(f"{key} {'with' if dbus else 'without'} bus: {found[1]} kB")


def examples() -> list[tuple[str, str]]:
    """The guide's examples: language and text."""
    guide = (ROOT / "agent/README.md").read_text()
    return re.findall(r"^```(sh|python)\n(.*?)^```$", guide, re.MULTILINE | re.DOTALL)


def test_the_examples_of_the_guide(device: Device, tmp_path: Path) -> None:
    device.start()
    device.until_on_bus()
    program = tmp_path / "update-agent"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m update_agent "$@"\n')
    program.chmod(0o755)
    environment = {**device.environment, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    outputs = []
    for language, text in examples():
        command = ["/bin/sh", "-eu", "-c", text] if language == "sh" else [sys.executable, "-c", text]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert result.returncode == 0, f"{text}\n{result.stderr}"
        outputs.append(result.stdout)
    shell, python, properties, commands, over_socket = outputs
    assert shell.endswith("int32 1800\n")
    assert python == "send again within 1800 seconds\n"
    assert "'State': <'Idle'>" in properties or "'State': <'Sync'>" in properties
    assert "a command on this device, lasts" in commands
    assert json.loads(over_socket.replace("'", '"').replace("True", "true")) == {"ok": True, "result": 1800}
