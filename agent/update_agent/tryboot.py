# SPDX-License-Identifier: Apache-2.0
"""Raspberry Pi firmware (4, 5) as the boot loader: autoboot.txt and its one-shot flag, without U-Boot.

The contract's variables, on top of what the firmware has:

    mender_boot_part    root partition of the slot on trial, else of the one that autoboot.txt has in [all]
    upgrade_available   1 while a slot is on trial; the commit exchanges autoboot.txt's two numbers
    bootcount           0: the trial has a boot left; 1: it was asked for. bootlimit is 1 by nature
    boot_failure        why a trial ended, from what the firmware did

What the firmware cannot hold (which slot is on trial, whether its boot was used up) is in a small file on
the data partition. What starts is decided by autoboot.txt alone, so that file may be lost. A power cut
between the commit's two writes, autoboot.txt first, leaves a trial of the slot that is the default already:
it is committed.

A trial begins only with a reboot that asks for it. After one that did not (a power cut, `reboot` by hand) the
agent asks when it starts: see `next_boot`. So a boot loader that counts boots and this one behave alike.
"""

from __future__ import annotations

import os

from update_agent import autoboot
from update_agent.errors import BootloaderError
from update_agent.lean import json
from update_agent.loop import plain_wait
from update_agent.slots import Host, Slot, Slots
from update_agent.store import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from update_agent.autoboot import Autoboot
    from update_agent.config import Config
    from update_agent.log import Log
    from update_agent.loop import Wait

TRY = ["systemctl", "reboot", "--reboot-argument=0 tryboot"]  # reboot(2) with that argument, in the end
_TRYBOOT_A_B = 1 << 2  # of the boot loader's capabilities
_VARIABLES = ("mender_boot_part", "mender_boot_part_hex", "upgrade_available", "bootcount", "boot_failure")
_KEYS = ("part", "bootcount", "boot", "boot_failure")  # of the saved state; `boot` is the kernel's boot id


class _Situation:
    """What autoboot.txt, the firmware and the saved state say together."""

    def __init__(self, bootloader: Tryboot) -> None:
        slots = bootloader.boot_slots()
        roots = {boot.number: root for root, boot in slots.items()}
        self.autoboot = bootloader.autoboot()
        self.booted = bootloader.firmware("partition")
        self.saved = bootloader.saved()
        default = roots[self.autoboot.default]
        self.trial = self.saved["part"] if self.saved["part"] in slots else ""
        if self.trial == default:
            self.trial = ""  # committed
        self.runs_trial = bool(self.trial) and self.booted == slots[self.trial].number
        # Not run, although its boot was used up.
        self.is_over = bool(self.trial) and not self.runs_trial and self.saved["bootcount"] != "0"
        is_pending = bool(self.trial) and not self.is_over
        part = self.trial if is_pending else default
        reason = self.saved["boot_failure"]
        if self.is_over:
            reason = f"boot partition {slots[self.trial].number}: " + (
                "the device did not restart"
                if self.saved["boot"] == bootloader.boot_id()
                else f"its one boot did not get as far as the commit, the firmware went back to {self.booted}"
            )
        self.variables = {
            "mender_boot_part": part,
            "mender_boot_part_hex": f"{int(part):x}",
            "upgrade_available": "1" if is_pending else "0",
            "bootcount": self.saved["bootcount"] if is_pending else "0",
            "boot_failure": reason,
        }


