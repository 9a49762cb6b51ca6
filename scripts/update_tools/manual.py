# SPDX-License-Identifier: Apache-2.0
"""Manual page and shell completion, made from the agent's option table.

`python -m update_tools.manual man` and `... bash` print them; `... renew` writes both into `agent/`.
Commands, options, states, points, exit codes, paths and defaults are the agent's own; only longer texts
stand here.
"""

from __future__ import annotations

import json
import re
import sys
import textwrap
from pathlib import Path

from update_agent import __version__, config
from update_agent.log import LEVELS
from update_agent.options import ALIAS, COMMANDS, EXIT_CODES, OPTIONS, PROGRAM, Command, Option
from update_agent.states import POINTS, STOP_BEFORE, WIRE_POINTS

AGENT = Path(__file__).parents[2] / "agent"
DATE = "November 25, 2026"  # when texts below or the table last changed
SUMMARY = "over-the-air updates for devices with two root partitions"

# What a placeholder stands for: words, or a kind of file as bash's `compopt -o` calls it.
VALUES: dict[str, str | tuple[str, ...]] = {
    "DIR": "dirnames",
    "FILE": "default",
    "FILE_OR_URL": "default",
    "LEVEL": tuple(LEVELS),
    "POINT": POINTS,
    "STATE": STOP_BEFORE,
}

DESCRIPTION = """
Downloads an artifact as a stream, writes it to the inactive root partition or gives it to an update module,
runs state scripts at every step, pauses where it is told to, reboots, and commits or rolls back. It may be
killed, or lose power, at any time: `resume` or the next start of the daemon goes on or rolls back from
where it was.

With `daemon` it polls a server that speaks the Mender device API and carries out its deployments. The other
commands install by hand, tell what is installed, and tell or decide what the daemon does.

Options stand before the command, a command's own options after it. A value follows as the next word, or
after an equals sign.
"""

CONFIGURATION = """
`mender.conf` is one JSON object with the keys that Mender's clients know. Names of keys are taken in any
case; those that nobody knows are ignored. These are our own:
"""

# By attribute of the option, or by command: what the table's short text leaves out.
MORE_OPTIONS = {
    "config": f"`{config.CONF_DIR}/mender.conf` if not given. A file that is named must exist and be valid.",
    "fallback_config": "`mender.conf` in the datastore if not given. The main file overrides it key by key.",
    "datastore": f"`{config.DATASTORE}` if not given. It must be on a partition that no update replaces.",
    "log_level": "`DaemonLogLevel` of the configuration, or `info`, if not given.",
    "trusted_certs": "A file of PEM certificates, as `ServerCertificate` in the configuration.",
    "skip_verify": "Anyone on the network path can then send updates; artifacts signed for a key in"
    " `ArtifactVerifyKeys` are still checked. For tests.",
}
MORE_COMMANDS = {
    "daemon": "Runs until it gets SIGTERM. SIGUSR1 and SIGUSR2 are `check-update` and `send-inventory`.",
    "install": "From a file, or from a URL that begins with `http://` or `https://`, which is read as a"
    " stream. An artifact that can be rolled back then waits for `commit` or `rollback`, over a reboot if it"
    " needs one; another one is committed at once. Refused while another installation waits.",
    "commit": "After the reboot, if the update needed one. A root file system that is not the running one is"
    " not committed but rolled back.",
    "rollback": "Fails, and leaves the update in progress, if the update module cannot roll back.",
    "show-artifact": "Prints `unknown` if there never was one.",
    "show-provides": "One `key=value` a line, sorted.",
    "pause": "Every update waits there until someone decides; the pause does not expire and survives"
    " restarts.",
    "continue": "Counts once.",
    "fail": "Counts once. The update is rolled back.",
    "status": "With --follow, ends with 130 when it is interrupted.",
}

