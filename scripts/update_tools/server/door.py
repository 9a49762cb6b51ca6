# SPDX-License-Identifier: Apache-2.0
"""What every request goes through: an id, who it is, whether they may, headers for browsers, one log line.

A path that no rule names needs a login to be read and the scope `deploy` to be changed, so a new route is
closed unless somebody opens it.
"""

from __future__ import annotations

import logging
import uuid
from http.cookies import CookieError, SimpleCookie
from urllib.parse import quote, urlsplit

from fastapi import Request, Response
from fastapi.responses import JSONResponse, RedirectResponse
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from update_tools.server import accounts
from update_tools.server.faults import BadRequest, Forbidden, Refusal, TooLarge, Unauthorized, Unavailable
from update_tools.server.settings import House, is_local_name
from update_tools.server.who import EVERYBODY, NOBODY, Who

log = logging.getLogger("update_tools.server")

# What devices use; it has its own proofs: the device's token, the link's signature.
DEVICE_PATHS = ("/api/devices/", "/api/artifacts/", "/health")
# Whoever wants to come in must reach these.
OPEN_PATHS = ("/login", "/setup", "/static/", "/api/management/v1/useradm/auth/login")
# The first that fits: what it takes to read, and to change.
SCOPE_RULES = (
    ("/api/management/v1/useradm/users/me", "read", "read"),
    ("/api/management/v1/useradm/auth/", "read", "read"),
    ("/api/management/v1/useradm/settings/tokens", "read", "read"),  # one's own
    ("/api/management/v1/useradm/", "admin", "admin"),
    ("/api/management/v1/auditlogs/", "admin", "admin"),
    ("/people", "admin", "admin"),
    ("/account", "read", "read"),
    ("/logout", "read", "read"),
    ("/", "read", "deploy"),
)
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
SESSION_COOKIE = "ota_session"
FORM_HEADER = "x-csrf-token"
BODY_LIMIT_BYTES = 16 << 20  # of all but artifacts; device requests have their own, smaller ones
UPLOAD_PATHS = ("/api/management/v1/deployments/artifacts", "/releases")

SECURITY_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; connect-src 'self'; style-src 'self'; "
    "img-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
}


