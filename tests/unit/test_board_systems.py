# SPDX-License-Identifier: Apache-2.0
"""The broken systems that boards are tested with are broken in the way that they say, and in no other."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from tests.boards import systems

from update_tools.bench import ext4

pytestmark = pytest.mark.skipif(
    shutil.which("debugfs", path="/usr/sbin:/sbin") is None, reason="debugfs is not installed (e2fsprogs)"
)


@pytest.fixture
def made(tmp_path: Path) -> systems.Systems:
    files = ext4.Files()
    files.link("/sbin", "usr/sbin")
    files.link("/usr/sbin/init", "../lib/systemd/systemd")
    files.text("/usr/lib/systemd/systemd", b"\x7fELF", 0o755)
    files.text("/boot/Image", b"kernel")
    good = ext4.make(tmp_path / "good.ext4", files, size_bytes=24 << 20, label="root", journal=True)
    return systems.Systems(tmp_path, good, kernel="Image", device_type="a-board")


def debugfs(image: Path, request: str) -> str:
    done = subprocess.run(
        ["/usr/sbin/debugfs", "-R", request, image], check=True, capture_output=True, text=True
    )
    return done.stdout


@pytest.mark.parametrize("variant", ["good", "panic", "hang", "no-kernel"])
def test_each_is_broken_as_it_says(made: systems.Systems, variant: str) -> None:
    image = made.image(f"{variant}-1", variant)
    subprocess.run(["/usr/sbin/e2fsck", "-fn", image], check=True, capture_output=True)
    assert debugfs(image, "cat /usr/lib/systemd/systemd") == "\x7fELF"
    if variant in systems.INITS:
        assert debugfs(image, "cat /usr/sbin/init") == systems.INITS[variant]
        assert "Mode:  0755" in debugfs(image, "stat /usr/sbin/init")
    else:
        assert "symlink" in debugfs(image, "stat /usr/sbin/init")
    assert debugfs(image, "cat /boot/Image") == ("" if variant == "no-kernel" else "kernel")


def test_each_version_has_bytes_of_its_own(made: systems.Systems) -> None:
    one, two = (made.image(f"good-{number}").read_bytes() for number in (1, 2))
    differing = sum(one[at : at + 4096] != two[at : at + 4096] for at in range(0, len(one), 4096))
    assert differing * 4096 >= systems.OWN_BYTES
