# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.leftovers import children
from tests.unit import peer as peers
from tests.unit.peer import Answer, Peer, Request
from tests.unit.test_server import DEPLOYMENT, answer, make_config

from update_agent import remote as remotes
from update_agent import transfer
from update_agent.config import Config
from update_agent.errors import TransferError
from update_agent.log import Log
from update_agent.loop import Loop
from update_agent.remote import Remote
from update_agent.update import Update
from update_tools.conform import artifact as artifacts


@pytest.fixture
def peer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Peer]:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    with peers.serving() as peer:
        yield peer


class Server:
    """Gives a token at each authorization and otherwise what `answers` has."""

    def __init__(self, peer: Peer) -> None:
        self.tokens = 0
        self.answers: list[Answer] = []
        peer.respond = self.respond

    def respond(self, request: Request) -> Answer:
        if request.path.endswith("auth_requests"):
            self.tokens += 1
            return Answer(200, f"token-{self.tokens}".encode())
        return self.answers.pop(0) if self.answers else Answer(200 if "inventory" in request.path else 204)


@pytest.fixture
def server(peer: Peer) -> Server:
    return Server(peer)


@pytest.fixture
def config(peer: Peer, tmp_path: Path) -> Config:
    return make_config(tmp_path, peer.url)


@pytest.fixture
def remote(config: Config) -> Iterator[Remote]:
    made = Remote(config, Log("debug", stream=io.StringIO()))
    yield made
    made.rest()


def paths(peer: Peer) -> list[str]:
    return [request.path.rpartition("/")[2] for request in peer.requests]


def test_the_session_lives_from_one_child_to_the_next(
    peer: Peer, server: Server, remote: Remote, tmp_path: Path
) -> None:
    server.answers = [answer(200, DEPLOYMENT)]
    reply = remote.poll({"artifact_name": "r1"})
    assert (reply.kind, reply.value) == ("ok", DEPLOYMENT)
    assert remote.report("d-1", "downloading").kind == "ok"
    assert remote.poll({"artifact_name": "r1"}).kind == "nothing"
    assert paths(peer) == ["auth_requests", "next", "status", "next"]
    assert (remote.token, remote.server_url) == ("token-1", peer.url)
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"token-1" not in kept


def test_a_token_got_on_the_way_is_kept_even_if_the_request_fails(server: Server, remote: Remote) -> None:
    server.answers = [Answer(500)]
    assert remote.report("d-1", "downloading").kind == "failed"
    assert remote.token == "token-1"


def test_a_dropped_token_is_fetched_again(peer: Peer, server: Server, remote: Remote) -> None:
    remote.report("d-1", "downloading")
    remote.drop_token()
    remote.report("d-1", "installing")
    assert paths(peer) == ["auth_requests", "status"] * 2
    assert remote.token == "token-2"


def test_explicit_authorization(server: Server, remote: Remote) -> None:
    assert remote.authorize().kind == "ok"
    assert remote.authorize().kind == "ok"
    assert remote.token == "token-2"


def test_no_network_is_a_reply(peer: Peer, remote: Remote, config: Config) -> None:
    peer.close()
    for reply in (
        remote.poll({"artifact_name": "r1"}),
        remote.report("d-1", "success"),
        remote.control_map("d-1"),
        remote.upload_log("d-1", "/nonexistent/log"),
        remote.inventory(),
        remote.authorize(),
    ):
        assert reply.kind == "failed"
        assert "refused" in reply.reason or "cannot read" in reply.reason
    assert remote.token == ""


def test_a_broken_device_key_is_a_reply(peer: Peer, server: Server, remote: Remote, config: Config) -> None:
    Path(config.key_file()).write_text("broken")
    assert "device key" in remote.poll({"artifact_name": "r1"}).reason
    assert peer.requests == []


def test_retry_after_reaches_the_daemon(server: Server, remote: Remote) -> None:
    server.answers = [answer(429, Retry_After="7")]
    assert remote.poll({"artifact_name": "r1"}).retry_after_s == 7.0


