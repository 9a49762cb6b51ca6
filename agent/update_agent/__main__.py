# SPDX-License-Identifier: Apache-2.0
"""Command line: `update-agent` and, by the same words, `mender-update`."""

from __future__ import annotations

import os
import sys

from update_agent import __version__, config
from update_agent.errors import ConfigError, IdleError, ProcError, StoreError, UpdateError
from update_agent.lean import json, signal
from update_agent.log import LEVELS, Log, tell
from update_agent.options import COMMANDS, Usage, parse, usage_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    from update_agent.config import Config
    from update_agent.daemon import Daemon
    from update_agent.machine import Context
    from update_agent.options import Options
    from update_agent.store import Store

_UNITS = ("mender-updated.service", "mender-client.service")


def _configure(options: Options) -> tuple[Config, Log]:
    overrides: dict[str, object] = {}
    if options.trusted_certs:
        overrides["server_certificate"] = options.trusted_certs
    if options.skip_verify:
        overrides["skip_verify"] = True
    if options.passphrase_file:
        overrides["key_passphrase"] = _first_line(options.passphrase_file)
    settings = config.load(
        path=options.config,
        fallback=options.fallback_config,
        datastore=options.datastore,
        overrides=overrides,
    )
    level = options.log_level or settings.daemon_log_level.lower()
    if level not in LEVELS:
        wrong = f"log level {level!r} is not one of {', '.join(LEVELS)}"
        if options.log_level:
            raise ConfigError(wrong)
        settings.warnings.append(f"DaemonLogLevel is ignored: {wrong}")  # what it says would matter less
        level = "info"
    try:
        log = Log(level, path=options.log_file)
    except OSError as error:
        raise ConfigError(f"cannot write the log file {options.log_file}: {error.strerror}") from error
    for warning in settings.warnings:
        log.warning(warning)
    return settings, log


def _first_line(path: str) -> str:
    try:
        if path == "-":
            return sys.stdin.readline().rstrip("\n")
        with open(path, encoding="utf-8") as file:
            return file.readline().rstrip("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", error)
        raise ConfigError(f"cannot read the passphrase from {path}: {reason}") from error


def _store(settings: Config, log: Log) -> Store:
    from update_agent.store import Store

    try:
        os.makedirs(settings.datastore, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"cannot make the datastore {settings.datastore}: {os.strerror(error.errno or 0)}",
            hint="is the data partition mounted and writable?",
        ) from error
    return Store(settings.datastore, log)


def _context(settings: Config, log: Log, store: Store | None = None) -> Context:
    from update_agent import bootloader
    from update_agent.loop import Loop
    from update_agent.machine import Context

    loop = Loop()
    return Context(
        settings, log, store or _store(settings, log), loop, bootloader.find(settings, log, loop.wait)
    )


def _stop(_number: int, _frame: object) -> NoReturn:
    # As after a power cut, only politely: what runs is ended, what was saved is gone on with later.
    raise SystemExit(0)


def _interrupt(_number: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _say(text: str) -> None:
    """Print an answer. Raises UpdateError when nobody gets it."""
    if reason := tell(text):
        raise UpdateError(f"cannot write to the standard output: {reason}")


def _daemon(options: Options) -> int:
    from update_agent import leftovers
    from update_agent.daemon import Daemon
    from update_agent.loop import Signals
    from update_agent.remote import Remote

    settings, log = _configure(options)
    try:
        store = _store(settings, log)
    except UpdateError as error:
        from update_agent import trial

        trial.leave(settings, log, error.message)
        raise
    context = _context(settings, log, store)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, _stop)
    signals = Signals(context.loop)
    leftovers.end(settings.datastore, log, context.loop.wait)
    leftovers.mark(settings.datastore)
    if context.store.get("state") is None and context.store.get("artifact-name") is None:
        from update_agent.bootstrap import bootstrap  # once in a device's life

        try:
            bootstrap(context)
        except UpdateError as error:
            log.error(str(error))
    log.info(f"update-agent {__version__} is running")
    daemon = Daemon(context, Remote(settings, log, context.loop), signals)
    _serve_locally(daemon)
    daemon.run()
    return 0


def _serve_locally(daemon: Daemon) -> None:
    """Let applications and people in: control socket and D-Bus. Updates go on without either."""
    from update_agent.ctl import ControlSocket

    settings, log = daemon.config, daemon.log
    try:
        ControlSocket(daemon, settings.control_socket, settings.control_group).listen()
    except ConfigError as error:
        log.warning(f"No local control: {error}")
    if settings.dbus_enabled:
        try:
            from update_agent.bus import Bus
        except ImportError as error:
            log.info(f"No D-Bus: {error}")
        else:
            Bus(daemon).start()


