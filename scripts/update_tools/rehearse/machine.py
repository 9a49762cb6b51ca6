# SPDX-License-Identifier: Apache-2.0
"""One scenario on one machine: power button, boot loader, and the record of what happened.

`play` runs in a process of its own, which becomes the machine's outside: it never sees the host again. What
happens is in the journal; at the end of each update the machine's files are compared with those before.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from update_tools.bench.env import Copy, Environment
from update_tools.rehearse import runner, sandbox, trees
from update_tools.rehearse.plan import KILL
from update_tools.rehearse.server import Server
from update_tools.rehearse.template import (
    CONTROL,
    ENV_BYTES,
    ENV_DEVICE,
    ROOT_FOLDERS,
    SLOTS,
    pack_environment,
)

if TYPE_CHECKING:
    Json = dict[str, Any]

_REBOOT, _CUT, _ENDED = 10, 11, 12  # exit codes of the machine's first process
_STALL_S = 150  # nothing in the journal for so long, beside a program's patience: nothing will come
_LONGEST_S = 300  # of one update
_BOOTS = 20  # of one update
_SLOTS_DIR = "/.slots"
_FIRST_VALUES = {
    "mender_boot_part": SLOTS[0],
    "mender_boot_part_hex": SLOTS[0],
    "upgrade_available": "0",
    "bootcount": "0",
    "bootlimit": "1",
    "boot_failure": "",
}
_AGENT_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "UPDATE_CONTROL_SOCKET": "/run/update-agent/control.sock",
}


class Machine:
    """The machine seen from its boot loader."""

    def __init__(self, task: Json) -> None:
        self._task = task
        self._control = Path(CONTROL)
        self._running = SLOTS[0]
        self._ids = sandbox.enter(task["mount_at"], usr=task["lower"])
        sandbox.end_with_parent()
        self._furnish()
        sandbox.leave_host()
        self.notes = runner.Notes(f"{CONTROL}/journal")
        self._boot: sandbox.Boot | None = None
        self._boots = 0
        self._is_mounted = False
        self._leg: Json = {}

    # Making it

    def _furnish(self) -> None:
        """Copy what it starts with, while the host can be seen."""
        root = Path(f"/.host{self._task['root']}")
        self._control.mkdir()
        (self._control / "bin").mkdir()
        shutil.copy("/.host/usr/bin/date", self._control / "bin/date")
        shutil.copy(f"/.host{self._task['artifact']}", self._control / "artifact.mender")
        for name in os.listdir(root):
            if name not in ROOT_FOLDERS:
                _copy(root / name, Path("/") / name)
        for slot in SLOTS:
            for name in ROOT_FOLDERS:
                _copy(root / name, Path(_SLOTS_DIR, slot, name))
            with open(f"{ENV_DEVICE}p{slot}", "wb") as file:
                file.write(self._task["old"].encode())
        _copy(root / "etc", Path(_SLOTS_DIR, "image/etc"))
        for name in ROOT_FOLDERS:
            Path("/", name).mkdir(exist_ok=True)
            if name != "etc":
                _copy(root / name, Path(_SLOTS_DIR, "image", name))
        for name in ("log", "cmdline", "journal", "output", "points", "kill"):
            (self._control / name).write_text("")
        (self._control / "ahead").write_text(f"{self._task['ahead_s']:.0f}\n")
        with open(ENV_DEVICE, "wb") as file:
            file.write(pack_environment(_FIRST_VALUES, 1) + pack_environment(_FIRST_VALUES, 2))
        for path in ("/data", _SLOTS_DIR, CONTROL, *(f"{ENV_DEVICE}{end}" for end in ("", "p2", "p3"))):
            self._own(path)
        for path in self._task["shared"]:
            for part in SLOTS:
                sandbox.bind_readonly(f"/.host{path}", f"{_SLOTS_DIR}/{part}{path}")

    def _own(self, path: str) -> None:
        if os.path.isdir(path):
            self._ids.own(path)
        elif self._ids.first:
            os.chown(path, self._ids.first, self._ids.first)

    # Boot loader

    def _environment(self) -> dict[str, str]:
        with open(ENV_DEVICE, "rb") as file:
            copies = [Copy(offset, file.read(ENV_BYTES)) for offset in (0, ENV_BYTES)]
        return dict(Environment(*copies).values)

    def _set(self, **values: str) -> None:
        merged = {**self._environment(), **values}
        with open(ENV_DEVICE, "r+b") as file:
            file.write(pack_environment(merged, 1) + pack_environment(merged, 2))

    def _load(self) -> None:
        """What the layer's boot script does. A system that does not come up is tried as often as it tries."""
        while True:
            values = self._environment()
            part, failure = values["mender_boot_part"], ""
            is_new = values["upgrade_available"] == "1" and part != self._running
            if values["upgrade_available"] == "1":
                count = int(values["bootcount"]) + 1
                if count > int(values.get("bootlimit", "1")):
                    failure = f"partition {part}: not committed after {count - 1} boot(s)"
                    part = next(slot for slot in SLOTS if slot != part)
                    is_new = False
                    self._set(
                        mender_boot_part=part,
                        mender_boot_part_hex=part,
                        upgrade_available="0",
                        bootcount="0",
                        boot_failure=failure,
                    )
                else:
                    self._set(bootcount=str(count))
                    if not self._leg["is_bootable"]:
                        self.notes("no-boot", slot=part)
                        continue
            self._show_slot(part, is_new=is_new)
            self.notes("boot", slot=part, failure=failure)
            return

    def _show_slot(self, part: str, *, is_new: bool) -> None:
        """Put the slot's own folders at their places; those of a new system are as its image has them."""
        if self._is_mounted:
            for name in ROOT_FOLDERS:
                sandbox.unmount(f"/{name}")
        if is_new:
            for name in ROOT_FOLDERS:
                _refill(Path(_SLOTS_DIR, part, name), Path(_SLOTS_DIR, "image", name), self._ids)
        for name in ROOT_FOLDERS:
            sandbox.bind(f"{_SLOTS_DIR}/{part}/{name}", f"/{name}")
        self._is_mounted = True
        self._running = part
        device = f"{ENV_DEVICE}p{part}"
        (self._control / "mountinfo").write_text(f"21 1 179:{part} / / rw - ext4 {device} rw\n")
        (self._control / "cmdline").write_text(f"root={device}\n")

    # Playing

    def play(self) -> Json:
        """All updates of the scenario. Returns what happened."""
        go, tell = os.pipe(), os.pipe()
        server = os.fork()
        if server == 0:
            os.close(go[1])
            self._serve(go[0], tell[1])
        self._go, self._told = go[1], tell[0]
        legs = []
        try:
            for number, leg in enumerate(self._task["legs"], 1):
                self._leg = leg
                legs.append(self._play_leg(number))
                if legs[-1]["stuck"]:
                    break
        finally:
            if self._boot is not None:
                self._boot.end()
            os.kill(server, signal.SIGKILL)
            os.waitpid(server, 0)
        return {"legs": legs, "output": (self._control / "output").read_text(errors="replace")[-4000:]}

    def _serve(self, go: int, tell: int) -> NoReturn:
        code = 1
        try:
            sandbox.end_with_parent()
            task = self._task
            artifact = Path(f"{CONTROL}/artifact.mender")
            Server(self._control, artifact.read_bytes(), task["device_type"], task["name"], self.notes).serve(
                go, tell
            )
            code = 0
        finally:
            os._exit(code)

    def _play_leg(self, number: int) -> Json:
        before = trees.contents(self._task["ignored"])
        if number == 1:  # the root file system is not at its place yet
            before = {}
        self._journal_at = os.stat(f"{CONTROL}/journal").st_size
        self._log_at = os.stat(f"{CONTROL}/log").st_size
        points_at = os.stat(f"{CONTROL}/points").st_size
        self._plan(number)
        os.write(self._go, b"!")
        self._boots = 0
        if self._boot is None:
            self._start()
            before = trees.contents(self._task["ignored"])
        stuck = self._wait()
        with open(f"{CONTROL}/points", encoding="utf-8") as file:
            file.seek(points_at)
            points = [line.rstrip("\n").split("\t", 1) for line in file]
        with open(f"{CONTROL}/journal", encoding="utf-8", errors="replace") as file:
            file.seek(self._journal_at)
            events = [json.loads(line) for line in file if line.strip()]
        with open(f"{CONTROL}/log", encoding="utf-8", errors="replace") as file:
            file.seek(self._log_at)
            log = file.read()
        return {
            "events": events,
            "points": points,
            "before": before,
            "after": trees.contents(self._task["ignored"]),
            "slot": self._running,
            "environment": self._environment(),
            "stuck": stuck,
            "log": log[-20000:],
        }

    def _plan(self, number: int) -> None:
        task = self._task
        keys = ("patience_s", "patience", "ignored")
        document = {**self._leg, "leg": number, **{key: task[key] for key in keys}}
        beside = self._control / "plan.new"
        beside.write_text(json.dumps(document))
        beside.replace(self._control / "plan")
        kill = self._leg["kill"]
        text = ""
        if kill is not None and not kill["change"]:
            text = f"{kill['name']}\t{kill['occurrence']}\t{kill['side']}\n"
        (self._control / "kill").write_text(text)

    def _start(self) -> None:
        self._boots += 1
        self._load()
        kill = self._leg["kill"]
        goes_on = kill is not None and kill["way"] == KILL
        self._boot = sandbox.Boot(self._ids, lambda: _first_process(goes_on=goes_on))

    def _wait(self) -> str:
        """Until the update is over. Returns why it will not be; empty if it is."""
        begun = moved = time.monotonic()
        seen = 0
        stall_s = _STALL_S + 2 * float(self._task["patience_s"])
        while True:
            assert self._boot is not None
            ready = select.select([self._boot.pidfd, self._told], [], [], 1.0)[0]
            now = time.monotonic()
            size = os.stat(f"{CONTROL}/journal").st_size
            if size != seen:
                seen, moved = size, now
            if self._told in ready:
                os.read(self._told, 1)
                return ""
            if self._boot.pidfd in ready:
                code = self._boot.end()
                self._boot = None
                if code not in {_REBOOT, _CUT}:
                    return "the agent was ended, or ended by itself"
                if self._boots >= _BOOTS:
                    return f"it was booted {self._boots} times"
                self.notes("reboot" if code == _REBOOT else "cut")
                if code == _CUT:
                    (self._control / "kill").write_text("")
                self._start()
            elif now - moved > stall_s:
                return f"nothing happened for {stall_s:.0f} s"
            elif now - begun > _LONGEST_S:
                return f"it took more than {_LONGEST_S} s"


