# SPDX-License-Identifier: Apache-2.0
"""What an agent takes on the root file system, without interpreter and the libraries that others use, too."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench import peers
from tests.bench.agents import OURS
from tests.bench.report import Row

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.bench.report import Report


def run(tree: Path, report: Report) -> None:
    """Of the recipe's tree, by package; of the peers, the program alone."""
    files = [path for path in tree.resolve().rglob("*") if path.is_file() and not path.is_symlink()]
    code = [path for path in files if path.name == "update-agent.zip"]
    share = [path for path in files if "share/mender" in str(path) and "modules" not in str(path)]
    units = [path for path in files if "systemd" in path.parts or "init.d" in path.parts]
    programs = [path for path in files if path.parent.name == "bin"]
    agent = [*code, *share, *units, *programs]
    report.add(Row("size", "installed", "agent", "KiB"), OURS, _kib(agent))
    for name, (program, _) in peers.PROGRAMS.items():
        for folder in ("bin", "sbin"):
            path = peers.usr() / folder / program
            if path.exists():
                report.add(Row("size", "installed", "agent", "KiB"), name, _kib([path]))


def _kib(files: Iterable[Path]) -> float:
    return sum(path.stat().st_size for path in files) / 1024
