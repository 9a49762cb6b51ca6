# SPDX-License-Identifier: Apache-2.0
"""The management API's JSON: the reference's fields, and ours beside them."""

from __future__ import annotations

from typing import Any

from update_tools.server import rollout, timeline
from update_tools.server.db import Artifact, Deployment, Part
from update_tools.server.device_views import DeviceRow
from update_tools.server.shapes import moment, moments
from update_tools.server.views import DeploymentDetail, DeploymentRow


def artifact(entry: Artifact) -> dict[str, Any]:
    """An artifact."""
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
        "modified": moment(entry.created_at),
    }


def deployment(row: DeploymentRow, entry: Deployment) -> dict[str, Any]:
    """A deployment; `status` is one of the reference's three words."""
    answer: dict[str, Any] = {
        "id": row.id,
        "name": row.name,
        "artifact_name": row.artifact_name,
        "status": rollout.overall(status for status, count in row.statistics.items() if count),
        "created": moment(row.created_at),
        "device_count": row.total,
        "max_devices": row.total,
        "initial_device_count": row.total,
        "force_installation": entry.force_installation,
        "retries": entry.retries,
        "statistics": {"status": dict(row.statistics)},
        "paused_at": list(row.paused_at),
        "created_by": row.created_by,
        "is_aborted": entry.is_aborted,
        "vanished": row.vanished,
        "type": "software",
    }
    control_map = rollout.hand_out_map(entry.control_map, entry.id)
    if control_map is not None:
        answer["update_control_map"] = control_map
    if entry.phases:
        answer["phases"] = [{"id": str(number), **phase} for number, phase in enumerate(entry.phases, 1)]
    if entry.rules:
        answer["rules"] = entry.rules
    targets = entry.targets or {}
    if targets.get("group"):
        answer["groups"] = [targets["group"]]
    if targets.get("terms"):
        answer["filter"] = {"terms": targets["terms"]}
    if row.held_at is not None:
        answer["held"] = {"since": moment(row.held_at), "why": row.held_why}
    return answer | moments(finished=row.finished_at, start_at=row.start_at)


def overview(detail: DeploymentDetail) -> dict[str, Any]:
    """What the page shows of a deployment: counts by place, gates, phases, what happened (ours)."""
    return {
        "id": detail.row.id,
        "status": detail.row.status,
        "counts": dict(detail.row.counts),
        "bar": [
            {"phase": entry.name, "inside": entry.inside}
            | (
                {}
                if entry.gate is None
                else {
                    "gate": {
                        "point": entry.gate.point,
                        "action": entry.gate.action,
                        "waiting": entry.gate.waiting,
                        "reached": entry.gate.reached,
                        "rule": entry.gate.rule,
                        "state": entry.gate.state,
                        "missing": entry.gate.missing,
                    }
                }
            )
            for entry in detail.bar
        ],
        "phases": [
            {
                "number": phase.number,
                "device_count": phase.device_count,
                "has_begun": phase.has_begun,
                "counts": dict(phase.counts),
            }
            | moments(start_ts=phase.start_at)
            for phase in detail.phases
        ],
        "hold_rule": detail.hold_rule,
        "abort_rule": detail.abort_rule,
        "events": [line(entry) for entry in detail.events],
    }


def device(row: DeviceRow, part: Part | None = None) -> dict[str, Any]:
    """A device in a deployment."""
    answer: dict[str, Any] = {
        "id": row.device_id,
        "status": row.status,
        "state": row.status,
        "substate": row.reason,
        "changed": moment(row.changed_at),
        "device_type": row.device_type,
        "log": row.has_log,
        "phase": row.phase,
        "attempt": row.attempt,
        "attempts": row.attempts,
        "artifact_name": row.runs,
    }
    if row.done_bytes is not None or row.script:
        answer["progress"] = {
            "done_bytes": row.done_bytes,
            "size_bytes": row.size_bytes,
            "script": row.script,
        }
    if row.waits_at:
        answer["pause"] = {
            "point": row.waits_at,
            "action": row.decision,
            "is_taken": row.is_decision_taken,
        }
    if part is not None:
        answer["created"] = moment(part.created_at)
        if part.artifact is not None:
            answer["image"] = artifact(part.artifact)
    return answer | moments(
        started=row.started_at,
        finished=row.finished_at,
        due=row.due_at,
        last_seen=row.seen_at,
        vanished_since=row.vanished_at,
    )


def line(entry: timeline.Entry) -> dict[str, Any]:
    """A line of a timeline."""
    answer: dict[str, Any] = {
        "at": moment(entry.at),
        "kind": entry.kind,
        "word": entry.word,
        "text": entry.text,
        "attempt": entry.attempt,
    }
    if entry.actor:
        answer["actor"] = entry.actor
    if entry.seconds is not None:
        answer["seconds"] = round(entry.seconds, 3)
    return answer


def script(run: timeline.ScriptRun) -> dict[str, Any]:
    """One run of a state script."""
    return {
        "name": run.name,
        "state": run.state,
        "action": run.action,
        "result": run.result,
        "exit_code": run.exit_code,
        "seconds": run.seconds,
        "attempt": run.attempt,
        "is_ok": run.is_ok,
    } | moments(ended=run.ended_at)
