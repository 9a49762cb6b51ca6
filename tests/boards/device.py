# SPDX-License-Identifier: Apache-2.0
"""A board as the tests see it, virtual or real: a power switch, a root shell, what the device says of itself.

Nothing here knows what lies behind labgrid's drivers.
"""

from __future__ import annotations

import json
import time
from typing import Any

from labgrid import Target
from labgrid.driver import ExecutionError

BOOT_S = 300.0


class Slot:
    """A root partition: its device, its number."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.number = int(device[len(device.rstrip("0123456789")) :])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Slot) and self.device == other.device

    def __hash__(self) -> int:
        return hash(self.device)

    def __repr__(self) -> str:
        return self.device


class Device:
    """The board of a labgrid target."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.power = target.get_driver("PowerProtocol")
        self.shell = target.get_driver("CommandProtocol", activate=False)
        self._fact_cache: dict[str, Any] = {}

    # Power

    def boot(self) -> None:
        """Switch on and wait for a shell."""
        self.power.on()
        self.wait_up()

    def cut_power(self) -> None:
        """Take the power away, now."""
        self.power.off()

    def cut_and_boot(self) -> Slot:
        """Power cut, and on again. Returns what came up."""
        self.cut_power()
        self.boot()
        return self.runs_from()

    def wait_up(self) -> None:
        """Wait for a shell after the power came."""
        self.target.deactivate(self.shell)
        self.target.activate(self.shell)  # labgrid's waits for the log-in prompt
        if hasattr(self.shell, "wait_up"):
            self.shell.wait_up(BOOT_S)

    def log_in(self) -> None:
        """Have a shell, whatever happened on the console: a board that updates itself restarts by itself."""
        if not hasattr(self.shell, "wait_up"):  # the bench's shell needs no log-in
            self.target.deactivate(self.shell)
            self.shell.console.sendline("")  # so that the prompt is seen at once
            self.target.activate(self.shell)

    # Shell

    def run(self, command: str, timeout_s: float = 60.0) -> tuple[str, int]:
        """Output and exit status."""
        lines, _, code = self.shell.run(command, timeout=timeout_s)
        return "\n".join(lines), code

    def check(self, command: str, timeout_s: float = 60.0) -> str:
        """Output of a command that must succeed."""
        output, code = self.run(command, timeout_s)
        if code != 0:
            raise ExecutionError(f"{command!r} exited with {code}: {output}")
        return output

    # What it is

    def fact(self, command: str) -> str:
        """Output of a command whose answer does not change."""
        if command not in self._fact_cache:
            self._fact_cache[command] = self.check(command)
        return str(self._fact_cache[command])

    @property
    def type(self) -> str:
        """Device type."""
        return self.fact("cat /var/lib/mender/device_type").strip().partition("=")[2]

    @property
    def slots(self) -> tuple[Slot, Slot]:
        """A and B, as the agent's configuration names them."""
        settings = json.loads(self.fact("cat /etc/mender/mender.conf"))
        return Slot(settings["RootfsPartA"]), Slot(settings["RootfsPartB"])

    def other(self, slot: Slot) -> Slot:
        a, b = self.slots
        return b if slot == a else a

    # What it does

    def runs_from(self) -> Slot:
        """The slot that the kernel was told to take."""
        words = self.check("cat /proc/cmdline").split()
        (root,) = [word.removeprefix("root=") for word in words if word.startswith("root=")]
        return Slot(root)

    def written(self, slot: Slot) -> int:
        """Bytes that have gone to the medium for a slot since this start."""
        name = slot.device.rpartition("/")[2]
        return int(self.check(f"cat /sys/class/block/{name}/stat").split()[6]) * 512

    def artifact(self) -> str:
        """Name of the artifact that the agent says is installed."""
        return self.check("update-agent show-artifact").strip()

    def paused_at(self) -> str:
        """Where the agent says that it waits; empty if it does not, or is not up yet."""
        output, code = self.run("update-agent status --json")
        pause = json.loads(output)["pause"] if code == 0 else None
        return str(pause["point"]) if pause else ""

    def configure(self, settings: dict[str, Any]) -> None:
        """Lay settings over the configuration in the data partition, and start again with them."""
        path = "/var/lib/mender/mender.conf"
        output, code = self.run(f"cat {path}")
        document = {**(json.loads(output) if code == 0 else {}), **settings}
        self.check(f"printf '%s\\n' '{json.dumps(document)}' >{path}; sync")
        self.cut_and_boot()

    def agent_log(self) -> str:
        """The last it said, for the message of a test that failed."""
        return self.run("tail -n 40 /data/log/update-agent.log || journalctl -n 40 -u mender-updated")[0]

    # U-Boot's environment

    def environment(self) -> dict[str, str]:
        """As Linux reads it."""
        lines = self.check("fw_printenv").splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def environment_copies(self) -> list[tuple[str, int, int]]:
        """Device, offset and size in bytes of both copies, the newer one first (U-Boot's counter tells)."""
        rows = [line.split() for line in self.fact("cat /etc/fw_env.config").splitlines()]
        rows = [row for row in rows if row and not row[0].startswith("#")]
        assert len(rows) == 2, "the environment is not redundant"
        copies = [(row[0], int(row[1], 0), int(row[2], 0)) for row in rows]
        first, second = (self._counter(device, offset) for device, offset, _ in copies)
        second_is_newer = second == 0 if {first, second} == {0, 255} else second > first
        return copies[::-1] if second_is_newer else copies

    def _counter(self, device: str, offset: int) -> int:
        # After the four bytes of the checksum. Straight from the medium: U-Boot does not know Linux' cache.
        read = f"dd if={device} bs=1 skip={offset + 4} count=1 2>/dev/null | hexdump -e '1/1 \"%u\"'"
        return int(self.check(read))

    def tear_environment(self, which: str) -> None:
        """Damage the newer copy, the older one or both, as a write that broke off would."""
        newer, older = self.environment_copies()
        for device, offset, _ in {"newer": [newer], "older": [older], "both": [newer, older]}[which]:
            self.check(f"printf 'torn by a test' | dd of={device} bs=1 seek={offset + 24} conv=notrunc,fsync")


def until(is_there: Any, what: str, device: Device, limit_s: float = 900.0) -> None:
    """Wait for something on the board or the server."""
    deadline = time.monotonic() + limit_s
    while not is_there():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come; the agent says:\n{device.agent_log()}")
        time.sleep(0.3)
