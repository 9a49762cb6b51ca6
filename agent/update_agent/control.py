# SPDX-License-Identifier: Apache-2.0
"""Update control maps: who may hold an update at a point, what they say there, and until when.

Only decisions (control-map.md): no I/O and no timers. `now` is always seconds of time.monotonic(), so a wall
clock that jumps at its first synchronization neither ends nor prolongs a pause.
"""

from __future__ import annotations

from update_agent.errors import ControlError
from update_agent.lean import json
from update_agent.states import POINTS, WIRE_POINTS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    Mark = tuple[dict[tuple[str, int], "Entry"], bool]

ACTIONS = ("continue", "force_continue", "pause", "fail")
EXPIRE_ACTIONS = ("continue", "force_continue", "fail")  # nobody is left to end a pause of an expired map
PRIORITY_MIN, PRIORITY_MAX = -10, 10

# Maps that the agent makes for a person at the device (`decisions.py`). They last until the person decides
# otherwise: the agent itself is their application, and it is there as long as they are.
COMMAND_ID = "5fa1c3d0-7a1e-4b57-9c0d-6d6574617570"

_MAP_FIELDS = ("id", "priority", "states")
_STATE_FIELDS = ("action", "on_map_expire", "on_action_executed")
_MAX_CHARS = 64 * 1024  # the largest meaningful map has under 1,000
_INFINITE = float("inf")
_PAST_DUE_S = 30.0  # asked again this often when a half-time passed without a new map


class State:
    """What a map says at one point. Never changes; an action that advances is kept in `Entry.actions`."""

    __slots__ = _STATE_FIELDS

    def __init__(self, action: str, on_map_expire: str, on_action_executed: str) -> None:
        self.action = action
        self.on_map_expire = on_map_expire
        self.on_action_executed = on_action_executed


class Map:
    """One valid control map with all defaults filled in. Its identity is (id, priority). Never changes."""

    __slots__ = ("id", "priority", "states")

    def __init__(self, map_id: str, priority: int, states: dict[str, State]) -> None:
        self.id = map_id
        self.priority = priority
        self.states = states

    def document(self) -> dict[str, object]:
        """The canonical form, ready for JSON; `parse_value` of it gives an equal map."""
        return _document(self, {})


def parse(text: str | bytes, points: Sequence[str] = WIRE_POINTS) -> Map:
    """The map in JSON text, as it comes over D-Bus or from a shell. It may decide at these points.

    Raises ControlError that names the key. Stricter than the reference about what could be read in two ways:
    trailing data, a key given twice, `null` in place of a map.
    """
    return _map(_loads(text), points)


def parse_value(value: object) -> Map:
    """The map in a decoded JSON value, as it comes in a server's reply. Raises ControlError naming the key.

    `None` is refused: in a server's reply it means that there is no map, which is for the caller to know.
    """
    return _map(value, WIRE_POINTS)


class Entry:
    """A map in the pool: until when it is active, and the actions as advanced by `on_action_executed`."""

    __slots__ = ("actions", "expires_at", "half_time", "map")

    def __init__(self, content: Map, expires_at: float, half_time: float) -> None:
        self.map = content
        self.expires_at = expires_at
        self.half_time = half_time
        self.actions = {point: state.action for point, state in content.states.items()}

    def is_expired(self, now: float) -> bool:
        """True from the very second of expiry on. The map then votes with `on_map_expire`."""
        return now >= self.expires_at

    def document(self) -> dict[str, object]:
        """The map in canonical form with its actions as advanced so far."""
        return _document(self.map, self.actions)


class Decision:
    """What to do at a point: `action` is continue, pause or fail; `by` holds the maps that decided so.

    `by` is empty when no map had an opinion. Several maps are in it when they agree at one priority.
    """

    __slots__ = ("action", "by")

    def __init__(self, action: str, by: tuple[Entry, ...] = ()) -> None:
        self.action = action
        self.by = by


class Wake:
    """When a paused update acts again: at the monotonic time `at` it does `then`, refresh or evaluate.

    `why` is for the person reading the status: half-time, past half-time, poll, retry, expiry or change.
    """

    __slots__ = ("at", "then", "why")

    def __init__(self, at: float, then: str, why: str) -> None:
        self.at = at
        self.then = then
        self.why = why


