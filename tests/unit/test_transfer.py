# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.unit import peer as peers
from tests.unit.peer import Answer, Peer, Request

from update_agent.config import Config
from update_agent.connection import Connector
from update_agent.errors import ServerError, TransferError
from update_agent.log import Log
from update_agent.transfer import RETRY_WAIT_S, Download, range_error

DATA = bytes(range(256)) * 400


class Rig:
    """A peer, and a download from it whose waits are recorded instead of slept."""

    def __init__(self, peer: Peer, config: Config) -> None:
        self.peer = peer
        self.config = config
        self.log = io.StringIO()
        self.waits: list[float] = []
        self.progress: list[tuple[int, int | None]] = []

    def download(
        self,
        path: str = "/file?signature=secret",
        *,
        environ: dict[str, str] | None = None,
        renew: Callable[[], str] | None = None,
    ) -> Download:
        stream = Download(
            self.config,
            Log(stream=self.log),
            progress=lambda done, size: self.progress.append((done, size)),
            sleep=self.waits.append,
            connector=Connector(self.config, environ or {}),
            renew=renew,
            timeout_s=20,
        )
        return stream.open(path if "://" in path else self.peer.url + path)

    def fetch(self, path: str = "/file?signature=secret") -> bytes:
        with self.download(path) as stream:
            return read_all(stream)


def read_all(stream: Download, size: int = 10_000) -> bytes:
    pieces = []
    while piece := stream.read(size):
        pieces.append(piece)
    return b"".join(pieces)


@pytest.fixture
def rig() -> Iterator[Rig]:
    with peers.serving() as peer:
        yield Rig(peer, Config())


def part(start: int, *, end: int = len(DATA), total: str = "", send_bytes: int | None = None) -> Answer:
    header = {"Content-Range": f"bytes {start}-{end - 1}/{total or len(DATA)}"}
    return Answer(206, DATA[start:end], header, send_bytes=send_bytes)


def test_a_whole_download(rig: Rig) -> None:
    rig.peer.answers = [Answer(200, DATA)]
    assert rig.fetch() == DATA
    request = rig.peer.requests[0]
    assert (request.method, request.path) == ("GET", "/file?signature=secret")
    assert "authorization" not in request.headers
    assert "range" not in request.headers
    assert rig.progress[-1] == (len(DATA), len(DATA))
    assert rig.waits == []


def test_readinto_fills_the_callers_buffer(rig: Rig) -> None:
    rig.peer.answers = [Answer(200, DATA)]
    buffer = bytearray(len(DATA) + 100)
    with rig.download() as stream:
        done = 0
        while count := stream.readinto(memoryview(buffer)[done:]):
            done += count
    assert bytes(buffer[:done]) == DATA


def test_breaks_are_resumed_exactly_where_they_happened(rig: Rig) -> None:
    rig.peer.answers = [
        Answer(200, DATA, send_bytes=30_000),
        part(30_000, send_bytes=20_001),
        part(50_001, total="*"),
    ]
    assert rig.fetch() == DATA
    last = len(DATA) - 1
    ranges = [request.headers.get("range") for request in rig.peer.requests]
    assert ranges == [None, f"bytes=30000-{last}", f"bytes=50001-{last}"]
    assert rig.waits == [RETRY_WAIT_S, RETRY_WAIT_S]
    assert "secret" not in rig.log.getvalue()


def test_a_break_before_the_first_byte_of_the_body(rig: Rig) -> None:
    rig.peer.answers = [Answer(200, DATA, send_bytes=0), part(0)]
    assert rig.fetch() == DATA
    assert rig.peer.requests[1].headers["range"] == f"bytes=0-{len(DATA) - 1}"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Answer(200, DATA), "answered 200"),
        (Answer(403), "answered 403.*expired"),
        (Answer(416), "answered 416"),
        (part(29_999), "bytes 29999-"),
        (part(30_000, end=len(DATA) - 1), "instead of"),
        (part(30_000, total="5"), "has 5 bytes now"),
        (Answer(206, DATA[30_000:]), "Content-Range is ''"),
        (
            Answer(206, b"short", {"Content-Range": f"bytes 30000-{len(DATA) - 1}/{len(DATA)}"}),
            "has 5 bytes instead of",
        ),
    ],
)
def test_a_resume_that_does_not_fit_is_final(rig: Rig, answer: Answer, reason: str) -> None:
    rig.peer.answers = [Answer(200, DATA, send_bytes=30_000), answer]
    with pytest.raises(TransferError, match=reason) as caught:
        rig.fetch()
    assert "secret" not in str(caught.value)
    assert len(rig.peer.requests) == 2


