# SPDX-License-Identifier: Apache-2.0
"""Root file systems of virtual boards, from Debian's packages; nothing of the board's architecture is run.

The tree of packages is unpacked, pruned and compiled to byte code once and kept; a version of the system is that
tree with the bench's own files (`files/`), the agent of this checkout, and what the caller adds laid over it.
Same input, same bytes: one time for all files, fixed identity of the file system, sorted order.
"""

from __future__ import annotations

import gzip
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from . import cache, debs, layer
from .tools import EPOCH, BenchError, run

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .boards import BoardType

FILES = Path(__file__).parent / "files"
AGENT = layer.REPOSITORY / "agent" / "update_agent"
PACKAGES = (
    "busybox-static",
    "dbus-bin",
    "dbus-daemon",
    "libubootenv-tool",
    "libzstd1",
    "openssl",
    "python3",
    "python3-jeepney",
)
# Fixed, so that the same content is the same image.
_UUID = "7c1f9d5e-54c5-4a5b-9d3c-6f0a3f1e2b64"
_HASH_SEED = "3f0b2a0e-8a5d-4a57-8f5e-0c9a5b1d7e21"
VARIANTS = ("good", "panic", "no-kernel")

# What packages bring along and nothing here uses. Raised when pruning changes, so that the cache is renewed.
_PRUNE_VERSION = "4"
_PRUNE = (
    "etc/alternatives etc/dpkg etc/cron.daily etc/logrotate.d etc/apt",
    "usr/share/doc usr/share/man usr/share/locale usr/share/info usr/share/lintian usr/share/bug",
    "usr/share/perl5 usr/share/pixmaps usr/share/applications usr/share/python3 usr/share/bash-completion",
    "usr/lib/tmpfiles.d usr/lib/systemd usr/lib/valgrind usr/share/readline usr/share/polkit-1 var/lib/dpkg",
    "usr/bin/perl* usr/bin/dpkg* usr/sbin/dpkg* usr/lib/dpkg usr/share/dpkg usr/bin/tar usr/bin/python3.11-config",
    "usr/lib/*/libdb-5.3.so usr/lib/*/libsqlite3.so* usr/lib/*/perl* usr/lib/*/gconv usr/lib/*/libreadline*",
    "usr/lib/*/libncurses* usr/lib/*/libmenu* usr/lib/*/libform* usr/lib/*/libpanel* usr/lib/*/libhistory*",
    "usr/lib/python3.11/{test,idlelib,tkinter,turtledemo,lib2to3,ensurepip,distutils,unittest,pydoc_data,curses}",
    "usr/lib/python3.11/{sqlite3,wsgiref,xmlrpc,dbm,venv,config-3.11*,__phello__,pydoc.py,doctest.py,turtle.py}",
    "usr/lib/python3.11/lib-dynload/_{sqlite3,curses,curses_panel,dbm,tkinter,test*,xx*,codecs_*,decimal}.*",
    "usr/lib/python3.11/lib-dynload/{readline,nis,ossaudiodev,xx*,audioop}.*",
)


def make_rootfs(
    board: BoardType,
    version: str,
    variant: str = "good",
    extra_files: Mapping[str, tuple[int, bytes]] | None = None,
) -> Path:
    """An ext4 image of the slot's size, from the cache if the same was made before. Takes seconds.

    `variant`: "panic" has an init that ends at once, so that the kernel panics; "no-kernel" has an empty /boot.
    `extra_files` maps paths without leading slash to mode and content, e.g. state scripts in etc/mender/scripts.
    """
    if variant not in VARIANTS:
        raise BenchError(f"there is no variant {variant!r} of a root file system", hint=", ".join(VARIANTS))
    base, boot = base_tree(board), boot_files(board)
    overlay = _overlay(board, version, variant) | dict(extra_files or {})
    listing = "".join(f"{path} {mode:o} {len(data)}\n" for path, (mode, data) in sorted(overlay.items()))
    content = b"".join(data for _, (_, data) in sorted(overlay.items()))
    name = cache.key(base.name, boot.name, variant, listing, content, str(_size(board)))

    def make(directory: Path) -> None:
        # A memory file system lists names in the order they were made, which tar sorts: reproducible.
        memory = Path("/dev/shm")
        with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as scratch:
            tree = Path(scratch) / "tree"
            tree.mkdir()
            _copy_sorted(base, tree)
            if variant != "no-kernel":
                _copy_sorted(boot, tree / "boot")
            for path, (mode, data) in sorted(overlay.items()):
                _put(tree / path, mode, data)
            run(["find", tree, "-exec", "touch", "-h", "-d", f"@{EPOCH}", "{}", "+"])
            run(["chown", "-hR", "0:0", tree])
            _make_ext4(tree, directory / "rootfs.ext4", _size(board))

    return cache.made(f"rootfs-{board.machine}", name, make) / "rootfs.ext4"