# Keys of mender.conf that other clients do not have.
OWN_KEYS = {
    "AutobootPart": "With tryboot: the partition that holds autoboot.txt, such as /dev/mmcblk0p1. It is read"
    " and written without being mounted.",
    "BootPartA": "With tryboot: the boot partition of `RootfsPartA`.",
    "BootPartB": "With tryboot: the boot partition of `RootfsPartB`. That of the slot being installed is made"
    " anew from the root file system's /boot.",
    "Bootloader": "What chooses the slot: `uboot` (or GRUB), or `tryboot`, the firmware of Raspberry Pi 4"
    " and 5. Not set: `tryboot` if `AutobootPart` is set and there is no /etc/fw_env.config, else `uboot`.",
    "ControlGroup": "Members of this group, beside root, may use the control socket.",
    "OutcomeSurvivesRestart": "Whether an update that has succeeded is still reported as a success when the"
    " device restarts before that, and a rollback in which a script failed as inconsistent; other clients"
    " then report a failure, and a clean rollback.",
    "PauseSurvivesRestart": "Whether an update that was paused is paused again after a restart.",
    "RetryFirstIntervalSeconds": "First wait of every series of retries.",
    "ScriptOutputLimitBytes": "What one run of a state script, or one call of an update module, may add to"
    " the logs; of what is more only the end is kept. A log that is too large for the server is sent with at"
    " least the last 10 KiB of each.",
}

ENVIRONMENT = {
    "MENDER_CONF_DIR": f"Directory of `mender.conf` and `scripts/`; `{config.CONF_DIR}` if not set.",
    "MENDER_DATA_DIR": "Directory of identity script, inventory scripts and update modules;"
    f" `{config.DATA_DIR}` if not set.",
    "MENDER_DATASTORE_DIR": f"The same as --datastore, which wins; `{config.DATASTORE}` if not set.",
    "UPDATE_CONTROL_SOCKET": "Socket on which the daemon takes commands;"
    f" `{config.CONTROL_SOCKET}` if not set.",
    "http_proxy, https_proxy, no_proxy": "Proxies for the server and for downloads; upper case works too."
    " Names in no_proxy are separated by blanks or commas, and match hosts below them too.",
    "JOURNAL_STREAM": "If set, as systemd does, log lines carry journal priorities.",
}


def files() -> dict[str, str]:
    """Paths that the agent reads and writes, as it computes them from the default directories."""
    paths = config.Config()
    paths.conf_dir, paths.data_dir, paths.datastore = config.CONF_DIR, config.DATA_DIR, config.DATASTORE
    return {
        f"{paths.conf_dir}/mender.conf": "Main configuration: one JSON object.",
        f"{paths.scripts_rootfs()}/": "State scripts that come with the root file system, and `version`.",
        paths.identity_script(): "Prints what identifies the device.",
        f"{paths.inventory_dir()}/mender-inventory-*": "Print what the server shows about the device.",
        f"{paths.modules_dir()}/": "Update modules, by payload type; `rootfs-image` is built in.",
        f"{paths.datastore}/device_type": "One line, `device_type=NAME`.",
        f"{paths.datastore}/update-agent.json": "What is installed, and how far an update is.",
        paths.key_file(): "The device's private key; made on first use.",
        paths.bootstrap_artifact(): "Tells what the image provides; read once, then removed.",
        paths.artifact_info(): "Names an image without bootstrap artifact, `artifact_name=NAME`.",
        f"{paths.datastore}/mender-store": "What another client saved; taken over, and left as it is.",
        f"{paths.scripts_artifact()}/": "State scripts of the artifact being installed.",
        f"{paths.update_log_path}/deployments.NNNN.ID.log": "Deployment logs, 0000 being the newest.",
        config.CONTROL_SOCKET: "Commands of `ControlGroup` and root to the daemon.",
        "/etc/fw_env.config": "Where U-Boot keeps its environment.",
    }


EXAMPLES = (
    (
        "Install a root file system by hand, start it, and keep it:",
        ("update-agent install release-2.mender", "reboot", "update-agent commit"),
    ),
    (
        "Let no update reboot the device, look who holds one, and let it go on:",
        (
            f"update-agent pause {WIRE_POINTS[1]}",
            "update-agent status",
            f"update-agent continue {WIRE_POINTS[1]}",
        ),
    ),
)


# Manual page: mdoc(7), which both groff and mandoc read


def _escape(text: str) -> str:
    """Plain text for mdoc: `words` in bold, hyphens that can be copied, nothing that troff would obey."""
    if not text.isascii():
        raise ValueError(f"not ASCII: {text}")
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return re.sub(r"`([^`]+)`", r"\\fB\1\\fP", text)


