# SPDX-License-Identifier: Apache-2.0
"""The JSON API for people's programs: the reference's management endpoints, where they exist.

Beyond the reference: POST .../deployments/{id}/control sets single points in one step, which a GET and a
PATCH of the whole map cannot when two people decide at once.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import func, select
from sqlalchemy.orm import Session, selectinload

from update_tools.server import auth, rollout, services, uploads
from update_tools.server.db import Artifact, Deployment, Device, Part
from update_tools.server.device_api import house_of
from update_tools.server.faults import Conflict, NotFound

router = APIRouter(prefix="/api/management", tags=["management"])
DEPLOYMENTS = "/v1/deployments/deployments"
ARTIFACTS = "/v1/deployments/artifacts"

Page = Annotated[int, Query(ge=1, le=1_000_000)]
PerPage = Annotated[int, Query(ge=1, le=500)]
Word = Annotated[str, Field(min_length=1, max_length=256)]


class Strict(BaseModel):
    """A body whose unknown fields are refused by name instead of being ignored."""

    model_config = ConfigDict(extra="forbid")


class DeploymentBody(Strict):
    """Create a deployment."""

    name: Word
    artifact_name: Word
    devices: list[str] | None = Field(default=None, max_length=100_000)
    all_devices: bool = False
    force_installation: bool = False
    update_control_map: dict[str, Any] | None = None


class MapBody(Strict):
    """Replace a deployment's control map."""

    update_control_map: dict[str, Any]


class ControlBody(Strict):
    """Decide at a point, or at all points where devices wait."""

    action: Literal["continue", "fail", "pause"]
    point: str | None = None


class AbortBody(Strict):
    """Abort."""

    status: Literal["aborted"]


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
        return [_artifact(entry) for entry in session.scalars(query) if not name or entry.name == name]


@router.get(ARTIFACTS + "/{artifact_id}")
def artifact(request: Request, artifact_id: str) -> dict[str, Any]:
    """One artifact."""
    with house_of(request).db.read() as session:
        entry = session.get(Artifact, artifact_id)
        if entry is None:
            raise NotFound("there is no such artifact")
        return _artifact(entry)


@router.delete(ARTIFACTS + "/{artifact_id}", status_code=204)
def delete_artifact(request: Request, artifact_id: str) -> Response:
    """Remove an artifact. 409 while a deployment that is not over needs it."""
    house = house_of(request)
    with house.db.write() as session:
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


# --- deployments -----------------------------------------------------------------------------------------


@router.post(DEPLOYMENTS, status_code=201)
def create(request: Request, body: DeploymentBody) -> Response:
    """Create a deployment for `devices` or for `all_devices`."""
    wanted = services.NewDeployment(
        name=body.name,
        artifact_name=body.artifact_name,
        devices=None if body.all_devices else body.devices or [],
        force_installation=body.force_installation,
        control_map=body.update_control_map,
    )
    with house_of(request).db.write() as session:
        deployment = services.create_deployment(session, wanted)
        location = f"/api/management{DEPLOYMENTS}/{deployment.id}"
    return Response(status_code=201, headers={"Location": location})


@router.get(DEPLOYMENTS)
def deployments(request: Request, page: Page = 1, per_page: PerPage = 20) -> list[dict[str, Any]]:
    """Deployments, newest first."""
    query = select(Deployment).order_by(Deployment.created_at.desc()).limit(per_page)
    with house_of(request).db.read() as session:
        found = session.scalars(query.offset((page - 1) * per_page)).all()
        return [_deployment(session, entry) for entry in found]


@router.get(DEPLOYMENTS + "/{deployment_id}")
def deployment(request: Request, deployment_id: str) -> dict[str, Any]:
    """One deployment with its control map."""
    with house_of(request).db.read() as session:
        return _deployment(session, services.get_deployment(session, deployment_id))


@router.patch(DEPLOYMENTS + "/{deployment_id}", status_code=204)
def patch(request: Request, deployment_id: str, body: MapBody) -> Response:
    """Replace the control map."""
    with house_of(request).db.write() as session:
        services.replace_map(session, deployment_id, body.update_control_map)
    return Response(status_code=204)


@router.post(DEPLOYMENTS + "/{deployment_id}/control")
def control(request: Request, deployment_id: str, body: ControlBody) -> dict[str, list[str]]:
    """Continue, roll back (fail) or pause at a point, or where devices wait now (409 if none does)."""
    with house_of(request).db.write() as session:
        return {"points": services.decide(session, deployment_id, body.action, body.point)}


@router.put(DEPLOYMENTS + "/{deployment_id}/status", status_code=204)
def abort(request: Request, deployment_id: str, body: AbortBody) -> Response:
    """Abort. 422 when it is already finished."""
    with house_of(request).db.write() as session:
        services.abort(session, deployment_id)
    return Response(status_code=204)


@router.get(DEPLOYMENTS + "/{deployment_id}/statistics")
def statistics(request: Request, deployment_id: str) -> dict[str, int]:
    """How many devices have each status."""
    with house_of(request).db.read() as session:
        services.get_deployment(session, deployment_id)
        return counts(session, deployment_id)


