# SPDX-License-Identifier: Apache-2.0
"""The desk tools under one name, `ota`. Exit codes: 0, 1 bug (traceback), 2 usage or input, 130 Ctrl-C."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec

import typer

from update_agent.errors import UpdateError

# name: (module with the Typer object `app`, help)
SUBCOMMANDS = {
    "board": ("update_tools.bench.cli", "Virtual boards: create, boot, console, power cut, reset."),
    "server": ("update_tools.server.cli", "The control server: run it, manage its users and artifacts."),
    "bench-server": ("update_tools.server.load.cli", "Simulate devices and measure the control server."),
    "artifact": ("update_tools.artifact_cli", "Artifacts: write, sign, read, compare."),
}


def command_line(chosen: str = "") -> typer.Typer:
    """The whole tree of commands, or only the branch `chosen`: the others' imports take up to a second."""
    app = typer.Typer(
        name="ota",
        help="Desk tools of meta-update: virtual boards, control server, artifacts.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)  # keeps one branch alone from becoming the root command
    for name, (module, text) in SUBCOMMANDS.items():
        if (chosen not in SUBCOMMANDS or chosen == name) and _is_there(module):
            app.add_typer(import_module(module).app, name=name, help=text)
    return app


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # its package is not there either
        return False


def _root() -> None:
    pass


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return the exit code. Bugs are not caught: their traceback is wanted."""
    words = sys.argv[1:] if arguments is None else arguments
    app = command_line(words[0] if words else "")
    try:
        app(words, prog_name="ota")
    except SystemExit as exit_:
        return exit_.code if isinstance(exit_.code, int) else 0
    except UpdateError as error:
        print(f"ota: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"     {error.hint}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
