# SPDX-License-Identifier: Apache-2.0
"""Rehearsals: silent on the layer's examples, and each planted flaw is found by its name."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from update_agent.states import DAEMON_STEPS
from update_tools.conform import artifact as small
from update_tools.rehearse import board, plan, rehearsal, sandbox
from update_tools.rehearse.cli import run
from update_tools.rehearse.findings import CATALOGUE
from update_tools.rehearse.html import Timeline, page
from update_tools.rehearse.record import Update
from update_tools.rehearse.team import InputError, Team

REPOSITORY = Path(__file__).parents[2]
RECIPES = REPOSITORY / "meta-update/recipes-core"
ANSWERS = {"NeedsArtifactReboot": "Automatic", "SupportsRollback": "Yes"}
Files = dict[str, str]


def _can_make_machines() -> bool:
    pid = os.fork()
    if pid == 0:
        try:
            sandbox._unshare(sandbox._NEWUSER | sandbox._NEWNS | sandbox._NEWPID | sandbox._NEWNET)
            os._exit(0)
        except sandbox.SandboxError:
            os._exit(1)
    return os.waitpid(pid, 0)[1] == 0


needs_machines = pytest.mark.skipif(not _can_make_machines(), reason="needs Linux namespaces")


def write(folder: Path, files: Files, *, mode: int = 0o755) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            text
            if text.startswith(("#!", "{")) or name == "version" or not text
            else f"#!/bin/sh\nset -eu\n{text}\n"
        )
        path.chmod(mode)
    return folder


def found(done: rehearsal.Rehearsal) -> dict[str, str]:
    return {finding.name: finding.where for finding in done.findings}


# The plan: from the table, not by hand


def test_each_way_to_fail_is_a_scenario() -> None:
    scenarios = plan.failures(ANSWERS, {})
    played = {(fault.step, fault.event) for each in scenarios for fault in each.legs[0].faults}
    reached = plan.steps_of(ANSWERS)
    wanted = {
        (name, event)
        for name, step in DAEMON_STEPS.items()
        for event in ("fail", "aborted")
        if name in reached and not name.startswith(("sync.inventory", "idle"))
        if step.work.kind not in {"hook", "do", "wait"} and event in step.edges
        if step.edges[event] != step.edges[plan.good_event(step, ANSWERS)]
    }
    assert len(wanted) > 20
    assert played == wanted
    assert len({each.name for each in scenarios}) == len(scenarios)


def test_each_script_fails_once() -> None:
    scripts = {
        "ArtifactRollbackReboot_Leave": ["a", "b"],
        "ArtifactCommit_Leave": ["c"],
        "Download_Error": ["d"],
    }
    failing = [f.script for each in plan.failures(ANSWERS, scripts) for f in each.legs[0].faults if f.script]
    assert {"a", "b", "c", "d"} == set(failing)


def test_a_module_without_reboot_has_no_reboot_hooks() -> None:
    hooks = plan.hooks_of({"NeedsArtifactReboot": "No", "SupportsRollback": "Yes"})
    assert not [hook for hook in hooks if "Reboot" in hook]
    assert "ArtifactRollback_Enter" in hooks
    assert "ArtifactRollback_Enter" not in plan.hooks_of(
        {"NeedsArtifactReboot": "No", "SupportsRollback": "No"}
    )


# The good set


@needs_machines
def test_the_examples_of_the_layer_pass(tmp_path: Path) -> None:
    """All ways to fail; of the kills a sample."""
    conf = tmp_path / "mender.conf"
    conf.write_text(json.dumps({"StateScriptRetryTimeoutSeconds": 86400}))  # as the example says
    team = Team(
        RECIPES / "update-state-scripts-example/files",
        hooks=RECIPES / "update-pause-hooks-example/files",
        conf=conf,
    )
    done = rehearsal.rehearse(team, rehearsal.Options(quick=True, only=EXAMPLE_SCENARIOS))
    assert not list(done.findings), [f.document() for f in done.findings]
    ran = {run.name for each in done.played for update in each.updates for run in update.runs}
    assert {"Download_Enter_10_quiet-hours", "ArtifactCommit_Enter_50_self-test", "nobody-at-work"} <= ran
    first = done.played[0].updates[0]
    codes = [run.code for run in first.runs if run.name == "Download_Enter_10_quiet-hours"]
    assert codes[-1] == 0, "by day it must wait, and by night go on"
    assert set(codes[:-1]) == {21}
    text = page(done)
    assert "Nothing wrong was found" in text
    assert not re.search(r'(src|href)="(http|//)', text), "the page must be readable offline"


EXAMPLE_SCENARIOS = [
    "install=fail",
    "reboot.verify=fail",
    "commit=fail",
    "no-boot",
    "Download_Enter*",
    "sync.poll=fail",
]


@needs_machines
def test_good_scripts_survive_kills(tmp_path: Path) -> None:
    scripts = write(
        tmp_path / "scripts",
        {
            "ArtifactInstall_Leave_10_migrate": """
                settings=$UPDATE_DATA_DIR/settings
                echo "format=2" >"$settings.new"
                mv "$settings.new" "$settings"
            """,
            "ArtifactRollback_Enter_10_restore": 'cd "$UPDATE_DATA_DIR" && rm -f settings settings.new',
            "ArtifactFailure_Enter_10_clear": 'rm -f "$UPDATE_DATA_DIR/settings.new"',
            "ArtifactCommit_Leave_10_note": 'date >"$UPDATE_DATA_DIR/updated"',
        },
    )
    options = rehearsal.Options(only=["success ! *Artifact[IC]*"], sample=2)
    done = rehearsal.rehearse(Team(scripts), options)
    assert not list(done.findings), [f.document() for f in done.findings]
    assert sum(each.updates[0].is_killed for each in done.played) >= 5


# Planted flaws: name of the finding, where, files, what else is given

FLAWS: dict[str, tuple[str, Files, dict[str, object]]] = {
    "not-idempotent": (
        "ArtifactInstall_Enter_10_x",
        {
            "ArtifactInstall_Enter_10_x": 'echo more >>"$UPDATE_DATA_DIR/list"',
            "ArtifactRollback_Enter_10_x": "rm -f x",
        },
        {},
    ),
    "leaves-process": (
        "ArtifactInstall_Enter_10_x",
        {"ArtifactInstall_Enter_10_x": "sleep 600 >/dev/null 2>&1 &"},
        {},
    ),
    "output-cut": ("Download_Leave_10_x", {"Download_Leave_10_x": "seq 1 4000"}, {}),
    "retries-for-ever": ("Download_Enter_10_x", {"Download_Enter_10_x": "exit 21"}, {}),
    "script-hangs": (
        "ArtifactCommit_Enter_10_x",
        {"ArtifactCommit_Enter_10_x": "sleep 600"},
        {"patience_s": 1.0},
    ),
    "script-fails": ("ArtifactReboot_Leave_10_x", {"ArtifactReboot_Leave_10_x": "exit 3"}, {}),
    "fails-on-failure-path": (
        "ArtifactRollback_Enter_10_x",
        {"ArtifactRollback_Enter_10_x": 'rm "$UPDATE_DATA_DIR/made-by-commit"'},
        {"only": ["install=fail"]},
    ),
    "fails-when-repeated": (
        "ArtifactInstall_Leave_10_x",
        {"ArtifactInstall_Leave_10_x": 'mkdir "$UPDATE_DATA_DIR/once"'},
        {},
    ),
    "fails-after-kill": (
        "ArtifactRollback_Enter_10_x",
        {
            "ArtifactInstall_Enter_10_x": "date >/run/begun",
            "ArtifactRollback_Enter_10_x": "cat /run/begun",
        },
        {"quick": False, "only": ["success ! power cut after end of ArtifactInstall_Enter*"]},
    ),
    "not-rolled-back": (
        "ArtifactInstall_Leave_10_x",
        {"ArtifactInstall_Leave_10_x": 'echo 2 >"$UPDATE_DATA_DIR/format"'},
        {"only": ["commit=fail"]},
    ),
    "writes-rootfs": ("ArtifactInstall_Leave_10_x", {"ArtifactInstall_Leave_10_x": "date >/etc/updated"}, {}),
    "network-needed": (
        "ArtifactCommit_Enter_10_x",
        {"ArtifactCommit_Enter_10_x": "#!/bin/bash\necho >/dev/tcp/192.0.2.1/80"},
        {},
    ),
    "network-used": (
        "ArtifactCommit_Enter_10_x",
        {"ArtifactCommit_Enter_10_x": "#!/bin/bash\n(echo >/dev/tcp/192.0.2.1/80) || true"},
        {},
    ),
    "script-bad-name": (
        "ArtifactInstal_Enter_10_x",
        {"ArtifactInstal_Enter_10_x": "exit 0", "Download_Enter_10_x": "exit 0"},
        {},
    ),
    "script-no-such-hook": (
        "ArtifactRollback_Error_10_x",
        {"ArtifactRollback_Error_10_x": "exit 0"},
        {},
    ),
    "script-not-executable": (
        "Download_Enter_20_b",
        {"Download_Enter_10_a": "exit 0", "Download_Enter_20_b": "exit 0"},
        {"plain": "Download_Enter_20_b"},
    ),
    "scripts-version": ("version", {"Download_Enter_10_x": "exit 0", "version": "4\n"}, {}),
    "script-no-interpreter": ("Download_Enter_10_x", {"Download_Enter_10_x": "#!/bin/tcsh-of-nobody\n"}, {}),
    "script-empty": ("Download_Enter_10_x", {"Download_Enter_10_x": ""}, {}),
    "script-crlf": ("Download_Enter_10_x", {"Download_Enter_10_x": "#!/bin/sh\r\nexit 0\r\n"}, {}),
    "script-unreachable": (
        "ArtifactReboot_Enter_10_x",
        {"ArtifactReboot_Enter_10_x": "exit 0"},
        {"module": "No"},
    ),
    "never-ran": (
        "ArtifactRollback_Enter_20_b",
        {"ArtifactRollback_Enter_10_a": "exit 3", "ArtifactRollback_Enter_20_b": "exit 0"},
        {"only": ["install=fail"], "others": {"fails-on-failure-path"}},
    ),
    "update-fails": (
        "the update",
        {"ArtifactInstall_Enter_10_x": "exit 0"},
        {"module": "No", "broken": "ArtifactInstall"},
    ),
    "update-stuck": ("the update", {"ArtifactInstall_Enter_10_x": "kill $PPID; sleep 600"}, {}),
    "bashism": ("Download_Enter_10_x", {"Download_Enter_10_x": "[[ -d / ]] || exit 0"}, {}),
    "hook-unreachable": (
        "10-x.json",
        {
            "pause.d/10-x.json": '{"point": "ArtifactReboot_Enter", "when": "always", '
            '"limit_s": 60, "at_limit": "continue"}'
        },
        {"module": "No"},
    ),
    "hook-invalid": (
        "10-x.json",
        {"pause.d/10-x.json": '{"point": "ArtifactReboot_Enter", "when": "sometimes"}'},
        {},
    ),
    "hook-never-ends": (
        "10-x.json",
        {"pause.d/10-x.json": '{"point": "ArtifactCommit_Enter", "when": "always"}'},
        {},
    ),
    "hook-program-missing": (
        "10-x.json",
        {
            "pause.d/10-x.json": '{"point": "Download_Enter", "when": {"program": "/opt/nothing"}, '
            '"limit_s": 60, "at_limit": "continue"}'
        },
        {},
    ),
    "hook-fails-update": (
        "10-x.json",
        {
            "pause.d/10-x.json": '{"point": "Download_Enter", "when": {"program": "/opt/ask"}, '
            '"limit_s": 60, "at_limit": "continue"}',
            "pause.d/ask": "exit 1",
        },
        {},
    ),
    "hook-breaks": (
        "10-x.json",
        {
            "pause.d/10-x.json": '{"point": "Download_Enter", "when": {"program": "/usr/lib/x/ask"}, '
            '"limit_s": 60, "at_limit": "continue"}',
            "pause.d/ask": "exit 7",
        },
        {},
    ),
}
MODULE = """
case $1 in
NeedsArtifactReboot) echo "@answer@" ;;
SupportsRollback) echo Yes ;;
@broken@) exit 1 ;;
esac
"""


@needs_machines
@pytest.mark.parametrize("name", FLAWS)
def test_a_planted_flaw_is_found(name: str, tmp_path: Path) -> None:
    where, files, more = FLAWS[name]
    hooks = {
        file.removeprefix("pause.d/"): text for file, text in files.items() if file.startswith("pause.d/")
    }
    scripts = {file: text for file, text in files.items() if not file.startswith("pause.d/")}
    given: dict[str, Path] = {}
    if hooks:
        given["hooks"] = write(tmp_path / "hooks", hooks)
    if "module" in more:
        text = MODULE.replace("@answer@", str(more["module"])).replace("@broken@", str(more.get("broken")))
        given["root"] = write(tmp_path / "root", {"usr/share/mender/modules/v3/some-module": text})
        given["artifact"] = tmp_path / "new.mender"
        built = {script: (write(tmp_path / "s", scripts) / script).read_bytes() for script in scripts}
        given["artifact"].write_bytes(
            small.build("new", device_type="board", payload_type="some-module", scripts=built)
        )
        scripts = {}
    folder = write(tmp_path / "scripts", scripts) if scripts else None
    if folder is not None and "plain" in more:
        (folder / str(more["plain"])).chmod(0o644)
    options = rehearsal.Options(
        quick=bool(more.get("quick", True)),
        only=more.get("only", ["nothing more"]),  # type: ignore[arg-type]
        patience_s=float(more.get("patience_s", 10.0)),  # type: ignore[arg-type]
        jobs=2,
    )
    done = rehearsal.rehearse(Team(*([folder] if folder else []), **given), options)
    assert found(done).get(name) == where, [f.document() for f in done.findings]
    others = {finding.name for finding in done.findings if finding.severity == "error"} - {name}
    # What never gets to the kernel as a program also fails when it is started.
    assert others <= {"script-fails", "hook-breaks", *more.get("others", ())}, [
        f.document() for f in done.findings
    ]


@needs_machines
def test_a_hook_whose_program_never_lets_go(tmp_path: Path) -> None:
    """The clock leaps over the week; the update goes on at the limit, and the hook is named."""
    hook = {
        "point": "Download_Leave",
        "when": {"program": "/opt/ask"},
        "limit_s": 604800,
        "at_limit": "continue",
    }
    hooks = write(tmp_path / "hooks", {"10-x.json": json.dumps(hook), "ask": "exit 21"})
    options = rehearsal.Options(quick=True, only=["nothing more"])
    done = rehearsal.rehearse(Team(hooks=hooks), options)
    assert found(done) == {"hook-never-ends": "10-x.json"}
    assert [update.status for update in done.played[0].updates] == ["success", "success"]


@needs_machines
def test_what_may_differ_is_not_found(tmp_path: Path) -> None:
    scripts = write(tmp_path, {"ArtifactInstall_Enter_10_x": 'echo more >>"$UPDATE_DATA_DIR/log/history"'})
    (tmp_path / "ArtifactInstall_Enter_05_x").write_text('#!/bin/sh\nmkdir -p "$UPDATE_DATA_DIR/log"\n')
    (tmp_path / "ArtifactInstall_Enter_05_x").chmod(0o755)
    options = rehearsal.Options(quick=True, only=["nothing more"], ignored=["/data/mender/log"])
    assert not list(rehearsal.rehearse(Team(scripts), options).findings)


@needs_machines
def test_the_machine_looks_like_the_device(tmp_path: Path) -> None:
    """What scripts find there: the slot they run from, boot environment, data partition, their variables."""
    text = """
        grep -q "root=$UPDATE_ACTIVE_DEVICE" /proc/cmdline
        [ "$(fw_printenv -n upgrade_available)" = 1 ]
        [ "$UPDATE_ACTIVE_DEVICE" != "$UPDATE_INACTIVE_DEVICE" ]
        [ "$(readlink -f /var/lib/mender)" = /data/mender ]
        [ "$UPDATE_STATE $UPDATE_ACTION" = "ArtifactReboot Leave" ]
        [ ! -e /run/before-reboot ] && [ ! -e /etc/before-reboot ] && [ -e /data/before-reboot ]
        systemctl is-active --quiet some.service
    """
    before = """
        touch /run/before-reboot /etc/before-reboot /data/before-reboot
        [ "$(cat /etc/product)" = "{mine}" ]
        [ "$(tool-of-ours)" = hello ]
    """
    root = write(
        tmp_path / "root",
        {"etc/product": "{mine}", "etc/mender/mender.conf": "{}", "usr/bin/tool-of-ours": "echo hello"},
    )
    names = {"ArtifactReboot_Leave_10_x": text, "ArtifactReboot_Enter_10_x": before}
    team = Team(write(tmp_path / "scripts", names), root=root)
    done = rehearsal.rehearse(team, rehearsal.Options(quick=True, only=["nothing more"]))
    assert found(done) == {"writes-rootfs": "ArtifactReboot_Enter_10_x"}
    assert {update.status for each in done.played for update in each.updates} == {"success"}


# On a board


def test_each_hook_that_leads_to_a_rollback_is_played_on_a_board() -> None:
    failing = [case.hook for case in board.cases(quick=False) if case.hook]
    assert failing == [
        *("ArtifactInstall_Enter", "ArtifactInstall_Leave"),
        *("ArtifactReboot_Enter", "ArtifactReboot_Leave"),
        *("ArtifactCommit_Enter", "ArtifactCommit_Leave"),
    ]


def test_what_the_log_of_a_device_says() -> None:
    name = "ArtifactCommit_Enter_10_x"
    lines = [
        (1.0, "State script ArtifactCommit_Enter_99_other exited with 1 after 0.50 s"),
        (2.0, f"Collected output (stderr) while running script: hello from {name}"),
        (3.0, f"State script {name} exited with 21 after 0.25 s"),
        (9.0, f"State script {name} ran into its time limit after 5.0 s and was killed"),
    ]
    events = board.read_log(lines, {name})
    update = Update(
        {"events": events, "stuck": "", "log": "", "slot": "3", "points": [], "before": {}, "after": {}}
    )
    later, limit = update.runs
    assert (later.code, later.seconds, later.output) == (21, 0.25, f"hello from {name}\n")
    assert later.hook == "ArtifactCommit_Enter"
    assert limit.timed_out
    assert [bar["look"] for bar in Timeline(update, 1, is_disturbed=False).bars] == ["later", "bad"]


def test_the_guide_has_every_finding() -> None:
    guide = (REPOSITORY / "scripts/update_tools/rehearse/README.md").read_text()
    table = guide.partition("| name | found when |")[2].partition("## In your layer")[0]
    assert set(re.findall(r"`([a-z]+(?:-[a-z]+)+|bashism)`", table)) == set(CATALOGUE)


def test_every_finding_of_the_list_is_planted(capsys: pytest.CaptureFixture[str]) -> None:
    """A name that no script can be made to show is none; and what is not in the list is not told."""
    assert run(["--list"]) == 0
    listed = [line.split()[1] for line in capsys.readouterr().out.splitlines()]
    assert sorted(listed) == sorted(FLAWS)
    assert set(listed) == set(CATALOGUE)


# Nothing gets out


@needs_machines
def test_scripts_write_nowhere_but_into_the_machine(tmp_path: Path) -> None:
    marker = tmp_path / "outside"
    scripts = write(
        tmp_path / "scripts",
        {
            "ArtifactInstall_Enter_10_x": f"""
                for place in "{marker}" /usr/outside /sys/outside /proc/sys/kernel/outside; do
                    ! (date >"$place") 2>/dev/null || exit 1
                done
                ! mount -o remount,rw /usr 2>/dev/null || exit 1
                ! chroot /proc/1/root true 2>/dev/null || [ ! -e /proc/1/root/{REPOSITORY} ] || exit 1
                [ "$(tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' ')" = lo ] || exit 1
                [ "$(id -u)" = 0 ]
            """
        },
    )
    done = rehearsal.rehearse(Team(scripts), rehearsal.Options(quick=True, only=["nothing more"]))
    assert not [f.document() for f in done.findings if f.severity == "error"]
    assert not marker.exists()


# Command line and plugin


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--scripts", "nowhere"], "--scripts nowhere is not a directory"),
        (["--scripts", "."], "has no state scripts"),
        (["--artifact", "bad.mender"], "bad.mender is no artifact"),
        (["--scripts", "good", "--conf", "bad.mender"], "is not JSON"),
        (["--scripts", "good", "--clock", "noon"], "is no time of day"),
        ([], "there is nothing to rehearse"),
    ],
)
def test_bad_input(words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "bad.mender").write_text("nothing")
    monkeypatch.chdir(empty)
    if "good" in words:
        write(empty / "good", {"Download_Enter_10_x": "exit 0"})
    else:
        (empty / "bad.mender").rename(tmp_path / "bad.mender")
        monkeypatch.chdir(tmp_path)
        words = ["empty" if word == "." else word for word in words]
    with pytest.raises(InputError, match=re.escape(message)):
        run(words)


@needs_machines
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scripts = write(tmp_path / "scripts", {"Download_Enter_10_x": 'echo "<hello>" >&2; exit 3'})
    report = tmp_path / "report.html"
    words = ["--scripts", str(scripts), "--quick", "--only", "success", "--json", "--html", str(report)]
    assert run(words) == 3
    document = json.loads(capsys.readouterr().out)
    assert [finding["name"] for finding in document["findings"]] == ["script-fails"]
    (line,) = document["scripts"]
    assert (line["name"], line["results"]) == ("Download_Enter_10_x", ["3"])
    assert document["scenarios"][0]["updates"][0]["runs"][0]["output"] == "<hello>\n"
    text = report.read_text()
    assert "&lt;hello&gt;" in text
    assert "<hello>" not in text


@needs_machines
def test_the_plugin(tmp_path: Path) -> None:
    write(tmp_path / "good", {"Download_Enter_10_x": "exit 0"})
    write(tmp_path / "bad", {"Download_Enter_10_x": "exit 3"})
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["update_tools.rehearse.plugin"]\n')
    (tmp_path / "test_product.py").write_text(
        "def test_good(ota_rehearsal):\n    assert ota_rehearsal('good', only=['success']).played\n"
        "def test_bad(ota_rehearsal):\n    ota_rehearsal('bad', only=['success'])\n"
        "def test_typo(ota_rehearsal):\n    ota_rehearsal('good', only=['succes'])\n"
    )
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "--ota-quick",
            "--ota-html",
            "reports",
            "-p",
            "no:cacheprovider",
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "cannot be rehearsed: no scenario is called 'succes' (--only)" in result.stdout
    assert "2 failed, 1 passed" in result.stdout, result.stdout + result.stderr
    assert "error script-fails Download_Enter_10_x: Download_Enter: exit code 3 [success]" in result.stdout
    assert {path.name for path in (tmp_path / "reports").iterdir()} == {"test_good.html", "test_bad.html"}