@pytest.mark.parametrize("status", [403, 404, 500, 204, 206])
def test_a_first_answer_other_than_200_is_final(rig: Rig, status: int) -> None:
    rig.peer.answers = [Answer(status)]
    with pytest.raises(TransferError, match=f"answered {status}"):
        rig.fetch()
    assert rig.waits == []


def test_without_a_length_a_break_is_final_and_the_end_is_the_end(rig: Rig) -> None:
    rig.peer.answers = [Answer(200, DATA, announce=False)]
    assert rig.fetch() == DATA
    chunked = {"Transfer-Encoding": "chunked"}
    rig.peer.answers = [Answer(200, b"100\r\n" + DATA[:100], chunked, announce=False)]
    with pytest.raises(TransferError, match="Content-Length"):
        rig.fetch()


def test_resumes_are_counted_over_the_whole_download(rig: Rig) -> None:
    rig.config.retry_download_count = 3
    rig.peer.answers = [
        Answer(200, DATA, send_bytes=10),
        *(part(10 * number, send_bytes=10) for number in range(1, 4)),
    ]
    with pytest.raises(TransferError, match=r"after 40 bytes.*gave up after 3 retries"):
        rig.fetch()
    assert len(rig.waits) == 3


def test_a_connection_that_cannot_be_made_is_retried(rig: Rig) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/x"
        rig.config.retry_download_count = 2
        with pytest.raises(TransferError, match="could not be started: Connection refused; gave up after 2"):
            rig.download(url)
    assert rig.waits == [RETRY_WAIT_S] * 2


def etag(answer: Answer, value: str) -> Answer:
    answer.headers["ETag"] = value
    return answer


@pytest.mark.parametrize(
    ("first", "second", "goes_on"),
    [
        ('"a"', '"a"', True),
        ('"a"', '"b"', False),
        ('W/"a"', 'W/"b"', True),  # weak ones may differ between servers that have the same bytes
        ('"a"', 'W/"b"', True),
        ("", '"b"', True),
        ('"a"', "", True),
    ],
)
def test_a_file_with_another_etag_is_another_file(rig: Rig, first: str, second: str, goes_on: bool) -> None:
    rig.peer.answers = [etag(Answer(200, DATA, send_bytes=30_000), first), etag(part(30_000), second)]
    if goes_on:
        assert rig.fetch() == DATA
        return
    with pytest.raises(TransferError, match=r"another ETag.*changed on the server"):
        rig.fetch()


# Links that expire between two connections


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_an_expired_link_is_replaced_by_a_fresh_one(rig: Rig, status: int) -> None:
    rig.peer.answers = [
        Answer(200, DATA, send_bytes=30_000),
        Answer(status),
        part(30_000, send_bytes=10_000),
        part(40_000),
    ]
    links = [f"{rig.peer.url}/file?signature=fresh"]
    with rig.download(renew=links.pop) as stream:
        assert read_all(stream) == DATA
    paths = [request.path for request in rig.peer.requests]
    assert paths == ["/file?signature=secret"] * 2 + ["/file?signature=fresh"] * 2
    assert rig.peer.requests[2].headers["range"] == f"bytes=30000-{len(DATA) - 1}"
    assert rig.waits == [RETRY_WAIT_S] * 2
    assert "signature" not in rig.log.getvalue()


@pytest.mark.parametrize("status", [200, 416, 500])
def test_other_refusals_do_not_ask_for_a_link(rig: Rig, status: int) -> None:
    rig.peer.answers = [Answer(200, DATA, send_bytes=30_000), Answer(status)]
    with pytest.raises(TransferError, match=f"answered {status}"), rig.download(renew=lambda: "x") as stream:
        read_all(stream)
    assert len(rig.peer.requests) == 2


def test_a_link_that_is_refused_from_the_start_is_not_replaced(rig: Rig) -> None:
    rig.peer.answers = [Answer(403)]
    with pytest.raises(TransferError, match="answered 403"):
        rig.download(renew=lambda: "x")


def test_without_a_fresh_link_the_download_fails(rig: Rig) -> None:
    rig.peer.answers = [Answer(200, DATA, send_bytes=30_000), Answer(403)]
    with pytest.raises(TransferError, match=r"answered 403.*expired"), rig.download(renew=str) as stream:
        read_all(stream)


