# SPDX-License-Identifier: Apache-2.0
"""RDEPENDS of update-agent names exactly the python3 packages that its modules import, however late."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.layer.bitbake import ROOT, SERIES, Build

from update_tools import python_packages

AGENT = ROOT / "agent/update_agent"
DBUS = {path.name for path in AGENT.glob("bus*.py")}

# A module that is not in python_packages is one that nobody has looked up yet: look it up, and mind its cost.
PACKAGE = {**python_packages.PACKAGE_OF, "jeepney": "python3-jeepney"}
MIRRORS = os.environ.get("META_UPDATE_MIRRORS", "")


def imported(
    folder: Path, names: set[str] | None = None, but: frozenset[str] = frozenset()
) -> dict[str, str]:
    """Modules that these files import, and the first file that does."""
    found: dict[str, str] = {}
    for path in sorted(folder.glob("*.py")):
        if path.name in but or (names is not None and path.name not in names):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                modules = [node.module or ""]
            for module in modules:
                found.setdefault(module.partition(".")[0], path.name)
    # For the type checker only: the names stand in `if TYPE_CHECKING`, and the device never reads them.
    return {module: file for module, file in found.items() if module not in {"update_agent", "typing"}}


def wanted(modules: dict[str, str]) -> set[str]:
    """Packages for these modules. Raises LookupError for a module that the table does not have."""
    unknown = {f"{module} (in {file})" for module, file in modules.items() if module not in PACKAGE}
    if unknown:
        raise LookupError(f"not in the table of packages: {', '.join(sorted(unknown))}")
    return {PACKAGE[module] for module in modules}


def disagreement(agent: Path, depends: dict[str, set[str]]) -> set[str]:
    """Packages that the modules import and the recipe does not name, or the other way round."""
    core = wanted(imported(agent, but=frozenset(DBUS)))
    named = {
        package: {name for name in names if name.startswith("python3-")} for package, names in depends.items()
    }
    dbus = wanted(imported(agent, DBUS)) - core | {"python3-jeepney"}
    return (named["update-agent"] ^ core) | (named["update-agent-dbus"] ^ dbus)


def recipe_depends(folder: Path, series: str) -> dict[str, set[str]]:
    names = {name: f"RDEPENDS:{name}" for name in ("update-agent", "update-agent-dbus")}
    answer = Build(folder / "build", series=series).ask({"update-agent": {"values": [*names.values()]}})
    values = answer["recipes"]["update-agent"]["values"]
    return {name: set(values[variable].split()) for name, variable in names.items()}


@pytest.mark.parametrize("series", SERIES)
def test_the_recipe_depends_on_what_the_agent_imports(tmp_path: Path, series: str) -> None:
    assert disagreement(AGENT, recipe_depends(tmp_path, series)) == set()


def test_an_unlisted_import_is_found(tmp_path: Path) -> None:
    depends = recipe_depends(tmp_path, "wrynose")
    agent = tmp_path / "update_agent"
    shutil.copytree(AGENT, agent)
    (agent / "backoff.py").write_text("def f():\n    import logging.handlers, sqlite3\n")
    assert disagreement(agent, depends) == {"python3-logging", "python3-sqlite3"}
    (agent / "backoff.py").write_text("def f():\n    import antigravity\n")
    with pytest.raises(LookupError, match=r"antigravity \(in backoff.py\)"):
        disagreement(agent, depends)
    assert "python3-mmap" in disagreement(
        AGENT, {**depends, "update-agent": depends["update-agent"] - {"python3-mmap"}}
    )


@pytest.mark.skipif(not MIRRORS, reason="META_UPDATE_MIRRORS names no directory with copies of the layers")
def test_the_table_is_that_of_oe_core() -> None:
    """Each module of python3-manifest.json with its package, in one series or the other, and no more."""
    owners: dict[str, set[str]] = {}
    depends: dict[str, set[str]] = {}
    for series in SERIES:
        for package, entry in manifest(series).items():
            names = {module(file) for file in entry["files"]} - {""}
            for name in names:
                owners.setdefault(name, set()).add(f"python3-{package}")
            if names:
                needs = {f"python3-{need}" for need in entry["rdepends"]} - {python_packages.CORE}
                depends.setdefault(f"python3-{package}", set()).update(needs)
    table = python_packages.PACKAGE_OF
    assert {name: owner for name, owner in table.items() if owner not in owners.get(name, {owner})} == {}
    assert set(owners) - set(table) == set()
    assert set(table) - set(owners) <= {"_sysconfigdata", *sys.builtin_module_names, "_signal", "_thread"}
    assert {name: set(needs) for name, needs in python_packages.DEPENDS.items()} == {
        **depends,
        python_packages.CORE: set(),
    }


def manifest(series: str) -> dict[str, Any]:
    repository = Path(MIRRORS) / "openembedded+openembedded-core/repo"
    file = f"{series}:meta/recipes-devtools/python/python3/python3-manifest.json"
    text = subprocess.run(
        ["git", "-C", repository, "show", file], capture_output=True, text=True, check=True
    ).stdout
    found: dict[str, Any] = json.loads(text[text.index("# EOC") + len("# EOC") :])
    return found


def module(file: str) -> str:
    """The module of Python's library that a pattern of the manifest is about; empty for anything else."""
    prefix = "${libdir}/python${PYTHON_MAJMIN}/"
    if not file.startswith(prefix):
        return ""
    name = file.removeprefix(prefix).removeprefix("lib-dynload/").split("/")[0].split(".")[0]
    return "" if {"*", "__pycache__"} & {name, name[-1:]} else name


def test_the_table_names_real_modules() -> None:
    builtin = {name for name, owner in PACKAGE.items() if owner == python_packages.CORE}
    assert {"sys", "os", "zipimport", "zlib"} <= builtin  # the archive of the agent is read with the last two
    assert {"_json", "_socket", "hashlib", "select"} <= set(PACKAGE)