def _first_process(*, goes_on: bool) -> int:
    """What runs first on the machine: keeps the agent running, and takes in what others leave behind."""

    def power_off(*_: object) -> None:
        os._exit(_REBOOT)

    signal.signal(signal.SIGTERM, power_off)
    for folder in ("/run/lock", "/run/update-agent"):
        os.makedirs(folder, exist_ok=True)
    sandbox.bind(f"{CONTROL}/cmdline", "/proc/cmdline")  # scripts look there for the slot they run from
    notes = runner.Notes(f"{CONTROL}/journal")
    agent = _start_agent()
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid != agent:
            continue
        if not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
            return _ENDED
        with open(f"{CONTROL}/killed", "a", encoding="ascii"):
            pass
        if not goes_on:
            return _CUT
        notes("killed")
        with open(f"{CONTROL}/kill", "w", encoding="ascii"):
            pass
        agent = _start_agent()


def _start_agent() -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        output = os.open(f"{CONTROL}/output", os.O_WRONLY | os.O_APPEND)
        for fd, to in ((os.open(os.devnull, os.O_RDONLY), 0), (output, 1), (output, 2)):
            os.dup2(fd, to)
        os.closerange(3, 256)
        os.chdir("/")
        code = runner.run_agent(_AGENT_ENVIRONMENT)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir() and not source.is_symlink():
        shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
    else:
        shutil.copy2(source, target, follow_symlinks=False)


def _refill(folder: Path, image: Path, ids: sandbox.Ids) -> None:
    """Make a slot's folder as the image has it; what is mounted in it stays."""
    for path in folder.iterdir():
        if os.path.ismount(path):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    for path in image.iterdir():
        target = folder / path.name
        if not os.path.ismount(target):
            _copy(path, target)
            if target.is_dir() and not target.is_symlink():
                ids.own(str(target))
            elif ids.first:
                os.lchown(target, ids.first, ids.first)


def play(task: Json) -> Json:
    """Play a task: the document of a scenario, with what `stage` adds. Never returns to the host's root."""
    return Machine(task).play()