def base_tree(board: BoardType) -> Path:
    """The unpacked and pruned packages, compiled to byte code without sources."""
    files = debs.Apt(board.arch).download(PACKAGES)
    name = cache.key(_PRUNE_VERSION, *(file.name for file in files))

    def make(directory: Path) -> None:
        debs.unpack(files, directory)
        _prune(directory)
        _compile(directory / "usr/lib/python3.11", drop_sources=True)
        _busybox(directory)
        _accounts(directory)
        for point in ("boot", "data", "dev", "proc", "run", "sys", "tmp", "root", "var/lib"):
            (directory / point).mkdir(parents=True, exist_ok=True)
        for link, target in (("var/lib/mender", "/data/mender"), ("var/lock", "/run/lock"), ("var/run", "/run")):
            shutil.rmtree(directory / link, ignore_errors=True)
            (directory / link).unlink(missing_ok=True)
            (directory / link).symlink_to(target)

    return cache.made(f"tree-{board.arch}", name, make)


def boot_files(board: BoardType) -> Path:
    """Kernel (gzip, which loads quicker from a card) and our initramfs, as in a slot's /boot."""
    values = layer.variables(board.machine)
    files = debs.Apt(board.arch).download([board.kernel_package, "busybox-static"])
    kernel = next(file for file in files if re.match(r"linux-image-\d", file.name))
    busybox = next(file for file in files if file.name.startswith("busybox-static_"))
    init = FILES / "initramfs-init"
    name = cache.key(kernel.name, busybox.name, init, *board.modules, values["UPDATE_KERNEL"], "2")

    def make(directory: Path) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            unpacked = Path(scratch) / "kernel"
            unpacked.mkdir()
            run(["dpkg-deb", "-x", kernel, unpacked])
            (image,) = unpacked.glob("boot/vmlinuz-*")
            data = image.read_bytes()
            if values["UPDATE_KERNEL"].endswith(".gz"):
                data = gzip.compress(data, 6, mtime=0)
            (directory / values["UPDATE_KERNEL"]).write_bytes(data)
            tree = Path(scratch) / "initramfs"
            (tree / "bin").mkdir(parents=True)
            run(["dpkg-deb", "-x", busybox, Path(scratch) / "busybox"])
            shutil.copy(Path(scratch) / "busybox/bin/busybox", tree / "bin/busybox")
            shutil.copy(init, tree / "init")
            _modules(unpacked, board.modules, tree / "modules")
            run(["find", tree, "-exec", "touch", "-h", "-d", f"@{EPOCH}", "{}", "+"])
            archive = "find . | LC_ALL=C sort | cpio --quiet --reproducible -o -H newc -R 0:0 | gzip -n -9"
            run(["sh", "-c", f"({archive}) > '{directory / values['UPDATE_INITRD']}'"], cwd=tree)

    return cache.made(f"boot-{board.machine}", name, make)


def _modules(kernel: Path, wanted: tuple[str, ...], into: Path) -> None:
    """Copy the modules and what they depend on, with their order of loading."""
    into.mkdir()
    (version,) = (path.name for path in (kernel / "lib/modules").iterdir())
    run(["depmod", "-b", kernel, version])
    order: list[str] = []
    for module in wanted:
        said = run(["modprobe", "-d", kernel, "-S", version, "--show-depends", module])
        for line in said.splitlines():
            kind, _, path = line.partition(" ")
            path = path.split()[0] if path else ""
            if kind == "insmod" and Path(path).name not in order:
                shutil.copy(path, into)
                order.append(Path(path).name)
    (into / "order").write_text("".join(f"{name}\n" for name in order))


def _prune(tree: Path) -> None:
    for words in _PRUNE:
        run(["bash", "-c", f"shopt -s nullglob; rm -rf -- {words}"], cwd=tree)
    run(["find", tree, "-name", "__pycache__", "-prune", "-exec", "rm", "-rf", "{}", "+"])


