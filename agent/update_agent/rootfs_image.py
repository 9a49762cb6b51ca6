# SPDX-License-Identifier: Apache-2.0
"""The built-in rootfs-image module: an image onto the inactive partition, the boot loader flips.

Behaves as the reference's module of that name (artifact-v3.md section 12), without a shell process, and adds
what a pause needs to survive a power cut (`hold`, `release`) and the reason of a fall-back (`boot_failure`).

Boot loader contract: while `upgrade_available` is 1 each boot counts in `bootcount`; above `bootlimit` (1) it
boots the other partition, sets `mender_boot_part` back and `upgrade_available` to 0, and our boot script says
in `boot_failure` why.
"""

from __future__ import annotations

import os

from update_agent.errors import BootloaderError, PayloadError
from update_agent.slots import Pair, Slot, Slots
from update_agent.store import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from update_agent.bootloader import Bootloader
    from update_agent.log import Log
    from update_agent.payload import Header, Tree
    from update_agent.slot_writer import Source

VARIABLES = ("mender_boot_part", "upgrade_available", "bootcount", "boot_failure")
_FLIPPED = ("ArtifactInstall_Leave", "ArtifactReboot_Enter")  # installed, not booted
_TRIED = ("ArtifactReboot_Leave", "ArtifactCommit_Enter")  # booted, not committed
ANSWERS = {"ProvidePayloadFileSizes": "Yes", "NeedsArtifactReboot": "Automatic", "SupportsRollback": "Yes"}


