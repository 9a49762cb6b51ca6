# SPDX-License-Identifier: Apache-2.0
"""`kas menu` without a screen: kas' own reader of Kconfig, its writer of .config.yaml, and what is built."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from kas.plugins.menu import Menu
from kconfiglib import Kconfig
from tests.layer.bitbake import LAYER, ROOT
from tests.layer.test_kas import BOARDS, FEATURES, OFFLINE

KCONFIG = ROOT / "Kconfig"
MACHINE = {
    board: yaml.safe_load((ROOT / f"kas/boards/{board}.yml").read_text())["machine"] for board in BOARDS
}
# Features that only some boards have, as their machines say.
ONLY = {
    "tryboot": {
        board
        for board, machine in MACHINE.items()
        if re.search("BOOTFLOWS.*tryboot", (LAYER / f"conf/update/machine/{machine}.inc").read_text())
    }
}


def symbol(kind: str, name: str) -> str:
    return f"{kind}_{name}".upper().replace("-", "_")


def choose(folder: Path, *symbols: str, **strings: str) -> dict[str, Any]:
    """What kas menu saves when these are chosen."""
    menu = Menu()
    menu.kconf = Kconfig(str(KCONFIG), warn_to_stderr=False)
    menu.orig_config = {}
    for name in symbols:
        assert menu.kconf.syms[name].set_value("y"), name
    for name, value in strings.items():
        assert menu.kconf.syms[name].set_value(value), name
    menu.save_config(str(folder / ".config.yaml"), str(ROOT))
    assert menu.kconf.warnings == []
    saved: dict[str, Any] = yaml.safe_load((folder / ".config.yaml").read_text())
    return saved


def dump(folder: Path) -> dict[str, Any]:
    """The configuration that `kas build` takes when no file is named."""
    command = [sys.executable, "-m", "kas", "dump", *OFFLINE, "--format", "json"]
    env = {**os.environ, "KAS_WORK_DIR": str(folder)}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_each_choice_is_a_file(tmp_path: Path) -> None:
    """All combinations of board, series and one feature."""
    for board, series, feature in product(BOARDS, ("wrynose", "scarthgap"), [*FEATURES, ""]):
        features = [symbol("FEATURE", feature)] if feature else []
        saved = choose(tmp_path, symbol("BOARD", board), symbol("SERIES", series), *features)
        wanted = [f"kas/boards/{board}.yml"]
        wanted += ["kas/series/scarthgap.yml"] if series == "scarthgap" else []
        has_feature = feature and board in ONLY.get(feature, BOARDS)
        wanted += [f"kas/features/{feature}.yml"] if has_feature else []
        assert saved["header"]["includes"] == wanted
        assert [name for name in wanted if not (ROOT / name).is_file()] == []
        (tmp_path / ".config.yaml").unlink()


def test_nothing_is_offered_that_is_not_there() -> None:
    names = Kconfig(str(KCONFIG), warn_to_stderr=False).syms
    for kind, files in (("BOARD", BOARDS), ("FEATURE", FEATURES)):
        offered = {name for name in names if name.startswith(f"{kind}_")}
        assert offered == {symbol(kind, file) for file in files}


@pytest.mark.parametrize("board", BOARDS)
def test_a_board_builds(tmp_path: Path, board: str) -> None:
    choose(tmp_path, symbol("BOARD", board), "SERIES_SCARTHGAP", "FEATURE_DEV", "FEATURE_SIGNED")
    found = dump(tmp_path)
    assert (found["machine"], found["target"]) == (MACHINE[board], "update-image-dev")
    assert found["defaults"]["repos"]["branch"] == "scarthgap"
    assert "UPDATE_SIGNED" in found["local_conf_header"]["50-signed"]


def test_a_new_menu_builds_a_board(tmp_path: Path) -> None:
    choose(tmp_path)
    found = dump(tmp_path)
    assert (found["machine"], found["target"]) == ("raspberrypi4-64", "update-image-minimal")
    assert found["defaults"]["repos"]["branch"] == "wrynose"


def test_the_product_is_in_local_conf(tmp_path: Path) -> None:
    strings = {"UPDATE_ARTIFACT_NAME": "ours-2", "UPDATE_SERVER_URL": "https://updates.example.com"}
    choose(tmp_path, **strings)
    lines = dump(tmp_path)["local_conf_header"]["__menu_config_vars"].splitlines()
    assert {line for line in lines if line.startswith("UPDATE_")} == {
        f'{name} = "{value}"' for name, value in strings.items()
    }
    # Whatever else is a string would be written there, too.
    assert len(lines) == len(strings)


def test_a_choice_is_remembered(tmp_path: Path) -> None:
    choose(tmp_path, "BOARD_BEAGLEBONE", "FEATURE_DEV", UPDATE_ARTIFACT_NAME="ours-3")
    menu = Menu()
    menu.kconf = Kconfig(str(KCONFIG), warn_to_stderr=False)
    menu.load_config(str(tmp_path / ".config.yaml"))
    menu.save_config(str(tmp_path / "again.yaml"), str(ROOT))
    assert not (tmp_path / "again.yaml").exists()  # written only if it differs
    assert menu.kconf.syms["FEATURE_DEV"].str_value == "y"
