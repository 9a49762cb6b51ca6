# SPDX-License-Identifier: Apache-2.0
"""The control socket, by a real daemon object in a thread-less loop and clients that are real processes."""

from __future__ import annotations

import grp
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from update_agent import control, hooks
from update_agent.bootloader import UBoot
from update_agent.bus_objects import Objects
from update_agent.config import Config
from update_agent.ctl import ControlSocket
from update_agent.daemon import Daemon
from update_agent.errors import ConfigError
from update_agent.log import Log
from update_agent.loop import Loop, Signals
from update_agent.machine import Context
from update_agent.options import Usage, parse
from update_agent.remote import Remote
from update_agent.report import maps_text, status_text
from update_agent.states import WIRE_POINTS
from update_agent.status import status
from update_agent.store import Store
from update_agent.update import Update

AGENT = str(Path(__file__).parents[2] / "agent")
APP = "01234567-89ab-cdef-0123-456789abcdef"
MAP = json.dumps({"id": APP, "states": {WIRE_POINTS[0]: {"action": "pause"}}})


@pytest.fixture
def path() -> Iterator[str]:
    old = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGUSR2)}
    wakeup_fd = signal.set_wakeup_fd(-1)
    directory = tempfile.mkdtemp(prefix="ctl-")  # short, and other users may enter it
    os.chmod(directory, 0o755)
    yield f"{directory}/run/control.sock"
    shutil.rmtree(directory)
    signal.set_wakeup_fd(wakeup_fd)
    for number, handler in old.items():
        signal.signal(number, handler)


@pytest.fixture
def daemon(path: str, tmp_path: Path) -> Daemon:
    config = Config()
    config.datastore = str(tmp_path)
    log = Log("error")
    context = Context(config, log, Store(str(tmp_path), log), Loop(), UBoot())
    return Daemon(context, Remote(config, log), Signals(context.loop))


class Client:
    """One end of the conversation; the daemon is served while it waits for the reply."""

    def __init__(self, daemon: Daemon, path: str) -> None:
        self.daemon = daemon
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        self.rest = b""

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def line(self) -> Any:
        while b"\n" not in self.rest:
            assert self.daemon.context.loop.wait([self.socket.fileno()], time.monotonic() + 20)
            chunk = self.socket.recv(65536)
            if not chunk:
                return None
            self.rest += chunk
        line, _, self.rest = self.rest.partition(b"\n")
        return json.loads(line)

    def ask(self, **request: object) -> Any:
        self.send(json.dumps(request).encode() + b"\n")
        return self.line()


@pytest.fixture
def client(daemon: Daemon, path: str) -> Iterator[Client]:
    ControlSocket(daemon, path).listen()
    made = Client(daemon, path)
    yield made
    made.socket.close()


def test_every_verb(client: Client) -> None:
    assert client.ask(verb="status")["result"] == status(client.daemon)
    assert client.ask(verb="set-map", map=MAP) == {"ok": True, "result": 1800}
    assert client.ask(verb="pause", points=[WIRE_POINTS[1]]) == {"ok": True, "result": [WIRE_POINTS[1]]}
    maps = client.ask(verb="maps")["result"]
    assert [entry["from"] for entry in maps] == ["application", "command"]
    assert maps == client.daemon.decisions.maps()
    assert client.ask(verb="continue", point=WIRE_POINTS[1]) == {"ok": True, "result": [WIRE_POINTS[1]]}
    reply = client.ask(verb="continue")
    assert (reply["ok"], reply["kind"]) == (False, "IdleError")
    assert client.ask(verb="fail")["error"] == "no update is in progress"


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b"{\n", "the request is not JSON"),
        (b"\xff\n", "the request is not JSON"),
        (b"[" * 100_000 + b"\n", "the request is not JSON"),
        (b"[]\n", "not a JSON object"),
        (b"{}\n", "unknown verb null"),
        (b'{"verb": {"a": 1}}\n', "unknown verb"),
        (b'{"verb": "pause"}\n', "points must be a list"),
        (b'{"verb": "pause", "points": [1]}\n', "points must be a list"),
        (b'{"verb": "pause", "points": ["Reboot"]}\n', "'Reboot' is not a control point"),
        (b'{"verb": "fail", "point": 1}\n', "point must be text"),
        (b'{"verb": "set-map"}\n', "map must be text"),
        (b'{"verb": "set-map", "map": "null"}\n', "control map"),
    ],
)
def test_a_bad_request_is_answered_and_changes_nothing(client: Client, line: bytes, error: str) -> None:
    client.send(line)
    reply = client.line()
    assert reply["ok"] is False
    assert error in reply["error"]
    assert client.ask(verb="maps") == {"ok": True, "result": []}


def test_a_request_without_end_is_cut_off(client: Client) -> None:
    for _ in range(9):
        client.send(b"x" * 32768)
        client.daemon.context.loop.wait([], time.monotonic() + 0.01)
    assert "at most" in client.line()["error"]
    assert client.line() is None


