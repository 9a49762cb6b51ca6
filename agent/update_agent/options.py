# SPDX-License-Identifier: Apache-2.0
"""The option table: what the command line takes. `--help`, man page and completion are made from it."""

from __future__ import annotations

from update_agent.errors import ConfigError
from update_agent.states import POINTS, STOP_BEFORE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

PROGRAM = "update-agent"
ALIAS = "mender-update"  # the same program, under the name that scripts of the field call


class Option:
    """One option: its spellings, the placeholder of its value ("" for a switch), and what it does."""

    __slots__ = ("attribute", "help", "names", "repeat", "value")

    def __init__(self, names: str, value: str, attribute: str, text: str, *, repeat: bool = False) -> None:
        self.names = names.split()
        self.value = value
        self.attribute = attribute
        self.help = text
        self.repeat = repeat


class Command:
    """One verb: its argument's placeholder, what it does, and its own options.

    The placeholder is "" for no argument, `NAME...` for one or more, `[NAME]` for one that may be left out.
    """

    __slots__ = ("argument", "help", "name", "options")

    def __init__(self, name: str, argument: str, text: str, *options: Option) -> None:
        self.name = name
        self.argument = argument
        self.help = text
        self.options = options


_PASSPHRASE = Option(
    "--passphrase-file", "FILE", "passphrase_file", "its first line opens the device key; - is standard input"
)
OPTIONS = (
    Option("-c --config", "FILE", "config", "main configuration file"),
    Option("-b --fallback-config", "FILE", "fallback_config", "file with defaults for the main one"),
    Option("-d --datastore --data", "DIR", "datastore", "where state, keys and logs are kept"),
    Option("-L --log-file", "FILE", "log_file", "append log lines to a file instead of stderr"),
    Option(
        "-l --log-level",
        "LEVEL",
        "log_level",
        "log from this level on: trace, debug, info, warning, error or fatal",
    ),
    Option("-E --trusted-certs", "FILE", "trusted_certs", "certificates trusted beside the system's"),
    Option("--skipverify", "", "skip_verify", "do not verify the server's certificate"),
    _PASSPHRASE,
    Option("--no-syslog", "", "no_syslog", "accepted for the sake of older scripts; nothing goes to syslog"),
    Option("-v --version", "", "version", "print the version"),
    Option("-h --help", "", "help", "print help; after a command, its own"),
)
_REBOOT_EXIT = Option(
    "--reboot-exit-code", "", "reboot_exit_code", "exit with 4 instead of 0 if a reboot is needed"
)
_STOP_BEFORE = Option(
    "--stop-before",
    "STATE",
    "stop_before",
    f"stop before one of {', '.join(STOP_BEFORE)}; `resume` goes on",
    repeat=True,
)
_STATUS = (
    Option("--json", "", "json", "as JSON, one document a line"),
    Option("--follow", "", "follow", "again after each change, until the daemon ends"),
)
COMMANDS = (
    Command("daemon", "", "poll the server and carry out its deployments"),
    Command("install", "FILE_OR_URL", "install an artifact", _REBOOT_EXIT, _STOP_BEFORE, _PASSPHRASE),
    Command("resume", "", "go on with an interrupted installation", _REBOOT_EXIT, _STOP_BEFORE),
    Command("commit", "", "make the installed artifact permanent", _STOP_BEFORE),
    Command("rollback", "", "undo the installed artifact", _STOP_BEFORE),
    Command("show-artifact", "", "print the name of the installed artifact"),
    Command("show-provides", "", "print everything the installed artifacts provide"),
    Command("status", "", "tell what the daemon is doing, and who holds an update", *_STATUS),
    Command("pause", "POINT...", f"hold updates at {', '.join(POINTS)}"),
    Command("continue", "[POINT]", "let the update go on from where it is paused, or undo a `pause`"),
    Command("fail", "[POINT]", "fail the update where it is paused, or at the next point it reaches"),
    Command("maps", "", "list the control maps that decide about updates"),
    Command(
        "bootstrap",
        "",
        "make the device key if there is none",
        Option("-F --forcebootstrap", "", "force_bootstrap", "make a new one in any case"),
    ),
    Command("check-update", "", "have the daemon ask for a deployment now"),
    Command("send-inventory", "", "have the daemon submit the inventory now"),
)
# Longer texts are the manual's (scripts/update_tools/manual.py): the idle daemon holds this module in memory.
EXIT_CODES = (
    (0, "done; or stopped or waiting for `commit`, as asked"),
    (1, "failed, or wrong usage: the reason is on stderr"),
    (2, "no update in progress, or none that is to be decided about"),
    (4, "done, reboot needed (with --reboot-exit-code)"),
    (130, "interrupted; `resume` goes on with an update, `rollback` undoes it"),
)
_WIDTH = 110
_COMMAND = {command.name: command for command in COMMANDS}


