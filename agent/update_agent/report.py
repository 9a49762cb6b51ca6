# SPDX-License-Identifier: Apache-2.0
"""What commands of local control print: status on one screen, maps, and what a decision now does."""

from __future__ import annotations

import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_VOTES = {
    "continue": "has no opinion",
    "force_continue": "lets it go on",
    "pause": "pauses",
    "fail": "fails it",
}
_EXPIRY = {
    "fail": "the update fails",
    "continue": "it lets the update go on",
    "force_continue": "the update goes on",
}
_NEXT = {
    "refresh": "asks the server",
    "evaluate": "looks at the maps again",
    "hooks": "looks at the hooks again",
    "report": "tells the server that it waits",
}


def status_text(status: Any) -> str:
    """The status for a person: what happens, what it waits for, who asked, and what comes at expiry."""
    rows = [("Installed", status["installed"])]
    deployment, pause = status["deployment"], status["pause"]
    if deployment is None:
        rows.append(("Update", "none in progress"))
        rows.append(("Next", f"asks the server {_in(status['next_poll_in_s'])}"))
        return _table(rows)
    rows.append(("Update", f"{deployment['artifact_name'] or '(name not known yet)'}"))
    rows.append(("Deployment", deployment["id"]))
    rows.append(("State", status["state"]))
    download = status["download"]
    if download:
        percent = download["done_bytes"] * 100 // download["size_bytes"]
        rows.append(("Download", f"{download['done_bytes']} of {download['size_bytes']} bytes, {percent} %"))
    if status["error"]:
        rows.append(("Error", status["error"]))
    if pause:
        rows.append(("Paused at", pause["point"]))
        rows += [("Held by", _holder(entry, pause["point"])) for entry in pause["by"]]
        rows += [("Held by", _hook(entry)) for entry in pause["hooks"]]
        rows.append(("Until", _until(pause)))
        if pause["next_check_in_s"] is not None:
            rows.append(
                ("Next", f"{_NEXT[pause['next_check']]} {_in(pause['next_check_in_s'])} ({pause['why']})")
            )
    return _table(rows)


def maps_text(maps: Any) -> str:
    """The control maps, one block each."""
    blocks = []
    for entry in maps:
        left = entry["expires_in_s"]
        until = "lasts" if left is None else "expired" if left == 0 else f"expires {_in(left)}"
        lines = [f"{_who(entry)}, {until}"]
        for point, state in entry["states"].items():
            line = f"  {point}: {_VOTES[state['action']]}"
            if state["on_action_executed"] != state["action"]:
                line += f", afterwards {_VOTES[state['on_action_executed']]}"
            if left is not None:
                line += f"; expired: {_VOTES[state['on_map_expire']]}"
            lines.append(line)
        blocks.append("\n".join(lines))
    return "\n".join(blocks) or "No control maps."


def pause_text(points: Any) -> str:
    """What `pause` did."""
    return f"Updates are held at {', '.join(points)} until `continue` or `fail`."


def continue_text(points: Any) -> str:
    """What `continue` did."""
    return f"No longer held by command at {', '.join(points)}."


def fail_text(points: Any) -> str:
    """What `fail` did."""
    return f"The update is failed at {' or '.join(points)}."


def _who(entry: Any) -> str:
    if entry["from"] == "command":
        return "a command on this device"
    who = "the server" if entry["from"] == "server" else f"application {entry['id']}"
    return f"{who}, priority {entry['priority']}"


def _holder(entry: Any, point: str) -> str:
    if entry["expires_in_s"] is None:
        return _who(entry)
    expiry = _EXPIRY[entry["states"][point]["on_map_expire"]]
    return f"{_who(entry)}; expires {_clock(entry['expires_in_s'])}, then {expiry}"


def _until(pause: Any) -> str:
    """What ends a pause; of several who hold, the first that says something else by itself."""
    text = "the hooks let it go on, or " if pause["hooks"] else ""
    text += "someone decides: `continue` or `fail`"
    if pause["expires_in_s"] is None:
        return text
    if len(pause["by"] + pause["hooks"]) > 1:
        return f"{text}; the first of these changes {_in(pause['expires_in_s'])}"
    return f"{text}; else {_in(pause['expires_in_s'])} {_EXPIRY[pause['at_expiry']]}"


def _hook(entry: Any) -> str:
    text = f"pause hook {entry['path']}: {entry['why']}"
    if entry["opens_in_s"] is not None:
        text += f", opens {_clock(entry['opens_in_s'])}"
    if entry["limit_in_s"] is not None:
        text += f"; at most until {_clock(entry['limit_in_s'])}, then {_EXPIRY[entry['at_limit']]}"
    return text


def _in(seconds: int | None) -> str:
    if seconds is None:
        return "when something changes"
    if seconds < 120:
        return f"in {seconds} s"
    return f"in {seconds // 60} min" if seconds < 7200 else f"in {seconds // 3600} h {seconds // 60 % 60} min"


def _clock(seconds: int) -> str:
    return f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(time.time() + seconds))} ({_in(seconds)})"


def _table(rows: list[tuple[str, str]]) -> str:
    return "\n".join(f"{name:<11} {value}" for name, value in rows)
