# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
import os
import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from update_agent import scripts
from update_agent.config import Config
from update_agent.errors import ScriptError
from update_agent.log import Log
from update_agent.states import STATES

GRAMMAR = re.compile(
    r"(Idle|Sync|Download|ArtifactInstall|ArtifactReboot|ArtifactCommit|ArtifactRollback|ArtifactRollbackReboot"
    r"|ArtifactFailure)_(Enter|Leave|Error)_[0-9][0-9](_\S+)?",
    re.ASCII,  # as the clients, which look at bytes
)


class Hook:
    """A directory of scripts and what running its ArtifactInstall_Enter hook gave."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir()
        self.trace = directory.parent / "trace"
        self.config = Config()
        self.stream = io.StringIO()

    def add(self, name: str, body: str = "", mode: int = 0o755) -> Path:
        path = self.directory / name
        path.write_text(f'#!/bin/sh\necho "${{0##*/}}" >> {self.trace}\n{body}\n')
        path.chmod(mode)
        return path

    def run(
        self, policy: str = "fail", env: dict[str, str] | None = None, log: Log | None = None
    ) -> scripts.Outcome:
        return scripts.run_hook(
            "ArtifactInstall",
            "Enter",
            directory=str(self.directory),
            policy=policy,
            config=self.config,
            log=log or Log(stream=self.stream),
            env=env or {},
        )

    @property
    def ran(self) -> list[str]:
        return self.trace.read_text().split() if self.trace.exists() else []

    @property
    def log(self) -> str:
        return self.stream.getvalue()


@pytest.fixture
def hook(tmp_path: Path) -> Hook:
    return Hook(tmp_path / "scripts")


# Names


@pytest.mark.parametrize("state", [state.name for state in STATES])
def test_every_state_of_the_table_has_script_names(state: str) -> None:
    assert scripts.parse_name(f"{state}_Leave_07_x") == (state, "Leave")


PIECES = st.sampled_from(
    [
        "Idle",
        "ArtifactRollback",
        "ArtifactRollbackReboot",
        "Enter",
        "Error",
        "_",
        "0",
        "9",
        "٣",
        "a",
        " ",
        "\n",
        "/",
    ]
)


@given(st.lists(PIECES, max_size=9).map("".join) | st.text(max_size=8).map("Sync_Enter_00".__add__))
def test_names_follow_the_grammar(name: str) -> None:
    assert (scripts.parse_name(name) is not None) == bool(GRAMMAR.fullmatch(name))


def test_order_is_that_of_bytes_and_other_names_are_left_alone(hook: Hook) -> None:
    for name in ("10_b", "10_B", "02", "10", "10_ä", "1", "010", "10_", "00.sh"):
        hook.add(f"ArtifactInstall_Enter_{name}")
    hook.add("ArtifactInstall_Leave_00")
    hook.add("artifactinstall_enter_00")
    assert hook.run().ok
    assert [name.removeprefix("ArtifactInstall_Enter_") for name in hook.ran] == [
        "02",
        "10",
        "10_B",
        "10_b",
        "10_ä",
    ]
    assert "skipped" not in hook.log


def test_not_executable_and_not_regular_are_skipped_with_a_warning(hook: Hook) -> None:
    hook.add("ArtifactInstall_Enter_01", mode=0o644)
    (hook.directory / "ArtifactInstall_Enter_02").mkdir()
    (hook.directory / "ArtifactInstall_Enter_03").symlink_to("nowhere")
    target = hook.add("real")
    (hook.directory / "ArtifactInstall_Enter_04").symlink_to(target)
    assert hook.run().ok
    assert hook.ran == ["ArtifactInstall_Enter_04"]
    assert "ArtifactInstall_Enter_01 is skipped: not executable (try chmod 0755)" in hook.log
    assert "ArtifactInstall_Enter_02 is skipped: not a regular file" in hook.log
    assert "ArtifactInstall_Enter_03 is skipped: No such file" in hook.log


def test_a_missing_directory_has_no_scripts(hook: Hook) -> None:
    hook.directory.rmdir()
    assert hook.run().ok


# Version


@pytest.mark.parametrize("text", ["2", "3", " 3\n", "\t2\r\n", "03"])
def test_known_versions(hook: Hook, text: str) -> None:
    (hook.directory / "version").write_text(text)
    hook.add("ArtifactInstall_Enter_00")
    assert hook.run().ok
    assert hook.ran == ["ArtifactInstall_Enter_00"]


@pytest.mark.parametrize("text", ["1", "4", "", "three", "3 3", "+3", "3_"])
@pytest.mark.parametrize("policy", ["fail", "ignore"])
def test_an_unknown_version_fails_the_hook_and_nothing_runs(hook: Hook, text: str, policy: str) -> None:
    (hook.directory / "version").write_text(text)
    hook.add("ArtifactInstall_Enter_00")
    outcome = hook.run(policy)
    assert not outcome.ok
    assert hook.ran == []
    assert f"{hook.directory}/version says version {text!r}" in str(outcome.failures[0])


def test_the_version_is_read_even_without_a_matching_script(hook: Hook) -> None:
    (hook.directory / "version").mkdir()
    outcome = hook.run()
    assert "cannot read the version" in str(outcome.failures[0])


# Exit codes


@pytest.mark.parametrize("end", ["exit 1", "exit 2", "exit 255", "kill -9 $$"])
def test_a_failure_skips_the_rest_or_not(hook: Hook, end: str) -> None:
    hook.add("ArtifactInstall_Enter_01", end)
    hook.add("ArtifactInstall_Enter_02")
    assert not hook.run("fail").ok
    assert hook.ran == ["ArtifactInstall_Enter_01"]
    outcome = hook.run("ignore")
    assert [type(failure) for failure in outcome.failures] == [ScriptError]
    assert hook.ran[1:] == ["ArtifactInstall_Enter_01", "ArtifactInstall_Enter_02"]


def test_the_log_has_one_line_with_code_and_seconds_and_one_with_the_failure(hook: Hook) -> None:
    path = hook.add("ArtifactInstall_Enter_01", "exit 3")
    hook.run()
    assert re.search(
        r"INFO: State script ArtifactInstall_Enter_01 exited with 3 after \d+\.\d\d s\n", hook.log
    )
    assert f"ERROR: ArtifactInstall_Enter: state script {path} exited with 3 (" in hook.log


def test_a_file_that_cannot_be_started_is_a_failure(hook: Hook) -> None:
    path = hook.directory / "ArtifactInstall_Enter_01"
    path.write_text("#!/no/such/interpreter\n")
    path.chmod(0o755)
    (failure,) = hook.run().failures
    assert f"cannot start {path}" in failure.message
    assert "interpreter" in failure.hint


def test_retry_later_repeats_only_that_script(hook: Hook) -> None:
    hook.config.script_retry_interval_s = 0
    hook.add("ArtifactInstall_Enter_01")
    hook.add("ArtifactInstall_Enter_02", f"[ $(grep -c _02 {hook.trace}) -ge 3 ] || exit 21")
    hook.add("ArtifactInstall_Enter_03")
    assert hook.run().ok
    assert [name[-2:] for name in hook.ran] == ["01", "02", "02", "02", "03"]


def test_the_window_cuts_a_pending_wait_short(hook: Hook) -> None:
    hook.config.script_retry_interval_s = 3600
    hook.config.script_retry_timeout_s = 0.05  # type: ignore[assignment]
    hook.add("ArtifactInstall_Enter_01", "exit 21")
    hook.add("ArtifactInstall_Enter_02")
    (failure,) = hook.run("ignore").failures
    assert "StateScriptRetryTimeoutSeconds" in failure.hint
    assert [name[-2:] for name in hook.ran] == ["01", "02"]


def test_the_window_kills_a_running_attempt_and_its_children(hook: Hook, tmp_path: Path) -> None:
    hook.config.script_retry_interval_s = 0
    hook.config.script_retry_timeout_s = 0.3  # type: ignore[assignment]
    pidfile = tmp_path / "pid"
    first = f"[ -e {pidfile}.first ] || {{ : > {pidfile}.first; exit 21; }}"
    body = f"{first}\nsleep 1000 & echo $! > {pidfile}; wait"
    hook.add("ArtifactInstall_Enter_01", body)
    (failure,) = hook.run().failures
    assert "StateScriptRetryTimeoutSeconds" in failure.hint
    assert gone(int(pidfile.read_text()))


def test_the_window_opens_at_the_first_21_not_at_the_start(hook: Hook) -> None:
    hook.config.script_retry_interval_s = 0
    hook.config.script_retry_timeout_s = 60
    hook.add(
        "ArtifactInstall_Enter_01", f"[ $(grep -c _01 {hook.trace}) -ge 2 ] || {{ sleep 0.2; exit 21; }}"
    )
    started = time.monotonic()
    ends: list[float | None] = []

    def wait(fds: object, deadline: float | None) -> list[int]:
        from update_agent.loop import plain_wait

        if not list(fds):  # type: ignore[call-overload]
            return []  # the retry wait
        ends.append(deadline)
        return plain_wait(fds, deadline)  # type: ignore[arg-type]

    outcome = scripts.run_hook(
        "ArtifactInstall",
        "Enter",
        directory=str(hook.directory),
        policy="fail",
        config=hook.config,
        log=Log(stream=hook.stream),
        env={},
        wait=wait,
    )
    assert outcome.ok
    first, last = ends[0], ends[-1]
    assert first is not None
    assert last is not None
    assert first > started + 3000  # the first attempt has StateScriptTimeoutSeconds
    assert started + 60.2 <= last < first  # the second ends with a window that opened after 0.2 s


def test_timeout_kills_the_whole_group(hook: Hook, tmp_path: Path) -> None:
    hook.config.script_timeout_s = 0.3  # type: ignore[assignment]
    pidfile = tmp_path / "pid"
    path = hook.add("ArtifactInstall_Enter_01", f"sleep 1000 & echo $! > {pidfile}; wait")
    (failure,) = hook.run().failures
    assert f"state script {path} did not end within 0.3 s" in failure.message
    assert gone(int(pidfile.read_text()))


def gone(pid: int) -> bool:
    """Ended, or a zombie that init has not collected yet."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return True
    if status.rsplit(")", 1)[1].split()[0] == "Z":
        return True
    fd = os.pidfd_open(pid)
    try:
        import select

        return bool(select.select([fd], [], [], 10)[0])
    finally:
        os.close(fd)


