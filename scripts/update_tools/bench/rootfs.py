# SPDX-License-Identifier: Apache-2.0
"""Root file systems of a virtual board: a selection of Debian's files and our agent, made without emulation.

Nothing of the board's architecture runs here: programs are picked from unpacked packages with the libraries
that they name, Python's library is compiled by the same Python on the host, and init is busybox.
"""

from __future__ import annotations

import functools
import gzip
import importlib.util
import json
import py_compile
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from update_tools import python_packages

from . import cache, debs, ext4, initramfs, layer
from .tools import BenchError, run

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .boards import Kind

VARIANTS = ("good", "panic", "hang", "no-kernel")

PACKAGES = (
    *("busybox-static", "ca-certificates", "dbus-bin", "dbus-daemon", "dbus-system-bus-common", "e2fsprogs"),
    *("fdisk", "libgcc-s1", "libubootenv-tool", "libzstd1", "openssl", "python3.11", "python3-jeepney"),
    "util-linux",
)
_PROGRAMS = (
    *("bin/busybox", "bin/dbus-daemon", "bin/dbus-monitor", "bin/dbus-send", "bin/fw_printenv"),
    *("bin/openssl", "bin/partx", "bin/python3.11", "sbin/resize2fs", "sbin/sfdisk"),
)
# Opened by name while running, so no program names them: thread cancellation, compression by ctypes.
_LIBRARIES = ("libgcc_s.so.1", "libzstd.so.1", "libz.so.1")
_PYTHON = "usr/lib/python3.11"
_PACKAGES = "/usr/lib/python3/dist-packages"
_PYTHON_MAGIC = (3495).to_bytes(2, "little") + b"\r\n"
_BROKEN_INITS = {
    "panic": "#!/bin/sh\necho 'init: this version is broken'\nexit 1\n",
    "hang": "#!/bin/sh\necho 'init: this version hangs'\nwhile :; do sleep 3600; done\n",
}
_FILES = Path(__file__).parent / "files"
_CODE = [
    Path(__file__),
    Path(initramfs.__file__),
    Path(python_packages.__file__),
    _FILES / "init",
    _FILES / "applets",
]


@functools.cache
def base(kind: Kind) -> Path:
    """Directory with `tree` (selected files) and `boot` (kernel, initramfs); made once for these packages."""
    apt = debs.Apt(kind.deb_arch)
    (kernel,) = apt.depends(kind.kernel_package)
    files = [*apt.download(PACKAGES), apt.download_one(kernel)]
    inputs = [file.name for file in files] + [repr(kind.modules), kind.kernel_image]
    inputs += sorted(_python_packages())

    def make(into: Path) -> None:
        with tempfile.TemporaryDirectory(dir=into) as scratch:
            everything = Path(scratch) / "all"
            debs.unpack(files, everything)
            _boot(everything, into / "boot", kind)
            _select(everything, into / "tree", kind.cross.rstrip("-"))

    return cache.made("rootfs", cache.key(*inputs, *_CODE), make)


def _boot(everything: Path, into: Path, kind: Kind) -> None:
    into.mkdir()
    (kernel,) = (everything / "boot").glob("vmlinuz-*")
    data = kernel.read_bytes()
    if kind.kernel_image.endswith(".gz") and not data.startswith(b"\x1f\x8b"):
        data = gzip.compress(data, 9, mtime=0)
    (into / "kernel").write_bytes(data)
    (into / "initrd").write_bytes(initramfs.make(everything, kind.modules))


