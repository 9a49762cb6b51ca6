# SPDX-License-Identifier: Apache-2.0
"""The boot script and the saved environment on a real U-Boot and kernel, under power cuts and damage.

No agent takes part: trials are begun and committed as it does, by one fw_setenv.
"""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from update_agent.fat16 import Fat16
from update_tools.bench import layer, uboot
from update_tools.bench.qemu import Board

from .conftest import Images, NewBoard

pytestmark = pytest.mark.board

TRIAL_OF_B = {
    "mender_boot_part": "3",
    "mender_boot_part_hex": "3",
    "upgrade_available": "1",
    "bootcount": "0",
}


def set_env(board: Board, **values: str) -> None:
    """One environment write by Linux, seen on the card before we go on."""
    lines = "".join(f"{name}={value}\\n" for name, value in values.items())
    board.check(f"printf '{lines}' | fw_setenv -s -")
    on_card = board.read_env().values
    assert {name: on_card.get(name, "") for name in values} == values


def env_on_board(board: Board) -> dict[str, str]:
    lines = board.check("fw_printenv").splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


def state(board: Board) -> tuple[str, str, str]:
    """Slot, trial, and why the boot script went back."""
    values = board.read_env().values
    return values["mender_boot_part"], values["upgrade_available"], values.get("boot_failure", "")


def test_slot_a_comes_up_with_bus_agent_and_identity(board: Board) -> None:
    assert "/dev/mmcblk0p2 / ext4 ro" in board.check("cat /proc/mounts").replace(
        "/dev/root", "/dev/mmcblk0p2"
    )
    assert f"mac={board.mac}" in board.check("/usr/share/mender/identity/mender-device-identity")
    assert board.check("cat /var/lib/mender/device_type").strip() == "device_type=virt64"
    call = "dbus-send --system --print-reply --dest=org.freedesktop.DBus / org.freedesktop.DBus.GetId"
    assert "string" in board.check(call)
    assert board.check("update-agent --version").strip()


def test_linux_sees_the_card_that_the_wks_describes(board: Board) -> None:
    each = "for p in mmcblk0p*; do cat $p/partition $p/start $p/size; done"
    words = [int(word) for word in board.check(f"cd /sys/block/mmcblk0; {each}").split()]
    found = {
        number: (start * 512, size * 512) for number, start, size in zip(*[iter(words)] * 3, strict=True)
    }
    layout = board.layout
    assert {name: found[n][0] for name, n in layout.numbers.items()} == layout.offsets
    sizes = {name: found[n][1] for name, n in layout.numbers.items()}
    assert sizes.pop("DATA") > layout.sizes["DATA"]  # grown at the first boot
    assert sizes == {name: layout.sizes[name] for name in sizes}
    assert f"/dev/mmcblk0p{layout.numbers['DATA']} /data ext4" in board.check("cat /proc/mounts")
    assert env_on_board(board) == board.read_env().values
    # U-Boot has saved at its first boot, and Linux sees it there.
    assert board.read_env().values["mender_saveenv_canary"] == "1"


def test_each_sees_what_the_other_saved(board: Board) -> None:
    machine_id = "0123456789abcdef0123456789abcdef"
    assert "systemd.machine_id" not in board.check("cat /proc/cmdline")
    set_env(board, from_linux="hello", mender_systemd_machine_id=machine_id)
    board.power_cut()

    board.boot_to_uboot()
    assert "from_linux=hello" in board.console.uboot("printenv from_linux")
    before = board.read_env()
    board.console.uboot("setenv from_uboot there; saveenv")
    after = board.read_env()
    assert before.newer is not None
    assert after.newer is not None
    assert after.newer.counter == (before.newer.counter + 1) % 256
    assert after.newer.offset != before.newer.offset
    board.power_cut()

    board.boot()
    assert env_on_board(board)["from_uboot"] == "there"
    assert f"systemd.machine_id={machine_id}" in board.check("cat /proc/cmdline").split()


def test_power_cut_while_linux_writes_the_environment(board: Board) -> None:
    for _ in range(3):
        before = board.read_env().newer
        assert before is not None
        board.console.type('i=0; while :; do i=$((i + 1)); fw_setenv round "$i" || break; done\n')
        board.console.release()
        deadline = time.monotonic() + 30
        while (now := board.read_env().newer) is None or (now.counter - before.counter) % 256 < 3:
            assert time.monotonic() < deadline, "no environment write reached the card"
        board.power_cut()

        left = board.read_env()
        assert left.newer is not None
        assert int(left.values["round"]) >= 2  # the cut came after writes had landed
        booted = board.boot()
        assert (booted.part, booted.version) == (2, "1")
        assert env_on_board(board) == board.read_env().values


