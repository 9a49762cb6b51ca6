# SPDX-License-Identifier: Apache-2.0
"""Debian's packages for another architecture, and source packages, without touching the host's own apt.

A private apt in the cache uses the host's Debian sources (same mirror, same keys, same suites) for one
architecture. Nothing is installed and no maintainer script runs: packages are unpacked.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from . import cache
from .tools import BenchError, run

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ETC = Path("/etc")


class Source:
    """One Debian archive of the host's configuration."""

    __slots__ = ("components", "signed_by", "suite", "uri")

    def __init__(self, uri: str, suite: str, components: str, signed_by: str) -> None:
        self.uri = uri
        self.suite = suite
        self.components = components
        self.signed_by = signed_by

    def line(self, kind: str, arch: str) -> str:
        options = f"arch={arch}" + (f" signed-by={self.signed_by}" if self.signed_by else "")
        return f"{kind} [{options}] {self.uri} {self.suite} {self.components}"


def host_sources(etc: Path = ETC) -> list[Source]:
    """The host's sources whose suites are its own Debian release; other vendors' archives are left out."""
    release = re.search(r"^VERSION_CODENAME=(\w+)", (etc / "os-release").read_text(), re.MULTILINE)
    if not release:
        raise BenchError(
            f"{etc}/os-release names no release", hint="the bench is made from Debian's packages"
        )
    suites = {release[1], f"{release[1]}-updates", f"{release[1]}-security"}
    apt = etc / "apt"
    files = [apt / "sources.list", *sorted((apt / "sources.list.d").glob("*"))]
    found = []
    for file in files:
        if not file.is_file():
            continue
        read = _read_deb822 if file.suffix == ".sources" else _read_list
        found += [source for source in read(file.read_text()) if source.suite in suites]
    if not found:
        raise BenchError(f"no apt source of Debian {release[1]} in {apt}")
    return found


def _read_list(text: str) -> Iterator[Source]:
    for line in text.splitlines():
        match = re.fullmatch(r"\s*deb\s+(?:\[(.*?)\]\s+)?(\S+)\s+(\S+)\s+(.*\S)\s*", line)
        if match:
            signed = re.search(r"signed-by=(\S+)", match[1] or "")
            yield Source(match[2], match[3], match[4], signed[1] if signed else "")


def _read_deb822(text: str) -> Iterator[Source]:
    for block in re.split(r"\n\s*\n", text):
        lines = [line for line in block.splitlines() if not line.startswith("#")]
        fields = {
            key.strip().lower(): value.strip() for key, _, value in (line.partition(":") for line in lines)
        }
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").lower() == "no":
            continue
        signed = fields.get("signed-by", "")
        for uri in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                yield Source(
                    uri, suite, fields.get("components", "main"), signed if signed.startswith("/") else ""
                )


