# SPDX-License-Identifier: Apache-2.0
"""Other agents of Debian 12 doing the same work: mender-client 3.4, RAUC 1.8, SWUpdate 2022.12.

They are taken from the cache (scripts/bench --fetch-peers unpacks them there, and installs nothing) or from
this machine. Each gets a device of its own. None is ever run outside our network namespace: mender-client
comes with an inventory script that asks an outside service.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench.agents import Agent
from tests.bench.run import PATH, BenchError, Cost, measure

from update_tools.bench import cache
from update_tools.bench.debs import Apt, unpack
from update_tools.bench.tools import run

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.bench.device import Device
    from tests.bench.image import Material

PACKAGES = (
    *("rauc", "swupdate", "mender-client", "squashfs-tools", "libubootenv-tool"),
    *("dash", "bash", "coreutils", "sed", "grep", "findutils", "procps", "util-linux", "mount"),
    *("dbus", "openssl", "cpio", "ca-certificates"),
)
PROGRAMS = {  # name: program, package
    "mender 3.4": ("mender", "mender-client"),
    "RAUC": ("rauc", "rauc"),
    "SWUpdate": ("swupdate", "swupdate"),
}
RELEASES = "/media/peers"
_KEYS = "etc/bench"


def fetch() -> Path:
    """Unpack the packages and what they depend on into the cache; nothing is installed or started."""
    arch = run(["dpkg", "--print-architecture"]).strip()

    def make(folder: Path) -> None:
        (folder / "usr/lib64").mkdir(parents=True)
        (folder / "lib64").symlink_to("usr/lib64")
        unpack(Apt(arch).download(PACKAGES), folder)

    return cache.made("speed-peers", _key(), make)


def _key() -> str:
    return cache.key("2", *PACKAGES)


def usr() -> Path:
    """The /usr that has the peers: of the cache if they were fetched, else the machine's."""
    fetched = cache.root() / "speed-peers" / _key() / "usr"
    return fetched if fetched.is_dir() else Path("/usr")


def missing() -> dict[str, str]:
    """Peers that cannot take part, and the package of each."""
    return {
        name: package
        for name, (program, package) in PROGRAMS.items()
        if not any((usr() / folder / program).exists() for folder in ("bin", "sbin"))
    }


class Mender(Agent):
    """mender-client 3.4, in Go, standalone."""

    name = "mender 3.4"
    compressions = ("none", "gzip", "xz")

    def install(self, source: str, *, sample: bool = False) -> Cost:
        return measure(["mender", "install", source], root=self.device.root, sample=sample)


class SwUpdate(Agent):
    """SWUpdate: images are written while they arrive; the checksum is the compressed image's."""

    name = "SWUpdate"
    compressions = ("none", "gzip", "zstd")
    transports = ("file", "http")
    folder = RELEASES

    def __init__(self, device: Device) -> None:
        super().__init__(device)
        device.write("etc/hwrevision", "bench 1.0\n")

    @staticmethod
    def daemon(url: str) -> list[str]:
        """Its daemon, asking a hawkBit server."""
        return ["swupdate", "-l", "2", "-k", f"/{_KEYS}/cert.pem", "-u", f"-t default -i bench -u {url}"]

    def release(self, compression: str, *, changed: bool = False) -> str:
        return f"{'changed-' if changed else ''}{compression}.swu"

    def install(self, source: str, *, sample: bool = False) -> Cost:
        how = ["-d", f"-u {source}"] if "://" in source else ["-i", source]
        argv = ["swupdate", "-l", "2", "-k", f"/{_KEYS}/cert.pem", *how]
        return measure(argv, root=self.device.root, sample=sample)


