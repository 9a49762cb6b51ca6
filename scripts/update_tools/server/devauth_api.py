# SPDX-License-Identifier: Apache-2.0
"""The JSON API of devices and their keys: accept, reject, preauthorize, decommission."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import func, select
from sqlalchemy.orm import selectinload

from update_tools.server import auth
from update_tools.server.db import Device
from update_tools.server.device_api import house_of
from update_tools.server.door import who_of
from update_tools.server.shapes import moment, moments

router = APIRouter(prefix="/api/management/v2/devauth", tags=["management"])

Status = Literal["", "accepted", "pending", "preauthorized", "rejected"]  # empty: all


class KeyBody(BaseModel):
    """Accept or reject a device's key."""

    model_config = ConfigDict(extra="forbid")

    status: Literal["accepted", "rejected"]


class PreauthorizeBody(BaseModel):
    """A device that will come, and the key it will come with."""

    model_config = ConfigDict(extra="forbid")

    identity_data: dict[str, str | list[str]] = Field(min_length=1)
    pubkey: str = Field(min_length=1, max_length=16_384)


@router.get("/devices")
def devices(
    request: Request,
    response: Response,
    status: Status = "",
    id: Annotated[list[str] | None, Query(max_length=500)] = None,  # noqa: A002  the parameter's name
    page: Annotated[int, Query(ge=1, le=1_000_000)] = 1,
    per_page: Annotated[int, Query(ge=1, le=500)] = 500,
) -> list[dict[str, Any]]:
    """Devices with their keys (auth sets), oldest first. Decommissioned ones are not listed."""
    query = select(Device).where(Device.status != "decommissioned")
    if status:
        query = query.where(Device.status == status)
    if id:
        query = query.where(Device.id.in_(id))
    with house_of(request).db.read() as session:
        total = session.scalar(select(func.count()).select_from(query.subquery()))
        response.headers["x-total-count"] = str(total)
        query = query.options(selectinload(Device.keys)).order_by(Device.created_at, Device.id)
        found = session.scalars(query.limit(per_page).offset((page - 1) * per_page))
        return [_device(entry) for entry in found]


@router.post("/devices", status_code=201)
def preauthorize(request: Request, body: PreauthorizeBody) -> Response:
    """Accept a device before it comes; a person need not be there then. 409 if it is known already."""
    with house_of(request).db.write(who_of(request)) as session:
        device = auth.preauthorize(session, body.identity_data, body.pubkey)
        location = f"/api/management/v2/devauth/devices/{device.id}"
    return Response(status_code=201, headers={"Location": location})


@router.get("/devices/count")
def count(request: Request, status: Status = "") -> dict[str, int]:
    """How many devices there are."""
    query = select(func.count()).select_from(Device).where(Device.status != "decommissioned")
    if status:
        query = query.where(Device.status == status)
    with house_of(request).db.read() as session:
        return {"count": session.scalar(query) or 0}


@router.get("/devices/{device_id}")
def device(request: Request, device_id: str) -> dict[str, Any]:
    """One device."""
    with house_of(request).db.read() as session:
        return _device(auth.get_device(session, device_id))


@router.delete("/devices/{device_id}", status_code=204)
def decommission(request: Request, device_id: str) -> Response:
    """Let a device go: its keys are forgotten, its token and its part in deployments end.

    What it did stays to be read. If it asks again it is a device that waits to be accepted.
    """
    with house_of(request).db.write(who_of(request)) as session:
        auth.decommission(session, device_id)
    return Response(status_code=204)


@router.delete("/devices/{device_id}/auth/{key_id}", status_code=204)
def forget_key(request: Request, device_id: str, key_id: str) -> Response:
    """Forget a key; without its last one a device is decommissioned."""
    with house_of(request).db.write(who_of(request)) as session:
        auth.forget_key(session, device_id, key_id)
    return Response(status_code=204)


@router.get("/devices/{device_id}/auth/{key_id}/status")
def key_status(request: Request, device_id: str, key_id: str) -> dict[str, str]:
    """Whether a key is accepted."""
    with house_of(request).db.read() as session:
        return {"status": auth.get_key(session, device_id, key_id).status}


@router.put("/devices/{device_id}/auth/{key_id}/status", status_code=204)
def decide_key(request: Request, device_id: str, key_id: str, body: KeyBody) -> Response:
    """Accept or reject a key."""
    with house_of(request).db.write(who_of(request)) as session:
        auth.get_key(session, device_id, key_id)
        auth.decide(session, key_id, body.status)
    return Response(status_code=204)


def _device(entry: Device) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "id": entry.id,
        "identity_data": entry.identity,
        "status": entry.status,
        "device_type": entry.device_type,
        "artifact_name": entry.artifact_name,
        "group": entry.group_name,
        "tier": entry.tier,
        "created_ts": moment(entry.created_at),
        "auth_sets": [
            {
                "id": key.id,
                "pubkey": key.public_key,
                "kind": key.kind,
                "status": key.status,
                "ts": moment(key.created_at),
            }
            for key in entry.keys
        ],
    }
    return answer | moments(last_seen=entry.last_seen_at)