def test_requests_in_pieces_and_several_at_once(client: Client) -> None:
    client.send(b'{"verb": ')
    client.daemon.context.loop.wait([], time.monotonic() + 0.01)
    client.send(b'"maps"}\n{"verb": "maps"}\n')
    assert [client.line(), client.line()] == [{"ok": True, "result": []}] * 2


def test_followers_hear_of_changes_only(client: Client) -> None:
    daemon = client.daemon
    assert client.ask(verb="status", follow=True)["result"]["deployment"] is None
    daemon.update = Update("11111111-2222-3333-4444-555555555555", "")
    daemon.announce()
    assert client.line()["result"]["deployment"]["id"] == daemon.update.id
    daemon.announce()
    daemon.state = "Download"
    daemon.announce()
    assert client.line()["result"]["state"] == "Download"


def test_a_client_that_leaves_is_forgotten(client: Client, path: str) -> None:
    other = Client(client.daemon, path)
    other.ask(verb="status", follow=True)
    other.socket.close()
    client.daemon.state = "Download"
    client.daemon.announce()
    client.daemon.state = "Idle"
    client.daemon.announce()
    assert client.ask(verb="maps")["ok"]


def test_too_many_clients(client: Client, path: str) -> None:
    others = [Client(client.daemon, path) for _ in range(16)]
    refused = others[-1].line()
    assert "TooManyClients" in refused["error"]
    assert others[0].ask(verb="maps")["ok"]
    for other in others:
        other.socket.close()
    assert client.ask(verb="maps")["ok"]
    assert Client(client.daemon, path).ask(verb="maps")["ok"]


def test_a_socket_left_by_a_killed_agent_is_replaced_a_served_one_is_not(daemon: Daemon, path: str) -> None:
    os.makedirs(os.path.dirname(path))
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(path)
    dead.close()
    ControlSocket(daemon, path).listen()
    assert os.stat(path).st_mode & 0o777 == 0o600
    with pytest.raises(ConfigError, match="another agent serves it"):
        ControlSocket(daemon, path).listen()
    assert Client(daemon, path).ask(verb="maps")["ok"]


def test_a_group_that_does_not_exist(daemon: Daemon, path: str) -> None:
    with pytest.raises(ConfigError, match="there is no group 'no-such-group'"):
        ControlSocket(daemon, path, "no-such-group")


def as_user(uid: int, gids: list[int]) -> Callable[[], None]:
    def become() -> None:
        os.setgroups(gids[1:])
        os.setgid(gids[0])
        os.setuid(uid)

    return become