class Tryboot:
    """The Bootloader of devices whose firmware chooses between two boot partitions."""

    def __init__(
        self, config: Config, log: Log, wait: Wait = plain_wait, *, host: Host | None = None
    ) -> None:
        self._config = config
        self._log = log
        self._wait = wait
        self._host = host or Host()
        self._slots = Slots(config.rootfs_part_a, config.rootfs_part_b, host=self._host)
        self._path = os.path.join(config.datastore, "tryboot.json")

    # Bootloader

    def read(self, *names: str) -> dict[str, str]:
        """Return those variables that are set; all, when none is named. Raises BootloaderError, SlotError."""
        values = _Situation(self).variables
        return {name: values[name] for name in names or _VARIABLES if values.get(name)}

    def write(self, values: Mapping[str, str]) -> None:
        """Set all values or none. Raises BootloaderError, also when reading back differs."""
        if unknown := sorted(set(values) - set(_VARIABLES)):
            raise BootloaderError(f"{', '.join(unknown)}: the firmware has no place for more variables")
        before = _Situation(self)
        wanted = {**before.variables, **values}
        if wanted == before.variables:
            return
        part = wanted["mender_boot_part"]
        boot = self.boot_slots().get(part)
        if boot is None:
            raise BootloaderError(f"mender_boot_part={part} is neither RootfsPartA nor RootfsPartB")
        # A mounted one has its own idea of what is there; told now, and not only by the commit.
        self._slots.check_unused(self._autoboot_part())
        is_default = boot.number == before.autoboot.default
        if wanted["upgrade_available"] == "1":
            self._start_trial(part, wanted["bootcount"], is_default=is_default)
        elif is_default:
            self._save(boot_failure=wanted["boot_failure"])
        elif before.trial:
            autoboot.swap(self._autoboot_part().device)
            self._save(boot_failure=wanted["boot_failure"])
        else:  # back from a slot that was committed: no trace of its trial may be taken for one
            self._save(boot_failure=wanted["boot_failure"])
            autoboot.swap(self._autoboot_part().device)
        after = _Situation(self).variables
        if any(after[name] != value for name, value in values.items()):
            found = ", ".join(f"{name}={after[name]}" for name in values)
            raise BootloaderError(f"after setting {dict(values)} there is {found}")

    def fill(self, root: Slot) -> None:
        """Make the root slot's boot partition from its /boot, on the medium on return. Raises UpdateError."""
        from update_agent import child
        from update_agent.boot_partition import fill

        boot = self.boot_slots()[root.number]
        mount_point = os.path.join(self._config.datastore, "tryboot-root")
        done = child.run(
            lambda _channel: fill(root, boot, self._slots, mount_point),
            log=self._log,
            wait=self._wait,
            what="the boot partition",
        )
        assert isinstance(done, dict)
        try:
            os.rmdir(mount_point)
        except OSError:
            pass  # empty, and used again the next time
        self._log.info(
            f"{boot.device} holds /boot of {root.device}: {done['size_bytes']} bytes, of which "
            f"{done['written_bytes']} had to be written; read back and equal"
        )

    def reboot_command(self) -> list[str]:
        """The program that reboots into what `mender_boot_part` names; it uses up a trial's one boot."""
        if self.saved()["part"]:
            now = _Situation(self)
            if now.variables["upgrade_available"] == "1" and not now.runs_trial:
                self._save(part=now.trial, bootcount="1")
                return TRY
        return ["reboot"]

    def next_boot(self) -> list[str]:
        """The program that begins a trial whose boot was not asked for, or is wanted again after a pause.

        For the start of the agent; empty when there is none, and when it was started again in the same boot.
        """
        saved = self.saved()
        if not saved["part"] or saved["bootcount"] != "0" or saved["boot"] == self.boot_id():
            return []
        command = self.reboot_command()
        return command if command == TRY else []

    def is_started_once(self) -> bool:
        """The firmware was told to, and goes back at the next boot. Raises BootloaderError."""
        return self.firmware("tryboot") == "1" and self.firmware("partition") != self.autoboot().default

    # What is known

    def boot_slots(self) -> dict[str, Slot]:
        """The boot partition of each root partition's number."""
        roots = self._slots.both()
        boots = [
            _partition(f"BootPart{letter}", path)
            for letter, path in (("A", self._config.boot_part_a), ("B", self._config.boot_part_b))
        ]
        if boots[0].number == boots[1].number:
            raise BootloaderError(f"BootPartA and BootPartB are both partition {boots[0].number}")
        return {root.number: boot for root, boot in zip(roots, boots, strict=True)}

    def autoboot(self) -> Autoboot:
        """What the firmware will do. Raises BootloaderError when it is not between our two partitions."""
        path = self._autoboot_part().device
        found = autoboot.load(path)
        ours = {slot.number for slot in self.boot_slots().values()}
        if {found.default, found.other} != ours:
            raise BootloaderError(
                f"{path}: autoboot.txt chooses between partitions {found.default} and {found.other}, but "
                f"BootPartA and BootPartB are {' and '.join(sorted(ours))}",
                hint="one of the two is wrong; neither is touched",
            )
        return found

    def firmware(self, name: str) -> str:
        """A number that the firmware left in the device tree. Raises BootloaderError."""
        path = os.path.join(self._host.bootloader, name)
        try:
            with open(path, "rb") as file:
                return str(int.from_bytes(file.read(4), "big"))
        except OSError as error:
            raise BootloaderError(
                f"cannot read {path}: {os.strerror(error.errno or 0)}",
                hint="tryboot needs a Raspberry Pi 4 or 5 whose firmware started Linux itself, not U-Boot",
            ) from error

    def saved(self) -> dict[str, str]:
        """What we keep ourselves; empty texts for what is not there. Raises BootloaderError."""
        values = dict.fromkeys(_KEYS, "")
        try:
            with open(self._path, "rb") as file:
                document = json.loads(file.read())
            values.update({name: str(document[name]) for name in _KEYS})
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BootloaderError(
                f"cannot use {self._path}: {error or 'not what we wrote'}",
                hint="delete it: what starts is decided by autoboot.txt alone",
            ) from error
        return values

    def boot_id(self) -> str:
        """The kernel's name for this boot. Raises BootloaderError."""
        try:
            with open(self._host.boot_id, encoding="ascii") as file:
                return file.read().strip()
        except OSError as error:
            raise BootloaderError(f"cannot read {self._host.boot_id}: {error}") from error

    # Parts of the above

    def _start_trial(self, part: str, bootcount: str, *, is_default: bool) -> None:
        if is_default:
            raise BootloaderError(f"partition {part} cannot be tried: it is what starts anyway")
        try:
            can_do = int(self.firmware("capabilities")) & _TRYBOOT_A_B
        except BootloaderError:
            can_do = 1  # not told: the trial will show
        if not can_do:
            raise BootloaderError(
                "this board's boot loader does not know tryboot_a_b", hint="renew it: rpi-eeprom-update"
            )
        self._save(part=part, bootcount=bootcount)

    def _save(self, **values: str) -> None:
        document = {**dict.fromkeys(_KEYS, ""), **values, "boot": self.boot_id()}
        try:
            replace(self._path, json.dumps(document, sort_keys=True).encode() + b"\n")
        except OSError as error:
            raise BootloaderError(
                f"cannot save {self._path}: {os.strerror(error.errno or 0)}",
                hint="is the data partition mounted, writable and not full?",
            ) from error

    def _autoboot_part(self) -> Slot:
        return _partition("AutobootPart", self._config.autoboot_part)


def _partition(key: str, path: str) -> Slot:
    """A partition that mender.conf names. Raises BootloaderError."""
    slot = Slot(path, os.path.realpath(path))
    if not path or not os.path.exists(slot.device) or not slot.number:
        raise BootloaderError(
            f"{key} is {path or 'not set'}" + (", which is no partition" if path else ""),
            hint="for tryboot mender.conf names AutobootPart, BootPartA, BootPartB, such as /dev/mmcblk0p1",
        )
    return slot
