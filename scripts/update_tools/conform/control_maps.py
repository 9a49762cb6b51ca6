# SPDX-License-Identifier: Apache-2.0
"""Vectors of control maps, run with a clock that is a number. The file's `schema` explains the format."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from update_agent import control
from update_agent.errors import ControlError, UpdateError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Json = dict[str, Any]

REFUSED_OVER_DBUS = "io.mender.Failed"
_POLL_S = 1800


def run(paths: Iterable[str], write: Callable[[str], object]) -> int:
    """Run all vectors of the files, write each failure and the total, and return how many failed.

    Raises UpdateError for a file that is not one of vectors, so that nothing passes by being unreadable.
    """
    passed = failed = 0
    for path in paths:
        for vector in load(path):
            try:
                difference = check(vector)
            except (KeyError, TypeError) as error:
                raise UpdateError(f"{path}: vector {vector['id']} is malformed: {error!r}") from error
            except UpdateError as error:
                raise UpdateError(
                    f"{path}: vector {vector['id']}: {error.message}", hint=error.hint
                ) from error
            if difference is None:
                passed += 1
            else:
                failed += 1
                write(f"FAIL {vector['id']} ({path}): {difference}")
    write(f"{passed} passed, {failed} failed")
    return failed


def load(path: str) -> list[Json]:
    """The vectors in a file; at least one. Raises UpdateError."""
    try:
        with open(path, encoding="utf-8") as file:
            document = json.load(file)
    except (OSError, ValueError) as error:
        raise UpdateError(f"cannot read vectors from {path}: {error}") from error
    vectors = document.get("vectors") if isinstance(document, dict) else None
    if not isinstance(vectors, list) or not vectors:
        raise UpdateError(f"{path} has no list `vectors`", hint="see tests/vectors/control-map-vectors.json")
    for number, vector in enumerate(vectors):
        if not isinstance(vector, dict) or not isinstance(vector.get("steps"), list) or "id" not in vector:
            raise UpdateError(f"{path}: vector {number} has no id or no list `steps`")
    return vectors


def check(vector: Json) -> str | None:
    """Run one vector on an empty pool; the first difference in words, or None."""
    bench = Bench(vector.get("config") or {})
    for number, step in enumerate(vector["steps"], 1):
        expected = step.get("expect") or {}
        found = bench.step(step)
        difference = first_difference(expected, {key: found[key] for key in expected if key in found})
        if difference:
            return f"step {number} ({_title(step)}): {difference}"
    return None


class Bench:
    """The agent's pool, its saved text and a clock, moved by the steps of a vector."""

    def __init__(self, config: Json) -> None:
        self._poll_s = config.get("UpdatePollIntervalSeconds") or _POLL_S
        self._expiration_s = config.get("UpdateControlMapExpirationTimeSeconds") or 2 * self._poll_s
        self._boot_expiration_s = config.get("UpdateControlMapBootExpirationTimeSeconds") or 600
        self._now = 1000.0  # not 0: a time taken for a duration must not pass
        self._pool = control.Pool(self._expiration_s)

    def step(self, step: Json) -> Json:
        """Do one step and return what can be compared with its `expect`."""
        operations: dict[str, Callable[[Json], Json]] = {
            "set_local": self._set_local,
            "server": self._server,
            "advance": self._advance,
            "restart": self._restart,
            "evaluate": lambda step: {"action": self._pool.evaluate(step["point"], self._now).action},
            "pool": lambda _: {"maps": [self._shown(entry) for entry in self._pool.entries()]},
            "idle": self._idle,
            "deployment_end": self._deployment_end,
            "needs_refresh": lambda step: {"value": self._pool.has_deployment_map(step["deployment_id"])},
            "pause_wait": self._pause_wait,
        }
        operation = operations.get(step["op"])
        if operation is None:
            raise UpdateError(f"unknown operation {step['op']!r}", hint="known: " + ", ".join(operations))
        return operation(step)

    def _set_local(self, step: Json) -> Json:
        try:
            self._pool.set_local(control.parse(_text(step)), self._now)
        except ControlError:
            return {"ok": False, "dbus_error": REFUSED_OVER_DBUS}
        return {"ok": True, "refresh_timeout": self._pool.refresh_timeout_s}

    def _server(self, step: Json) -> Json:
        try:
            value = json.loads(_text(step))  # as the agent gets it: a value inside a decoded reply
            content = None if value is None else control.parse_value(value)
            self._pool.set_server(content, step["deployment_id"], self._now)
        except ControlError:
            return {"ok": False}
        return {"ok": True}

    def _advance(self, step: Json) -> Json:
        self._now += step["seconds"]
        return {}

    def _restart(self, _: Json) -> Json:
        saved = self._pool.to_store(self._now)
        self._pool = control.Pool.from_store(
            saved, self._now, expiration_s=self._expiration_s, boot_expiration_s=self._boot_expiration_s
        )
        return {}

    def _idle(self, _: Json) -> Json:
        self._pool.drop_expired(self._now)
        return {}

    def _deployment_end(self, step: Json) -> Json:
        self._pool.clear_deployment(step["deployment_id"])
        return {}

    def _pause_wait(self, step: Json) -> Json:
        wake = self._pool.pause_timer(self._now, step["deployment_id"], self._poll_s)
        return {"seconds": wake.at - self._now, "then": wake.then}

    def _shown(self, entry: control.Entry) -> Json:
        return {**entry.document(), "expired": entry.is_expired(self._now)}


def first_difference(expected: Any, found: Any, path: str = "") -> str | None:
    """Where two JSON values differ first, in words; None when they are equal. Lists and objects in order."""
    if isinstance(expected, dict) and isinstance(found, dict):
        for key in [*expected, *(key for key in found if key not in expected)]:
            inner = f"{path}.{key}".lstrip(".")
            if key not in found:
                return f"{inner}: expected {json.dumps(expected[key])}, found nothing"
            if key not in expected:
                return f"{inner}: expected nothing, found {json.dumps(found[key])}"
            if difference := first_difference(expected[key], found[key], inner):
                return difference
        return None
    if isinstance(expected, list) and isinstance(found, list):
        for index, (one, other) in enumerate(zip(expected, found, strict=False)):
            if difference := first_difference(one, other, f"{path}[{index}]"):
                return difference
        if len(expected) != len(found):
            return f"{path}: expected {len(expected)} entries, found {len(found)}"
        return None
    if expected == found and isinstance(expected, bool) == isinstance(found, bool):
        return None
    return f"{path}: expected {json.dumps(expected)}, found {json.dumps(found)}"


def _text(step: Json) -> str:
    text: str = step["json"] if "json" in step else json.dumps(step["map"])
    return text


def _title(step: Json) -> str:
    return " ".join([step["op"], *(str(step[key]) for key in ("point", "seconds") if key in step)])
