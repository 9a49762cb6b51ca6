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
    `by` the maps and `hooks` the pause hooks that hold it, `expires_in_s` when the first of them says
    something else by itself, `at_expiry` what that is.
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
        "hooks": [_hook(vote, now) for vote in holding_hooks(daemon)],
        "expires_in_s": None,
        "at_expiry": None,
        "next_check_in_s": None if wake is None else _seconds(wake.at, now),
        "next_check": None if wake is None else wake.then,
        "why": None if wake is None else wake.why,
    }
    first = first_end(daemon)
    if first is not None:
        document["expires_in_s"] = _seconds(first[0], now)
        document["at_expiry"] = first[1]
    return document


def first_end(daemon: Daemon) -> tuple[float, str] | None:
    """When the first of those who hold the update says something else by itself, and what.

    A map that expires, a hook whose limit passes or whose window opens; None if there is no such moment.
    """
    ends = []
    if daemon.pause is not None:
        point = daemon.paused_at
        ends += [(entry.expires_at, entry.map.states[point].on_map_expire) for entry in daemon.pause.by]
        ends += [hook_end(vote) for vote in holding_hooks(daemon)]
    return min((end for end in ends if end[0] < float("inf")), default=None)


def holding_hooks(daemon: Daemon) -> list[Vote]:
    """The pause hooks that hold the update."""
    return daemon.holds.by("pause") if daemon.holds and daemon.pause else []


def hook_end(vote: Vote) -> tuple[float, str]:
    """When a hook that holds says something else by itself, and what; infinite when it never does."""
    never = float("inf")
    limit = (never if vote.limit_at is None else vote.limit_at, vote.hook.at_limit)
    return min(limit, (never if vote.opens_at is None else vote.opens_at, "continue"))


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
