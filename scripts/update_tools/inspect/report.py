# SPDX-License-Identifier: Apache-2.0
"""Shows what was found: tables for people, or one JSON document."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .findings import ERROR
from .units import mib

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .findings import Findings

_PACKAGES_SHOWN = 12
_VARIABLES_SHOWN = (
    "mender_boot_part",
    "upgrade_available",
    "bootcount",
    "bootlimit",
    "altbootcmd",
    "boot_failure",
)


def document(
    path: str, kind: str, board: Mapping[str, object], sections: Mapping[str, Any], findings: Findings
) -> dict[str, object]:
    """Everything, for `--json`. Keys are never renamed, only added."""
    return {
        "path": path,
        "kind": kind,
        "board": dict(board),
        **sections,
        "findings": [finding.document() for finding in findings],
        "errors": findings.count(ERROR),
        "warnings": len(findings) - findings.count(ERROR),
    }


def show(report: Mapping[str, Any], console: Console) -> None:
    """The report as tables; the findings last, where they are seen."""
    board = report["board"]
    names = ", ".join(escape(str(value)) for value in board.values() if value)
    console.print(f"[bold]{escape(report['path'])}[/bold]: {report['kind']}, board: {names or 'not known'}")
    for name, shower in _SHOWERS.items():
        if report.get(name):
            console.print()
            for item in shower(report[name]):
                console.print(item)
    console.print()
    _show_findings(report, console)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for column in columns:
        right = column in {"start", "size", "offset"}
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    return table


def _row(table: Table, *cells: object) -> None:
    table.add_row(*(escape("" if cell is None else str(cell)) for cell in cells))


def _partitions(section: Mapping[str, Any]) -> Iterable[Table]:
    table = _table(
        f"Partitions ({section['scheme']}, {mib(section['size_bytes'])})",
        *("no.", "role", "start", "size", "type", "file system", "label"),
    )
    for part in section["partitions"]:
        label = part["label"] or part["name"]
        _row(
            table,
            part["number"],
            part["role"],
            mib(part["start_bytes"]),
            mib(part["size_bytes"]),
            part["type"] + ("*" if part["active"] else ""),
            part["filesystem"],
            label,
        )
    yield table


def _environment(section: Mapping[str, Any]) -> Iterable[Table]:
    table = _table("U-Boot environment", "offset", "size", "checksum", "counter", "")
    for place, copy in zip(section["places"], section.get("copies", [{}, {}]), strict=False):
        checksum = {True: "good", False: "wrong", None: "not read"}[copy.get("valid")]
        in_use = "in use" if copy.get("active") else ""
        _row(table, f"{place['offset']:#x}", f"{place['size']:#x}", checksum, copy.get("counter"), in_use)
    yield table
    values = section.get("variables", {})
    if values:
        table = _table(f"{len(values)} variables, of which", "name", "value")
        for name in _VARIABLES_SHOWN:
            if name in values:
                _row(table, name, values[name])
        yield table


def _boot(section: Mapping[str, Any]) -> Iterable[Table]:
    table = _table(
        f"Boot script {section['name']!r}, {mib(section['size_bytes'])}", "loads to", "from the slot"
    )
    for variable, path in section["loads"].items():
        _row(table, variable, path)
    yield table


def _devicetrees(section: Mapping[str, Any]) -> Iterable[Table]:
    table = _table("Device trees", "file", "model", "compatible", "bootargs", "cards")
    for path, tree in section.items():
        cards = ", ".join(f"{card} {status}" for card, status in tree["mmc"].items())
        _row(table, path, tree["model"], ", ".join(tree["compatible"]), tree["bootargs"], cards)
    yield table


def _programs(section: Mapping[str, Any]) -> Iterable[Table]:
    table = _table(
        f"{len(section['files'])} programs and libraries, {section['architecture']}", "hardening", ""
    )
    for name, count in section["hardening"].items():
        _row(table, name, count)
    yield table
    sizes = list(section["size_by_package"].items())
    table = _table(f"Their size by package ({section['packages_from']})", "package", "size")
    for name, size in sizes[:_PACKAGES_SHOWN]:
        _row(table, name, mib(size))
    if rest := sizes[_PACKAGES_SHOWN:]:
        _row(table, f"{len(rest)} more", mib(sum(size for _, size in rest)))
    yield table


def _scripts(section: Mapping[str, Any]) -> Iterable[Table]:
    if section["scripts"]:
        table = _table("State scripts, in the order in which they run", "state", "action", "script", "from")
        for row in section["scripts"]:
            _row(table, row["state"], row["action"], row["script"], row["from"])
        yield table
    if section["hooks"]:
        table = _table("Pause hooks", "point", "hook", "kind", "at most", "then")
        for row in section["hooks"]:
            limit = f"{row['limit_s']} s" if row["limit_s"] else "no limit"
            kind = f"{row['kind']} {row['program']}".strip()
            _row(table, row["point"], row["hook"], kind, limit, row["at_limit"])
        yield table


def _agent(section: Mapping[str, Any]) -> Iterable[Table]:
    table = _table("Agent", "", "")
    _row(table, "program", ", ".join(section["programs"]) or "none")
    _row(table, "device type", section["device_type"] or "not set")
    for name, value in section["settings"].items():
        _row(table, name, value)
    yield table


def _artifact(section: Mapping[str, Any]) -> Iterable[Table]:
    table = _table("Artifact", "", "")
    _row(table, "name", section["name"])
    _row(table, "payload", f"{section['payload_type'] or 'none'}, {section['compression']}")
    _row(table, "device types", ", ".join(section["device_types"]))
    _row(table, "signed", "yes" if section["signed"] else "no")
    for name, size in section["files"].items():
        _row(table, name, mib(size))
    for name, value in section["provides"].items():
        _row(table, f"provides {name}", value)
    yield table


_SHOWERS = {
    "artifact": _artifact,
    "partitions": _partitions,
    "environment": _environment,
    "boot_script": _boot,
    "devicetrees": _devicetrees,
    "agent": _agent,
    "scripts": _scripts,
    "programs": _programs,
}


def _show_findings(report: Mapping[str, Any], console: Console) -> None:
    for finding in report["findings"]:
        style = "red" if finding["severity"] == ERROR else "yellow"
        console.print(
            f"[{style}]{finding['severity']}[/{style}] [bold]{finding['name']}[/bold] "
            f"{escape(finding['where'])}: {escape(finding['what'])}"
        )
        console.print(f"    {escape(finding['hint'])}", style="dim")
    errors, warnings = report["errors"], report["warnings"]
    if not errors and not warnings:
        console.print("[green]nothing wrong was found[/green]")
    else:
        console.print(f"{errors} error(s), {warnings} warning(s)")
