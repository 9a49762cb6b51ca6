# SPDX-License-Identifier: Apache-2.0
"""Pause hooks: small files in an image that hold updates at a control point, without a daemon to write.

`/usr/share/mender/pause.d/NN-name.json` come with the image's packages, `/etc/mender/pause.d/NN-name.json`
are the product's; of two with one file name the latter counts, and a link to /dev/null there switches the
other off. One JSON object each:

| key      | value                                                                                        |
|----------|----------------------------------------------------------------------------------------------|
| point    | where it holds: one of `states.POINTS`                                                       |
| when     | "always"                                                                                     |
|          | {"outside": CALENDAR, "lasting_s": N}: outside of the maintenance window (`windows`)         |
|          | {"program": PATH, "interval_s": N}: its exit code 0 go on, 1 fail, 21 keep waiting; asked    |
|          | again after `interval_s` (60), with the environment of state scripts; it has 30 s to answer  |
| limit_s  | for how long it holds at most, in seconds that the agent runs; a program must have one       |
| at_limit | what comes then: "continue" (it has no opinion any more) or "fail"; given with limit_s       |

A hook votes like a control map: fail beats pause beats continue, among hooks and maps alike. Only a
person's command to go on overrules it.

On a device a hook that is not valid *holds*, at its point if that can be read and else before the
installation, and goes on after a day. It was put there to hold: to ignore it would install or reboot just
when somebody meant to prevent it, and nothing is lost by waiting at a safe point. To hold for ever or to
fail would be worse: what repairs an image is an update, and the hook would shut that out. A program that
breaks keeps waiting for the same reason, until its limit. The checker, `python -m update_agent.hooks
DIRECTORY…`, is there to find such hooks when the image is built.
"""

from __future__ import annotations

import os
import stat
import sys

from update_agent.errors import ControlError, ProcError
from update_agent.lean import json
from update_agent.loop import plain_wait
from update_agent.output import OutputLines
from update_agent.proc import run
from update_agent.states import POINTS
from update_agent.windows import LASTING_MAX_S, Window

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from update_agent.log import Log
    from update_agent.loop import Wait

BROKEN_LIMIT_S = 86400
BROKEN_POINT = "ArtifactInstall_Enter"
PROGRAM_LIMIT_S = 30  # of one run: a person's decision must not have to wait for long
KEEP_WAITING = 21
_AT_LIMIT = ("continue", "fail")
_LIMIT_MAX_S = 366 * 86400
_INTERVAL_MAX_S = 86400
_MAX_BYTES = 64 * 1024
_OUTPUT_LIMIT_BYTES = 4096
_LOOK_S = 60  # the wall clock may be set at any time
_CLOCK_IS_SET = 1704067200.0  # 2024-01-01: a clock before it was never set, and no window opens by it


class Hook:
    """One hook as its file says. `kind` is always, window, program or broken; `fault` is why it is broken."""

    __slots__ = (
        "at_limit",
        "fault",
        "interval_s",
        "kind",
        "limit_s",
        "name",
        "path",
        "point",
        "program",
        "window",
    )

    def __init__(self, path: str, point: str, kind: str) -> None:
        self.path = path
        self.name = os.path.basename(path)
        self.point = point
        self.kind = kind
        self.window: Window | None = None
        self.program = ""
        self.interval_s = 0
        self.limit_s: int | None = None
        self.at_limit = ""
        self.fault = ""


def parse(text: str | bytes, path: str) -> Hook:
    """The hook in the text of a file. Raises ControlError naming file, key and reason."""
    fields = _object(_loads(text, path), path, "the hook", ("point", "when", "limit_s", "at_limit"))
    point = fields.get("point")
    if point not in POINTS:
        raise _fault(path, "point", point, f"must be one of {', '.join(POINTS)}")
    hook = Hook(path, str(point), "always")
    _condition(hook, fields.get("when"))
    if "limit_s" in fields:
        hook.limit_s = _seconds(path, "limit_s", fields["limit_s"], _LIMIT_MAX_S)
        at_limit = fields.get("at_limit")
        if at_limit not in _AT_LIMIT:
            raise _fault(path, "at_limit", at_limit, 'must be "continue" or "fail"')
        hook.at_limit = str(at_limit)
    elif "at_limit" in fields:
        raise _fault(path, "limit_s", None, "must be given with at_limit")
    elif hook.kind == "program":
        raise _fault(path, "limit_s", None, "must be given: a program that breaks must not hold for ever")
    return hook