def _prose(text: str) -> list[str]:
    """Lines of at most 80 characters; each sentence begins one, as mdoc wants it."""
    lines: list[str] = []
    for sentence in re.split(r"(?<=[.:;!?]) (?=[A-Z`])", " ".join(text.split())):
        lines += textwrap.wrap(_escape(sentence), 80, break_long_words=False, break_on_hyphens=False)
    return [f"\\&{line}" if line[0] in ".'" else line for line in lines]


def _sentence(text: str) -> str:
    """A text of the table as a sentence."""
    return f"{text[0].upper()}{text[1:]}."


def _flags(option: Option) -> str:
    names = " , ".join(f"Fl {_escape(name[1:])}" for name in option.names)
    return f"{names} Ar {option.value}" if option.value else names


def _argument(placeholder: str) -> str:
    """`.Ar` or, for one that may be left out, `.Op Ar`."""
    name = placeholder.strip("[].")
    macro = f"Ar {name} ..." if placeholder.endswith("...") else f"Ar {name}"
    return f"Op {macro}" if placeholder.startswith("[") else macro


def _synopsis(command: Command) -> list[str]:
    lines = [".Nm", ".Op Ar options", f".Cm {_escape(command.name)}"]
    lines += [f".Op {_flags(option)}{' ...' if option.repeat else ''}" for option in command.options]
    return lines + ([f".{_argument(command.argument)}"] if command.argument else [])


def _list(rows: list[tuple[str, list[str]]], width: str = "Ds") -> list[str]:
    lines = [f".Bl -tag -width {width}"]
    for head, body in rows:
        lines += [f".It {head}", *body]
    return [*lines, ".El"]


def _option_rows(options: tuple[Option, ...]) -> list[tuple[str, list[str]]]:
    return [
        (
            _flags(option),
            _prose(
                f"{_sentence(option.help)} {'May be given more than once.' if option.repeat else ''}"
                f" {MORE_OPTIONS.get(option.attribute, '')}"
            ),
        )
        for option in options
    ]


def _command_rows() -> list[tuple[str, list[str]]]:
    rows = []
    for command in COMMANDS:
        head = f"Cm {_escape(command.name)}"
        if command.argument:
            head += f" {_argument(command.argument)}"
        body = _prose(f"{_sentence(command.help)} {MORE_COMMANDS.get(command.name, '')}")
        if command.options:
            body += _list(_option_rows(command.options))
        rows.append((head, body))
    return rows


def _own_keys() -> list[tuple[str, list[str]]]:
    defaults = {key: default for key, _, default, _ in config.KEYS}
    rows = []
    for key, text in OWN_KEYS.items():
        default = json.dumps(defaults[key]) if defaults[key] != "" else "not set"
        rows.append((f"Li {key}", _prose(f"{text} Default: {default}.")))
    return rows


def manual() -> str:
    """The manual page."""
    lines = [
        '.\\" SPDX-License-Identifier: Apache-2.0',
        '.\\" Made by update_tools.manual from agent/update_agent/options.py: change it there.',
        f".Dd {DATE}",
        f".Dt {PROGRAM.upper()} 8",
        f".Os {PROGRAM} {__version__}",
        ".Sh NAME",
        f".Nm {PROGRAM} ,",
        f".Nm {ALIAS}",
        f".Nd {SUMMARY}",
        ".Sh SYNOPSIS",
    ]
    for command in COMMANDS:
        lines += _synopsis(command)
    lines += [".Sh DESCRIPTION"]
    for number, paragraph in enumerate(DESCRIPTION.strip().split("\n\n")):
        lines += [*([".Pp"] if number else []), *_prose(paragraph)]
    lines += [".Pp", "The options are:", *_list(_option_rows(OPTIONS))]
    lines += [".Pp", "The commands are:", *_list(_command_rows())]
    lines += [".Sh CONFIGURATION", *_prose(CONFIGURATION), *_list(_own_keys())]
    variables = [(f"Ev {' , '.join(names.split(', '))}", _prose(text)) for names, text in ENVIRONMENT.items()]
    lines += [".Sh ENVIRONMENT", *_list(variables)]
    lines += [".Sh FILES", *_list([(f"Pa {_escape(path)}", _prose(text)) for path, text in files().items()])]
    codes = [(str(code), _prose(_sentence(text))) for code, text in EXIT_CODES]
    lines += [".Sh EXIT STATUS", *_list(codes)]
    lines += [".Sh EXAMPLES"]
    for number, (text, commands) in enumerate(EXAMPLES):
        lines += [*([".Pp"] if number else []), *_prose(text), ".Bd -literal -offset indent"]
        lines += [*map(_escape, commands), ".Ed"]
    lines += [".Sh SEE ALSO", ".Xr systemctl 1 ,", ".Xr systemd.service 5"]
    return "\n".join(lines) + "\n"