class Usage(ConfigError):
    """The command line is wrong; `verb` is the command whose help may help, if any."""

    def __init__(self, message: str, verb: str = "") -> None:
        super().__init__(message)
        self.verb = verb


class Options:
    """The command line, parsed. Attributes are those named in the table."""

    def __init__(self) -> None:
        self.verb = ""
        self.arguments: list[str] = []
        self.config: str | None = None
        self.fallback_config: str | None = None
        self.datastore: str | None = None
        self.log_file: str | None = None
        self.log_level: str | None = None
        self.trusted_certs: str | None = None
        self.skip_verify = False
        self.passphrase_file: str | None = None
        self.no_syslog = False
        self.force_bootstrap = False
        self.version = False
        self.help = False
        self.reboot_exit_code = False
        self.stop_before: list[str] = []
        self.json = False
        self.follow = False

    @property
    def artifact(self) -> str:
        """The argument of `install`."""
        return self.arguments[0]


def parse(argv: Sequence[str]) -> Options:
    """Read a command line. Raises Usage when it is wrong.

    `--opt=value` and `--opt value` are the same, the value of the latter must not start with `-`; options
    stand before the verb, a verb's own options after it; `--` ends options.
    """
    options = Options()
    known = {name: option for option in OPTIONS for name in option.names}
    arguments: list[str] = []
    words = list(argv)
    ended = False
    while words:
        word = words.pop(0)
        if ended or not word.startswith("-") or word == "-":
            if not options.verb:
                options.verb = word
                if word not in _COMMAND:
                    raise Usage(f"unknown command {word!r}")
                own = (*_COMMAND[word].options, known["--help"])
                known = {name: option for option in own for name in option.names}
            else:
                arguments.append(word)
        elif word == "--":
            ended = True
        else:
            _take(options, known, word, words)
    return _check(options, arguments)


def _take(options: Options, known: dict[str, Option], word: str, words: list[str]) -> None:
    name, equals, value = word.partition("=")
    option = known.get(name)
    if option is None:
        raise Usage(f"unknown option {name}", options.verb)
    if not option.value:
        if equals:
            raise Usage(f"option {name} takes no value", options.verb)
        setattr(options, option.attribute, True)
        return
    if not equals:
        if not words or words[0].startswith("-"):
            raise Usage(f"option {name} needs a value, {option.value}", options.verb)
        value = words.pop(0)
    if option.repeat:
        getattr(options, option.attribute).append(value)
    else:
        setattr(options, option.attribute, value)


def _check(options: Options, arguments: list[str]) -> Options:
    if options.help or (options.version and not options.verb):
        return options
    if options.version:
        raise Usage("--version cannot be combined with a command", options.verb)
    if not options.verb:
        raise Usage("a command is needed")
    wanted = _COMMAND[options.verb].argument
    if wanted and not wanted.startswith("[") and not arguments:
        raise Usage(f"{options.verb} needs {wanted}", options.verb)
    most = len(arguments) if wanted.endswith("...") else bool(wanted)
    if len(arguments) > most:
        raise Usage(f"surplus argument {arguments[most]!r}", options.verb)
    options.arguments = arguments
    for state in options.stop_before:
        if state not in STOP_BEFORE:
            raise Usage(f"--stop-before {state}: it must be one of {', '.join(STOP_BEFORE)}", options.verb)
    return options


def usage_text(verb: str = "") -> str:
    """The help text of the program or of one command."""
    command = _COMMAND.get(verb)
    if command is None:
        head = f"usage: {PROGRAM} [OPTIONS] COMMAND\n\nA/B updates for embedded Linux.\n\ncommands:\n"
        head += "\n".join(_row(f"{c.name} {c.argument}".strip(), c.help) for c in COMMANDS)
        codes = "\n".join(_row(str(code), text) for code, text in EXIT_CODES)
        return f"{head}\n\noptions:\n{_rows(OPTIONS)}\n\nexit codes:\n{codes}"
    line = f"usage: {PROGRAM} {command.name} [OPTIONS] {command.argument}".rstrip()
    first, _, rest = command.help.partition(" ")
    return f"{line}\n\n{_wrap(first, rest, 0)}\n\noptions:\n{_rows((*command.options, OPTIONS[-1]))}"


def _rows(options: Sequence[Option]) -> str:
    return "\n".join(_row(f"{', '.join(o.names)} {o.value}".strip(), o.help) for o in options)


def _row(left: str, right: str) -> str:
    return _wrap(f"  {left:<32}", right, 35)


def _wrap(line: str, text: str, indent: int) -> str:
    """The text behind the line's begin, broken where it gets too long; further lines are indented."""
    lines = []
    for word in text.split():
        if len(line) + len(word) >= _WIDTH:
            lines.append(line)
            line = " " * indent + word
        else:
            line += f" {word}"
    return "\n".join([*lines, line])