# Environment and output


def test_environment_and_stdin(hook: Hook) -> None:
    hook.add(
        "ArtifactInstall_Enter_01", 'cat; echo "$UPDATE_STATE $UPDATE_ACTION $UPDATE_ARTIFACT_NAME $#" >&2'
    )
    assert hook.run(env={"UPDATE_ARTIFACT_NAME": "v2"}).ok
    prefix = "Collected output (stderr) while running script: "
    assert f"INFO: {prefix}ArtifactInstall Enter v2 0\n" in hook.log


def test_output_is_logged_line_by_line_with_its_stream(hook: Hook) -> None:
    hook.add("ArtifactInstall_Enter_01", "printf 'one\\n'; printf 'a\\nb' >&2; printf '\\377\\n'")
    assert hook.run().ok
    prefix = "INFO: Collected output (%s) while running script: "
    for stream, line in (("stdout", "one"), ("stdout", "\\xff"), ("stderr", "a"), ("stderr", "b")):
        assert f"{prefix % stream}{line}\n" in hook.log


CHATTY = "head -c 100000 /dev/zero | tr '\\0' '~' | fold -w 99"


def test_output_is_kept_whole_in_the_log_of_the_deployment(hook: Hook, tmp_path: Path) -> None:
    hook.add("ArtifactInstall_Enter_01", f"{CHATTY}; {CHATTY} >&2")
    log = Log(stream=hook.stream)
    log.open_deployment(str(tmp_path), "3f1c")
    assert hook.run(log=log).ok
    log.close_deployment()
    for text in (hook.log, (tmp_path / "deployments.0000.3f1c.log").read_text()):
        assert text.count("~") == 2 * 100_000
        assert text.count("(stdout) while running script: ~") == text.count("(stderr) while") == 1011
        assert "truncated" not in text


