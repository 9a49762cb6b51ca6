# SPDX-License-Identifier: Apache-2.0
"""The pages: plain HTML forms over the same services as the APIs; everything works without JavaScript."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request, Response
from sqlalchemy import select
from sqlalchemy.orm import Session, selectinload
from starlette.concurrency import run_in_threadpool

from update_tools.server import auth, render, rollout, services, uploads
from update_tools.server.db import Artifact, Deployment, Device, Event, Part
from update_tools.server.device_api import house_of
from update_tools.server.door import who_of
from update_tools.server.faults import BadRequest, Refusal
from update_tools.server.management import counts
from update_tools.server.pages import check_form_token, first, page, read_form, see

router = APIRouter(include_in_schema=False)

REFRESH_S = 3
SHOWN_DEPLOYMENTS = 100
SHOWN_DEVICES = 500
PHASES = ("Download", *(point.phase for point in rollout.POINTS))


# --- pages -----------------------------------------------------------------------------------------------


@router.get("/")
def index(request: Request) -> Response:
    """All deployments; what waits for a person comes first."""
    with house_of(request).db.read() as session:
        query = select(Deployment).order_by(Deployment.created_at.desc()).limit(SHOWN_DEPLOYMENTS)
        rows = [_summary(session, entry) for entry in session.scalars(query)]
        pending = _pending_keys(session)
    rows.sort(key=lambda row: (not row["waiting"], row["status"] == "finished"))
    is_active = any(row["status"] != "finished" for row in rows)
    return page(request, "index.html", rows=rows, pending=pending, refresh=REFRESH_S if is_active else 0)


@router.get("/deployments/new")
def new_deployment(request: Request) -> Response:
    """The form for a deployment."""
    return _new_page(request, {}, "", 200)


@router.post("/deployments")
async def create(request: Request) -> Response:
    """Create a deployment from the form; on a refusal the form comes back with the reason."""
    form = await read_form(request)

    def work() -> Response:
        wanted = services.NewDeployment(
            name=first(form, "name").strip() or first(form, "artifact_name"),
            artifact_name=first(form, "artifact_name"),
            devices=None if first(form, "who") == "all" else form.get("device", []),
            force_installation="force" in form,
            control_map=rollout.pause_map(form.get("pause", [])),
        )
        try:
            with house_of(request).db.write(who_of(request)) as session:
                deployment_id = services.create_deployment(session, wanted).id
        except Refusal as refusal:
            return _new_page(request, form, str(refusal), refusal.status)
        return see(f"/deployments/{deployment_id}")

    return await run_in_threadpool(work)


@router.get("/deployments/{deployment_id}")
def deployment(request: Request, deployment_id: str) -> Response:
    """One deployment: where it waits and the two buttons at the top, then every device."""
    with house_of(request).db.read() as session:
        entry = services.get_deployment(session, deployment_id)
        summary = _summary(session, entry)
        parts = session.scalars(
            select(Part)
            .where(Part.deployment_id == deployment_id)
            .options(selectinload(Part.device))
            .order_by(Part.changed_at.desc())
            .limit(SHOWN_DEVICES)
        ).all()
        committing = _rebooted(session, deployment_id)
        return page(
            request,
            "deployment.html",
            entry=entry,
            summary=summary,
            parts=[(part, _shown_status(part.status, part.device_id in committing)) for part in parts],
            bar=_bar(session, entry, summary["counts"], committing),
            events=services.events(session, deployment_id),
            refresh=0 if entry.finished_at else REFRESH_S,
        )


@router.post("/deployments/{deployment_id}/control")
async def control(request: Request, deployment_id: str) -> Response:
    """The Continue and Roll back buttons."""
    form = await read_form(request)
    action = first(form, "action")
    if action not in ("continue", "fail"):
        raise BadRequest("the form asks for neither continue nor roll back")

    def work() -> None:
        with house_of(request).db.write(who_of(request)) as session:
            services.decide(session, deployment_id, action, first(form, "point"))

    await run_in_threadpool(work)
    return see(f"/deployments/{deployment_id}")


@router.get("/deployments/{deployment_id}/abort")
def ask_abort(request: Request, deployment_id: str) -> Response:
    """Abort cannot be taken back, so it is asked for twice."""
    with house_of(request).db.read() as session:
        entry = services.get_deployment(session, deployment_id)
        summary = _summary(session, entry)
    return page(request, "abort.html", entry=entry, summary=summary)


@router.post("/deployments/{deployment_id}/abort")
async def abort(request: Request, deployment_id: str) -> Response:
    """Abort."""
    await read_form(request)

    def work() -> None:
        with house_of(request).db.write(who_of(request)) as session:
            services.abort(session, deployment_id)

    await run_in_threadpool(work)
    return see(f"/deployments/{deployment_id}")


@router.get("/deployments/{deployment_id}/devices/{device_id}")
def device_in_deployment(request: Request, deployment_id: str, device_id: str, q: str = "") -> Response:
    """One device in a deployment: what it reported and when, and its log."""
    with house_of(request).db.read() as session:
        part = services.part_of(session, deployment_id, device_id)
        lines = None if part.log is None else render.log_lines(part.log, q)
        is_committing = device_id in _rebooted(session, deployment_id)
        return page(
            request,
            "device_log.html",
            part=part,
            device=part.device,
            entry=part.deployment,
            shown=_shown_status(part.status, is_committing),
            timeline=render.timeline(services.events(session, deployment_id, device_id)),
            lines=lines,
            total=len(part.log or ()),
            q=q,
            refresh=0 if part.finished_at or q else REFRESH_S,
        )


@router.get("/devices")
def devices(request: Request) -> Response:
    """All devices: accept, reject, what they run, what they say about themselves."""
    with house_of(request).db.read() as session:
        query = select(Device).options(selectinload(Device.keys)).order_by(Device.created_at.desc())
        found = sorted(session.scalars(query), key=lambda device: device.status != "pending")
        return page(request, "devices.html", devices=found)


@router.post("/devices/keys/{key_id}")
async def decide_key(request: Request, key_id: str) -> Response:
    """Accept or reject a device's key."""
    form = await read_form(request)

    def work() -> None:
        with house_of(request).db.write(who_of(request)) as session:
            auth.decide(session, key_id, first(form, "status"))

    await run_in_threadpool(work)
    return see("/devices")


