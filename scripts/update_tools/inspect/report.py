# SPDX-License-Identifier: Apache-2.0
"""Shows what was found: tables for people, or one JSON document."""

from __future__ import annotations

import json
import os
from collections import Counter
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from .findings import ERROR
from .units import mib

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from rich.console import Console

    from .findings import Findings

FORMAT = 1  # of the JSON document: report.schema.json
_PACKAGES_SHOWN = 12
_TREES_SHOWN = 6
_SAME_SHOWN = 10
_VARIABLES_SHOWN = (
    "mender_boot_part",
    "upgrade_available",
    "bootcount",
    "bootlimit",
    "altbootcmd",
    "boot_failure",
)
_RIGHT = {"start", "size", "used", "offset", "files"}
# GPT's types that boards have; the others are shown by their first digits.
_TYPES = {
    "0fc63daf-8483-4772-8e79-3d69d8477de4": "Linux",
    "c12a7328-f81f-11d2-ba4b-00a0c93ec93b": "EFI system",
    "ebd0a0a2-b9e5-4433-87c0-68b6b72699c7": "basic data",
    "b921b045-1df0-41c3-af44-4c6f280d3fae": "root, arm64",
    "69dad710-2ce4-4e3c-b16c-21a1d49abed3": "root, arm",
    "4f68bce3-e8cd-4db1-96e7-fbcaf984b709": "root, x86-64",
}
_HARDENING = {"pie": "PIE", "relro": "RELRO", "relro_full": "full", "canary": "canary", "nx": "NX"}


def document(
    head: Mapping[str, object], sections: Mapping[str, Any], findings: Findings
) -> dict[str, object]:
    """Everything, for `--json`; report.schema.json describes it. Keys are never renamed, only added."""
    return {
        "format": FORMAT,
        **head,
        **sections,
        "findings": [finding.document() for finding in findings],
        "errors": findings.count(ERROR),
        "warnings": len(findings) - findings.count(ERROR),
    }


def show(report: Mapping[str, Any], console: Console) -> None:
    """The report as tables; the findings last, where they are seen."""
    names = ", ".join(_safe(value) for value in report["board"].values() if value)
    kind = report["kind"] if report["compression"] == "none" else f"{report['kind']}, {report['compression']}"
    console.print(f"[bold]{_safe(report['path'])}[/bold]: {kind}; board: {names or 'not known'}")
    for name, shower in _SHOWERS.items():
        if report.get(name):
            for item in shower(report[name]):
                console.print()
                console.print(item)
    console.print()
    _show_findings(report, console)


def _safe(value: object) -> str:
    """Text of an image: no markup, and no control characters that a terminal would obey."""
    text = "" if value is None else str(value)
    return escape("".join(char if char.isprintable() else _escaped(char) for char in text))


def _escaped(char: str) -> str:
    return " " if char in "\n\t" else ascii(char)[1:-1]


def _table(title: str, *columns: str) -> Table:
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        header_style="dim",
        box=None,
        pad_edge=False,
        show_header=any(columns),
    )
    for column in columns:
        right = column in _RIGHT or column in _HARDENING.values()
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    return table


def _row(table: Table, *cells: object, style: str = "") -> None:
    table.add_row(*(_safe(cell) for cell in cells), style=style)


def _partitions(section: Mapping[str, Any]) -> Iterable[Table]:
    table = _table(
        f"Partitions ({section['scheme']}, {mib(section['size_bytes'])})",
        *("no.", "role", "start", "size", "used", "type", "file system", "label"),
    )
    for part in section["partitions"]:
        kind = _TYPES.get(part["type"], part["type"][:8]) + ("*" if part["active"] else "")
        _row(
            table,
            part["number"],
            part["role"],
            mib(part["start_bytes"]),
            mib(part["size_bytes"]),
            "" if part["used_bytes"] is None else mib(part["used_bytes"]),
            kind,
            part["filesystem"],
            part["label"] or part["name"],
        )
    yield table


def _environment(section: Mapping[str, Any]) -> Iterable[Table]:
    table = _table("U-Boot environment", "device", "offset", "size", "checksum", "counter", "")
    copies = section.get("copies") or [{}] * len(section["places"])
    for place, copy in zip(section["places"], copies, strict=True):
        checksum = {True: "good", False: "wrong", None: "not read"}[copy.get("valid")]
        in_use = "in use" if copy.get("active") else ""
        at, size = f"{place['offset']:#x}", f"{place['size']:#x}"
        _row(table, place["device"], at, size, checksum, copy.get("counter"), in_use)
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
        f"Boot script {_safe(section['name'])}, {mib(section['size_bytes'])}", "loads to", "from the slot"
    )
    for variable, path in section["loads"].items():
        _row(table, variable, path)
    yield table


def _tryboot(section: Mapping[str, Any]) -> Iterable[Table]:
    table = _table("Raspberry Pi's tryboot", "", "")
    table.show_header = False
    for name, node in section["parts"].items():
        _row(table, name, node)
    if section["text"]:
        _row(table, "autoboot.txt", section["text"])
    yield table


def _devicetrees(section: Mapping[str, Any]) -> Iterable[Table]:
    table = _table("Device trees", "file", "board", "card of slots and environment")
    wanted = {path: tree for path, tree in section.items() if tree["loaded"] or tree["fits"]}
    shown = list((wanted or section).items())[:_TREES_SHOWN]
    for path, tree in shown:
        card = tree["card"]
        where = f"{card['alias']} {card['node']}: {card['status']}".strip() if card else "not said"
        board = f"{tree['model']} ({', '.join(tree['compatible'])})"
        _row(table, path + (", loaded" if tree["loaded"] else ""), board, where)
        if tree["bootargs"]:
            _row(table, "", f"bootargs: {tree['bootargs']}", style="dim")
    if len(section) > len(shown):
        _row(table, f"and {len(section) - len(shown)} more")
    yield table


