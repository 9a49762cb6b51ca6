# SPDX-License-Identifier: Apache-2.0
"""What stands in for recipes that cannot be built here: Debian's kernel and programs, pseudo, wic."""

from __future__ import annotations

import gzip
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from update_tools.bench import boards, layer, rootfs, uboot
from update_tools.inspect import boards as known

from . import host, mirrors
from .errors import Failed, Skipped
from .rows import VIRTUAL

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .rows import Row
    from .workshop import Workshop

BOARD = "virt64"
"""The virtual board that starts what is built for VIRTUAL."""
FILES = Path(__file__).parent / "files"
_FOLDERS = ("dev", "proc", "root", "run", "sys", "tmp", "var/lib", "var/log")
_ACCOUNTS = {"etc/passwd": "root::0:0:root:/root:/bin/sh\n", "etc/group": "root:x:0:\n"}
_WIC = ("scripts/wic", "scripts/lib/wic", "scripts/lib/scriptutils.py", "scripts/lib/scriptpath.py",
        "scripts/lib/argparse_oe.py")  # fmt: skip


def environment(shop: Workshop, row: Row, configuration: Mapping[str, Any]) -> dict[str, str]:
    """Variables that tests/layer/kas/standins.yml takes from the environment, with what they name made."""
    core = next(r for r in mirrors.repositories(configuration) if r.name == "openembedded-core")
    place = shop.folder / "standins"
    own = place / row.name
    shutil.rmtree(own, ignore_errors=True)
    tree = own / "tree"
    if row.board == VIRTUAL:
        base = rootfs.base(boards.kind(BOARD))
        shutil.copytree(base / "tree", tree, symlinks=True)
        (own / "kernel").write_bytes(gzip.decompress((base / "boot/kernel").read_bytes()))
        _put(tree / "boot/initrd.img", (base / "boot/initrd").read_bytes())
    for source in sorted((FILES / "tree").rglob("*")):
        if source.is_file():
            target = tree / source.relative_to(FILES / "tree")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    for name, text in _ACCOUNTS.items():
        _put(tree / name, text.encode())
    for name in _FOLDERS:
        (tree / name).mkdir(parents=True, exist_ok=True)
    (own / "initial-env").write_text(first_environment(row))
    _pseudo(place / "pseudo")
    host.give(place, shop.user)
    return {
        "DL_DIR": str(downloads(shop)),
        "STANDIN_COMPATIBLE": known.choose(configuration["machine"], "", "", "").compatible,
        "STANDIN_DIR": str(own),
        "STANDIN_PSEUDO": str(place / "pseudo"),
        "STANDIN_WIC": str(_wic(shop.mirrors, core, place / "wic")) if row.series == "wrynose" else "",
    }


def first_environment(row: Row) -> str:
    """U-Boot's compiled environment: the virtual board's real one, a line elsewhere."""
    if row.board == VIRTUAL:
        return (uboot.build(boards.kind(BOARD), layer.variables(BOARD)) / "initial-env").read_text()
    return "bootcmd=echo in place of an environment\n"


def deployed(build: Path, machine: str) -> Path | None:
    """The directory that a build deployed its images to."""
    found = [*build.glob(f"tmp*/deploy*/images/{machine}"), *build.glob(f"deploy*/images/{machine}")]
    return found[0] if found else None


def _pseudo(place: Path) -> None:
    """A sysroot in which OE-core finds Debian's pseudo."""
    libraries = sorted(Path("/usr/lib").glob("*/pseudo/libpseudo.so")) or [
        *Path("/usr/lib").glob("**/libpseudo.so")
    ]
    if not libraries:
        raise Failed("Debian's pseudo has no libpseudo.so")
    links = {"bin/pseudo": Path("/usr/bin/pseudo"), "lib/pseudo/lib/libpseudo.so": libraries[0],
             "lib/pseudo/lib64/libpseudo.so": libraries[0]}  # fmt: skip
    for name, target in links.items():
        link = place / "usr" / name
        if not link.is_symlink():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(target)


def downloads(shop: Workshop) -> Path:
    """A download directory with the sources of recipes from PyPI, by the registry that pip is set up for."""
    place = shop.folder / "downloads"
    place.mkdir(exist_ok=True)
    for recipe in sorted((shop.repository / "meta-update").glob("recipes-*/*/python3-*_*.bb")):
        name, _, version = recipe.stem.removeprefix("python3-").partition("_")
        name = name.removesuffix("-native")
        if not (place / f"{name}-{version}.tar.gz").exists():
            words = ["download", "-q", "--no-deps", "--no-binary", name, f"{name}=={version}"]
            _output(["python3", "-m", "pip", *words, "-d", str(place)])
    host.give(place, shop.user)
    return place


def _wic(folder: Path, core: mirrors.Repository, place: Path) -> Path:
    """wic of the last commit of OE-core that had it: wrynose fetches it from elsewhere. Raises Skipped."""
    if (place / "scripts/wic").exists():
        return place
    git = ["git", "-c", "safe.directory=*", "-C", str(mirrors.find(folder, core.url))]
    search = ["log", "-1", "--format=%H", "--diff-filter=D", core.commit, "--", "scripts/wic"]
    commit = _output([*git, *search]).decode()
    if not commit.strip():
        raise Skipped("the copy of openembedded-core has no history with scripts/wic in it")
    archive = _output([*git, "archive", f"{commit.strip()}~1", *_WIC])
    place.mkdir(parents=True, exist_ok=True)
    subprocess.run(["tar", "-x", "-C", str(place)], input=archive, check=True)
    return place


def _output(command: list[str]) -> bytes:
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode != 0:
        raise Failed(f"{' '.join(command[:5])}: {done.stderr.decode(errors='replace').strip()[-300:]}")
    return done.stdout


def _put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
