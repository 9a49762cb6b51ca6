# SPDX-License-Identifier: Apache-2.0
"""What must hold for every file: license lines, no path of one machine, what the device gets and imports."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
AGENT = ROOT / "agent"
MODULES = sorted(path.stem for path in (AGENT / "update_agent").glob("*.py"))

NO_SPDX_LINE = (
    "LICENSE",
    "agent/LICENSE",
    "meta-update/COPYING.MIT",
    "*.json",  # JSON has no comments
    "*.patch",
    "requirements.lock",  # written by uv
    "scripts/update_tools/server/static/vendor/*",  # not ours: see the README there
)
MIT = ("meta-update/", "Kconfig", "kas/")

# Modules that the idle daemon never imports: they live in a child that ends, or behind a switch.
NOT_RESIDENT = {
    "artifact",
    "boot_partition",
    "bus",
    "connection",
    "ctl",
    "digest",
    "fat16",
    "http1",
    "identity",
    "intake",
    "inventory",
    "keys",
    "logupload",
    "medium",
    "native",
    "ring",
    "server",
    "signature",
    "slot_writer",
    "tls",
    "transfer",
    "worker",
}
# What a resident module may import; zlib for the checksum of the saved state, those with _ by way of `lean`.
RESIDENT_IMPORTS = (
    "__future__, _json, _signal, _socket, errno, fcntl, io, os, select, stat, struct, sys, time, zlib"
)


def _tracked() -> list[tuple[str, str]]:
    """(mode, path) of every file that git knows."""
    git = shutil.which("git")
    if not git or not (ROOT / ".git").exists():
        return []
    lines = subprocess.run(
        [git, "ls-files", "-s", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    entries = [line.split("\t", 1) for line in lines.stdout.split("\0") if line]
    return [(meta.split()[0], path) for meta, path in entries if (ROOT / path).exists()]


TRACKED = _tracked()
needs_git = pytest.mark.skipif(not TRACKED, reason="not a git checkout: no list of files")


def _text(path: str) -> str | None:
    """The content, or None for a file that is not text."""
    data = (ROOT / path).read_bytes()
    return None if b"\0" in data[:8000] else data.decode("utf-8", errors="replace")


def _texts() -> list[tuple[str, str]]:
    return [(path, text) for mode, path in TRACKED if mode != "120000" and (text := _text(path)) is not None]


@needs_git
def test_every_file_states_its_license() -> None:
    wrong = []
    for path, text in _texts():
        if any(fnmatch(path, pattern) for pattern in NO_SPDX_LINE):
            continue
        license_id = "MIT" if path.startswith(MIT) else "Apache-2.0"
        if f"SPDX-License-Identifier: {license_id}" not in "\n".join(text.splitlines()[:5]):
            wrong.append(f"{path}: no {license_id} line")
    assert wrong == []


@needs_git
def test_license_texts_are_there() -> None:
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    assert (AGENT / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    assert "Permission is hereby granted" in (ROOT / "meta-update/COPYING.MIT").read_text()


@needs_git
def test_no_path_of_someones_machine() -> None:
    home = re.compile(r"(?<![\w.}/-])/(?:home/(?!root\b)[a-z]\w*|root/|Users/|work/)")
    found = [
        f"{path}:{number}: {line.strip()}"
        for path, text in _texts()
        for number, line in enumerate(text.splitlines(), 1)
        if path != "tests/unit/test_repository.py" and home.search(line)
    ]
    assert found == []


@needs_git
def test_programs_are_executable() -> None:
    """A program that must be started with `sh NAME` is one that nobody starts."""
    programs = {
        path for path, text in _texts() if text.startswith("#!") and path.startswith(("scripts/", ".ci/"))
    }
    assert {"scripts/test", "scripts/setup", "scripts/ota", "scripts/conform", ".ci/run"} <= programs
    assert sorted(path for mode, path in TRACKED if path in programs and mode != "100755") == []


def test_every_dependency_is_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [*project["project"]["dependencies"], *project["dependency-groups"]["dev"]]
    names = {re.split(r"[^\w.-]", requirement)[0].lower().replace("_", "-") for requirement in wanted}
    locked = set(re.findall(r"^([\w.-]+)==", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    assert names - locked == set()


def test_every_debian_package_says_what_it_is_for() -> None:
    lines = (ROOT / "scripts/debian-packages.txt").read_text().splitlines()
    packages = [line for line in lines if line and not line.startswith("#")]
    assert [line for line in packages if not re.fullmatch(r"[a-z0-9][a-z0-9+.-]+( +# \S.*)?", line)] == []
    names = [line.split()[0] for line in packages]
    assert len(names) == len(set(names)) > 20


BOARD_TEST = """
import pytest
@pytest.fixture
def board(): pytest.skip("qemu-system-aarch64 is not installed")
@pytest.mark.board
def test_boot(board): pass
def test_other(): pytest.skip("a reason")
"""


@pytest.mark.parametrize(("ci", "outcome"), [("", {"skipped": 2}), ("true", {"skipped": 1, "errors": 1})])
def test_ci_does_not_skip_board_tests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ci: str, outcome: dict[str, int]
) -> None:
    shutil.copy(ROOT / "tests/conftest.py", tmp_path)
    (tmp_path / "test_sample.py").write_text(BOARD_TEST)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = board\n")
    monkeypatch.setenv("CI", ci)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--junit-xml=result.xml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    counts = dict(re.findall(r' (skipped|errors|failures)="(\d+)"', (tmp_path / "result.xml").read_text()))
    assert {name: int(count) for name, count in counts.items() if count != "0"} == outcome
    assert (done.returncode == 0) == (not ci)
    assert "qemu-system-aarch64 is not installed" in done.stdout or not ci


# The device side


def test_wheel_holds_the_agent_and_nothing_else(tmp_path: Path) -> None:
    """Built offline, from a copy, with what the build of the package uses."""
    shutil.copytree(AGENT, tmp_path / "agent", ignore=shutil.ignore_patterns("__pycache__"))
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=tmp_path / "agent", capture_output=True, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        described = archive.read(metadata).decode()
        commands = archive.read(metadata.replace("METADATA", "entry_points.txt")).decode()
    info = metadata.removesuffix("METADATA")
    package = {
        str(path.relative_to(AGENT))
        for path in (AGENT / "update_agent").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    files = {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"}
    assert names == package | {info + file for file in files}
    assert not re.search(r"^Requires-Dist: (?!.*extra ==)", described, re.MULTILINE)
    assert "\nupdate-agent = " in commands
    assert "\nmender-update = " in commands


def test_agent_imports_the_standard_library_itself_and_jeepney() -> None:
    allowed = sys.stdlib_module_names | {"update_agent", "jeepney"}
    foreign = []
    for path in (AGENT / "update_agent").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            foreign += [f"{path.name}: {name}" for name in names if name.partition(".")[0] not in allowed]
    assert foreign == []


@pytest.mark.parametrize("module", [module for module in MODULES if module not in NOT_RESIDENT])
def test_import_budget(module: str) -> None:
    """The idle daemon's memory: a resident module brings nothing along but what the list names.

    Whatever it needs beyond belongs into the function that uses it, or into a child process.
    """
    program = (
        f"import {RESIDENT_IMPORTS}\nbefore = set(sys.modules)\nsys.path.insert(0, sys.argv[1])\n"
        f"import update_agent.{module}\nprint(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program, AGENT], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    brought = [name for name in done.stdout.split() if name.partition(".")[0] != "update_agent"]
    assert brought == []
