# SPDX-License-Identifier: Apache-2.0
"""`scripts/conform SUBCOMMAND FILE...`; exit codes 0 all passed, 1 some failed, 2 usage or input."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module

from update_agent.errors import UpdateError

# name: (module with `run(paths, write) -> failures`, help)
SUBCOMMANDS = {
    "control-maps": ("update_tools.conform.control_maps", "update control maps: parse, pool, evaluate, wait"),
}


def main(arguments: list[str] | None = None) -> int:
    """Run one subcommand and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="scripts/conform", description="Run test vectors against the agent's real decision code."
    )
    subcommands = parser.add_subparsers(dest="subcommand", required=True, metavar="SUBCOMMAND")
    for name, (_, text) in SUBCOMMANDS.items():
        subcommand = subcommands.add_parser(name, help=text, description=text)
        subcommand.add_argument("files", nargs="+", metavar="FILE", help="JSON file of vectors")
    chosen = parser.parse_args(arguments)
    module = import_module(SUBCOMMANDS[chosen.subcommand][0])
    try:
        failures: int = module.run(chosen.files, print)
    except UpdateError as error:
        print(f"scripts/conform: {error}", file=sys.stderr)
        return 2
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
