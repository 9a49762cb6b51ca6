# SPDX-License-Identifier: Apache-2.0
"""The management API of deployments: the reference's endpoints, and ours for what it does not have.

Ours: POST .../{id}/control decides at a point for all devices or some in one step, which a GET and a PATCH
of the whole map cannot when two people decide at once; .../hold, .../overview and .../timeline.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import select
from sqlalchemy.orm import Session, selectinload

from update_tools.server import (
    deployments,
    device_views,
    documents,
    gates,
    schedule,
    services,
    targets,
    views,
)
from update_tools.server.db import Part
from update_tools.server.device_api import house_of
from update_tools.server.door import who_of
from update_tools.server.faults import NotFound, Unprocessable
from update_tools.server.records import get_deployment, get_part
from update_tools.server.shapes import moment

router = APIRouter(tags=["management"])
V1 = "/v1/deployments/deployments"
V2 = "/v2/deployments/deployments"
MAX_DEVICES = 100_000

PageNumber = Annotated[int, Query(ge=1, le=1_000_000)]
PerPage = Annotated[int, Query(ge=1, le=500)]
Word = Annotated[str, Field(min_length=1, max_length=256)]
Status = Literal["", "pending", "inprogress", "finished"]
Stamp = Annotated[int, Query(ge=0, le=1 << 40)]


class Strict(BaseModel):
    """A body whose unknown fields are refused by name instead of being ignored."""

    model_config = ConfigDict(extra="forbid")


class GroupBody(Strict):
    """A deployment for a group, which the path names.

    `phases`: each `batch_size` (percent) or `device_count`, and `start_ts` or `delay_s` after the one before.
    `rules`: gates that end pauses, limits for failures (gates.py).
    """

    name: Word
    artifact_name: Word
    force_installation: bool = False
    update_control_map: dict[str, Any] | None = None
    retries: int = Field(default=0, ge=0, le=100)
    phases: list[dict[str, Any]] = Field(default_factory=list, max_length=schedule.MAX_PHASES)
    start_at: str | None = None
    rules: dict[str, Any] | None = None
    max_devices: int | None = Field(default=None, ge=0, le=MAX_DEVICES)
    autogenerate_delta: bool = False


class DeploymentBody(GroupBody):
    """A deployment for `devices` or for `all_devices`."""

    devices: list[str] | None = Field(default=None, max_length=MAX_DEVICES)
    all_devices: bool = False


class FilterBody(Strict):
    """Which devices, by their attributes."""

    terms: list[dict[str, Any]]


class FilteredBody(DeploymentBody):
    """A deployment for the devices that match a filter now."""

    filter: FilterBody | None = None


class MapBody(Strict):
    """Replace a deployment's control map."""

    update_control_map: dict[str, Any]


class ControlBody(Strict):
    """Decide at a point, or at all points where devices wait; for all devices, or only for `devices`."""

    action: Literal["continue", "fail", "pause", "abort"]
    point: str | None = None
    devices: list[str] | None = Field(default=None, max_length=MAX_DEVICES)


class AbortBody(Strict):
    """Abort."""

    status: Literal["aborted"]


class HoldBody(Strict):
    """Hand it out to nobody new, or go on."""

    is_held: bool
    why: str = Field(default="", max_length=500)


class IdsBody(Strict):
    """Deployments by id."""

    deployment_ids: list[str] = Field(max_length=500)


# --- create ----------------------------------------------------------------------------------------------


@router.post(V1, status_code=201)
def create(request: Request, body: DeploymentBody) -> Response:
    """Create a deployment for `devices` or for `all_devices`. 409 if an equal one is active."""
    return _create(request, body, devices=None if body.all_devices else body.devices or [])


@router.post(V1 + "/group/{name}", status_code=201)
def create_for_group(request: Request, name: str, body: GroupBody) -> Response:
    """Create a deployment for the devices that are in a group now."""
    return _create(request, body, group=name)


@router.post(V2, status_code=201)
def create_filtered(request: Request, body: FilteredBody) -> Response:
    """Create a deployment for the devices that match a filter now, at most `max_devices`."""
    if body.filter is None:
        return create(request, body)
    return _create(request, body, terms=targets.parse(body.filter.terms))


