# SPDX-License-Identifier: Apache-2.0
"""Creating a deployment in steps: devices and release, schedule, update process, review.

The server keeps nothing between the steps: each page carries the other steps' fields along. So the way back
loses nothing, and it works without scripts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Request, Response
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from update_tools.server import deployments, fleet_views, gates, rollout, schedule, targets
from update_tools.server.db import Artifact, Device, now
from update_tools.server.device_api import house_of
from update_tools.server.door import who_of
from update_tools.server.faults import Refusal, Unprocessable
from update_tools.server.pages import first, page, read_form, see

router = APIRouter(include_in_schema=False)

STEPS = {"what": "Release and devices", "when": "Schedule", "process": "Update process", "review": "Review"}
GATE_FIELDS = ("ends", "share", "at", "window", "hours")
# The fields of each step; whatever else a form has is dropped.
FIELDS = {
    "what": ("artifact_name", "name", "who", "group", "device", "attribute", "operator", "value", "force"),
    "when": ("start", "start_at", "phase_percent", "phase_hours"),
    "process": (
        "pause",
        *(
            f"{name}_{point}"
            for point in rollout.BY_NAME
            for name in ("ends", "share", "at", "window", "hours")
        ),
        "retries",
        "hold_percent",
        "hold_at_least",
        "abort_count",
    ),
}
FILTER_ROWS = 3
PHASE_ROWS = 4
SHOWN_DEVICES = 500
OPERATORS = {"$eq": "is", "$ne": "is not", "$gte": "is at least", "$lt": "is below"}
ENDS = {
    "person": "a person continues",
    "all": "all devices wait there",
    "share": "a share of the devices waits there",
    "at": "a time has come",
    "window": "a maintenance window is open",
}

Form = Mapping[str, list[str]]


@router.get("/deployments/new")
def begin(request: Request, release: str = "", device: str = "") -> Response:
    """The first step, with what a link from a release or a device has chosen already."""
    form: dict[str, list[str]] = {}
    if release:
        form["artifact_name"] = [release]
    if device:
        form.update(who=["some"], device=[device])
    return _step_page(request, "what", form)


@router.post("/deployments/new")
async def go(request: Request) -> Response:
    """Another step. The way on leads past the present one only when that is right."""
    form = await read_form(request)
    here, there = first(form, "step"), first(form, "go")
    order = list(STEPS)
    if here not in STEPS or there not in STEPS:
        here, there = "what", "what"

    def work() -> Response:
        if order.index(there) <= order.index(here):
            return _step_page(request, there, form)
        try:
            with house_of(request).db.read() as session:
                _check(session, here, form)
        except Refusal as refusal:
            return _step_page(request, here, form, str(refusal), refusal.status)
        return _step_page(request, there, form)

    return await run_in_threadpool(work)


@router.post("/deployments")
async def create(request: Request) -> Response:
    """Create it; on a refusal the review comes back with the reason."""
    form = await read_form(request)

    def work() -> Response:
        try:
            with house_of(request).db.write(who_of(request)) as session:
                deployment_id = deployments.create_deployment(session, wanted(form)).id
        except Refusal as refusal:
            return _step_page(request, "review", form, str(refusal), refusal.status)
        return see(f"/deployments/{deployment_id}")

    return await run_in_threadpool(work)


# --- from the form to the deployment ---------------------------------------------------------------------


def wanted(form: Form) -> deployments.NewDeployment:
    """What the form asks for. Raises Unprocessable naming the field that is wrong."""
    who = first(form, "who")
    if who == "group" and not first(form, "group"):
        raise Unprocessable("choose a group")
    return deployments.NewDeployment(
        name=first(form, "name").strip() or first(form, "artifact_name"),
        artifact_name=first(form, "artifact_name"),
        devices=form.get("device", []) if who in ("some", "") else None,
        group=first(form, "group") if who == "group" else "",
        terms=terms(form) if who == "filter" else (),
        force_installation="force" in form,
        control_map=rollout.pause_map(form.get("pause", [])),
        start_at=_start(form),
        phases=phases(form),
        retries=int(_number(form, "retries", "the number of further attempts", 0, rollout.MAX_RETRIES) or 0),
        rules=rules(form),
    )


def terms(form: Form) -> Sequence[targets.Term]:
    """The filter's rows that name an attribute."""
    rows = zip(*(form.get(name, []) for name in ("attribute", "operator", "value")), strict=False)
    chosen = [
        {"attribute": attribute.strip(), "type": operator, "value": value.strip()}
        for attribute, operator, value in rows
        if attribute.strip()
    ]
    if not chosen:
        raise Unprocessable("the filter names no attribute")
    return targets.parse(chosen)


def phases(form: Form) -> Sequence[schedule.Phase]:
    """The rows that have a share; what is left of the devices is the last phase."""
    rows: list[dict[str, float]] = []
    for number, (percent, hours) in enumerate(
        zip(form.get("phase_percent", []), form.get("phase_hours", []), strict=False), 1
    ):
        share = _value(percent, f"the share of phase {number}", 0.01, 100)
        delay = _value(hours, f"the delay of phase {number}", 0, schedule.MAX_DELAY_S / 3600)
        if share is None:
            if delay is not None:
                rows.append({"delay_s": int(delay * 3600)})
            continue
        rows.append({"batch_size": share, "delay_s": int((delay or 0) * 3600)})
    total = sum(row.get("batch_size", 0) for row in rows)
    if total > 100:
        raise Unprocessable(f"the phases add up to {total:g} %")
    if rows and total < 100 and "batch_size" in rows[-1]:
        rows.append({})
    return schedule.parse(rows)


