# SPDX-License-Identifier: Apache-2.0
"""A virtual board: a directory with its card, console and power switch.

Power cuts are SIGKILL to QEMU. They are honest because the card is a raw file: every write of the guest is in
the host's page cache at once, and stays there. (A qcow2 card loses all writes since the last flush; a test on
one passes on nothing.) What a real card does inside itself is not shown.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import time
from typing import TYPE_CHECKING

from . import boards, env, image, layer, uboot
from .console import Console, Said
from .tools import BenchError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from .env import Environment, Which

DESK = "10.0.2.2"
"""The host as a board sees it: its loopback is reached under this address."""


class Booted:
    """What came up: root partition number, and version as the slot names itself."""

    __slots__ = ("part", "version")

    def __init__(self, part: int, version: str) -> None:
        self.part = part
        self.version = version

    def __repr__(self) -> str:
        return f"partition {self.part}, version {self.version}"


class Board:
    """An existing board, on or off. `Board.create` makes one."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory.resolve()
        try:
            facts = json.loads((self.directory / "board.json").read_text())
        except FileNotFoundError as error:
            raise BenchError(f"there is no board in {directory}", hint="create it first") from error
        self.kind = boards.kind(facts["kind"])
        self.mac = str(facts["mac"])
        self.disk = self.directory / "disk.img"
        self.values = layer.variables(self.kind.machine)
        self.layout = layer.Layout(self.values)
        self.console = Console(
            self.directory / "console.log", self.directory / "console.sock", self.is_running
        )
        self._process: subprocess.Popen[bytes] | None = None

    @classmethod
    def create(
        cls,
        directory: Path,
        slot_a: Path,
        *,
        kind: str = "virt64",
        slot_b: Path | None = None,
        settings: Mapping[str, object] | None = None,
        data_files: Mapping[str, str | bytes] | None = None,
    ) -> Board:
        """Make a board with this image in slot A.

        `settings` become the fallback mender.conf in the data partition (ServerURL, poll intervals);
        `data_files` are more files for it, path below /data -> content.
        """
        row = boards.kind(kind)
        if (directory / "board.json").exists() and Board(directory).is_running():
            raise BenchError(f"the board in {directory} is on", hint="cut its power first")
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        values = layer.variables(row.machine)
        files = {
            "/mender/device_type": f"device_type={values['UPDATE_DEVICE_TYPE']}\n",
            "/mender/mender.conf": json.dumps(dict(settings or {}), indent=2) + "\n",
            **(data_files or {}),
        }
        slots = {"A": slot_a, **({"B": slot_b} if slot_b else {})}
        pristine = image.make_disk(directory / "pristine.img", row, slots=slots, data_files=files)
        image.copy_sparse(pristine, directory / "disk.img")
        shutil.copy(uboot.build(row, values) / "u-boot.bin", directory / "u-boot.bin")
        digest = hashlib.sha256(str(directory.resolve()).encode()).digest()
        mac = "52:54:00:" + ":".join(f"{byte:02x}" for byte in digest[:3])
        (directory / "board.json").write_text(json.dumps({"kind": kind, "mac": mac}) + "\n")
        return cls(directory)

    # Power

    def power_on(self) -> None:
        """Switch on; does not wait."""
        if self.is_running():
            raise BenchError("the board is on already", hint="cut its power or reset it first")
        for name in ("console.sock", "qemu.pid"):
            (self.directory / name).unlink(missing_ok=True)
        self.console.log.write_bytes(b"")
        self.console.rewind()
        parts = {
            "disk": str(self.disk).replace(",", ",,"),
            "uboot": str(self.directory / "u-boot.bin"),
            "mac": self.mac,
            "console": "console",
        }
        # Relative names: a socket's path may have 107 bytes only, and the board's directory may be deep.
        argv = [
            *(word.format(**parts) for word in self.kind.qemu),
            *("-nodefaults", "-no-user-config", "-display", "none", "-monitor", "none"),
            *("-chardev", "socket,id=console,path=console.sock,server=on,wait=off,logfile=console.log"),
            *("-pidfile", "qemu.pid"),
        ]
        with open(self.directory / "qemu.log", "wb") as log:
            try:
                self._process = subprocess.Popen(
                    argv,
                    cwd=self.directory,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            except FileNotFoundError as error:
                raise BenchError(
                    f"{argv[0]} is not installed", hint="apt-get install qemu-system-arm"
                ) from error
        deadline = time.monotonic() + 20
        while not ((self.directory / "qemu.pid").exists() and (self.directory / "console.sock").exists()):
            if self._process.poll() is not None or time.monotonic() > deadline:
                said = (self.directory / "qemu.log").read_text(errors="replace").strip()
                raise BenchError(f"QEMU did not start: {said or 'it said nothing'}")
            time.sleep(0.01)

    def power_cut(self) -> None:
        """Take the power away, now."""
        pid = self._pid()
        if pid is None:
            raise BenchError("the board is off")
        os.kill(pid, signal.SIGKILL)
        self.wait_off(10)

    def wait_off(self, timeout_s: float = 60.0) -> None:
        """Wait until the board has switched itself off."""
        deadline = time.monotonic() + timeout_s
        while self.is_running():
            if time.monotonic() > deadline:
                raise BenchError(f"the board is still on after {timeout_s:g} s")
            time.sleep(0.01)
        (self.directory / "qemu.pid").unlink(missing_ok=True)

    def power_off(self) -> None:
        """Shut down in order."""
        self.console.shell("sync; poweroff")
        self.wait_off()

    def is_running(self) -> bool:
        return self._pid() is not None

    def reset(self) -> None:
        """Back to the card as created, in well under a second; the power is cut first."""
        if self.is_running():
            self.power_cut()
        image.copy_sparse(self.directory / "pristine.img", self.disk)

    def _pid(self) -> int | None:
        """Process of this board's QEMU; a stale pid file whose number is someone else's now is not it."""
        if self._process is not None and self._process.poll() is not None:
            self._process = None
        try:
            pid = int((self.directory / "qemu.pid").read_text())
            words = _bytes(f"/proc/{pid}/cmdline")
            here = os.readlink(f"/proc/{pid}/cwd")
            state = _bytes(f"/proc/{pid}/stat").rpartition(b") ")[2][:1]
        except (OSError, ValueError):
            return None
        is_ours = words.startswith(b"qemu-system") and here == str(self.directory) and state != b"Z"
        return pid if is_ours else None

    # What it does

    def boot(self, timeout_s: float = 120.0) -> Booted:
        """Switch on and wait for the shell."""
        self.power_on()
        return self.wait_boot(timeout_s)

    def wait_boot(self, timeout_s: float = 120.0) -> Booted:
        """Wait until a version is up (after a reboot: the next one), with its shell."""
        match = self.console.wait_for(r"board: partition (\d+), version (\S+), up\r?\n", timeout_s)
        self.console.wait_for(r"# ", timeout_s)
        return Booted(int(match[1]), match[2])

    def shell(self, command: str, timeout_s: float = 60.0) -> Said:
        """Run a command as root; output and exit status."""
        return self.console.shell(command, timeout_s)

    def check(self, command: str, timeout_s: float = 60.0) -> str:
        """Output of a command that must succeed. Raises BenchError if not."""
        said = self.console.shell(command, timeout_s)
        if said.code != 0:
            raise BenchError(f"on the board, {command!r} exited with {said.code}: {said.output.strip()}")
        return said.output

    def reboot(self, timeout_s: float = 120.0) -> Booted:
        """Restart in order and wait for the shell."""
        self.console.shell("sync; reboot")
        return self.wait_boot(timeout_s)

    def boot_to_uboot(self) -> None:
        """Switch on and stop at U-Boot's prompt; then `console.uboot(...)`."""
        self.power_on()
        self.console.interrupt_uboot()

    # What is on its card

    def read_env(self) -> Environment:
        """U-Boot's environment as it is on the card now, both copies."""
        return env.read(self.disk, self.layout)

    def tear_env(self, which: Which) -> None:
        """Damage environment copies of a board that is off, as a write that broke off would."""
        self._must_be_off()
        env.tear(self.disk, self.layout, which)

    def write_slot(self, slot: str, file: Path) -> None:
        """Put an image into slot A or B of a board that is off."""
        self._must_be_off()
        image.write_slot(self.disk, self.layout, slot, file)

    def slot_digest(self, slot: str) -> str:
        return image.slot_digest(self.disk, self.layout, slot)

    def landed(self, slot: str, file: Path) -> tuple[int, int]:
        """Bytes of an image that are on a slot already, and bytes in all (chunks of zeros left out)."""
        return image.landed(self.disk, self.layout, slot, file)

    def _must_be_off(self) -> None:
        if self.is_running():
            raise BenchError("the board is on", hint="cut its power first: two writers spoil a card")


def _bytes(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
