# SPDX-License-Identifier: Apache-2.0
"""The desk tools under one name, `ota`.

Exit codes of every command: 0 done, 1 a bug (traceback), 2 wrong usage or input, 3 something was found by a
command that looks for faults, 130 interrupted, 141 the reader of its output went away.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from importlib import import_module

from update_agent.errors import UpdateError

TYPE_CHECKING = False  # without loading typing
if TYPE_CHECKING:
    import typer
    from typing_extensions import Buffer

# name: (module, help). The module has a Typer object `app`; or a function `run(words)` if it has to start
# fast: Typer alone takes 100 ms to load.
SUBCOMMANDS = {
    "board": ("update_tools.bench.cli", "Virtual boards: create, boot, console, power cut, reset."),
    "server": ("update_tools.server.cli", "The control server: run it, manage its users and artifacts."),
    "bench-server": ("update_tools.server.load.cli", "Simulate devices and measure the control server."),
    "artifact": ("update_tools.artifact_cli", "Artifacts: write, sign, read, validate, unpack."),
    "flash": ("update_tools.flash.cli", "Write an image to a card, verify it, make it one device's."),
    "rehearse": ("update_tools.rehearse.cli", "Run your state scripts through every failure and power cut."),
    "inspect": ("update_tools.inspect.cli", "What is in an image or artifact, and what is wrong with it."),
    "completion": ("update_tools.completion.cli", "Completion with Tab for bash, zsh and fish."),
}
EXIT_NO_READER = 141  # as if SIGPIPE had ended it
_ABOUT = "Desk tools of meta-update: artifacts, cards, virtual boards, a control server, rehearsals."
_EPILOG = (
    "Exit codes: 0 done, 1 a bug, 2 wrong usage or input, 3 faults were found, 130 interrupted. "
    "--json prints one document, progress is shown on a terminal only. "
    'Tab: eval "$(scripts/ota completion bash)"'
)


def command_line(chosen: str = "") -> typer.Typer:
    """All commands by name, and what is in the branch `chosen`: the others' imports take up to a second."""
    import typer

    app = typer.Typer(
        name="ota",
        help=_ABOUT,
        epilog=_EPILOG,
        no_args_is_help=True,
        add_completion=False,  # Typer's knows nothing of the branches that are not Typer's
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)  # keeps one branch alone from becoming the root command
    for name, (module, text) in SUBCOMMANDS.items():
        branch = getattr(import_module(module), "app", None) if chosen == name and _is_there(module) else None
        if branch is not None:
            app.add_typer(branch, name=name, help=text)
        elif chosen not in SUBCOMMANDS and _is_there(module):
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
    _open_what_is_closed()
    output = _watched_output()
    code = 0
    try:
        code = _exit_code(words)
        sys.stdout.flush()
    except OSError:
        if output is None or output.failure is None:
            raise
    except KeyboardInterrupt:
        return 130
    if output is not None and output.failure is not None:
        return _output_failed(output.failure)
    return code


class _Output(io.FileIO):
    """Standard output that remembers why it could not be written, whoever catches that first."""

    failure: OSError | None = None

    def write(self, data: Buffer, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.failure = error
            raise


def _open_what_is_closed() -> None:
    """What a shell closed (`>&-`): the next file that is opened, a card, must not take its number."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            file = open(os.devnull, "r" if number == 0 else "w", encoding="utf-8")  # noqa: SIM115
            os.set_inheritable(file.fileno(), True)  # as it is for what we start
            setattr(sys, name, file)


def _watched_output() -> _Output | None:
    """Puts it under sys.stdout; None if that is something else already, or closed."""
    before = sys.stdout
    if before is None or before is not sys.__stdout__ or not isinstance(before, io.TextIOWrapper):
        return None
    output = _Output(before.fileno(), "w", closefd=False)
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(output),
        encoding=before.encoding,
        errors="backslashreplace" if before.errors == "strict" else before.errors,  # of what a locale lacks
        line_buffering=before.line_buffering,
    )
    return output


def _output_failed(error: OSError) -> int:
    # What is buffered goes nowhere, instead of failing once more when Python ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if error.errno == errno.EPIPE:
        return EXIT_NO_READER
    print(f"ota: cannot write the output: {error.strerror}", file=sys.stderr)
    return 2


def _exit_code(words: list[str]) -> int:
    try:
        _run(words)
    except SystemExit as exit_:
        if isinstance(exit_.code, str):
            print(f"ota: {exit_.code}", file=sys.stderr)
            return 2
        return exit_.code or 0
    except UpdateError as error:
        print(f"ota: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"     {error.hint}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