def rules(form: Form) -> gates.Rules:
    """Gates for the ticked pauses, and limits for failures."""
    document: dict[str, Any] = {"gates": {}}
    for point in form.get("pause", []):
        gate = _gate(form, point)
        if gate:
            document["gates"][point] = gate
    percent = _number(form, "hold_percent", "the share of failures to hold at", 0, 100)
    if percent is not None:
        least = _number(form, "hold_at_least", "the least number of failures to hold at", 1, 10_000_000)
        document["hold"] = {"failed_percent": percent, "at_least": int(least or 1)}
    count = _number(form, "abort_count", "the number of failures to abort at", 1, 10_000_000)
    if count is not None:
        document["abort"] = {"failed_count": int(count)}
    return gates.parse(document)


def _gate(form: Form, point: str) -> dict[str, Any] | None:
    label = rollout.BY_NAME[point].label if point in rollout.BY_NAME else point
    match first(form, f"ends_{point}"):
        case "all":
            return {"quorum": "all"}
        case "share":
            share = _number(form, f"share_{point}", f"the share for {label}", 0.01, 100)
            if share is None:
                raise Unprocessable(f"{label}: give the share of devices in percent")
            return {"quorum": {"percent": share}}
        case "at":
            return {"not_before": _moment(first(form, f"at_{point}"), f"the time for {label}")}
        case "window":
            hours = _number(form, f"hours_{point}", f"the length of the window for {label}", 1 / 60, 24 * 7)
            if hours is None:
                raise Unprocessable(f"{label}: give the length of the window in hours")
            text = first(form, f"window_{point}").strip()
            return {"window": {"calendar": text, "lasting_s": int(hours * 3600)}}
    return None


def _start(form: Form) -> Any:
    if first(form, "start") != "at":
        return None
    return gates.parse_moment(_moment(first(form, "start_at"), "the start"), "the start")


def _moment(text: str, what: str) -> str:
    """A browser's local time field, which is UTC here (the form says so), as RFC 3339."""
    if not text:
        raise Unprocessable(f"{what}: give a date and a time")
    return f"{text}{':00' if text.count(':') == 1 else ''}+00:00"


def _number(form: Form, name: str, what: str, low: float, high: float) -> float | None:
    return _value(first(form, name), what, low, high)


def _value(text: str, what: str, low: float, high: float) -> float | None:
    if not text.strip():
        return None
    try:
        value = float(text)
    except ValueError as error:
        raise Unprocessable(f"{what}: {text!r:.40} is not a number") from error
    if not low <= value <= high:
        raise Unprocessable(f"{what} is {value:g}, must be from {low:g} to {high:g}")
    return value


# --- pages -----------------------------------------------------------------------------------------------


def _check(session: Session, step: str, form: Form) -> None:
    """Raise a Refusal when a step's own fields are wrong, so that it is seen where it can be mended."""
    whole = wanted({**form, **({} if step == "process" else {"pause": []})})
    if step == "what":
        if not session.scalar(select(Artifact.id).where(Artifact.name == whole.artifact_name).limit(1)):
            raise Unprocessable("choose a release")
        deployments.find_targets(session, whole)


def _step_page(request: Request, step: str, form: Form, problem: str = "", code: int = 200) -> Response:
    kept = {name: form.get(name, []) for names in FIELDS.values() for name in names}
    more: dict[str, Any] = {}
    with house_of(request).db.read() as session:
        if step == "what":
            found = session.scalars(
                select(Device)
                .where(Device.status == "accepted")
                .order_by(Device.created_at.desc())
                .limit(SHOWN_DEVICES)
            ).all()
            more = {
                "releases": fleet_views.releases(session),
                "groups": fleet_views.groups(session),
                "devices": found,
                "attributes": _attribute_names(found),
            }
        elif step == "review":
            try:
                more = _summary(session, form)
            except Refusal as refusal:
                more, problem, code = {"plan": None}, problem or str(refusal), refusal.status
    return page(
        request,
        f"new_{step}.html",
        code=code,
        step=step,
        steps=STEPS,
        form=kept,
        carried=[
            (name, value)
            for place, names in FIELDS.items()
            if place != step
            for name in names
            for value in kept[name]
        ],
        problem=problem,
        points=rollout.POINTS,
        operators=OPERATORS,
        ends=ENDS,
        filter_rows=FILTER_ROWS,
        phase_rows=PHASE_ROWS,
        **more,
    )


def _attribute_names(devices: Sequence[Device]) -> list[str]:
    """What the devices can be told apart by, for the filter's suggestions."""
    names = {str(entry["name"]) for device in devices for entry in device.inventory or []}
    return sorted(names | {"device_type", "artifact_name"})


def _summary(session: Session, form: Form) -> dict[str, Any]:
    """The deployment in words. Raises a Refusal when it cannot be made as it is."""
    plan = wanted(form)
    chosen = deployments.find_targets(session, plan)
    batches = schedule.plan(chosen, plan.phases, start_at=plan.start_at, now=now())
    pauses = form.get("pause", [])
    return {
        "plan": plan,
        "batches": batches,
        "device_count": len(chosen),
        "pauses": [
            (point, plan.rules.gates[point.name].describe() if point.name in plan.rules.gates else "")
            for point in rollout.POINTS
            if point.name in pauses
        ],
    }
