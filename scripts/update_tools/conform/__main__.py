# SPDX-License-Identifier: Apache-2.0
"""`scripts/conform SUBCOMMAND FILE...`; exit codes 0 all passed, 1 some failed, 2 usage or input."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from importlib import import_module

from update_agent.errors import UpdateError

# name: (module with `run([paths, ]write, **options) -> failures` and perhaps `add_options(parser)`, help)
SUBCOMMANDS = {
    "control-maps": ("update_tools.conform.control_maps", "update control maps: parse, pool, evaluate, wait"),
    "scenarios": ("update_tools.conform.scenarios", "update flows, played against the real agent"),
    "kills": ("update_tools.conform.kills", "whole updates, the agent killed once at every point"),
}
WITHOUT_FILES = ("kills",)


def main(arguments: list[str] | None = None) -> int:
    """Run one subcommand and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="scripts/conform", description="Run test vectors against the agent's real decision code."
    )
    subcommands = parser.add_subparsers(dest="subcommand", required=True, metavar="SUBCOMMAND")
    for name, (module, text) in SUBCOMMANDS.items():
        subcommand = subcommands.add_parser(name, help=text, description=text)
        if name not in WITHOUT_FILES:
            subcommand.add_argument("files", nargs="+", metavar="FILE", help=f"JSON file of {name}")
        add_options = getattr(import_module(module), "add_options", None)
        if add_options is not None:
            add_options(subcommand)
    chosen = vars(parser.parse_args(arguments))
    run = import_module(SUBCOMMANDS[chosen.pop("subcommand")][0]).run
    try:
        files = [chosen.pop("files")] if "files" in chosen else []
        failures: int = run(*files, partial(print, flush=True), **chosen)
    except UpdateError as error:
        print(f"scripts/conform: {error}", file=sys.stderr)
        return 2
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
