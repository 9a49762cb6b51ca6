# SPDX-License-Identifier: Apache-2.0
"""`ota board`: a virtual board for a person. Its state is a directory; it stays on when the command ends."""

from __future__ import annotations

import json
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from . import boards, image, rootfs
from .layer import REPOSITORY
from .qemu import DESK, Board
from .tools import BenchError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Virtual boards: real U-Boot, kernel and A/B card in QEMU.",
)

_HOME = REPOSITORY / "build/boards"
_LEAVE = b"\x1d"  # Ctrl-]

COMPLETE = {  # for the Tab key
    "kind": lambda: [(name, "") for name in boards.BOARDS],
    "name": lambda: [(path.name, "") for path in sorted(_HOME.glob("*/")) if not path.name.startswith(".")],
}

Name = Annotated[str, typer.Argument(help="Name of the board; its files are in build/boards/NAME.")]
Dir = Annotated[
    Path | None, typer.Option("--dir", help="Directory of the board, instead of build/boards/NAME.")
]


def _place(name: str, directory: Path | None) -> Path:
    return directory if directory is not None else _HOME / name


def _document(board: Board) -> dict[str, object]:
    """What `_show` tells, for programs."""
    found = board.read_env()
    return {
        "directory": str(board.directory),
        "kind": board.kind.machine,
        "on": board.is_running(),
        "environment": None if found.newer is None else dict(found.values),
        "environment_copies": (found.newer is not None) + (found.older is not None),
        "card_bytes": board.disk.stat().st_size,
        "card_used_bytes": image.allocated_bytes(board.disk),
        "console": str(board.console.log),
    }


@contextmanager
def _waiting(text: str) -> Iterator[None]:
    """Something moves on a terminal while nothing else does; elsewhere all is quiet."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(text):
        yield


def _show(board: Board) -> None:
    state = "on" if board.is_running() else "off"
    typer.echo(f"{board.directory}: {board.kind.machine}, {state}")
    found = board.read_env()
    if found.newer is None:
        typer.echo("  both environment copies are bad: U-Boot will start slot A with its defaults")
    else:
        for name in ("mender_boot_part", "upgrade_available", "bootcount", "boot_failure"):
            typer.echo(f"  {name}={found.values.get(name, '')}")
        if found.older is None:
            typer.echo("  one environment copy is bad; the other counts")
    typer.echo(
        f"  card: {image.allocated_bytes(board.disk) >> 20} MiB of {board.disk.stat().st_size >> 20} MiB used"
    )
    typer.echo(f"  console: {board.console.log}")


@app.command()
def create(
    name: Name = "board",
    directory: Dir = None,
    kind: Annotated[str, typer.Option(help=f"Kind of board: {', '.join(boards.BOARDS)}.")] = "virt64",
    version: Annotated[str, typer.Option(help="Version that slot A calls itself.")] = "1",
    server_port: Annotated[
        int, typer.Option(help="Port of a control server on this machine; 0: no server.")
    ] = 0,
    poll_s: Annotated[int, typer.Option(help="How often the agent asks for updates.")] = 10,
) -> None:
    """Make a board: this repository's agent in slot A, slot B empty. An old one of that name is replaced."""
    place = _place(name, directory)
    started = time.monotonic()
    place.parent.mkdir(parents=True, exist_ok=True)
    row = boards.kind(kind)
    settings: dict[str, object] = {"UpdatePollIntervalSeconds": poll_s}
    if server_port:
        settings["ServerURL"] = f"http://{DESK}:{server_port}"
    root = place.parent / f".{place.name}.ext4"
    text = "making U-Boot, kernel and root file system: minutes the first time, seconds after"
    try:
        with _waiting(text):
            rootfs.make_rootfs(root, row, version=version)
            board = Board.create(place, root, kind=kind, settings=settings)
    finally:
        root.unlink(missing_ok=True)
    typer.echo(f"made in {time.monotonic() - started:.0f} s")
    _show(board)


