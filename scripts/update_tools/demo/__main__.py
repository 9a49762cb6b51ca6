# SPDX-License-Identifier: Apache-2.0
"""An A/B update with state scripts and a pause, a broken version, a refused version: on real parts.

Real: U-Boot with its saved environment, two root partitions, the kernel, the agent, the control server, and
the artifacts, which are made by Debian's `mender-artifact`. Emulated: the board (QEMU).
"""

from __future__ import annotations

import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.rule import Rule
from rich.table import Table

from update_agent.errors import UpdateError
from update_tools.bench import boards
from update_tools.bench.layer import REPOSITORY
from update_tools.bench.qemu import DESK, Board
from update_tools.demo.artifacts import make_artifact, make_system
from update_tools.server import run as server
from update_tools.server.client import Management

POINT = "ArtifactReboot_Enter"
# Seconds. A board in the field polls every half hour; nobody would watch that.
SETTINGS = {
    "UpdatePollIntervalSeconds": 2,
    "InventoryPollIntervalSeconds": 60,
    "RetryPollIntervalSeconds": 5,
    # Twice the poll interval by default: far too short a life for a map on a busy desk.
    "UpdateControlMapExpirationTimeSeconds": 3600,
}
_LONG_S = 420.0


class Act:
    """A deployment as the summary shows it."""

    def __init__(self, title: str, expected: str) -> None:
        self.title = title
        self.expected = expected
        self.status = "not run"
        self.cause = ""
        self.slots = ""
        self.seconds = 0.0

    @property
    def is_right(self) -> bool:
        """It ended as it should."""
        return self.status == self.expected