def test_a_fresh_link_that_is_refused_as_well_is_final(rig: Rig) -> None:
    rig.peer.answers = [Answer(200, DATA, send_bytes=30_000), Answer(403), Answer(403)]
    link = f"{rig.peer.url}/fresh"
    with pytest.raises(TransferError, match="answered 403"), rig.download(renew=lambda: link) as stream:
        read_all(stream)
    assert len(rig.peer.requests) == 3


def test_a_fresh_link_that_cannot_be_asked_for_is_asked_for_again(rig: Rig) -> None:
    rig.peer.answers = [Answer(200, DATA, send_bytes=30_000), Answer(403), Answer(403), part(30_000)]
    tries = [f"{rig.peer.url}/fresh", ""]

    def renew() -> str:
        link = tries.pop()
        if not link:
            raise ServerError("no route to the server", hint="a cable?")
        return link

    with rig.download(renew=renew) as stream:
        assert read_all(stream) == DATA
    assert rig.waits == [RETRY_WAIT_S] * 2
    assert "no route to the server (a cable?)" in rig.log.getvalue()


def test_a_fresh_link_to_another_file_is_refused(rig: Rig) -> None:
    other = Answer(206, DATA[:100], {"Content-Range": "bytes 30000-30099/30100"})
    rig.peer.answers = [Answer(200, DATA, send_bytes=30_000), Answer(403), other]
    link = f"{rig.peer.url}/fresh"
    with pytest.raises(TransferError, match="instead of"), rig.download(renew=lambda: link) as stream:
        read_all(stream)


def test_redirects_are_followed_again_from_the_start_after_a_break(rig: Rig) -> None:
    def respond(request: Request) -> Answer:
        if request.path == "/moved":
            return Answer(302, headers={"Location": "/file?signature=new"})
        return part(100) if "range" in request.headers else Answer(200, DATA, send_bytes=100)

    rig.peer.respond = respond
    assert rig.fetch("/moved") == DATA
    paths = [request.path for request in rig.peer.requests]
    assert paths == ["/moved", "/file?signature=new"] * 2


def test_redirects_to_other_schemes_and_in_circles(rig: Rig) -> None:
    rig.peer.respond = lambda _: Answer(302, headers={"Location": "file:///etc/passwd"})
    with pytest.raises(TransferError, match="not an http"):
        rig.fetch()
    rig.peer.respond = lambda _: Answer(302, headers={"Location": "/again"})
    with pytest.raises(TransferError, match="redirects more than"):
        rig.fetch()


def test_closing_early_never_resumes(rig: Rig) -> None:
    rig.peer.answers = [Answer(200, DATA)]
    stream = rig.download()
    assert stream.read(10) == DATA[:10]
    stream.close()
    stream.close()
    assert len(rig.peer.requests) == 1


def test_through_a_proxy_with_a_password(rig: Rig) -> None:
    rig.peer.answers = [Answer(200, DATA)]
    environ = {"http_proxy": rig.peer.url.replace("://", "://user:p%40ss@")}
    with rig.download("http://updates.example.com:8080/a?b=c", environ=environ) as stream:
        assert read_all(stream) == DATA
    request = rig.peer.requests[0]
    assert request.path == "http://updates.example.com:8080/a?b=c"
    assert request.headers["host"] == "updates.example.com:8080"
    assert request.headers["proxy-authorization"] == "Basic dXNlcjpwQHNz"


def test_over_tls_and_never_back_to_plain_http(tmp_path: Path) -> None:
    cert, key = peers.certificate(tmp_path, "server")
    config = Config()
    config.server_certificate = str(cert)
    with peers.serving(peers.server_context(cert, key)) as peer:
        rig = Rig(peer, config)
        peer.answers = [Answer(200, DATA, send_bytes=40_000), part(40_000)]
        assert rig.fetch() == DATA
        peer.respond = lambda _: Answer(302, headers={"Location": "http://127.0.0.1/x"})
        with pytest.raises(TransferError, match="from https to http"):
            rig.fetch()


@pytest.mark.parametrize(
    ("value", "fits"),
    [
        ("bytes 5-9/10", True),
        ("bytes 5-9/*", True),
        (" bytes 5-9/10 ", True),
        ("bytes 5-8/10", False),
        ("bytes 4-9/10", False),
        ("bytes 5-9/11", False),
        ("bytes */10", False),
        ("5-9/10", False),
        ("", False),
    ],
)
def test_content_range(value: str, fits: bool) -> None:
    assert (range_error(value, 5, 10) == "") is fits
