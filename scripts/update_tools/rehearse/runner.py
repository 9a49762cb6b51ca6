# SPDX-License-Identifier: Apache-2.0
"""The agent as it runs in the machine: the real one, watched, and disturbed as the scenario says.

Each script is looked at from outside: when it ran, how it ended, what it printed, which files it changed,
which processes it left, whether it looked for a network. Faults and kills are put where the scenario wants
them; for kills the hook of the kill matrix (conform/faults.py) is used.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import struct
import threading
import time
from typing import TYPE_CHECKING, Any

from update_agent import __main__ as agent
from update_agent import daemon, hooks, machine, modules, proc, scripts, slots
from update_tools.conform import faults
from update_tools.rehearse import clock, trees
from update_tools.rehearse.plan import DURING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    Json = dict[str, Any]

CONTROL = "/.rehearsal"
_KEPT_BYTES = 2048  # of a script's output, for the report
_PATIENCE_S = 120.0  # with programs of the agent's own
_LEFT_S = 0.3  # for what a script left to end by itself
_IN_EVENTS = 0x2 | 0x4 | 0x8 | 0x40 | 0x80 | 0x100 | 0x200  # modify attrib close_write moved create delete
_real_monotonic = time.monotonic


class Notes:
    """The journal of the machine, one JSON object a line, by all who have something to tell."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)

    def __call__(self, event: str, **more: Any) -> None:
        line = json.dumps({"at": round(_real_monotonic(), 4), "event": event, **more})
        os.write(self._fd, line.encode() + b"\n")


class Watch:
    """Wraps what the agent does with scripts, hooks and modules."""

    def __init__(self, notes: Notes) -> None:
        self._plan: Json = {}
        self._plan_from = 0
        self._renew_plan()
        self._notes = notes
        self._counts = _counts()  # runs so far, by name
        self._left: set[int] = set()  # processes that were told already
        self._clock = clock.Clock(f"{CONTROL}/ahead", _PATIENCE_S, notes)
        self._points: faults.Points | None = None
        self._step = ""
        self._agent = os.getpid()

    def install(self) -> None:
        """Put the wrappers in place."""
        self._clock.install()
        self._points = faults.Points(CONTROL)
        faults.install(self._points)
        self._wrap_steps()
        for module, kind in ((scripts, "script"), (hooks, "hook"), (modules, "module")):
            vars(module)["run"] = self._around(vars(module)["run"], kind)
        end = daemon.Daemon._end

        def ended(self_: daemon.Daemon, verdict: str) -> None:
            end(self_, verdict)
            with open(f"{CONTROL}/ended", "w", encoding="ascii") as file:
                file.write(str(self._plan["leg"]))
            self._notes("ended", verdict=verdict)

        daemon.Daemon._end = ended  # type: ignore[method-assign,assignment]

    def _renew_plan(self) -> None:
        """The scenario's next update may have begun."""
        changed = os.stat(f"{CONTROL}/plan").st_mtime_ns
        if changed != self._plan_from:
            with open(f"{CONTROL}/plan", encoding="utf-8") as file:
                self._plan = json.load(file)
            self._plan_from = changed

    # Steps

    def _wrap_steps(self) -> None:
        perform = machine.Machine.perform

        def performed(self_: machine.Machine, step: Any) -> str:
            self._renew_plan()
            self._step = step.name
            self._clock.point = step.work.subject if step.work.kind == "control" else ""
            self._notes("step", step=step.name)
            fault = self._fault(lambda each: each["step"] == step.name and not each["script"])
            if fault is None:
                event = perform(self_, step)
            else:
                name = f"do_{step.work.subject}" if step.work.kind == "do" else f"on_{step.work.kind}"

                def refuse(_step: Any) -> str:
                    self._notes("fault", step=step.name, result=fault["event"])
                    self_.failed(f"{step.name}: {fault['event']}, as the rehearsal wants it")
                    return str(fault["event"])

                setattr(self_, name, refuse)
                try:
                    event = perform(self_, step)
                finally:
                    delattr(self_, name)
            if step.work.kind == "query":
                self._notes("answer", query=step.work.subject, answer=event)
            return event

        machine.Machine.perform = performed  # type: ignore[method-assign,assignment]

    def _fault(self, is_wanted: Callable[[Json], bool]) -> Json | None:
        """The scenario's fault of which this is the moment; each happens once in an update."""
        for fault in self._plan["faults"]:
            done = f"{CONTROL}/done-{self._plan['leg']}-{self._plan['faults'].index(fault)}"
            if is_wanted(fault) and not os.path.exists(done):
                with open(done, "w", encoding="ascii"):
                    return dict(fault)
        return None

    # Programs

    def _around(self, run: Callable[..., proc.Result], kind: str) -> Callable[..., proc.Result]:
        def watched(argv: Sequence[str], **options: Any) -> proc.Result:
            name = os.path.basename(argv[0])
            shown = name if kind != "module" else f"{name} {argv[1]}"
            count = self._counts[shown] = self._counts.get(shown, 0) + 1
            size, kept = 0, b""
            feed = options.get("on_output")

            def count_output(stream: str, chunk: bytes) -> None:
                nonlocal size, kept
                size += len(chunk)
                kept = (kept + chunk)[-_KEPT_BYTES:]
                if feed is not None:
                    feed(stream, chunk)

            options["on_output"] = count_output
            ignored = self._plan["ignored"]
            is_script = kind == "script"
            before = trees.quick(ignored) if is_script else {}
            no_route = _no_route()
            patience_s = self._clock.patience_s
            self._clock.patience_s = self._plan["patience"].get(name, self._plan["patience_s"])
            self._notes("start", kind=kind, name=shown, step=self._step, point=self._clock.point)
            killer = self._killer(name, count) if is_script else None
            started = _real_monotonic()
            told: Json = {}
            try:
                result = run(argv, **options)
                told = {"code": result.code, "signal": result.signal, "timed_out": result.timed_out}
            except Exception as error:
                told = {"code": None, "error": str(error)}
                raise
            finally:
                seconds = _real_monotonic() - started
                self._clock.patience_s = patience_s
                if killer is not None:
                    killer.stop()
                told["left"] = self._left_running()
                told["changed"] = trees.changed(before, trees.quick(ignored)) if is_script else []
                told["no_route"] = _no_route() - no_route
                self._notes(
                    "end",
                    kind=kind,
                    name=shown,
                    seconds=round(seconds, 4),
                    output_bytes=size,
                    output=kept.decode(errors="replace"),
                    **told,
                )
            fault = self._fault(lambda each: bool(is_script and each["script"] == name and result.ok))
            if fault is None:
                return result
            self._notes("fault", step=self._step, script=name, result="fail")
            return proc.Result(1, None, False, result.seconds)

        return watched

    def _left_running(self) -> list[str]:
        """Command lines of processes that are neither the agent's nor about to end."""
        deadline = _real_monotonic() + _LEFT_S
        while True:
            found = {pid: line for pid, line in _strangers(self._agent) if pid not in self._left}
            if not found or _real_monotonic() > deadline:
                break
            select.select([], [], [], 0.02)
        self._left.update(found)
        return sorted(found.values())

    def _killer(self, name: str, count: int) -> _Killer | None:
        kill = self._plan["kill"]
        if kill is None or kill["side"] != DURING or kill["name"] != name or kill["occurrence"] != count:
            return None
        if os.path.exists(f"{CONTROL}/killed"):
            return None
        assert self._points is not None
        return _Killer(kill["where"], int(kill["change"]), self._points.kill)


