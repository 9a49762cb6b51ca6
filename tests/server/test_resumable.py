# SPDX-License-Identifier: Apache-2.0
"""Uploads that go on where the line broke, into a folder and into an S3 bucket."""

from __future__ import annotations

import base64
import hashlib
import http.client
import random
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.server.conftest import Bucket, ThreadServer

from update_agent.errors import ServerError
from update_tools.server import s3
from update_tools.server.client import Management
from update_tools.server.db import Upload
from update_tools.server.upload_client import Uploader
from update_tools.server.who import NOBODY

UPLOADS = "/api/management/v1/deployments/artifacts/uploads"
TUS = {"Tus-Resumable": "1.0.0", "Content-Type": "application/offset+octet-stream"}


class Line:
    """Somebody who uploads by hand."""

    def __init__(self, server: ThreadServer) -> None:
        self.http = server.http()
        self.server = server

    def create(self, length: int, **metadata: str) -> httpx.Response:
        pairs = [f"{name} {base64.b64encode(text.encode()).decode()}" for name, text in metadata.items()]
        headers = {"Upload-Length": str(length)} | ({"Upload-Metadata": ",".join(pairs)} if pairs else {})
        return self.http.post(UPLOADS, headers=headers)

    def send(self, place: str, offset: int, content: bytes) -> httpx.Response:
        return self.http.patch(place, headers={**TUS, "Upload-Offset": str(offset)}, content=content)

    def offset(self, place: str) -> int:
        answer = self.http.head(place)
        assert answer.status_code == 200
        return int(answer.headers["upload-offset"])


@pytest.fixture(params=["folder", "s3"])
def shelf(
    request: pytest.FixtureRequest, serve: Callable[..., ThreadServer], monkeypatch: pytest.MonkeyPatch
) -> ThreadServer:
    """A server with each kind of store; S3's parts are small so that artifacts have several."""
    if request.param == "folder":
        return serve(auto_accept=True)
    monkeypatch.setattr(s3, "PART_BYTES", 5 << 20)
    bucket: Bucket = request.getfixturevalue("bucket")
    return serve(auto_accept=True, **bucket.settings(request.node.name))


@pytest.fixture
def line(shelf: ThreadServer) -> Line:
    return Line(shelf)


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory, write_artifact: Callable[..., Path]) -> Path:
    """An artifact of some 13 MiB that does not compress."""
    return write_artifact("large", compression="none", payload=random.Random(1).randbytes(13 << 20))


def test_in_pieces(line: Line, large: Path) -> None:
    content = large.read_bytes()
    created = line.create(len(content), description="nightly", sha256=hashlib.sha256(content).hexdigest())
    assert created.status_code == 201
    place = created.headers["location"]
    offset = 0
    for size in (1, 100, 4 << 20, 7 << 20, len(content)):
        piece = content[offset : offset + size]
        answer = line.send(place, offset, piece)
        assert answer.status_code == 204, answer.text
        offset += len(piece)
        assert int(answer.headers["upload-offset"]) == offset
    artifact = line.http.get(answer.headers["location"]).json()
    assert artifact["name"] == "large"
    assert artifact["description"] == "nightly"
    assert artifact["sha256"] == hashlib.sha256(content).hexdigest()
    assert place.rpartition("/")[2] == artifact["id"]
    again = line.http.head(place)
    assert again.headers["location"] == answer.headers["location"], "who lost the answer can ask"
    assert line.send(place, offset, b"").status_code == 204, "or repeat the request"
    link = line.http.get(f"{answer.headers['location']}/download").json()["uri"]
    assert httpx.get(link, timeout=60).content == content
    with line.server.house.db.read() as session:
        assert session.query(Upload).count() == 0


def test_what_arrived_before_the_line_broke_is_kept(line: Line, large: Path) -> None:
    content = large.read_bytes()
    place = line.create(len(content)).headers["location"]
    host, port = line.server.url.removeprefix("http://").split(":")
    head = "".join(
        f"{name}: {value}\r\n"
        for name, value in {
            **TUS,
            **line.server.auth,
            "Host": host,
            "Upload-Offset": 0,
            "Content-Length": len(content),
        }.items()
    )
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(f"PATCH {place} HTTP/1.1\r\n{head}\r\n".encode() + content[: 6 << 20])
        if line.server.house.store.path("x") is not None:  # a bucket cannot lock; there the latest wins
            assert line.send(place, 0, b"x").status_code in (409, 423), "one at a time"
    offset = wait_until(lambda: line.offset(place))
    assert 0 < offset <= 6 << 20
    answer = wait_until(
        lambda: sent if (sent := line.send(place, offset, content[offset:])).status_code != 423 else None
    )
    assert answer.status_code == 204, answer.text
    assert "location" in answer.headers


