# SPDX-License-Identifier: Apache-2.0
"""Scenarios of the specification against the real agent: some of each kind here, all of them with

scripts/conform scenarios --jobs 2 ../shared/spec/scenarios.json
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from update_agent.errors import UpdateError
from update_tools.conform import lab, local_bus, scenarios

ROOT = Path(__file__).parents[2]
FILE = ROOT.parent / "shared" / "spec" / "scenarios.json"
Json = dict[str, Any]
CHOSEN = (
    "t-normal-flow-idle-sync-idle",
    "t-normal-flow-downloadwithfilesizesyes",
    "t-normal-install-no-reboot-no-rollback",
    "t-error-in-artifactinstall",
    "t-killed-in-artifactinstall",
    "t-error-in-artifactverifyreboot",
    "t-killed-in-artifactrollbackreboot",
    "t-killed-in-cleanup",
    "t-error-in-artifactinstall-depends-check",
    "t-killed-in-artifactcommit-leave-00",
    "t-error-in-artifactcommit-leave-00",
    "t-hang-in-download-state",
    "t-aborted-update-before-install",
    "t-completely-non-writable-database",
    "auto-reboot-verify-error",
    "retry-ok-artifactinstall-enter-00",
    "retry-expired-in-error-script",
    "script-timeout-artifactfailure-enter-00",
    "order-error-scripts-all-run",
    "names-invalid-ignored",
    "artifact-script-version-corrupted",
    "abort-at-precommit-no-reboot",
    "unreachable-final-temporarily",
    "reboot-loop-in-commit-leave",
    "sync-leave-fails-with-update",
    "bad-signature",
    "query-reboot-error-in-rollback",
    "control-server-pause-all",
    "control-kill-while-paused-artifactcommit",
    "control-refresh-error-then-ok",
    "control-two-apps-both-must-agree",
    "control-local-expires-continue",
    "standalone-install-rollback",
    "standalone-empty-payload",
    "standalone-stop-before-artifactcommit-leave",
    "standalone-killed-in-failure-then-rollback",
)


@pytest.fixture(scope="module")
def by_id() -> dict[str, Json]:
    if not FILE.exists() and os.environ.get("CI") != "true":
        pytest.skip("the specification is not beside this repository")
    return {scenario["id"]: scenario for scenario in scenarios.load(str(FILE))}


@pytest.mark.parametrize("name", CHOSEN)
def test_scenario(by_id: dict[str, Json], name: str) -> None:
    try:
        scenarios.play(by_id[name])
    except scenarios.Skipped as reason:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(reason))


def test_every_category_is_chosen(by_id: dict[str, Json]) -> None:
    chosen = {by_id[name]["category"] for name in CHOSEN}
    assert chosen == {scenario["category"] for scenario in by_id.values()}


# The player itself: it must see what is not as expected


def drop_last_script(scenario: Json) -> None:
    trace = scenario["expect"]["trace"]
    del trace[max(index for index, event in enumerate(trace) if event.startswith("script:"))]


def add_to_the_end(scenario: Json) -> None:
    scenario["expect"]["trace"].append("logs")


def another_name(scenario: Json) -> None:
    scenario["expect"]["artifact_name"] = "old"


def only_statuses(scenario: Json) -> None:
    scenario["expect"] = {"statuses": ["downloading", "installing", "success"]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (drop_last_script, "expected module:Cleanup, found script:ArtifactCommit_Leave_00"),
        (add_to_the_end, "expected logs, found the end"),
        (another_name, "artifact name: expected old, found new"),
        (only_statuses, "statuses line 3: expected success, found rebooting"),
    ],
)
def test_a_difference_is_seen(by_id: dict[str, Json], change: Callable[[Json], None], words: str) -> None:
    scenario = copy.deepcopy(by_id["t-normal-install"])
    change(scenario)
    with pytest.raises(scenarios.Difference, match=words):
        scenarios.play(scenario)


def test_processes_left_running_are_seen(by_id: dict[str, Json], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab, "_MODULE", "sleep 600 &\n" + lab._MODULE)
    monkeypatch.setattr(scenarios, "_GRACE_S", 0.1)
    with pytest.raises(scenarios.Difference, match="left running"):
        scenarios.play(by_id["standalone-no-rollback-autocommit"])


def conform(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [ROOT / "scripts/conform", "scenarios", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_what_cannot_be_played_is_skipped_and_counted(
    by_id: dict[str, Json], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_bus, "missing", lambda: "dbus-daemon")
    told: list[str] = []
    assert scenarios.run([str(FILE)], told.append, only=["control-approve-once"]) == 0
    assert "there is no dbus-daemon" in told[0]
    assert told[-1] == "0 passed, 0 failed, 1 skipped"
    assert by_id["control-approve-once"]["given"]["local_maps"]


def test_a_failure_is_an_exit_code(by_id: dict[str, Json], tmp_path: Path) -> None:
    scenario = copy.deepcopy(by_id["standalone-empty-payload"])
    scenario["expect"]["artifact_name"] = "old"
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"scenarios": [scenario, by_id["standalone-wrong-device-type"]]}))
    result = conform("--jobs", "2", path)
    assert result.returncode == 1
    assert "FAIL standalone-empty-payload" in result.stdout
    assert result.stdout.splitlines()[-1] == "1 passed, 1 failed"


@pytest.mark.parametrize("text", ["", "[]", '{"scenarios": []}', '{"scenarios": [{"id": "x"}]}'])
def test_a_file_without_scenarios_is_an_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(UpdateError, match=str(path)):
        scenarios.load(str(path))


@pytest.mark.parametrize("times", [1, "always"])
def test_a_sync_script_that_fails_does_not_bring_its_poll_back_at_once(times: int | str) -> None:
    failing = ["script:Idle_Enter_00", "script:Idle_Leave_00", "script:Sync_Enter_00", "script:Sync_Error_00"]
    passing = [*failing[:3], "script:Sync_Leave_00", "status:downloading", "script:Download_Enter_00"]
    given = {
        "supports_rollback": True,
        "needs_reboot": "No",
        "idle_sync_scripts": True,
        "faults": [
            {"at": "Sync_Enter_00", "do": "fail", "times": times},
            {"at": "Download_Enter_00", "do": "fail"},
        ],
    }
    end = ["script:Download_Error_00", "status:failure", "logs"]
    trace = [*failing, *passing, *end] if times == 1 else [*failing, *failing]
    scenarios.play({"id": "sync-enter", "mode": "daemon", "given": given, "expect": {"trace": trace}})


def test_a_version_file_gets_bad_while_a_script_runs_also_if_that_fails() -> None:
    given = {
        "supports_rollback": False,
        "needs_reboot": "No",
        "faults": [{"at": "ArtifactInstall_Enter_00", "do": "fail"}],
        "artifact_version_bad_after": "ArtifactInstall_Enter_00",
    }
    bad = "check:artifact_scripts_version=bad"
    download = [
        *(
            "status:downloading",
            "script:Download_Enter_00",
            "module:ProvidePayloadFileSizes",
            "module:Download",
        ),
        *("script:Download_Leave_00", "control:ArtifactInstall_Enter=continue", "status:installing"),
    ]
    failure = ["query:SupportsRollback", bad, "module:ArtifactFailure", bad, "module:Cleanup"]
    trace = [*download, "script:ArtifactInstall_Enter_00", bad, *failure, "status:failure", "logs"]
    scenarios.play({"id": "bad-version", "mode": "daemon", "given": given, "expect": {"trace": trace}})


@pytest.mark.parametrize(
    ("config", "name"), [({}, "old"), ({"OutcomeSurvivesRestart": True}, "inconsistent")]
)
def test_a_failed_rollback_script_is_forgotten_in_a_restart_only_where_the_clients_do(
    config: Json, name: str
) -> None:
    given = {
        "supports_rollback": True,
        "needs_reboot": "No",
        "faults": [
            {"at": "ArtifactInstall", "do": "fail"},
            {"at": "ArtifactRollback_Enter_00", "do": "fail"},
            {"at": "ArtifactFailure", "do": "kill"},
        ],
        "config": config,
    }
    scenarios.play({"id": "forgotten", "mode": "daemon", "given": given, "expect": {"artifact_name": name}})


def test_a_scenario_that_makes_no_sense_fails_and_the_others_are_played(
    by_id: dict[str, Json], tmp_path: Path
) -> None:
    broken = copy.deepcopy(by_id["standalone-empty-payload"])
    broken["given"]["faults"] = [{"at": "Download", "do": "explode"}]
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"scenarios": [broken, by_id["standalone-empty-payload"]]}))
    told: list[str] = []
    assert scenarios.run([str(path)], told.append) == 1
    assert "it cannot be played" in told[0]
    assert "explode" in told[0]
    assert told[-1] == "1 passed, 1 failed"