class Demo:
    """One run. `say` explains each step in a line."""

    def __init__(self, folder: Path, *, presses_itself: bool, port: int, console: Console) -> None:
        self.folder = folder
        self.presses_itself = presses_itself
        self.port = port
        self.console = console
        self.kind = boards.kind("virt64")
        self.acts: list[Act] = []
        self.facts: list[tuple[str, str]] = []
        self._board: Board | None = None
        self._server: server.Server | None = None

    # Words

    def title(self, text: str) -> None:
        """Begin a part."""
        self.console.print()
        self.console.print(Rule(f"[bold]{text}", align="left"))

    def say(self, text: str) -> None:
        """Explain."""
        self.console.print(f"  {text}", highlight=False)

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        """Something that takes time: shown while it goes on, with its seconds when done."""
        started = time.monotonic()
        if self.console.is_terminal:
            with self.console.status(text):
                yield
        else:
            self.say(f"{text} …")
            yield
        self.say(f"{text} [dim]({time.monotonic() - started:.0f} s)[/dim]")

    # Parts

    @property
    def board(self) -> Board:
        """The board, once it was made."""
        assert self._board is not None
        return self._board

    @property
    def management(self) -> Management:
        """The server's management side."""
        assert self._server is not None
        return self._server.management()

    def prepare(self) -> None:
        """Server, board, first boot."""
        self.title("The board")
        with self.step("U-Boot, kernel and root file system from Debian's packages (kept for the next time)"):
            image = make_system(self.folder, self.kind, "version-1")
        # Nobody should have to make a user for a demo: no login, and so this machine only.
        self._server = server.start(
            self.folder / "server", self.port, auto_accept=True, needs_login=False, outlives_us=True
        )
        self.say(f"control server at [bold]{self._server.url}[/bold]")
        settings = {**SETTINGS, "ServerURL": f"http://{DESK}:{self._server.port}"}
        with self.step("writing an SD card: boot partition, root A with version 1, empty root B, data"):
            place = self.folder / "board"
            self._board = Board.create(place, image, kind=self.kind.machine, settings=settings)
        started = time.monotonic()
        with self.step("switching on: U-Boot, Linux, the agent"):
            booted = self.board.boot()
        self.facts.append(("boot, switch to shell", f"{time.monotonic() - started:.1f} s"))
        self.say(f"running from {booted}; its console: {self._short(self.board.console.log)}")
        with self.step("the agent makes its key, is accepted, and submits its inventory"):
            self._wait_for_device()
        self._measure(image)

    def good_update(self) -> None:
        """Version 2: pause before the reboot, continue, commit."""
        act = self._act("version 2, paused before reboot", "success")
        artifact = self._release("version-2")
        self.say(f"deploying with a pause at {POINT}; state scripts run around every state")
        deployment = self._deploy(artifact, "version-2", pause=True)
        with self.step("download, write to root B, read back, install"):
            self.management.wait(deployment, lambda it: bool(it["paused_at"]), timeout_s=_LONG_S)
        self.say(
            "[bold yellow]paused before the reboot[/bold yellow]: saved; a power cut would change nothing"
        )
        page = f"{self.management.base_url}/deployments/{deployment}"
        self.say(f"the page shows it, with the buttons Continue and Roll back: {page}")
        self._let_go_on(deployment)
        with self.step("reboot into root B, self-test script, commit"):
            self._finish(act, deployment)
        self._show_device_log(deployment)

    def panic(self) -> None:
        """Version 3: init panics, U-Boot falls back."""
        act = self._act("version 3, init panics", "failure")
        artifact = self._release("version-3", variant="panic")
        deployment = self._deploy(artifact, "version-3")
        with self.step("install, reboot, panic; U-Boot counts and goes back to the old slot"):
            self._finish(act, deployment)
        self._show_failure(act, deployment)

    def refusal(self) -> None:
        """Version 4: boots, but its commit script refuses."""
        act = self._act("version 4, a commit script refuses", "failure")
        artifact = self._release("version-4", scripts="refusing")
        deployment = self._deploy(artifact, "version-4")
        with self.step("install, reboot, health check says no; the agent rolls back"):
            self._finish(act, deployment)
        self._show_failure(act, deployment)

    def summary(self) -> bool:
        """The table at the end. True if all went as it should."""
        self.title("Summary")
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("deployment", "reported", "runs from", "seconds", "cause"):
            table.add_column(name, overflow="fold")
        for act in self.acts:
            mark = "[green]" if act.is_right else "[bold red]"
            table.add_row(act.title, f"{mark}{act.status}", act.slots, f"{act.seconds:.0f}", act.cause or "-")
        self.console.print(table)
        self.console.print()
        for name, value in self.facts:
            self.say(f"{name:<34} {value}")
        return all(act.is_right for act in self.acts)

    def close(self, *, keep: bool) -> None:
        """Switch everything off, or say how to reach it and how to end it."""
        if keep and self._server is not None and self._board is not None:
            board = self._short(self.board.directory)
            self.say(f"server and board stay up: {self._server.url}")
            self.say(f"the board's console:   scripts/ota board console --dir {board}   (Ctrl-] leaves)")
            self.say(f"switch it off:         scripts/ota board power-cut --dir {board}")
            self.say(f"end the server:        kill {self._server.pid}")
            return
        if self._board is not None and self._board.is_running():
            self._board.power_cut()
        if self._server is not None:
            self._server.stop()

    # Pieces

    def _short(self, path: Path) -> str:
        return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)

    def _act(self, title: str, expected: str) -> Act:
        self.title(title[:1].upper() + title[1:])
        act = Act(title, expected)
        self.acts.append(act)
        return act

    def _release(self, version: str, *, variant: str = "good", scripts: str = "") -> str:
        with self.step(f"root file system and artifact of {version}, made by mender-artifact"):
            image = make_system(self.folder, self.kind, version, variant)
            artifact = make_artifact(image, version, self.kind.machine, *([scripts] if scripts else []))
            self.management.upload(artifact)
        if version == "version-2":
            self.facts.append(("artifact of version 2 (gzip)", f"{artifact.stat().st_size / 1e6:.1f} MB"))
        image.unlink()
        return version

    def _deploy(self, artifact: str, name: str, *, pause: bool = False) -> str:
        states = {POINT: {"action": "pause"}} if pause else {}
        return self.management.deploy(name, artifact, map={"states": states} if pause else None)

    def _finish(self, act: Act, deployment: str) -> None:
        started = time.monotonic()
        self.management.wait(deployment, lambda it: it["status"] == "finished", timeout_s=_LONG_S)
        act.seconds = time.monotonic() - started
        (device,) = self.management.devices(deployment)
        while device["status"] == "failure" and not device["log"] and time.monotonic() < started + _LONG_S:
            time.sleep(0.2)  # the device uploads it right after the report
            (device,) = self.management.devices(deployment)
        act.status, act.cause = device["status"], device["substate"] if device["status"] == "failure" else ""
        act.slots = self._root()

    def _root(self) -> str:
        said = self.board.check("tr ' ' '\\n' </proc/cmdline | sed -n 's/^root=//p'; cat /etc/update-version")
        device, version = said.split()
        return f"{device}, {version}"

    def _let_go_on(self, deployment: str) -> None:
        if self.presses_itself:
            self.say("pressing Continue (--yes)")
            self.management.continue_(deployment)
            return
        self.console.print("  [bold]Press Continue on the page, or Enter here.[/bold]", end=" ")
        while self.management.deployment(deployment)["paused_at"]:
            ready, _, _ = select.select([sys.stdin], [], [], 1.0)
            if ready:
                if sys.stdin.readline() == "":
                    raise UpdateError("nobody is there to continue", hint="scripts/demo --yes")
                self.management.continue_(deployment)
                break
        self.console.print()

    def _wait_for_device(self) -> None:
        deadline = time.monotonic() + 120
        while not any(self.management.inventory(it["id"]) for it in self.management.known_devices()):
            if time.monotonic() > deadline:
                raise UpdateError("the board did not come to the server", hint=self._agent_log())
            time.sleep(0.5)

    def _agent_log(self) -> str:
        return "its log ends with:\n" + self.board.shell("tail -n 20 /data/log/update-agent.log").output

    def _measure(self, image: Path) -> None:
        agent = self.board.check("ps | sed -n 's/^ *\\([0-9]*\\) .*[u]pdate-agent daemon.*/\\1/p'").split()[0]
        resident = self.board.check(f"sed -n 's/^VmRSS:[^0-9]*\\([0-9]*\\).*/\\1/p' /proc/{agent}/status")
        self.facts.append(("idle agent, resident", f"{int(resident) / 1024:.1f} MiB"))
        used = self.board.check("df -k / | awk 'NR == 2 { print $3 }'")
        slot = image.stat().st_size >> 20
        self.facts.append(("root file system", f"{int(used) / 1024:.0f} MiB used of {slot}"))

    def _show_device_log(self, deployment: str) -> None:
        log = self.board.check(f"cat /data/mender/deployments.*.{deployment}.log")
        self._excerpt(log.splitlines(), "what the scripts said, from the deployment log on the device")

    def _show_failure(self, act: Act, deployment: str) -> None:
        (device,) = self.management.devices(deployment)
        self.say(f"the server shows [bold]{act.status}[/bold]: {act.cause}")
        log = self.management.log(deployment, device["id"])
        self._excerpt(log.splitlines(), "from the log that the device uploaded")

    def _excerpt(self, lines: list[str], title: str) -> None:
        wanted = ("Collected output", "fell back", "rror", "Going on")
        shown = [line for line in lines if any(word in line for word in wanted)]
        self.say(f"[dim]{title}:[/dim]")
        for line in shown[-8:]:
            self.console.print(f"    {_message(line)}", style="dim", highlight=False, markup=False)