# Completion: bash alone, so that it works where the bash-completion package is not installed


def _words(options: tuple[Option, ...]) -> str:
    return " ".join(name for option in options for name in option.names)


def _arms(arms: list[tuple[str, str]], indent: int) -> str:
    return "\n".join(f"{' ' * indent}{pattern}) {action} ;;" for pattern, action in arms)


def _takes_value() -> list[tuple[str, str]]:
    """`VERB:OPTION` of every option with a value, and the value's placeholder."""
    arms = []
    owners = [("", OPTIONS), *((command.name, command.options) for command in COMMANDS)]
    for verb, options in owners:
        arms += [
            (" | ".join(f"{verb}:{name}" for name in option.names), f"wanted={option.value}")
            for option in options
            if option.value
        ]
    return arms


def _takes_argument() -> list[tuple[str, str]]:
    """`VERB:ARGUMENTS BEFORE` where an argument may stand, and the argument's placeholder."""
    return [
        (f"{command.name}:{'*' if command.argument.endswith('...') else '0'}", f"wanted={_kind(command)}")
        for command in COMMANDS
        if command.argument
    ]


def _kind(command: Command) -> str:
    return command.argument.strip("[].")


def _values() -> list[tuple[str, str]]:
    used = {option.value for option in OPTIONS if option.value}
    used |= {option.value for command in COMMANDS for option in command.options if option.value}
    used |= {_kind(command) for command in COMMANDS if command.argument}
    arms = []
    for placeholder in sorted(used):
        value = VALUES[placeholder]
        action = f"compopt -o {value}" if isinstance(value, str) else f"words='{' '.join(value)}'"
        arms.append((placeholder, action))
    return arms


def completion() -> str:
    """The completion for bash."""
    own = [(command.name, f"words='{_words((*command.options, OPTIONS[-1]))}'") for command in COMMANDS]
    return f"""\
# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# Made by update_tools.manual from agent/update_agent/options.py: change it there.

_update_agent() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} verb='' wanted='' ended='' words='' word
    local -i arguments=0 i
    COMPREPLY=()
    for ((i = 1; i < COMP_CWORD; i++)); do
        word=${{COMP_WORDS[i]}}
        if [[ $word == [=:] ]]; then
            # Bash makes three words of --option=value, and of a name with one of these.
            if [[ -z $wanted ]] && ((++i >= COMP_CWORD)); then
                return
            fi
        elif [[ -n $wanted ]]; then
            wanted=''
        elif [[ -z $ended && $word == -* ]]; then
            case $verb:$word in
                *:--) ended=1 ;;
{_arms(_takes_value(), 16)}
            esac
        elif [[ -z $verb ]]; then
            verb=$word
        else
            arguments+=1
        fi
    done
    if [[ $current == [=:] ]]; then
        current=''
    fi

    if [[ -z $wanted && -z $ended && $current == -* ]]; then
        case $verb in
            '') words='{_words(OPTIONS)}' ;;
{_arms(own, 12)}
        esac
    elif [[ -z $wanted ]]; then
        case $verb:$arguments in
            :*) words='{" ".join(command.name for command in COMMANDS)}' ;;
{_arms(_takes_argument(), 12)}
        esac
    fi
    case $wanted in
{_arms(_values(), 8)}
    esac
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")
}}

complete -F _update_agent {PROGRAM} {ALIAS}
"""


OUTPUTS = {
    AGENT / f"man/{PROGRAM}.8": manual,
    AGENT / f"completion/{PROGRAM}": completion,
}


def main(argv: list[str]) -> int:
    """Print one of the two, or write both."""
    if argv == ["renew"]:
        for path, make in OUTPUTS.items():
            path.parent.mkdir(exist_ok=True)
            path.write_text(make())
    elif argv in (["man"], ["bash"]):
        print(manual() if argv == ["man"] else completion(), end="")
    else:
        print("usage: python -m update_tools.manual man|bash|renew", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