def _counts() -> dict[str, int]:
    """How often each program was started, by earlier agents of this machine as well."""
    found: dict[str, int] = {}
    with open(f"{CONTROL}/journal", encoding="utf-8", errors="replace") as file:
        for line in file:
            if '"event": "start"' in line:
                name = json.loads(line)["name"]
                found[name] = found.get(name, 0) + 1
    return found


class _Killer:
    """Ends the agent when a file was changed for the n-th time (inotify)."""

    def __init__(self, paths: Sequence[str], change: int, kill: Callable[[], None]) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = libc.inotify_init1(os.O_CLOEXEC)
        self._names = {os.path.basename(path) for path in paths}
        self._change = change
        self._kill = kill
        for folder in {self._parent(path) for path in paths}:
            libc.inotify_add_watch(self._fd, os.fsencode(folder), _IN_EVENTS)
        self._ending, self._end = os.pipe()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    @staticmethod
    def _parent(path: str) -> str:
        while not os.path.isdir(path := os.path.dirname(path)):
            pass
        return path

    def _watch(self) -> None:
        left = self._change
        while True:
            ready = select.select([self._fd, self._ending], [], [])[0]
            if self._ending in ready:
                return
            left -= sum(1 for _ in _events(os.read(self._fd, 4096)))
            if left <= 0:
                self._kill()
                return

    def stop(self) -> None:
        """The script has ended."""
        os.write(self._end, b"!")
        self._thread.join()
        for fd in (self._fd, self._ending, self._end):
            os.close(fd)


def _events(data: bytes) -> Iterator[str]:
    while data:
        (length,) = struct.unpack_from("12xI", data)
        yield data[16 : 16 + length].rstrip(b"\0").decode(errors="replace")
        data = data[16 + length :]


def _no_route() -> int:
    """How often something looked for a way to another machine, and found none."""
    count = 0
    try:
        with open("/proc/net/snmp", encoding="ascii") as file:
            names, values = [line.split() for line in file if line.startswith("Ip: ")]
        count += int(values[names.index("OutNoRoutes")])
        with open("/proc/net/snmp6", encoding="ascii") as file:
            count += sum(int(line.split()[1]) for line in file if line.startswith("Ip6OutNoRoutes"))
    except (OSError, ValueError):
        pass
    return count


def _strangers(own: int) -> Iterator[tuple[int, str]]:
    """Processes that are no children of ours: (pid, command line)."""
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat", encoding="utf-8", errors="replace") as file:
                    fields = file.read().rpartition(")")[2].split()
            except OSError:
                continue
            if fields[0] not in {"Z", "X"}:
                parents[int(entry)] = int(fields[1])
    for pid in parents:
        above = pid
        while above in parents and above not in {0, 1, own}:
            above = parents[above]
        if pid != 1 and above != own:
            try:
                with open(f"/proc/{pid}/cmdline", "rb") as raw:
                    yield pid, raw.read().replace(b"\0", b" ").decode(errors="replace").strip()
            except OSError:
                continue


def run_agent(environment: Mapping[str, str]) -> int:
    """Become the agent's daemon. Returns its exit code."""
    os.environ.clear()
    os.environ.update(environment)
    made = slots.Host.__init__

    def make(self: slots.Host, *arguments: str, **named: str) -> None:
        made(self, *arguments, **named)
        self.mountinfo, self.cmdline = f"{CONTROL}/mountinfo", f"{CONTROL}/cmdline"

    slots.Host.__init__ = make  # type: ignore[method-assign]
    Watch(Notes(f"{CONTROL}/journal")).install()
    return agent.main(["--log-file", f"{CONTROL}/log", "daemon"])
