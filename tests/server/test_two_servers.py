# SPDX-License-Identifier: Apache-2.0
"""Two server processes on one PostgreSQL and one S3 bucket: together they are one server."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import itertools
import random
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from sqlalchemy import text
from tests.server.conftest import Bucket
from tests.server.fake_device import FakeDevice

from update_agent.errors import UpdateError
from update_tools.server import events
from update_tools.server.client import Management
from update_tools.server.database import Database
from update_tools.server.events import Hub
from update_tools.server.run import Server, start

DEVICES = 6
ARTIFACTS = "/api/management/v1/deployments/artifacts"
macs = (f"52:54:00:00:01:{number:02x}" for number in itertools.count())


class Pair:
    """Both servers, and what they share."""

    def __init__(self, first: Server, second: Server, url: str, options: list[str]) -> None:
        self.servers = (first, second)
        self.database_url = url
        self.options = options

    @property
    def managements(self) -> tuple[Management, Management]:
        first, second = (server.management() for server in self.servers)
        return first, second

    def device(self) -> tuple[FakeDevice, FakeDevice]:
        """One accepted device, talking to either server."""
        mac = next(macs)
        one = FakeDevice(self.servers[0].url, mac)
        other = FakeDevice(self.servers[1].url, mac)
        other.key = one.key
        assert one.authorize().status_code == 200
        other.token = one.token
        return one, other


@pytest.fixture(scope="module")
def pair(
    postgres: Callable[[], str], bucket: Bucket, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    url = postgres()
    options = ["--database-url", url, *store_options(bucket, "pair")]
    with ExitStack() as stack:
        folders = (tmp_path_factory.mktemp("first"), tmp_path_factory.mktemp("second"))
        one, two = (
            stack.enter_context(start(folder, auto_accept=True, options=options)) for folder in folders
        )
        yield Pair(one, two, url, options)


def store_options(bucket: Bucket, prefix: str) -> list[str]:
    named = bucket.settings(prefix)
    return [word for name, value in named.items() for word in (f"--{name.replace('_', '-')}", value)]


@pytest.fixture(scope="module")
def release(pair: Pair, write_artifact: Callable[..., Path]) -> Path:
    path = write_artifact("release-2")
    pair.managements[0].upload(path)
    return path


def test_what_one_says_the_other_knows(pair: Pair, release: Path) -> None:
    first, second = pair.managements
    one, other = pair.device()
    assert one.poll().status_code == other.poll().status_code == 204
    device_id = device_ids(pair, one)[0]
    deployment_id = first.deploy("shared", "release-2", devices=[device_id])
    answer = other.poll()
    assert answer.json()["id"] == deployment_id
    link = answer.json()["artifact"]["source"]["uri"]
    assert link.startswith(pair.servers[1].url)
    whole = httpx.get(link)
    assert whole.content == release.read_bytes()
    assert whole.headers["etag"] == f'"{hashlib.sha256(whole.content).hexdigest()}"'
    elsewhere = link.replace(pair.servers[1].url, pair.servers[0].url)
    part = httpx.get(elsewhere, headers={"Range": "bytes=100-199", "If-Range": whole.headers["etag"]})
    assert (part.status_code, part.content) == (206, whole.content[100:200])
    assert one.report(deployment_id, "downloading").status_code == 204
    assert second.devices(deployment_id)[0]["status"] == "downloading"
    second.abort(deployment_id)
    assert one.report(deployment_id, "installing").status_code == 409


def device_ids(pair: Pair, *devices: FakeDevice) -> list[str]:
    known = {entry["identity_data"]: entry["id"] for entry in pair.managements[0].known_devices()}
    return [known[device.identity] for device in devices]


def at_once(*works: Callable[[], object]) -> list[object]:
    """All of them at the same moment, as nearly as threads can."""
    barrier = threading.Barrier(len(works))

    def run(work: Callable[[], object]) -> object:
        barrier.wait()
        return work()

    with ThreadPoolExecutor(len(works)) as pool:
        return list(pool.map(run, works))


def test_a_new_device_that_asks_both_is_one(pair: Pair) -> None:
    mac = next(macs)
    requests = [FakeDevice(server.url, mac) for server in pair.servers * 3]
    for request in requests:
        request.key = requests[0].key
    answers = at_once(*(request.authorize for request in requests))
    assert [answer.status_code for answer in answers] == [200] * 6  # type: ignore[attr-defined]
    assert len(device_ids(pair, requests[0])) == 1
    tokens = {request.token.split(".")[1] for request in requests}
    subjects = {re.search(r'"sub":"([^"]+)"', decode(body))[1] for body in tokens}  # type: ignore[index]
    assert len(subjects) == 1


def decode(body: str) -> str:
    return base64.urlsafe_b64decode(body + "==").decode()


def test_no_deployment_is_handed_out_twice(pair: Pair, release: Path) -> None:
    devices = [pair.device() for _ in range(DEVICES)]
    ids = device_ids(pair, *(one for one, _ in devices))
    for one, _ in devices:
        one.poll()
    first, second = pair.managements
    deployment_id = first.deploy("once", "release-2", devices=ids)
    polls = [side.poll for both in devices for side in both]
    answers = at_once(*polls)
    assert {answer.json()["id"] for answer in answers} == {deployment_id}  # type: ignore[attr-defined]
    for device_id in ids:
        words = [event["word"] for event in second.events(deployment_id, device_id)]
        assert words.count("handed out") == 1, words
    # All report success at the same moment, on both servers: somebody must see that nobody is left.
    at_once(
        *(lambda side=side: side.report(deployment_id, "success") for side, _ in devices[::2]),
        *(lambda side=side: side.report(deployment_id, "success") for _, side in devices[1::2]),
    )
    over = second.deployment(deployment_id)
    assert over["status"] == "finished"
    assert over["statistics"]["status"]["success"] == DEVICES


def test_no_decision_is_lost(pair: Pair, release: Path) -> None:
    one, _ = pair.device()
    one.poll()
    (device_id,) = device_ids(pair, one)
    points = ("ArtifactInstall_Enter", "ArtifactReboot_Enter", "ArtifactCommit_Enter")
    for turn in range(4):
        deployment_id = pair.managements[0].deploy(
            f"turn {turn}", "release-2", devices=[device_id], map={"states": {}}
        )
        at_once(
            *(
                lambda side=side, point=point, key=deployment_id: side.pause(key, point)
                for side, point in zip(itertools.cycle(pair.managements), points, strict=False)
            )
        )
        states = pair.managements[1].deployment(deployment_id)["update_control_map"]["states"]
        assert states == {point: {"action": "pause"} for point in points}
        pair.managements[1].abort(deployment_id)


def test_a_nul_from_a_broken_script_is_stored(pair: Pair, release: Path) -> None:
    """PostgreSQL has no NUL in texts; a device must still be able to say that it failed."""
    one, _ = pair.device()
    one.provides["artifact_name"] = "nul\0name"
    assert one.poll().status_code == 204
    ids = device_ids(pair, one)
    deployment_id = pair.managements[0].deploy("nul", "release-2", devices=ids)
    assert one.poll().status_code == 200
    assert one.report(deployment_id, "failure", "script said \0").status_code == 204
    assert one.upload_log(deployment_id, "a \0 in the log").status_code == 204
    assert one.inventory([{"name": "a\0b", "value": "c\0d"}]).status_code == 200
    (part,) = pair.managements[1].devices(deployment_id)
    assert part["substate"] == "script said \N{REPLACEMENT CHARACTER}"


def test_live_events_cross_from_one_to_the_other(
    pair: Pair, release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What happens on a server is heard by a listener of its own, also after its connection was cut."""
    monkeypatch.setattr(events, "RECONNECT_S", 0.1)
    one, _ = pair.device()
    one.poll()
    ids = device_ids(pair, one)
    first = pair.managements[0]

    async def listen() -> None:
        db = Database(pair.database_url)
        hub = Hub(db)
        async with hub.running():
            with hub.subscribe({"deployments"}) as subscription:
                assert await subscription.wait(30) == {"deployments"}, "it listens now"
                deployment_id = await asyncio.to_thread(first.deploy, "live", "release-2", ids)
                assert await subscription.wait(30) == {"deployments"}
                with hub.subscribe({f"deployment:{deployment_id}", "releases"}) as narrow:
                    await asyncio.to_thread(one.poll)
                    assert await narrow.wait(30) == {f"deployment:{deployment_id}"}
                    await asyncio.to_thread(cut_listeners, db)
                    assert await narrow.wait(30) == {f"deployment:{deployment_id}", "releases"}
                    await asyncio.to_thread(first.abort, deployment_id)
                    assert await narrow.wait(30) == {f"deployment:{deployment_id}"}
        db.close()

    asyncio.run(listen())
    assert pair.managements[1].known_devices(), "the servers live through it too"