def _condition(hook: Hook, when: object) -> None:
    path = hook.path
    if when == "always":
        return
    if not isinstance(when, dict) or ("outside" in when) == ("program" in when):
        raise _fault(path, "when", when, 'must be "always", {"outside": …} or {"program": …}')
    if "outside" in when:
        fields = _object(when, path, "when", ("outside", "lasting_s"))
        lasting_s = _seconds(path, "when.lasting_s", fields.get("lasting_s"), LASTING_MAX_S)
        text = fields["outside"]
        if not isinstance(text, str):
            raise _fault(path, "when.outside", text, "must be text such as Mon..Fri 02:00")
        try:
            hook.window = Window(text, lasting_s)
        except ValueError as error:
            raise _fault(path, "when.outside", text, str(error)) from error
        hook.kind = "window"
        return
    fields = _object(when, path, "when", ("program", "interval_s"))
    program = fields["program"]
    if not isinstance(program, str) or not program.startswith("/") or "\0" in program:
        raise _fault(path, "when.program", program, "must be an absolute path; there are no arguments")
    hook.program = program
    hook.interval_s = _seconds(path, "when.interval_s", fields.get("interval_s", 60), _INTERVAL_MAX_S)
    hook.kind = "program"


def load(directories: Iterable[str]) -> list[Hook]:
    """The hooks of these directories, ordered by file name; of equal names the later directory counts.

    Names that do not end in .json are none of ours. A missing directory has no hooks; one that cannot be read
    is a broken hook itself.
    """
    paths: dict[str, str] = {}
    found: list[Hook] = []
    for directory in directories:
        try:
            names = os.listdir(directory)
        except FileNotFoundError:
            continue
        except OSError as error:
            found.append(_broken(directory, f"{directory}: {os.strerror(error.errno or 0)}", b""))
            continue
        paths.update({name: os.path.join(directory, name) for name in names if name.endswith(".json")})
    ordered = [paths[name] for name in sorted(paths, key=os.fsencode)]
    return found + [read(path) for path in ordered if os.path.realpath(path) != os.devnull]


def read(path: str) -> Hook:
    """The hook in a file; a broken one has its `fault` set. Never raises."""
    text = b""
    try:
        _check_name(path)
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ControlError(f"{path}: not a regular file")
        with open(path, "rb") as file:
            text = file.read(_MAX_BYTES + 1)
        return parse(text, path)
    except OSError as error:
        return _broken(path, f"{path}: {os.strerror(error.errno or 0)}", text)
    except ControlError as error:
        return _broken(path, str(error), text)


def _broken(path: str, fault: str, text: bytes) -> Hook:
    try:
        document = json.loads(text)
        point = document["point"] if document["point"] in POINTS else BROKEN_POINT
    except (ValueError, RecursionError, TypeError, KeyError):
        point = BROKEN_POINT
    hook = Hook(path, point, "broken")
    hook.fault = fault
    hook.limit_s, hook.at_limit = BROKEN_LIMIT_S, "continue"
    return hook


def _check_name(path: str) -> None:
    name = os.path.basename(path)
    number, dash, rest = name[:2], name[2:3], name[3:].removesuffix(".json")
    if not (number.isascii() and number.isdigit() and len(number) == 2 and dash == "-" and rest):
        raise ControlError(f"{path}: the file name must be NN-name.json, such as 10-night.json")


class Vote:
    """What a hook says now, and why. `limit_at`: when its limit passes, None until it counts."""

    __slots__ = ("action", "again_at", "hook", "limit_at", "opens_at", "why")

    def __init__(self, hook: Hook) -> None:
        self.hook = hook
        self.action = "continue"
        self.why = ""
        self.again_at = float("-inf")  # when it may say something else
        self.limit_at: float | None = None
        self.opens_at: float | None = (
            None  # of a window that is shut, as far as the wall clock can be trusted
        )


class Holds:
    """The hooks of one control point while an update is there. Time is passed in, asking comes in by `ask`.

    `left` holds the seconds that were left of limits before a restart, by the name of the hook.
    """

    def __init__(
        self,
        hooks: Iterable[Hook],
        ask: Callable[[Hook], tuple[str, str]],
        left: Mapping[str, float] | None = None,
        now: float = 0.0,
    ) -> None:
        self._ask = ask
        self.votes = [Vote(hook) for hook in hooks]
        for vote in self.votes:
            limit_s = (left or {}).get(vote.hook.name)
            if vote.hook.limit_s is not None and limit_s is not None:
                vote.limit_at = now + min(limit_s, vote.hook.limit_s)

    @property
    def action(self) -> str:
        """What they say together."""
        actions = {vote.action for vote in self.votes}
        return next((action for action in ("fail", "pause") if action in actions), "continue")

    def by(self, action: str) -> list[Vote]:
        """The votes for an action."""
        return [vote for vote in self.votes if vote.action == action]

    def look(self, now: float, wall: float) -> bool:
        """Ask all whose time has come. True if that changed what any of them says."""
        before = [(vote.action, vote.why) for vote in self.votes]
        for vote in self.votes:
            if now >= min(vote.again_at, self._limit(vote)):
                self._look(vote, now, wall)
        return before != [(vote.action, vote.why) for vote in self.votes]

    def next_look(self) -> float:
        """The monotonic time at which `look` may find a change; infinite when it never will."""
        return min((min(vote.again_at, self._limit(vote)) for vote in self.votes), default=float("inf"))

    def left(self, now: float) -> dict[str, float]:
        """The seconds left of the limits that have begun, to be saved."""
        return {
            vote.hook.name: max(0.0, round(vote.limit_at - now, 3))
            for vote in self.votes
            if vote.limit_at is not None
        }

    @staticmethod
    def _limit(vote: Vote) -> float:
        """When its limit will change what it says."""
        return vote.limit_at if vote.limit_at is not None and vote.action == "pause" else float("inf")

    def _look(self, vote: Vote, now: float, wall: float) -> None:
        hook = vote.hook
        if vote.limit_at is not None and now >= vote.limit_at:
            vote.action, vote.again_at = hook.at_limit, float("inf")
            vote.why = f"its limit of {hook.limit_s} s has passed"
            return
        vote.action, vote.again_at, vote.opens_at = "pause", float("inf"), None
        if hook.kind == "window":
            assert hook.window is not None
            is_open = wall >= _CLOCK_IS_SET and hook.window.is_open(wall)
            vote.action = "continue" if is_open else "pause"
            opens_at = now + hook.window.next_opening(wall) - wall
            vote.again_at = min(now + _LOOK_S, opens_at)
            vote.opens_at = None if is_open else opens_at
            vote.why = f"{'inside' if is_open else 'outside'} {hook.window.text}, {hook.window.lasting_s} s"
        elif hook.kind == "program":
            vote.action, vote.why = self._ask(hook)
            vote.again_at = now + hook.interval_s
        else:
            vote.why = hook.fault or "always"
        if vote.action == "pause" and vote.limit_at is None and hook.limit_s is not None:
            vote.limit_at = now + hook.limit_s


