# SPDX-License-Identifier: Apache-2.0
"""Pages about devices: who asks to be let in, what they run, what they say about themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from update_tools.server import audit, auth, device_views, fleet_views, render
from update_tools.server.device_api import house_of
from update_tools.server.door import who_of
from update_tools.server.faults import BadRequest
from update_tools.server.pages import first, page, read_form, see

router = APIRouter(include_in_schema=False)

PER_PAGE = 50
STATUSES = ("pending", "accepted", "rejected", "preauthorized")

Page = Annotated[int, Query(ge=1, le=1_000_000)]
Text = Annotated[str, Query(max_length=256)]


@router.get("/devices")
def devices(
    request: Request, status: Text = "", group: Text = "", q: Text = "", page_number: Page = 1
) -> Response:
    """All devices: those that wait to be accepted first."""
    keep = {"status": status, "group": group, "q": q}
    with house_of(request).db.read() as session:
        found = fleet_views.known_devices(
            session, status=status, group=group, search=q, page=page_number, per_page=PER_PAGE
        )
        return page(
            request,
            "devices.html",
            devices=found.rows,
            counts=found.counts,
            groups=found.groups,
            status=status,
            statuses=STATUSES,
            group=group,
            q=q,
            pager=render.Pager(page_number, PER_PAGE, found.total, keep),
            topics=["devices"],
        )


@router.get("/devices/{device_id}")
def device(request: Request, device_id: str) -> Response:
    """One device: keys, inventory, group, the deployments it was part of."""
    with house_of(request).db.read() as session:
        entry = auth.get_device(session, device_id)
        return page(
            request,
            "device.html",
            device=entry,
            history=device_views.device_history(session, device_id, per_page=50),
            groups=fleet_views.groups(session),
            topics=[f"device:{device_id}"],
        )


@router.post("/devices/keys/{key_id}")
async def decide_key(request: Request, key_id: str) -> Response:
    """Accept or reject a device's key."""
    form = await read_form(request)

    def work() -> str:
        with house_of(request).db.write(who_of(request)) as session:
            return auth.decide(session, key_id, first(form, "status")).device_id

    device_id = await run_in_threadpool(work)
    return see(f"/devices/{device_id}" if first(form, "back") else "/devices")


@router.post("/devices/decide")
async def decide(request: Request) -> Response:
    """Accept or reject the newest keys of the ticked devices that wait."""
    form = await read_form(request)
    status = first(form, "status")
    if status not in ("accepted", "rejected"):
        raise BadRequest("the form asks for neither accept nor reject")

    def work() -> None:
        with house_of(request).db.write(who_of(request)) as session:
            for device_id in form.get("device", []):
                waiting = [key for key in auth.get_device(session, device_id).keys if key.status == "pending"]
                if waiting:
                    auth.decide(session, waiting[-1].id, status)

    await run_in_threadpool(work)
    return see("/devices")


@router.post("/devices/{device_id}/group")
async def set_group(request: Request, device_id: str) -> Response:
    """Put a device into a group, or into none."""
    form = await read_form(request)
    name = first(form, "group").strip()
    if len(name) > 256 or not name.isprintable():
        raise BadRequest("a group's name has at most 256 printable characters")

    def work(session: Session) -> None:
        entry = auth.get_device(session, device_id)
        if entry.group_name != name:
            entry.group_name = name
            audit.record(session, "group", "device", device_id, name)

    await _change(request, work)
    return see(f"/devices/{device_id}")


@router.post("/devices/{device_id}/decommission")
async def decommission(request: Request, device_id: str) -> Response:
    """Let a device go. The form must name it, because this cannot be taken back."""
    form = await read_form(request)
    if first(form, "sure") != "yes":
        raise BadRequest("tick that you are sure first")

    def work(session: Session) -> None:
        auth.decommission(session, device_id)

    await _change(request, work)
    return see("/devices")


async def _change(request: Request, work: Callable[[Session], None]) -> None:
    def run() -> None:
        with house_of(request).db.write(who_of(request)) as session:
            work(session)

    await run_in_threadpool(run)
