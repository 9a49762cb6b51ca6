# SPDX-License-Identifier: Apache-2.0
"""The real fw_printenv and fw_setenv on redundant environments in files."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from update_agent import bootloader
from update_agent.errors import BootloaderError

ENV_BYTES = 0x4000
pytestmark = pytest.mark.skipif(
    not all(shutil.which(tool) for tool in ("fw_printenv", "fw_setenv", "mkenvimage")),
    reason="needs fw_printenv, fw_setenv (libubootenv-tool) and mkenvimage (u-boot-tools)",
)
VALUES = {"mender_boot_part": "2", "mender_boot_part_hex": "2", "upgrade_available": "0", "bootcount": "0"}


class Medium:
    """Two copies of an environment in one file, and the tools pointed at it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path = directory / "medium"
        self.path.write_bytes(bytes(4 * ENV_BYTES))
        (directory / "fw_env.config").write_text(
            f"{self.path} 0x0 {ENV_BYTES:#x}\n{self.path} {ENV_BYTES:#x} {ENV_BYTES:#x}\n"
        )
        self.calls = directory / "calls"
        self.printenv = self.tool("fw_printenv")
        self.setenv = self.tool("fw_setenv")
        self.uboot = bootloader.UBoot(self.printenv, self.setenv)

    def tool(self, name: str, options: str = "") -> str:
        path = self.directory / f"my-{name}"
        config = self.directory / "fw_env.config"
        path.write_text(f'#!/bin/sh\necho {name} >> {self.calls}\nexec {name} -c {config} {options} "$@"\n')
        path.chmod(0o755)
        return str(path)

    def seed(self, values: dict[str, str]) -> None:
        text = "".join(f"{name}={value}\n" for name, value in values.items())
        image = self.directory / "image"
        subprocess.run(
            ["mkenvimage", "-r", "-s", str(ENV_BYTES), "-o", image, "-"], input=text.encode(), check=True
        )
        self.path.write_bytes(image.read_bytes() * 2 + bytes(2 * ENV_BYTES))

    def tear(self, copy: int) -> None:
        with self.path.open("r+b") as file:
            file.seek(copy * ENV_BYTES + 2000)
            file.write(b"torn")

    @property
    def writes(self) -> int:
        return self.calls.read_text().split().count("fw_setenv")


@pytest.fixture
def medium(tmp_path: Path) -> Medium:
    medium = Medium(tmp_path)
    medium.seed(VALUES)
    return medium


def test_read_all_some_and_missing(medium: Medium) -> None:
    assert medium.uboot.read() == VALUES
    assert medium.uboot.read("bootcount", "boot_failure") == {"bootcount": "0"}


def test_several_values_are_one_write_and_read_back(medium: Medium) -> None:
    wanted = {"mender_boot_part": "3", "upgrade_available": "1", "boot_failure": "kernel panic: x = y"}
    medium.uboot.write(wanted)
    assert medium.uboot.read() == {**VALUES, **wanted}
    assert medium.writes == 1


def test_values_that_are_set_already_are_not_written(medium: Medium) -> None:
    before = medium.path.read_bytes()
    medium.uboot.write({**VALUES, "boot_failure": ""})
    assert medium.path.read_bytes() == before
    assert medium.writes == 0


def test_an_empty_value_deletes(medium: Medium) -> None:
    medium.uboot.write({"boot_failure": "x"})
    medium.uboot.write({"boot_failure": ""})
    assert medium.uboot.read() == VALUES


@pytest.mark.parametrize("newest_torn", [True, False])
def test_one_torn_copy_does_not_matter(medium: Medium, newest_torn: bool) -> None:
    medium.uboot.write({"bootcount": "7"})
    blocks = [medium.path.read_bytes()[start : start + ENV_BYTES] for start in (0, ENV_BYTES)]
    newest = next(number for number, block in enumerate(blocks) if b"bootcount=7" in block)
    medium.tear(newest if newest_torn else 1 - newest)
    assert medium.uboot.read("bootcount") == {"bootcount": "0" if newest_torn else "7"}
    medium.uboot.write({"upgrade_available": "1"})
    assert medium.uboot.read("upgrade_available") == {"upgrade_available": "1"}