def cut_listeners(db: Database) -> None:
    with db.engine.begin() as connection:
        query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'"
        assert connection.execute(text(query)).rowcount >= 1


def test_a_database_that_restarts(pair: Pair) -> None:
    """Its connections are cut: requests are put off with 503 at most, and nobody restarts the servers."""
    one, other = pair.device()
    db = Database(pair.database_url)
    with db.engine.connect() as connection:
        query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
        assert connection.execute(text(f"{query} AND datname = current_database()")).rowcount >= 2
    db.close()
    for side in (one, other):
        for _ in range(40):
            answer = side.inventory([{"name": "a", "value": "b"}])
            if answer.status_code == 200:
                break
            assert answer.status_code == 503, answer.text
            assert int(answer.headers["retry-after"]) > 0
            assert "the database does not answer" in answer.json()["error"]
        assert answer.status_code == 200
        assert side.poll().status_code in (204, 503)
        assert side.poll().status_code == 204


def test_an_upload_goes_on_at_the_other_after_a_kill(
    pair: Pair, tmp_path: Path, write_artifact: Callable[..., Path]
) -> None:
    path = write_artifact("killed", compression="none", payload=random.Random(2).randbytes(20 << 20))
    content = path.read_bytes()
    with start(tmp_path / "third", options=pair.options) as third:
        http = httpx.Client(
            base_url=third.url, headers={"Authorization": f"Bearer {third.token}"}, timeout=60
        )
        place = http.post(f"{ARTIFACTS}/uploads", headers={"Upload-Length": str(len(content))}).headers[
            "location"
        ]
        tus = {"Content-Type": "application/offset+octet-stream"}
        kept = http.patch(place, headers={**tus, "Upload-Offset": "0"}, content=content[: 9 << 20])
        assert kept.headers["upload-offset"] == str(9 << 20)

        def rest() -> Iterator[bytes]:
            yield content[9 << 20 : 15 << 20]
            third.kill()
            yield b"x"

        with pytest.raises(httpx.TransportError):
            http.patch(place, headers={**tus, "Upload-Offset": str(9 << 20)}, content=rest())
    with start(tmp_path / "fourth", options=pair.options) as fourth:
        http = httpx.Client(
            base_url=fourth.url, headers={"Authorization": f"Bearer {fourth.token}"}, timeout=60
        )
        offset = int(http.head(place).headers["upload-offset"])
        assert 9 << 20 <= offset <= 15 << 20, "what was acknowledged is there"
        done = http.patch(place, headers={**tus, "Upload-Offset": str(offset)}, content=content[offset:])
        assert done.status_code == 204, done.text
        entry = http.get(done.headers["location"]).json()
        assert entry["sha256"] == hashlib.sha256(content).hexdigest()


def test_stores_and_databases_belong_together(pair: Pair, bucket: Bucket, tmp_path: Path) -> None:
    with pytest.raises(UpdateError, match="the artifact store belongs to another server's database"):
        start(tmp_path / "a", options=store_options(bucket, "pair"))
    with pytest.raises(UpdateError, match="the artifacts of this database are in another store"):
        start(tmp_path / "b", options=["--database-url", pair.database_url])
    no_bucket = [word.replace(bucket.NAME, "no-such-bucket") for word in store_options(bucket, "x")]
    with pytest.raises(UpdateError, match="does the bucket exist"):
        start(tmp_path / "c", options=no_bucket)
