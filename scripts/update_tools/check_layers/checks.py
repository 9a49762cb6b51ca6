# SPDX-License-Identifier: Apache-2.0
"""A check is a function `(shop, row, log) -> text`: what it found; or raises Failed or Skipped."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

from . import boot as start
from . import mirrors, product, standins, verdict
from .errors import Failed, Skipped
from .rows import BY_NAME
from .workshop import BARE, PLAIN, STANDINS, passed

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from .rows import Row
    from .workshop import Build, Run, Workshop

# Steps of kas that would clone; what remains reads the files.
_ONLY_READ = [
    word
    for step in ("repo_setup_loop", "finish_setup_repos", "repos_checkout", "repos_apply_patches")
    for word in ("--skip", step)
]


def configuration(shop: Workshop, row: Row, log: Path) -> dict[str, Any]:
    """What the kas files of a row say, nothing fetched. Raises Failed."""
    words = ["dump", *_ONLY_READ, "--format", "json", "FILES"]
    return _document(passed(shop.kas(row, words, log, limit_s=120), "kas dump"))


def look_for_mirrors(shop: Workshop, row: Row, log: Path) -> None:
    """Tell the workshop where to clone a row's repositories from. Raises Skipped if one is not there."""
    wanted = mirrors.repositories(configuration(shop, row, log))
    if lacking := mirrors.missing(shop.mirrors, wanted):
        raise Skipped(f"in {shop.mirrors}: {', '.join(lacking)}")
    shop.premirrors = mirrors.premirrors(shop.mirrors, wanted)


def dump(shop: Workshop, row: Row, log: Path) -> str:
    """All repositories are checked out at the commits that the lock file pins."""
    words = ["dump", "--resolve-refs", "--format", "json", "FILES"]
    found = _document(judged(shop.kas(row, words, log, limit_s=_limit("dump")), "kas dump"))
    repositories = mirrors.repositories(found)
    if unpinned := [repository.name for repository in repositories if not repository.commit]:
        raise Failed(f"no lock file pins {', '.join(unpinned)}")
    return f"{len(repositories)} repositories for {found['machine']}"


def parse(shop: Workshop, row: Row, log: Path) -> str:
    """Every recipe of every layer, from nothing."""
    shop.prepare(row, PLAIN, log)
    shutil.rmtree(shop.build_folder(row, PLAIN) / "cache", ignore_errors=True)
    counts = verdict.parsed(_bitbake(shop, row, PLAIN, ["-p"], log, "parse"))
    if counts is None or counts[1]:
        raise Failed("nothing was parsed" if counts is None else f"{counts[1]} recipes with errors")
    return f"{counts[0]} recipes"


def graph(shop: Workshop, row: Row, log: Path) -> str:
    """The graph of all tasks that the image needs."""
    shop.prepare(row, PLAIN, log)
    _bitbake(shop, row, PLAIN, ["-g", configuration(shop, row, log)["target"]], log, "graph")
    folder = shop.build_folder(row, PLAIN)
    lines = (folder / "task-depends.dot").read_text().splitlines()
    recipes = (folder / "pn-buildlist").read_text().split()
    return f"{sum('[label=' in line for line in lines)} tasks of {len(recipes)} recipes"


def dry_run(shop: Workshop, row: Row, log: Path) -> str:
    """All tasks of the image, each without being run."""
    shop.prepare(row, PLAIN, log)
    target = configuration(shop, row, log)["target"]
    return f"{_count(_bitbake(shop, row, PLAIN, ['-n', target], log, 'dry-run'))} tasks"


