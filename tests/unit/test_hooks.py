# SPDX-License-Identifier: Apache-2.0
"""Pause hooks: refusals by file and key, two directories, votes over time, programs, and the checker."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from update_agent import hooks
from update_agent.errors import ControlError
from update_agent.hooks import Holds, Hook
from update_agent.log import Log
from update_agent.states import POINTS, WIRE_POINTS

INSTALL, REBOOT, COMMIT = WIRE_POINTS
ALWAYS = {"point": REBOOT, "when": "always", "limit_s": 100, "at_limit": "continue"}
WINDOW = {"point": REBOOT, "when": {"outside": "02:00 UTC", "lasting_s": 3600}}
PROGRAM = {
    "point": REBOOT,
    "when": {"program": "/bin/ask", "interval_s": 10},
    "limit_s": 100,
    "at_limit": "fail",
}
MIDNIGHT = 1_800_000_000 // 86400 * 86400  # UTC
INFINITE = float("inf")


def changed(document: dict[str, object], **changes: object) -> str:
    """The document with keys set, or left out for None."""
    return json.dumps({key: value for key, value in {**document, **changes}.items() if value is not None})


def make(document: dict[str, object], name: str = "10-x.json", **changes: object) -> Hook:
    return hooks.parse(changed(document, **changes), f"/etc/{name}")


# Parsing


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not JSON"),
        ("[]", "the hook is [], must be an object"),
        (b"\xff", "not JSON"),
        ("[" * 5000, "not JSON"),
        ('{"point": 1, "point": 2}', '"point" is given twice'),
        ('{"limit_s": NaN}', "NaN is no number"),
        (" " * 70000, "more than 65536 bytes"),
        (changed(ALWAYS, Point=REBOOT), 'unknown key "Point" (it may have point, when, limit_s, at_limit)'),
        (changed(ALWAYS, point=None), "point is missing: must be one of Download_Enter, "),
        (changed(ALWAYS, point="ArtifactReboot"), 'point is "ArtifactReboot": must be one of'),
        (changed(ALWAYS, point=[]), "point is []"),
        (changed(ALWAYS, when=None), "when is missing"),
        (changed(ALWAYS, when="never"), 'when is "never": must be "always", '),
        (changed(ALWAYS, when={}), "when is {}"),
        (changed(ALWAYS, when={"outside": "1:00", "program": "/x"}), "when is {"),
        (changed(WINDOW, when={"outside": "1:00"}), "when.lasting_s is missing"),
        (changed(WINDOW, when={"outside": "1:00", "lasting_s": 604801}), "when.lasting_s is 604801: must be"),
        (changed(WINDOW, when={"outside": "1:00", "utc": True}), 'when has an unknown key "utc"'),
        (changed(WINDOW, when={"outside": 1, "lasting_s": 1}), "when.outside is 1: must be text"),
        (
            changed(WINDOW, when={"outside": "Mon 25:00", "lasting_s": 1}),
            'when.outside is "Mon 25:00": hour is',
        ),
        (changed(PROGRAM, when={"program": "ask"}), 'when.program is "ask": must be an absolute path'),
        (changed(PROGRAM, when={"program": "/a\0b"}), "when.program is"),
        (changed(PROGRAM, when={"program": "/a", "interval_s": 0}), "when.interval_s is 0"),
        (changed(PROGRAM, when={"program": "/a", "interval_s": True}), "when.interval_s is true"),
        (changed(PROGRAM, limit_s=None, at_limit=None), "limit_s is missing: must be given: a program that"),
        (changed(ALWAYS, limit_s=1.5), "limit_s is 1.5: must be a whole number of seconds"),
        (changed(ALWAYS, limit_s="1"), 'limit_s is "1"'),
        (changed(ALWAYS, limit_s=None), "limit_s is missing: must be given with at_limit"),
        (changed(ALWAYS, at_limit=None), 'at_limit is missing: must be "continue" or "fail"'),
        (changed(ALWAYS, at_limit="pause"), 'at_limit is "pause"'),
    ],
)
def test_a_bad_hook_is_refused_with_file_key_and_reason(text: str | bytes, words: str) -> None:
    with pytest.raises(ControlError) as caught:
        hooks.parse(text, "/etc/mender/pause.d/10-x.json")
    assert str(caught.value).startswith("/etc/mender/pause.d/10-x.json: ")
    assert words in str(caught.value)


def test_a_hook_may_hold_without_limit_unless_it_is_a_program() -> None:
    assert make(ALWAYS, limit_s=None, at_limit=None).limit_s is None
    assert make(WINDOW).limit_s is None
    assert make(PROGRAM, when={"program": "/bin/ask"}).interval_s == 60


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(POINTS),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["outside", "lasting_s", "program", "interval_s"]), inner, max_size=2
        )
    ),
    max_leaves=4,
)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            key: json_values | st.just(ALWAYS[key]) for key in ("point", "when", "limit_s", "at_limit")
        },
    )
)
def test_any_json_is_a_hook_or_refused_by_name(document: dict[str, object]) -> None:
    try:
        hook = hooks.parse(json.dumps(document), "/x/10-a.json")
    except ControlError as error:
        assert str(error).startswith("/x/10-a.json: ")  # noqa: PT017
    else:
        assert hook.point == document["point"]
        assert (hook.limit_s is None) == ("limit_s" not in document)


@given(st.binary(max_size=60))
def test_any_bytes_are_refused_by_name(data: bytes) -> None:
    with pytest.raises(ControlError, match=r"^/x/10-a\.json: "):
        hooks.parse(data, "/x/10-a.json")


def example_of(guide: str) -> str:
    """The guide's one hook; its other JSON is configuration."""
    (example,) = re.findall(r'^```json\n(\{\n    "point".*?)^```$', guide, re.MULTILINE | re.DOTALL)
    return str(example)


