# SPDX-License-Identifier: Apache-2.0
"""`ota bench-server`: what the control server can do on this machine."""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from update_agent.errors import UpdateError
from update_tools.server.load.measure import Plan, Setting, measure

GOAL_RATIO = 4.0
EXIT_FOUND = 3
KINDS = ("sqlite:1", "postgresql:1", "postgresql:2")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.callback(invoke_without_command=True)
def bench_server(
    devices: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Number of devices; may be repeated. Default: 1000, 10000."),
    ] = None,
    servers: Annotated[
        list[str] | None,
        typer.Option(metavar="DATABASE:PROCESSES", help=f"May be repeated. Default: {', '.join(KINDS)}."),
    ] = None,
    interval: Annotated[float, typer.Option(help="Seconds between a device's polls.")] = 30.0,
    seconds: Annotated[float, typer.Option(help="How long the paced polls last.")] = 60.0,
    flood: Annotated[float, typer.Option(help="Seconds of polls as fast as they go, each round.")] = 8.0,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; the median counts.")] = 3,
    walkers: Annotated[int, typer.Option(min=1, help="Devices that take a deployment to its end.")] = 300,
    authorized: Annotated[
        int, typer.Option(min=1, help="Devices that authorize by request; the others are put in place.")
    ] = 1000,
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures as one JSON document.")] = False,
    output: Annotated[Path | None, typer.Option(help="Write that document to this file as well.")] = None,
) -> None:
    """Simulate devices with the real requests over real connections, and report what the server does.

    Devices are processes of their own: they authorize with signed requests, poll on a new connection each
    time, take a deployment, report, refresh control maps, upload logs and inventories. Each setting gets a
    fresh server. The ratios are against the bare web framework answering a constant, served in the same way,
    measured in turns with the server. On a machine that is busy otherwise, rates say little and processor
    time says more. Exit code 3 when requests failed, or a poll takes more than 4 times the processor time.
    """
    if output is not None and not output.absolute().parent.is_dir():  # told now, not after minutes of work
        raise UpdateError(
            f"there is no folder {output.parent} for --output", hint=f"mkdir -p {output.parent}"
        )
    settings = [
        Setting(*_kind(kind), count) for kind in servers or KINDS for count in devices or (1000, 10_000)
    ]
    plan = Plan(flood, rounds, interval, seconds, walkers, authorized)
    console = Console(stderr=True)
    results = []
    with console.status("", spinner="line") as status:
        for setting in settings:

            def say(text: str) -> None:
                status.update(text)
                if not console.is_terminal:
                    print(text, file=sys.stderr)

            results.append(measure(setting, plan, say))
    machine = {"machine": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
    document = json.dumps({**machine, "results": results}, indent=2)
    if output is not None:
        output.write_text(f"{document}\n")
    if as_json:
        typer.echo(document)
    else:
        _print(results, interval)
    failed = [
        result["setting"]
        for result in results
        if _errors(result) or result["flood"]["cpu_ratio"] > GOAL_RATIO
    ]
    if failed:
        typer.echo(f"not as it should be: {'; '.join(failed)}", err=True)
        raise typer.Exit(EXIT_FOUND)


def _kind(text: str) -> tuple[str, int]:
    database, _, processes = text.partition(":")
    if database not in ("sqlite", "postgresql") or not processes.isdigit() or int(processes) < 1:
        raise UpdateError(f"--servers {text!r} is not DATABASE:PROCESSES", hint="sqlite:1, postgresql:2")
    if database == "sqlite" and processes != "1":
        raise UpdateError("a SQLite file is served by one process", hint="postgresql:2")
    return database, int(processes)


def _print(results: list[dict[str, Any]], interval: float) -> None:
    console = Console(width=max(Console().width, 132))
    table = Table(
        "setting", "polls/s", "p99", "CPU each", "bare/s", "ratio", "CPU ratio", "load", "auth/s", "memory"
    )
    for result in results:
        flood, auth = result["flood"], result["authorize"]
        table.add_row(
            result["setting"],
            f"{flood['poll_per_s']:.0f}",
            _ms(flood["poll_p99_s"]),
            f"{flood['poll_cpu_us']:.0f} us",
            f"{flood['bare_per_s']:.0f}",
            f"{flood['ratio']:.2f}",
            f"{flood['cpu_ratio']:.2f}",
            f"{flood['load']:.0f}",
            f"{auth['kinds']['authorize']['count'] / auth['seconds']:.0f}",
            f"{result['memory_mib']:.0f} (peak {result['peak_mib']:.0f}) MiB",
        )
    console.print(table)
    paced = Table("setting", f"polls/s at {interval:g} s", "p50", "p99", "max", "CPU", "errors")
    for result in results:
        pace, poll = result["pace"], result["pace"]["kinds"]["poll"]
        paced.add_row(
            result["setting"],
            f"{poll['count'] / pace['seconds']:.0f}",
            _ms(poll["p50_s"]),
            _ms(poll["p99_s"]),
            _ms(poll["max_s"]),
            f"{pace['cpu_share'] * 100:.0f} %",
            str(sum(poll["errors"].values())),
        )
    console.print(paced)
    walks = Table(
        "setting", "requests/s", "hand-out p99", "status p99", "map p99", "log p99", "CPU each", "ended"
    )
    for result in results:
        walk, kinds = result["walk"], result["walk"]["kinds"]
        asked = sum(kind["count"] for kind in kinds.values())
        walks.add_row(
            result["setting"],
            f"{asked / walk['seconds']:.0f}",
            *(_ms(kinds[kind]["p99_s"]) for kind in ("hand-out", "status", "map refresh", "log")),
            f"{walk['cpu_ms']:.2f} ms",
            ", ".join(f"{count} {word}" for word, count in walk["outcome"].items()),
        )
    console.print(walks)
    for result in results:
        for what, count in _errors(result).items():
            console.print(f"{result['setting']}: {count} x {what}")


def _errors(result: dict[str, Any]) -> dict[str, int]:
    found: dict[str, int] = {}
    for part in ("authorize", "first polls", "pace", "walk"):
        for kind, tally in result[part]["kinds"].items():
            for what, count in tally["errors"].items():
                found[f"{part}, {kind}: {what}"] = count
    if result["flood"]["poll_errors"]:
        found["flood"] = int(result["flood"]["poll_errors"])
    return found


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"