class Pool:
    """All maps of this process, from applications and from the server alike.

    Every change must reach the disk at once: `to_store` after each call that says it changes the pool.
    """

    __slots__ = ("_changed", "_entries", "_evaluated_at", "_expiration_s", "_refreshed_at")

    def __init__(self, expiration_s: float) -> None:
        self._expiration_s = expiration_s
        self._entries: dict[tuple[str, int], Entry] = {}
        self._changed = False
        self._evaluated_at = float("-inf")
        self._refreshed_at: dict[str, float] = {}

    # What changes the pool

    def set_local(self, content: Map, now: float) -> bool:
        """Take a map from an application; without states it deletes (id, priority). True if that ends a wait.

        To refuse a map that could not be saved, take `mark` before and `undo` after.
        """
        key = (content.id, content.priority)
        if content.states:
            self._entries[key] = self._fresh(content, now)
        elif self._entries.pop(key, None) is None:
            return False
        self._changed = True
        return True

    def set_server(self, content: Map | None, deployment_id: str, now: float) -> None:
        """Take the server's word for a deployment: replaces all maps with its id; None means there is no map.

        A map without states is kept: it says that the server wants to be asked again at each point.
        Raises ControlError, and changes nothing, when the map is for another deployment.
        """
        if content is not None and content.id != deployment_id:
            raise ControlError(f"control map: id is {_show(content.id)}, the deployment is {deployment_id}")
        self.clear_deployment(deployment_id)
        if content is not None:
            self._entries[content.id, content.priority] = self._fresh(content, now)
            self._refreshed_at[deployment_id] = now

    def clear_deployment(self, deployment_id: str) -> bool:
        """Remove all maps with the id of a deployment that has ended. True if there were any."""
        keys = [key for key in self._entries if key[0] == deployment_id]
        for key in keys:
            del self._entries[key]
        self._refreshed_at.pop(deployment_id, None)
        return bool(keys)

    def drop_expired(self, now: float) -> bool:
        """Remove expired maps; done when Idle is entered, never earlier. True if there were any."""
        keys = [key for key, entry in self._entries.items() if entry.is_expired(now)]
        for key in keys:
            del self._entries[key]
        return bool(keys)

    def evaluate(self, point: str, now: float) -> Decision:
        """Decide at a point, and advance the actions of every map that was asked.

        The highest priority at which any map has an opinion decides; there fail beats pause beats
        force_continue. Maps of lower priorities are not asked and not advanced.
        """
        self._evaluated_at = now
        self._changed = False
        asked: dict[int, list[Entry]] = {}
        for entry in self.entries():
            if point in entry.actions:
                asked.setdefault(entry.map.priority, []).append(entry)
        for priority in sorted(asked, reverse=True):
            votes: dict[str, list[Entry]] = {}
            for entry in asked[priority]:
                state = entry.map.states[point]
                vote = state.on_map_expire if entry.is_expired(now) else entry.actions[point]
                votes.setdefault(vote, []).append(entry)
                entry.actions[point] = state.on_action_executed
            for vote, action in (("fail", "fail"), ("pause", "pause"), ("force_continue", "continue")):
                if vote in votes:
                    return Decision(action, tuple(votes[vote]))
        return Decision("continue")

    def mark(self) -> Mark:
        """The present content, for `undo` after a `set_local` that could not be saved."""
        return (dict(self._entries), self._changed)

    def undo(self, mark: Mark) -> None:
        """Back to the content at `mark`, expiry times included. Actions that were advanced stay advanced."""
        self._entries, self._changed = mark

    # What can be asked

    @property
    def refresh_timeout_s(self) -> int:
        """After how many seconds an application should send its map again (the reply over D-Bus)."""
        return int(self._expiration_s // 2)

    def entries(self) -> list[Entry]:
        """All maps, ordered by id, then priority."""
        return [self._entries[key] for key in sorted(self._entries)]

    def has(self, content: Map) -> bool:
        """True if setting this map would replace one."""
        return (content.id, content.priority) in self._entries

    def has_deployment_map(self, deployment_id: str) -> bool:
        """True if the server must be asked before evaluating; an expired map counts too."""
        return any(map_id == deployment_id for map_id, _ in self._entries)

    def speaks_at(self, point: str) -> bool:
        """True if any map says something at a point."""
        return any(point in entry.actions for entry in self._entries.values())

    def pause_timer(self, now: float, deployment_id: str, poll_s: float) -> Wake:
        """The longest wait of a pause (control-map.md section 4 D), were nothing to change or expire."""
        active = [entry for entry in self._entries.values() if not entry.is_expired(now)]
        own = [entry for entry in active if entry.map.id == deployment_id]
        if not active:
            return Wake(now, "evaluate", "expiry")
        then = "refresh" if own else "evaluate"
        half_time = min(entry.half_time for entry in own or active)
        if half_time <= now:
            return Wake(now + _PAST_DUE_S, then, "past half-time")
        if own and now + poll_s < half_time:
            return Wake(now + poll_s, then, "poll")
        return Wake(half_time, then, "half-time")

    def next_deadline(
        self, now: float, deployment_id: str, poll_s: float, *, retry_at: float | None = None
    ) -> Wake:
        """When to act again after `evaluate` said pause: the pause timer, or an expiry or change before it.

        `retry_at` replaces the timer while a refresh has to be tried again. Expiries and changes count from
        the last evaluation, so none is lost in the time that reporting the pause took; without a change no
        wake-up is left over from before it.
        """
        if self._changed:
            return Wake(now, "evaluate", "change")
        if retry_at is not None:
            wake = Wake(retry_at, "refresh", "retry")
        else:
            wake = self.pause_timer(now, deployment_id, poll_s)
            # A pause that applications keep waking asks the server as often as one left alone.
            poll_at = self._refreshed_at.get(deployment_id, now) + poll_s
            if wake.then == "refresh" and poll_at < wake.at:
                wake = Wake(max(now, poll_at), "refresh", "poll")
        expiries = [
            entry.expires_at for entry in self._entries.values() if entry.expires_at > self._evaluated_at
        ]
        if expiries and min(expiries) <= wake.at:
            return Wake(max(min(expiries), now), "evaluate", "expiry")
        return wake

    @property
    def has_changed(self) -> bool:
        """True if an application or a person changed the pool since it was last evaluated."""
        return self._changed

    def next_change(self, now: float, deployment_id: str, poll_s: float) -> Wake:
        """When to act again while something else than these maps pauses: they have said to go on.

        They are not asked at half-time: an `on_action_executed` would be used up although nobody acted on the
        answer. A new map, an expiry and the server's word end that.
        """
        if self._changed:
            return Wake(now, "evaluate", "change")
        times = [
            entry.expires_at for entry in self._entries.values() if entry.expires_at > self._evaluated_at
        ]
        wake = Wake(max(now, min(times, default=_INFINITE)), "evaluate", "expiry")
        if self.has_deployment_map(deployment_id):
            poll_at = self._refreshed_at.get(deployment_id, now) + poll_s
            wake = min(wake, Wake(max(now, poll_at), "refresh", "poll"), key=lambda each: each.at)
        return wake

    # Persistence: value of the database key `update-control-maps`

    def to_store(self, now: float) -> str | None:
        """The text to save, or None when the pool is empty and the key is to be removed."""
        if not self._entries:
            return None
        active = [entry.document() for entry in self.entries() if not entry.is_expired(now)]
        expired = [entry.document() for entry in self.entries() if entry.is_expired(now)]
        return json.dumps({"active": active, "expired": expired}, separators=(",", ":"))

    @classmethod
    def from_store(
        cls, text: str | bytes | None, now: float, *, expiration_s: float, boot_expiration_s: float
    ) -> Pool:
        """The pool as saved. Maps that were active get `boot_expiration_s` for their senders to come back.

        None (nothing saved) gives an empty pool. Raises ControlError when the text is not a saved pool.
        """
        pool = cls(expiration_s)
        pool._evaluated_at = now
        if text is None:
            return pool
        saved = _loads(text, limit=False)
        if not isinstance(saved, dict):
            raise ControlError(f"saved control maps: {_show(saved)} is not an object")
        for name, lifetime_s in (("active", boot_expiration_s), ("expired", 0.0)):
            maps = saved.get(name)
            if not isinstance(maps, list | None):
                raise ControlError(f"saved control maps: {name} is {_show(maps)}, must be a list")
            for value in maps or ():
                content = _map(value, POINTS, keep_defaults=True)
                seconds = _INFINITE if content.id == COMMAND_ID else lifetime_s
                entry = Entry(content, now + seconds, now + seconds / 2)
                pool._entries[content.id, content.priority] = entry
        return pool

    def _fresh(self, content: Map, now: float) -> Entry:
        seconds = _INFINITE if content.id == COMMAND_ID else self._expiration_s
        return Entry(content, now + seconds, now + seconds / 2)


def _document(content: Map, actions: dict[str, str]) -> dict[str, object]:
    states = {
        point: {
            "action": actions.get(point, state.action),
            "on_map_expire": state.on_map_expire,
            "on_action_executed": state.on_action_executed,
        }
        for point, state in content.states.items()
    }
    return {"id": content.id, "priority": content.priority, "states": states}


def _loads(text: str | bytes, *, limit: bool = True) -> object:
    if limit and len(text) > _MAX_CHARS:
        raise ControlError(f"control map: {len(text)} characters are too many, at most {_MAX_CHARS}")
    try:
        if isinstance(text, bytes):
            text = text.decode()
        value: object = json.loads(text, object_pairs_hook=_object, parse_constant=_constant)
    except (ValueError, RecursionError) as error:  # ValueError: not JSON, not UTF-8, a number of 5,000 digits
        raise ControlError(f"control map: not JSON: {error}") from error
    return value


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ControlError(f"control map: {_show(twice)} is given twice in one object")
    return result


def _constant(word: str) -> object:
    raise ControlError(f"control map: {word} is not JSON")


def _map(value: object, points: Sequence[str], *, keep_defaults: bool = False) -> Map:
    fields = _fields(value, "", _MAP_FIELDS)
    map_id = fields.get("id")
    if not isinstance(map_id, str) or not _is_uuid(map_id):
        raise ControlError(
            f"control map: id is {_show(map_id)}, must be a UUID such as 01234567-89ab-cdef-0123-456789abcdef"
        )
    priority = fields.get("priority")
    if priority is None:
        priority = 0
    # bool is an int in Python, but true is not a number in JSON.
    if isinstance(priority, bool) or not isinstance(priority, int):
        raise ControlError(f"control map: priority is {_show(priority)}, must be a whole number")
    if not PRIORITY_MIN <= priority <= PRIORITY_MAX:
        raise ControlError(f"control map: priority is {priority}, must be {PRIORITY_MIN} to {PRIORITY_MAX}")
    states = fields.get("states")
    if states is None:
        states = {}
    if not isinstance(states, dict):
        raise ControlError(f"control map: states is {_show(states)}, must be an object")
    return Map(map_id, priority, dict(_states(states, points, keep_defaults)))


def _states(
    states: dict[str, object], points: Sequence[str], keep_defaults: bool
) -> Iterable[tuple[str, State]]:
    for point, value in states.items():
        if point not in points:
            near = [name for name in points if name.lower() == point.lower()]
            raise ControlError(
                f"control map: states.{_show(point)} is not a control point",
                hint=f"write {near[0]}" if near else "there are " + ", ".join(points),
            )
        where = f"states.{point}"
        fields = _fields({} if value is None else value, where, _STATE_FIELDS)
        action = _word(fields, where, "action", ACTIONS, "continue")
        state = State(
            action,
            _word(fields, where, "on_map_expire", EXPIRE_ACTIONS, "fail" if action == "pause" else action),
            _word(fields, where, "on_action_executed", ACTIONS, action),
        )
        says_nothing = state.action == state.on_map_expire == state.on_action_executed == "continue"
        if keep_defaults or not says_nothing:
            yield point, state


def _fields(value: object, where: str, names: tuple[str, ...]) -> dict[str, object]:
    """The fields of an object under their canonical names; the reference matches them in any case."""
    label = where or "the map"
    if not isinstance(value, dict):
        raise ControlError(f"control map: {label} is {_show(value)}, must be an object")
    fields: dict[str, object] = {}
    for key, content in value.items():
        name = key.lower()
        if name not in names:
            raise ControlError(
                f"control map: {label} has an unknown field {_show(key)}",
                hint="it may have " + ", ".join(names),
            )
        if name in fields:
            raise ControlError(f"control map: {label} has {name} twice")
        fields[name] = content
    return fields


def _word(fields: dict[str, object], where: str, name: str, allowed: tuple[str, ...], default: str) -> str:
    value = fields.get(name)
    if value is None or value == "":
        return default
    if not isinstance(value, str) or value not in allowed:
        raise ControlError(
            f"control map: {where}.{name} is {_show(value)}, must be one of {', '.join(allowed)}"
        )
    return value


def _is_uuid(text: str) -> bool:
    return len(text) == 36 and all(
        character == "-" if position in {8, 13, 18, 23} else character in "0123456789abcdefABCDEF"
        for position, character in enumerate(text)
    )


def _show(value: object) -> str:
    """A value as short ASCII for a message, whatever a stranger sent."""
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