def recipes(shop: Workshop, row: Row, log: Path) -> str:
    """Every recipe of ours but images and appends, to its packages and what it deploys; from nothing."""
    paths = (shop.repository / "meta-update").glob("recipes-*/*/*.bb")
    ours = {path.stem.partition("_")[0] for path in paths if not path.stem.startswith("update-image-")}
    shutil.rmtree(shop.build_folder(row, STANDINS), ignore_errors=True)
    _prepare_standins(shop, row, log)
    # Those that are for this machine: BitBake lists no recipe that was skipped.
    names = sorted(ours & verdict.listed(_bitbake(shop, row, STANDINS, ["-s"], log, "recipes")))
    return f"{_count(_bitbake(shop, row, STANDINS, names, log, 'recipes'))} tasks of {len(names)} recipes"


def image(shop: Workshop, row: Row, log: Path) -> str:
    """The image by its own recipe and OE-core's classes; packages that `recipes` has made are used."""
    _prepare_standins(shop, row, log)
    target = configuration(shop, row, log)["target"]
    return f"{_count(_bitbake(shop, row, STANDINS, [target], log, 'image'))} tasks"


def inspect(shop: Workshop, row: Row, log: Path) -> str:
    """`ota inspect` finds no error; card, root file system, artifact and block map say the same."""
    found = configuration(shop, row, log)
    files = _product(shop, row, found)
    report = product.inspected(files, found["machine"])
    log.write_text(json.dumps(report, indent=1) + "\n")
    product.whole(files, found["machine"], shop.folder)
    return f"0 errors, {report['warnings']} warnings"


def boot(shop: Workshop, row: Row, log: Path) -> str:
    """The virtual board starts the card, installs the artifact, starts it, commits."""
    found = configuration(shop, row, log)
    files = _product(shop, row, found)
    name = str(product.inspected(files, found["machine"])["artifact"]["name"])
    board = start.board(shop.folder / f"board-{row.series}", files.wic, found["machine"])
    try:
        return start.run(board, files.mender, name)
    finally:
        shutil.copy(board.directory / "console.log", log)


def _product(shop: Workshop, row: Row, found: dict[str, Any]) -> product.Product:
    folder = standins.deployed(shop.build_folder(row, STANDINS), found["machine"])
    return product.Product(folder, found["target"])


def layer(shop: Workshop, row: Row, log: Path) -> str:
    """yocto-check-layer, in a build that the layer is not part of."""
    shop.prepare(row, BARE, log)
    command = ["yocto-check-layer", str(shop.repository / "meta-update")]
    output = passed(shop.bitbake(row, BARE, command, log, limit_s=_limit("layer")), command[0])
    if not verdict.layer_passed(output):
        raise Failed("yocto-check-layer did not say that the layer passed")
    return f"passed {verdict.layer_passed(output)}"


def _prepare_standins(shop: Workshop, row: Row, log: Path) -> None:
    env = standins.environment(shop, row, configuration(shop, row, log))
    shop.prepare(row, STANDINS, log, env)


def _bitbake(shop: Workshop, row: Row, build: Build, words: Sequence[str], log: Path, check: str) -> str:
    """The output of BitBake, if it said neither error nor warning. Raises Failed."""
    run = shop.bitbake(row, build, ["bitbake", *words], log, limit_s=_limit(check))
    return judged(run, " ".join(["bitbake", *words][:3]))


def _count(output: str) -> int:
    count = verdict.tasks(output)
    if not count:
        raise Failed("no task was run")
    return count


def judged(run: Run, what: str) -> str:
    """The output of a run without error and without warning. Raises Failed with the first."""
    found = verdict.trouble(run.output)
    if run.code is not None and found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise Failed(f"{what}: {found[0][:300]}{more}")
    return passed(run, what)


def _limit(name: str) -> int:
    return BY_NAME[name].limit_s


def _document(output: str) -> dict[str, Any]:
    """The JSON document among the lines that kas says."""
    lines = output.splitlines()
    try:
        first = lines.index("{")
        last = len(lines) - lines[::-1].index("}")
    except ValueError as error:
        raise Failed("kas dump printed no document") from error
    document: dict[str, Any] = json.loads("\n".join(lines[first:last]))
    return document