@app.command()
def boot(name: Name = "board", directory: Dir = None) -> None:
    """Switch on and wait for the shell; the board stays on."""
    board = Board(_place(name, directory))
    started = time.monotonic()
    with _waiting("booting"):
        booted = board.boot()
    typer.echo(f"{booted}, up after {time.monotonic() - started:.1f} s")


@app.command()
def console(name: Name = "board", directory: Dir = None) -> None:
    """Attach to the serial console of a running board. Ctrl-] leaves; the board stays on."""
    board = Board(_place(name, directory))
    if not board.is_running():
        raise BenchError("the board is off", hint="ota board boot")
    if not sys.stdin.isatty():
        raise BenchError("the console needs a terminal", hint="ota board shell runs a command")
    typer.echo("Ctrl-] leaves", err=True)
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setraw(sys.stdin)
        _attach(board)
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
    typer.echo("", err=True)


def _attach(board: Board) -> None:
    with open(board.console.log, "rb") as log:
        log.seek(max(0, board.console.log.stat().st_size - 2000))
        while board.is_running():
            os.write(1, log.read())
            if select.select([0], [], [], 0.05)[0]:
                typed = os.read(0, 4096)
                if not typed or _LEAVE in typed:
                    return
                board.console.type(typed.decode(errors="replace"))
            board.console.drain()


@app.command()
def shell(
    command: Annotated[str, typer.Argument(help="What to run as root on the board.")],
    name: Annotated[str, typer.Option(help="Name of the board.")] = "board",
    directory: Dir = None,
    timeout_s: Annotated[float, typer.Option("--timeout", help="Seconds to wait for it.")] = 60.0,
) -> None:
    """Run a command on a running board; its exit status becomes ours."""
    said = Board(_place(name, directory)).shell(command, timeout_s)
    typer.echo(said.output, nl=False)
    raise typer.Exit(said.code)


@app.command()
def power_cut(name: Name = "board", directory: Dir = None) -> None:
    """Take the power away, now: QEMU is killed, and what was written so far stays written."""
    board = Board(_place(name, directory))
    board.power_cut()
    _show(board)


@app.command()
def reset(name: Name = "board", directory: Dir = None) -> None:
    """Put the card back as it was created; the power is cut first."""
    board = Board(_place(name, directory))
    started = time.monotonic()
    with _waiting("copying the card"):
        board.reset()
    typer.echo(f"reset in {time.monotonic() - started:.1f} s")


@app.command()
def status(
    name: Name = "board",
    directory: Dir = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """On or off, what the boot environment on the card says, and where the console log is."""
    board = Board(_place(name, directory))
    if as_json:
        typer.echo(json.dumps(_document(board), indent=2, ensure_ascii=False))
    else:
        _show(board)


@app.command()
def torture(
    cuts: Annotated[int, typer.Option(min=1, help="How many power cuts.")] = 100,
    kind: Annotated[str, typer.Option(help=f"Kind of board: {', '.join(boards.BOARDS)}.")] = "virt64",
    seed: Annotated[int, typer.Option(help="The same seed plans the same cuts.")] = 1,
    first: Annotated[int, typer.Option(min=1, help="Begin with this cut of the plan.")] = 1,
    directory: Annotated[
        Path | None, typer.Option("--dir", help="Where it happens, instead of build/torture/KIND-SEED.")
    ] = None,
) -> None:
    """Update a board again and again, and cut its power at random moments; judge each start and each report.

    Some seconds for a cut: a hundred take about an hour. Exit code 1 if anything was not as it must be.
    """
    from update_tools.torture import cli as torture_cli

    boards.kind(kind)
    place = directory if directory is not None else REPOSITORY / f"build/torture/{kind}-{seed}"
    if not torture_cli.run(place, kind=kind, seed=seed, cuts=cuts, first=first):
        raise typer.Exit(1)