class Apt:
    """A private apt for one architecture; its lists and packages stay in the cache."""

    def __init__(self, arch: str) -> None:
        self.arch = arch
        self._dir = cache.root() / "apt" / arch
        self._conf = self._dir / "apt.conf"

    def prepare(self, *, refresh: bool = False) -> None:
        """Write the configuration and fetch the package lists if there are none, or again if `refresh`."""
        for name in ("lists/partial", "archives/partial", "etc"):
            (self._dir / name).mkdir(parents=True, exist_ok=True)
        sources = host_sources()
        lines = [source.line(kind, self.arch) for kind in ("deb", "deb-src") for source in sources]
        (self._dir / "sources.list").write_text("\n".join(lines) + "\n")
        (self._dir / "status").write_text("")
        settings = {
            "APT::Architecture": self.arch,
            "APT::Architectures": self.arch,
            "APT::Sandbox::User": "root",
            "APT::Install-Recommends": "false",
            "Acquire::Languages": "none",
            "Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled": "false",
            "Dir::Etc::sourcelist": self._dir / "sources.list",
            "Dir::Etc::sourceparts": "-",
            "Dir::Etc::preferences": "-",
            "Dir::Etc::preferencesparts": "-",
            "Dir::State": self._dir,
            "Dir::State::lists": self._dir / "lists",
            "Dir::State::status": self._dir / "status",
            "Dir::Cache": self._dir,
            "Dir::Cache::archives": self._dir / "archives",
            "Binary::apt-get::APT::Keep-Downloaded-Packages": "true",
            "DPkg::Post-Invoke": "",
            "APT::Update::Post-Invoke": "",
        }
        self._conf.write_text("".join(f'{name} "{value}";\n' for name, value in settings.items()))
        if refresh or not self._has_lists():
            self._update()

    def _update(self) -> None:
        """Fetch the lists. An archive whose mirror is behind its index is left out, if Debian itself came."""
        try:
            self._apt("apt-get", "update", "-q")
        except BenchError as error:
            if not self._has_lists():
                raise
            print(f"going on without some package lists of {self.arch}: {error.message}", file=sys.stderr)

    def _has_lists(self) -> bool:
        """The release's own lists of packages and sources are there: enough for a board."""
        release = host_sources()[0].suite.partition("-")[0]
        lists = self._dir / "lists"
        return all(
            any(lists.glob(f"*_dists_{release}_main_{end}*"))
            for end in (f"binary-{self.arch}_Packages", "source_Sources")
        )

    def download(self, packages: Sequence[str]) -> list[Path]:
        """Package files of these packages and all that they depend on; only what is missing is fetched."""
        with cache.lock(f"apt-{self.arch}"):
            self.prepare()
            self._again(["install", "--download-only", "--yes", "-q", *packages])
            plan = self._apt("apt-get", "install", "--simulate", "--yes", "-q", *packages)
            chosen = re.findall(r"^Inst (\S+) \((\S+) .*?\[(\w+)\]\)", plan, re.MULTILINE)
            archives = self._dir / "archives"
            files = [
                archives / f"{name}_{version.replace(':', '%3a')}_{arch}.deb"
                for name, version, arch in chosen
            ]
        for file in files:
            if not file.exists():
                raise BenchError(f"apt did not fetch {file.name}", hint=f"remove {self._dir} and try again")
        return sorted(files)

    def download_one(self, package: str) -> Path:
        """The file of one package alone."""
        with cache.lock(f"apt-{self.arch}"):
            self.prepare()
            archives = self._dir / "archives"
            self._again(["download", "-q", package], cwd=archives)
            said = self._apt("apt-cache", "show", "--no-all-versions", package)
        version = re.search(r"^Version: (\S+)", said, re.MULTILINE)
        files = list(archives.glob(f"{package}_{version[1].replace(':', '%3a')}_*.deb")) if version else []
        if not files:
            raise BenchError(f"apt did not fetch {package}", hint=f"remove {self._dir} and try again")
        return files[0]

    def depends(self, package: str) -> list[str]:
        """Names that a package depends on directly (first alternative each)."""
        with cache.lock(f"apt-{self.arch}"):
            self.prepare()
            said = self._apt("apt-cache", "depends", "--no-recommends", "--no-suggests", package)
        return re.findall(r"^\s+\|?Depends: ([^<\s]+)", said, re.MULTILINE)

    def source_version(self, package: str) -> str:
        """Version of the newest source package."""
        with cache.lock(f"apt-{self.arch}"):
            self.prepare()
            said = self._apt("apt-cache", "showsrc", "--only-source", package)
        versions: list[str] = re.findall(r"^Version: (\S+)", said, re.MULTILINE)
        if not versions:
            raise BenchError(f"Debian's sources have no package {package}")
        newest = versions[0]
        for version in versions[1:]:
            try:
                run(["dpkg", "--compare-versions", version, "gt", newest])
                newest = version
            except BenchError:
                continue
        return newest

    def unpack_source(self, package: str, version: str, into: Path) -> Path:
        """Fetch and unpack a source package below `into`; its patches are applied. Returns the tree."""
        with cache.lock(f"apt-{self.arch}"):
            self._again(["source", "-q", "--download-only", f"{package}={version}"], cwd=into)
        (description,) = into.glob("*.dsc")
        run(["dpkg-source", "--no-check", "--extract", description.name, "tree"], cwd=into)
        return into / "tree"

    def _again(self, words: list[str], cwd: Path | None = None) -> None:
        """Fetch; if the mirror has moved on since our lists were made, fetch the lists and try once more."""
        try:
            self._apt("apt-get", *words, cwd=cwd)
        except BenchError:
            self.prepare(refresh=True)
            self._apt("apt-get", *words, cwd=cwd)

    def _apt(self, *words: str, cwd: Path | None = None) -> str:
        return run(words, cwd=cwd, env={"APT_CONFIG": str(self._conf), "DEBIAN_FRONTEND": "noninteractive"})


def unpack(files: Sequence[Path], into: Path) -> None:
    """Unpack packages over one another; /bin, /lib and /sbin are links into /usr, as Debian installs."""
    for name in ("bin", "lib", "sbin"):
        (into / "usr" / name).mkdir(parents=True, exist_ok=True)
        (into / name).symlink_to(f"usr/{name}")
    for file in files:
        run(
            ["sh", "-c", 'dpkg-deb --fsys-tarfile "$0" | tar -x --keep-directory-symlink -C "$1"', file, into]
        )
