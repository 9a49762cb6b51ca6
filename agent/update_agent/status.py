# SPDX-License-Identifier: Apache-2.0
"""What the daemon is doing, for programs: one document that D-Bus, control socket and command line show."""

from __future__ import annotations

import time

from update_agent.update import installed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from update_agent.daemon import Daemon
    from update_agent.hooks import Vote


def status(daemon: Daemon) -> dict[str, object]:
    """The situation now, ready for JSON. Times are seconds from now; absent things are None.

    `state` is a state as scripts know it. `pause` is there while the update waits at a control point:
    `by` the maps that hold it, `expires_in_s` when the first of them runs out, `at_expiry` what it then says,
    `hooks` the pause hooks that hold it.
    """
    now = time.monotonic()
    update = daemon.update
    return {
        "state": daemon.state,
        "deployment": {"id": update.id, "artifact_name": update.artifact_name} if update.id else None,
        "installed": installed(daemon.store)["artifact_name"],
        "download": _download(daemon),
        "pause": _pause(daemon, now),
        "error": daemon.update.cause,
        "next_poll_in_s": None if update.id else _seconds(daemon.poll_timer.due, now),
        "next_inventory_in_s": None if update.id else _seconds(daemon.inventory_timer.due, now),
    }


def _download(daemon: Daemon) -> dict[str, object] | None:
    if not daemon.size_bytes or not daemon.update.id:
        return None
    return {"done_bytes": daemon.done_bytes, "size_bytes": daemon.size_bytes}


def _pause(daemon: Daemon, now: float) -> dict[str, object] | None:
    if daemon.pause is None:
        return None
    wake = daemon.wake
    document: dict[str, object] = {
        "point": daemon.paused_at,
        "by": [daemon.decisions.describe(entry, now) for entry in daemon.pause.by],
        "hooks": [_hook(vote, now) for vote in daemon.holds.by("pause")] if daemon.holds else [],
        "expires_in_s": None,
        "at_expiry": None,
        "next_check_in_s": None if wake is None else _seconds(wake.at, now),
        "next_check": None if wake is None else wake.then,
        "why": None if wake is None else wake.why,
    }
    running_out = [entry for entry in daemon.pause.by if entry.expires_at < float("inf")]
    if running_out:
        first = min(running_out, key=lambda entry: entry.expires_at)
        document["expires_in_s"] = _seconds(first.expires_at, now)
        document["at_expiry"] = first.map.states[daemon.paused_at].on_map_expire
    return document


def _hook(vote: Vote, now: float) -> dict[str, object]:
    """A hook that holds: why, when its window opens, when its limit passes and what it says then."""
    return {
        "path": vote.hook.path,
        "why": vote.why,
        "opens_in_s": None if vote.opens_at is None else _seconds(vote.opens_at, now),
        "limit_in_s": None if vote.limit_at is None else _seconds(vote.limit_at, now),
        "at_limit": vote.hook.at_limit or None,
    }


def _seconds(at: float, now: float) -> int | None:
    return None if at == float("inf") else max(0, round(at - now))