def _select(everything: Path, into: Path, triplet: str) -> None:
    """Copy programs, the libraries they need, Python's library as byte code, certificates, D-Bus's policy."""
    for name in ("bin", "lib", "sbin"):
        (into / "usr" / name).mkdir(parents=True)
        (into / name).symlink_to(f"usr/{name}")
    copied: set[Path] = set()

    def take(path: Path) -> None:
        relative = path.relative_to(everything)
        if relative in copied:
            return
        copied.add(relative)
        target = into / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
        if path.read_bytes()[:4] == b"\x7fELF":
            for needed in _needed(path, triplet):
                take(_library(everything, needed, triplet))

    for name in _PROGRAMS:
        take(everything / "usr" / name)
    for name in _LIBRARIES:
        take(_library(everything, name, triplet))
    for loader in (into / "usr/lib" / triplet).glob("ld-linux*"):  # programs name it without the triplet
        (into / "usr/lib" / loader.name).symlink_to(f"{triplet}/{loader.name}")
    wanted = _python_packages()
    for path in sorted((everything / _PYTHON).rglob("*")):
        package = python_packages.owner(f"/{path.relative_to(everything).as_posix()}")
        if path.is_file() and package in wanted and path.suffix in {".py", ".so"}:
            take(path)
    for path in sorted((everything / _PACKAGES[1:] / "jeepney").rglob("*.py")):
        if path.name not in {"asyncio.py", "trio.py"} and "tests" not in path.relative_to(everything).parts:
            take(path)
    compile_python(into / _PYTHON, f"/{_PYTHON}")
    compile_python(into / _PACKAGES[1:] / "jeepney", f"{_PACKAGES}/jeepney")
    lines = (_FILES / "applets").read_text().splitlines()
    for applet in " ".join(line for line in lines if not line.startswith("#")).split():
        if not (into / "usr/bin" / applet).exists():
            (into / "usr/bin" / applet).symlink_to("busybox")
    (into / "usr/bin/python3").symlink_to("python3.11")
    (into / "usr/bin/fw_setenv").symlink_to("fw_printenv")
    (into / "usr/sbin/init").symlink_to("../bin/busybox")
    take(everything / "usr/share/dbus-1/system.conf")
    certificates = sorted((everything / "usr/share/ca-certificates").rglob("*.crt"))
    bundle = into / "etc/ssl/certs/ca-certificates.crt"
    bundle.parent.mkdir(parents=True)
    bundle.write_text("".join(path.read_text() for path in certificates))
    take(everything / "etc/ssl/openssl.cnf")
    for name, target in (("certs", "/etc/ssl/certs"), ("openssl.cnf", "/etc/ssl/openssl.cnf")):
        (into / "usr/lib/ssl").mkdir(exist_ok=True)
        (into / "usr/lib/ssl" / name).symlink_to(target)


def _python_packages() -> set[str]:
    """Those that the layer's recipes depend on: what they forget is missing on the board, too."""
    words = [word for words in layer.packages("RDEPENDS").values() for word in words]
    return python_packages.closure(word for word in words if word in python_packages.DEPENDS)


def _needed(path: Path, triplet: str) -> list[str]:
    said = run([f"{triplet}-readelf", "--dynamic", "--program-headers", "--wide", path])
    names = re.findall(r"\(NEEDED\)\s+Shared library: \[(.+?)\]", said)
    return names + [name.rsplit("/", 1)[-1] for name in re.findall(r"program interpreter: (\S+?)\]", said)]


def _library(everything: Path, name: str, triplet: str) -> Path:
    for place in (f"usr/lib/{triplet}", "usr/lib"):
        path = everything / place / name
        if path.exists():
            return path
    raise BenchError(f"no package has the library {name}")


def compile_python(tree: Path, at: str) -> None:
    """Replace each .py by byte code, as the layer ships it, if this Python makes the board's byte code."""
    if importlib.util.MAGIC_NUMBER != _PYTHON_MAGIC:
        return  # works all the same, starts slower
    for source in sorted(tree.rglob("*.py")):
        py_compile.compile(
            str(source),
            cfile=str(source.with_suffix(".pyc")),
            dfile=f"{at}/{source.relative_to(tree).as_posix()}",
            doraise=True,
            invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
        )
        source.unlink()


def _board_python() -> str:
    """A Python that makes the board's byte code."""
    return sys.executable if importlib.util.MAGIC_NUMBER == _PYTHON_MAGIC else "python3.11"


def make_rootfs(
    image: Path,
    kind: Kind,
    *,
    version: str,
    variant: str = "good",
    extra_files: Mapping[str, str | bytes] | None = None,
) -> Path:
    """Make the ext4 image of a slot, as large as the slot: what goes into an artifact.

    `variant`: "good"; "panic" has an init that ends at once, so the kernel panics; "hang" has one that does
    nothing, so the watchdog is not fed; "no-kernel" has none.
    `extra_files` (path on the device -> content) are added last and are executable if they start with "#!".
    """
    if variant not in VARIANTS:
        raise BenchError(f"no variant {variant!r}", hint=f"there is {', '.join(VARIANTS)}")
    made = base(kind)
    values = layer.variables(kind.machine)
    files = ext4.Files()
    files.tree(made / "tree")
    files.text(f"/boot/{values['UPDATE_KERNEL']}", (made / "boot/kernel").read_bytes())
    files.text(f"/boot/{values['UPDATE_INITRD']}", (made / "boot/initrd").read_bytes())
    _system(files, values, version)
    with tempfile.TemporaryDirectory() as scratch:
        _agent(files, Path(scratch))
        if variant in _BROKEN_INITS:
            files.text("/usr/sbin/init", _BROKEN_INITS[variant], 0o755)
        elif variant == "no-kernel":
            files.remove(f"/boot/{values['UPDATE_KERNEL']}")
        for path, content in (extra_files or {}).items():
            data = content.encode() if isinstance(content, str) else content
            files.text(path, data, 0o755 if data.startswith(b"#!") else 0o644)
        size = layer.Layout(values).sizes["A"]
        return ext4.make(image, files, size_bytes=size, label="root", journal=False)


