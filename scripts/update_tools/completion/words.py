# SPDX-License-Identifier: Apache-2.0
"""What can stand at the end of a command line: decided from a tree of commands, without running any."""

from __future__ import annotations

from collections.abc import Callable, Sequence

FILES = "files"
FOLDERS = "folders"
NOTHING = "nothing"

Choice = tuple[str, str]
"""A word, and what it means."""


class Value:
    """What an option or argument takes: files, folders, nothing that is known, or words."""

    def __init__(self, kind: str = NOTHING, choices: Callable[[], Sequence[Choice]] = list) -> None:
        self.kind = kind
        self.choices = choices


class Option:
    """An option by all its names; `value` None: a switch."""

    def __init__(self, names: Sequence[str], text: str, value: Value | None) -> None:
        self.names = list(names)
        self.text = text
        self.value = value


class Command:
    """A command; `commands` are loaded when they are reached. `arguments`: the last may be `endless`.

    One that has both takes a command as its very first word only.
    """

    def __init__(
        self,
        options: Sequence[Option] = (),
        arguments: Sequence[Value] = (),
        commands: dict[str, tuple[str, Callable[[], Command]]] | None = None,
        *,
        endless: bool = False,
    ) -> None:
        self.options = list(options)
        self.arguments = list(arguments)
        self.commands = commands or {}
        self.endless = endless

    def option(self, name: str) -> Option | None:
        """The option of this name."""
        return next((option for option in self.options if name in option.names), None)


class Answer:
    """What to offer: words, and whether files or folders count as well."""

    def __init__(self, choices: Sequence[Choice] = (), kind: str = NOTHING) -> None:
        self.choices = list(choices)
        self.kind = kind


def offer(command: Command, words: Sequence[str], current: str) -> Answer:
    """What can stand for `current`, behind the finished `words`."""
    pending: Value | None = None
    position = 0
    only_arguments = False
    is_first = True  # of the command's words
    for word in words:
        if pending is not None:
            pending = None
        elif word == "--" and not only_arguments:
            only_arguments = True
        elif word.startswith("-") and word != "-" and not only_arguments:
            name, equals, _ = word.partition("=")
            option = command.option(name)
            pending = option.value if option is not None and not equals else None
        elif word in command.commands and (is_first or not command.arguments):
            command, position, only_arguments, is_first = command.commands[word][1](), 0, False, True
            continue
        else:
            position += 1
        is_first = False
    if pending is not None:
        return _value(pending, current)
    if current.startswith("-") and not only_arguments:
        name, equals, start = current.partition("=")
        option = command.option(name) if equals else None
        if option is not None and option.value is not None:
            found = _value(option.value, start)
            return Answer([(f"{name}={word}", text) for word, text in found.choices], found.kind)
        names = [(name, option.text) for option in command.options for name in option.names]
        return Answer(_starting(names, current))
    if command.endless and command.arguments:
        position = min(position, len(command.arguments) - 1)
    found = _value(command.arguments[position], current) if position < len(command.arguments) else Answer()
    if is_first or not command.arguments:
        names = [(name, text) for name, (text, _) in command.commands.items()]
        found.choices[:0] = _starting(names, current)
    return found


def _value(value: Value, start: str) -> Answer:
    return Answer(_starting(value.choices(), start), value.kind)


def _starting(choices: Sequence[Choice], start: str) -> list[Choice]:
    return [choice for choice in choices if choice[0].startswith(start)]


def joined(words: Sequence[str]) -> list[str]:
    """Bash takes --option=value apart at the equals sign; put together again."""
    found: list[str] = []
    glue = False
    for word in words:
        if word == "=" and found and found[-1].startswith("--"):
            found[-1] += "="
            glue = True
        elif glue:
            found[-1] += word
            glue = False
        else:
            found.append(word)
    return found