def _standalone(options: Options) -> int:
    from update_agent import leftovers
    from update_agent.bootstrap import bootstrap
    from update_agent.standalone import (
        FAILED,
        NOTHING,
        REBOOT,
        ProgressBar,
        Standalone,
        result_text,
    )

    settings, log = _configure(options)
    context = _context(settings, log)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup
            signal.signal(number, _interrupt)  # ends the program that runs, too
    context.store.lock()
    context.store.reload()
    leftovers.end(settings.datastore, log)
    leftovers.mark(settings.datastore)
    machine = Standalone(context, stop_before=options.stop_before, progress=ProgressBar())
    try:
        if options.verb == "install":
            bootstrap(context)
            tell("Installing artifact...")
            code = machine.install(options.artifact)
        else:
            code = {"commit": machine.commit, "rollback": machine.rollback, "resume": machine.resume}[
                options.verb
            ]()
    except KeyboardInterrupt:
        from update_agent.child import kill_programs

        kill_programs()  # what was started an instant before
        tell(
            "Interrupted. Use 'resume' to go on, or 'rollback' to undo."
            if machine.is_saved
            else "Interrupted."
        )
        raise
    for line in result_text(machine.flags):
        tell(line)
    if code in {FAILED, NOTHING} and (reason := machine.update.cause or "".join(machine.reasons[-1:])):
        print(f"Could not fulfill request: {reason}", file=sys.stderr)
    if code == 0 and "RebootRequired" in machine.flags and options.reboot_exit_code:
        return REBOOT
    return code


def _show(options: Options) -> int:
    from update_agent.update import installed

    settings, log = _configure(options)
    store = _store(settings, log)
    if store.get("artifact-name") is None:
        from update_agent.bootstrap import bootstrap

        bootstrap(_context(settings, log, store))
    provides = installed(store)
    if options.verb == "show-artifact":
        _say(provides["artifact_name"])
    else:
        _say("\n".join(f"{key}={value}" for key, value in sorted(provides.items())))
    return 0


def _bootstrap(options: Options) -> int:
    """The device key, made if need be and readable."""
    from update_agent.keys import DeviceKey

    settings, log = _configure(options)
    key = DeviceKey(settings, log)
    key.ensure(force=options.force_bootstrap)
    key.public_pem()
    return 0


def _signal_daemon(options: Options) -> int:
    """Wake the daemon: the one behind the control socket, else the main process of its unit."""
    from update_agent import ctl, proc

    settings, _ = _configure(options)
    number = signal.SIGUSR1 if options.verb == "check-update" else signal.SIGUSR2
    pid = ctl.daemon_pid(settings.control_socket)
    for unit in _UNITS:
        if pid:
            break
        try:
            _, stdout, _ = proc.output(["systemctl", "show", "--property=MainPID", unit], timeout_s=30)
        except ProcError:
            break  # no systemd here
        text = stdout.decode(errors="replace").strip().partition("=")[2]
        pid = int(text) if text.isdigit() else 0
    if not pid:
        raise StoreError("the update daemon is not running", hint=f"systemctl status {_UNITS[0]}")
    try:
        os.kill(pid, number)
    except OSError as error:
        raise StoreError(f"cannot signal the update daemon, process {pid}: {error.strerror}") from error
    return 0


def _control(options: Options) -> int:
    """Have the daemon do it, or tell."""
    from update_agent import ctl, report

    settings, _ = _configure(options)
    request: dict[str, object] = {"verb": options.verb}
    say: Callable[[Any], str]
    if options.verb == "status":
        request["follow"] = options.follow
        say = json.dumps if options.json else report.status_text
    elif options.verb == "maps":
        say = report.maps_text
    elif options.verb == "pause":
        request["points"] = options.arguments
        say = report.pause_text
    else:
        request["point"] = options.arguments[0] if options.arguments else ""
        say = report.continue_text if options.verb == "continue" else report.fail_text

    try:
        ctl.ask(settings.control_socket, request, lambda result: _say(say(result)))
    except IdleError as error:
        print(f"Could not fulfill request: {error}", file=sys.stderr)
        return 2
    return 0


_VERBS = {
    "daemon": _daemon,
    "install": _standalone,
    "commit": _standalone,
    "rollback": _standalone,
    "resume": _standalone,
    "show-artifact": _show,
    "show-provides": _show,
    "status": _control,
    "pause": _control,
    "continue": _control,
    "fail": _control,
    "maps": _control,
    "bootstrap": _bootstrap,
    "check-update": _signal_daemon,
    "send-inventory": _signal_daemon,
}


def _open_standard_streams() -> None:
    """Have descriptors 0 to 2 open: whoever starts us may have closed them, and no slot must become one."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number, which is this one
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code; expected errors become one line on stderr."""
    _open_standard_streams()
    try:
        options = parse(sys.argv[1:] if argv is None else argv)
        if options.help:
            _say(usage_text(options.verb))
            return 0
        if options.version:
            _say(__version__)
            return 0
        return _VERBS[options.verb](options)
    except Usage as error:
        print(usage_text(error.verb), file=sys.stderr)
        print(f"Could not fulfill request: {error}", file=sys.stderr)
        return 1
    except UpdateError as error:
        print(f"Could not fulfill request: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    assert set(_VERBS) == {command.name for command in COMMANDS}
    sys.exit(main())
