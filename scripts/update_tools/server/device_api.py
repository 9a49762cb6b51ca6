# SPDX-License-Identifier: Apache-2.0
"""What devices talk to: requests 1 to 8 of the device API (spec device-api.md)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from update_tools.server import auth, device_schemas, live, rollout, services
from update_tools.server.bodies import read_json, read_limited
from update_tools.server.db import Device
from update_tools.server.faults import BadRequest, Unauthorized
from update_tools.server.polls import Polls
from update_tools.server.settings import House

router = APIRouter(prefix="/api/devices", tags=["device"])

AUTH_LIMIT_BYTES = 32 << 10
SMALL_LIMIT_BYTES = 64 << 10
INVENTORY_LIMIT_BYTES = 1 << 20
LOG_LIMIT_BYTES = 2 << 20  # the device cuts its log at 1,000,000 bytes; JSON escapes may double that

NOTHING: dict[int | str, dict[str, Any]] = {204: {"description": "There is none for this device."}}
Token = Annotated[str, Header(alias="Authorization")]


def house_of(request: Request) -> House:
    """The server's parts."""
    house = request.app.state.house
    assert isinstance(house, House)
    return house


def polls_of(request: Request) -> Polls:
    """What answers polls, and notes when devices were heard of."""
    polls = request.app.state.polls
    assert isinstance(polls, Polls)
    return polls


async def _read(request: Request, authorization: str, limit_bytes: int) -> Any:
    """A device's JSON body; nobody without a token makes the server read one."""
    auth.check_token(house_of(request).signer, authorization)
    return await read_json(request, limit_bytes)


@router.post(
    "/v1/authentication/auth_requests",
    response_class=PlainTextResponse,
    openapi_extra=device_schemas.AUTH_REQUEST,
)
async def authorize(request: Request) -> PlainTextResponse:
    """Authorization: a token for an accepted device, 401 for one that nobody decided about."""
    body = await read_limited(request, AUTH_LIMIT_BYTES)
    signature = request.headers.get("x-men-signature", "")
    house = house_of(request)

    def work() -> str:
        wanted = auth.read_request(body, signature)
        with house.db.write() as session:
            key = auth.authorize(session, wanted, auto_accept=house.settings.auto_accept)
            status = key.status
            token = auth.issue_token(house.signer, key)
        if status != "accepted":
            raise Unauthorized(f"the device is {status}", hint="accept it on the server's devices page")
        return token

    return PlainTextResponse(await run_in_threadpool(work), media_type="application/jwt")


@router.post("/v2/deployments/device/deployments/next", openapi_extra=device_schemas.NEXT, responses=NOTHING)
async def next_deployment(request: Request, authorization: Token = "") -> Response:
    """Poll, for clients that may understand control maps."""
    body = await _read(request, authorization, SMALL_LIMIT_BYTES)
    provides = body.get("device_provides") if isinstance(body, dict) else None
    if not isinstance(provides, dict) or not all(isinstance(value, str) for value in provides.values()):
        raise BadRequest("device_provides must be an object of strings")
    return await _poll(request, authorization, provides, body.get("update_control_map") is True)


@router.get("/v1/deployments/device/deployments/next", responses=NOTHING)
async def next_deployment_v1(
    request: Request, authorization: Token = "", artifact_name: str = "", device_type: str = ""
) -> Response:
    """Poll of clients without control maps."""
    provides = {"artifact_name": artifact_name, "device_type": device_type}
    return await _poll(request, authorization, provides, understands_maps=False)


async def _poll(
    request: Request, authorization: str, provides: Mapping[str, str], understands_maps: bool
) -> Response:
    for name in ("artifact_name", "device_type"):
        if not provides.get(name):
            raise BadRequest(f"{name} is missing")
    polls = polls_of(request)
    claims = auth.check_token(house_of(request).signer, authorization)
    known = await polls.look(str(claims.get("key", "")))
    if known is None or known.device_id != claims.get("sub"):
        raise Unauthorized("the device is not accepted any more")
    if not known.is_news(provides):
        polls.seen(known.device_id)
        return Response(status_code=204)
    return await run_in_threadpool(_answer_poll, request, authorization, provides, understands_maps)


def _answer_poll(
    request: Request, authorization: str, provides: Mapping[str, str], understands_maps: bool
) -> Response:
    house = house_of(request)
    with house.db.write() as session:
        device = auth.identify(session, house.signer, authorization)
        found = services.poll(session, device, provides, understands_maps=understands_maps)
    polls_of(request).seen(device.id)
    if found is None:
        return Response(status_code=204)
    uri, expire = house.link(found.artifact.id, str(request.base_url))
    answer: dict[str, Any] = {
        "id": found.deployment_id,
        "artifact": {
            "artifact_name": found.artifact.name,
            "device_types_compatible": found.artifact.device_types,
            "source": {"uri": uri, "expire": expire.strftime("%Y-%m-%dT%H:%M:%SZ")},
        },
    }
    if found.control_map is not None and understands_maps:
        answer["update_control_map"] = found.control_map
    answer["live_reports"] = live.request()
    return JSONResponse(answer)


