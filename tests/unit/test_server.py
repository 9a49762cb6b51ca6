# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit import peer as peers
from tests.unit.peer import Answer, Peer, Request, openssl

from update_agent.config import Config
from update_agent.connection import USER_AGENT, Connector
from update_agent.errors import ClockError, ServerError
from update_agent.log import Log
from update_agent.remote import Reply
from update_agent.server import Api, Session, check_deployment, retry_after_s

AUTH = "/api/devices/v1/authentication/auth_requests"
NEXT = "/api/devices/v2/deployments/device/deployments/next"
DEPLOYMENT = {"id": "d-1", "artifact": {"source": {"uri": "https://s/a?x=1"}, "artifact_name": "r2"}}
PROVIDES = {"artifact_name": "r 1&", "rootfs-image.version": "r1"}


def make_config(directory: Path, *servers: str) -> Config:
    config = Config()
    config.data_dir = config.datastore = str(directory)
    config.server_list = list(servers)
    identity = Path(config.identity_script())
    identity.parent.mkdir(exist_ok=True)
    identity.write_text("#!/bin/sh\necho mac=00:01\n")
    identity.chmod(0o755)
    (directory / "device_type").write_text("device_type=virt64\n")
    return config


class Rig:
    """A peer and an Api that talks to it."""

    def __init__(self, peer: Peer, directory: Path) -> None:
        self.peer = peer
        self.directory = directory
        self.config = make_config(directory, peer.url + "/prefix/")
        self.log = io.StringIO()

    def api(self, token: str = "old-token") -> Api:
        session = Session(token, self.peer.url) if token else None
        connector = Connector(self.config, {})
        return Api(
            self.config, Log("debug", stream=self.log), session, connector=connector, clock=lambda: 1e9
        )


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with peers.serving() as peer:
        yield Rig(peer, tmp_path)


def answer(status: int, document: object = None, **headers: str) -> Answer:
    body = b"" if document is None else json.dumps(document).encode()
    return Answer(status, body, {name.replace("_", "-"): value for name, value in headers.items()})


# Authorization


def test_authorization_is_signed_over_the_bytes_sent(rig: Rig) -> None:
    rig.config.tenant_token = "tenant"
    rig.peer.answers = [Answer(200, b"new-token\n")]
    api = rig.api("")
    api.authorize()
    assert (api.session.token, api.session.url) == ("new-token", rig.peer.url + "/prefix/")
    request = rig.peer.requests[0]
    assert (request.method, request.path) == ("POST", "/prefix" + AUTH)
    document = json.loads(request.body)
    assert document["id_data"] == '{"mac":"00:01"}'
    assert document["tenant_token"] == "tenant"
    assert document["tier"] == "standard"
    assert request.headers["content-type"] == request.headers["accept"] == "application/json"
    assert request.headers["user-agent"] == USER_AGENT
    assert USER_AGENT.startswith("Mender/")
    assert request.headers["authorization"]
    for name, data in (
        ("public", document["pubkey"].encode()),
        ("body", request.body),
        ("signature", base64.b64decode(request.headers["x-men-signature"], validate=True)),
    ):
        (rig.directory / name).write_bytes(data)
    openssl(
        *("pkeyutl", "-verify", "-rawin", "-pubin", "-inkey", rig.directory / "public"),
        *("-in", rig.directory / "body", "-sigfile", rig.directory / "signature"),
    )
    assert "new-token" not in rig.log.getvalue()


def test_an_empty_tenant_token_is_left_out(rig: Rig) -> None:
    rig.peer.answers = [Answer(200, b"t")]
    rig.api("").authorize()
    assert "tenant_token" not in json.loads(rig.peer.requests[0].body)


def test_servers_are_tried_in_order_and_the_one_that_answers_is_used(rig: Rig) -> None:
    with peers.serving() as refusing, peers.serving() as gone:
        gone_url = gone.url
        gone.close()
        refusing.answers = [answer(401, {"error": "dev auth: unauthorized", "request_id": "1"})]
        rig.config.server_list = [gone_url, refusing.url, rig.peer.url]
        rig.peer.answers = [Answer(200, b"token"), Answer(204)]
        api = rig.api("")
        assert api.next_deployment(PROVIDES, "virt64").kind == "nothing"
    assert api.session.url == rig.peer.url
    assert rig.peer.requests[1].headers["authorization"] == "Bearer token"
    assert "dev auth: unauthorized" in rig.log.getvalue()


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (answer(401, {"error": "pending"}), "401: pending.*accepted"),
        (Answer(200, b""), "without a usable token"),
        (Answer(200, b"two words"), "without a usable token"),
        (Answer(302, headers={"Location": "/x"}), "302"),
    ],
)
def test_failed_authorization(rig: Rig, reply: Answer, reason: str) -> None:
    rig.peer.answers = [reply]
    api = rig.api()
    with pytest.raises(ServerError, match=reason):
        api.authorize()
    assert api.session.token == ""
    assert len(rig.peer.requests) == 1