def test_the_example_of_the_guide_is_valid() -> None:
    example = example_of((Path(hooks.__file__).parents[1] / "README.md").read_text())
    hook = hooks.parse(example, "10-night.json")
    assert (hook.kind, hook.point, hook.limit_s) == ("window", REBOOT, 604800)


def test_the_guide_shows_what_the_checker_says(tmp_path: Path) -> None:
    guide = (Path(hooks.__file__).parents[1] / "README.md").read_text()
    (command, said) = re.findall(r"^```console\n\$ python3 (.*)\n(.*…)\n```$", guide, re.MULTILINE)[0]
    broken = json.loads(example_of(guide))
    broken["when"]["outside"] = re.findall(r'when\.outside is "(.*?)"', said)[0]
    directory = tmp_path / command.split()[-1]
    directory.mkdir(parents=True)
    (directory / "10-night.json").write_text(json.dumps(broken))
    done = subprocess.run(
        [sys.executable, *command.split()],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(hooks.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout.startswith(said.removesuffix("…"))


# Directories


def put(directory: Path, name: str, text: str) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(text)
    return directory


def test_of_two_hooks_with_one_name_the_later_directory_counts(tmp_path: Path) -> None:
    image = put(tmp_path / "image", "20-b.json", changed(ALWAYS))
    put(image, "10-a.json", changed(ALWAYS))
    put(image, "30-c.json", changed(ALWAYS))
    product = put(tmp_path / "product", "10-a.json", changed(WINDOW))
    put(product, "README", "not a hook")
    (product / "30-c.json").symlink_to(os.devnull)  # switched off
    found = hooks.load([str(image), str(product), str(tmp_path / "absent")])
    assert [(hook.name, hook.kind) for hook in found] == [("10-a.json", "window"), ("20-b.json", "always")]


@pytest.mark.parametrize(
    ("name", "text", "point", "words"),
    [
        ("10-a.json", "{", INSTALL, "not JSON"),
        ("10-a.json", changed(ALWAYS, when="never"), REBOOT, "when"),
        ("10-a.json", '{"point": "Sync_Enter"}', INSTALL, "point"),
        ("a.json", changed(ALWAYS), INSTALL, "must be NN-name.json"),
        ("10-.json", changed(ALWAYS), INSTALL, "must be NN-name.json"),
    ],
)
def test_a_broken_hook_holds_where_it_is_safe_for_a_day(
    tmp_path: Path, name: str, text: str, point: str, words: str
) -> None:
    put(tmp_path, name, text)
    (hook,) = hooks.load([str(tmp_path)])
    assert (hook.kind, hook.point) == ("broken", point)
    assert hook.fault.startswith(str(tmp_path / name))
    assert words in hook.fault
    holds = Holds([hook], lambda _: pytest.fail("asked"))
    holds.look(0, MIDNIGHT)
    assert (holds.action, holds.votes[0].why) == ("pause", hook.fault)
    assert holds.next_look() == 86400
    holds.look(86400, MIDNIGHT)
    assert holds.action == "continue"


def test_what_is_no_regular_file_is_broken_and_nobody_waits_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "10-a.json")
    (tmp_path / "20-b.json").symlink_to("absent")
    (tmp_path / "30-c.json").mkdir()
    found = hooks.load([str(tmp_path), str(tmp_path / "10-a.json")])
    assert [hook.kind for hook in found] == ["broken"] * 4
    assert all(hook.fault.startswith(str(tmp_path)) for hook in found)


# Votes over time


def never(_hook: Hook) -> tuple[str, str]:
    raise AssertionError("no program is to be asked")


@pytest.mark.parametrize("at_limit", ["continue", "fail"])
def test_a_limit_ends_a_hold(at_limit: str) -> None:
    holds = Holds([make(ALWAYS, at_limit=at_limit)], never)
    assert holds.look(5, MIDNIGHT)
    assert (holds.action, holds.next_look(), holds.left(45)) == ("pause", 105, {"10-x.json": 60})
    assert not holds.look(104.9, MIDNIGHT + 10**6)  # the wall clock is not what counts
    assert holds.look(105, 0)
    assert (holds.action, holds.next_look()) == (at_limit, INFINITE)
    assert holds.votes[0].why == "its limit of 100 s has passed"
    assert not holds.look(10**6, MIDNIGHT)


def test_a_limit_goes_on_after_a_restart() -> None:
    before = Holds([make(ALWAYS)], never)
    before.look(1000, MIDNIGHT)
    after = Holds([make(ALWAYS), make(ALWAYS, "20-y.json")], never, before.left(1070), now=3)
    after.look(3, MIDNIGHT)
    assert [vote.limit_at for vote in after.votes] == [33, 103]
    used_up = Holds([make(ALWAYS)], never, {"10-x.json": 0.0}, now=3)
    used_up.look(3, MIDNIGHT)
    assert used_up.action == "continue"
    shortened = Holds([make(ALWAYS, limit_s=10)], never, {"10-x.json": 30.0}, now=3)
    assert shortened.votes[0].limit_at == 13


def test_a_window_holds_until_it_opens_also_when_the_clock_is_set() -> None:
    holds = Holds([make(WINDOW)], never)
    holds.look(0, MIDNIGHT)
    assert (holds.action, holds.votes[0].why) == ("pause", "outside 02:00 UTC, 3600 s")
    assert holds.votes[0].opens_at == 7200
    assert holds.next_look() == 60  # long before it opens: the clock may be set
    assert not holds.look(60, MIDNIGHT + 60)
    holds.look(61, MIDNIGHT + 7199)
    assert holds.next_look() == 60 + 60  # not due yet
    holds.look(120, MIDNIGHT + 7190)
    assert holds.next_look() == 130
    assert holds.look(130, MIDNIGHT + 7200)
    assert (holds.action, holds.votes[0].opens_at) == ("continue", None)
    assert holds.look(190, MIDNIGHT + 3 * 3600)
    assert holds.action == "pause"


def test_a_clock_that_was_never_set_opens_no_window() -> None:
    holds = Holds([make(WINDOW)], never)
    holds.look(0, 2 * 3600 + 10)
    assert holds.action == "pause"


def test_a_program_is_asked_at_its_interval_and_decides() -> None:
    answers = [("pause", "exited with 21"), ("pause", "exited with 21"), ("continue", "exited with 0")]
    holds = Holds([make(PROGRAM)], lambda _: answers.pop(0))
    holds.look(0, MIDNIGHT)
    holds.look(9.9, MIDNIGHT)
    assert (len(answers), holds.next_look()) == (2, 10)
    assert not holds.look(10, MIDNIGHT)
    assert holds.look(20, MIDNIGHT)
    assert (answers, holds.action) == ([], "continue")


def test_fail_beats_pause_beats_continue() -> None:
    answers = {"10-x.json": ("continue", ""), "20-y.json": ("continue", ""), "30-z.json": ("pause", "")}
    holds = Holds([make(PROGRAM, name) for name in answers], lambda hook: answers[hook.name])
    holds.look(0, MIDNIGHT)
    assert (holds.action, [vote.hook.name for vote in holds.by("pause")]) == ("pause", ["30-z.json"])
    answers["20-y.json"] = ("fail", "")
    holds.look(10, MIDNIGHT)
    assert (holds.action, [vote.hook.name for vote in holds.by("fail")]) == ("fail", ["20-y.json"])
    assert Holds([], never).action == "continue"
    assert Holds([], never).next_look() == INFINITE


# Programs


def ask(tmp_path: Path, body: str) -> tuple[str, str, str]:
    """What a program says, why, and what was logged."""
    program = tmp_path / "ask"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)
    stream = io.StringIO()
    hook = make(PROGRAM, when={"program": str(program)})
    action, why = hooks.ask_program(hook, {"UPDATE_ARTIFACT_NAME": "release-2"}, Log(stream=stream))
    return action, why, stream.getvalue()