def ask_program(hook: Hook, env: Mapping[str, str], log: Log, wait: Wait = plain_wait) -> tuple[str, str]:
    """Run a hook's program: what it says, and why. One that breaks keeps waiting, with a warning."""
    state, _, action = hook.point.partition("_")
    environment = {**os.environ, **env, "UPDATE_STATE": state, "UPDATE_ACTION": action}
    lines = OutputLines(log, f"Output (%s) of pause hook {hook.name}: ", limit_bytes=_OUTPUT_LIMIT_BYTES)
    try:
        result = run(
            [hook.program], timeout_s=PROGRAM_LIMIT_S, env=environment, on_output=lines.feed, wait=wait
        )
    except ProcError as error:
        log.warning(f"Pause hook {hook.path} keeps waiting: {error}")
        return "pause", error.message
    finally:
        lines.close()
    why = f"{hook.program} {result.describe()}"
    words = {0: "continue", 1: "fail", KEEP_WAITING: "pause"}
    if result.timed_out or result.code not in words:
        log.warning(f"Pause hook {hook.path} keeps waiting: {why}; it must exit with 0, 1 or {KEEP_WAITING}")
        return "pause", why.replace(f" after {result.seconds:.1f} s", "")
    return words[result.code], why


# Reading JSON


def _loads(text: str | bytes, path: str) -> object:
    if len(text) > _MAX_BYTES:
        raise ControlError(f"{path}: more than {_MAX_BYTES} bytes are no pause hook")
    try:
        if isinstance(text, bytes):
            text = text.decode()
        value: object = json.loads(text, object_pairs_hook=_unique, parse_constant=_constant)
    except (ValueError, RecursionError) as error:
        raise ControlError(f"{path}: not JSON: {error}") from error
    return value


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{json.dumps(name)} is given twice in one object")
    return dict(pairs)


def _constant(word: str) -> object:
    raise ValueError(f"{word} is no number")


def _object(value: object, path: str, label: str, names: Sequence[str]) -> dict[str, object]:
    if not isinstance(value, dict):
        raise ControlError(f"{path}: {label} is {_show(value)}, must be an object")
    for key in value:
        if key not in names:
            raise ControlError(
                f"{path}: {label} has an unknown key {_show(key)}", hint="it may have " + ", ".join(names)
            )
    return value


def _seconds(path: str, key: str, value: object, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise _fault(path, key, value, f"must be a whole number of seconds, 1 to {most}")
    return value


def _fault(path: str, key: str, value: object, reason: str) -> ControlError:
    return ControlError(f"{path}: {key} is {_show(value)}: {reason}")


def _show(value: object) -> str:
    text = "missing" if value is None else json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


# The checker


def check(directory: str) -> list[str]:
    """One line for each fault of the hooks in a directory, which must be there."""
    if not os.path.isdir(directory):
        return [f"{directory}: no such directory"]
    return [hook.fault for hook in load([directory]) if hook.fault]


def main(arguments: Sequence[str]) -> int:
    """Check directories of hooks: 0 all are valid, 1 not, 2 no directory is given."""
    if not arguments or arguments[0].startswith("-"):
        print("usage: python -m update_agent.hooks DIRECTORY…", file=sys.stderr)
        return 2
    faults = [fault for directory in arguments for fault in check(directory)]
    for fault in faults:
        print(fault.encode(errors="backslashreplace").decode())
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