def _compile(directory: Path, *, drop_sources: bool) -> None:
    """Byte code by the host's Python, which must be the board's version."""
    python = "/usr/bin/python3"
    version = run([python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]).strip()
    if version != "3.11":
        raise BenchError(f"{python} is {version}, the board's Python is 3.11", hint="use Debian 12")
    # Paths in the byte code are the board's; -b puts x.pyc beside x.py, where it is found without a source.
    words = [python, "-m", "compileall", "-q", "-j", "0", "--invalidation-mode", "unchecked-hash"]
    board_path = "/" + str(directory).partition("/usr/")[1].strip("/") + "/" + str(directory).partition("/usr/")[2]
    run([*words, *(["-b"] if drop_sources else []), "-s", directory, "-p", board_path, directory])
    if drop_sources:
        run(["find", directory, "-name", "*.py", "-delete"])


def _busybox(tree: Path) -> None:
    """A link for each applet that no package brings."""
    for applet in run(["busybox", "--list-full"]).split():
        path = tree / applet
        if not path.exists() and not path.is_symlink():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to("/bin/busybox")
    (tree / "init").unlink(missing_ok=True)
    (tree / "linuxrc").unlink(missing_ok=True)


def _accounts(tree: Path) -> None:
    etc = tree / "etc"
    etc.mkdir(exist_ok=True)
    (etc / "passwd").write_text(
        "root:x:0:0:root:/root:/bin/sh\n"
        "messagebus:x:100:100::/nonexistent:/bin/false\n"
        "nobody:x:65534:65534:nobody:/nonexistent:/bin/false\n"
    )
    (etc / "group").write_text("root:x:0:\nmessagebus:x:100:\nnogroup:x:65534:\n")


def _overlay(board: BoardType, version: str, variant: str) -> dict[str, tuple[int, bytes]]:
    """Path to mode and content of what the bench puts over the packages."""
    values = layer.variables(board.machine)
    files: dict[str, tuple[int, bytes]] = {}
    for source in sorted(FILES.rglob("*")):
        if source.is_file() and source.name != "initramfs-init":
            text = layer.fill(source.read_text(), values, source.name)
            mode = 0o755 if os.access(source, os.X_OK) else 0o644
            files[str(source.relative_to(FILES))] = (mode, text.encode())
    files["usr/bin/mender-update"] = files["usr/bin/update-agent"]
    files["etc/fw_env.config"] = (0o644, layer.filled(layer.FW_ENV_CONFIG, values).encode())
    files["etc/mender/device_type"] = (0o644, f"device_type={values['UPDATE_DEVICE_TYPE']}\n".encode())
    files["etc/hostname"] = (0o644, b"board\n")
    files["etc/os-release"] = (0o644, f"ID=bench\nNAME=bench\nVERSION={version}\n".encode())
    if variant == "panic":
        files["sbin/init"] = (0o755, b"#!/bin/sh\necho 'board: this version is broken' >/dev/console\n")
    files |= _agent()
    return files


def _agent() -> dict[str, tuple[int, bytes]]:
    """The agent of this checkout, with its byte code."""
    place = "usr/lib/python3/dist-packages/update_agent"
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / place
        shutil.copytree(AGENT, copy, ignore=shutil.ignore_patterns("__pycache__"))
        _compile(copy, drop_sources=False)
        return {
            str(path.relative_to(scratch)): (0o644, path.read_bytes())
            for path in sorted(copy.rglob("*"))
            if path.is_file()
        }


def _put(path: Path, mode: int, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # may be a link to busybox
    path.write_bytes(data)
    path.chmod(mode)


def _copy_sorted(source: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    run(["sh", "-c", 'tar -C "$0" --sort=name -c . | tar -C "$1" -x', source, target])


def _size(board: BoardType) -> int:
    return layer.Layout(layer.variables(board.machine)).sizes["A"]


def _make_ext4(tree: Path, image: Path, size_bytes: int) -> None:
    with image.open("wb") as file:
        file.truncate(size_bytes)
    options = f"hash_seed={_HASH_SEED},lazy_itable_init=0,root_owner=0:0"
    features = "^has_journal"  # the root is mounted read-only; a journal would change it at the first mount
    words = ["mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-U", _UUID, "-E", options]
    try:
        run([*words, "-O", features, "-L", "rootfs", "-d", tree, image])
    except BenchError as error:
        used = run(["du", "-sm", tree]).split()[0]
        raise BenchError(
            f"the root file system of {used} MiB does not fit {size_bytes >> 20} MiB: {error.message}",
            hint="UPDATE_ROOTFS_SIZE_MB in meta-update/conf/update",
        ) from error
