# SPDX-License-Identifier: Apache-2.0
"""Boards for tests: virtual ones, or the one that `--lg-env FILE` describes (README.md).

test_ota.py runs on any board, through labgrid, and on one board for all its tests. The others look into the
card and talk to U-Boot, which only the bench can: each of their tests makes a virtual board for itself.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from labgrid import Environment
from labgrid.config import Config

from update_tools.bench import boards, layer, rootfs
from update_tools.bench.qemu import DESK, Board
from update_tools.server import run

from .device import Device
from .field import SETTINGS, Field
from .systems import Systems

KIND = "virt64"
ENVS = Path(__file__).parent / "envs"
VIRTUAL = (ENVS / "virt64.yaml", ENVS / "virt32.yaml")
Images = Callable[..., Path]
NewBoard = Callable[..., Board]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Which boards a test with a `lab` runs on.

    Named by --lg-env: that one. Else the first virtual board, and the others for tests marked every_board.
    A test that needs a feature, by its mark, is not there for a board whose environment does not list it.
    """
    if "lab" not in metafunc.fixturenames:
        return
    named = metafunc.config.getoption("lg_env") or os.environ.get("LG_ENV")
    files = [Path(named)] if named else list(VIRTUAL)
    if not named and not metafunc.definition.get_closest_marker("every_board"):
        files = files[:1]
    if needs := metafunc.definition.get_closest_marker("needs"):
        files = [
            file for file in files if set(needs.args) <= set(_target(Config(str(file))).get("features", ()))
        ]
    # One board's tests stay together when boards run side by side.
    chosen = [pytest.param(file, id=file.stem, marks=pytest.mark.xdist_group(file.stem)) for file in files]
    metafunc.parametrize("lab", chosen, indirect=True, scope="session")


def _target(config: Config) -> dict[str, Any]:
    return dict(config.get_targets()["main"])


class Lab:
    """One board for many tests, the server that it knows, and what both agree on."""

    def __init__(self, device: Device, server: run.Server, systems: Systems, desk: str) -> None:
        self.device = device
        self.server = server
        self.systems = systems
        self.random_cuts = int(device.target.env.config.get_option("random_cuts", 3))
        self.is_clean = True
        device.boot()
        self.first_start = device.check("df -k /data")
        device.configure({**SETTINGS, "ServerURL": f"http://{desk}:{server.port}"})
        self.field = Field(device, server.management(), systems)
        self.field.until(self.field.management.known_devices, "the server's acceptance of the board")

    def console(self) -> str:
        """The last that a virtual board said; for real ones labgrid's --lg-log keeps it."""
        board = getattr(self.device.power, "board", None)
        return "\n".join(board.console.log.read_text(errors="replace").splitlines()[-30:]) if board else ""

    def recover(self) -> None:
        """After a test that failed: end what it began, and go on with what runs."""
        field = self.field
        if field.deployment and field.told["status"] not in {"success", "failure"}:
            field.management.abort(field.deployment)
        self.device.cut_and_boot()
        field.until(lambda: self.device.environment()["upgrade_available"] == "0", "an end of the trial")
        self.field = Field(self.device, field.management, self.systems)
        self.is_clean = True


@contextmanager
def opened(file: Path, place: Path, extra_files: Mapping[str, str | bytes] | None = None) -> Iterator[Lab]:
    """The board of an environment, booted and known to its server; a virtual one has `extra_files`."""
    environment = Environment(str(file))
    config = environment.config
    machine = config.get_option("machine")
    target = environment.get_target()
    values = layer.variables(machine)
    if "BenchDriver" in _target(config)["drivers"]:
        row = boards.kind(machine)
        needs_qemu(row)
        good = rootfs.make_rootfs(place / "good.ext4", row, version="1", extra_files=extra_files)
        driver = target.get_driver("BenchDriver", activate=False)
        driver.board = Board.create(place / "board", good, kind=machine)
        desk, listen = DESK, "127.0.0.1"
    else:
        good = Path(config.get_image_path("rootfs"))
        desk = listen = config.get_option("desk")
    systems = Systems(place, good, kernel=values["UPDATE_KERNEL"], device_type=values["UPDATE_DEVICE_TYPE"])
    with run.start(place / "server", host=listen, auto_accept=True) as server:
        try:
            yield Lab(Device(target), server, systems, desk)
        finally:
            environment.get_target().cleanup()


@pytest.fixture(scope="session")
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """The board of an environment, for all tests of this run."""
    place = tmp_path_factory.mktemp(request.param.stem)
    with opened(request.param, place) as made:
        yield made
    shutil.rmtree(place)


@pytest.fixture
def field(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Field]:
    """The board, with nothing under way. What its agent said last is shown if the test fails."""
    if not lab.is_clean:
        lab.recover()
    lab.is_clean = False
    yield lab.field
    lab.is_clean = not request.node.stash.get(FAILED, False)
    if not lab.is_clean:
        print(f"--- the console, last lines\n{lab.console()}")
        print(f"--- the agent, last lines\n{lab.device.agent_log()}")


FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[pytest.TestReport]:
    report = yield
    if report.failed:
        item.stash[FAILED] = True
    return report


def needs_qemu(row: boards.Kind) -> None:
    """Skip without the emulator."""
    if shutil.which(row.qemu[0]) is None:
        pytest.skip(f"{row.qemu[0]} is not installed (apt-get install qemu-system-arm)")


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    """`images("2", "panic")`: the root file system of a version, in one of rootfs.VARIANTS."""
    row = boards.kind(KIND)
    needs_qemu(row)
    place = tmp_path_factory.mktemp("images")

    def image(version: str, variant: str = "good") -> Path:
        made = place / f"{version}-{variant}.ext4"
        return made if made.exists() else rootfs.make_rootfs(made, row, version=version, variant=variant)

    return image


@pytest.fixture
def new_board(tmp_path: Path, images: Images) -> Iterator[NewBoard]:
    """`new_board(slot_a=..., slot_b=..., settings=...)`: a board that is off; version 1 is in A by default.

    Its power is cut after the test, and what its console said last is shown if the test fails.
    """
    made: list[Board] = []

    def board(slot_a: Path | None = None, **options: Any) -> Board:
        made.append(Board.create(tmp_path / f"board{len(made)}", slot_a or images("1"), kind=KIND, **options))
        return made[-1]

    yield board
    for old in made:
        if old.is_running():
            old.power_cut()
        if old.console.log.exists():
            print(f"--- console of {old.directory.name}, last lines")
            print("\n".join(old.console.log.read_text(errors="replace").splitlines()[-30:]))
        shutil.rmtree(old.directory)


@pytest.fixture
def board(new_board: NewBoard) -> Board:
    """A board with version 1 in slot A, booted."""
    made = new_board()
    made.boot()
    return made
