# SPDX-License-Identifier: Apache-2.0
"""State scripts: find, order and run them; 0 go on, 21 retry later, else fail (state-machine.md 2-4).

Besides the agent's own environment every script gets:

    UPDATE_STATE, UPDATE_ACTION         ArtifactInstall, Enter: what its name says
    UPDATE_DEPLOYMENT_ID                empty for a standalone installation
    UPDATE_ARTIFACT_NAME                the artifact being installed; empty in Idle and Sync
    UPDATE_ACTIVE_DEVICE                root partition the system runs from, /dev/mmcblk0p2
    UPDATE_INACTIVE_DEVICE              the other one; both empty without a pair of root partitions
    UPDATE_DATA_DIR                     the directory that survives updates, /var/lib/mender
"""

from __future__ import annotations

import os
import stat
import time

from update_agent.errors import ProcError, ScriptError
from update_agent.files import remove_tree, write
from update_agent.loop import plain_wait
from update_agent.output import SCRIPT, OutputLines
from update_agent.proc import run
from update_agent.states import ACTIONS, ARTIFACT, STATE_BY_NAME
from update_agent.store import sync_directory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from update_agent.config import Config
    from update_agent.log import Log
    from update_agent.loop import Wait
    from update_agent.proc import Result

    Watch = Callable[[str, Result | None], None]

SUPPORTED_VERSIONS = (2, 3)
RETRY_LATER = 21
_DIGITS = "0123456789"
_BLANKS = frozenset(" \t\n\r\f\v")


def parse_name(name: str) -> tuple[str, str] | None:
    """State and action of a script file name, or None when it is not one.

    The grammar, by hand because `re` costs 1.3 MB resident: `<State>_<Action>_NN` and then nothing, or an
    underscore and one or more characters that are not white space.
    """
    parts = name.split("_", 2)
    if len(parts) != 3 or parts[0] not in STATE_BY_NAME or parts[1] not in ACTIONS:
        return None
    number, text = parts[2][:2], parts[2][2:]
    if len(number) != 2 or number[0] not in _DIGITS or number[1] not in _DIGITS:
        return None
    if text and (len(text) < 2 or text[0] != "_" or not _BLANKS.isdisjoint(text)):
        return None
    return parts[0], parts[1]


def check_version(directory: str) -> None:
    """Raise ScriptError unless the scripts in `directory` are of a version we can run. No file means 3."""
    path = os.path.join(directory, "version")
    try:
        with open(path, "rb") as file:
            text = file.read(64).strip()
    except FileNotFoundError:
        return
    except OSError as error:
        raise ScriptError(
            f"cannot read the version of the state scripts, {path}: {os.strerror(error.errno or 0)}",
            hint="a file that holds the number 3",
        ) from error
    # isdigit of bytes is ASCII only; int() alone would take "+3" and "1_0" as well.
    if not text.isdigit() or int(text) not in SUPPORTED_VERSIONS:
        raise ScriptError(
            f"{path} says version {text.decode(errors='backslashreplace')!r}, this agent runs 2 and 3",
            hint="a file that holds the number 3, and scripts written for it",
        )


def find(directory: str, state: str, action: str, log: Log) -> list[str]:
    """Paths of the scripts of one hook, in the byte order of their names.

    Those that are no regular files or not executable are left out with a warning. A missing directory has no
    scripts. Raises ScriptError if the directory cannot be read.
    """
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ScriptError(
            f"cannot read the state script directory {directory}: {os.strerror(error.errno or 0)}",
            hint="a directory, or nothing",
        ) from error
    paths = []
    for name in sorted((name for name in names if parse_name(name) == (state, action)), key=os.fsencode):
        path = os.path.join(directory, name)
        try:
            mode = os.stat(path).st_mode
        except OSError as error:
            log.warning(f"State script {path} is skipped: {os.strerror(error.errno or 0)}")
            continue
        if not stat.S_ISREG(mode):
            log.warning(f"State script {path} is skipped: not a regular file")
        elif not mode & 0o111:
            log.warning(f"State script {path} is skipped: not executable (try chmod 0755)")
        else:
            paths.append(path)
    return paths


class Outcome:
    """How the scripts of one hook went. `failures` is empty when all did; each is already logged."""

    __slots__ = ("failures", "started")

    def __init__(self) -> None:
        self.started: list[str] = []
        self.failures: list[ScriptError] = []

    @property
    def ok(self) -> bool:
        """Every script that was run ended with 0."""
        return not self.failures

    def failed(self, hook: str, error: ScriptError, log: Log) -> None:
        """Log a failure and keep it, with the name of the hook."""
        failure = ScriptError(f"{hook}: {error.message}", hint=error.hint)
        log.error(str(failure))
        self.failures.append(failure)