@pytest.mark.parametrize(("which", "survives"), [("newer", "first"), ("older", "second")])
def test_a_torn_copy_leaves_the_other(board: Board, which: str, survives: str) -> None:
    set_env(board, mark="first")
    set_env(board, mark="second")
    board.power_cut()
    board.tear_env("newer" if which == "newer" else "older")
    assert board.read_env().older is None

    board.boot()
    assert env_on_board(board)["mark"] == survives
    set_env(board, mark="third")  # and it is whole again
    assert board.read_env().older is not None


def test_both_copies_torn_starts_slot_a_and_says_so(board: Board) -> None:
    set_env(board, mark="first")
    set_env(board, mark="second")
    board.power_cut()
    board.tear_env("both")
    assert board.read_env().newer is None

    assert board.boot().part == 2
    assert "mark" not in env_on_board(board)
    assert state(board) == ("2", "0", "environment was lost: partition 2 by default")
    assert {"bootlimit": "1", "altbootcmd": "run bootcmd"}.items() <= board.read_env().values.items()


def test_a_good_version_is_tried_and_stays_once_committed(new_board: NewBoard, images: Images) -> None:
    board = new_board(slot_b=images("2"))
    board.boot()
    set_env(board, **TRIAL_OF_B)
    booted = board.reboot()
    assert (booted.part, booted.version) == (3, "2")
    assert board.read_env().values["bootcount"] == "1"

    set_env(board, upgrade_available="0")
    assert board.reboot().part == 3
    board.power_cut()
    assert board.boot().part == 3
    assert state(board) == ("3", "0", "")


def test_a_version_not_committed_is_left_by_a_power_cut(new_board: NewBoard, images: Images) -> None:
    board = new_board(slot_b=images("2"))
    board.boot()
    set_env(board, **TRIAL_OF_B)
    assert board.reboot().part == 3
    board.power_cut()
    assert board.boot().part == 2
    assert state(board) == ("2", "0", "partition 3: not committed after 1 boot(s)")


def test_init_panics_goes_back_and_saves_once(new_board: NewBoard, images: Images) -> None:
    board = new_board(slot_b=images("3", "panic"))
    board.boot()
    set_env(board, **TRIAL_OF_B)
    before = board.read_env().newer
    booted = board.reboot()
    assert (booted.part, booted.version) == (2, "1")
    assert "Attempted to kill init" in board.console.log.read_text(errors="replace")
    assert state(board) == ("2", "0", "partition 3: not committed after 1 boot(s)")
    # U-Boot counts two boots, then the way back: three writes, one each.
    after = board.read_env().newer
    assert before is not None
    assert after is not None
    assert (after.counter - before.counter) % 256 == 3


def test_a_version_without_kernel_goes_back_at_once(new_board: NewBoard, images: Images) -> None:
    board = new_board(slot_b=images("3", "no-kernel"))
    board.boot()
    set_env(board, **TRIAL_OF_B)
    assert board.reboot().part == 2
    assert state(board) == ("2", "0", "partition 3: no kernel")
    assert board.console.log.read_text(errors="replace").count("Executing script") == 2  # no further start


def test_a_uboot_that_does_not_count_is_counted_for(new_board: NewBoard, images: Images) -> None:
    """Played at U-Boot's prompt: bootcount is put back to what it was before this U-Boot counted."""
    board = new_board(slot_b=images("2"))
    board.boot()
    set_env(board, **TRIAL_OF_B)
    board.power_cut()

    board.boot_to_uboot()
    board.console.type("setenv bootcount 0; run bootcmd\n")
    board.console.release()
    assert board.wait_boot().part == 3
    values = board.read_env().values
    assert (values["bootcount"], values["bootcount_here"]) == ("1", "1")
    board.power_cut()

    board.boot_to_uboot()
    board.console.type("setenv bootcount 1; run bootcmd\n")
    board.console.release()
    assert board.wait_boot().part == 2
    assert state(board) == ("2", "0", "partition 3: not committed after 1 boot(s)")
    assert "bootcount_here" not in board.read_env().values


def test_a_committed_slot_without_kernel_borrows_the_other(new_board: NewBoard, images: Images) -> None:
    board = new_board(slot_a=images("1", "no-kernel"), slot_b=images("2"))
    assert board.boot().part == 3
    assert state(board) == ("2", "0", "")  # for this boot only


