# SPDX-License-Identifier: Apache-2.0
"""`ota completion`: prints the script for a shell, and answers what such a script asks."""

from __future__ import annotations

import argparse
import sys

from .shells import SCRIPTS
from .trees import root
from .words import joined, offer

_ABOUT = """\
Print the completion script of a shell. It offers commands, options, files and media with Tab.

  bash   eval "$(scripts/ota completion bash)"       in ~/.bashrc, with the whole path
  zsh    eval "$(scripts/ota completion zsh)"        in ~/.zshrc behind compinit, with the whole path
  fish   scripts/ota completion fish > ~/.config/fish/completions/ota.fish"""


def run(words: list[str]) -> int:
    """One command. Raises SystemExit for wrong usage."""
    if words[:1] == ["--words"]:
        answer(words[1:])
        return 0
    options = parser().parse_args(words)
    print(SCRIPTS[options.shell], end="")
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    root_parser = argparse.ArgumentParser(
        prog="ota completion", description=_ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    root_parser.add_argument("shell", metavar="SHELL", choices=list(SCRIPTS), help=", ".join(SCRIPTS))
    return root_parser


def answer(words: list[str]) -> None:
    """Print what can stand for the last word: its kind, then a line for each word and its meaning."""
    from update_tools.__main__ import SUBCOMMANDS

    whole = joined(words) or [""]
    found = offer(root(SUBCOMMANDS), whole[:-1], whole[-1])
    lines = [found.kind, *(f"{word}\t{' '.join(text.split())}" for word, text in found.choices)]
    sys.stdout.write("\n".join(lines) + "\n")
