# SPDX-License-Identifier: Apache-2.0
"""Pages about releases: upload, and what is in an artifact."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy import func, select
from starlette.concurrency import run_in_threadpool

from update_agent import scripts, states
from update_tools.server import render, uploads
from update_tools.server.db import Artifact
from update_tools.server.device_api import house_of
from update_tools.server.door import who_of
from update_tools.server.faults import BadRequest, Conflict, Refusal
from update_tools.server.pages import check_form_token, first, page, read_form, see

router = APIRouter(include_in_schema=False)

PER_PAGE = 20


@router.get("/releases")
def releases(request: Request, page_number: Annotated[int, Query(ge=1, le=1_000_000)] = 1) -> Response:
    """Uploaded artifacts and what is in them."""
    return _releases_page(request, page_number=page_number)


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


@router.post("/releases/{artifact_id}/delete")
async def delete(request: Request, artifact_id: str) -> Response:
    """Remove an artifact. The form must say that it is meant, because this cannot be taken back."""
    form = await read_form(request)
    try:
        if first(form, "sure") != "yes":
            raise BadRequest("tick that you are sure first")
        await run_in_threadpool(house_of(request).intake.remove, artifact_id, who_of(request))
    except (BadRequest, Conflict) as refusal:
        return await run_in_threadpool(_releases_page, request, str(refusal), refusal.status)
    return see("/releases")


def _releases_page(request: Request, problem: str = "", code: int = 200, page_number: int = 1) -> Response:
    with house_of(request).db.read() as session:
        total = session.scalar(select(func.count()).select_from(Artifact)) or 0
        query = select(Artifact).order_by(Artifact.created_at.desc(), Artifact.id)
        found = session.scalars(query.limit(PER_PAGE).offset((page_number - 1) * PER_PAGE)).all()
    return page(
        request,
        "releases.html",
        code=code,
        artifacts=[(entry, _by_state(entry.info["scripts"])) for entry in found],
        problem=problem,
        pager=render.Pager(page_number, PER_PAGE, total),
    )


def _by_state(names: list[str]) -> dict[str, list[str]]:
    """An artifact's scripts by state and action, in the order of an update."""
    found: dict[str, list[str]] = {}
    for name in sorted(names):
        state, action = scripts.parse_name(name) or ("", "")
        found.setdefault(f"{state} {action}", []).append(name)
    order = [f"{state.name} {action}" for state in states.STATES for action in states.ACTIONS]
    return {place: found[place] for place in order if place in found}
