# SPDX-License-Identifier: Apache-2.0
"""The desk tools under one name, `ota`. Exit codes: 0, 1 bug (traceback), 2 usage or input, 130 Ctrl-C."""

from __future__ import annotations

import sys
from importlib import import_module

from update_agent.errors import UpdateError

TYPE_CHECKING = False  # without loading typing
if TYPE_CHECKING:
    import typer

# name: (module, help). The module has a Typer object `app`; or a function `run(words)` if it has to start
# fast: Typer alone takes 100 ms to load.
SUBCOMMANDS = {
    "board": ("update_tools.bench.cli", "Virtual boards: create, boot, console, power cut, reset."),
    "server": ("update_tools.server.cli", "The control server: run it, manage its users and artifacts."),
    "bench-server": ("update_tools.server.load.cli", "Simulate devices and measure the control server."),
    "artifact": ("update_tools.artifact_cli", "Artifacts: write, sign, read, compare."),
    "flash": ("update_tools.flash.cli", "Write an image to a card, verify it, make it one device's."),
    "rehearse": ("update_tools.rehearse.cli", "Run your state scripts through every failure and power cut."),
    "inspect": ("update_tools.inspect.cli", "What is in an image or artifact, and what is wrong with it."),
    "completion": ("update_tools.completion.cli", "Completion with Tab for bash, zsh and fish."),
}


def command_line(chosen: str = "") -> typer.Typer:
    """The whole tree of commands, or only the branch `chosen`: the others' imports take up to a second."""
    import typer

    app = typer.Typer(
        name="ota",
        help="Desk tools of meta-update: virtual boards, control server, artifacts.",
        no_args_is_help=True,
        add_completion=False,  # Typer's knows nothing of the branches that are not Typer's
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)  # keeps one branch alone from becoming the root command
    for name, (module, text) in SUBCOMMANDS.items():
        if (chosen not in SUBCOMMANDS or chosen == name) and _is_there(module):
            branch = getattr(import_module(module), "app", None)
            if branch is not None:
                app.add_typer(branch, name=name, help=text)
            else:
                app.command(name, help=text)(_run_by_main)
    return app


def _is_there(module: str) -> bool:
    from importlib.util import find_spec

    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # its package is not there either
        return False


def _root() -> None:
    pass


def _run_by_main() -> None:
    """Only to be listed: main runs it."""


def _run(words: list[str]) -> None:
    """The command the words name. Raises SystemExit when it is done, UpdateError when it failed."""
    name = words[0] if words else ""
    if name in SUBCOMMANDS:
        try:
            run = getattr(import_module(SUBCOMMANDS[name][0]), "run", None)
        except ModuleNotFoundError:
            run = None  # a part that is not there, or lacks something: told below
        if run is not None:
            sys.exit(run(words[1:]))
    command_line(name)(words, prog_name="ota")


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return the exit code. Bugs are not caught: their traceback is wanted."""
    words = sys.argv[1:] if arguments is None else arguments
    try:
        _run(words)
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
