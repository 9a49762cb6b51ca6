# SPDX-License-Identifier: Apache-2.0
"""Artifacts in a folder and in a bucket: the same answers, nothing left over, clear words when it is gone."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from tests.server.conftest import Bucket, ThreadServer
from tests.server.fake_device import FakeDevice

from update_tools.server.downloads import range_of
from update_tools.server.intake import Intake
from update_tools.server.s3 import S3Store

ARTIFACTS = "/api/management/v1/deployments/artifacts"


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    return re.sub(r"\W+", "-", request.node.name)


@pytest.fixture(params=["folder", "s3"])
def shelf(request: pytest.FixtureRequest, serve: Callable[..., ThreadServer], prefix: str) -> ThreadServer:
    if request.param == "folder":
        return serve(auto_accept=True)
    return serve(auto_accept=True, **request.getfixturevalue("bucket").settings(prefix))


def link_of(shelf: ThreadServer, path: Path) -> str:
    """A device's link to a deployed artifact."""
    management = shelf.management()
    management.upload(path)
    device = FakeDevice(shelf.url, "52:54:00:00:00:01")
    device.authorize()
    management.deploy("download", "release-2")
    return str(device.poll().json()["artifact"]["source"]["uri"])


def test_ranges(shelf: ThreadServer, write_artifact: Callable[..., Path]) -> None:
    path = write_artifact("release-2")
    content = path.read_bytes()
    size, etag = len(content), f'"{hashlib.sha256(content).hexdigest()}"'
    link = link_of(shelf, path)
    last = size - 1
    table: list[tuple[dict[str, str], int, bytes]] = [
        ({}, 200, content),
        ({"Range": "bytes=0-0"}, 206, content[:1]),
        ({"Range": f"bytes=0-{last}"}, 206, content),
        ({"Range": "bytes=100-199"}, 206, content[100:200]),
        ({"Range": f"bytes={last}-"}, 206, content[-1:]),
        ({"Range": f"bytes=10-{size * 2}"}, 206, content[10:]),
        ({"Range": "bytes=-7"}, 206, content[-7:]),
        ({"Range": f"bytes={size}-"}, 416, b""),
        ({"Range": "lines=1-2"}, 200, content),
        ({"Range": "bytes=10-", "If-Range": etag}, 206, content[10:]),
        ({"Range": "bytes=10-", "If-Range": '"other"'}, 200, content),
    ]
    for headers, status, body in table:
        answer = httpx.get(link, headers=headers)
        if "lines" in headers.get("Range", ""):
            assert answer.status_code in (200, 400), "a unit that nobody knows"
            continue
        assert answer.status_code == status, headers
        if status == 416:
            assert answer.headers["content-range"] == f"bytes */{size}"
            continue
        assert answer.content == body, headers
        assert answer.headers["etag"] == etag
        assert answer.headers["content-length"] == str(len(body))
        if status == 206:
            first, end = re.findall(r"\d+", answer.headers["content-range"])[:2]
            assert content[int(first) : int(end) + 1] == body, headers
    head = httpx.head(link)
    assert (head.status_code, head.headers["content-length"], head.content) == (200, str(size), b"")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bytes=0-", range(10)),
        ("bytes=9-9", range(9, 10)),
        ("bytes=5-100", range(5, 10)),
        ("bytes=-3", range(7, 10)),
        ("bytes=-30", range(10)),
        ("bytes=-0", range(0)),
        ("bytes=10-", range(0)),
        ("bytes=5-4", None),
        ("bytes=-", None),
        ("bytes=1-2,4-5", None),
        ("bytes=a-b", None),
        ("bytes=99999999999999999999-", None),
        ("items=0-1", None),
    ],
)
def test_range_headers(text: str, expected: range | None) -> None:
    from starlette.requests import Request

    request = Request({"type": "http", "headers": [(b"range", text.encode())]})
    found = range_of(request, 10, '"x"')
    assert (found is None) == (expected is None)
    if found is not None and expected is not None:
        assert list(found) == list(expected)