@router.get(DEPLOYMENTS + "/{deployment_id}/devices/list")
@router.get(DEPLOYMENTS + "/{deployment_id}/devices")
def deployment_devices(
    request: Request, deployment_id: str, status: str = "", page: Page = 1, per_page: PerPage = 20
) -> list[dict[str, Any]]:
    """Where each device is; `status` is one status, or pause, active, finished."""
    query = (
        select(Part)
        .where(Part.deployment_id == deployment_id)
        .options(selectinload(Part.device), selectinload(Part.artifact))
        .order_by(Part.device_id)
    )
    if status:
        query = query.where(Part.status.in_(_status_group(status)))
    with house_of(request).db.read() as session:
        services.get_deployment(session, deployment_id)
        found = session.scalars(query.limit(per_page).offset((page - 1) * per_page))
        return [_part(part) for part in found]


@router.get(DEPLOYMENTS + "/{deployment_id}/devices/{device_id}/log", response_class=PlainTextResponse)
def device_log(request: Request, deployment_id: str, device_id: str) -> PlainTextResponse:
    """A device's deployment log as text. 404 while there is none."""
    with house_of(request).db.read() as session:
        part = services.part_of(session, deployment_id, device_id)
        if part.log is None:
            raise NotFound("the device has not uploaded a log")
        return PlainTextResponse("".join(f"{line}\n" for line in services.log_text(part.log)))


@router.get(DEPLOYMENTS + "/{deployment_id}/devices/{device_id}/events")
def device_events(request: Request, deployment_id: str, device_id: str) -> list[dict[str, str]]:
    """What happened to a device in a deployment, with times (ours; the reference keeps no history)."""
    with house_of(request).db.read() as session:
        services.part_of(session, deployment_id, device_id)
        return [
            {"at": _time(event.at), "source": event.source, "word": event.word, "text": event.text}
            for event in services.events(session, deployment_id, device_id)
        ]


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
    with house_of(request).db.write() as session:
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
        answer: dict[str, Any] = {"id": device.id, "attributes": attributes}
        return answer | _times(updated_ts=device.inventory_at)


# --- shapes ----------------------------------------------------------------------------------------------


def counts(session: Session, deployment_id: str) -> dict[str, int]:
    """Devices per status, counted by the database."""
    rows = session.execute(
        select(Part.status, func.count()).where(Part.deployment_id == deployment_id).group_by(Part.status)
    )
    return rollout.statistics(()) | {row[0]: row[1] for row in rows}


def _deployment(session: Session, entry: Deployment) -> dict[str, Any]:
    numbers = counts(session, entry.id)
    present = [status for status, count in numbers.items() if count]
    answer: dict[str, Any] = {
        "id": entry.id,
        "name": entry.name,
        "artifact_name": entry.artifact_name,
        "status": rollout.overall(present),
        "created": _time(entry.created_at),
        "device_count": sum(numbers.values()),
        "max_devices": sum(numbers.values()),
        "force_installation": entry.force_installation,
        "statistics": {"status": numbers},
        "paused_at": [point.name for point in rollout.waiting_points(present)],
    }
    control_map = rollout.hand_out_map(entry.control_map, entry.id)
    if control_map is not None:
        answer["update_control_map"] = control_map
    return answer | _times(finished=entry.finished_at)


def _part(part: Part) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "id": part.device_id,
        "status": part.status,
        "substate": part.substate,
        "created": _time(part.created_at),
        "changed": _time(part.changed_at),
        "device_type": part.device.device_type,
        "log": part.log_at is not None,
    }
    if part.artifact is not None:
        answer["image"] = _artifact(part.artifact)
    return answer | _times(started=part.started_at, finished=part.finished_at)


def _artifact(entry: Artifact) -> dict[str, Any]:
    info = entry.info
    return {
        "id": entry.id,
        "name": entry.name,
        "description": entry.description,
        "device_types_compatible": entry.device_types,
        "info": {"format": "mender", "version": 3},
        "signed": entry.is_signed,
        "updates": [{"type_info": {"type": entry.payload_type}, "files": info["files"]}],
        "artifact_provides": {"artifact_name": entry.name, **info["provides"]},
        "artifact_depends": info["depends"],
        "clears_artifact_provides": info["clears_provides"] or [],
        "scripts": info["scripts"],
        "size": entry.size_bytes,
        "sha256": entry.sha256,
        "modified": _time(entry.created_at),
    }


def _device(entry: Device) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "id": entry.id,
        "identity_data": entry.identity,
        "status": entry.status,
        "device_type": entry.device_type,
        "artifact_name": entry.artifact_name,
        "created_ts": _time(entry.created_at),
        "auth_sets": [
            {
                "id": key.id,
                "pubkey": key.public_key,
                "kind": key.kind,
                "status": key.status,
                "ts": _time(key.created_at),
            }
            for key in entry.keys
        ],
    }
    return answer | _times(last_seen=entry.last_seen_at)


def _status_group(word: str) -> tuple[str, ...]:
    groups = {
        "pause": rollout.PAUSED,
        "active": ("pending", *rollout.RUNNING, *rollout.PAUSED),
        "finished": rollout.FINISHED,
    }
    return groups.get(word, (word,))


def _time(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _times(**moments: datetime | None) -> dict[str, str]:
    return {name: _time(moment) for name, moment in moments.items() if moment is not None}
