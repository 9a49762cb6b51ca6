# SPDX-License-Identifier: Apache-2.0
"""Every combination of kas files: valid, and what it says is what was meant. Nothing is fetched."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.layer.bitbake import MACHINES, ROOT, Build

KAS = ROOT / "kas"
BOARDS = sorted(path.stem for path in (KAS / "boards").glob("*.yml"))
EXAMPLES = sorted(path.stem for path in (KAS / "examples").glob("*.yml") if "." not in path.stem)
FEATURES = sorted(path.stem for path in (KAS / "features").glob("*.yml"))
SERIES = {"": ("wrynose", "2.18"), ":kas/series/scarthgap.yml": ("scarthgap", "2.8")}
# Steps of kas that would clone; what remains reads, includes, locks and validates.
OFFLINE = [
    word
    for step in ("repo_setup_loop", "finish_setup_repos", "repos_checkout", "repos_apply_patches")
    for word in ("--skip", step)
]


def dump(files: str, *, cwd: Path = ROOT) -> dict[str, Any]:
    command = [sys.executable, "-m", "kas", "dump", *OFFLINE, "--format", "json", files]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    warnings = [line for line in done.stderr.splitlines() if "WARNING" in line or "ERROR" in line]
    assert warnings == []
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.mark.parametrize("series", SERIES)
@pytest.mark.parametrize(
    "board", [*(f"boards/{board}" for board in BOARDS), *(f"examples/{board}" for board in EXAMPLES)]
)
def test_board(board: str, series: str) -> None:
    files = f"kas/{board}.yml{series}"
    # A layer whose branches are not named after the series.
    overlay = f"kas/{board}.{SERIES[series][0]}.yml"
    found = dump(f"{files}:{overlay}" if (ROOT / overlay).exists() else files)
    branch, bitbake = SERIES[series]
    repos, pins = found["repos"], found["overrides"]["repos"]
    assert found["machine"] in MACHINES
    assert found["target"] == "update-image-minimal"
    assert found["defaults"]["repos"]["branch"] == branch
    assert repos["bitbake"]["branch"] == bitbake
    assert 'INHERIT += "update"' in found["local_conf_header"]["10-update"]
    # The repository itself has no url; every other one is pinned, to a commit of this series.
    fetched = {name for name, repo in repos.items() if "url" in repo}
    assert fetched == set(repos) - {"meta-update"}
    lock = "kas/series/scarthgap.lock.yml" if series else "kas/base.lock.yml"
    wanted = yaml.safe_load((ROOT / lock).read_text())["overrides"]["repos"]
    assert {name: pins[name] for name in fetched} == {name: wanted[name] for name in fetched}


@pytest.mark.parametrize(
    "features", list(chain.from_iterable(combinations(FEATURES, n) for n in range(1, len(FEATURES) + 1)))
)
def test_features_join(features: tuple[str, ...]) -> None:
    plain = dump("kas/boards/qemuarm64.yml")
    found = dump("kas/boards/qemuarm64.yml" + "".join(f":kas/features/{name}.yml" for name in features))
    assert found["target"] == ("update-image-dev" if "dev" in features else "update-image-minimal")
    assert found["repos"] == plain["repos"]
    added = set(found["local_conf_header"]) - set(plain["local_conf_header"])
    assert added == {f"50-{name}" for name in features if name != "dev"}


def test_overlays_are_joined_in_any_order() -> None:
    overlays = ["kas/series/scarthgap.yml", *(f"kas/features/{name}.yml" for name in FEATURES)]
    middle = [*overlays[3:], *overlays[:3]]
    found = [
        dump(":".join(["kas/boards/raspberrypi4-64.yml", *order]))
        for order in (overlays, overlays[::-1], middle)
    ]
    assert found[0] == found[1] == found[2]
    assert found[0]["defaults"]["repos"]["branch"] == "scarthgap"


@pytest.mark.parametrize("mirror", ["", "https://sources.example.com/"])
def test_a_source_mirror_is_asked_first_when_there_is_one(tmp_path: Path, mirror: str) -> None:
    """SOURCE_MIRROR_URL is what OE-core's own-mirrors reads; nothing does without it."""
    layer = tmp_path / "meta-core"
    for name, text in (
        ("own-mirrors", 'PREMIRRORS = "git://.*/.* ${SOURCE_MIRROR_URL}"\n'),
        ("rm_work", "\n"),
    ):
        (layer / "classes").mkdir(parents=True, exist_ok=True)
        (layer / f"classes/{name}.bbclass").write_text(text)
    (layer / "conf").mkdir()
    (layer / "conf/layer.conf").write_text('BBPATH .= ":${LAYERDIR}"\n')
    file = yaml.safe_load((KAS / "features/ci-cache.yml").read_text())
    assert "SOURCE_MIRROR_URL" in file["env"]
    conf = f'SOURCE_MIRROR_URL = "{mirror}"\n' + file["local_conf_header"]["50-ci-cache"]
    build = Build(tmp_path / "build", conf=conf, more_layers=(layer,))
    answer = build.ask(values=["PREMIRRORS"])
    assert answer.get("failed") is None
    assert (answer["values"]["PREMIRRORS"] or "") == (f"git://.*/.* {mirror}" if mirror else "")


def test_both_series_pin_the_same_repositories() -> None:
    locks = [
        yaml.safe_load((KAS / name).read_text()) for name in ("base.lock.yml", "series/scarthgap.lock.yml")
    ]
    first, second = (lock["overrides"]["repos"] for lock in locks)
    assert set(first) == set(second)
    assert [name for name in first if first[name]["commit"] == second[name]["commit"]] == []


def test_every_file_is_in_the_readme() -> None:
    readme = (KAS / "README.md").read_text()
    files = [f"{path.parent.name}/{path.name}" for path in KAS.glob("*/*.yml")]
    named = [
        file
        for file in files
        if file.startswith(("boards", "examples", "features", "series")) and "lock" not in file
    ]
    assert [file for file in named if file.split("/")[1] not in readme] == []
    assert len(named) >= 10


def test_a_wrong_key_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / "board.yml").write_text("header:\n  version: 14\nmachines: qemuarm64\n")
    command = [sys.executable, "-m", "kas", "dump", *OFFLINE, "board.yml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "machines" in done.stderr