def run_hook(
    state: str,
    action: str,
    *,
    directory: str,
    policy: str,
    config: Config,
    log: Log,
    env: Mapping[str, str],
    wait: Wait = plain_wait,
    watch: Watch = lambda name, result: None,
) -> Outcome:
    """Run the scripts of `state` and `action` in `directory` and return how they went.

    `policy` says what a failing script means for those after it: "fail" skips them, "ignore" runs them.
    Either way the outcome tells of the failure; what follows from it is the caller's table. The `version`
    file is read each time, even when no script matches; a bad one fails the hook and nothing is run. `env`
    holds the UPDATE_* variables except state and action. `watch` gets the name of each script that starts,
    and its result when it ended.
    """
    outcome = Outcome()
    hook = f"{state}_{action}"
    try:
        check_version(directory)
        paths = find(directory, state, action, log)
    except ScriptError as error:
        outcome.failed(hook, error, log)
        return outcome
    environment = {**os.environ, **env, "UPDATE_STATE": state, "UPDATE_ACTION": action}
    for path in paths:
        outcome.started.append(path)
        try:
            _run_script(path, environment, config, log, wait, watch)
        except ScriptError as error:
            outcome.failed(hook, error, log)
            if policy == "fail":
                break
    return outcome


def _run_script(
    path: str, env: Mapping[str, str], config: Config, log: Log, wait: Wait, watch: Watch
) -> None:
    """Run one script until it is done, also over retries. Raises ScriptError if it failed.

    The retry window opens at the first exit 21 and ends everything: a wait is cut short, an attempt killed.
    """
    window_end: float | None = None
    while True:
        limit_s = float(config.script_timeout_s)
        if window_end is not None:
            limit_s = min(limit_s, window_end - time.monotonic())
        watch(os.path.basename(path), None)
        result = _attempt(path, env, limit_s, config, log, wait)
        watch(os.path.basename(path), result)
        now = time.monotonic()
        if result.timed_out:
            if window_end is not None and now >= window_end:
                raise _window_error(path, config)
            raise ScriptError(
                f"state script {path} did not end within {config.script_timeout_s} s and was killed",
                hint="StateScriptTimeoutSeconds is the limit for one run",
            )
        if result.ok:
            return
        if result.code != RETRY_LATER:
            raise ScriptError(
                f"state script {path} {result.describe()}",
                hint="its output is in the deployment log; 0 means done, 21 try again later",
            )
        if window_end is None:
            window_end = now + config.script_retry_timeout_s
        again = now + config.script_retry_interval_s
        log.info(
            f"State script {os.path.basename(path)} wants to be run again later; "
            f"next attempt in {config.script_retry_interval_s} s"
        )
        wait([], min(again, window_end))
        if time.monotonic() >= window_end:
            raise _window_error(path, config)


def _window_error(path: str, config: Config) -> ScriptError:
    return ScriptError(
        f"state script {path} wanted another run for {config.script_retry_timeout_s} s, that is long enough",
        hint="StateScriptRetryTimeoutSeconds is the limit",
    )


def _attempt(
    path: str, env: Mapping[str, str], limit_s: float, config: Config, log: Log, wait: Wait
) -> Result:
    """Run the script once, its output and its end logged. At the limit the whole process group is killed."""
    name = os.path.basename(path)
    lines = OutputLines(log, SCRIPT, limit_bytes=config.script_output_limit_bytes)
    try:
        result = run([path], timeout_s=limit_s, env=env, on_output=lines.feed, wait=wait)
    except ProcError as error:
        raise ScriptError(f"state script {path}: {error.message}", hint=error.hint) from error
    finally:
        lines.close()
    if result.timed_out:
        log.info(f"State script {name} {result.describe()}")
    else:
        log.info(f"State script {name} {result.describe()} after {result.seconds:.2f} s")
    return result


def install_scripts(directory: str, scripts: Sequence[tuple[str, bytes]]) -> None:
    """Replace the artifact's scripts by these (file name, content); all on the medium on return.

    Without scripts the directory is left absent. Raises ScriptError; a power cut in between leaves a part,
    which the next artifact replaces. Names come from a checked header and are checked once more here.
    """
    for name, _ in scripts:
        parsed = parse_name(name)
        if parsed is None or STATE_BY_NAME[parsed[0]].scripts != ARTIFACT or "/" in name or "\0" in name:
            raise ScriptError(f"{name!r} is not the name of an artifact's state script")
    parent = os.path.dirname(directory)
    try:
        remove_tree(directory)
        if scripts:
            os.makedirs(directory, mode=0o755)
            write([(os.path.join(directory, name), content) for name, content in scripts], 0o700)
            write([(os.path.join(directory, "version"), b"3\n")], 0o644)
            sync_directory(directory)
        if os.path.isdir(parent):
            sync_directory(parent)
    except OSError as error:
        raise ScriptError(
            f"cannot install the artifact's state scripts in {directory}: {error}",
            hint="is the data partition mounted, writable and not full?",
        ) from error
