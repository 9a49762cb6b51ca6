# SPDX-License-Identifier: Apache-2.0
"""scripts/check-layers without any mirror: what it chooses, how it judges a log, and when it skips."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.layer.bitbake import LAYER, ROOT
from tests.layer.test_kas import BOARDS, dump

from update_tools.check_layers import __main__ as command
from update_tools.check_layers import host, mirrors, verdict
from update_tools.check_layers.errors import CheckError
from update_tools.check_layers.results import FAILED, OK, SKIPPED, Results, reasons, table
from update_tools.check_layers.rows import CHECKS, SERIES, VIRTUAL, Row, boards, select
from update_tools.check_layers.workshop import BARE, PLAIN, STANDINS

# Rows and columns


def test_every_board_of_both_series_is_a_row() -> None:
    rows, checks = select(boards(ROOT), [])
    assert {row.name for row in rows} == {f"{board}-{series}" for board in BOARDS for series in SERIES}
    assert checks == list(CHECKS)
    assert VIRTUAL in BOARDS


@pytest.mark.parametrize(
    ("only", "names", "checks"),
    [
        (["wrynose", "qemuarm64", "image"], ["qemuarm64-wrynose"], ["image"]),
        (
            ["raspberrypi[45]*", "scarthgap", "parse", "graph"],
            ["raspberrypi4-64-scarthgap", "raspberrypi5-scarthgap"],
            ["parse", "graph"],
        ),
        (
            ["qemuarm64"],
            ["qemuarm64-wrynose", "qemuarm64-scarthgap"],
            [check.name for check in CHECKS],
        ),
    ],
)
def test_only_leaves(only: list[str], names: list[str], checks: list[str]) -> None:
    rows, columns = select(boards(ROOT), only)
    assert [row.name for row in rows] == names
    assert [check.name for check in columns] == checks


def test_only_refuses_what_it_does_not_know() -> None:
    with pytest.raises(CheckError, match="--only kirkstone") as caught:
        select(boards(ROOT), ["wrynose", "kirkstone"])
    assert "scarthgap" in caught.value.hint


def test_every_check_can_be_run_and_comes_after_what_it_needs() -> None:
    names = [check.name for check in CHECKS]
    assert set(command.FUNCTIONS) == set(names)
    for check in CHECKS:
        assert not check.needs or names.index(check.needs) < names.index(check.name)


# Mirrors


def repository(path: Path, *, bare: bool = False) -> str:
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@example.com", "-C", str(path)]
    path.mkdir(parents=True)
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    if bare:
        (path / ".git").rename(path.parent / "moved")
        path.rmdir()
        (path.parent / "moved").rename(path)
    return commit.stdout.strip()


@pytest.mark.parametrize(
    "place",
    [
        "openembedded+bitbake/repo",
        "openembedded/bitbake",
        "openembedded/bitbake.git",
        "bitbake",
        "bitbake.git",
    ],
)
@pytest.mark.parametrize("bare", [False, True])
def test_copies_are_found(tmp_path: Path, place: str, bare: bool) -> None:
    commit = repository(tmp_path / place, bare=bare)
    copy = mirrors.find(tmp_path, "https://git.openembedded.org/bitbake")
    assert copy == (tmp_path / place).resolve()
    assert mirrors.has_commit(copy, commit)
    assert not mirrors.has_commit(copy, "0" * 40)


@pytest.mark.parametrize("board", BOARDS)
def test_every_repository_of_a_board_is_asked_for(tmp_path: Path, board: str) -> None:
    found = mirrors.repositories(dump(f"kas/boards/{board}.yml"))
    assert {"bitbake", "openembedded-core", "meta-yocto"} <= {repository.name for repository in found}
    assert all(re.fullmatch(r"[0-9a-f]{40}", repository.commit) for repository in found)
    assert mirrors.missing(tmp_path, found) == [f"no copy of {repository.name}" for repository in found]


def test_premirrors_are_what_kas_substitutes(tmp_path: Path) -> None:
    url = "https://git.ti.com/git/arago-project/meta-ti.git"
    wanted = [mirrors.Repository("meta-ti", url, "1" * 40)]
    repository(tmp_path / "TexasInstruments+meta-ti/repo", bare=True)
    pattern, _, replacement = mirrors.premirrors(tmp_path, wanted).partition(" ")
    assert re.sub(pattern, replacement, url) == f"file://{tmp_path}/TexasInstruments+meta-ti/repo"
    assert re.sub(pattern, replacement, url + "x") == url + "x"
    assert mirrors.missing(tmp_path, wanted) == ["meta-ti lacks 1111111111"]


# Logs


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("WARNING: No recipes available for:", "warning: No recipes available for:"),
        ("ERROR: u-boot-1 do_configure: failed", "error: u-boot-1 do_configure: failed"),
        ("2026-11-25 09:19:52 - ERROR    - Shell returned", "error: Shell returned"),
        ("\x1b[33mWARNING: coloured\x1b[0m", "warning: coloured"),
        ('WARNING: Host distribution "debian-12" has not been validated with this version', ""),
        ("NOTE: Tasks Summary: Attempted 1 tasks", ""),
        ("| WARNING: exit code 1 from a shell command.", ""),
    ],
)
def test_trouble(line: str, said: str) -> None:
    assert verdict.trouble(f"NOTE: before\n{line}\n{line}\n") == ([said] if said else [])


def test_counts_of_a_log() -> None:
    log = (
        "Parsing of 961 .bb files complete (0 cached, 961 parsed). "
        "1834 targets, 52 skipped, 3 masked, 2 errors.\n"
        "NOTE: Tasks Summary: Attempted 4367 tasks of which 0 didn't need to be rerun and all succeeded.\n"
    )
    assert verdict.parsed(log) == (961, 2)
    assert verdict.tasks(log) == 4367
    said = "Recipe Name      Latest Version\n===\n\nupdate-agent      :0.1.0-r0\nu-boot    1:2026.01-r0\n"
    assert verdict.listed(said) == {"update-agent", "u-boot"}
    assert verdict.parsed("") is verdict.tasks("") is None


@pytest.mark.parametrize(
    ("log", "tests"),
    [
        ("Ran 8 tests in 9.1s\nOK\nINFO: Summary of results:\nINFO: meta-update ... PASS\n", 8),
        ("Ran 8 tests in 9.1s\nFAILED (failures=1)\nINFO: meta-update ... FAIL\n", 0),
        ("INFO: meta-update ... PASS\n", 0),
    ],
)
def test_what_yocto_check_layer_says(log: str, tests: int) -> None:
    assert verdict.layer_passed(log) == tests


# Results


def test_results_are_kept_and_shown(tmp_path: Path) -> None:
    row, (dump_, parse, *_) = Row("qemuarm64", "wrynose"), CHECKS
    Results(tmp_path / "results.json").put(row, dump_, OK, 1.24, "3 repositories")
    results = Results(tmp_path / "results.json")
    results.put(row, parse, FAILED, 60, "2 recipes with errors")
    results.put(Row("beaglebone", "wrynose"), parse, SKIPPED, 0, "no copy of bitbake")
    shown = table(results, [row], [dump_, parse])
    assert [str(next(iter(column.cells))) for column in shown.columns] == [
        "wrynose",
        "qemuarm64",
        "ok 1 s",
        "failed 60 s",
    ]
    assert reasons(results.of([row, Row("beaglebone", "wrynose")], CHECKS)) == [
        "parse failed: 2 recipes with errors (qemuarm64-wrynose)",
        "parse skipped: no copy of bitbake (beaglebone-wrynose)",
    ]


# The command


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    bare = {name: value for name, value in os.environ.items() if name != command.VARIABLE}
    return subprocess.run(
        [ROOT / "scripts/check-layers", *words],
        env={**bare, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_without_mirrors_it_skips(tmp_path: Path) -> None:
    done = run("--work", str(tmp_path))
    assert (done.returncode, done.stdout) == (0, "")
    assert "skipped: no folder of copies is named (--mirrors DIR or META_UPDATE_MIRRORS)" in done.stderr


def test_a_mirror_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    done = run("--work", str(tmp_path), META_UPDATE_MIRRORS=str(tmp_path / "absent"))
    assert done.returncode == 0
    assert f"{tmp_path / 'absent'} is not a folder" in done.stderr


def test_a_failed_cell_is_the_exit_code(tmp_path: Path) -> None:
    results = Results(tmp_path / "results.json")
    results.put(Row("qemuarm64", "wrynose"), CHECKS[0], FAILED, 1, "why")
    done = run("--table", "--json", "--work", str(tmp_path))
    assert done.returncode == 1
    (cell,) = json.loads(done.stdout)
    assert (cell["check"], cell["result"], cell["text"]) == ("dump", "failed", "why")
    assert run("--table", "--only", "scarthgap", "--work", str(tmp_path)).returncode == 0


# Its files


def test_its_kas_files_exist_and_join() -> None:
    for build in (PLAIN, BARE, STANDINS):
        found = dump(":".join(("kas/boards/qemuarm64.yml", *build.overlays)))
        assert 'BB_NO_NETWORK = "1"' in found["local_conf_header"]["90-offline"]
    assert dump(":".join(("kas/boards/qemuarm64.yml", *BARE.overlays)))["repos"]["meta-update"]["layers"] == {
        "meta-update": "disabled"
    }


def standins() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "tests/layer/kas/standins.yml").read_text())
    return found


def test_what_our_recipes_depend_on_has_a_stand_in() -> None:
    """RDEPENDS of our target recipes name packages of ours, or ones that the stand-ins bring."""
    text = standins()["local_conf_header"]["91-standins"]
    offered = set(re.findall(r"[a-z0-9][a-z0-9.+-]+", text))
    recipes = [path for path in LAYER.glob("recipes-*/*/*.bb") if "-native" not in path.stem]
    ours = {path.stem.partition("_")[0] for path in recipes}
    wanted = {
        word
        for path in recipes
        for value in re.findall(r'^RDEPENDS\S* (?:\+)?= "([^"]*)"', path.read_text(), re.MULTILINE)
        for word in re.sub(r"\$\{[^}]*\}|\\", " ", value).split()
    }
    lacking = {
        word for word in wanted if word not in offered and not any(word.startswith(own) for own in ours)
    }
    assert lacking == set()
    assert len(wanted) > 10


def test_packages_are_listed_with_what_they_are_for() -> None:
    for name in host.LISTS:
        text = (ROOT / "scripts" / name).read_text()
        names = host.packages(text)
        assert len(names) == len(set(names)) > 5
        assert all(re.fullmatch(r"[a-z0-9][a-z0-9.+-]+", package) for package in names)