def test_output_is_cut_at_the_configured_size_per_script(hook: Hook) -> None:
    hook.config.script_output_limit_bytes = 20_000
    for number in "12":
        hook.add(f"ArtifactInstall_Enter_0{number}", CHATTY)
    assert hook.run().ok
    assert hook.log.count("[output truncated after 20000 bytes]") == 2
    assert 2 * (19_700 + 1900) < hook.log.count("~") <= 2 * (20_000 + 2048)  # and the end of the rest


# Scripts of an artifact


def test_install_replaces_what_was_there(tmp_path: Path) -> None:
    directory = tmp_path / "store" / "scripts"
    scripts.install_scripts(
        str(directory), [("ArtifactInstall_Enter_00", b"old"), ("ArtifactCommit_Leave_99_x", b"")]
    )
    (directory / "sub").mkdir()
    (directory / "sub" / "link").symlink_to(tmp_path)
    old = os.umask(0o077)
    try:
        scripts.install_scripts(str(directory), [("ArtifactReboot_Enter_00", b"#!/bin/sh\n")])
    finally:
        os.umask(old)
    assert sorted(os.listdir(directory)) == ["ArtifactReboot_Enter_00", "version"]
    assert (directory / "ArtifactReboot_Enter_00").read_bytes() == b"#!/bin/sh\n"
    assert (directory / "ArtifactReboot_Enter_00").stat().st_mode & 0o7777 == 0o700
    assert (directory / "version").read_text().strip() == "3"
    scripts.check_version(str(directory))


def test_without_scripts_the_directory_is_absent(tmp_path: Path) -> None:
    directory = tmp_path / "scripts"
    scripts.install_scripts(str(directory), [("ArtifactInstall_Enter_00", b"")])
    scripts.install_scripts(str(directory), [])
    assert not directory.exists()


@pytest.mark.parametrize(
    "name",
    ["Idle_Enter_00", "Download_Leave_00", "ArtifactInstall_Enter_0", "ArtifactInstall_Enter_00_a/../../x"],
)
def test_only_artifact_scripts_may_come_with_an_artifact(tmp_path: Path, name: str) -> None:
    with pytest.raises(ScriptError, match="not the name of an artifact's state script"):
        scripts.install_scripts(str(tmp_path / "scripts"), [(name, b"")])
    assert os.listdir(tmp_path) == []


def test_install_tells_what_is_wrong_with_the_disk(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ScriptError, match="data partition"):
        scripts.install_scripts(str(tmp_path / "file" / "scripts"), [("ArtifactInstall_Enter_00", b"")])