def test_without_servers(rig: Rig) -> None:
    rig.config.server_list = []
    with pytest.raises(ServerError, match="no server"):
        rig.api("").authorize()


# Common rules


def test_a_401_is_answered_by_one_fresh_token(rig: Rig) -> None:
    rig.peer.answers = [Answer(401), Answer(200, b"fresh"), Answer(204)]
    api = rig.api()
    assert api.report("d-1", "installing").kind == "ok"
    assert [request.path.rpartition("/")[2] for request in rig.peer.requests] == [
        "status",
        "auth_requests",
        "status",
    ]
    tokens = [request.headers["authorization"] for request in rig.peer.requests]
    assert (tokens[0], tokens[2]) == ("Bearer old-token", "Bearer fresh")
    assert api.session.token == "fresh"
    assert "fresh" not in rig.log.getvalue()


def test_a_server_that_went_away_is_replaced_by_the_next_of_the_list(rig: Rig) -> None:
    with peers.serving() as gone:
        pass
    rig.config.server_list = [gone.url, rig.peer.url]
    rig.peer.answers = [Answer(200, b"other-token"), Answer(204)]
    api = rig.api()
    api.session = Session("old-token", gone.url)
    assert api.report("d-1", "installing").kind == "ok"
    assert (api.session.url, api.session.token) == (rig.peer.url, "other-token")
    assert [request.headers["authorization"] for request in rig.peer.requests] == [
        "API_KEY",
        "Bearer other-token",
    ]
    assert "Looking for another server" in rig.log.getvalue()


def test_without_others_a_server_that_went_away_is_the_result(rig: Rig) -> None:
    with peers.serving() as gone:
        pass
    rig.config.server_list = [gone.url]
    api = rig.api()
    api.session = Session("old-token", gone.url)
    with pytest.raises(ServerError, match="refused"):
        api.report("d-1", "installing")
    assert api.session.token == "old-token"
    assert rig.peer.requests == []


def test_a_second_401_is_the_result(rig: Rig) -> None:
    rig.peer.answers = [Answer(401), Answer(200, b"fresh"), Answer(401)]
    reply = rig.api().report("d-1", "installing")
    assert reply.kind == "failed"
    assert len(rig.peer.requests) == 3


def test_redirects_are_not_followed(rig: Rig) -> None:
    rig.peer.answers = [Answer(307, headers={"Location": "/elsewhere"})]
    assert rig.api().report("d-1", "installing").kind == "failed"
    assert len(rig.peer.requests) == 1


def test_an_answer_that_breaks_or_is_endless(rig: Rig) -> None:
    rig.peer.answers = [Answer(200, b'{"id": "x"}', send_bytes=4), Answer(200, b" " * (2 << 20))]
    with pytest.raises(ServerError, match="early"):
        rig.api().control_map("d-1")
    with pytest.raises(ServerError, match="too large"):
        rig.api().control_map("d-1")


@pytest.mark.parametrize(
    ("value", "date", "expected"),
    [
        ("120", "", 120.0),
        (" 0 ", "", 0.0),
        ("-1", "", None),
        ("1.5", "", None),
        ("", "", None),
        ("soon", "", None),
        ("Sun, 09 Sep 2001 01:47:40 GMT", "", 60.0),
        ("Sun, 09 Sep 2001 01:00:00 GMT", "", 0.0),
        # The device's clock is not set: the server's own date counts.
        ("Tue, 15 Nov 2044 08:12:31 GMT", "Tue, 15 Nov 2044 08:12:01 GMT", 30.0),
        ("Tue, 99 Nov 2044 08:12:31 GMT", "", None),
    ],
)
def test_retry_after(value: str, date: str, expected: float | None) -> None:
    assert retry_after_s(value, date, 1e9) == expected


# Requests


def test_the_poll_says_what_is_installed(rig: Rig) -> None:
    rig.peer.answers = [answer(200, DEPLOYMENT)]
    reply = rig.api().next_deployment(PROVIDES, "virt64")
    assert (reply.kind, reply.value) == ("ok", DEPLOYMENT)
    request = rig.peer.requests[0]
    assert (request.method, request.path) == ("POST", NEXT)
    assert json.loads(request.body) == {
        "device_provides": {**PROVIDES, "device_type": "virt64"},
        "update_control_map": True,
    }


def test_a_server_without_v2_is_asked_the_old_way(rig: Rig) -> None:
    rig.peer.answers = [Answer(404), answer(200, DEPLOYMENT)]
    assert rig.api().next_deployment(PROVIDES, "virt64").kind == "ok"
    request = rig.peer.requests[1]
    assert request.method == "GET"
    assert request.path.endswith(
        "/v1/deployments/device/deployments/next?artifact_name=r%201%26&device_type=virt64"
    )
    assert "content-type" not in request.headers


