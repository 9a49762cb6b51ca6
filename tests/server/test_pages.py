# SPDX-License-Identifier: Apache-2.0
"""The pages as a browser without JavaScript uses them: links, forms, cookies."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from tests.server.conftest import ThreadServer
from tests.server.fake_device import FakeDevice

from update_tools.server import accounts
from update_tools.server.client import Management
from update_tools.server.who import Who

PASSWORD = "correct horse battery"
PAUSE_REBOOT = {"states": {"ArtifactReboot_Enter": {"action": "pause"}}}


class Browser:
    """Keeps cookies, reads the form token of the last page, follows redirects."""

    def __init__(self, server: ThreadServer, name: str = "mia", role: str = "deploy") -> None:
        self.http = httpx.Client(base_url=server.url, follow_redirects=True, timeout=30)
        self.text = ""
        self.url = ""
        with server.house.db.write(Who(name="tests")) as session:
            if name not in {user.name for user in accounts.users(session)}:
                accounts.add_user(session, server.house.passwords, name, PASSWORD, role)
        self.open("/login")
        self.submit("/login", {"name": name, "password": PASSWORD, "next": "/"})

    def open(self, path: str) -> str:
        return self._take(self.http.get(path))

    def submit(self, path: str, fields: dict[str, str | list[str]], status: int = 200, **more: object) -> str:
        token = re.search(r'name="token" value="(\w+)"', self.text)
        assert token is not None, "the page has no form"
        answer = self.http.post(path, data={"token": token[1], **fields}, **more)  # type: ignore[arg-type]
        return self._take(answer, status)

    def _take(self, answer: httpx.Response, status: int = 200) -> str:
        assert answer.status_code == status, answer.text
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        for script in re.findall("<script[^>]*>", answer.text):
            assert ' src="/static/' in script
        self.text = answer.text
        self.url = str(answer.url)
        return answer.text


@pytest.fixture
def browser(server: ThreadServer) -> Browser:
    return Browser(server)


def test_from_upload_to_success(strict_server: ThreadServer, write_artifact: Callable[..., Path]) -> None:
    browser = Browser(strict_server)
    assert "No deployment yet" in browser.open("/")
    device = FakeDevice(strict_server.url, "52:54:00:00:00:01")
    device.authorize()
    assert "1 device waits to be accepted" in browser.open("/")

    page = browser.open("/devices")
    key = re.search(r'action="(/devices/keys/[\w-]+)"', page)
    assert key is not None
    assert "Ed25519" in browser.open(re.search(r'href="(/devices/[0-9a-f-]+)"', page)[1])  # type: ignore[index]
    browser.submit(key[1], {"status": "accepted"})
    assert device.authorize().status_code == 200
    device.poll()
    device.inventory([{"name": "kernel", "value": "6.1 <b>"}])
    page = browser.open("/devices?q=kernel")
    assert "6.1 &lt;b&gt;" in browser.open(re.search(r'href="(/devices/[0-9a-f-]+)"', page)[1])  # type: ignore[index]

    browser.open("/releases")
    content = write_artifact("release-2").read_bytes()
    page = browser.submit("/releases", {"description": "nightly"}, files={"artifact": ("x.mender", content)})
    assert "ArtifactInstall_Enter_10_check-disk" in page
    assert "rootfs-image" in page

    browser.open("/deployments/new")
    page = browser.submit(
        "/deployments",
        {
            "artifact_name": "release-2",
            "name": "From the page",
            "who": "all",
            "pause": ["ArtifactReboot_Enter"],
        },
    )
    assert "From the page" in page
    assert 'http-equiv="refresh"' in page
    deployment_path = httpx.URL(browser.url).path
    deployment_id = deployment_path.rpartition("/")[2]
    assert device.poll().json()["update_control_map"]["states"] == PAUSE_REBOOT["states"]

    device.report(deployment_id, "downloading")
    device.report(deployment_id, "installing", "ArtifactInstall_Enter_10_check-disk")
    assert "ArtifactInstall_Enter_10_check-disk" in browser.open(deployment_path)
    device.report(deployment_id, "pause_before_rebooting")
    page = browser.open(deployment_path)
    assert "Paused before reboot" in page
    assert page.index("Paused before reboot") < page.index('id="devices"')
    assert "paused before reboot" in browser.open("/")

    browser.open(deployment_path)
    point = {"point": "ArtifactReboot_Enter"}
    page = browser.submit(f"{deployment_path}/control", {"action": "continue", **point})
    assert "Continue was pressed" in page
    states = device.control_map(deployment_id).json()["update_control_map"]["states"]
    assert states == {"ArtifactReboot_Enter": {"action": "continue"}}

    device.report(deployment_id, "rebooting")
    device.report(deployment_id, "installing")
    assert "committing" in browser.open(deployment_path)
    device.report(deployment_id, "success")
    page = browser.open(deployment_path)
    assert "finished" in page
    assert 'http-equiv="refresh"' not in page


def test_roll_back_button(
    browser: Browser, device: FakeDevice, management: Management, release_2: Path
) -> None:
    deployment_id = management.deploy("paused", "release-2", map=PAUSE_REBOOT)
    device.poll()
    device.report(deployment_id, "pause_before_rebooting")
    browser.open(f"/deployments/{deployment_id}")
    fields: dict[str, str | list[str]] = {"action": "fail", "point": "ArtifactReboot_Enter"}
    assert "Roll back was pressed" in browser.submit(f"/deployments/{deployment_id}/control", fields)
    states = device.control_map(deployment_id).json()["update_control_map"]["states"]
    assert states == {"ArtifactReboot_Enter": {"action": "fail"}}


def test_abort_asks_first(
    browser: Browser, device: FakeDevice, management: Management, release_2: Path
) -> None:
    deployment_id = management.deploy("stop it", "release-2")
    device.poll()
    assert "cannot be taken back" in browser.open(f"/deployments/{deployment_id}/abort")
    assert device.report(deployment_id, "downloading").status_code == 204
    assert "aborted" in browser.submit(f"/deployments/{deployment_id}/abort", {})
    assert device.report(deployment_id, "installing").status_code == 409


def test_log_and_timeline(
    browser: Browser, device: FakeDevice, management: Management, release_2: Path
) -> None:
    deployment_id = management.deploy("fails", "release-2")
    device.poll()
    device.report(deployment_id, "installing", "ArtifactInstall_Enter_10_check-disk")
    device.report(deployment_id, "failure", "script <ArtifactInstall_Enter_10> exited with 1")
    device_id = management.devices(deployment_id)[0]["id"]
    path = f"/deployments/{deployment_id}/devices/{device_id}"
    assert "No log" in browser.open(path)
    device.upload_log(deployment_id, "stderr: <script>alert(1)</script>", "disk 42% used", "DISK is fine")

    page = browser.open(path)
    assert "&lt;script&gt;alert(1)" in page
    assert "script &lt;ArtifactInstall_Enter_10&gt; exited with 1" in page
    assert (
        page.index(">handed out<")
        < page.index(">installing<")
        < page.index(">failure<", page.index("Timeline"))
    )
    found = browser.open(f"{path}?q=disk")
    assert "2 of 3 lines" in found
    assert "<mark>disk</mark> 42% used" in found
    assert "<mark>DISK</mark> is fine" in found
    assert "alert(1)" not in found.partition("Log</h2>")[2]
    assert "0 of 3 lines" in browser.open(f"{path}?q=%3Cb%3E(%5B")
    assert 'href="/deployments/' in browser.open(f"/deployments/{deployment_id}")


def test_refused_forms_come_back_with_the_reason(
    browser: Browser, device: FakeDevice, release_2: Path
) -> None:
    browser.open("/deployments/new")
    page = browser.submit(
        "/deployments", {"artifact_name": "gone", "who": "all", "name": "keep <me>"}, status=422
    )
    assert "there is no release" in page
    assert "keep &lt;me&gt;" in page
    page = browser.submit("/deployments", {"artifact_name": "release-2", "who": "some"}, status=422)
    assert "no devices" in page
    browser.open("/releases")
    page = browser.submit("/releases", {}, status=422, files={"artifact": ("x", b"rubbish")})
    assert "not an artifact" in page


def test_a_release_is_deleted_when_it_is_meant_and_not_needed(
    server: ThreadServer, browser: Browser, write_artifact: Callable[..., Path]
) -> None:
    content = write_artifact("release-2").read_bytes()
    browser.open("/releases")
    page = browser.submit("/releases", {}, files={"artifact": ("x.mender", content)})
    path = re.search(r'action="(/releases/[0-9a-f-]+/delete)"', page)
    assert path is not None
    assert "sure" in browser.submit(path[1], {}, status=400)
    device = FakeDevice(server.url, "52:54:00:00:00:01")
    device.authorize()
    device.poll()
    browser.open("/deployments/new")
    browser.submit("/deployments", {"artifact_name": "release-2", "name": "open", "who": "all"})
    deployment = httpx.URL(browser.url).path
    browser.open("/releases")
    assert "used by an active deployment" in browser.submit(path[1], {"sure": "yes"}, status=409)
    browser.open(deployment)
    browser.submit(f"{deployment}/control", {"action": "abort", "sure": "yes"})
    browser.open("/releases")
    assert "No artifact yet" in browser.submit(path[1], {"sure": "yes"})
    assert "release-2" in browser.open(deployment), "its history stays"


def test_forms_need_their_token(
    server: ThreadServer, browser: Browser, management: Management, device: FakeDevice, release_2: Path
) -> None:
    deployment_id = management.deploy("target", "release-2")
    browser.open(f"/deployments/{deployment_id}/abort")
    path = f"/deployments/{deployment_id}/abort"
    assert browser.http.post(path, data={"token": "0" * 64}).status_code == 403
    assert browser.http.post(path, data={"action": "x"}).status_code == 403
    assert browser.http.post(path, json={}).status_code == 415
    stranger = Browser(server, "eve").http
    token = re.search(r'name="token" value="(\w+)"', browser.text)
    assert token is not None
    assert stranger.post(path, data={"token": token[1]}).status_code == 403, (
        "a token is worth nothing elsewhere"
    )
    no_file = browser.http.post("/releases", data={"token": "x"}, files={"artifact": ("x", b"y")})
    assert no_file.status_code == 403
    assert management.deployment(deployment_id)["status"] == "pending"


def test_unknown_pages(browser: Browser) -> None:
    for path in ("/nothing", "/deployments/x", "/deployments/x/devices/y", "/deployments/x/abort"):
        answer = browser.http.get(path)
        assert answer.status_code == 404
        assert "That did not work" in answer.text


def test_everything_comes_from_this_server(
    browser: Browser, management: Management, device: FakeDevice
) -> None:
    for path in ("/", "/devices", "/releases", "/deployments/new"):
        page = browser.open(path)
        assert not re.search(r'(?:src|href|action)="(?:https?:)?//', page)
    for path in ("/static/style.css", "/static/icon.svg"):
        answer = browser.http.get(path)
        assert answer.status_code == 200
        assert "url(" not in answer.text
        assert "@import" not in answer.text


def test_the_api_describes_itself(browser: Browser) -> None:
    paths = browser.http.get("/api/openapi.json").json()["paths"]
    assert "patch" in paths["/api/management/v1/deployments/deployments/{deployment_id}"]
    assert "/api/devices/v2/deployments/device/deployments/next" in paths
    assert not any(path.startswith("/deployments") for path in paths), "pages are not an API"
