# SPDX-License-Identifier: Apache-2.0
"""`ota inspect footprint`: what the agent adds to an image, by package, held against a budget.

Files are told apart by the FILES of the layer's recipes and by OE-core's split of Python's library, so that
an image without a package database is measured as well.
"""

from __future__ import annotations

import argparse
import json
import tomllib
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from update_tools import python_packages
from update_tools.bench.layer import REPOSITORY, packages
from update_tools.given_path import given_path

from . import terminal
from .findings import Findings
from .source import Opener
from .subject import look
from .tree import InspectError
from .units import mib

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

    from .tree import Tree

EXIT_FOUND = 3
BUDGET = REPOSITORY / "agent/footprint.toml"
_ABOUT = """\
Measure what the agent adds to an image: its own files, and the packages of Python's library that it needs:
all of them, or (--without) what an image without the agent does not have. Sizes are those of the files.

Exit codes: 0 within the budget, 2 cannot be measured, 3 above it, or (--without) a python3 package came that
the agent does not need."""


def run(words: list[str]) -> int:
    """One measurement. Raises SystemExit for wrong usage, UpdateError for what cannot be read."""
    options = parser().parse_args(words)
    with terminal.progress(options.path.name) as advance, Opener(progress=advance) as opener:
        tree = _root(options.path, opener)
        before = _root(options.without, opener) if options.without else None
        report = measure(tree, before, budget(options.budget))
    if options.json:
        print(json.dumps({"path": str(options.path), **report}, indent=2))
    else:
        print(terminal.text(lambda console: _show(str(options.path), report, console)))
    return EXIT_FOUND if report["problems"] else 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    root = argparse.ArgumentParser(
        prog="ota inspect footprint",
        description=_ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = root.add_argument
    add("path", metavar="ROOTFS", type=given_path, help="directory or image (.ext4, .wic, .mender)")
    add("--without", metavar="ROOTFS", type=given_path, help="the same image without the agent")
    add(
        "--budget",
        metavar="FILE",
        type=given_path,
        default=BUDGET,
        help="limits; default: agent/footprint.toml",
    )
    add("--json", action="store_true", help="one JSON document")
    return root


def _root(path: Path, opener: Opener) -> Tree:
    root = look(opener.open(path), Findings()).root
    if root is None:
        raise InspectError(f"{path} has no root file system that can be read", hint="a directory, or ext4")
    return root


def budget(path: Path) -> dict[str, dict[str, int]]:
    """Limits in bytes: `packages` by name, `python` with `beyond-core`. Raises InspectError."""
    try:
        document = tomllib.loads(path.read_text())
        return {
            part: {name: int(limit) << 10 for name, limit in document.get(part, {}).items()}
            for part in ("packages", "python")
        }
    except OSError as error:
        raise InspectError(f"cannot read the budget {path}: {error.strerror}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise InspectError(f"cannot read the budget {path}: {error}") from error


def owner(path: str, files: Mapping[str, list[str]]) -> str:
    """The package that a file is of; empty if it is none of the agent's and not of Python's library."""
    for package, patterns in files.items():
        if any(fnmatchcase(path, pattern) or fnmatchcase(path, f"{pattern}/*") for pattern in patterns):
            return package
    return python_packages.owner(path)


def sizes(tree: Tree) -> dict[str, dict[str, int]]:
    """Files and bytes of each package that the tree has something of."""
    files = packages("FILES")
    found: dict[str, dict[str, int]] = {}
    for path, entry in tree.entries.items():
        if not entry.is_directory and (package := owner(path, files)):
            row = found.setdefault(package, {"files": 0, "bytes": 0})
            row["files"] += 1
            row["bytes"] += entry.size if entry.is_file else 0
    return found


def measure(tree: Tree, before: Tree | None, limits: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    """The report as a document; `problems` are lines for people. Keys are never renamed, only added."""
    now, old = sizes(tree), sizes(before) if before else {}
    ours = [name for name in packages("FILES") if name in now]
    problems = [] if "update-agent" in now else [f"{tree.name} has no agent"]
    agent = {}
    for name in ours:
        limit = limits["packages"].get(name)
        agent[name] = {**now[name], "limit": limit}
        problems += _above(name, now[name]["bytes"], limit)
    depends = packages("RDEPENDS")
    needed = python_packages.closure(
        word for name in ours for word in depends.get(name, []) if word in python_packages.DEPENDS
    )
    python = {}
    for name in sorted(set(now) - set(ours)):
        added = now[name]["bytes"] - old.get(name, {"bytes": 0})["bytes"]
        if added > 0:
            python[name] = {"files": now[name]["files"], "bytes": added, "needed": name in needed}
            if before is not None and name not in needed:
                problems.append(f"{name}: came with the agent, which does not depend on it")
    beyond = sum(python[name]["bytes"] for name in needed & set(python) - {python_packages.CORE})
    limit = limits["python"].get("beyond-core")
    problems += _above("Python beyond its core", beyond, limit)
    return {
        "agent": agent,
        "agent_bytes": sum(now[name]["bytes"] for name in ours),
        "python": python,
        "python_beyond_core": {"bytes": beyond, "limit": limit},
        "compared": before is not None,
        "problems": problems,
    }


def _above(what: str, size_bytes: int, limit: int | None) -> list[str]:
    return [f"{what}: {mib(size_bytes)}, allowed are {mib(limit)}"] if limit and size_bytes > limit else []


def _show(path: str, report: Mapping[str, Any], console: Console) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(path), title_justify="left", title_style="bold", box=None, pad_edge=False)
    for column in ("package", "files", "size", "allowed", ""):
        table.add_column(column, justify="left" if column in {"package", ""} else "right")

    def add(name: str, files: str, size_bytes: int, limit: int | None = None, note: str = "") -> None:
        table.add_row(name, files, mib(size_bytes), mib(limit) if limit else "", note)

    for name, row in report["agent"].items():
        add(name, str(row["files"]), row["bytes"], row["limit"])
    add("[bold]the agent[/bold]", "", report["agent_bytes"])
    for name, row in report["python"].items():
        add(name, str(row["files"]), row["bytes"], note="" if row["needed"] else "not for the agent")
    beyond = report["python_beyond_core"]
    add("[bold]needed of Python beyond its core[/bold]", "", beyond["bytes"], beyond["limit"])
    console.print(table)
    for line in report["problems"]:
        console.print(f"[red]{escape(line)}")
