# SPDX-License-Identifier: Apache-2.0
"""The JSON API for people's programs: the reference's management endpoints, where they exist.

Here artifacts, devices and groups; deployment_api.py has the deployments.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Request, Response
from pydantic import Field, RootModel
from sqlalchemy import select
from sqlalchemy.orm import Session, selectinload

from update_tools.server import audit, auth, deployment_api, documents, uploads, views
from update_tools.server.db import Artifact, Deployment, Device, Part
from update_tools.server.deployment_api import Strict
from update_tools.server.device_api import house_of
from update_tools.server.door import who_of
from update_tools.server.faults import Conflict, NotFound
from update_tools.server.shapes import moment, moments

router = APIRouter(prefix="/api/management", tags=["management"])
router.include_router(deployment_api.router)
ARTIFACTS = "/v1/deployments/artifacts"


GroupName = Annotated[str, Path(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9_-]+$")]


class GroupBody(Strict):
    """The group to be in."""

    group: str = Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9_-]+$")


class DeviceIds(RootModel[Annotated[list[str], Field(max_length=10_000)]]):
    """Devices by id."""


class KeyBody(Strict):
    """Accept or reject a device's key."""

    status: Literal["accepted", "rejected"]


# --- artifacts -------------------------------------------------------------------------------------------


@router.post(ARTIFACTS, status_code=201)
async def upload(request: Request) -> Response:
    """Upload an artifact: multipart with `artifact` (the file), `description`, `size`."""
    artifact = await uploads.receive(request, house_of(request), lambda form: None)
    location = f"/api/management{ARTIFACTS}/{artifact.id}"
    return Response(status_code=201, headers={"Location": location})


@router.get(ARTIFACTS)
@router.get(f"{ARTIFACTS}/list")
def artifacts(request: Request, name: str = "") -> list[dict[str, Any]]:
    """All artifacts, newest first."""
    query = select(Artifact).order_by(Artifact.created_at.desc())
    with house_of(request).db.read() as session:
        found = [entry for entry in session.scalars(query) if not name or entry.name == name]
        return [documents.artifact(entry) for entry in found]


@router.get(ARTIFACTS + "/{artifact_id}")
def artifact(request: Request, artifact_id: str) -> dict[str, Any]:
    """One artifact."""
    with house_of(request).db.read() as session:
        entry = session.get(Artifact, artifact_id)
        if entry is None:
            raise NotFound("there is no such artifact")
        return documents.artifact(entry)


@router.delete(ARTIFACTS + "/{artifact_id}", status_code=204)
def delete_artifact(request: Request, artifact_id: str) -> Response:
    """Remove an artifact. 409 while a deployment that is not over needs it."""
    house = house_of(request)
    with house.db.write(who_of(request)) as session:
        entry = session.get(Artifact, artifact_id)
        if entry is None:
            raise NotFound("there is no such artifact")
        in_use = select(Deployment.id).where(
            Deployment.finished_at.is_(None), Deployment.artifact_name == entry.name
        )
        if session.scalar(in_use.limit(1)) is not None:
            raise Conflict("the artifact is used by an active deployment", hint="abort it first")
        for part in session.scalars(select(Part).where(Part.artifact_id == artifact_id)):
            part.artifact_id = None
        session.delete(entry)
    house.artifact_path(artifact_id).unlink(missing_ok=True)
    return Response(status_code=204)


# --- devices ---------------------------------------------------------------------------------------------


@router.get("/v2/devauth/devices")
def devices(request: Request, status: str = "") -> list[dict[str, Any]]:
    """Devices with their keys (auth sets)."""
    query = select(Device).options(selectinload(Device.keys)).order_by(Device.created_at)
    with house_of(request).db.read() as session:
        return [_device(entry) for entry in session.scalars(query) if not status or entry.status == status]


@router.put("/v2/devauth/devices/{device_id}/auth/{key_id}/status", status_code=204)
def decide_key(request: Request, device_id: str, key_id: str, body: KeyBody) -> Response:
    """Accept or reject a key."""
    with house_of(request).db.write(who_of(request)) as session:
        key = auth.decide(session, key_id, body.status)
        if key.device_id != device_id:
            raise NotFound("the device has no such key")
    return Response(status_code=204)


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


def _device(entry: Device) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "id": entry.id,
        "identity_data": entry.identity,
        "status": entry.status,
        "device_type": entry.device_type,
        "artifact_name": entry.artifact_name,
        "group": entry.group_name,
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