def _create(request: Request, body: GroupBody, **whom: Any) -> Response:
    if body.autogenerate_delta:
        raise Unprocessable("this server makes no deltas", hint="leave autogenerate_delta out")
    wanted = deployments.NewDeployment(
        name=body.name,
        artifact_name=body.artifact_name,
        force_installation=body.force_installation,
        control_map=body.update_control_map,
        retries=body.retries,
        phases=schedule.parse(body.phases),
        start_at=None if body.start_at is None else gates.parse_moment(body.start_at, "start_at"),
        rules=gates.parse(body.rules),
        max_devices=body.max_devices or None,
        **whom,
    )
    with house_of(request).db.write(who_of(request)) as session:
        entry = deployments.create_deployment(session, wanted)
        location = f"/api/management{V1}/{entry.id}"
    return Response(status_code=201, headers={"Location": location})


# --- look ------------------------------------------------------------------------------------------------


@router.get(V1)
@router.get(V2)
def list_deployments(
    request: Request,
    response: Response,
    status: Status = "",
    search: Annotated[str, Query(max_length=256)] = "",
    name: Annotated[str, Query(max_length=256)] = "",
    id: Annotated[list[str] | None, Query(max_length=100)] = None,  # noqa: A002  the reference's word
    created_before: Stamp | None = None,
    created_after: Stamp | None = None,
    sort: Literal["asc", "desc"] = "desc",
    page: PageNumber = 1,
    per_page: PerPage = 20,
) -> list[dict[str, Any]]:
    """Deployments, newest first; X-Total-Count says how many there are."""
    with house_of(request).db.read() as session:
        rows, total = views.deployment_rows(
            session,
            status=status,
            search=search or name.removesuffix("*"),
            ids=id,
            created_before=_stamp(created_before),
            created_after=_stamp(created_after),
            is_oldest_first=sort == "asc",
            page=page,
            per_page=per_page,
        )
        response.headers["x-total-count"] = str(total)
        return [documents.deployment(row, get_deployment(session, row.id)) for row in rows]


@router.post(V1 + "/statistics/list")
def statistics_list(request: Request, body: IdsBody) -> list[dict[str, Any]]:
    """How many devices have each status, for several deployments. 404 if one does not exist."""
    with house_of(request).db.read() as session:
        for deployment_id in body.deployment_ids:
            get_deployment(session, deployment_id)
        counted = views.statistics(session, body.deployment_ids)
        return [{"id": name, "stats": numbers} for name, numbers in counted.items()]


@router.get(V1 + "/devices/{device_id}")
def device_history(
    request: Request, device_id: str, status: str = "", page: PageNumber = 1, per_page: PerPage = 20
) -> list[dict[str, Any]]:
    """The deployments a device was part of, newest first."""
    with house_of(request).db.read() as session:
        found = device_views.device_history(session, device_id, status=status, page=page, per_page=per_page)
        return [
            {
                "id": f"{row.id}:{device_id}",
                "deployment": documents.deployment(row, get_deployment(session, row.id)),
                "device": documents.device(device),
            }
            for row, device in found
        ]


@router.delete(V1 + "/devices/{device_id}", status_code=204)
def abort_for_device(request: Request, device_id: str) -> Response:
    """Abort a device's part in all active deployments."""
    with house_of(request).db.write(who_of(request)) as session:
        deployments.abort_for_device(session, device_id)
    return Response(status_code=204)


@router.get(V1 + "/{deployment_id}")
def deployment(request: Request, deployment_id: str) -> dict[str, Any]:
    """One deployment with its control map."""
    with house_of(request).db.read() as session:
        entry = get_deployment(session, deployment_id)
        return documents.deployment(views.rows_of(session, [entry])[0], entry)


@router.get(V1 + "/{deployment_id}/overview")
def overview(request: Request, deployment_id: str) -> dict[str, Any]:
    """Counts by place, pauses with what will open them, phases, what happened."""
    with house_of(request).db.read() as session:
        return documents.overview(views.deployment_detail(session, deployment_id))


@router.get(V1 + "/{deployment_id}/statistics")
def statistics(request: Request, deployment_id: str) -> dict[str, int]:
    """How many devices have each status."""
    with house_of(request).db.read() as session:
        get_deployment(session, deployment_id)
        return views.statistics(session, [deployment_id])[deployment_id]


@router.get(V1 + "/{deployment_id}/devices/list")
@router.get(V1 + "/{deployment_id}/devices")
def deployment_devices(
    request: Request,
    response: Response,
    deployment_id: str,
    status: Annotated[str, Query(max_length=64)] = "",
    search: Annotated[str, Query(max_length=256)] = "",
    page: PageNumber = 1,
    per_page: PerPage = 20,
) -> list[dict[str, Any]]:
    """Where each device is; `status`: one status, pause, active, finished, committing, skipped, vanished."""
    with house_of(request).db.read() as session:
        found = device_views.device_rows(
            session,
            deployment_id,
            status="" if status in views.PLACES_ONLY else status,
            place=status if status in views.PLACES_ONLY else "",
            search=search,
            page=page,
            per_page=per_page,
            is_by_id=True,
        )
        response.headers["x-total-count"] = str(found.total)
        parts = _parts(session, deployment_id, [row.device_id for row in found.rows])
        return [documents.device(row, parts[row.device_id]) for row in found.rows]


