# SPDX-License-Identifier: Apache-2.0
"""RDEPENDS of update-agent names exactly the python3 packages that its modules import, however late."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest
from tests.layer.bitbake import ROOT, SERIES, Build

AGENT = ROOT / "agent/update_agent"
DBUS = {path.name for path in AGENT.glob("bus*.py")}

# Where OE-core's python3-manifest.json has a module, the same in scarthgap and wrynose. A module that is not
# here is one that nobody has looked up yet: look it up, and mind what it costs.
PACKAGES = {
    "python3-core": """
        __future__ _signal _thread argparse array ast binascii bz2 collections contextlib enum errno
        functools grp importlib io ipaddress itertools locale lzma os pathlib re select selectors
        shutil signal stat struct subprocess sys textwrap threading time traceback types typing
        warnings weakref zlib
    """,
    "python3-compression": "gzip tarfile zipfile",
    "python3-crypt": "_hashlib hashlib",
    "python3-ctypes": "ctypes",
    "python3-datetime": "datetime zoneinfo",
    "python3-email": "email",
    "python3-fcntl": "fcntl",
    "python3-io": "_socket socket ssl tempfile",
    "python3-json": "_json json",
    "python3-logging": "logging",
    "python3-math": "math random",
    "python3-mmap": "mmap",
    "python3-netclient": "base64 hmac http secrets urllib uuid",
    "python3-resource": "resource",
    "python3-syslog": "syslog",
    "python3-jeepney": "jeepney",
}
PACKAGE = {module: package for package, modules in PACKAGES.items() for module in modules.split()}


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


@pytest.mark.parametrize("series", SERIES)
def test_the_recipe_depends_on_what_the_agent_imports(tmp_path: Path, series: str) -> None:
    names = ["RDEPENDS:update-agent", "RDEPENDS:update-agent-dbus"]
    answer = Build(tmp_path / "build", series=series).ask({"update-agent": {"values": names}})
    depends = {
        name: set(value.split()) for name, value in answer["recipes"]["update-agent"]["values"].items()
    }
    core = wanted(imported(AGENT, but=frozenset(DBUS)))
    assert {name for name in depends[names[0]] if name.startswith("python3-")} == core
    dbus = wanted(imported(AGENT, DBUS)) - core
    assert {name for name in depends[names[1]] if name.startswith("python3-")} == dbus | {"python3-jeepney"}


def test_an_unlisted_import_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("def f():\n    import sqlite3\n")
    with pytest.raises(LookupError, match=r"sqlite3 \(in a.py\)"):
        wanted(imported(tmp_path))
    (tmp_path / "a.py").write_text("import os\ndef f():\n    import tarfile, logging.handlers\n")
    assert wanted(imported(tmp_path)) == {"python3-core", "python3-compression", "python3-logging"}


def test_the_table_names_real_modules_once() -> None:
    modules = [module for names in PACKAGES.values() for module in names.split()]
    assert sorted(modules) == sorted(set(modules))
    assert set(modules) - sys.stdlib_module_names == {"jeepney"}