@pytest.mark.parametrize("defaults", ["", "-f defaults"])
def test_a_broken_environment_is_told_and_never_written(
    medium: Medium, defaults: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With a file of defaults (Yocto installs /etc/u-boot-initial-env) the tools exit with 0 on a broken one.
    monkeypatch.chdir(medium.directory)
    (medium.directory / "defaults").write_text("mender_boot_part=2\n")
    uboot = bootloader.UBoot(medium.tool("fw_printenv", defaults), medium.tool("fw_setenv", defaults))
    medium.tear(0)
    medium.tear(1)
    before = medium.path.read_bytes()
    with pytest.raises(BootloaderError, match=r"the boot environment is damaged: .* not touched"):
        uboot.read("mender_boot_part")
    with pytest.raises(BootloaderError, match="damaged"):
        uboot.write({"mender_boot_part": "3"})
    assert medium.path.read_bytes() == before
    assert medium.writes == 0


def test_the_warning_of_u_boots_own_tools_counts_as_broken(tmp_path: Path) -> None:
    tool = tmp_path / "fw_printenv"
    tool.write_text(
        "#!/bin/sh\necho 'Warning: Bad CRC, using default environment' >&2\necho mender_boot_part=2\n"
    )
    tool.chmod(0o755)
    with pytest.raises(BootloaderError, match="damaged"):
        bootloader.UBoot(str(tool)).read()


@pytest.mark.parametrize(
    ("canary", "good"),
    [
        ({"mender_check_saveenv_canary": "1"}, False),
        ({"mender_check_saveenv_canary": "1", "mender_saveenv_canary": "0"}, False),
        ({"mender_check_saveenv_canary": "1", "mender_saveenv_canary": "1"}, True),
        ({"mender_check_saveenv_canary": "0"}, True),
    ],
)
def test_canary(medium: Medium, canary: dict[str, str], good: bool) -> None:
    medium.seed({**VALUES, **canary})
    if good:
        assert medium.uboot.read("bootcount") == {"bootcount": "0"}
        return
    for attempt in (medium.uboot.read, lambda: medium.uboot.write({"bootcount": "1"})):
        with pytest.raises(BootloaderError, match="mender_saveenv_canary is not"):
            attempt()
    assert medium.writes == 0


def test_missing_tools_and_configuration(medium: Medium) -> None:
    with pytest.raises(
        BootloaderError, match=r"cannot read the boot environment: .*no-such-tool.*libubootenv"
    ):
        bootloader.UBoot("no-such-tool").read()
    (medium.directory / "fw_env.config").unlink()
    with pytest.raises(BootloaderError, match=r"fw_env\.config"):
        medium.uboot.read()


def test_a_write_that_did_not_take_is_noticed(medium: Medium) -> None:
    with pytest.raises(BootloaderError, match=r"exited with 0, but the environment now has bootcount=0"):
        bootloader.UBoot(medium.printenv, "true").write({"bootcount": "1"})


def test_a_write_that_fails_is_told(medium: Medium) -> None:
    with pytest.raises(BootloaderError, match=r"false exited with 1 while setting bootcount=1"):
        bootloader.UBoot(medium.printenv, "false").write({"bootcount": "1"})


@pytest.mark.parametrize(("name", "value"), [("a b", "1"), ("", "1"), ("a=b", "1"), ("a", "x\nb=2")])
def test_what_cannot_be_stored_is_refused(medium: Medium, name: str, value: str) -> None:
    with pytest.raises(BootloaderError, match="cannot be stored"):
        medium.uboot.write({name: value})
    assert not medium.calls.exists()


def test_grub_tools_are_preferred(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (("print", "echo mender_boot_part=2"), ("set", "exit 0")):
        path = tmp_path / f"grub-mender-grubenv-{name}"
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert bootloader.find().read() == {"mender_boot_part": "2"}
