# SPDX-License-Identifier: Apache-2.0
"""People: first start, login, roles, tokens, what is written down about them."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import update
from tests.server.conftest import ThreadServer
from tests.server.fake_device import FakeDevice

from update_tools.server import accounts
from update_tools.server.account_tables import LoginFailure, LoginSession, User
from update_tools.server.client import Management
from update_tools.server.db import now
from update_tools.server.door import DEVICE_PATHS, OPEN_PATHS
from update_tools.server.run import start
from update_tools.server.who import SCOPES, Who

PASSWORD = "correct horse battery"
USERADM = "/api/management/v1/useradm"


class Desk:
    """A server with the users rea (read), dee (deploy) and ada (admin)."""

    NAMES = dict(zip(("rea", "dee", "ada"), SCOPES, strict=True))

    def __init__(self, server: ThreadServer) -> None:
        self.server = server
        hashed = server.house.passwords.hash(PASSWORD)
        with server.house.db.write() as session:
            session.add_all(
                User(id=name, name=name, role=role, password_hash=hashed) for name, role in self.NAMES.items()
            )

    def login(self, name: str, password: str = PASSWORD) -> httpx.Response:
        return httpx.post(f"{self.server.url}{USERADM}/auth/login", auth=(name, password), timeout=30)

    def client(self, name: str) -> httpx.Client:
        """A program that logged in as this user."""
        headers = {"Authorization": f"Bearer {self.login(name).text}"}
        return httpx.Client(base_url=self.server.url, headers=headers, timeout=30)

    def browser(self, name: str) -> httpx.Client:
        """A browser that logged in as this user."""
        client = httpx.Client(base_url=self.server.url, timeout=30)
        token = form_token(client.get("/login").text)
        answer = client.post("/login", data={"token": token, "name": name, "password": PASSWORD, "next": "/"})
        assert answer.status_code == 303
        return client


def form_token(page: str) -> str:
    found = re.search(r'name="token" value="(\w+)"', page)
    assert found is not None
    return found[1]


@pytest.fixture
def desk(server: ThreadServer) -> Desk:
    return Desk(server)


@pytest.fixture
def audit(operator: httpx.Client) -> Callable[[], list[tuple[str, str, str]]]:
    """Who did what to what, oldest first."""

    def read() -> list[tuple[str, str, str]]:
        found = operator.get("/api/management/v1/auditlogs/logs", params={"per_page": 500}).json()
        return [(entry["actor"], entry["action"], entry["text"]) for entry in reversed(found)]

    return read


# --- the first start -------------------------------------------------------------------------------------


def test_the_first_start_prints_a_link_that_works_once(tmp_path: Path) -> None:
    with start(tmp_path) as server:
        said = server.log.read_text()
        link = re.search(r"http://\S+/setup\?key=\S+", said)
        assert link is not None
        with httpx.Client(timeout=30) as browser:
            assert browser.get(server.url, follow_redirects=False).headers["location"] == "/login?next=%2F"
            assert "printed a setup link" in browser.get(f"{server.url}/login").text
            page = browser.get(link[0]).text
            key = link[0].partition("key=")[2]
            form = {"token": form_token(page), "key": key, "name": "ada", "password": PASSWORD}
            url = f"{server.url}/setup"
            assert "differ" in browser.post(url, data={**form, "again": "x"}).text
            assert "10 to 1024" in browser.post(url, data={**form, "password": "x", "again": "x"}).text
            answer = browser.post(url, data={**form, "again": PASSWORD})
            assert answer.status_code == 303
            cookie = answer.headers["set-cookie"]
            assert "HttpOnly" in cookie
            assert "SameSite=lax" in cookie
            assert "Deployments" in browser.get(server.url).text
            assert browser.get(link[0]).status_code == 403, "it worked once"
            assert browser.post(url, data={**form, "name": "eve", "again": PASSWORD}).status_code == 403
        assert httpx.get(f"{server.url}/setup?key=1.{'0' * 64}").status_code == 403
    with start(tmp_path) as server:
        said = server.log.read_text().partition("control server on")[2].partition("control server on")[2]
        assert "setup" not in said


# --- login -----------------------------------------------------------------------------------------------


def test_every_route_is_closed_unless_it_says_otherwise(desk: Desk) -> None:
    """A route that somebody adds and forgets to protect fails here."""
    public = {"/login", "/setup", f"{USERADM}/auth/login"}
    seen = 0
    with httpx.Client(base_url=desk.server.url, timeout=30) as stranger:
        for route in desk.server.routes():
            if route.path.startswith(DEVICE_PATHS):
                continue
            for method in route.methods - {"HEAD", "OPTIONS"}:
                seen += 1
                path = re.sub(r"{[\w:]+}", "x", route.path)
                answer = stranger.request(method, path)
                if route.path in public:
                    is_login = "HTTP Basic" in answer.text
                    assert is_login or answer.status_code not in (401, 303), (method, path)
                elif method == "GET" and not path.startswith("/api/"):
                    assert answer.headers.get("location", "").startswith("/login?next="), (method, path)
                else:
                    assert answer.status_code == 401, (method, path)
    assert seen > 40
    assert set(OPEN_PATHS) - {"/static/"} == public


def test_sessions(desk: Desk) -> None:
    dee = desk.client("dee")
    assert dee.get(f"{USERADM}/users/me").json() == {"name": "dee", "scope": "deploy", "id": "dee"}
    assert dee.post(f"{USERADM}/auth/logout").status_code == 204
    assert dee.get(f"{USERADM}/users/me").status_code == 401
    for change in ({"seen_at": now() - accounts.SESSION_IDLE}, {"expires_at": now()}):
        dee = desk.client("dee")
        with desk.server.house.db.write() as session:
            session.execute(update(LoginSession).values(**change))
        assert dee.get(f"{USERADM}/users/me").status_code == 401, change


def test_a_login_brings_you_where_you_wanted_and_nowhere_else(desk: Desk) -> None:
    for wanted, goes in (
        ("/devices", "/devices"),
        ("//evil.example", "/"),
        ("/\\evil.example", "/"),
        ("https://evil.example", "/"),
        ("javascript:alert(1)", "/"),
    ):
        client = httpx.Client(base_url=desk.server.url, timeout=30)
        token = form_token(client.get("/login", params={"next": wanted}).text)
        form = {"token": token, "name": "dee", "password": PASSWORD, "next": wanted}
        assert client.post("/login", data=form).headers["location"] == goes


def test_failed_logins_say_the_same_and_cost_time(
    desk: Desk, audit: Callable[[], list[tuple[str, str, str]]]
) -> None:
    wrong, unknown = desk.login("dee", "wrong password"), desk.login("nobody", "wrong password")
    assert wrong.status_code == unknown.status_code == 401
    assert wrong.json()["error"] == unknown.json()["error"]
    assert ("nobody", "login failed", "nobody") in audit()
    for _ in range(accounts.FREE_FAILURES["pair"] - 1):
        assert desk.login("dee", "wrong password").status_code == 401
    late = desk.login("dee")
    assert late.status_code == 429, "even with the right password"
    assert int(late.headers["retry-after"]) >= 1
    assert desk.login("rea").status_code == 200, "others are not locked out"
    with desk.server.house.db.write() as session:
        session.execute(update(LoginFailure).values(at=now() - timedelta(hours=1)))
    assert desk.login("dee").status_code == 200
    assert desk.login("dee").status_code == 200, "a good login ends the count"


@pytest.mark.parametrize(
    ("kind", "count", "expected"),
    [
        ("pair", 0, 0),
        ("pair", 4, 0),
        ("pair", 5, 1),
        ("pair", 8, 8),
        ("pair", 100, 900),
        ("address", 39, 0),
        ("name", 59, 0),
    ],
)
def test_how_long_to_wait(kind: str, count: int, expected: float) -> None:
    assert accounts.wait_s(kind, count) == expected


@pytest.mark.parametrize("header", ["", "Basic", "Basic !!", "Basic bm9jb2xvbg==", "Digest x", "Basic /w=="])
def test_broken_login_headers(desk: Desk, header: str) -> None:
    headers = {"Authorization": header} if header else {}
    answer = httpx.post(f"{desk.server.url}{USERADM}/auth/login", headers=headers)
    assert answer.status_code == 401
    assert "HTTP Basic" in answer.json()["error"]


# --- roles -----------------------------------------------------------------------------------------------

# what: (method, path, body, the least role)
ROLE_TABLE: dict[str, tuple[str, str, Any, str]] = {
    "look at deployments": ("GET", "/api/management/v1/deployments/deployments", None, "read"),
    "look at a page": ("GET", "/devices", None, "read"),
    "read the API's description": ("GET", "/api/openapi.json", None, "read"),
    "deploy": ("POST", "/api/management/v1/deployments/deployments", {"name": "x"}, "deploy"),
    "abort": ("PUT", "/api/management/v1/deployments/deployments/x/status", {"status": "aborted"}, "deploy"),
    "decide": ("POST", "/api/management/v1/deployments/deployments/x/control", {"action": "x"}, "deploy"),
    "upload": ("POST", "/api/management/v1/deployments/artifacts", {}, "deploy"),
    "delete an artifact": ("DELETE", "/api/management/v1/deployments/artifacts/x", None, "deploy"),
    "accept": ("PUT", "/api/management/v2/devauth/devices/x/auth/y/status", {"status": "accepted"}, "deploy"),
    "see users": ("GET", f"{USERADM}/users", None, "admin"),
    "add a user": ("POST", f"{USERADM}/users", {"name": "x"}, "admin"),
    "change a user": ("PUT", f"{USERADM}/users/ada", {"role": "nonsense"}, "admin"),
    "remove a user": ("DELETE", f"{USERADM}/users/nobody", None, "admin"),
    "see the audit log": ("GET", "/api/management/v1/auditlogs/logs", None, "admin"),
    "see people": ("GET", "/people", None, "admin"),
}


@pytest.mark.parametrize("name", Desk.NAMES)
def test_roles(desk: Desk, name: str) -> None:
    client = desk.client(name)
    for what, (method, path, body, least) in ROLE_TABLE.items():
        may = SCOPES.index(desk.NAMES[name]) >= SCOPES.index(least)
        answer = client.request(method, path, json=body)
        assert (answer.status_code == 403) != may, (what, answer.text)
        if not may and path.startswith("/api/"):
            assert f"needs the scope {least}" in answer.json()["error"], what


def test_users_over_the_api(desk: Desk, audit: Callable[[], list[tuple[str, str, str]]]) -> None:
    ada = desk.client("ada")
    table: list[tuple[dict[str, str], int]] = [
        ({"name": "max", "password": "short"}, 422),
        ({"name": "a b", "password": PASSWORD}, 422),
        ({"name": "DEE", "password": PASSWORD}, 409),
        ({"name": "max", "password": PASSWORD, "role": "god"}, 422),
        ({"name": "max", "password": PASSWORD, "extra": "1"}, 422),
        ({"name": "max", "password": PASSWORD, "role": "read"}, 201),
    ]
    for body, status in table:
        assert ada.post(f"{USERADM}/users", json=body).status_code == status, body
    users = {user["name"]: user for user in ada.get(f"{USERADM}/users").json()}
    assert set(users) == {"rea", "dee", "ada", "max"}
    assert not any("password" in key for user in users.values() for key in user)
    max_id = users["max"]["id"]
    maxes = desk.client("max")
    assert ada.put(f"{USERADM}/users/{max_id}", json={"role": "admin"}).status_code == 204
    assert maxes.get(f"{USERADM}/users/{max_id}").json()["role"] == "admin", "at once"
    assert ada.put(f"{USERADM}/users/{max_id}", json={"password": "another long one"}).status_code == 204
    assert maxes.get("/devices").status_code == 401, "a new password ends sessions"
    assert ada.delete(f"{USERADM}/users/{max_id}").status_code == 204
    assert ada.delete(f"{USERADM}/users/{max_id}").status_code == 404
    for last in (
        ada.delete(f"{USERADM}/users/ada"),
        ada.put(f"{USERADM}/users/ada", json={"role": "read"}),
    ):
        assert last.status_code == 409
        assert "last admin" in last.json()["error"]
    assert [deed for deed in audit() if deed[0] == "ada" and "max" in deed[2]] == [
        ("ada", "user added", "max, read"),
        ("ada", "role changed", "max, admin"),
        ("ada", "password changed", "max"),
        ("ada", "user removed", "max"),
    ]


def test_ones_own_password(desk: Desk) -> None:
    dee, elsewhere = desk.client("dee"), desk.client("dee")
    path = f"{USERADM}/users/me/password"
    body = {"current_password": "wrong", "password": "a new long password"}
    assert dee.put(path, json=body).status_code == 403
    assert dee.put(path, json={**body, "current_password": PASSWORD}).status_code == 204
    assert dee.get("/devices").status_code == 200
    assert elsewhere.get("/devices").status_code == 303 or elsewhere.get("/devices").status_code == 401
    assert desk.login("dee").status_code == 401
    assert desk.login("dee", "a new long password").status_code == 200


# --- tokens ----------------------------------------------------------------------------------------------


def test_tokens(desk: Desk, audit: Callable[[], list[tuple[str, str, str]]]) -> None:
    dee, rea = desk.client("dee"), desk.client("rea")
    path = f"{USERADM}/settings/tokens"
    assert dee.post(path, json={"name": "ci", "scope": "admin"}).status_code == 403
    made = dee.post(path, json={"name": "ci", "scope": "deploy", "expires_in_days": 1}).json()
    assert dee.post(path, json={"name": "ci", "scope": "read"}).status_code == 409
    (listed,) = dee.get(path).json()
    assert listed["name"] == "ci"
    assert made["token"] not in str(listed)
    assert rea.get(path).json() == []

    ci = httpx.Client(
        base_url=desk.server.url, headers={"Authorization": f"Bearer {made['token']}"}, timeout=30
    )
    me = ci.get(f"{USERADM}/users/me").json()
    assert (me["name"], me["scope"]) == ("dee (token ci)", "deploy")
    assert ci.post(path, json={"name": "child", "scope": "read"}).status_code == 403, "tokens make no tokens"
    assert ci.put(f"{USERADM}/users/me/password", json={}).status_code in (403, 422)
    with desk.server.house.db.write() as session:
        accounts.set_role(session, accounts.get_user(session, "dee"), "read")
    assert ci.get(f"{USERADM}/users/me").json()["scope"] == "read", "never more than its user"

    assert rea.delete(f"{path}/{made['id']}").status_code == 404
    assert dee.delete(f"{path}/{made['id']}").status_code == 204
    assert ci.get(f"{USERADM}/users/me").status_code == 401
    assert ("dee", "token added", "ci, deploy") in audit()
    assert ("dee", "token revoked", "ci") in audit()


def test_an_old_token_is_refused(desk: Desk) -> None:
    house = desk.server.house
    with house.db.write(Who(name="tests", scope="admin")) as session:
        entry, text = accounts.add_token(session, "old", "admin", days=1)
        entry.expires_at = now()
    answer = httpx.get(f"{desk.server.url}/api/openapi.json", headers={"Authorization": f"Bearer {text}"})
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"


def test_the_database_has_no_secret_in_it(desk: Desk) -> None:
    session_token = desk.login("dee").text
    api_token = desk.client("dee").post(f"{USERADM}/settings/tokens", json={"name": "ci"}).json()["token"]
    folder = desk.server.data
    kept = b"".join(path.read_bytes() for path in folder.glob("server.db*"))
    for secret in (PASSWORD, session_token, api_token):
        assert secret.encode() not in kept
    assert b"$argon2id$" in kept


def test_tokens_and_users_by_command(tmp_path: Path) -> None:
    with start(tmp_path / "data") as server:

        def command(*words: str, answer: str = "") -> subprocess.CompletedProcess[str]:
            argv = [sys.executable, "-m", "update_tools.server", "--data", str(tmp_path / "data"), *words]
            environment = {"PYTHONPATH": ":".join(path for path in sys.path if path)}
            return subprocess.run(
                argv, input=answer, capture_output=True, text=True, env=environment, timeout=60, check=False
            )

        text = command("token", "create", "ci", "--scope", "deploy").stdout.strip()
        assert Management(server.url, text).known_devices() == []
        assert command("token", "revoke", "ci").returncode == 0
        refused = httpx.get(f"{server.url}/api/openapi.json", headers={"Authorization": f"Bearer {text}"})
        assert refused.status_code == 401, "the running server knows"


# --- pages -----------------------------------------------------------------------------------------------


def test_pages_about_people(desk: Desk) -> None:
    ada = desk.browser("ada")
    page = ada.get("/people").text
    assert "last login" in page
    token = form_token(page)
    new = {"token": token, "name": "max", "password": PASSWORD, "role": "read"}
    assert ada.post("/people", data=new).status_code == 303
    again = ada.post("/people", data=new)
    assert again.status_code == 409
    assert "there is already a user max" in again.text
    page = ada.get("/people").text
    assert "user added" in page
    user_id = re.search(r'action="/people/([\w-]{36})"', page)
    assert user_id is not None
    assert ada.post(f"/people/{user_id[1]}", data={"token": token, "do": "remove"}).status_code == 303
    assert "/people/" + user_id[1] not in ada.get("/people").text

    page = ada.get("/account").text
    made = ada.post("/account/tokens", data={"token": token, "name": "ci", "scope": "read", "days": "3"}).text
    text = re.search(r"ota_[\w-]{43}", made)
    assert text is not None
    assert text[0] not in ada.get("/account").text
    assert Management(desk.server.url, text[0]).known_devices() == []
    changed = {"token": token, "present": PASSWORD, "password": "a new long password"}
    assert "differ" in ada.post("/account/password", data={**changed, "again": "x"}).text
    assert ada.post("/account/password", data={**changed, "again": "a new long password"}).status_code == 303
    assert ada.post("/logout", data={"token": token}).headers["location"] == "/login"
    assert ada.get("/people").status_code == 303


def test_a_browser_needs_the_pages_token_for_the_api_too(
    desk: Desk, management: Management, device: FakeDevice, release_2: Path
) -> None:
    deployment_id = management.deploy("x", "release-2")
    dee = desk.browser("dee")
    path = f"/api/management/v1/deployments/deployments/{deployment_id}/status"
    body = {"status": "aborted"}
    assert dee.put(path, json=body).status_code == 403
    assert dee.put(path, json=body, headers={"X-CSRF-Token": "0" * 64}).status_code == 403
    eves = form_token(desk.browser("rea").get("/").text)
    assert dee.put(path, json=body, headers={"X-CSRF-Token": eves}).status_code == 403
    assert management.deployment(deployment_id)["status"] == "pending"
    own = form_token(dee.get("/").text)
    assert dee.put(path, json=body, headers={"X-CSRF-Token": own}).status_code == 204


# --- what is written down --------------------------------------------------------------------------------


def test_deeds_have_names(
    desk: Desk,
    strict_device: FakeDevice,
    write_artifact: Callable[..., Path],
    audit: Callable[[], list[tuple[str, str, str]]],
) -> None:
    token = desk.login("dee").text
    dee = Management(desk.server.url, token)
    device_id = dee.known_devices("pending")[0]["id"]
    dee.accept(device_id)
    strict_device.authorize()
    dee.upload(write_artifact("release-2"))
    deployment_id = dee.deploy("named", "release-2", map={"states": {}})
    strict_device.poll()
    dee.pause(deployment_id, "ArtifactReboot_Enter")
    dee.continue_(deployment_id, "ArtifactReboot_Enter")
    dee.abort(deployment_id)
    deeds = [(who, what) for who, what, _ in audit() if who == "dee"]
    assert deeds == [
        ("dee", "login"),
        ("dee", "accepted"),
        ("dee", "uploaded"),
        ("dee", "created"),
        ("dee", "pause"),
        ("dee", "continue"),
        ("dee", "abort"),
    ]


@pytest.fixture
def strict_device(server: ThreadServer) -> Iterator[FakeDevice]:
    """A device that waits to be accepted, on a server that accepts nobody by itself."""
    object.__setattr__(server.house.settings, "auto_accept", False)
    device = FakeDevice(server.url, "52:54:00:00:00:09")
    assert device.authorize().status_code == 401
    yield device
    object.__setattr__(server.house.settings, "auto_accept", True)
