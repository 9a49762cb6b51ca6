# SPDX-License-Identifier: Apache-2.0
"""labgrid drivers for the bench's virtual boards: power switch, shell, serial console.

labgrid's own QEMUDriver ends QEMU in good order, which is no power cut, and its disk is not an SD card.
An environment names this file under `imports:`.
"""

from __future__ import annotations

import time

import attr
import pexpect
from labgrid.driver import Driver
from labgrid.driver.commandmixin import CommandMixin
from labgrid.driver.consoleexpectmixin import ConsoleExpectMixin
from labgrid.driver.exception import ExecutionError
from labgrid.factory import target_factory
from labgrid.protocol import CommandProtocol, ConsoleProtocol, PowerProtocol
from labgrid.step import step

from update_tools.bench import boards
from update_tools.bench.qemu import Board


@target_factory.reg_driver
@attr.s(eq=False)
class BenchDriver(Driver, PowerProtocol):
    """The power switch. `kind`: a row of update_tools.bench.boards; `board` is set by who makes the card."""

    kind = attr.ib(validator=attr.validators.in_(boards.BOARDS))

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self.board: Board | None = None

    def on_deactivate(self) -> None:
        self._cut()

    @property
    def made(self) -> Board:
        assert self.board is not None, "no card was made for this board"
        return self.board

    @Driver.check_active
    @step()
    def on(self) -> None:
        """Power on; does not wait."""
        self.made.power_on()

    @Driver.check_active
    @step()
    def off(self) -> None:
        """Take the power away."""
        self._cut()

    @Driver.check_active
    @step()
    def cycle(self) -> None:
        self._cut()
        self.made.power_on()

    def _cut(self) -> None:
        if self.made.is_running():
            self.made.power_cut()


@target_factory.reg_driver
@attr.s(eq=False)
class BenchShellDriver(CommandMixin, Driver, CommandProtocol):
    """The root shell by the bench's own means: commands of any length, and no prompt to guess."""

    bindings = {"bench": BenchDriver}

    @Driver.check_active
    @step()
    def wait_up(self, timeout: float) -> None:
        """Wait until a system has come up since the power was switched on."""
        self.bench.made.wait_boot(timeout)

    @Driver.check_active
    @step(args=["cmd"], result=True)
    def run(self, cmd: str, timeout: float = 60.0) -> tuple[list[str], list[str], int]:
        said = self.bench.made.shell(cmd, timeout)
        return said.output.splitlines(), [], said.code

    @Driver.check_active
    def run_check(self, cmd: str, timeout: float = 60.0) -> list[str]:
        lines, errors, code = self.run(cmd, timeout=timeout)
        if code != 0:
            raise ExecutionError(f"{cmd!r} exited with {code}", stdout=lines, stderr=errors)
        return lines

    @Driver.check_active
    def get_status(self) -> int:
        return int(self.bench.made.is_running())


@target_factory.reg_driver
@attr.s(eq=False)
class BenchConsoleDriver(ConsoleExpectMixin, Driver, ConsoleProtocol):
    """The serial console as an adapter gives it: bytes. For labgrid's ShellDriver, as on real boards."""

    bindings = {"bench": BenchDriver}
    txdelay = attr.ib(default=0.0, validator=attr.validators.instance_of(float))
    txchunk = attr.ib(default=1, validator=attr.validators.instance_of(int))

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self._position = 0

    def open(self) -> None:
        """Nothing is kept open: the bench writes all of it to a file."""

    def close(self) -> None:
        """The same."""

    def _read(self, size: int = 1, timeout: float = 0.0, max_size: int | None = None) -> bytes:
        log = self.bench.made.console.log
        deadline = time.monotonic() + timeout
        while True:
            if log.stat().st_size < self._position:  # the power was switched on again
                self._position = 0
            with open(log, "rb") as file:
                file.seek(self._position)
                data = file.read(max_size or -1)
            self._position += len(data)
            if data:
                return data
            if time.monotonic() >= deadline:
                raise pexpect.TIMEOUT(f"the board was silent for {timeout:g} s")
            time.sleep(0.02)

    def _write(self, data: bytes) -> int:
        console = self.bench.made.console
        console.type(data.decode())
        console.release()
        return len(data)