class Rauc(Agent):
    """RAUC: a command asks a service on a bus of its own; memory and CPU are the service's too."""

    name = "RAUC"
    compressions = ("none", "gzip", "zstd", "xz")
    transports = ("file", "http")
    folder = RELEASES
    ENV = {"PATH": PATH, "DBUS_SYSTEM_BUS_ADDRESS": "unix:path=/run/bench.bus", "LANG": "C.UTF-8"}

    def __init__(self, device: Device) -> None:
        super().__init__(device)
        run(["mount", "-t", "tmpfs", "tmpfs", device.root / "tmp"])  # for the bundles it downloads
        device.add_loop_nodes()
        device.write("etc/rauc/system.conf", _RAUC_CONF)
        device.write("etc/bench/bus.conf", _BUS_CONF)
        bus = ["dbus-daemon", "--config-file=/etc/bench/bus.conf", "--nofork", "--nopidfile"]
        self._bus = device.spawn(bus, self.ENV)
        _until((device.root / "run/bench.bus").exists, "dbus-daemon does not listen")
        self._service = device.spawn(["rauc", "--override-boot-slot=A", "service"], self.ENV)
        _until(self._is_ready, "the RAUC service does not answer")

    def release(self, compression: str, *, changed: bool = False) -> str:
        return f"{'changed-' if changed else ''}{compression}.raucb"

    @property
    def pid(self) -> int:
        """The service."""
        return self._service.pid

    def install(self, source: str, *, sample: bool = False) -> Cost:
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")  # forget the peak
        before = cpu_s(self.pid)
        try:
            cost = measure(["rauc", "install", source], root=self.device.root, env=self.ENV, sample=sample)
        except BenchError as error:
            said = (self.device.root / "tmp/daemon.log").read_text(errors="replace")
            raise BenchError(f"{error}; the service says: {said[-1000:]}") from error
        peak = status_kib(self.pid, "VmHWM") / 1024
        return Cost(
            cost.wall_s,
            cost.cpu_s + cpu_s(self.pid) - before,
            max(peak, cost.rss_mib),
            cost.tree_mib + peak if sample else 0.0,
        )

    def close(self) -> None:
        for process in (self._service, self._bus):
            process.send_signal(signal.SIGTERM)
            process.wait()

    def _is_ready(self) -> bool:
        done = subprocess.run(
            ["chroot", self.device.root, "rauc", "status"], env=self.ENV, capture_output=True, check=False
        )
        return done.returncode == 0


def cpu_s(pid: int) -> float:
    """CPU of a process and its ended children, in steps of 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(fields[number]) for number in (11, 12, 13, 14)) / os.sysconf("SC_CLK_TCK")


def status_kib(pid: int, name: str) -> int:
    """A line of /proc/PID/status."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    return 0