class Door:
    """The one middleware."""

    def __init__(self, app: ASGIApp, house: House) -> None:
        self.app = app
        self.house = house

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = uuid.uuid4().hex
        state = scope.setdefault("state", {})
        state.update(request_id=request_id, who=NOBODY)
        status = 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        answer: Response | None = None
        try:
            try:
                self._check_form(scope)
                if not scope["path"].startswith(DEVICE_PATHS):
                    state["who"] = await self._recognise(scope)
                    answer = self._check_person(scope, state["who"])
            except Refusal as refusal:
                answer = refuse(Request(scope), refusal)
            taking = receive if scope["path"].startswith(UPLOAD_PATHS) else _limited(receive)
            await (answer or self.app)(scope, taking, sending)
        finally:
            # The path only: queries carry link signatures.
            name = state["who"].name
            said = f" by {ascii(name)[1:-1]}" if name else ""
            log.info("%s %s %d %s%s", scope["method"], ascii(scope["path"])[1:-1], status, request_id, said)

    def _check_form(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not host or any(char in host for char in "/\\@?#<>\"' "):
            raise BadRequest("the Host header is missing or malformed")
        length = headers.get("content-length", "")
        is_upload = scope["path"].startswith(UPLOAD_PATHS)
        if length.isdigit() and int(length) > BODY_LIMIT_BYTES and not is_upload:
            raise TooLarge(f"the body has {length} bytes, at most {BODY_LIMIT_BYTES} are taken here")
        if "\0" in scope["path"] or b"%00" in scope.get("query_string", b""):
            raise BadRequest("the address has a NUL in it")

    async def _recognise(self, scope: Scope) -> Who:
        """Who it is, by token or cookie. Raises Unauthorized for a token that is not valid."""
        if not self.house.settings.needs_login:
            return EVERYBODY
        headers = Headers(scope=scope)
        address = scope["client"][0] if scope.get("client") else ""
        db = self.house.db
        kind, _, text = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and text:
            who = await run_in_threadpool(accounts.by_token, db, text.strip(), address)
            if who is None:
                raise Unauthorized("the token is not valid, or not any more")
            return who
        cookie = _cookie(headers, SESSION_COOKIE)
        if cookie and not scope["path"].startswith("/static/"):
            who = await run_in_threadpool(accounts.by_session, db, cookie, address, is_browser=True)
        else:
            who = None
        return who or Who(address=address)

    def _check_person(self, scope: Scope, who: Who) -> Response | None:
        """Whether they may. Raises Refusal; or returns the way to the login page."""
        headers = Headers(scope=scope)
        path, is_safe = scope["path"], scope["method"] in SAFE_METHODS
        host = headers["host"]
        if not self.house.settings.is_open and not is_local_name(host):
            raise Forbidden(
                "without a login, pages and management API answer on this machine only",
                hint="open it as 127.0.0.1 or localhost",
            )
        if not is_safe and self._is_foreign(headers, host):
            raise Forbidden("a page of another site may not change anything here")
        if any(path == known or (known.endswith("/") and path.startswith(known)) for known in OPEN_PATHS):
            return None
        if not who.scope:
            if path.startswith("/api/") or not is_safe:
                raise Unauthorized("this needs a login or an API token")
            query = scope.get("query_string", b"").decode("latin-1")
            wanted = path + (f"?{query}" if query else "")
            return RedirectResponse(f"/login?next={quote(wanted, safe='')}", status_code=303)
        needed = scope_for(path, is_safe=is_safe)
        if not who.may(needed):
            raise Forbidden(f"this needs the scope {needed}, yours is {who.scope}")
        if who.is_browser and path.startswith("/api/") and not is_safe:
            token = headers.get(FORM_HEADER, "")
            if not self.house.signer.is_valid("form", who.session_id, token):
                raise Forbidden(
                    f"a browser's request needs the page's form token in {FORM_HEADER}",
                    hint="reload the page, or use an API token",
                )
        return None

    def _is_foreign(self, headers: Headers, host: str) -> bool:
        origin = headers.get("origin")
        known = {host, urlsplit(self.house.settings.public_url).netloc}
        if origin is not None and urlsplit(origin).netloc not in known - {""}:
            return True
        return headers.get("sec-fetch-site") in ("cross-site", "same-site")


def scope_for(path: str, *, is_safe: bool) -> str:
    """The scope a path takes."""
    for start, reading, changing in SCOPE_RULES:
        if path.startswith(start):
            return reading if is_safe else changing
    return "admin"


def who_of(request: Request) -> Who:
    """Who makes this request."""
    who = request.scope.get("state", {}).get("who", NOBODY)
    assert isinstance(who, Who)
    return who


def set_session(request: Request, response: Response, login: accounts.Login) -> None:
    """Give a browser its session: not for scripts, not for requests from elsewhere."""
    response.set_cookie(
        SESSION_COOKIE,
        login.token,
        expires=login.expires_at,
        httponly=True,
        samesite="lax",  # strict would ask for a login after each link in a mail
        secure=request.url.scheme == "https",
    )


def refuse(request: Request, refusal: Refusal) -> Response:
    """The answer that says why."""
    response = answer(request, refusal.status, str(refusal))
    if refusal.status == 401 and request.url.path.startswith("/api/"):
        response.headers["www-authenticate"] = "Bearer"
    if isinstance(refusal, accounts.TooManyLogins | Unavailable):
        response.headers["retry-after"] = str(refusal.retry_after_s)
    if refusal.status in (408, 413):
        response.headers["connection"] = "close"  # the rest of the body is not worth reading
    return response


def answer(request: Request, status: int, message: str) -> Response:
    """An error as JSON for programs, as a page for people."""
    from update_tools.server.pages import error_page  # it asks here who looks at it

    request_id = request.scope.get("state", {}).get("request_id", "")
    if request.url.path.startswith("/api/"):
        return JSONResponse({"error": message, "request_id": request_id}, status_code=status)
    return error_page(request, status, message, request_id)


def _limited(receive: Receive) -> Receive:
    """The body without its announced length, up to the limit; then it is as if the sender hung up."""
    received = 0

    async def receiving() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        return message if received <= BODY_LIMIT_BYTES else {"type": "http.disconnect"}

    return receiving


def _cookie(headers: Headers, name: str) -> str:
    try:
        morsel = SimpleCookie(headers.get("cookie", "")).get(name)
    except CookieError:
        return ""
    return morsel.value if morsel is not None else ""
