# SPDX-License-Identifier: Apache-2.0
"""Pages about deployments: the list, one deployment with its decisions, one device in it with its log."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from update_tools.server import deployments, device_views, fleet_views, render, rollout, views
from update_tools.server.device_api import house_of
from update_tools.server.door import who_of
from update_tools.server.faults import BadRequest, Refusal
from update_tools.server.pages import first, page, read_form, see

router = APIRouter(include_in_schema=False)

PER_PAGE = 25
DEVICES_PER_PAGE = 50
LINES_PER_PAGE = 1000
ACTIONS = ("continue", "fail", "abort")
LEVELS = ("error", "warning", "info")

Page = Annotated[int, Query(ge=1, le=1_000_000)]
Text = Annotated[str, Query(max_length=256)]


@router.get("/")
def index(request: Request, status: Text = "", q: Text = "", page_number: Page = 1) -> Response:
    """All deployments; what waits for a person is named first."""
    with house_of(request).db.read() as session:
        rows, total = views.deployment_rows(
            session, status=status, search=q, page=page_number, per_page=PER_PAGE
        )
        waiting = fleet_views.waiting(session)
        pending = fleet_views.pending_devices(session)
        return page(
            request,
            "index.html",
            rows=rows,
            waiting=waiting,
            pending=pending,
            status=status,
            q=q,
            pager=render.Pager(page_number, PER_PAGE, total, {"status": status, "q": q}),
            topics=["deployments", "devices"],
        )


@router.get("/deployments/{deployment_id}")
def deployment(
    request: Request, deployment_id: str, place: Text = "", q: Text = "", page_number: Page = 1
) -> Response:
    """One deployment: where it waits and what to do at the top, then every device."""
    return _deployment_page(request, deployment_id, place, q, page_number)


@router.post("/deployments/{deployment_id}/control")
async def control(request: Request, deployment_id: str) -> Response:
    """Continue, roll back or abort: for all devices, the ticked ones, or (`one`) a single one."""
    form = await read_form(request)
    action, point = first(form, "action"), first(form, "point")
    devices = form.get("device") if first(form, "whom") == "ticked" else None
    if "one" in form:
        action, _, device_id = first(form, "one").partition(" ")
        devices = [device_id]
    elif first(form, "whom") == "ticked" and not devices:
        return await run_in_threadpool(
            _deployment_page, request, deployment_id, problem="Tick the devices this is for first.", code=422
        )
    if action not in ACTIONS:
        raise BadRequest("the form asks for none of continue, roll back, abort")

    def work() -> Response:
        try:
            with house_of(request).db.write(who_of(request)) as session:
                deployments.decide(session, deployment_id, action, point or None, devices)
        except Refusal as refusal:
            if refusal.status == 404:
                raise
            return _deployment_page(
                request, deployment_id, problem=f"Nothing was changed: {refusal}.", code=refusal.status
            )
        return see(_back(request, deployment_id, first(form, "back")))

    return await run_in_threadpool(work)


@router.post("/deployments/{deployment_id}/hold")
async def hold(request: Request, deployment_id: str) -> Response:
    """Hand it out to nobody new, or go on with that."""
    form = await read_form(request)

    def work() -> Response:
        try:
            with house_of(request).db.write(who_of(request)) as session:
                if first(form, "do") == "resume":
                    deployments.resume(session, deployment_id)
                else:
                    deployments.hold(session, deployment_id, first(form, "why")[:500])
        except Refusal as refusal:
            if refusal.status == 404:
                raise
            return _deployment_page(
                request, deployment_id, problem=f"Nothing was changed: {refusal}.", code=refusal.status
            )
        return see(f"/deployments/{deployment_id}")

    return await run_in_threadpool(work)


@router.get("/deployments/{deployment_id}/abort")
def ask_abort(request: Request, deployment_id: str) -> Response:
    """Abort cannot be taken back, so it is asked for twice."""
    with house_of(request).db.read() as session:
        detail = views.deployment_detail(session, deployment_id)
    return page(request, "abort.html", row=detail.row)


@router.post("/deployments/{deployment_id}/abort")
async def abort(request: Request, deployment_id: str) -> Response:
    """Abort."""
    await read_form(request)

    def work() -> None:
        with house_of(request).db.write(who_of(request)) as session:
            deployments.abort(session, deployment_id)

    await run_in_threadpool(work)
    return see(f"/deployments/{deployment_id}")


@router.get("/deployments/{deployment_id}/devices/{device_id}")
def device_in_deployment(
    request: Request,
    deployment_id: str,
    device_id: str,
    q: Text = "",
    level: Text = "",
    page_number: Page = 1,
) -> Response:
    """One device in a deployment: states with times, scripts with exit code and seconds, its log."""
    with house_of(request).db.read() as session:
        detail = device_views.device_detail(session, deployment_id, device_id)
        log = device_views.device_log(
            session,
            deployment_id,
            device_id,
            search=q,
            level=level if level in LEVELS else "",
            page=page_number,
            per_page=LINES_PER_PAGE,
        )
    keep = {"q": q, "level": level}
    topics = [] if detail.row.finished_at else [f"deployment:{deployment_id}"]
    return page(
        request,
        "device_in_deployment.html",
        detail=detail,
        row=detail.row,
        log=log,
        q=q,
        level=level,
        levels=LEVELS,
        pager=render.Pager(page_number, LINES_PER_PAGE, log.matches if log else 0, keep, anchor="log"),
        topics=topics,
    )


def _deployment_page(
    request: Request,
    deployment_id: str,
    place: str = "",
    q: str = "",
    page_number: int = 1,
    *,
    problem: str = "",
    code: int = 200,
) -> Response:
    known = (*views.PLACES, "vanished")
    with house_of(request).db.read() as session:
        detail = views.deployment_detail(session, deployment_id)
        devices = device_views.device_rows(
            session,
            deployment_id,
            place=place if place in known else "",
            search=q,
            page=page_number,
            per_page=DEVICES_PER_PAGE,
        )
    return page(
        request,
        "deployment.html",
        code=code,
        detail=detail,
        row=detail.row,
        waiting=[
            entry.gate for entry in detail.bar if entry.gate and entry.gate.waiting and detail.row.is_active
        ],
        devices=devices,
        place=place,
        q=q,
        problem=problem,
        pager=render.Pager(page_number, DEVICES_PER_PAGE, devices.total, {"place": place, "q": q}, "devices"),
        labels=rollout.BY_NAME,
        topics=[f"deployment:{deployment_id}"] if detail.row.is_active else [],
    )


def _back(request: Request, deployment_id: str, device_id: str) -> str:
    """The page a decision was made on: the deployment's, or that of one device in it."""
    path = f"/deployments/{deployment_id}"
    return f"{path}/devices/{device_id}" if device_id and device_id.replace("-", "").isalnum() else path