def _programs(section: Mapping[str, Any]) -> Iterable[Table]:
    names = tuple(_HARDENING.values())
    table = _table(
        f"{len(section['files'])} programs and libraries ({_safe(section['architecture'])}), hardening",
        *(f"package ({section['packages_from']})", "size", *names),
    )
    sizes = section["size_by_package"]
    _row(table, "all", mib(sum(sizes.values())), *_counts(section["hardening"]), style="bold")
    for name, size in list(sizes.items())[:_PACKAGES_SHOWN]:
        _row(table, name, mib(size), *_counts(section["hardening_by_package"][name]))
    if rest := list(sizes.values())[_PACKAGES_SHOWN:]:
        _row(table, f"{len(rest)} more", mib(sum(rest)))
    yield table


def _counts(hardening: Mapping[str, Mapping[str, int]]) -> list[str]:
    counts = [hardening[name] for name in _HARDENING]
    return [f"{count['have']}/{count['of']}" if count["of"] else "" for count in counts]


def _scripts(section: Mapping[str, Any]) -> Iterable[Table]:
    if section["scripts"]:
        table = _table("State scripts, in the order in which they run", "state", "action", "script", "from")
        for row in section["scripts"]:
            _row(table, row["state"], row["action"], row["script"], row["from"])
        yield table
    if section["never_run"]:
        table = _table("State scripts that never run", "script", "why")
        for row in section["never_run"]:
            _row(table, row["script"], row["why"])
        yield table
    if section["hooks"]:
        table = _table("Pause hooks, in the order in which an update reaches them")
        for column in ("point", "hook", "holds", "at most", "then"):
            table.add_column(column, overflow="fold")
        table.show_header = True
        for row in section["hooks"]:
            limit = f"{row['limit_s']} s" if row["limit_s"] else "no limit"
            kind = f"{row['kind']} {row['program']}".strip()
            if row["window"]:
                kind = f"outside {row['window']}, for {row['lasting_s']} s"
            _row(table, row["point"], os.path.basename(row["hook"]), kind, limit, row["at_limit"])
        yield table


def _agent(section: Mapping[str, Any]) -> Iterable[Table]:
    table = _table("Agent", "", "")
    table.show_header = False
    _row(table, "program", ", ".join(section["programs"]) or "none")
    _row(table, "device type", section["device_type"] or "not set")
    for name, value in section["settings"].items():
        _row(table, name, _setting(value))
    yield table


def _setting(value: object) -> str:
    """As mender.conf has it; of a list of servers their addresses."""
    if isinstance(value, list):
        return ", ".join(map(_setting, value))
    if isinstance(value, dict):
        return _setting(*value.values()) if len(value) == 1 else json.dumps(value, ensure_ascii=False)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _artifact(section: Mapping[str, Any]) -> Iterable[Table]:
    table = _table("Artifact", "", "")
    table.show_header = False
    _row(table, "name", section["name"])
    _row(table, "payload", f"{section['payload_type'] or 'none'}, {section['compression']}")
    _row(table, "device types", ", ".join(section["device_types"]))
    _row(table, "signed", "yes" if section["signed"] else "no")
    for name, size in section["files"].items():
        _row(table, name, f"{mib(size)} {section['filesystem']}".strip())
    if section["slot_bytes"]:
        share = 100 * sum(section["files"].values()) // section["slot_bytes"]
        _row(table, "slot", f"{mib(section['slot_bytes'])}, the payload takes {share} %")
    for name, value in section["provides"].items():
        _row(table, f"provides {name}", value)
    for name, values in section["depends"].items():
        if name != "device_type":
            _row(table, f"depends on {name}", ", ".join(values))
    yield table


_SHOWERS = {
    "artifact": _artifact,
    "partitions": _partitions,
    "environment": _environment,
    "boot_script": _boot,
    "tryboot": _tryboot,
    "devicetrees": _devicetrees,
    "agent": _agent,
    "scripts": _scripts,
    "programs": _programs,
}


def _show_findings(report: Mapping[str, Any], console: Console) -> None:
    """Each on a line of its own, so that grep finds it, and what to do on the next."""
    wraps = not console.is_terminal
    shown: Counter[str] = Counter()
    of_name = Counter(finding["name"] for finding in report["findings"])
    for finding in report["findings"]:
        name = finding["name"]
        shown[name] += 1
        if console.is_terminal and shown[name] > _SAME_SHOWN:  # a pipe gets all
            if shown[name] == of_name[name]:
                rest = of_name[name] - _SAME_SHOWN
                console.print(f"    and {rest} more of {name}: --json, or a pipe, has all", style="dim")
            continue
        style = "red" if finding["severity"] == ERROR else "yellow"
        head = Text.from_markup(
            f"[{style}]{finding['severity']}[/{style}] [bold]{finding['name']}[/bold] "
            f"{_safe(finding['where'])}: {_safe(finding['what'])}"
        )
        console.print(head, soft_wrap=wraps)
        console.print(Text(f"    {finding['hint']}", style="dim"), soft_wrap=wraps)
    errors, warnings = report["errors"], report["warnings"]
    if not errors and not warnings:
        console.print("[green]nothing wrong was found[/green]")
    else:
        console.print(f"{_many(errors, 'error')}, {_many(warnings, 'warning')}")


def _many(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"