@pytest.mark.parametrize("status", [400, 404, 500, 302])
def test_a_failed_poll(rig: Rig, status: int) -> None:
    rig.peer.respond = lambda _: answer(status, {"error": "no luck"})
    reply = rig.api().next_deployment(PROVIDES, "virt64")
    assert reply.kind == "failed"
    assert "no luck" in reply.reason


def test_too_many_requests(rig: Rig) -> None:
    rig.peer.answers = [answer(429, Retry_After="17"), answer(429), answer(503, Retry_After="17")]
    replies = [rig.api().next_deployment(PROVIDES, "virt64") for _ in range(3)]
    assert [reply.retry_after_s for reply in replies] == [17.0, None, None]
    assert {reply.kind for reply in replies} == {"failed"}


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        {},
        {**DEPLOYMENT, "id": ""},
        {**DEPLOYMENT, "id": 5},
        {**DEPLOYMENT, "id": "../../etc/x"},
        {**DEPLOYMENT, "id": "a\nb"},
        {"id": "d"},
        {"id": "d", "artifact": []},
        {"id": "d", "artifact": {"source": {"uri": ""}}},
        {"id": "d", "artifact": {"source": {"uri": "file:///etc/passwd"}}},
        {"id": "d", "artifact": {"source": {"uri": "http://s/"}, "artifact_name": 1}},
        # State scripts get it in their environment.
        {"id": "d", "artifact": {"source": {"uri": "http://s/"}, "artifact_name": "a\0b"}},
        {"id": "d", "artifact": {"source": {"uri": "http://s/"}, "artifact_name": "\ud800"}},
    ],
)
def test_malformed_deployments(document: object) -> None:
    with pytest.raises(ServerError):
        check_deployment(document)


@pytest.mark.parametrize("name", [{}, {"artifact_name": None}, {"artifact_name": "ü 1"}])
def test_a_deployment_need_not_name_its_artifact(name: dict[str, object]) -> None:
    check_deployment({"id": "d", "artifact": {"source": {"uri": "http://s/"}, **name}})


def test_the_control_map_of_a_deployment_is_passed_on_unread() -> None:
    document = {**DEPLOYMENT, "update_control_map": "nonsense"}
    assert check_deployment(document)["update_control_map"] == "nonsense"


@pytest.mark.parametrize(
    ("status", "kind"), [(204, "ok"), (409, "aborted"), (404, "failed"), (500, "failed")]
)
def test_reports(rig: Rig, status: int, kind: str) -> None:
    rig.peer.answers = [Answer(status), Answer(status)]
    assert rig.api().report("d-1", "installing").kind == kind
    rig.api().report("d-1", "failure", "why")
    request = rig.peer.requests[0]
    assert (request.method, request.path) == (
        "PUT",
        "/api/devices/v1/deployments/device/deployments/d-1/status",
    )
    assert [json.loads(request.body) for request in rig.peer.requests] == [
        {"status": "installing"},
        {"status": "failure", "substate": "why"},
    ]


@pytest.mark.parametrize(
    ("sent", "kind", "value"),
    [
        (answer(200, {"update_control_map": {"id": "d-1"}}), "ok", {"id": "d-1"}),
        (answer(200, {"update_control_map": None}), "failed", None),
        (answer(200, {}), "failed", None),
        (answer(404), "gone", None),
        (answer(500), "failed", None),
    ],
)
def test_control_maps(rig: Rig, sent: Answer, kind: str, value: object) -> None:
    rig.peer.answers = [sent]
    reply: Reply = rig.api().control_map("d-1")
    assert (reply.kind, reply.value) == (kind, value)
    assert (
        rig.peer.requests[0].path == "/api/devices/v2/deployments/device/deployments/d-1/update_control_map"
    )


@pytest.mark.parametrize(("status", "kind"), [(204, "ok"), (413, "gone"), (500, "failed")])
def test_log_upload(rig: Rig, status: int, kind: str) -> None:
    path = rig.directory / "deployment.log"
    path.write_text('{"timestamp": "2026-01-01T00:00:00Z", "level": "info", "message": "hello"}\n')
    rig.peer.answers = [Answer(status)]
    assert rig.api().upload_log("d-1", str(path)).kind == kind
    request = rig.peer.requests[0]
    assert request.path.endswith("/v1/deployments/device/deployments/d-1/log")
    assert json.loads(request.body)["messages"][0]["message"] == "hello"