def test_inventory_is_not_repeated_until_authorized_anew(peer: Peer, server: Server, remote: Remote) -> None:
    assert [remote.inventory().kind for _ in range(3)] == ["ok"] * 3
    assert paths(peer) == ["auth_requests", "attributes"]
    remote.drop_token()
    assert remote.inventory().kind == "ok"
    assert paths(peer)[2:] == ["auth_requests", "attributes"]


def test_inventory_after_another_request_authorized_anew(peer: Peer, server: Server, remote: Remote) -> None:
    remote.inventory()
    server.answers = [Answer(401), Answer(204)]
    remote.report("d-1", "success")
    remote.inventory()
    assert paths(peer)[-1] == "attributes"
    assert remote.inventory().kind == "ok"


def test_a_failed_inventory_is_sent_again(peer: Peer, server: Server, remote: Remote) -> None:
    server.answers = [Answer(500)]
    assert [remote.inventory().kind, remote.inventory().kind] == ["failed", "ok"]
    assert paths(peer).count("attributes") == 2


def test_the_daemon_stays_responsive(peer: Peer, server: Server, config: Config) -> None:
    """The server's answer waits for something the daemon does in a callback during the request."""
    loop = Loop()
    read_fd, write_fd = os.pipe()
    answer_fd, go_fd = os.pipe()

    def respond(request: Request) -> Answer:
        if not request.path.endswith("status"):
            return server.respond(request)
        os.write(write_fd, b"x")
        os.read(answer_fd, 1)
        return Answer(204)

    def served() -> None:
        os.read(read_fd, 1)
        os.write(go_fd, b"x")

    peer.respond = respond
    loop.watch(read_fd, served)
    remote = Remote(config, Log(stream=io.StringIO()), loop)
    assert remote.report("d-1", "downloading").kind == "ok"
    remote.rest()
    for fd in (read_fd, write_fd, answer_fd, go_fd):
        os.close(fd)


# One child and one connection for a deployment


OTHERS: set[int] = set()  # what runs for other tests


@pytest.fixture(autouse=True)
def others() -> None:
    OTHERS.clear()
    OTHERS.update(children())


def no_children() -> bool:
    return children() <= OTHERS


def test_requests_share_a_connection_until_nothing_is_asked_for_a_while(
    peer: Peer, server: Server, remote: Remote
) -> None:
    peer.keeps_alive = True
    remote.poll({"artifact_name": "r1"})
    remote.report("d-1", "downloading")
    remote.report("d-1", "installing")
    remote.rest()
    assert no_children()
    remote.report("d-1", "success")
    ports = [request.client_port for request in peer.requests]
    assert len(set(ports[:4])) == 1
    assert ports[4] != ports[0]
    assert remote.token == "token-1"


def test_the_child_is_ended_when_it_had_nothing_to_do(
    server: Server, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remotes, "_REST_S", 0.0)
    loop = Loop()
    remote = Remote(config, Log(stream=io.StringIO()), loop)
    remote.report("d-1", "downloading")
    assert not no_children()
    while not no_children():
        loop.wait((), time.monotonic() + 0.001)
    assert remote.report("d-1", "installing").kind == "ok"
    remote.rest()


