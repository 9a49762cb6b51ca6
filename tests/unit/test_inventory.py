# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
from pathlib import Path

import pytest

from update_agent import __version__, inventory
from update_agent.errors import ServerError
from update_agent.log import Log


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def log(stream: io.StringIO) -> Log:
    return Log(stream=stream)


def generator(directory: Path, name: str, text: str, mode: int = 0o755) -> None:
    path = directory / f"mender-inventory-{name}"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(mode)


def test_sorted_with_built_in_attributes_provides_and_arrays(tmp_path: Path, log: Log) -> None:
    generator(tmp_path, "network", "echo ip=10.0.0.2; echo cpu=arm; echo ip=fe80::1")
    generator(tmp_path, "name", "echo artifact_name=from-generator")
    provides = {"artifact_name": "release-1", "device_type": "virt64"}
    assert inventory.collect(str(tmp_path), provides, log) == [
        {"name": "artifact_name", "value": "from-generator"},
        {"name": "cpu", "value": "arm"},
        {"name": "device_type", "value": "virt64"},
        {"name": "ip", "value": ["10.0.0.2", "fe80::1"]},
        {"name": "mender_client_version", "value": __version__},
        {"name": "mender_client_version_provider", "value": "internal"},
    ]


def test_a_generator_may_give_the_client_version(tmp_path: Path, log: Log) -> None:
    generator(tmp_path, "version", "echo mender_client_version=9")
    assert inventory.collect(str(tmp_path), {}, log) == [
        {"name": "mender_client_version", "value": "9"},
        {"name": "mender_client_version_provider", "value": "external"},
    ]


def test_a_failing_generator_loses_only_its_own_data(tmp_path: Path, log: Log, stream: io.StringIO) -> None:
    generator(tmp_path, "bad", "echo lost=1; exit 1")
    generator(tmp_path, "good", "echo kept=1")
    names = [attribute["name"] for attribute in inventory.collect(str(tmp_path), {}, log)]
    assert "kept" in names
    assert "lost" not in names
    assert "mender-inventory-bad exited with 1" in stream.getvalue()


def test_if_all_fail_nothing_is_sent(tmp_path: Path, log: Log) -> None:
    generator(tmp_path, "bad", "exit 1")
    generator(tmp_path, "worse", "echo nonsense")
    with pytest.raises(ServerError, match="all 2"):
        inventory.collect(str(tmp_path), {}, log)


def test_other_files_are_warned_about(tmp_path: Path, log: Log, stream: io.StringIO) -> None:
    generator(tmp_path, "b", "")
    generator(tmp_path, "a", "")
    generator(tmp_path, "data", "", mode=0o644)
    (tmp_path / "mender-inventory-dir").mkdir()
    (tmp_path / "README").write_text("")
    found = [Path(path).name for path in inventory.generators(str(tmp_path), log)]
    assert found == ["mender-inventory-a", "mender-inventory-b"]
    assert stream.getvalue().count("not an executable file") == 2


def test_without_generators_the_built_in_attributes_are_sent(tmp_path: Path, log: Log) -> None:
    assert len(inventory.collect(str(tmp_path / "none"), {}, log)) == 2
