# SPDX-License-Identifier: Apache-2.0
"""Starts a .wic on the virtual board, and lets it update itself with its own .mender."""

from __future__ import annotations

import functools
import json
import shutil
import threading
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

from update_tools.bench import boards, image, layer, uboot
from update_tools.bench.qemu import DESK, Board

from .errors import Failed
from .standins import BOARD

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_BOOT_S = 400  # an emulator on a busy host


def board(folder: Path, wic: Path, machine: str) -> Board:
    """A board whose card is this image; its U-Boot is the virtual board's of every day."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    card = folder / "disk.img"
    image.copy_sparse(wic, card)
    with open(card, "r+b") as file:  # QEMU's cards have a power of two
        file.truncate(1 << (wic.stat().st_size - 1).bit_length())
    values = layer.variables(machine)
    shutil.copy(uboot.build(boards.kind(BOARD), values) / "u-boot.bin", folder / "u-boot.bin")
    (folder / "board.json").write_text(json.dumps({"kind": BOARD, "mac": "52:54:00:6d:75:01"}) + "\n")
    found = Board(folder)
    found.values = values
    found.layout = layer.Layout(values)
    return found


def run(board: Board, mender: Path, name: str) -> str:
    """Start from slot A, install the artifact, start from slot B, commit. Raises Failed."""
    values = board.values
    a, b = int(values["UPDATE_PART_A"]), int(values["UPDATE_PART_B"])
    with powered(board):
        first = board.boot(_BOOT_S)
        _same("the slot that starts first", first.part, a)
        _same("what the agent says that runs", first.version, name)
        _same("the canary", board.check("fw_printenv -n mender_saveenv_canary"), "1")
        data = values["UPDATE_STORAGE_PART"] + values["UPDATE_PART_DATA"]
        if f"{data} on /data" not in board.check("mount"):
            raise Failed(f"{data} is not mounted on /data by the image's fstab")
        with served(mender) as url:
            board.check(f"mender-update install {url}", 900)
        second = board.reboot(_BOOT_S)
        _same("the slot after the update", second.part, b)
        _same("upgrade_available on trial", board.check("fw_printenv -n upgrade_available"), "1")
        board.check("mender-update commit", 120)
        _same("upgrade_available", board.check("fw_printenv -n upgrade_available"), "0")
        third = board.reboot(_BOOT_S)
        _same("the slot after the commit", third.part, b)
    return f"slots {a} and {b} start, {name} installed and committed"


@contextmanager
def powered(board: Board) -> Iterator[None]:
    """Take the board's power away in the end."""
    try:
        yield
    finally:
        if board.is_running():
            board.power_cut()


@contextmanager
def served(file: Path) -> Iterator[str]:
    """The URL under which a board gets this file, from the host's loopback."""
    handler = functools.partial(_Quiet, directory=str(file.parent))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://{DESK}:{server.server_port}/{file.name}"
    finally:
        server.shutdown()
        server.server_close()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


def _same(what: str, found: object, wanted: object) -> None:
    text = found.strip() if isinstance(found, str) else found
    if text != wanted:
        raise Failed(f"on the board, {what} is {text}, not {wanted}")
