# SPDX-License-Identifier: Apache-2.0
"""The console of a board, played by a thread with a real shell behind a real socket."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from update_tools.bench.console import Console
from update_tools.bench.tools import BenchError


class Machine(threading.Thread):
    """Echoes each typed line into the log as a terminal does, runs it, and appends what it said."""

    def __init__(self, place: Path) -> None:
        super().__init__(daemon=True)
        self.log = place / "console.log"
        self.log.write_bytes(b"")
        self.path = place / "sock"
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(self.path))
        self.listener.listen()
        self.has_power = True

    def run(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            pending = b""
            while data := connection.recv(16):  # as much as a serial port holds
                pending += data
                while b"\n" in pending:
                    line, _, pending = pending.partition(b"\n")
                    self.say(b"# \x1b[6n" + line + b"\n")
                    done = subprocess.run(["sh", "-c", line], stdout=subprocess.PIPE, check=False)
                    self.say(done.stdout)
            connection.close()

    def say(self, data: bytes) -> None:
        with open(self.log, "ab") as file:
            file.write(data.replace(b"\n", b"\r\n"))


@pytest.fixture
def machine() -> Iterator[Machine]:
    place = Path(tempfile.mkdtemp())  # short: a socket's path may have 107 bytes only
    made = Machine(place)
    made.start()
    yield made
    made.listener.shutdown(socket.SHUT_RDWR)
    made.listener.close()
    made.join(10)
    shutil.rmtree(place)


@pytest.fixture
def console(machine: Machine) -> Console:
    return Console(machine.log, machine.path, lambda: machine.has_power)


@pytest.mark.parametrize(
    ("command", "code", "output"),
    [
        ("echo one; echo two", 0, "one\ntwo\n"),
        ("echo out; echo err >&2; exit 7", 7, "out\nerr\n"),
        ("printf 'no line end'", 0, "no line end"),
        ("""echo "it's \\$5" '"quoted"'""", 0, """it's $5 "quoted"\n"""),
        ("cat", 0, ""),  # nobody types to a command
        ("# " + "x" * 2000 + "\necho long", 0, "long\n"),
    ],
)
def test_a_command_gives_its_output_and_status(
    console: Console, command: str, code: int, output: str
) -> None:
    said = console.shell(command, 20)
    assert (said.code, said.output) == (code, output)


def test_waiting_goes_on_after_the_last_match(machine: Machine, console: Console) -> None:
    machine.say(b"up\nup again\n")
    console.wait_for("up", 5)
    assert console.wait_for("up .*", 5)[0] == "up again\r"
    with pytest.raises(BenchError, match="within 0 s"):
        console.wait_for("up", 0)


def test_a_board_without_power_is_not_waited_for(machine: Machine, console: Console) -> None:
    machine.log.with_name("qemu.log").write_text("qemu: no such machine\n")
    machine.has_power = False
    with pytest.raises(BenchError, match="lost power before") as caught:
        console.wait_for("never", 60)
    assert caught.value.hint == "qemu: no such machine"


def test_nobody_answers_when_the_board_is_off(tmp_path: Path) -> None:
    console = Console(tmp_path / "log", tmp_path / "sock", lambda: False)
    with pytest.raises(BenchError, match="cannot be reached"):
        console.type("x")