ASK = """
import socket, sys
connection = socket.socket(socket.AF_UNIX)
try:
    connection.connect(sys.argv[1])
except PermissionError:
    sys.exit("no permission")
try:
    connection.sendall(b'{"verb": "maps"}\\n')
except BrokenPipeError:
    pass
print(connection.recv(65536).decode())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become other users")
@pytest.mark.parametrize(
    ("gids", "open_to_all", "found"),
    [
        (["nogroup"], False, "no permission"),
        (["nogroup"], True, "AccessDenied"),
        (["games"], False, '"ok": true'),
        (["nogroup", "games"], False, '"ok": true'),
    ],
)
def test_who_may(daemon: Daemon, path: str, gids: list[str], open_to_all: bool, found: str) -> None:
    ControlSocket(daemon, path, "games").listen()
    if open_to_all:  # even if someone changes the mode, the peer's credentials count
        os.chmod(path, 0o666)
    become = as_user(pwd.getpwnam("nobody").pw_uid, [grp.getgrnam(name).gr_gid for name in gids])
    process = subprocess.Popen(
        ["/usr/bin/python3", "-c", ASK, path],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        preexec_fn=become,  # noqa: PLW1509 - single-threaded
        text=True,
    )
    assert process.stdout is not None
    assert daemon.context.loop.wait([process.stdout.fileno()], time.monotonic() + 20)
    assert found in process.communicate()[0]


# Command line


def run(daemon: Daemon, path: str, *words: str) -> tuple[int, str, str]:
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": AGENT, "UPDATE_CONTROL_SOCKET": path}
    process = subprocess.Popen(
        [sys.executable, "-m", "update_agent", "-l", "error", *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    pidfd = os.pidfd_open(process.pid)
    try:
        assert daemon.context.loop.wait([pidfd], time.monotonic() + 20)
    finally:
        os.close(pidfd)
    stdout, stderr = process.communicate()
    return process.returncode, stdout, stderr


def test_commands_of_a_person(daemon: Daemon, path: str) -> None:
    ControlSocket(daemon, path).listen()
    assert run(daemon, path, "maps") == (0, "No control maps.\n", "")
    code, out, _ = run(daemon, path, "pause", WIRE_POINTS[0], WIRE_POINTS[1])
    assert (code, out) == (
        0,
        f"Updates are held at {WIRE_POINTS[0]}, {WIRE_POINTS[1]} until `continue` or `fail`.\n",
    )
    assert run(daemon, path, "maps")[1] == maps_text(daemon.decisions.maps()) + "\n"
    assert run(daemon, path, "continue", WIRE_POINTS[0])[0] == 0
    assert run(daemon, path, "status")[1] == status_text(status(daemon)) + "\n"
    assert json.loads(run(daemon, path, "status", "--json")[1]) == status(daemon)
    code, out, err = run(daemon, path, "fail")
    assert (code, out, err) == (2, "", "Could not fulfill request: no update is in progress\n")
    code, _, err = run(daemon, path, "pause", "Reboot")
    assert (code, "'Reboot' is not a control point" in err) == (1, True)


def test_commands_without_a_daemon(daemon: Daemon, path: str) -> None:
    code, _, err = run(daemon, path, "status")
    assert code == 1
    assert f"cannot reach the update daemon at {path}" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pause"], "pause needs POINT..."),
        (["continue", "a", "b"], "surplus argument 'b'"),
        (["maps", "a"], "surplus argument 'a'"),
        (["pause", "--json", "a"], "unknown option --json"),
    ],
)
def test_wrong_usage(words: list[str], message: str) -> None:
    with pytest.raises(Usage, match=message.replace(".", r"\.")):
        parse(words)


def test_the_screen_says_what_it_waits_for_who_asked_and_what_comes_at_expiry(daemon: Daemon) -> None:
    daemon.decisions.set_map(MAP)
    daemon.store.lock()
    daemon.update = Update("11111111-2222-3333-4444-555555555555", "")
    daemon.update.artifact_name = "release-2"
    daemon.done_bytes, daemon.size_bytes = 50, 200
    daemon.step, daemon.state = daemon.flow["control.install"], "ArtifactInstall"
    daemon.pause = daemon.pool.evaluate(WIRE_POINTS[0], time.monotonic())
    daemon.wake = daemon.pool.next_deadline(time.monotonic(), daemon.update.id, 1800)
    text = status_text(status(daemon))
    for part in (
        "release-2",
        "Paused at   ArtifactInstall_Enter",
        f"Held by     application {APP}, priority 0; expires 20",
        "(in 60 min), then the update fails",
        "Until       someone decides: `continue` or `fail`; else in 60 min the update fails",
        "looks at the maps again in 30 min (half-time)",
        "50 of 200 bytes, 25 %",
    ):
        assert part in text
    assert len(text.splitlines()) < 24
    daemon.decisions.pause([WIRE_POINTS[0]])
    daemon.pause = daemon.pool.evaluate(WIRE_POINTS[0], time.monotonic())
    text = status_text(status(daemon))
    assert "Held by     a command on this device\nUntil       someone decides" in text


def test_status_says_which_hook_holds_and_until_when(daemon: Daemon) -> None:
    documents = [
        {"point": WIRE_POINTS[1], "when": "always", "limit_s": 7200, "at_limit": "fail"},
        {"point": WIRE_POINTS[1], "when": {"outside": "02:00 UTC", "lasting_s": 60}},
        {"point": WIRE_POINTS[1], "when": {"outside": "00:00 UTC", "lasting_s": 86400}},
    ]
    found = [hooks.parse(json.dumps(hook), f"/etc/pause.d/{n}0-x.json") for n, hook in enumerate(documents)]
    daemon.update = Update("3f1c", "https://example.com/a.mender")
    daemon.step = daemon.flow["control.reboot"]
    daemon.holds = hooks.Holds(found, lambda _: ("pause", ""))
    now = time.monotonic()
    daemon.holds.look(now, 1_800_000_000 // 86400 * 86400 + 3600)
    daemon.pause = control.Decision("pause")
    daemon.wake = control.Wake(now + 60.4, "hooks", "hooks")
    text = status_text(status(daemon))
    for part in (
        "Paused at   ArtifactReboot_Enter",
        "Held by     pause hook /etc/pause.d/00-x.json: always; at most until ",
        "(in 120 min), then the update fails",
        "Held by     pause hook /etc/pause.d/10-x.json: outside 02:00 UTC, 60 s, opens ",
        "(in 60 min)",
        "Until       the hooks let it go on, or someone decides: `continue` or `fail`; the first of these",
        "Next        looks at the hooks again in 60 s (hooks)",
    ):
        assert part in text.replace("in 2 h 0 min", "in 120 min")
    assert "20-x.json" not in text
    ends = Objects(daemon).properties()
    assert ends["PausedBy"] == ("a(si)", [])
    (first, second) = ends["PausedByHooks"][1]
    assert first[:2] == ("/etc/pause.d/00-x.json", "always")
    assert second[:2] == ("/etc/pause.d/10-x.json", "outside 02:00 UTC, 60 s")
    assert (first[3], second[3]) == ("fail", "continue")
    assert first[2] - second[2] == 3600
    assert (ends["PausedUntil"], ends["AtExpiry"]) == (("t", second[2]), ("s", "continue"))