def test_inventory_is_sent_once_until_something_changes(rig: Rig) -> None:
    rig.peer.respond = lambda _: Answer(200)
    first = rig.api().send_inventory({"artifact_name": "r1"}, "")
    assert first.kind == "ok"
    names = [attribute["name"] for attribute in json.loads(rig.peer.requests[0].body)]
    assert names == sorted(names)
    assert "artifact_name" in names
    assert rig.api().send_inventory({"artifact_name": "r1"}, str(first.value)).value == first.value
    assert len(rig.peer.requests) == 1
    assert rig.api().send_inventory({"artifact_name": "r2"}, str(first.value)).kind == "ok"
    assert len(rig.peer.requests) == 2


def test_inventory_is_sent_again_with_a_new_token(rig: Rig) -> None:
    rig.peer.respond = lambda request: Answer(200, b"token" if request.path.endswith(AUTH) else b"")
    first = rig.api().send_inventory({}, "")
    again = rig.api("").send_inventory({}, str(first.value))
    assert again.kind == "ok"
    assert [request.method for request in rig.peer.requests] == ["PUT", "POST", "PUT"]


# TLS


def test_tls_trust_and_its_explanations(tmp_path: Path) -> None:
    cert, key = peers.certificate(tmp_path, "server")
    other, other_key = peers.certificate(tmp_path, "other", subject_alt="DNS:other.example")
    future, future_key = peers.future_certificate(tmp_path)

    def report(peer: Peer, trusted: Path | None, *, skip: bool = False) -> str:
        config = make_config(tmp_path, peer.url)
        config.server_certificate = str(trusted) if trusted else ""
        config.skip_verify = skip
        api = Api(config, Log(stream=io.StringIO()), Session("t", peer.url), connector=Connector(config, {}))
        try:
            return api.report("d", "installing").kind
        except ServerError as error:
            kinds.append(type(error))
            return str(error)

    kinds: list[type[ServerError]] = []
    ok = lambda _: Answer(204)  # noqa: E731
    with peers.serving(peers.server_context(cert, key)) as peer:
        peer.respond = ok
        assert report(peer, cert) == "ok"
        assert report(peer, None, skip=True) == "ok"
        assert "ServerCertificate" in report(peer, None)
        assert kinds == [ServerError]
        assert "cannot use ServerCertificate" in report(peer, tmp_path / "missing")
    with peers.serving(peers.server_context(other, other_key)) as peer:
        peer.respond = ok
        assert "address in mender.conf" in report(peer, other)
    with peers.serving(peers.server_context(future, future_key)) as peer:
        peer.respond = ok
        assert "clock says" in report(peer, future)
        assert kinds[-1] is ClockError
        assert report(peer, future, skip=True) == "ok"


def test_authorization_names_the_clock_too(tmp_path: Path) -> None:
    """Also when another server of the list failed for another reason after it."""
    future, future_key = peers.future_certificate(tmp_path)
    with peers.serving(peers.server_context(future, future_key)) as peer:
        config = make_config(tmp_path, peer.url, "http://127.0.0.1:9")
        config.server_certificate = str(future)
        with pytest.raises(ClockError, match=r"not yet valid.*refused"):
            Api(config, Log(stream=io.StringIO()), connector=Connector(config, {})).authorize()


def test_tls_client_certificate(tmp_path: Path) -> None:
    cert, key = peers.certificate(tmp_path, "server")
    client, client_key = peers.certificate(tmp_path, "client")
    with peers.serving(peers.server_context(cert, key, client_ca=client)) as peer:
        peer.respond = lambda _: Answer(204)
        config = make_config(tmp_path, peer.url)
        config.server_certificate = str(cert)

        def api() -> Api:
            return Api(
                config, Log(stream=io.StringIO()), Session("t", peer.url), connector=Connector(config, {})
            )

        with pytest.raises(ServerError):
            api().report("d", "installing")
        config.https_client_certificate, config.https_client_key = str(client), str(client_key)
        assert api().report("d", "installing").kind == "ok"
        encrypted = str(tmp_path / "encrypted.pem")
        openssl("pkey", "-in", str(client_key), "-aes256", "-passout", "pass:s3 cret", "-out", encrypted)
        config.https_client_key = encrypted
        with pytest.raises(ServerError, match=r"is encrypted \(give its --passphrase-file"):
            api().report("d", "installing")
        config.key_passphrase = "s3 cret"
        assert api().report("d", "installing").kind == "ok"
        config.https_client_key = str(key)
        with pytest.raises(ServerError, match="belong together"):
            api().report("d", "installing")


def test_a_failing_identity_script_ends_before_any_request(rig: Rig) -> None:
    Path(rig.config.identity_script()).write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(ServerError, match="exited with 1"):
        rig.api("").authorize()
    assert rig.peer.requests == []


def test_ids_are_quoted_in_paths(rig: Rig) -> None:
    rig.peer.answers = [Answer(204)]
    rig.api().report("ä/b", "installing")
    request: Request = rig.peer.requests[0]
    assert request.path.endswith("/%C3%A4%2Fb/status")