def _until(holds: Callable[[], bool], otherwise: str, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise BenchError(otherwise)
        time.sleep(0.02)


def start(name: str, device: Device) -> Agent:
    """The peer on this device."""
    return {"mender 3.4": Mender, "RAUC": Rauc, "SWUpdate": SwUpdate}[name](device)


# Releases


def keys(device: Device, folder: Path) -> None:
    """One self-signed certificate with which RAUC and SWUpdate verify what they install."""
    if not (folder / "cert.pem").exists():
        subject = ["-subj", "/CN=bench", "-addext", "extendedKeyUsage=emailProtection", "-days", "3650"]
        new = ["-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", folder / "key.pem"]
        run(["openssl", "req", *new, "-out", folder / "cert.pem", *subject])
    for name in ("cert.pem", "key.pem"):
        device.write(f"{_KEYS}/{name}", (folder / name).read_bytes())


def releases(device: Device, stuff: Material, *, quick: bool) -> Path:
    """The folder of what RAUC and SWUpdate install, made once; their own tools make it, in this device."""

    def make(folder: Path) -> None:
        keys(device, folder)
        point = device.root / "media/make"
        point.mkdir(parents=True, exist_ok=True)
        run(["mount", "--bind", folder, point])
        try:
            wanted = [(stuff.image, "", name) for name in ("none", "gzip", "zstd", "xz")]
            for image, prefix, compression in [*wanted, (stuff.changed, "changed-", "gzip")]:
                if not missing().get("RAUC"):
                    _bundle(device, folder, image, f"{prefix}{compression}", quick=quick)
                if not missing().get("SWUpdate") and compression != "xz":
                    _swu(device, folder, image, f"{prefix}{compression}", quick=quick)
        finally:
            run(["umount", point])

    name = cache.key("2", stuff.folder.name, str(quick), *sorted(missing()))
    folder = cache.made("speed-releases", name, make)
    keys(device, folder)
    return folder


def _bundle(device: Device, folder: Path, image: Path, name: str, *, quick: bool) -> None:
    content = folder / "content"
    content.mkdir()
    os.link(image, content / "image.img") if _same_disk(image, content) else run(
        ["cp", image, content / "image.img"]
    )
    (content / "manifest.raucm").write_text(_RAUC_MANIFEST)
    compression = name.rpartition("-")[2]
    squash = {
        "none": "-noI -noD -noF -noX",
        "gzip": "-comp gzip",
        "zstd": "-comp zstd" + (" -Xcompression-level 1" if quick else ""),
        "xz": "-comp xz",
    }[compression]
    words = ["bundle", f"--cert=/{_KEYS}/cert.pem", f"--key=/{_KEYS}/key.pem", f"--mksquashfs-args={squash}"]
    run(["chroot", device.root, "rauc", *words, "/media/make/content", f"/media/make/{name}.raucb"])
    run(["rm", "-r", content])


def _same_disk(one: Path, other: Path) -> bool:
    return one.stat().st_dev == other.stat().st_dev


def _swu(device: Device, folder: Path, image: Path, name: str, *, quick: bool) -> None:
    compression = name.rpartition("-")[2]
    program, attribute = {
        "none": (["cat"], ""),
        "gzip": (["gzip", "-nc", "-6"], 'compressed = "zlib";'),
        "zstd": (["zstd", "-qc", "-T0", "-1" if quick else "-19"], 'compressed = "zstd";'),
    }[compression]
    content = folder / "content"
    content.mkdir()
    with (content / "image").open("wb") as target:
        subprocess.run([*program, image], stdout=target, check=True)
    digest = run(["sha256sum", content / "image"]).split()[0]
    (content / "sw-description").write_text(_SW_DESCRIPTION % (digest, attribute))
    sign = ["-sign", "-binary", "-outform", "DER", "-nosmimecap"]
    who = ["-signer", folder / "cert.pem", "-inkey", folder / "key.pem"]
    paths = ["-in", content / "sw-description", "-out", content / "sw-description.sig"]
    run(["openssl", "cms", *sign, *who, *paths])
    pack = "cd /media/make/content && printf '%s\\n' sw-description sw-description.sig image | cpio -oH crc"
    run(["chroot", device.root, "sh", "-c", f"{pack} >../{name}.swu"])
    run(["rm", "-r", content])


_RAUC_CONF = """
[system]
compatible=bench
bootloader=noop
max-bundle-download-size=2147483648
mountprefix=/run/rauc

[keyring]
path=/etc/bench/cert.pem

[slot.rootfs.0]
device=/dev/slot2
type=raw
bootname=A

[slot.rootfs.1]
device=/dev/slot3
type=raw
bootname=B
"""
_RAUC_MANIFEST = """
[update]
compatible=bench
version=2

[bundle]
format=plain

[image.rootfs]
filename=image.img
"""
_SW_DESCRIPTION = """software = {
  version = "2";
  hardware-compatibility: [ "1.0" ];
  bootloader_transaction_marker = false;
  bootloader_state_marker = false;
  images: ({
    filename = "image";
    type = "raw";
    device = "/dev/slot3";
    installed-directly = true;
    sha256 = "%s";
    %s
  });
};
"""
_BUS_CONF = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path=/run/bench.bus</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
    <allow own="*"/>
    <allow user="*"/>
  </policy>
</busconfig>
"""
