# SPDX-License-Identifier: Apache-2.0
"""`ota inspect`: the command line. Exit codes beside the usual ones: 3 when errors were found, for CI."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from update_tools.given_path import given_path

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
    terminal,
    tryboot,
    uboot_env,
)
from .findings import CATALOGUE, Findings
from .report import document, show
from .source import Opener
from .subject import finish, look

if TYPE_CHECKING:
    from .subject import Subject

EXIT_FOUND = 3
SCHEMA = Path(__file__).with_name("report.schema.json")

SECTIONS: tuple[tuple[str, Callable[[Subject], dict[str, object] | None]], ...] = (
    ("artifact", artifact.section),
    ("partitions", partitions.section),
    ("environment", uboot_env.section),
    ("boot_script", boot_script.section),
    ("tryboot", tryboot.section),
    ("devicetrees", dtb.section),
    ("agent", agent_config.section),
    ("scripts", scripts_hooks.section),
    ("programs", elf.section),
    ("secrets", secrets.section),
)

# Commands of their own: (module, text), as in update_tools.__main__. Dispatch, help and Tab go by them.
COMMANDS = {"footprint": ("update_tools.inspect.footprint", "what the agent adds to an image (ROOTFS)")}

# For Tab: words for options that take one of a few.
COMPLETE: dict[str, Callable[[], list[tuple[str, str]]]] = {
    "machine": lambda: [(name, "") for name in boards.machines()],
    "arch": lambda: [(name, "") for name in boards.ARCHITECTURES],
}

_ABOUT = """\
Show what is in an image of a card (.wic), a root file system (.ext4, or a directory) or an artifact
(.mender), and what is wrong with it. Images may be compressed (.bz2, .xz, .zst, .gz). Needs no root, and
changes nothing.

  ota inspect card.wic.zst                            tables, and findings with what to do
  ota inspect --artifact release-2.mender card.wic    does it fit, is it signed by a key of the image?
  ota inspect --strict --json card.wic                for CI

Exit codes: 0 no error, 2 cannot be inspected, 3 errors were found (with --strict: or warnings).
All findings, and the JSON document: scripts/update_tools/inspect/README.md."""


def run(words: list[str]) -> int:
    """One inspection. Raises SystemExit for wrong usage, UpdateError for what cannot be read."""
    if words and words[0] in COMMANDS:
        code: int = import_module(COMMANDS[words[0]][0]).run(words[1:])
        return code
    options = parser().parse_args(words)
    if options.list:
        return _list()
    if options.schema:
        print(SCHEMA.read_text(), end="")
        return 0
    if options.path is None:
        parser().error("IMAGE, DIRECTORY or ARTIFACT is missing")
    with terminal.progress(options.path.name) as advance, Opener(progress=advance) as opener:
        report = inspect(
            options.path,
            opener,
            with_artifact=options.artifact,
            machine=options.machine,
            architecture=options.arch,
            compatible=options.compatible,
        )
    print(_json(report) if options.json else terminal.text(lambda console: show(report, console)))
    found = bool(report["errors"]) or (options.strict and bool(report["warnings"]))
    return EXIT_FOUND if found else 0


def _json(report: dict[str, object]) -> str:
    """One document; names of files that are no UTF-8 with JSON's escapes."""
    return json.dumps(report, indent=2, ensure_ascii=False).encode(errors="backslashreplace").decode()


def parser() -> argparse.ArgumentParser:
    """The command line."""
    root = argparse.ArgumentParser(
        prog="ota inspect", description=_ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = root.add_argument
    add("path", metavar="IMAGE|DIRECTORY|ARTIFACT", nargs="?", type=given_path, help="what to look into")
    add("--artifact", metavar="FILE", type=given_path, help="artifact that shall fit the image")
    add("-m", "--machine", default="", help="machine of the layer; default: the image's device type")
    add("--arch", default="", help=f"architecture: {', '.join(boards.ARCHITECTURES)}")
    add("--compatible", default="", metavar="TEXT", help="what /compatible of its device tree begins with")
    add("--strict", action="store_true", help="warnings count as errors")
    add("--json", action="store_true", help="one JSON document with all details")
    add("--schema", action="store_true", help="print the JSON schema of that document")
    add("--list", action="store_true", help="list everything that can be found")
    lines = [f"  {name:22}{text}" for name, (_, text) in COMMANDS.items()]
    root.add_argument_group("commands, as the first word (--help tells more)", "\n".join(lines))
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
    head = {
        "path": str(path),
        "kind": subject.source.kind,
        "compression": subject.source.compression,
        "board": subject.board.document(),
    }
    return document(head, sections, findings)


def _list() -> int:
    for name, (severity, meaning, _) in CATALOGUE.items():
        print(f"{severity:8}{name:28}{meaning}")
    return 0
