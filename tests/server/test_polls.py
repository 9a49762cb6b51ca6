# SPDX-License-Identifier: Apache-2.0
"""The short way for polls: the same answers as the long one, in batches, and nothing is lost on it."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from tests.server.conftest import ThreadServer
from tests.server.fake_device import DEPLOYMENTS_V2, FakeDevice
from tests.server.fleet_kit import SATURDAY, Fleet

from update_tools.server import polls
from update_tools.server.client import Management
from update_tools.server.database import Database
from update_tools.server.db import Device, DeviceKey, Part
from update_tools.server.load import bare
from update_tools.server.load.cli import app as bench

OK = {"artifact_name": "release-1", "device_type": "virt64"}


def known(ships: Fleet, count: int) -> None:
    ships.build(count)
    with ships.db.write() as session:
        for number in range(count):
            session.add(
                DeviceKey(id=f"k{number}", device_id=f"d{number}", public_key="", kind="", status="accepted")
            )


@pytest.fixture
def ships(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fleet:
    db = Database.at(tmp_path / "server.db")
    db.upgrade()
    fleet = Fleet(db, monkeypatch)
    monkeypatch.setattr(polls, "now", lambda: fleet.at)
    return fleet


def look(ships: Fleet, *keys: str) -> list[polls.Standing | None]:
    async def ask() -> list[polls.Standing | None]:
        looker = polls.Polls(ships.db)
        return list(await asyncio.gather(*(looker.look(key) for key in keys)))

    return asyncio.run(ask())


def test_what_a_device_stands_at(ships: Fleet) -> None:
    known(ships, 5)
    with ships.db.write() as session:
        session.get_one(DeviceKey, "k4").status = "rejected"
    ships.deploy("now", devices=["d0"])
    ships.deploy("later", devices=["d1"], start_at=SATURDAY.replace(hour=5))
    held = ships.deploy("held", devices=["d2", "d3"])
    assert ships.poll(3) == held
    with ships.db.write() as session:
        polls_before = session.get_one(Device, "d2").last_seen_at
        from update_tools.server import deployments

        deployments.hold(session, held)
    assert polls_before is None
    found = look(ships, "k0", "k1", "k2", "k3", "k4", "nobody")
    assert [standing and standing.has_deployment for standing in found] == [
        True,
        False,
        False,
        True,
        None,
        None,
    ]
    ships.later(hours=4)
    assert look(ships, "k1") == [polls.Standing("d1", "release-1", "virt64", True)]
    assert not polls.Standing("d1", "release-1", "virt64", False).is_news(OK)
    for provides in ({**OK, "artifact_name": "other"}, {**OK, "device_type": "other"}):
        assert polls.Standing("d1", "release-1", "virt64", False).is_news(provides)


def test_many_polls_are_one_question(ships: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    known(ships, 30)
    asked: list[int] = []
    find = polls.Polls._find
    monkeypatch.setattr(polls.Polls, "_find", lambda self, keys: asked.append(len(keys)) or find(self, keys))
    found = look(ships, *(f"k{number}" for number in range(30)), "k0")
    assert [standing.device_id for standing in found if standing] == [
        *(f"d{number}" for number in range(30)),
        "d0",
    ]
    assert asked == [31]


def test_a_question_that_fails_fails_for_those_who_asked(
    ships: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    known(ships, 1)

    async def ask() -> polls.Standing | None:
        looker = polls.Polls(ships.db)
        with monkeypatch.context() as patch:
            patch.setattr(polls.Polls, "_find", lambda *_: 1 / 0)
            for result in await asyncio.gather(looker.look("k0"), looker.look("k0"), return_exceptions=True):
                assert isinstance(result, ZeroDivisionError)
        return await looker.look("k0")

    assert asyncio.run(ask()) is not None


def test_when_devices_were_heard_of(ships: Fleet) -> None:
    known(ships, 3)
    looker = polls.Polls(ships.db)
    looker.seen("d0")
    ships.later(seconds=5)
    looker.seen("d1")
    looker.flush()
    looker.seen("d0")
    ships.later(seconds=-3)
    looker.seen("d1")  # another process was earlier
    looker.close()
    with ships.db.read() as session:
        seen = [session.get_one(Device, f"d{number}").last_seen_at for number in range(3)]
    assert [moment and (moment - SATURDAY).total_seconds() for moment in seen] == [5, 5, None]


def test_a_database_that_is_away_loses_no_sighting(ships: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    from sqlalchemy.exc import OperationalError

    known(ships, 1)
    looker = polls.Polls(ships.db)
    looker.seen("d0")

    def away(*_: Any) -> None:
        raise OperationalError("", None, Exception("gone"))

    with monkeypatch.context() as patch:
        patch.setattr(Database, "write", away)
        with pytest.raises(OperationalError):
            looker.flush()
    looker.flush()
    with ships.db.read() as session:
        assert session.get_one(Device, "d0").last_seen_at == SATURDAY


# --- over HTTP -------------------------------------------------------------------------------------------


def raw(server: ThreadServer, *pieces: bytes) -> bytes:
    """Send pieces one by one, and return the answer's first line."""
    parts = urlsplit(server.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=30) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for number, piece in enumerate(pieces):
            if number:
                connection.settimeout(0.3)
                with pytest.raises(TimeoutError):
                    connection.recv(1)
                connection.settimeout(30)
            connection.sendall(piece)
        return connection.recv(65536).partition(b"\r\n")[0]


