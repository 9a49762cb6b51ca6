# SPDX-License-Identifier: Apache-2.0
"""The pages in a real browser: every flow, live from one window to another, accessible, on a phone."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright
from tests.server.conftest import ThreadServer
from tests.server.fake_device import FakeDevice

from update_tools.server import accounts
from update_tools.server.client import Management
from update_tools.server.who import Who

PASSWORD = "correct horse battery"
PAUSE_REBOOT = {"states": {"ArtifactReboot_Enter": {"action": "pause"}}}
TIMEOUT_MS = 30_000  # the machine may be busy; nothing waits this long otherwise

expect.set_options(timeout=TIMEOUT_MS)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """Debian's Chromium."""
    program = shutil.which("chromium")
    if program is None:
        if os.environ.get("CI") == "true":
            pytest.fail("chromium is missing (Debian package chromium)")
        pytest.skip("chromium is missing (Debian package chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield browser
        browser.close()


@pytest.fixture
def window(server: ThreadServer, chromium: Browser) -> Iterator[Callable[..., Page]]:
    """Opens windows that are logged in, each with cookies of its own. A script error fails the test."""
    contexts: list[BrowserContext] = []
    errors: list[str] = []

    def open_window(name: str = "mia", role: str = "deploy", **options: Any) -> Page:
        with server.house.db.write(Who(name="tests")) as session:
            if name not in {user.name for user in accounts.users(session)}:
                accounts.add_user(session, server.house.passwords, name, PASSWORD, role)
        context = chromium.new_context(base_url=server.url, **options)
        contexts.append(context)
        context.set_default_timeout(TIMEOUT_MS)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on(
            "console",
            lambda message: (
                errors.append(message.text) if "Content Security Policy" in message.text else None
            ),
        )
        page.goto("/login")
        page.get_by_label("Name").fill(name)
        page.get_by_label("Password").fill(PASSWORD)
        page.get_by_role("button", name="Log in").click()
        expect(page.get_by_role("heading", name="Deployments", exact=True)).to_be_visible()
        return page

    yield open_window
    for context in contexts:
        context.close()
    assert errors == []


def id_of(device: FakeDevice) -> str:
    """The server's id of a device, as its token has it."""
    middle = device.token.split(".")[1]
    return str(json.loads(base64.urlsafe_b64decode(middle + "=" * (-len(middle) % 4)))["sub"])


def no_serious_faults(page: Page) -> None:
    """What axe finds serious or critical, with the place."""
    found = Axe().run(page).response["violations"]
    serious = [
        f"{fault['id']}: {fault['nodes'][0]['html'][:200]}"
        for fault in found
        if fault["impact"] in ("serious", "critical")
    ]
    assert serious == [], page.url


def test_from_acceptance_to_success(
    serve: Callable[..., ThreadServer],
    chromium: Browser,
    write_artifact: Callable[..., Path],
) -> None:
    """A person alone with the pages: accept, upload, create in steps, watch, continue."""
    strict = serve()
    device = FakeDevice(strict.url, "52:54:00:00:00:01")
    device.authorize()
    with strict.house.db.write(Who(name="tests")) as session:
        accounts.add_user(session, strict.house.passwords, "mia", PASSWORD, "deploy")
    context = chromium.new_context(base_url=strict.url)
    context.set_default_timeout(TIMEOUT_MS)
    page = context.new_page()
    page.goto("/devices")  # not logged in: the login page, and then where one wanted to go
    page.get_by_label("Name").fill("mia")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Log in").click()
    page.get_by_role("button", name="Accept 52:54:00:00:00:01").click()
    expect(page.locator("td .pill.accepted")).to_be_visible()
    assert device.authorize().status_code == 200
    device.poll()

    page.get_by_role("link", name="Releases").click()
    page.get_by_label("Artifact (.mender)").set_input_files(write_artifact("release-2"))
    page.get_by_role("button", name="Upload").click()
    expect(page.get_by_role("heading", name="release-2")).to_be_visible()
    page.get_by_text("1 state script,").click()
    expect(page.get_by_text("ArtifactInstall_Enter_10_check-disk")).to_be_visible()
    page.get_by_role("link", name="Deploy…").click()

    expect(page.get_by_label("Release", exact=True)).to_have_value("release-2")
    page.get_by_label("Name").fill("Field test")
    page.get_by_role("button", name="Next: schedule").click()
    page.get_by_label("Share of phase 1, percent").fill("150")
    page.get_by_role("button", name="Next: update process").click()
    assert page.locator("input[name=phase_percent]").first.evaluate("box => box.validity.rangeOverflow")
    page.get_by_label("Share of phase 1, percent").fill("")
    page.get_by_role("button", name="Next: update process").click()
    page.locator("input[name=pause][value=ArtifactReboot_Enter]").check()
    page.get_by_label("Further attempts on a device").fill("1")
    page.get_by_role("button", name="Next: review").click()
    review = page.locator(".review")
    expect(review).to_contain_text("Field test")
    expect(review).to_contain_text("before reboot: goes on when a person continues")
    expect(review).to_contain_text("2 on each device")
    page.get_by_role("button", name="Update process").click()  # back: nothing is lost
    expect(page.locator("input[name=pause][value=ArtifactReboot_Enter]")).to_be_checked()
    page.get_by_role("button", name="Next: review").click()
    page.get_by_role("button", name="Create deployment").click()

    expect(page.get_by_role("heading", name="Field test")).to_be_visible()
    deployment_id = page.url.rpartition("/")[2]
    assert device.poll().json()["update_control_map"]["states"] == PAUSE_REBOOT["states"]
    device.report(deployment_id, "downloading")
    expect(page.locator("tbody .pill.downloading")).to_be_visible()  # nobody reloads this page
    device.report(deployment_id, "downloading", '{"live": {"bytes": [1048576, 4194304]}}')
    expect(page.locator(".load")).to_contain_text("25 %")
    device.report(deployment_id, "installing", '{"live": {"script": "ArtifactInstall_Enter_10_check-disk"}}')
    device.report(deployment_id, "installing")
    device.report(deployment_id, "pause_before_rebooting")
    banner = page.get_by_role("region", name="Paused before reboot")
    expect(banner).to_contain_text("1 of 1 device waits before reboot")
    banner.get_by_role("button", name="Continue").click()
    expect(banner).to_contain_text("Continue was pressed")
    assert device.control_map(deployment_id).status_code == 200
    device.report(deployment_id, "rebooting")
    device.report(deployment_id, "installing")
    expect(page.locator("tbody .pill").filter(has_text="committing")).to_be_visible()
    device.report(deployment_id, "success")
    expect(page.locator(".head .pill.finished")).to_be_visible()
    context.close()


def test_a_decision_in_one_window_is_seen_in_another(
    server: ThreadServer,
    window: Callable[..., Page],
    management: Management,
    device: FakeDevice,
    release_2: Path,
) -> None:
    other_device = FakeDevice(server.url, "52:54:00:00:00:02")
    other_device.authorize()
    deployment_id = management.deploy("shared", "release-2", map=PAUSE_REBOOT)
    mia, tom = window("mia"), window("tom", "read")
    for page in (mia, tom):
        page.goto(f"/deployments/{deployment_id}")
    expect(tom.locator("tbody tr")).to_have_count(2)
    for each in (device, other_device):
        each.poll()
        each.report(deployment_id, "pause_before_rebooting")
    expect(tom.get_by_role("region", name="Paused before reboot")).to_contain_text("2 of 2 devices wait")
    expect(tom.get_by_role("button", name="Continue")).to_have_count(0)  # tom may only look

    # Ticks are the person's: a page that changes under the hand keeps them.
    mia.get_by_role("checkbox", name="52:54:00:00:00:02").check()
    management.roll_back(deployment_id, "ArtifactReboot_Enter", [id_of(device)])
    expect(mia.locator("tr").filter(has_text="52:54:00:00:00:01")).to_contain_text("roll back was pressed")
    expect(mia.get_by_role("checkbox", name="52:54:00:00:00:02")).to_be_checked()
    mia.get_by_role("button", name="Continue ticked").click()
    expect(tom.locator("tr").filter(has_text="52:54:00:00:00:02")).to_contain_text("continue was pressed")
    states = other_device.control_map(deployment_id).json()["update_control_map"]["states"]
    assert states["ArtifactReboot_Enter"]["action"] == "continue"
    states = device.control_map(deployment_id).json()["update_control_map"]["states"]
    assert states["ArtifactReboot_Enter"]["action"] == "fail"

    device.report(deployment_id, "failure", "told to fail")
    expect(tom.get_by_role("link", name="1 failure")).to_be_visible()
    mia.get_by_role("button", name="Abort 52:54:00:00:00:02").click()
    expect(tom.locator(".head .pill")).to_have_text("finished")
    assert other_device.report(deployment_id, "rebooting").status_code == 409


def test_pages_without_serious_faults_in_both_themes_and_on_a_phone(
    server: ThreadServer,
    window: Callable[..., Page],
    management: Management,
    device: FakeDevice,
    release_2: Path,
) -> None:
    waiting = FakeDevice(server.url, "52:54:00:00:00:02")
    waiting.authorize()
    device.inventory([{"name": "kernel", "value": "6.1"}])
    deployment_id = management.deploy("look at it", "release-2", map=PAUSE_REBOOT)
    device.poll()
    waiting.poll()
    device.report(deployment_id, "failure", "script ArtifactInstall_Enter_10_check-disk exited with 1")
    device.upload_log(
        deployment_id, "State script ArtifactInstall_Enter_10_check-disk exited with 1 after 0.21 s"
    )
    waiting.report(deployment_id, "pause_before_rebooting")
    paths = [
        "/",
        "/devices",
        f"/devices/{id_of(device)}",
        "/releases",
        "/deployments/new",
        "/account",
        "/people",
    ]
    paths += [f"/deployments/{deployment_id}", f"/deployments/{deployment_id}/devices/{id_of(device)}"]
    paths += [f"/deployments/{deployment_id}/abort", "/nothing-here"]
    themes: tuple[dict[str, Any], ...] = (
        {"color_scheme": "light", "viewport": {"width": 1200, "height": 800}},
        {"color_scheme": "dark", "viewport": {"width": 375, "height": 740}, "has_touch": True},
    )
    shots = os.environ.get("OTA_SCREENSHOTS")  # a folder, to look at them
    for theme in themes:
        page = window("ada", "admin", **theme)
        for path in paths:
            page.goto(path)
            no_serious_faults(page)
            width = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
            assert width <= 0, f"{path} is wider than the screen"
            if shots:
                name = re.sub(r"\W+", "-", re.sub("[0-9a-f-]{36}", "id", path)).strip("-") or "index"
                page.screenshot(path=f"{shots}/{theme['color_scheme']}-{name}.png", full_page=True)
        page.goto("/deployments/new")
        for step in ("schedule", "update process", "review"):
            no_serious_faults(page)
            if shots:
                name = f"before-{step.replace(' ', '-')}"
                page.screenshot(path=f"{shots}/{theme['color_scheme']}-{name}.png", full_page=True)
            page.get_by_role("button", name=f"Next: {step}").click()
        no_serious_faults(page)
        if shots:
            page.screenshot(path=f"{shots}/{theme['color_scheme']}-review.png", full_page=True)


def test_by_keyboard_alone(
    window: Callable[..., Page], management: Management, device: FakeDevice, release_2: Path
) -> None:
    deployment_id = management.deploy("keys", "release-2", map=PAUSE_REBOOT)
    device.poll()
    device.report(deployment_id, "pause_before_rebooting")
    page = window()
    page.goto(f"/deployments/{deployment_id}")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(page.get_by_role("region").get_by_role("button", name="Continue")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("region", name="Paused before reboot")).to_contain_text("Continue was pressed")


def test_log_is_searched_and_downloaded(
    window: Callable[..., Page], management: Management, device: FakeDevice, release_2: Path
) -> None:
    deployment_id = management.deploy("fails", "release-2")
    device.poll()
    device.report(deployment_id, "failure", "disk is full")
    device.upload_log(deployment_id, "disk 42% used", "all quiet", "State script A exited with 1 after 0.2 s")
    page = window()
    page.goto(f"/deployments/{deployment_id}")
    page.get_by_role("link", name="log", exact=True).click()
    page.get_by_label("Search").fill("disk")
    page.get_by_role("button", name="Search").click()
    expect(page.locator("mark")).to_have_text("disk")
    expect(page.locator(".log > div")).to_have_count(1)
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    assert "all quiet" in Path(download.value.path()).read_text()


def test_without_scripts_the_page_reloads_itself(
    window: Callable[..., Page], management: Management, device: FakeDevice, release_2: Path
) -> None:
    deployment_id = management.deploy("plain", "release-2", map=PAUSE_REBOOT)
    device.poll()
    page = window(java_script_enabled=False)
    page.goto(f"/deployments/{deployment_id}")
    device.report(deployment_id, "pause_before_rebooting")
    expect(page.get_by_role("region", name="Paused before reboot")).to_be_visible()
    page.get_by_role("region").get_by_role("button", name="Roll back").click()
    expect(page.get_by_role("region", name="Paused before reboot")).to_contain_text("Roll back was pressed")


def test_a_refused_upload_says_why_and_keeps_the_page(window: Callable[..., Page], tmp_path: Path) -> None:
    rubbish = tmp_path / "x.mender"
    rubbish.write_bytes(b"rubbish" * 1000)
    page = window()
    page.goto("/releases")
    page.get_by_label("Artifact (.mender)").set_input_files(rubbish)
    page.get_by_role("button", name="Upload").click()
    expect(page.get_by_role("alert")).to_contain_text("not an artifact")