def test_what_is_deleted_is_gone(
    shelf: ThreadServer, write_artifact: Callable[..., Path], request: pytest.FixtureRequest, prefix: str
) -> None:
    management = shelf.management()
    artifact_id = management.upload(write_artifact("release-2"))
    http = shelf.http()
    link = http.get(f"{ARTIFACTS}/{artifact_id}/download").json()["uri"]
    assert httpx.get(link).status_code == 200
    assert http.get("/api/management/v1/deployments/limits/storage").json()["usage"] > 0
    assert http.put(f"{ARTIFACTS}/{artifact_id}", json={"description": "old"}).status_code == 204
    assert http.get(f"{ARTIFACTS}/list", params={"description": "old"}).json()[0]["description"] == "old"
    (release,) = http.get("/api/management/v2/deployments/deployments/releases").json()
    assert (release["name"], release["artifacts_count"]) == ("release-2", 1)
    assert http.delete(f"{ARTIFACTS}/{artifact_id}").status_code == 204
    assert httpx.get(link).status_code == 404
    if shelf.house.settings.artifact_store:
        assert request.getfixturevalue("bucket").keys(prefix) == []
    else:
        assert list((shelf.data / "artifacts").iterdir()) == []


def test_refused_uploads_leave_nothing_in_the_bucket(
    serve: Callable[..., ThreadServer], bucket: Bucket, prefix: str, write_artifact: Callable[..., Path]
) -> None:
    http = serve(**bucket.settings(prefix)).http()
    good = write_artifact("release-2").read_bytes()
    for content, status in ((b"rubbish", 422), (b"", 422), (good[:-5000], 422), (good, 201), (good, 201)):
        assert http.post(ARTIFACTS, files={"artifact": ("x", content)}).status_code == status
    assert len(bucket.keys(prefix)) == 1
    pending = bucket.client.list_multipart_uploads(Bucket=bucket.NAME).get("Uploads", [])
    assert [entry for entry in pending if entry["Key"].startswith(f"{prefix}/")] == []


def test_left_overs_are_swept_from_the_bucket(
    serve: Callable[..., ThreadServer], bucket: Bucket, prefix: str, write_artifact: Callable[..., Path]
) -> None:
    server = serve(**bucket.settings(prefix))
    artifact_id = server.management().upload(write_artifact("release-2"))
    bucket.client.put_object(Bucket=bucket.NAME, Key=f"{prefix}/nobodys.mender", Body=b"x")
    server.house.intake.sweep(is_alone=False)
    assert "nobodys.mender" in bucket.keys(prefix), "it may be another server's, just now"
    server.house.intake.sweep(is_alone=True)
    assert bucket.keys(prefix) == [f"{artifact_id}.mender"]


def test_direct_links(
    serve: Callable[..., ThreadServer], bucket: Bucket, prefix: str, write_artifact: Callable[..., Path]
) -> None:
    server = serve(auto_accept=True, direct_links=True, **bucket.settings(prefix))
    path = write_artifact("release-2")
    link = link_of(server, path)
    assert link.startswith(bucket.endpoint)
    assert "X-Amz-Expires=86400" in link
    assert httpx.get(link).content == path.read_bytes()
    assert httpx.get(link, headers={"Range": "bytes=1-2"}).content == path.read_bytes()[1:3]


def test_a_bucket_that_does_not_answer(
    serve: Callable[..., ThreadServer],
    bucket: Bucket,
    prefix: str,
    write_artifact: Callable[..., Path],
) -> None:
    server = serve(auto_accept=True, **bucket.settings(prefix))
    link = link_of(server, write_artifact("release-2"))
    nowhere = bucket.settings(prefix) | {"s3_endpoint": "http://127.0.0.1:1"}
    store = S3Store(nowhere["artifact_store"], endpoint=nowhere["s3_endpoint"], region="us-east-1")
    server.house.store = store
    server.house.intake = Intake(server.house.db, store)
    answer = server.http().post(ARTIFACTS, files={"artifact": ("x", b"x")})
    assert answer.status_code == 503
    assert "the artifact store does not answer" in answer.json()["error"]
    assert int(answer.headers["retry-after"]) > 0
    gone = httpx.get(link)
    assert gone.status_code == 503, "and not an empty 200"
    assert server.http().get(ARTIFACTS).status_code == 200, "the rest of the server is well"
