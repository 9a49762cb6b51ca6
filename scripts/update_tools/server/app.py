# SPDX-License-Identifier: Apache-2.0
"""The web application: routes of all parts, errors as JSON or page, what every request passes."""

from __future__ import annotations

import logging
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from update_tools.server import device_api, management, ui
from update_tools.server.faults import BadRequest, Forbidden, Refusal
from update_tools.server.settings import House, Settings, is_local_name

log = logging.getLogger("update_tools.server")

# What devices use; the rest is for people and their programs.
DEVICE_PATHS = ("/api/devices/", "/api/artifacts/", "/health")

SECURITY_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
}


def create_app(settings: Settings) -> FastAPI:
    """The application over a data folder. The folder is opened, and upgraded, here and now."""
    house = House(settings)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        house.close()

    app = FastAPI(
        title="Update control server",
        description="Device API and management API for A/B updates with pauses.",
        version="1",
        docs_url=None,  # the page would fetch its scripts from a CDN
        redoc_url=None,
        openapi_url="/api/openapi.json",
        lifespan=lifespan,
    )
    app.state.house = house
    for router in (device_api.router, device_api.downloads, management.router, ui.router):
        app.include_router(router)
    app.add_api_route("/health", _health, methods=["GET"], tags=["device"])
    app.mount("/static", StaticFiles(directory=Path(__file__).parent / "static"))
    app.add_exception_handler(Refusal, _on_refusal)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(RequestValidationError, _on_validation)
    app.add_exception_handler(Exception, _on_bug)
    app.add_middleware(Door, settings=settings)
    return app


def _health() -> dict[str, str]:
    """For load balancers, and for state scripts that check the way from a new system to its server."""
    return {"status": "ok"}


class Door:
    """What every request goes through: an id, who may come in, headers for browsers, one line in the log."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self.settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
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

        try:
            refusal = self._refuse(scope)
            if refusal is not None:
                await _answer(Request(scope), refusal.status, str(refusal))(scope, receive, sending)
            else:
                await self.app(scope, receive, sending)
        finally:
            # The path only: queries carry link signatures.
            log.info("%s %s %d %s", scope["method"], ascii(scope["path"])[1:-1], status, request_id)

    def _refuse(self, scope: Scope) -> Refusal | None:
        """Until there is a login, people come from this machine and from this server's own pages."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not host or any(char in host for char in "/\\@?#<>\"' "):
            return BadRequest("the Host header is missing or malformed")
        if scope["path"].startswith(DEVICE_PATHS):
            return None
        if not self.settings.is_open and not is_local_name(host):
            return Forbidden(
                "pages and management API answer on this machine only",
                hint="open it as 127.0.0.1 or localhost",
            )
        if scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return None
        origin = headers.get("origin")
        is_foreign = origin is not None and urlsplit(origin).netloc != host
        if is_foreign or headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            return Forbidden("a page of another site may not change anything here")
        return None


def _answer(request: Request, status: int, message: str) -> Response:
    request_id = request.scope.get("state", {}).get("request_id", "")
    if request.url.path.startswith("/api/"):
        return JSONResponse({"error": message, "request_id": request_id}, status_code=status)
    return ui.error_page(request, status, message, request_id)


def _on_refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    response = _answer(request, error.status, str(error))
    if error.status in (408, 413):
        response.headers["connection"] = "close"  # the rest of the body is not worth reading
    return response


def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    response = _answer(request, error.status_code, str(error.detail))
    response.headers.update(error.headers or {})
    return response


def _on_validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part != "body")
    message = f"{where[:200]}: {first['msg']}" if where else str(first["msg"])
    return _answer(request, 400 if first["type"] == "json_invalid" else 422, message)


def _on_bug(request: Request, error: Exception) -> Response:
    request_id = request.scope.get("state", {}).get("request_id", "")
    log.error("%s failed", request_id, exc_info=error)
    return _answer(request, 500, "the server failed; its log has the details under this request id")
