# SPDX-License-Identifier: Apache-2.0
"""Local copies of the upstream repositories, found by their URLs; kas is told to clone from them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# Last part of the URL: owners under which copies are kept. Others are looked for by their names alone.
OWNERS = {
    "bitbake": ("openembedded",),
    "openembedded-core": ("openembedded",),
    "meta-yocto": ("yoctoproject",),
    "meta-raspberrypi": ("agherzan", "yoctoproject"),
    "meta-arm": ("yoctoproject", "jonmason"),
    "meta-ti": ("TexasInstruments", "yoctoproject"),
}


class Repository:
    """One repository of a kas configuration: its name there, URL, and pinned commit."""

    __slots__ = ("commit", "name", "url")

    def __init__(self, name: str, url: str, commit: str) -> None:
        self.name = name
        self.url = url
        self.commit = commit


def repositories(dump: Mapping[str, Any]) -> list[Repository]:
    """Those that are fetched, from what `kas dump --format json` says."""
    pins = dump.get("overrides", {}).get("repos", {})
    return [
        Repository(name, repo["url"], repo.get("commit") or pins.get(name, {}).get("commit") or "")
        for name, repo in sorted(dump["repos"].items())
        if repo and repo.get("url")
    ]


def find(folder: Path, url: str) -> Path | None:
    """The copy of a repository: OWNER+NAME/repo, OWNER/NAME, NAME; each bare, with .git, or checked out."""
    name = url.rstrip("/").rpartition("/")[2].removesuffix(".git")
    owned = [f"{owner}{between}{name}" for owner in OWNERS.get(name, ()) for between in "+/"]
    for place in (*owned, name):
        for ending in ("", ".git", "/repo", "/repo.git"):
            path = folder / f"{place}{ending}"
            if (path / "HEAD").is_file() or (path / ".git").exists():
                return path.resolve()
    return None


def has_commit(copy: Path, commit: str) -> bool:
    """Whether a copy holds a commit."""
    command = ["git", "-c", "safe.directory=*", "-C", str(copy), "cat-file", "-e", f"{commit}^{{commit}}"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def missing(folder: Path, wanted: Iterable[Repository]) -> list[str]:
    """What is not there, in words: a whole copy, or the commit that a lock file pins."""
    found = []
    for repository in wanted:
        copy = find(folder, repository.url)
        if copy is None:
            found.append(f"no copy of {repository.name}")
        elif repository.commit and not has_commit(copy, repository.commit):
            found.append(f"{repository.name} lacks {repository.commit[:10]}")
    return found


def premirrors(folder: Path, wanted: Iterable[Repository]) -> str:
    """KAS_PREMIRRORS: for each repository with a copy a line of its URL, as a pattern, and the copy's."""
    pairs = [(repository.url, find(folder, repository.url)) for repository in wanted]
    return "\n".join(f"^{re.escape(url)}$ file://{copy}" for url, copy in pairs if copy)
