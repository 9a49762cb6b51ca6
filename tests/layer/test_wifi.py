# SPDX-License-Identifier: Apache-2.0
"""update-wifi: its files are where udev and systemd look, and name what `ota flash` writes."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.layer.bitbake import SERIES, Build

from update_tools.flash import provision, wifi

RULES = "/usr/lib/udev/rules.d/90-update-wifi.rules"
UNIT = "/usr/lib/systemd/system/update-wifi@.service"
NETWORK = "/usr/lib/systemd/network/80-update-wifi.network"


@pytest.mark.parametrize("series", SERIES)
def test_files_and_what_they_mean(tmp_path: Path, series: str) -> None:
    root = Path(Build(tmp_path / "build", series=series).run("update-wifi")["D"])
    assert {f"/{path.relative_to(root)}" for path in root.rglob("*") if path.is_file()} == {
        RULES,
        UNIT,
        NETWORK,
    }
    unit = (root / UNIT[1:]).read_text()
    assert set(re.findall(r"/data/\S+", unit)) == {f"/data{provision.WIFI}"}
    assert UNIT in provision.WIFI_UNITS
    rules = (root / RULES[1:]).read_text()
    assert f'SYSTEMD_WANTS}}+="{Path(UNIT).name.replace("@.", "@$name.")}"' in rules

    if shutil.which("systemd-analyze"):
        copy = tmp_path / "update-wifi@wlan0.service"
        copy.write_text(unit.replace("/usr/sbin/wpa_supplicant", "/bin/true"))
        done = subprocess.run(
            ["systemd-analyze", "verify", copy], capture_output=True, text=True, check=False
        )
        assert [line for line in done.stderr.splitlines() if "wifi" in line] == []


def test_not_for_sysvinit(tmp_path: Path) -> None:
    answer = Build(tmp_path / "build", conf='DISTRO_FEATURES = "sysvinit"\n').ask({"update-wifi": {}})
    assert "is for systemd" in str(answer["recipes"]["update-wifi"].get("skipped"))


@pytest.mark.skipif(not shutil.which("wpa_supplicant"), reason="wpa_supplicant is not installed")
def test_wpa_supplicant_takes_what_ota_flash_writes(tmp_path: Path) -> None:
    passwords = ("", "plain words", 'with "quotes" \\ and # all', "0" * 64)
    texts = [wifi.configuration(f"Büro {number}", word, "DE") for number, word in enumerate(passwords)]
    config = tmp_path / "wpa_supplicant.conf"
    config.write_text("".join(texts).replace("/run/wpa_supplicant", str(tmp_path)))
    command = [
        "timeout",
        "--signal=INT",
        "2",
        "wpa_supplicant",
        "-ddK",
        "-D",
        "none",
        "-i",
        "lo",
        "-c",
        config,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    assert "Failed to read or parse configuration" not in said
    assert not re.search(r"Line \d+:", said)
    assert said.count("start of a new network block") == len(passwords)
    for word in passwords[1:3]:
        assert f"PSK (ASCII passphrase) - hexdump_ascii(len={len(word)})" in said