def test_no_kernel_anywhere_says_so_and_starts_over(new_board: NewBoard, images: Images) -> None:
    board = new_board(slot_a=images("1", "no-kernel"))
    board.power_on()
    board.console.wait_for("This board cannot start: no kernel starts from partition 2 or 3")
    board.console.wait_for(r"U-Boot 20\d\d")
    board.console.wait_for("This board cannot start")
    assert state(board) == ("2", "0", "")


def test_no_kernel_anywhere_during_a_trial_ends_it(new_board: NewBoard, images: Images) -> None:
    board = new_board(slot_a=images("1", "no-kernel"))
    board.boot_to_uboot()
    trial = "; ".join(f"setenv {name} {value}" for name, value in TRIAL_OF_B.items())
    board.console.uboot(f"{trial}; saveenv")
    board.console.type("reset\n")
    board.console.release()
    board.console.wait_for("This board cannot start: no kernel starts from partition 2 or 3")
    assert state(board) == ("2", "0", "partition 3: no kernel")


def test_nonsense_in_the_environment_does_not_keep_the_board_from_starting(board: Board) -> None:
    """A slot that is none, a limit that is no number, and a variable that is not there."""
    set_env(board, mender_boot_part="7", mender_boot_part_hex="7", upgrade_available="1", bootlimit="many")
    assert board.reboot().part == 2
    assert state(board) == ("2", "0", "environment was lost: partition 2 by default")
    assert board.read_env().values["bootlimit"] == "1"

    set_env(
        board, mender_boot_part_hex="c", upgrade_available="yes", altbootcmd="", bootlimit="", bootcount=""
    )
    assert board.reboot().part == 2
    assert board.read_env().values["upgrade_available"] == "yes"  # which is not 1: no trial


def test_a_slot_without_its_device_tree_goes_back_at_once(
    new_board: NewBoard, images: Images, tmp_path: Path
) -> None:
    """A reset leaves the other slot's tree in memory, with which the new kernel must not start."""
    board = new_board(slot_b=images("2"))
    board.boot()
    board.check(
        "mount -o remount,rw / && cp /sys/firmware/fdt /boot/board.dtb && sync && mount -o remount,ro /"
    )
    set_env(board, fdt_addr_r="0x48000000")  # this board's U-Boot has none
    board.power_cut()
    values = {**layer.variables("virt64"), "UPDATE_DEVICETREE": "board.dtb"}
    script = uboot.boot_script(values, tmp_path)
    boot_partition = f"{board.disk}@@{board.layout.offset('BOOT')}"
    subprocess.run(["mcopy", "-o", "-i", boot_partition, script, "::boot.scr"], check=True)
    assert board.boot().part == 2
    set_env(board, **TRIAL_OF_B)
    assert board.reboot().part == 2
    assert state(board) == ("2", "0", "partition 3: no device tree")


def test_power_cut_while_the_other_slot_is_written(board: Board, images: Images) -> None:
    board.console.type("cat /dev/mmcblk0p2 >/dev/mmcblk0p3; sync\n")
    board.console.release()
    deadline = time.monotonic() + 60
    while board.landed("B", images("1"))[0] < 4 << 20:
        assert time.monotonic() < deadline, "nothing was written"
    board.power_cut()
    there, whole = board.landed("B", images("1"))
    assert 0 < there < whole
    assert board.boot().part == 2


def test_u_boot_reads_a_boot_partition_that_the_agent_made(new_board: NewBoard, tmp_path: Path) -> None:
    """As for a slot of tryboot, whose firmware runs on no machine here: U-Boot is another reader of FAT."""
    board = new_board()
    start, size = board.layout.offset("BOOT"), board.layout.sizes["BOOT"]
    boot = tmp_path / "boot"
    (boot / "overlays").mkdir(parents=True)
    subprocess.run(["mcopy", "-i", f"{board.disk}@@{start}", "::boot.scr", boot], check=True)
    for number in range(100):  # beside and before it, with long names, in several clusters
        (boot / f"bcm2711-rpi-{number}.dtb").write_bytes(b"dtb" * number)
        (boot / f"overlays/an-overlay-{number}.dtbo").write_bytes(b"dtbo" * number)
    made = Fat16(str(boot), size, {})
    content = bytearray(made.size)
    assert made.fill(memoryview(content)) == made.size
    with board.disk.open("r+b") as disk:
        disk.seek(start)
        disk.write(b"\xa5" * size)
        disk.seek(start)
        disk.write(content)
    assert board.boot().part == 2