def _message(line: str) -> str:
    """The text of a log line: JSON on the device, plain on the server."""
    before, found, rest = line.partition('"message": "')
    text = rest.rpartition('"')[0] if found else before
    return text[:160]


def _run(
    yes: Annotated[bool, typer.Option("--yes", help="Press Continue without asking.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Leave server and board running at the end.")] = False,
    port: Annotated[int, typer.Option(help="Port of the control server; 0 takes a free one.")] = 0,
    folder: Annotated[
        Path, typer.Option("--dir", help="Where board, server data and artifacts go.")
    ] = REPOSITORY / "build" / "demo",
) -> None:
    """Show an A/B update with state scripts and a pause on a virtual board, and how failures end."""
    console = Console(width=None if sys.stdout.isatty() else 110)
    started = time.monotonic()
    demo = Demo(folder, presses_itself=yes, port=port, console=console)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    fine = False
    try:
        _clear(folder)
        acts: list[Callable[[], Any]] = [demo.prepare, demo.good_update, demo.panic, demo.refusal]
        for act in acts:
            act()
        fine = demo.summary()
        demo.say(f"{'whole demo':<34} {time.monotonic() - started:.0f} s")
    finally:
        demo.close(keep=keep and fine)
    raise typer.Exit(0 if fine else 1)


def _clear(folder: Path) -> None:
    """Begin anew: an older run's board is switched off, its data removed."""
    import shutil

    if (folder / "board" / "board.json").exists():
        board = Board(folder / "board")
        if board.is_running():
            board.power_cut()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def main() -> int:
    """Run it; expected errors become one line."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(_run)
    try:
        app(standalone_mode=False)
    except typer.Exit as result:
        return result.exit_code
    except UpdateError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, typer.Abort):
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
