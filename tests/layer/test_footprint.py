# SPDX-License-Identifier: Apache-2.0
"""What the agent adds to an image: the recipes' own trees, measured by `ota inspect footprint`."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.layer.bitbake import ROOT, SERIES, TASKS, Build
from tests.layer.test_recipes import PYTHON, packages

from update_tools import python_packages
from update_tools.__main__ import main
from update_tools.inspect import footprint

NEEDED = ("json/__init__.py", "json/decoder.py", "lib-dynload/_json.cpython-314-arm-linux-gnueabihf.so")


def image(folder: Path, *library: str) -> Path:
    """A root file system with what the recipes install on a product's device, and modules of Python."""
    build = Build(folder / "build")
    root = folder / "rootfs"
    answer = build.ask(
        {name: {"tasks": TASKS, "values": ["D"]} for name in ("update-agent", "update-agent-conf")}
    )
    for found in answer["recipes"].values():
        shutil.copytree(found["values"]["D"], root, symlinks=True, dirs_exist_ok=True)
    shutil.rmtree(root / f"usr/lib/python{PYTHON['wrynose']}/site-packages/update_agent")  # package -source
    add(root, *library)
    return root


def add(root: Path, *library: str) -> None:
    for name in library:
        path = root / f"usr/lib/python{PYTHON['wrynose']}" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(1000))


def said(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, dict[str, Any]]:
    code = main(["inspect", "footprint", "--json", *map(str, words)])
    return code, json.loads(capsys.readouterr().out)


def test_the_agent_is_within_its_budget(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, report = said(capsys, image(tmp_path, *NEEDED))
    assert (code, report["problems"]) == (0, [])
    assert set(report["agent"]) == {
        f"update-agent{part}" for part in ("", "-dbus", "-modules", "-conf", "-doc", "-bash-completion")
    }
    assert report["agent"]["update-agent"]["bytes"] < 400 << 10  # the goal, whatever the budget says
    assert report["python"] == {"python3-json": {"files": 3, "bytes": 3000, "needed": True}}
    assert report["python_beyond_core"]["bytes"] == 3000


def test_what_is_too_large_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = image(tmp_path, *NEEDED)
    budget = tmp_path / "budget.toml"
    budget.write_text("[packages]\nupdate-agent = 100\n[python]\nbeyond-core = 2\n")
    code, report = said(capsys, root, "--budget", budget)
    assert code == 3
    agent, python = report["problems"]
    assert agent.startswith("update-agent: ")
    assert agent.endswith(", allowed are 100 KiB")
    assert python == "Python beyond its core: 2.9 KiB, allowed are 2 KiB"
    assert main(["inspect", "footprint", "--budget", str(budget), str(root)]) == 3
    assert "allowed are 100 KiB" in capsys.readouterr().out


def test_a_package_that_nothing_needs_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Beside an image without the agent: what that has is not counted, what nobody asked for is told."""
    before = tmp_path / "before"
    add(before, "os.py", "sqlite3/__init__.py", *NEEDED[:1])
    root = image(tmp_path, "os.py", "sqlite3/__init__.py", *NEEDED)
    code, report = said(capsys, root, "--without", before)
    assert code == 0
    assert report["python"] == {"python3-json": {"files": 3, "bytes": 2000, "needed": True}}
    add(root, "logging/handlers.py")
    code, report = said(capsys, root, "--without", before)
    assert code == 3
    assert report["problems"] == ["python3-logging: came with the agent, which does not depend on it"]


def test_an_image_without_an_agent_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add(tmp_path, "os.py")
    code, report = said(capsys, tmp_path)
    assert code == 3
    assert report["problems"] == [f"{tmp_path} has no agent"]


def test_a_budget_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "budget.toml").write_text("[packages]\nupdate-agent = 'much'\n")
    assert main(["inspect", "footprint", "--budget", str(tmp_path / "budget.toml"), str(tmp_path)]) == 2


@pytest.mark.parametrize("series", SERIES)
def test_files_are_of_the_packages_that_bitbake_makes(tmp_path: Path, series: str) -> None:
    build = Build(tmp_path / "build", series=series)
    files = footprint.packages("FILES")
    for recipe in ("update-agent", "update-agent-conf"):
        for package, paths in packages(build, recipe).items():
            assert [(path, package) for path in paths if footprint.owner(path, files) != package] == []


def test_owners_of_pythons_library() -> None:
    at = "/usr/lib/python3.14"
    for path, package in {
        f"{at}/json/decoder.py": "python3-json",
        f"{at}/json/__pycache__/decoder.cpython-314.pyc": "python3-json",
        f"{at}/__pycache__/socket.cpython-314.pyc": "python3-io",
        f"{at}/lib-dynload/_ssl.cpython-314-x86_64-linux-gnu.so": "python3-io",
        f"{at}/_sysconfigdata__linux_.py": "python3-core",
        f"{at}/ctypes/test/test_as.py": "python3-tests",
        f"{at}/this.py": "python3-misc",
        f"{at}/site-packages/yaml/loader.py": "",
        "/usr/lib64/python3.12/os.py": "python3-core",
        "/usr/lib/libpython3.14.so.1.0": "python3-core",
        "/usr/bin/python3": "python3-core",
        "/usr/lib/libssl.so.3": "",
    }.items():
        assert python_packages.owner(path) == package, path
    assert python_packages.closure(["python3-json"]) == {"python3-core", "python3-json"}
    assert "python3-datetime" in python_packages.closure(["python3-io"])
    assert set(python_packages.PACKAGE_OF) - set(sys.stdlib_module_names) >= {"compression"}
    assert ROOT / "agent/footprint.toml" == footprint.BUDGET