def request(device: FakeDevice, body: bytes, kind: str = "application/json") -> bytes:
    head = (
        f"POST {DEPLOYMENTS_V2}/next HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {device.token}\r\n"
        f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


BODY = json.dumps({"device_provides": OK, "update_control_map": True}).encode()


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (BODY, "application/json", 204),
        (BODY, "Application/JSON; charset=utf-8", 204),
        (BODY, "text/plain", 415),
        (b"[]", "application/json", 400),
        (b"{", "application/json", 400),
        (b'{"device_provides":{"artifact_name":"release-1"}}', "application/json", 400),
        (b'{"device_provides":{"artifact_name":1,"device_type":"virt64"}}', "application/json", 400),
        (BODY[:-1] + b',"x":"' + b"x" * 20_000 + b'"}', "application/json", 204),
        (BODY[:-1] + b',"x":"' + b"x" * 70_000 + b'"}', "application/json", 413),
    ],
    ids=["usual", "other kind", "text", "list", "broken", "no type", "number", "long", "too long"],
)
def test_strange_polls_get_the_long_way(
    server: ThreadServer, device: FakeDevice, body: bytes, kind: str, status: int
) -> None:
    device.poll()
    assert raw(server, request(device, body, kind)).split()[1] == str(status).encode()


def test_a_poll_in_pieces(server: ThreadServer, device: FakeDevice) -> None:
    device.poll()
    whole = request(device, BODY)
    assert raw(server, whole[:-40], whole[-40:]).split()[1] == b"204"


def test_the_short_way_sees_what_changed_a_moment_ago(
    server: ThreadServer, device: FakeDevice, management: Management, release_2: Path
) -> None:
    assert [device.poll().status_code for _ in range(2)] == [204, 204]
    deployment_id = management.deploy("now", "release-2")
    assert device.poll().json()["id"] == deployment_id
    management.abort(deployment_id)
    assert device.poll().status_code == 204
    device.provides["artifact_name"] = "release-9"
    assert device.poll().status_code == 204
    assert management.known_devices()[0]["artifact_name"] == "release-9"
    token = device.token
    for wrong in ("x", token[:-4], token + "x"):
        device.token = wrong
        assert device.poll().status_code == 401
    device.token = token
    server.house.db.close()
    assert device.poll().status_code == 204, "a lost connection is replaced"
    parts = [part.status for part in _parts(server)]
    assert parts == ["aborted"]


def test_a_database_that_is_away_is_said(
    server: ThreadServer, device: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sqlalchemy.exc import OperationalError

    def away(*_: Any) -> None:
        raise OperationalError("", None, Exception("gone"))

    assert device.poll().status_code == 204
    with monkeypatch.context() as patch:
        patch.setattr(polls.Polls, "_find", away)
        answer = device.poll()
        assert answer.status_code == 503
        assert answer.headers["retry-after"]
    assert device.poll().status_code == 204


def _parts(server: ThreadServer) -> list[Part]:
    from sqlalchemy import select

    with server.house.db.read() as session:
        return list(session.scalars(select(Part)))


# --- the measuring command -------------------------------------------------------------------------------


def test_bench_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A small run on the real thing: real requests, no error, every device ends as it should."""
    output = tmp_path / "figures.json"
    argv = ["--devices", "20", "--servers", "sqlite:1", "--interval", "1", "--seconds", "1", "--flood", "0.3"]
    argv += ["--rounds", "1", "--walkers", "20", "--output", str(output)]
    with pytest.raises(SystemExit):  # its exit code judges the speed, which is not this test's
        bench(argv, prog_name="bench-server")
    result = json.loads(output.read_text())["results"][0]
    assert result["walk"]["outcome"] == {"success": 18, "failure": 2}
    for part in ("authorize", "first polls", "pace", "walk"):
        for kind, tally in result[part]["kinds"].items():
            assert tally["errors"] == {}, (part, kind)
            assert tally["count"] > 0
    assert result["flood"]["poll_errors"] == 0
    assert result["walk"]["kinds"]["log"]["count"] == 2
    assert "sqlite x1, 20" in capsys.readouterr().out


def test_the_bare_framework_has_the_same_route(serve: Callable[..., Any]) -> None:
    assert bare.PATH == polls.PATH
    assert "update_tools.server.load.bare" in sys.modules
