# SPDX-License-Identifier: Apache-2.0
"""The JSON API for people's programs: the reference's management endpoints, where they exist.

Here inventory and groups; deployment_api.py, artifact_api.py and devauth_api.py have the others.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response
from pydantic import Field, RootModel
from sqlalchemy import select
from sqlalchemy.orm import Session

from update_tools.server import audit, deployment_api, views
from update_tools.server.db import Device
from update_tools.server.deployment_api import Strict
from update_tools.server.device_api import house_of
from update_tools.server.door import who_of
from update_tools.server.faults import NotFound
from update_tools.server.shapes import moments

router = APIRouter(prefix="/api/management", tags=["management"])
router.include_router(deployment_api.router)

GroupName = Annotated[str, Path(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9_-]+$")]


class GroupBody(Strict):
    """The group to be in."""

    group: str = Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9_-]+$")


class DeviceIds(RootModel[Annotated[list[str], Field(max_length=10_000)]]):
    """Devices by id."""


# --- inventory ------------------------------------------------------------------------------------------


@router.get("/v1/inventory/devices/{device_id}")
def inventory(request: Request, device_id: str) -> dict[str, Any]:
    """What a device told about itself."""
    with house_of(request).db.read() as session:
        device = session.get(Device, device_id)
        if device is None:
            raise NotFound("there is no such device")
        attributes = [{**attribute, "scope": "inventory"} for attribute in device.inventory or []]
        if device.group_name:
            attributes.append({"name": "group", "value": device.group_name, "scope": "system"})
        answer: dict[str, Any] = {"id": device.id, "attributes": attributes}
        return answer | moments(updated_ts=device.inventory_at)


# --- groups ----------------------------------------------------------------------------------------------


@router.get("/v1/inventory/groups")
def groups(request: Request) -> list[str]:
    """The groups that have devices."""
    query = select(Device.group_name).where(Device.group_name != "").distinct().order_by(Device.group_name)
    with house_of(request).db.read() as session:
        return list(session.scalars(query))


@router.get("/v1/inventory/groups/{name}/devices")
def group_devices(request: Request, name: str) -> list[str]:
    """The ids of the devices in a group."""
    query = select(Device.id).where(Device.group_name == name).order_by(Device.id)
    with house_of(request).db.read() as session:
        return list(session.scalars(query))


@router.patch("/v1/inventory/groups/{name}/devices")
def add_to_group(request: Request, name: GroupName, body: DeviceIds) -> dict[str, int]:
    """Put devices into a group; a device is in one at most."""
    with house_of(request).db.write(who_of(request)) as session:
        found = [session.get(Device, device_id) for device_id in body.root]
        moved = [device for device in found if device is not None and device.group_name != name]
        for device in moved:
            _set_group(session, device, name)
        return {"updated_count": len(moved), "matched_count": len([each for each in found if each])}


@router.put("/v1/inventory/devices/{device_id}/group", status_code=204)
def set_group(request: Request, device_id: str, body: GroupBody) -> Response:
    """Put a device into a group."""
    with house_of(request).db.write(who_of(request)) as session:
        _set_group(session, _known(session, device_id), body.group)
    return Response(status_code=204)


@router.delete("/v1/inventory/devices/{device_id}/group/{name}", status_code=204)
def leave_group(request: Request, device_id: str, name: str) -> Response:
    """Take a device out of a group. 404 if it is not in it."""
    with house_of(request).db.write(who_of(request)) as session:
        device = _known(session, device_id)
        if device.group_name != name:
            raise NotFound(f"the device is not in a group {name!r:.80}")
        _set_group(session, device, "")
    return Response(status_code=204)


def _known(session: Session, device_id: str) -> Device:
    device = session.get(Device, device_id)
    if device is None:
        raise NotFound("there is no such device")
    return device


def _set_group(session: Session, device: Device, name: str) -> None:
    device.group_name = name
    audit.record(session, "group", "device", device.id, name)


# --- shapes ----------------------------------------------------------------------------------------------


def counts(session: Session, deployment_id: str) -> dict[str, int]:
    """Devices per status, counted by the database."""
    return views.statistics(session, [deployment_id])[deployment_id]