def wait_until(ask: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 60
    while not (answer := ask()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return answer


def test_what_is_refused(line: Line, large: Path) -> None:
    content = large.read_bytes()
    place = line.create(len(content)).headers["location"]
    table: dict[str, tuple[str, str, dict[str, str], bytes, int, str]] = {
        "no length": ("POST", UPLOADS, {}, b"", 400, "upload-length"),
        "length zero": ("POST", UPLOADS, {"Upload-Length": "0"}, b"", 413, "1 to"),
        "length negative": ("POST", UPLOADS, {"Upload-Length": "-1"}, b"", 400, "upload-length"),
        "too long": ("POST", UPLOADS, {"Upload-Length": "9" * 15}, b"", 413, "1 to"),
        "metadata": ("POST", UPLOADS, {"Upload-Length": "1", "Upload-Metadata": "x !"}, b"", 400, "base64"),
        "sha256": ("POST", UPLOADS, {"Upload-Length": "1", "Upload-Metadata": "sha256 eA=="}, b"", 400, "64"),
        "version": ("POST", UPLOADS, {"Upload-Length": "1", "Tus-Resumable": "0.2"}, b"", 412, "tus 0.2"),
        "no offset": ("PATCH", place, TUS, b"x", 400, "upload-offset"),
        "wrong offset": ("PATCH", place, {**TUS, "Upload-Offset": "5"}, b"x", 409, "has 0 bytes"),
        "wrong kind": (
            "PATCH",
            place,
            {"Upload-Offset": "0", "Content-Type": "text/plain"},
            b"x",
            415,
            "offset+octet",
        ),
        "unknown": ("PATCH", f"{UPLOADS}/x", {**TUS, "Upload-Offset": "0"}, b"x", 404, "no such upload"),
        "traversal": (
            "PATCH",
            f"{UPLOADS}/..%2f..%2fserver.db",
            {**TUS, "Upload-Offset": "0"},
            b"x",
            404,
            "",
        ),
        "no upload": ("DELETE", f"{UPLOADS}/x", {}, b"", 404, "no such upload"),
    }
    for what, (method, path, headers, body, status, reason) in table.items():
        answer = line.http.request(method, path, headers=headers, content=body)
        assert answer.status_code == status, (what, answer.text)
        assert reason in answer.json()["error"], what
    assert line.http.options(UPLOADS).headers["tus-version"] == "1.0.0"
    assert line.offset(place) == 0
    assert line.http.delete(place).status_code == 204
    assert line.http.head(place).status_code == 404


def test_more_than_announced_is_not_taken(line: Line) -> None:
    place = line.create(10).headers["location"]
    assert line.send(place, 0, b"x" * 11).status_code == 413
    assert line.offset(place) == 0


def test_what_is_no_artifact_is_gone_afterwards(
    line: Line, large: Path, write_artifact: Callable[..., Path]
) -> None:
    def whole(content: bytes, **metadata: str) -> tuple[str, httpx.Response]:
        place = line.create(len(content), **metadata).headers["location"]
        return place, line.send(place, 0, content)

    place, answer = whole(b"rubbish" * 1000)
    assert answer.status_code == 422
    assert line.http.head(place).status_code == 404
    small = write_artifact("release-2").read_bytes()
    place, answer = whole(small, sha256="0" * 64)
    assert answer.status_code == 422
    assert "was announced" in answer.json()["error"]
    assert whole(small)[1].status_code == 204
    other = write_artifact("release-2", compression="lzma").read_bytes()
    place, answer = whole(other)
    assert answer.status_code == 409
    assert "already has an artifact for virt64" in answer.json()["error"]
    assert whole(small)[1].status_code == 204, "the same bytes are the same artifact"
    same = line.create(len(small), sha256=hashlib.sha256(small).hexdigest())
    assert int(same.headers["upload-offset"]) == len(small), "and need not be sent"
    assert len(line.http.get("/api/management/v1/deployments/artifacts").json()) == 1


class Saboteur:
    """Breaks a client's connections after some bytes, as a bad line does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, every: int) -> None:
        self.breaks = 0
        sent: dict[int, int] = {}
        send = http.client.HTTPConnection.send

        def sending(connection: http.client.HTTPConnection, data: Any) -> None:
            sent[id(connection)] = sent.get(id(connection), 0) + len(data)
            is_ours = type(connection) is http.client.HTTPConnection  # not the S3 client's
            if is_ours and sent[id(connection)] > every and connection.sock is not None:
                sent[id(connection)] = 0
                self.breaks += 1
                connection.sock.shutdown(socket.SHUT_RDWR)
                raise ConnectionResetError("the line broke")
            send(connection, data)

        monkeypatch.setattr(http.client.HTTPConnection, "send", sending)


def test_our_client_goes_on(shelf: ThreadServer, large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saboteur = Saboteur(monkeypatch, 3 << 20)
    uploader = Uploader(shelf.url, shelf.token, waits_s=(0.2,) * 20)
    artifact_id = uploader.upload(large, description="over a bad line")
    assert saboteur.breaks >= 3
    entry = shelf.http().get(f"/api/management/v1/deployments/artifacts/{artifact_id}").json()
    assert entry["sha256"] == hashlib.sha256(large.read_bytes()).hexdigest()
    assert entry["description"] == "over a bad line"
    assert uploader.upload(large) == artifact_id


def test_our_client_gives_up_with_the_reason(shelf: ThreadServer, tmp_path: Path) -> None:
    rubbish = tmp_path / "rubbish.mender"
    rubbish.write_bytes(b"rubbish" * 100)
    with pytest.raises(ServerError, match=r"uploading rubbish\.mender: 422 .*not an artifact"):
        shelf.management().upload(rubbish)
    with pytest.raises(ServerError, match="401"):
        Management(shelf.url, "wrong").upload(rubbish)
    nobody = Uploader("http://127.0.0.1:1", "x", waits_s=(0.01,))
    with pytest.raises(ServerError, match="is the server running"):
        nobody.upload(rubbish)


def test_uploads_nobody_finished_are_swept(shelf: ThreadServer, line: Line) -> None:
    old = line.create(10).headers["location"].rpartition("/")[2]
    new = line.create(10).headers["location"].rpartition("/")[2]
    form = shelf.house.intake.begin(NOBODY, is_resumable=False)
    with shelf.house.db.write() as session:
        upload = session.get(Upload, old)
        assert upload is not None
        upload.touched_at = upload.touched_at.replace(year=2020)
    shelf.house.intake.sweep(is_alone=True)
    assert line.http.head(f"{UPLOADS}/{old}").status_code == 404
    assert line.http.head(f"{UPLOADS}/{new}").status_code == 200
    with shelf.house.db.read() as session:
        assert session.get(Upload, form) is None, "no process is there that could finish it"
