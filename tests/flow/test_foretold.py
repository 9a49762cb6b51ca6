# SPDX-License-Identifier: Apache-2.0
"""Scenarios that nobody wrote: the agent does what executing the specification's state machine foretells."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from tests.support import foretold

from update_tools.conform import scenarios
from update_tools.conform.trace import canonical

FOLDER = Path(__file__).parents[3] / "shared" / "spec"
Json = dict[str, Any]
# What is not executed here: control maps, Idle and Sync, artifacts and media that are broken.
OTHER = {"server_map", "local_maps", "idle_sync_scripts", "artifact_version_bad_after", "empty_payload"}
OTHER |= {"bad_artifact", "device_type_mismatch"}


@pytest.fixture(scope="module")
def machine() -> Json:
    if not FOLDER.exists() and os.environ.get("CI") != "true":
        pytest.skip("the specification is not beside this repository")
    document: Json = json.loads((FOLDER / "state-machine.json").read_text())
    return document


def is_executed(scenario: Json) -> bool:
    """Whether all that the scenario is made of is executed here."""
    given = scenario["given"]
    reports = given.get("status_failures", {})
    return not (
        OTHER & given.keys()
        or scenario["category"] == "database"
        or any(fault["do"] == "timeout" for fault in given["faults"])
        or any("#" in status or answer != "aborted" for status, answer in reports.items())
    )


def test_what_is_foretold_is_what_the_specification_expects(machine: Json) -> None:
    known = [one for one in scenarios.load(str(FOLDER / "scenarios.json")) if is_executed(one)]
    assert len(known) > 90
    for scenario in known:
        commands = scenario.get("commands", ())
        made = {**scenario, "commands": [{"command": step["command"]} for step in commands]}
        foretold.foretell(machine, made)
        assert made["expect"]["artifact_name"] == scenario["expect"]["artifact_name"], scenario["id"]
        if scenario["mode"] == "daemon":
            assert made["expect"]["trace"] == canonical(scenario["expect"]["trace"]), scenario["id"]
        for step, wanted in zip(made["commands"], commands, strict=True):
            assert step["expect"].items() <= wanted["expect"].items(), scenario["id"]


@pytest.mark.parametrize("mode", ["daemon", "standalone"])
def test_invented_scenarios(machine: Json, mode: str) -> None:
    """Others: UPDATE_SCENARIO_SEED=anything."""
    for scenario in foretold.invent(machine, os.environ.get("UPDATE_SCENARIO_SEED", "1"), mode, 2000):
        try:
            scenarios.play(scenario)
        except scenarios.Difference as difference:
            pytest.fail(f"{difference}\n{json.dumps(scenario, indent=1)}")