def test_it_is_not_ended_in_the_middle_of_a_long_request(
    peer: Peer, server: Server, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time after which it may rest passes while the server thinks."""
    monkeypatch.setattr(remotes, "_REST_S", 0.01)
    loop = Loop()
    remote = Remote(config, Log(stream=io.StringIO()), loop)
    remote.report("d-1", "downloading")
    passed = threading.Event()
    loop.call_at(time.monotonic() + 0.05, passed.set)

    def respond(request: Request) -> Answer:
        passed.wait(30)
        return server.respond(request)

    peer.respond = respond
    assert remote.report("d-1", "installing").kind == "ok"
    assert passed.is_set()
    remote.rest()


def test_a_killed_child_is_a_failed_reply_and_the_next_request_works(
    peer: Peer, server: Server, remote: Remote
) -> None:
    def respond(request: Request) -> Answer:
        if request.path.endswith("status"):
            os.kill(remote._helper._process._child.pid, signal.SIGKILL)  # type: ignore[union-attr]
        return server.respond(request)

    peer.respond = respond
    reply = remote.report("d-1", "downloading")
    assert (reply.kind, "signal 9" in reply.reason) == ("failed", True)
    peer.respond = server.respond
    assert remote.report("d-1", "downloading").kind == "ok"


def test_the_child_writes_to_the_deployment_log_of_now(
    server: Server, config: Config, tmp_path: Path
) -> None:
    """It was started before the log was opened, and outlives it."""
    log = Log("debug", stream=io.StringIO())
    remote = Remote(config, log)
    remote.poll({"artifact_name": "r1"})
    for deployment in ("d-1", "d-2"):
        log.open_deployment(str(tmp_path), deployment)
        server.answers = [Answer(401), Answer(204)]
        assert remote.report(deployment, "downloading").kind == "ok"
        assert "authorizing again" in Path(log.deployment_path).read_text()
        log.close_deployment()
    remote.report("d-3", "downloading")
    logs = [path.read_text() for path in sorted(tmp_path.glob("deployments.*"))]
    assert [text.count("authorizing again") for text in logs] == [1, 1]
    assert "d-3" not in "".join(logs)
    remote.rest()


def test_a_refused_certificate_that_may_be_the_clocks_fault_is_told(tmp_path: Path) -> None:
    cert, key = peers.future_certificate(tmp_path)
    with peers.serving(peers.server_context(cert, key)) as peer:
        config = make_config(tmp_path, peer.url)
        config.server_certificate = str(cert)
        remote = Remote(config, Log(stream=io.StringIO()))
        reply = remote.poll({"artifact_name": "r1"})
        assert (reply.kind, reply.is_clock) == ("failed", True)
        assert "this device's clock says" in reply.reason
        config.skip_verify = True
        remote.rest()
        assert not remote.poll({"artifact_name": "r1"}).is_clock
        remote.rest()


def test_a_download_goes_on_with_a_fresh_link_from_the_server(
    peer: Peer,
    server: Server,
    remote: Remote,
    config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The whole way: a link breaks, has expired when it is resumed, and the deployment is asked for again."""
    monkeypatch.setattr(transfer, "RETRY_WAIT_S", 0.0)
    module = Path(config.modules_dir()) / "single"
    module.parent.mkdir(parents=True)
    read = f"while read -r stream <stream-next; do cat $stream >{tmp_path}/got; done"
    module.write_text(f"#!/bin/sh\nif [ $1 = Download ]; then {read}; fi\n")
    module.chmod(0o755)
    data = artifacts.build("r2", device_type="virt64", payload_type="single", scripts={}, is_broken=False)
    source = {"uri": f"{peer.url}/fresh"}
    link: dict[str, object] = {"id": "d-1", "artifact": {"source": source, "artifact_name": "r2"}}

    def respond(request: Request) -> Answer:
        if request.path == "/old":
            return Answer(403) if "range" in request.headers else Answer(200, data, send_bytes=1000)
        if request.path == "/fresh":
            start = int(request.headers["range"].removeprefix("bytes=").partition("-")[0])
            return Answer(206, data[start:], {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"})
        return answer(200, link) if request.path.endswith("/next") else server.respond(request)

    peer.respond = respond
    heard: list[dict[str, object]] = []

    def hear(message: dict[str, object]) -> dict[str, object]:
        heard.append(message)
        return {}

    remote.download(Update("d-1", f"{peer.url}/old"), {"artifact_name": "r1"}, hear)
    assert (tmp_path / "got").read_bytes() == artifacts.PAYLOAD
    assert [message["name"] for message in heard if "name" in message] == ["r2"]
    assert paths(peer) == ["old", "old", "auth_requests", "next", "fresh"]
    assert remote.token == "token-1"
    link["id"] = "d-2"  # the server has moved on
    with pytest.raises(TransferError, match="answered 403"):
        remote.download(Update("d-1", f"{peer.url}/old"), {"artifact_name": "r1"}, hear)