@pytest.mark.parametrize(
    ("body", "action", "words"),
    [
        ("exit 0", "continue", "exited with 0"),
        ("exit 1", "fail", "exited with 1"),
        ("exit 21", "pause", "exited with 21"),
        ("exit 2", "pause", "exited with 2"),
        ("kill -9 $$", "pause", "was killed by signal 9"),
    ],
)
def test_exit_codes_of_a_program(tmp_path: Path, body: str, action: str, words: str) -> None:
    found, why, log = ask(tmp_path, body)
    assert (found, why) == (action, f"{tmp_path / 'ask'} {words}")
    assert ("WARNING" in log) == (body in {"exit 2", "kill -9 $$"})


def test_a_program_gets_what_state_scripts_get(tmp_path: Path) -> None:
    _, _, log = ask(tmp_path, 'echo "$UPDATE_STATE $UPDATE_ACTION $UPDATE_ARTIFACT_NAME"')
    assert "Output (stdout) of pause hook 10-x.json: ArtifactReboot Enter release-2" in log


def test_a_program_that_hangs_or_is_absent_keeps_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hooks, "PROGRAM_LIMIT_S", 0.05)
    action, why, log = ask(tmp_path, "sleep 60")
    assert (action, "time limit" in why) == ("pause", True)
    assert "WARNING: Pause hook /etc/10-x.json keeps waiting" in log
    stream = io.StringIO()
    hook = make(PROGRAM, when={"program": str(tmp_path / "absent")})
    assert hooks.ask_program(hook, {}, Log(stream=stream))[0] == "pause"
    assert "cannot start" in stream.getvalue()


# The checker


def check(*arguments: str) -> tuple[int, list[str]]:
    agent = Path(hooks.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "update_agent.hooks", *arguments],
        env={**os.environ, "PYTHONPATH": str(agent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout.splitlines()


def test_the_checker_tells_every_fault_in_a_line(tmp_path: Path) -> None:
    good = put(tmp_path / "good", "10-a.json", changed(WINDOW))
    bad = put(tmp_path / "bad", "10-a.json", "{")
    put(bad, "20-b.json", changed(PROGRAM, limit_s=None, at_limit=None))
    put(bad, "30-c.json", changed(ALWAYS))
    assert check(str(good)) == (0, [])
    code, lines = check(str(good), str(bad), str(tmp_path / "absent"))
    assert code == 1
    assert [line.split(": ")[0] for line in lines] == [
        f"{bad}/10-a.json",
        f"{bad}/20-b.json",
        f"{tmp_path}/absent",
    ]
    assert check()[0] == 2