@router.get("/releases")
def releases(request: Request) -> Response:
    """Uploaded artifacts and what is in them."""
    return _releases_page(request, "", 200)


@router.post("/releases")
async def upload(request: Request) -> Response:
    """Upload an artifact from the form."""

    def check(form: uploads.Form) -> None:
        check_form_token(request, form.fields.get("token", ""))
        if form.file_bytes == 0:
            raise BadRequest("choose a .mender file first")

    try:
        artifact = await uploads.receive(request, house_of(request), check)
    except Refusal as refusal:
        return await run_in_threadpool(_releases_page, request, str(refusal), refusal.status)
    return see(f"/releases#{artifact.id}")


# --- rendering -------------------------------------------------------------------------------------------


def _new_page(request: Request, form: Mapping[str, list[str]], problem: str, code: int) -> Response:
    with house_of(request).db.read() as session:
        names = session.scalars(
            select(Artifact.name).group_by(Artifact.name).order_by(Artifact.created_at.desc())
        ).all()
        found = session.scalars(select(Device).options(selectinload(Device.keys))).all()
    accepted = [device for device in found if device.status == "accepted"]
    return page(
        request,
        "new.html",
        code=code,
        names=names,
        devices=accepted,
        problem=problem,
        form=form,
        points=rollout.POINTS,
    )


def _releases_page(request: Request, problem: str, code: int) -> Response:
    with house_of(request).db.read() as session:
        found = session.scalars(select(Artifact).order_by(Artifact.created_at.desc())).all()
    return page(request, "releases.html", code=code, artifacts=found, problem=problem)


def _pending_keys(session: Session) -> int:
    found = session.scalars(select(Device).options(selectinload(Device.keys)))
    return sum(device.status == "pending" for device in found)


def _summary(session: Session, entry: Deployment) -> dict[str, Any]:
    numbers = counts(session, entry.id)
    present = [status for status, count in numbers.items() if count]
    waiting = [
        {
            "point": point,
            "count": numbers[point.status],
            "action": rollout.action_at(entry.control_map, point.name),
        }
        for point in rollout.waiting_points(present)
    ]
    return {
        "entry": entry,
        "counts": {status: count for status, count in numbers.items() if count},
        "total": sum(numbers.values()),
        "status": "aborted" if entry.is_aborted else rollout.overall(present),
        "waiting": waiting if entry.finished_at is None else [],
        "failed": sum(numbers[status] for status in rollout.FAILED),
    }


def _rebooted(session: Session, deployment_id: str) -> set[str]:
    """Devices that rebooted here: their next "installing" is the commit (device-api.md section 4)."""
    words = ("rebooting", rollout.BY_NAME["ArtifactCommit_Enter"].status)
    query = select(Event.device_id).where(Event.deployment_id == deployment_id, Event.word.in_(words))
    return {device_id for device_id in session.scalars(query) if device_id is not None}


def _shown_status(status: str, has_rebooted: bool) -> str:
    return "committing" if status == "installing" and has_rebooted else rollout.label(status)


def _bar(
    session: Session, entry: Deployment, numbers: Mapping[str, int], rebooted: set[str]
) -> list[dict[str, Any]]:
    """The phases in order: how many devices are in each, and what stands before it."""
    query = select(Part.device_id).where(Part.deployment_id == entry.id, Part.status == "installing")
    committing = sum(device_id in rebooted for device_id in session.scalars(query)) if rebooted else 0
    inside = {
        "Download": numbers.get("downloading", 0),
        "Install": numbers.get("installing", 0) - committing,
        "Reboot": numbers.get("rebooting", 0),
        "Commit": committing,
    }
    bar: list[dict[str, Any]] = [{"phase": "Download", "inside": inside["Download"], "gate": None}]
    for point in rollout.POINTS:
        gate = {
            "action": rollout.action_at(entry.control_map, point.name),
            "is_set": point.name in (entry.control_map or {}).get("states", {}),
            "waiting": numbers.get(point.status, 0),
            "label": point.label,
        }
        bar.append({"phase": point.phase, "inside": inside[point.phase], "gate": gate})
    return bar
