# SPDX-License-Identifier: Apache-2.0
"""The private apt takes Debian's archives from the host's configuration, in both formats, and no others."""

from __future__ import annotations

from pathlib import Path

import pytest

from update_tools.bench import debs
from update_tools.bench.tools import BenchError


def etc(root: Path) -> Path:
    (root / "apt/sources.list.d").mkdir(parents=True)
    (root / "os-release").write_text("ID=debian\nVERSION_CODENAME=bookworm\n")
    return root


DEB822 = """\
Types: deb
# a comment
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/debian
Suites: bookworm-backports
Components: main

Enabled: no
Types: deb
URIs: http://off.example/debian
Suites: bookworm
Components: main
"""


def test_deb822(tmp_path: Path) -> None:
    root = etc(tmp_path)
    (root / "apt/sources.list.d/debian.sources").write_text(DEB822)
    lines = [source.line("deb-src", "arm64") for source in debs.host_sources(root)]
    keys = "signed-by=/usr/share/keyrings/debian-archive-keyring.gpg"
    assert lines == [
        f"deb-src [arch=arm64 {keys}] http://mirror.example/debian bookworm main",
        f"deb-src [arch=arm64 {keys}] http://mirror.example/debian bookworm-updates main",
    ]


def test_one_line_format_and_other_vendors(tmp_path: Path) -> None:
    root = etc(tmp_path)
    (root / "apt/sources.list").write_text(
        "# deb http://no.example/debian bookworm main\n"
        "deb [arch=amd64 signed-by=/k.gpg] http://mirror.example/debian bookworm main contrib\n"
        "deb-src http://mirror.example/debian bookworm main\n"
        "deb http://security.example/debian-security bookworm-security main\n"
    )
    (root / "apt/sources.list.d/vendor.list").write_text(
        "deb http://vendor.example/apt stable-bookworm main\n"
    )
    assert [source.line("deb", "armhf") for source in debs.host_sources(root)] == [
        "deb [arch=armhf signed-by=/k.gpg] http://mirror.example/debian bookworm main contrib",
        "deb [arch=armhf] http://security.example/debian-security bookworm-security main",
    ]


def test_a_host_without_debian_sources_is_told(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="no apt source of Debian bookworm"):
        debs.host_sources(etc(tmp_path))