class RootfsImage:
    """The payload type rootfs-image. Holds no state of its own: the boot environment and the tree have it."""

    def __init__(self, tree: Tree, slots: Slots, bootloader: Bootloader, log: Log) -> None:
        self._tree = tree
        self._slots = slots
        self._bootloader = bootloader
        self._log = log
        self._calls = {
            "ArtifactInstall": self._install,
            "ArtifactVerifyReboot": self._verify_reboot,
            "ArtifactCommit": self._commit,
            "ArtifactRollback": self._rollback,
            "ArtifactVerifyRollbackReboot": self._verify_rollback_reboot,
        }

    def prepare(self, header: Header, *, current: Mapping[str, str]) -> None:
        """Make a fresh file tree; it will hold which partition was active before."""
        self._tree.create(header, current)

    def query(self, name: str) -> str:
        """Sizes yes, reboot Automatic, rollback yes."""
        return ANSWERS.get(name, "No")

    def call(self, name: str) -> None:
        """Make a call; those not listed do nothing. A missing tree is not an error here."""
        work = self._calls.get(name)
        if work is not None:
            work()

    def cleanup(self) -> None:
        """Delete the file tree."""
        self._tree.remove()

    # Taking the image in

    def download(self, files: Iterator[Source]) -> None:
        """Write the one file of the payload to the inactive partition, verified, on the medium on return."""
        from update_agent.slot_writer import install

        _, pair = self._no_update_pending("Download")
        file = next(files, None)
        if file is None:
            raise PayloadError("the rootfs-image payload has no file, it must have one")
        if not file.size:  # what the slot held before would boot, and count as the new system
            raise PayloadError(f"the image {file.name} is empty", hint="has its build failed?")
        slot = pair.inactive
        self._log.info(f"Writing {file.name} ({file.size} bytes) to {slot.device}")
        written = install(file, self._slots, slot)
        if next(files, None) is not None:
            raise PayloadError("the rootfs-image payload has more than one file")
        self._log.info(
            f"{slot.device} holds {file.name}: {written.size_bytes} bytes, of which {written.written_bytes} "
            "had to be written; read back and equal"
        )

    # Calls

    def _install(self) -> None:
        _, pair = self._no_update_pending("ArtifactInstall")
        self._bootloader.fill(pair.inactive)
        self._save_original(pair.active)
        self._flip(pair)

    def _verify_reboot(self) -> None:
        environment, pair = self._state()
        self._check_pending(environment)
        self._slots.check_root(pair)

    def _commit(self) -> None:
        environment, pair = self._state()
        self._check_pending(environment)
        self._slots.check_root(pair)
        self._bootloader.write({"upgrade_available": "0"})

    def _rollback(self) -> None:
        if not self._slots.is_configured:
            self._log.warning("RootfsPartA and RootfsPartB are not set; the boot loader has to roll back")
            return
        environment, pair = self._state()
        if environment.get("upgrade_available") == "1":
            try:
                self._bootloader.write({**_boots(pair.inactive), "upgrade_available": "0"})
            except BootloaderError as error:
                # Not committed: without our write the boot loader returns to the old system by itself.
                self._log.error(f"ArtifactRollback goes on although {error}")
            return
        original = self._original()
        if original is not None:
            self._bootloader.write({**_boots(original), "upgrade_available": "0"})

    def _verify_rollback_reboot(self) -> None:
        environment, pair = self._state()
        if environment.get("upgrade_available") == "1":
            raise PayloadError(
                "upgrade_available is still 1 after the rollback reboot",
                hint="does the boot loader save the environment that the agent reads?",
            )
        self._slots.check_root(pair)

    # Pauses

    def hold(self, point: str) -> None:
        """Let a power cut during the pause change nothing: the same system boots again, still undecided.

        Raises PayloadError with the cause if the boot loader fell back during a pause of the new system.
        """
        if point not in (*_FLIPPED, *_TRIED):
            return
        environment, pair = self._state()
        if point in _TRIED:
            self._check_pending(environment)
            if self._slots.runs_from(pair.active):
                # The boot count is at its limit now; one more boot would fall back.
                self._bootloader.write({"bootcount": "0"})
        elif environment.get("upgrade_available") == "1" and self._slots.runs_from(pair.inactive):
            self._bootloader.write({**_boots(pair.inactive), "upgrade_available": "0", "bootcount": "0"})

    def release(self, point: str) -> None:
        """Flip again after a pause before the reboot. Nothing if the flip is (still) there."""
        if point not in _FLIPPED:
            return
        environment, pair = self._state()
        if environment.get("upgrade_available") == "1":
            return
        self._slots.check_root(pair)
        original = self._original()
        if original is None or original.number != pair.active.number:
            raise PayloadError(
                f"cannot switch to {pair.inactive.device} after the pause: {self._tree / 'tmp/orig-part'} "
                f"does not say that {pair.active.device} was active when the update was installed"
            )
        self._flip(pair)

    def rebooted(self, point: str) -> bool:
        """Whether the system runs from the new, uncommitted partition while paused before the reboot."""
        if point not in _FLIPPED:
            return False
        environment, pair = self._state()
        return environment.get("upgrade_available") == "1" and self._slots.runs_from(pair.active)

    def leave_trial(self, reason: str) -> bool:
        """If the running system is on trial, have the next boot be of the other one, for this reason.

        Whether it is. Raises SlotError and BootloaderError.
        """
        if self._bootloader.is_started_once():
            return True
        if not self._slots.is_configured:
            return False
        environment, pair = self._state()
        if environment.get("upgrade_available") != "1" or not self._slots.runs_from(pair.active):
            return False
        failure = f"partition {pair.active.number}: {reason}"
        self._bootloader.write({**_boots(pair.inactive), "upgrade_available": "0", "boot_failure": failure})
        return True

    # Parts of the above

    def _state(self) -> tuple[dict[str, str], Pair]:
        """The boot environment's variables, and the slots as it sees them."""
        self._slots.both()  # a wrong configuration is the better message than what the tools say then
        environment = self._bootloader.read(*VARIABLES)
        return environment, self._slots.pair(environment.get("mender_boot_part", ""))

    def _no_update_pending(self, what: str) -> tuple[dict[str, str], Pair]:
        environment, pair = self._state()
        if environment.get("upgrade_available") != "0":
            found = environment.get("upgrade_available") or "not set"
            raise PayloadError(
                f"{what} needs upgrade_available=0, but it is {found}",
                hint="another update waits for commit or rollback"
                if found == "1"
                else "the boot environment must define it",
            )
        self._slots.check_root(pair)
        return environment, pair

    def _check_pending(self, environment: Mapping[str, str]) -> None:
        """Raise PayloadError with the cause when the boot loader has fallen back."""
        if environment.get("upgrade_available") == "1":
            return
        part = environment.get("mender_boot_part", "?")
        reason = environment.get("boot_failure") or "no reason recorded"
        raise PayloadError(f"the boot loader fell back to partition {part}: {reason}")

    def _flip(self, pair: Pair) -> None:
        self._bootloader.write(
            {**_boots(pair.inactive), "upgrade_available": "1", "bootcount": "0", "boot_failure": ""}
        )

    def _save_original(self, active: Slot) -> None:
        """Remember the active partition: after a commit it is where a rollback leads."""
        path = self._tree / "tmp/orig-part"
        text = f"orig_part_num={active.number}\norig_part_num_hex={active.number_hex}\n"
        try:
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            replace(path, text.encode())
        except OSError as error:
            raise PayloadError(
                f"cannot save the active partition's number to {path}: {error}",
                hint="is the data partition mounted, writable and not full?",
            ) from error

    def _original(self) -> Slot | None:
        """The slot that was active when the update was installed; None if that was not saved."""
        path = self._tree / "tmp/orig-part"
        try:
            with open(path, encoding="ascii") as file:
                values = dict(line.strip().split("=", 1) for line in file if "=" in line)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise PayloadError(f"cannot read {path}: {error}") from error
        for slot in self._slots.both():
            if slot.number == values.get("orig_part_num"):
                return slot
        raise PayloadError(
            f"{path} says that partition {values.get('orig_part_num')} was active, which is none of the two"
        )


def _boots(slot: Slot) -> dict[str, str]:
    """The variables that make the boot loader take this slot."""
    return {"mender_boot_part": slot.number, "mender_boot_part_hex": slot.number_hex}