@router.get(V1 + "/{deployment_id}/device_list")
def device_ids(request: Request, deployment_id: str) -> list[str]:
    """The ids of the deployment's devices."""
    with house_of(request).db.read() as session:
        get_deployment(session, deployment_id)
        query = select(Part.device_id).where(Part.deployment_id == deployment_id).order_by(Part.device_id)
        return list(session.scalars(query))


@router.get(V1 + "/{deployment_id}/devices/{device_id}/log", response_class=PlainTextResponse)
def device_log(request: Request, deployment_id: str, device_id: str) -> PlainTextResponse:
    """A device's deployment log as text. 404 while there is none."""
    with house_of(request).db.read() as session:
        get_deployment(session, deployment_id)
        part = get_part(session, deployment_id, device_id)
        if part.log is None:
            raise NotFound("the device has not uploaded a log")
        return PlainTextResponse("".join(f"{line}\n" for line in services.log_text(part.log)))


@router.get(V1 + "/{deployment_id}/devices/{device_id}/events")
def device_events(request: Request, deployment_id: str, device_id: str) -> list[dict[str, str]]:
    """What happened to a device in a deployment, as it was written down."""
    with house_of(request).db.read() as session:
        get_deployment(session, deployment_id)
        get_part(session, deployment_id, device_id)
        return [
            {
                "at": moment(event.at),
                "source": event.source,
                "word": event.word,
                "text": event.text,
                "actor": event.actor,
            }
            for event in views.events_of(session, deployment_id, device_id)
        ]


@router.get(V1 + "/{deployment_id}/devices/{device_id}/timeline")
def device_timeline(request: Request, deployment_id: str, device_id: str) -> dict[str, Any]:
    """States with their lengths, decisions, and state scripts with exit code and seconds."""
    with house_of(request).db.read() as session:
        detail = device_views.device_detail(session, deployment_id, device_id)
    return {
        "device": documents.device(detail.row),
        "timeline": [documents.line(entry) for entry in detail.entries],
        "scripts": [documents.script(run) for run in detail.scripts],
    }


# --- decide ----------------------------------------------------------------------------------------------


@router.patch(V1 + "/{deployment_id}", status_code=204)
def patch(request: Request, deployment_id: str, body: MapBody) -> Response:
    """Replace the control map, for all devices."""
    with house_of(request).db.write(who_of(request)) as session:
        deployments.replace_map(session, deployment_id, body.update_control_map)
    return Response(status_code=204)


@router.post(V1 + "/{deployment_id}/control")
def control(request: Request, deployment_id: str, body: ControlBody) -> dict[str, Any]:
    """Continue, roll back (fail) or pause at a point or where devices wait now (409 if none does); or abort.

    `devices` in the answer is how many it concerns, null for the whole deployment.
    """
    with house_of(request).db.write(who_of(request)) as session:
        decided = deployments.decide(session, deployment_id, body.action, body.point, body.devices)
    return {"points": decided.points, "devices": decided.devices}


@router.put(V1 + "/{deployment_id}/status", status_code=204)
def abort(request: Request, deployment_id: str, body: AbortBody) -> Response:
    """Abort. 422 when it is already finished."""
    with house_of(request).db.write(who_of(request)) as session:
        deployments.abort(session, deployment_id)
    return Response(status_code=204)


@router.put(V1 + "/{deployment_id}/hold", status_code=204)
def hold(request: Request, deployment_id: str, body: HoldBody) -> Response:
    """Hand it out to nobody new, or go on after a hold. 409 when that is so already."""
    with house_of(request).db.write(who_of(request)) as session:
        if body.is_held:
            deployments.hold(session, deployment_id, body.why)
        else:
            deployments.resume(session, deployment_id)
    return Response(status_code=204)


# --- inside ----------------------------------------------------------------------------------------------


def _parts(session: Session, deployment_id: str, device_ids: list[str]) -> dict[str, Part]:
    found = session.scalars(
        select(Part)
        .where(Part.deployment_id == deployment_id, Part.device_id.in_(device_ids))
        .options(selectinload(Part.artifact))
    )
    return {part.device_id: part for part in found}


def _stamp(seconds: int | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(min(seconds, 253402300799), UTC)
