# SPDX-License-Identifier: Apache-2.0
"""The web application: routes of all parts, errors as JSON or page."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.staticfiles import StaticFiles
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException

from update_tools.server import (
    account_api,
    account_pages,
    artifact_api,
    devauth_api,
    device_api,
    downloads,
    fleet,
    management,
    resumable,
    ui,
)
from update_tools.server.door import Door, answer, refuse, scope_for
from update_tools.server.faults import Refusal, Unavailable
from update_tools.server.polls import PollFirst, Polls
from update_tools.server.settings import House, Settings

log = logging.getLogger("update_tools.server")

ERROR = {
    "type": "object",
    "properties": {"error": {"type": "string"}, "request_id": {"type": "string"}},
    "required": ["error", "request_id"],
}


def create_app(settings: Settings) -> FastAPI:
    """The application over a data folder. The folder is opened, and upgraded, here and now."""
    house = House(settings)
    polls = Polls(house.db)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        timer = fleet.Timer(house.db, also=[polls.flush])
        timer.start()
        async with house.hub.running():
            yield
        timer.stop()
        polls.close()
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
    app.state.polls = polls
    for router in (
        device_api.router,
        downloads.router,
        resumable.router,
        artifact_api.router,
        devauth_api.router,
        management.router,
        account_api.router,
        account_pages.router,
        ui.router,
    ):
        app.include_router(router)
    app.add_api_route("/health", _health, methods=["GET"], tags=["device"])
    app.mount("/static", StaticFiles(directory=Path(__file__).parent / "static"))
    app.add_exception_handler(Refusal, _on_refusal)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(RequestValidationError, _on_validation)
    app.add_exception_handler(OperationalError, _on_database)
    app.add_exception_handler(PoolTimeoutError, _on_database)
    app.add_exception_handler(Exception, _on_bug)
    app.add_middleware(Door, house=house)
    app.add_middleware(PollFirst, polls=polls, signer=house.signer)
    app.openapi = lambda: _describe(app)  # type: ignore[method-assign]
    return app


def _health() -> dict[str, str]:
    """For load balancers, and for state scripts that check the way from a new system to its server."""
    return {"status": "ok"}


def _on_refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return refuse(request, error)


def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    response = answer(request, error.status_code, str(error.detail))
    response.headers.update(error.headers or {})
    return response


def _on_validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part != "body")
    message = f"{where[:200]}: {first['msg']}" if where else str(first["msg"])
    return answer(request, 400 if first["type"] == "json_invalid" else 422, message)


def _on_database(request: Request, error: Exception) -> Response:
    """The database went away, or two writers stood in each other's way: the caller may try again."""
    request_id = request.scope.get("state", {}).get("request_id", "")
    log.error("%s: the database: %s", request_id, str(error).partition("\n")[0])
    if "disk is full" in str(error) or "No space left" in str(error):
        return refuse(request, Refusal("no room left for the server's database", status=507))
    return refuse(request, Unavailable("the database does not answer", hint="try again"))


def _on_bug(request: Request, error: Exception) -> Response:
    request_id = request.scope.get("state", {}).get("request_id", "")
    log.error("%s failed", request_id, exc_info=error)
    return answer(request, 500, "the server failed; its log has the details under this request id")


def _describe(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI description, with who may do what."""
    if app.openapi_schema is None:
        schema = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes
        )
        schemes = schema.setdefault("components", {}).setdefault("securitySchemes", {})
        schemes["deviceToken"] = {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}
        schemes["apiToken"] = {"type": "http", "scheme": "bearer"}
        schema["components"].setdefault("schemas", {})["Error"] = ERROR
        refused = {"$ref": "#/components/schemas/Error"}
        for path, methods in schema["paths"].items():
            for method, operation in methods.items():
                operation["responses"].pop("422", None)  # ours looks like all refusals
                operation["responses"]["default"] = {
                    "description": "Refused, with the reason.",
                    "content": {"application/json": {"schema": refused}},
                }
                if path.startswith("/api/management/") and "/auth/login" not in path:
                    scope = scope_for(path, is_safe=method in ("get", "head"))
                    operation["security"] = [{"apiToken": [scope]}]
                    operation["description"] = (
                        f"{operation.get('description', '')}\n\nNeeds the scope {scope}.".strip()
                    )
                elif path.startswith("/api/devices/") and "/auth_requests" not in path:
                    operation["security"] = [{"deviceToken": []}]
        app.openapi_schema = schema
    return app.openapi_schema
