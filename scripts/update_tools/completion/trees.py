# SPDX-License-Identifier: Apache-2.0
"""The tree of commands as completion needs it, from argparse's parsers and from Typer's commands."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

from .words import FILES, FOLDERS, NOTHING, Choice, Command, Option, Value

Special = Mapping[str, Callable[[], Sequence[Choice]]]
"""Of a module: name of an option or argument -> the words for it, as COMPLETE says."""

_FILES = {"ARTIFACT", "FILE", "IMAGE", "IMAGE|DIRECTORY|ARTIFACT", "PATH", "ROOTFS"}
_FOLDERS = {"DIR", "DIRECTORY", "FOLDER"}


def root(subcommands: Mapping[str, tuple[str, str]]) -> Command:
    """The whole tree; a branch is imported when it is reached."""
    return Command([_HELP], commands=_branches(subcommands))


def _branches(modules: Mapping[str, tuple[str, str]]) -> dict[str, tuple[str, Callable[[], Command]]]:
    return {name: (text, _branch(module)) for name, (module, text) in modules.items()}


_HELP = Option(["-h", "--help"], "show help", None)


def _branch(module_name: str) -> Callable[[], Command]:
    def load() -> Command:
        try:
            module = import_module(module_name)
        except ImportError:
            return Command()
        special: Special = getattr(module, "COMPLETE", {})
        parser = getattr(module, "parser", None)
        if parser is not None:
            takes_word = bool(inspect.signature(parser).parameters)

            def make(chosen: str) -> argparse.ArgumentParser:
                made = parser(chosen) if takes_word else parser()
                assert isinstance(made, argparse.ArgumentParser)
                return made

            command = _argparse(make(""), special, make, [])
            command.commands.update(_branches(getattr(module, "COMMANDS", {})))
            return command
        app = getattr(module, "app", None)
        if app is None:
            return Command()
        import typer.main

        return _typer(typer.main.get_command(app), special)

    return load


# argparse


def _argparse(
    parser: argparse.ArgumentParser,
    special: Special,
    parsers: Callable[[str], argparse.ArgumentParser],
    path: list[str],
) -> Command:
    """`parsers` makes the whole parser again for a chosen command: some fill in only that."""
    options: list[Option] = []
    arguments: list[Value] = []
    endless = False
    commands: dict[str, tuple[str, Callable[[], Command]]] = {}
    for action in parser._actions:
        if action.help == argparse.SUPPRESS:
            continue
        if isinstance(action, argparse._SubParsersAction):
            texts = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for name in action.choices:
                commands[name] = (texts.get(name, ""), _deeper(special, parsers, [*path, name]))
        elif action.option_strings:
            value = None if action.nargs == 0 else _argparse_value(action, special)
            options.append(Option(action.option_strings, action.help or "", value))
        else:
            arguments.append(_argparse_value(action, special))
            endless = endless or action.nargs in {"*", "+", argparse.REMAINDER}
    return Command(options, arguments, commands, endless=endless)


def _deeper(
    special: Special, parsers: Callable[[str], argparse.ArgumentParser], path: list[str]
) -> Callable[[], Command]:
    def load() -> Command:
        parser = parsers(path[0])
        for name in path:
            (subparsers,) = [
                action for action in parser._actions if isinstance(action, argparse._SubParsersAction)
            ]
            parser = subparsers.choices[name]
        return _argparse(parser, special, parsers, path)

    return load


def _argparse_value(action: argparse.Action, special: Special) -> Value:
    if action.dest in special:
        return Value(NOTHING, special[action.dest])
    if action.choices is not None:
        words = [(str(choice), "") for choice in action.choices]
        return Value(NOTHING, lambda: words)
    return Value(_kind(str(action.metavar or "")))


def _kind(metavar: str) -> str:
    return FILES if metavar in _FILES else FOLDERS if metavar in _FOLDERS else NOTHING


# Typer: it brings its own copy of click, so only what a command looks like counts here.


def _typer(command: Any, special: Special) -> Command:
    options = [_HELP]
    arguments: list[Value] = []
    for parameter in command.params:
        if getattr(parameter, "hidden", False) or "--help" in parameter.opts:
            continue
        if parameter.param_type_name == "argument":
            arguments.append(_typer_value(parameter, special))
            continue
        is_switch = getattr(parameter, "is_flag", False)
        value = None if is_switch else _typer_value(parameter, special)
        names = [*parameter.opts, *parameter.secondary_opts]
        options.append(Option(names, getattr(parameter, "help", None) or "", value))
    commands = {
        name: (_first_line(inner.help), _typer_later(inner, special))
        for name, inner in getattr(command, "commands", {}).items()
        if not inner.hidden
    }
    return Command(options, arguments, commands)


def _typer_later(command: Any, special: Special) -> Callable[[], Command]:
    return lambda: _typer(command, special)


def _typer_value(parameter: Any, special: Special) -> Value:
    if parameter.name in special:
        return Value(NOTHING, special[parameter.name])
    described = getattr(parameter, "type_descriptor", None)
    kinds = _plain_types(getattr(described, "annotation", None))
    if any(issubclass(kind, Enum) for kind in kinds):
        words = [(str(member.value), "") for kind in kinds if issubclass(kind, Enum) for member in kind]
        return Value(NOTHING, lambda: words)
    if any(issubclass(kind, Path) for kind in kinds):
        is_folder = {"dir", "folder", "directory"} & {parameter.name, parameter.opts[0].strip("-")}
        return Value(FOLDERS if is_folder else FILES)
    return Value()


def _plain_types(annotation: Any) -> list[type]:
    """The classes in `Path`, `Path | None`, `list[Path] | None`."""
    if isinstance(annotation, type):
        return [annotation]
    return [kind for inner in get_args(annotation) for kind in _plain_types(inner)]


def _first_line(text: str | None) -> str:
    return (text or "").strip().partition("\n")[0]