@router.get("/v2/deployments/device/deployments/{deployment_id}/update_control_map")
def refresh(request: Request, deployment_id: str, authorization: Token = "") -> dict[str, Any]:
    """Map refresh; 404 tells the device that the deployment is over."""
    house = house_of(request)
    with house.db.read() as session:
        device = auth.identify(session, house.signer, authorization)
        answer = services.control_map(session, device, deployment_id)
    if answer.is_news:
        with house.db.write() as session:
            services.note_map_taken(session, device.id, deployment_id, answer.version)
    polls_of(request).seen(device.id)
    return {"update_control_map": answer.value}


@router.put(
    "/v1/deployments/device/deployments/{deployment_id}/status",
    status_code=204,
    openapi_extra=device_schemas.STATUS,
)
async def report(request: Request, deployment_id: str, authorization: Token = "") -> Response:
    """Status report. 204 means it is on the medium."""
    body = await _read(request, authorization, SMALL_LIMIT_BYTES)
    status = body.get("status") if isinstance(body, dict) else None
    if status not in rollout.REPORTABLE:
        raise BadRequest(f"{status!r:.80} is not a status a device reports")
    substate = body.get("substate")
    if substate is not None and not isinstance(substate, str):
        raise BadRequest("substate must be a string")

    def change(session: Session, device: Device) -> None:
        services.report(session, device, deployment_id, status, substate)

    await _write_as_device(request, authorization, change)
    return Response(status_code=204)


@router.put(
    "/v1/deployments/device/deployments/{deployment_id}/log",
    status_code=204,
    openapi_extra=device_schemas.LOG,
)
async def store_log(request: Request, deployment_id: str, authorization: Token = "") -> Response:
    """Deployment log of a failed update."""
    body = await _read(request, authorization, LOG_LIMIT_BYTES)
    messages = body.get("messages") if isinstance(body, dict) else None
    if not isinstance(messages, list):
        raise BadRequest("messages must be a list")
    for message in messages:
        if not isinstance(message, dict) or not all(
            isinstance(message.get(name), str) for name in ("timestamp", "level", "message")
        ):
            raise BadRequest("each message needs the texts timestamp, level and message")
    kept = [{name: message[name] for name in ("timestamp", "level", "message")} for message in messages]

    def change(session: Session, device: Device) -> None:
        services.store_log(session, device, deployment_id, kept)

    await _write_as_device(request, authorization, change)
    return Response(status_code=204)


@router.put(
    "/v1/inventory/device/attributes", openapi_extra=device_schemas.ATTRIBUTES, response_class=Response
)
async def store_inventory(request: Request, authorization: Token = "") -> Response:
    """Inventory: replaces all attributes."""
    attributes = _attributes(await _read(request, authorization, INVENTORY_LIMIT_BYTES))

    def change(session: Session, device: Device) -> None:
        services.store_inventory(device, attributes)

    await _write_as_device(request, authorization, change)
    return Response(status_code=200)


@router.patch(
    "/v1/inventory/device/attributes", openapi_extra=device_schemas.ATTRIBUTES, response_class=Response
)
async def add_inventory(request: Request, authorization: Token = "") -> Response:
    """Inventory: these attributes are new or changed, the others stay."""
    attributes = _attributes(await _read(request, authorization, INVENTORY_LIMIT_BYTES))

    def change(session: Session, device: Device) -> None:
        kept = {entry["name"]: entry for entry in device.inventory or []}
        kept.update((entry["name"], entry) for entry in attributes)
        services.store_inventory(device, list(kept.values()))

    await _write_as_device(request, authorization, change, for_update=True)
    return Response(status_code=200)


async def _write_as_device(
    request: Request,
    authorization: str,
    change: Callable[[Session, Device], None],
    *,
    for_update: bool = False,
) -> None:
    """Carry out what a device asks for, in one transaction, and note that it was heard of."""
    house = house_of(request)

    def work() -> None:
        with house.db.write() as session:
            device = auth.identify(session, house.signer, authorization, for_update=for_update)
            change(session, device)
        polls_of(request).seen(device.id)

    await run_in_threadpool(work)


def _attributes(body: Any) -> list[dict[str, Any]]:
    if not isinstance(body, list):
        raise BadRequest("inventory is a list of attributes")
    attributes: dict[str, dict[str, Any]] = {}
    for entry in body:
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str) or not entry["name"]:
            raise BadRequest("each attribute needs a name")
        value = entry.get("value")
        values = value if isinstance(value, list) else [value]
        if not all(isinstance(each, str | int | float) for each in values):
            raise BadRequest(f"attribute {entry['name'][:80]!r} must be text, a number, or a list of such")
        attributes[entry["name"]] = {"name": entry["name"], "value": value}
    return list(attributes.values())
