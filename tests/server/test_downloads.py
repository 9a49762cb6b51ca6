# SPDX-License-Identifier: Apache-2.0
"""Artifact downloads as devices make them: by link, in pieces, without a token."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from tests.server.conftest import ThreadServer
from tests.server.fake_device import FakeDevice

from update_tools.server.client import Management


@pytest.fixture
def link(device: FakeDevice, management: Management, release_2: Path) -> str:
    management.deploy("download", "release-2")
    return str(device.poll().json()["artifact"]["source"]["uri"])


def test_whole(link: str, release_2: Path) -> None:
    answer = httpx.get(link)
    assert answer.status_code == 200
    assert answer.content == release_2.read_bytes()
    assert int(answer.headers["content-length"]) == release_2.stat().st_size
    assert answer.headers["accept-ranges"] == "bytes"


def test_resume_as_the_client_does(link: str, release_2: Path) -> None:
    content = release_2.read_bytes()
    last = len(content) - 1
    for start in (0, 1, 4096, last):
        answer = httpx.get(link, headers={"Range": f"bytes={start}-{last}"})
        assert answer.status_code == 206
        assert answer.headers["content-range"] == f"bytes {start}-{last}/{len(content)}"
        assert answer.content == content[start:]
    open_ended = httpx.get(link, headers={"Range": "bytes=100-"})
    assert open_ended.content == content[100:]


def test_range_past_the_end(link: str, release_2: Path) -> None:
    size = release_2.stat().st_size
    answer = httpx.get(link, headers={"Range": f"bytes={size}-"})
    assert answer.status_code == 416
    assert answer.headers["content-range"] == f"bytes */{size}"


def test_a_changed_artifact_is_not_resumed(link: str, release_2: Path) -> None:
    etag = httpx.head(link).headers["etag"]
    same = httpx.get(link, headers={"Range": "bytes=10-", "If-Range": etag})
    assert same.status_code == 206
    other = httpx.get(link, headers={"Range": "bytes=10-", "If-Range": '"something-else"'})
    assert other.status_code == 200
    assert other.content == release_2.read_bytes()


def test_forged_and_expired_links(
    serve: Callable[..., ThreadServer], write_artifact: Callable[..., Path]
) -> None:
    server = serve(auto_accept=True, link_lifetime_s=-1)
    management = server.management()
    artifact_id = management.upload(write_artifact("release-2"))
    device = FakeDevice(server.url, "52:54:00:00:00:01")
    device.authorize()
    management.deploy("late", "release-2")
    link = device.poll().json()["artifact"]["source"]["uri"]
    expired = httpx.get(link)
    assert expired.status_code == 403
    assert "expired" in expired.json()["error"]
    later = link.replace("expires=", "expires=9")
    for forged in (later, link[:-1], f"{server.url}/api/artifacts/{artifact_id}/download"):
        answer = httpx.get(forged)
        assert answer.status_code == 403
        assert "not signed" in answer.json()["error"]


def test_link_names_the_address_the_device_used(
    device: FakeDevice, management: Management, release_2: Path
) -> None:
    management.deploy("guest", "release-2")
    body = {"device_provides": device.provides, "update_control_map": True}
    answer = device.send(
        "POST",
        "/api/devices/v2/deployments/device/deployments/next",
        json=body,
        headers={"Host": "10.0.2.2:8080"},
    )
    assert answer.json()["artifact"]["source"]["uri"].startswith("http://10.0.2.2:8080/api/artifacts/")


def test_link_with_public_url(
    serve: Callable[..., ThreadServer], write_artifact: Callable[..., Path]
) -> None:
    server = serve(auto_accept=True, public_url="https://updates.example/field/")
    management = server.management()
    management.upload(write_artifact("release-2"))
    device = FakeDevice(server.url, "52:54:00:00:00:01")
    device.authorize()
    management.deploy("proxy", "release-2")
    uri = device.poll().json()["artifact"]["source"]["uri"]
    assert uri.startswith("https://updates.example/field/api/artifacts/")
    parts = urlsplit(uri)
    path = parts.path.removeprefix("/field")
    assert httpx.get(f"{server.url}{path}?{parts.query}").status_code == 200, "the proxy takes the prefix off"
