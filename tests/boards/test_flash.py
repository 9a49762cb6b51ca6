# SPDX-License-Identifier: Apache-2.0
"""A card that `ota flash` wrote boots, and has on it what was given for the device."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from update_tools import __main__ as ota

from .conftest import NewBoard

pytestmark = pytest.mark.board


def test_a_card_written_for_this_device_boots(new_board: NewBoard, tmp_path: Path) -> None:
    board = new_board()
    image, key = tmp_path / "card.wic", tmp_path / "device.pem"
    board.disk.rename(image)
    subprocess.run(["bmaptool", "create", "-o", f"{image}.bmap", image], check=True, capture_output=True)
    subprocess.run(["openssl", "genpkey", "-algorithm", "ED25519", "-out", key], check=True)
    given = ["--device-key", str(key), "--server-url", "http://10.0.2.2:9", "--device-type", "virt64"]
    assert ota.main(["flash", str(image), "--to-file", str(board.disk), "--yes", *given]) == 0
    board.boot()

    assert json.loads(board.check("cat /data/mender/mender.conf"))["Servers"] == [
        {"ServerURL": "http://10.0.2.2:9"}
    ]
    public = subprocess.run(
        ["openssl", "pkey", "-in", key, "-pubout"], check=True, capture_output=True, text=True
    )
    assert (
        board.check("openssl pkey -in /data/mender/mender-agent.pem -pubout").split() == public.stdout.split()
    )
    assert board.check("stat -c '%a %u' /data/mender/mender-agent.pem").strip() == "600 0"
    assert board.check("fw_printenv -n mender_boot_part").strip() == "2"
