# SPDX-License-Identifier: Apache-2.0
"""`ota inspect`: the command line. Exit codes beside the usual ones: 3 when errors were found, for CI."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from . import (
    agent_config,
    artifact,
    boards,
    boot_script,
    dtb,
    elf,
    partitions,
    scripts_hooks,
    secrets,
    uboot_env,
)
from .findings import CATALOGUE, Findings
from .report import document, show
from .source import Opener
from .subject import finish, look

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .subject import Subject

EXIT_FOUND = 3
_WIDTH_PIPED = 160

SECTIONS: tuple[tuple[str, Callable[[Subject], dict[str, object] | None]], ...] = (
    ("artifact", artifact.section),
    ("partitions", partitions.section),
    ("environment", uboot_env.section),
    ("boot_script", boot_script.section),
    ("devicetrees", dtb.section),
    ("agent", agent_config.section),
    ("scripts", scripts_hooks.section),
    ("programs", elf.section),
    ("secrets", secrets.section),
)

_ABOUT = """\
Show what is in an image of a card (.wic), a root file system (.ext4, or a directory) or an artifact
(.mender), and what is wrong with it. Images may be compressed (.bz2, .xz, .zst, .gz). Needs no root and no
other program, and changes nothing.

Exit codes: 0 no error, 2 cannot be inspected, 3 errors were found (with --strict: or warnings).
`ota inspect footprint` measures what the agent adds to an image."""


def run(words: list[str]) -> int:
    """One inspection. Raises SystemExit for wrong usage, UpdateError for what cannot be read."""
    if words[:1] == ["footprint"]:
        from . import footprint

        return footprint.run(words[1:])
    options = parser().parse_args(words)
    if options.list:
        return _list()
    if options.path is None:
        parser().error("IMAGE is missing")
    with _progress() as advance, Opener(progress=advance) as opener:
        report = inspect(
            options.path,
            opener,
            with_artifact=options.artifact,
            machine=options.machine,
            architecture=options.arch,
            compatible=options.compatible,
        )
    if options.json:
        print(json.dumps(report, indent=2, ensure_ascii=False))
    else:
        from rich.console import Console

        show(report, Console(width=None if sys.stdout.isatty() else _WIDTH_PIPED))
    found = bool(report["errors"]) or (options.strict and bool(report["warnings"]))
    return EXIT_FOUND if found else 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    root = argparse.ArgumentParser(
        prog="ota inspect", description=_ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = root.add_argument
    add("path", metavar="IMAGE", nargs="?", type=Path, help="image, directory or artifact")
    add("--artifact", metavar="FILE", type=Path, help="artifact that shall fit the image")
    add("-m", "--machine", default="", help="machine of the layer; default: the image's device type")
    add("--arch", default="", help=f"architecture: {', '.join(boards.ARCHITECTURES)}")
    add("--compatible", default="", metavar="TEXT", help="what /compatible of its device tree begins with")
    add("--strict", action="store_true", help="warnings count as errors")
    add("--json", action="store_true", help="one JSON document with all details")
    add("--list", action="store_true", help="list everything that can be found")
    return root


def inspect(
    path: Path,
    opener: Opener,
    *,
    with_artifact: Path | None = None,
    machine: str = "",
    architecture: str = "",
    compatible: str = "",
) -> dict[str, object]:
    """The report as a document. Raises UpdateError for what cannot be read."""
    findings = Findings()
    subject = look(opener.open(path), findings)
    if with_artifact is not None:
        subject.artifact = opener.open_artifact(with_artifact)
    subject.board = boards.choose(machine, architecture, compatible, subject.device_type)
    sections = {name: section(subject) for name, section in SECTIONS}
    finish(subject)
    return document(str(path), subject.source.kind, subject.board.document(), sections, findings)


def _list() -> int:
    for name, (severity, meaning, _) in CATALOGUE.items():
        print(f"{severity:8}{name:28}{meaning}")
    return 0


@contextmanager
def _progress() -> Iterator[Callable[[int], object]]:
    """Shows how much was unpacked, on a terminal, while that goes on."""
    if not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("unpacking"), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("unpacking", total=None, visible=False)

        def advance(count: int) -> None:
            bar.update(task, advance=count, visible=True)

        yield advance