def _agent(files: ext4.Files, scratch: Path) -> None:
    """The agent of this repository, as the layer's recipe installs it, with the layer's own scripts."""
    run(
        [
            *(_board_python(), "-X", "no_debug_ranges", layer.LAYER / layer.AGENT_FILES / "install-agent.py"),
            *(layer.REPOSITORY / "agent/update_agent", "--root", scratch, "--packages", _PACKAGES),
        ],
        env={"PYTHONHASHSEED": "0"},
    )
    files.tree(scratch)
    for node in files.nodes.values():  # the directory goes away before the image is made from bytes in memory
        if node.source and node.source.is_relative_to(scratch):
            node.data, node.source = node.source.read_bytes(), None
    files.link("/usr/bin/mender-update", "update-agent")
    for policy in sorted((layer.REPOSITORY / "agent/dbus").glob("*.conf")):
        files.text(f"/usr/share/dbus-1/system.d/{policy.name}", policy.read_bytes())
    ours = layer.LAYER / layer.AGENT_FILES
    for place, name in (
        ("identity", "mender-device-identity"),
        ("inventory", "mender-inventory-update"),
        ("modules/v3", "single-file"),
    ):
        files.text(f"/usr/share/mender/{place}/{name}", (ours / name).read_bytes(), 0o755)


def _system(files: ext4.Files, values: Mapping[str, str], version: str) -> None:
    """Accounts, init's table, configuration: what a distribution's installation would have made."""
    tty = values["UPDATE_CONSOLE"].split(",")[0]
    for path in (
        "/dev",
        "/proc",
        "/sys",
        "/run",
        "/data",
        "/root",
        "/etc/dbus-1/system.d",
        "/usr/share/mender",
    ):
        files.directory(path)
    files.directory("/tmp", 0o1777)
    files.link("/var/run", "/run")
    files.link("/var/lock", "/run/lock")
    files.link("/var/tmp", "/tmp")
    files.link("/var/log", "/data/log")
    files.link("/var/lib/mender", "/data/mender")
    files.link("/etc/machine-id", "/data/machine-id")
    files.link("/var/lib/dbus", "/etc")
    files.link("/etc/mtab", "/proc/mounts")
    files.text("/etc/passwd", "root::0:0:root:/root:/bin/sh\nmessagebus:x:100:100::/run/dbus:/bin/false\n")
    files.text("/etc/group", "root:x:0:\nmessagebus:x:100:\n")
    files.text("/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n")
    files.text("/etc/hosts", "127.0.0.1 localhost\n10.0.2.2 desk\n")
    files.text("/etc/resolv.conf", "nameserver 10.0.2.3\n")
    files.text("/etc/hostname", f"{values['UPDATE_DEVICE_TYPE']}\n")
    files.text("/etc/update-version", f"{version}\n")
    files.text(
        "/etc/os-release", f'ID=virtual-board\nVERSION_ID={version}\nPRETTY_NAME="Virtual board {version}"\n'
    )
    files.text(
        "/etc/inittab",
        "::sysinit:/etc/init.d/rcS\n"
        f"{tty}::respawn:-/bin/sh\n"
        "::respawn:/usr/bin/dbus-daemon --system --nofork --nopidfile\n"
        "::respawn:/usr/libexec/start-agent\n"
        "::ctrlaltdel:/bin/reboot\n"
        "::shutdown:/bin/umount -a -r\n",
    )
    files.text("/etc/profile", "export PATH=/usr/sbin:/usr/bin HOME=/root PS1='# '\n")
    files.text("/etc/fstab", values["UPDATE_DATA_MOUNT"] + "\n")
    files.text("/etc/init.d/rcS", (_FILES / "rcS").read_bytes(), 0o755)
    files.text("/usr/libexec/start-agent", (_FILES / "start-agent").read_bytes(), 0o755)
    files.text("/usr/sbin/update-grow-data", layer.filled(layer.GROW_DATA, values), 0o755)
    files.text("/etc/fw_env.config", layer.filled(layer.FW_ENV_CONFIG, values))
    settings = layer.library("agentconf").settings(values.get)
    card = {name: value for name, value in settings.items() if name.startswith("RootfsPart")}
    # Server and intervals are the test's, in the data partition's file, which this one would overrule.
    files.text("/etc/mender/mender.conf", json.dumps(card, indent=4) + "\n")
    files.text("/etc/mender/scripts/version", "3\n")
