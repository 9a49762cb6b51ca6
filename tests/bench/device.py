# SPDX-License-Identifier: Apache-2.0
"""A device to measure on: its root is a loop device, the other slot is another one, /usr is the host's.

What runs in it is chrooted, so that every check an agent makes of its own partitions is real. It needs root,
and a mount and a network namespace of its own, which scripts/bench makes: nothing it mounts is seen outside,
and nothing reaches the network.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import stat
import subprocess
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench.run import BenchError, put_first
from tests.layer.bitbake import Build

from update_tools.bench.tools import run

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ACTIVE, INACTIVE = "/dev/slot2", "/dev/slot3"
SERVER_CERTIFICATE = "/etc/mender/server.crt"
_PACKAGES = "/usr/local/lib/update-agent"
ENV_BYTES = 16 << 10
ENVIRONMENT = {
    "mender_boot_part": "2",
    "mender_boot_part_hex": "2",
    "upgrade_available": "0",
    "bootcount": "0",
    "bootlimit": "1",
}
_BLKFLSBUF = 0x1261
_NODES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0)}
_FOLDERS = "data dev etc/mender/scripts proc root run/lock sys tmp usr var/lib/mender var/run var/tmp"


class Loop:
    """A loop device on a file; it goes away when nobody holds it any more, however we end."""

    def __init__(self, file: Path, *, direct: bool = False) -> None:
        words = ["losetup", "--find", "--show", *(["--direct-io=on"] if direct else []), file]
        self.path = Path(run(words).strip())
        self.fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        run(["losetup", "--detach", self.path])  # once it is closed: autoclear
        self.rdev = os.stat(self.path).st_rdev

    def written_bytes(self) -> int:
        """All that was ever written, flushed caches included."""
        os.fsync(self.fd)
        return int(Path(f"/sys/block/{self.path.name}/stat").read_text().split()[6]) * 512

    def forget_cache(self) -> None:
        """So that the next read comes from what is stored."""
        os.fsync(self.fd)
        fcntl.ioctl(self.fd, _BLKFLSBUF, 0)

    def close(self) -> None:
        """Let it go."""
        os.close(self.fd)


class Slot(Loop):
    """The slot to be written."""

    def fill(self, source: Path) -> None:
        """Give it this content, all of it on the medium."""
        run(["dd", f"if={source}", f"of={self.path}", "bs=1M", "oflag=direct", "conv=fsync,notrunc"])
        self.forget_cache()

    def holds(self, image: Path) -> bool:
        """Whether it begins with this image, read from what is stored."""
        self.forget_cache()
        mine, theirs = bytearray(1 << 20), bytearray(1 << 20)
        with image.open("rb", buffering=0) as file:
            at = 0
            while count := file.readinto(theirs):
                if os.preadv(self.fd, [memoryview(mine)[:count]], at) != count or mine != theirs:
                    return False
                at += count
                if count < len(mine):  # the tail of an image that is no whole number of MiB
                    mine, theirs = bytearray(mine[:count]), bytearray(theirs[:count])
        return True


class Device:
    """`root` is where commands are chrooted to; `slot` is what they shall write."""

    def __init__(
        self,
        work: Path,
        slot: Slot,
        *,
        usr: Path = Path("/usr"),
        local: Path | None = None,
        name: str = "device",
    ) -> None:
        self.slot = slot
        self.root = work / name
        self.root.mkdir()
        image = work / f"{name}.ext4"
        run(["mke2fs", "-q", "-t", "ext4", image, "64m"])
        self._active = Loop(image)
        run(["mount", self._active.path, self.root])
        for folder in _FOLDERS.split():
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        (self.root / "tmp").chmod(0o1777)
        for link in ("bin", "sbin", "lib", "lib64"):
            (self.root / link).symlink_to(f"usr/{link}")
        self._mount_usr(usr, local)
        run(["mount", "-t", "proc", "proc", self.root / "proc"])
        run(["mount", "--rbind", "/sys", self.root / "sys"])
        self._make_nodes()
        self._write_etc()

    def _mount_usr(self, usr: Path, local: Path | None) -> None:
        run(["mount", "--bind", usr, self.root / "usr"])
        run(["mount", "-o", "remount,bind,ro", self.root / "usr"])
        if local is not None:
            # Over whatever this machine has there: a device has only the agent.
            run(["mount", "--bind", local, self.root / "usr/local"])

    def _make_nodes(self) -> None:
        dev = self.root / "dev"
        run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", dev])
        nodes = {name: (stat.S_IFCHR | 0o666, os.makedev(*number)) for name, number in _NODES.items()}
        nodes["slot2"] = (stat.S_IFBLK | 0o600, self._active.rdev)
        nodes["slot3"] = (stat.S_IFBLK | 0o600, self.slot.rdev)
        for name, (mode, number) in nodes.items():
            os.mknod(dev / name, mode, number)
            os.chmod(dev / name, stat.S_IMODE(mode))
        for number, name in enumerate(("stdin", "stdout", "stderr")):
            (dev / name).symlink_to(f"/proc/self/fd/{number}")
        (dev / "fd").symlink_to("/proc/self/fd")
        (dev / "shm").mkdir()

    def _write_etc(self) -> None:
        for name in ("passwd", "group", "nsswitch.conf", "ld.so.cache", "os-release"):
            if Path("/etc", name).exists():
                shutil.copy(f"/etc/{name}", self.root / "etc" / name)
        for name in ("alternatives", "ssl"):
            if Path("/etc", name).is_dir():
                shutil.copytree(f"/etc/{name}", self.root / "etc" / name, symlinks=True)
        (self.root / "etc/mtab").symlink_to("/proc/self/mounts")
        self.write("etc/hosts", "127.0.0.1 localhost\n")
        self.write("etc/fw_env.config", f"/data/uboot.env 0x0 {ENV_BYTES:#x}\n")
        self.write("etc/mender/artifact_info", "artifact_name=old\n")
        self.write("etc/mender/scripts/version", "3\n")
        self.write("var/lib/mender/device_type", "device_type=bench\n")

    def write(self, name: str, content: str | bytes, mode: int = 0o644) -> None:
        """A file of the device."""
        path = self.root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        path.chmod(mode)

    def add_loop_nodes(self) -> None:
        """For who mounts image files."""
        os.mknod(self.root / "dev/loop-control", stat.S_IFCHR | 0o600, os.makedev(10, 237))
        for number in range(16):
            os.mknod(self.root / f"dev/loop{number}", stat.S_IFBLK | 0o600, os.makedev(7, number))

    def name_disk_of(self, folder: Path) -> None:
        """A node for the disk that a shown folder is on, for who looks who owns it; it cannot be opened."""
        number = folder.stat().st_dev
        wanted = f"{os.major(number)}:{os.minor(number)}"
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            fields = line.split()
            source = fields[fields.index("-") + 2]
            if fields[2] == wanted and source.startswith("/dev/"):
                nodes = self.root / "media/nodes"
                nodes.mkdir(parents=True, exist_ok=True)
                run(["mount", "-t", "tmpfs", "-o", "nodev", "tmpfs", nodes])
                os.mknod(nodes / "disk", stat.S_IFBLK | 0o400, number)
                (self.root / source[1:]).symlink_to("/media/nodes/disk")
                return

    def store_on(self, folder: Path) -> None:
        """Keep the agent's datastore in a folder of the host: where durable writes take their time."""
        point = self.root / "var/lib/mender"
        run(["mount", "--bind", folder, point])
        self.write("var/lib/mender/device_type", "device_type=bench\n")

    def configure(self, **keys: object) -> None:
        """mender.conf: the two slots, and these keys."""
        document = {
            "RootfsPartA": ACTIVE,
            "RootfsPartB": INACTIVE,
            "ServerCertificate": SERVER_CERTIFICATE,
            "DBus": {"Enabled": False},
            **keys,
        }
        self.write("etc/mender/mender.conf", json.dumps(document))

    def trust(self, certificate: Path) -> None:
        """As the server's own (ServerCertificate), and among the authorities, for who only looks there."""
        text = certificate.read_text()
        self.write(SERVER_CERTIFICATE, text)
        path = self.root / "etc/ssl/certs/ca-certificates.crt"
        self.write(str(path.relative_to(self.root)), (path.read_text() if path.exists() else "") + text)

    def show(self, folder: Path, at: str) -> None:
        """Let the device see a folder of the host, read-only."""
        point = self.root / at.lstrip("/")
        point.mkdir(parents=True, exist_ok=True)
        run(["mount", "--bind", folder, point])
        run(["mount", "-o", "remount,bind,ro", point])

    def renew(self) -> None:
        """Nothing installed, nothing in progress, booted from the active slot."""
        store = self.root / "var/lib/mender"
        for entry in store.iterdir():
            if entry.name == "device_type" or entry.suffix == ".pem":
                continue
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        self.write("data/uboot.env", environment_block(ENVIRONMENT))

    def spawn(self, argv: Sequence[str], env: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """A daemon in the device. Its output goes to /tmp/daemon.log there."""
        with (self.root / "tmp/daemon.log").open("ab") as log:
            process = subprocess.Popen(
                ["chroot", self.root, *argv],
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        put_first(process.pid)
        return process


def environment_block(values: Mapping[str, str]) -> bytes:
    """What mkenvimage makes of the variables: CRC-32, then name=value strings, filled with zeros."""
    text = b"".join(f"{name}={value}\0".encode() for name, value in values.items())
    data = (text + b"\0").ljust(ENV_BYTES - 4, b"\0")
    return zlib.crc32(data).to_bytes(4, "little") + data


def installed_agent(folder: Path) -> Path:
    """The tree that the layer's recipe installs: its own do_install, run by the real BitBake.

    Only its place differs: /usr/local, which on this machine may be covered by another directory.
    """
    conf = f'INHERIT += "update"\nPYTHON_SITEPACKAGES_DIR:pn-update-agent = "{_PACKAGES}"\n'
    try:
        tree = Path(Build(folder / "build", conf=conf).run("update-agent")["D"])
    except AssertionError as error:
        raise BenchError(f"the recipe update-agent cannot be built: {error}") from error
    if not (tree / "usr/bin/update-agent").exists():
        raise BenchError(f"the recipe update-agent installed no /usr/bin/update-agent into {tree}")
    return tree


def as_local(tree: Path, target: Path) -> Path:
    """What a device gets of the recipe's tree, for /usr/local."""
    packages = target / Path(_PACKAGES).relative_to("/usr/local")
    without_source = shutil.ignore_patterns("*.py")  # package update-agent-source
    shutil.copytree(tree / _PACKAGES[1:], packages, ignore=without_source)
    shutil.copytree(tree / "usr/bin", target / "bin", symlinks=True)
    shutil.copytree(tree / "usr/share/mender", target / "share/mender")
    return target
