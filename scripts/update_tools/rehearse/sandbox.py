# SPDX-License-Identifier: Apache-2.0
"""The machine that is thrown away: namespaces of Linux, and a root made of memory and the host's /usr.

What runs in it is root there and nobody outside: users are mapped away, the host's /usr can only be read, the
network is a loopback of its own, and all else that it sees was made for it. A boot is a PID namespace: when
its first process ends, everything that ran is gone, as after a power cut.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import signal
import socket
import struct
import sys
from typing import TYPE_CHECKING, NoReturn

from update_agent.errors import UpdateError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_NEWNS, _NEWUTS, _NEWIPC = 0x00020000, 0x04000000, 0x08000000
_NEWUSER, _NEWPID, _NEWNET = 0x10000000, 0x20000000, 0x40000000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 1, 2, 4, 8
_MS_BIND, _MS_REC, _MS_PRIVATE = 4096, 16384, 1 << 18
_MNT_DETACH = 2
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1
_SYS_MOUNT_SETATTR = 442  # of all architectures, since Linux 5.12
_MOUNT_ATTR_RDONLY, _AT_FDCWD, _AT_RECURSIVE = 1, -100, 0x8000
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_FIRST_ID, _IDS = 100000, 65536  # users of the machine, as the host sees them
_libc = ctypes.CDLL(None, use_errno=True)
_HINT = (
    "run as root, or allow user namespaces (sysctl kernel.unprivileged_userns_clone=1); "
    "a container needs CAP_SYS_ADMIN and no masked /proc"
)


class SandboxError(UpdateError):
    """The host's kernel does not let us make the machine."""


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise SandboxError(f"{what}: {os.strerror(number)}", hint=_HINT)


def _unshare(flags: int) -> None:
    _check(_libc.unshare(flags), "cannot make namespaces")


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2). Raises SandboxError."""
    arguments = [os.fsencode(text) if text else None for text in (source, target, kind)]
    result = _libc.mount(*arguments, ctypes.c_ulong(flags), os.fsencode(data) if data else None)
    _check(result, f"cannot mount {source} at {target}")


def bind(source: str, target: str) -> None:
    """Show a directory or file at another place as well."""
    mount(source, target, flags=_MS_BIND | _MS_REC)


def bind_readonly(source: str, target: str) -> None:
    """The same, to be read only."""
    bind(source, target)
    attributes = struct.pack("4Q", _MOUNT_ATTR_RDONLY, 0, 0, 0)
    result = _libc.syscall(
        ctypes.c_long(_SYS_MOUNT_SETATTR),
        ctypes.c_int(_AT_FDCWD),
        os.fsencode(target),
        ctypes.c_uint(_AT_RECURSIVE),
        attributes,
        ctypes.c_size_t(len(attributes)),
    )
    _check(result, f"cannot make {target} read-only")


def unmount(target: str) -> None:
    """Take away what was mounted last there."""
    _check(_libc.umount2(os.fsencode(target), _MNT_DETACH), f"cannot unmount {target}")


def end_with_parent() -> None:
    """Have the kernel kill this process when its parent is gone; to be said again after setuid."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


class Ids:
    """How users of the machine are mapped: device root is `first` outside."""

    def __init__(self) -> None:
        self.is_root = os.geteuid() == 0
        self.first, self.count = (_FIRST_ID, _IDS) if self.is_root and _has_ids() else (0, 1)

    def own(self, root: str) -> None:
        """Give a tree to the machine's root."""
        if not self.first:
            return
        for folder, folders, files in os.walk(root):
            for name in [*folders, *files, ""]:
                os.lchown(os.path.join(folder, name), self.first, self.first)


def _has_ids() -> bool:
    """Whether these users exist here: not in a container that has only a few."""
    with open("/proc/self/uid_map", encoding="ascii") as file:
        rows = [[int(word) for word in line.split()] for line in file]
    return any(start <= _FIRST_ID and start + count >= _FIRST_ID + _IDS for start, _, count in rows)


def enter(root: str, *, usr: Sequence[str], more: Sequence[str] = ()) -> Ids:
    """Make this process see a new, empty root at `root`, with namespaces of its own.

    `usr`: directories laid over one another as /usr, the first one on top. `more`: others of the host that
    are to be seen. On return the old root is still at /.host, until `leave_host`.
    """
    ids = Ids()
    uid, gid = os.geteuid(), os.getegid()
    if not ids.is_root:
        _unshare(_NEWUSER)
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
            _write(f"/proc/self/{name}", text)
    _unshare(_NEWNS | _NEWNET | _NEWIPC | _NEWUTS)
    mount("none", "/", flags=_MS_REC | _MS_PRIVATE)
    socket.sethostname("rehearsal")
    _loopback_up()
    mount("rehearsal", root, "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=0755")
    for name in ("usr", "proc", "sys", "dev", "run", "tmp", ".host"):
        os.mkdir(os.path.join(root, name), 0o755)
    mount("usr", f"{root}/usr", "overlay", _MS_RDONLY | _MS_NODEV, f"lowerdir={':'.join(usr)}")
    for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        if os.path.islink(f"/{name}"):
            os.symlink(os.readlink(f"/{name}"), f"{root}/{name}")
        elif os.path.isdir(f"/{name}"):
            os.mkdir(f"{root}/{name}")
            bind_readonly(f"/{name}", f"{root}/{name}")
    for path in more:
        os.makedirs(f"{root}{path}", exist_ok=True)
        bind_readonly(path, f"{root}{path}")
    bind_readonly("/sys", f"{root}/sys")
    bind("/proc", f"{root}/proc")  # a full one must be there for a boot to get its own
    _devices(root)
    os.chdir(root)
    _check(_libc.pivot_root(b".", b".host"), "cannot change the root")
    os.chdir("/")
    return ids


def leave_host() -> None:
    """Take the old root away."""
    unmount("/.host")
    os.rmdir("/.host")


def _devices(root: str) -> None:
    mount("dev", f"{root}/dev", "tmpfs", _MS_NOSUID, "mode=0755")
    for name in _DEVICES:
        _write(f"{root}/dev/{name}", "")
        mount(f"/dev/{name}", f"{root}/dev/{name}", flags=_MS_BIND)
    for name, target in (("fd", "fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        os.symlink(f"/proc/self/{target}", f"{root}/dev/{name}")
    os.mkdir(f"{root}/dev/shm")


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as connection:
        request = struct.pack("16sh14x", b"lo", 0)
        (flags,) = struct.unpack_from("16xh", fcntl.ioctl(connection, _SIOCGIFFLAGS, request))
        fcntl.ioctl(connection, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | _IFF_UP))


class Boot:
    """One boot of the machine: `first` runs as its first process; when that ends, all end."""

    def __init__(self, ids: Ids, first: Callable[[], int]) -> None:
        """Start it. Raises SandboxError."""
        told, tell = os.pipe()
        wait, go = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(told)
            os.close(go)
            _between(tell, wait, first)
        os.close(tell)
        os.close(wait)
        try:
            reason = os.read(told, 1000)
            if reason != b"mapped?":
                raise SandboxError(reason.decode() or "the machine's first process ended", hint=_HINT)
            if not ids.is_root:
                _write(f"/proc/{self._pid}/setgroups", "deny")
            for name in ("uid_map", "gid_map"):
                _write(f"/proc/{self._pid}/{name}", f"0 {ids.first} {ids.count}")
            os.write(go, b"!")
            self._first = int(os.read(told, 20) or b"0")
        finally:
            os.close(told)
            os.close(go)
        self.pidfd = os.pidfd_open(self._pid)  # readable when it is all over

    def end(self) -> int:
        """Cut the power if it is still on, and return the first process's exit code; -9 after a cut."""
        try:
            if self._first:
                os.kill(self._first, signal.SIGKILL)
        except ProcessLookupError:
            pass
        status = os.waitpid(self._pid, 0)[1]
        os.close(self.pidfd)
        return os.waitstatus_to_exitcode(status)


def _between(tell: int, wait: int, first: Callable[[], int]) -> NoReturn:
    """The process between boot loader and first process: makes the namespaces, and ends with the latter."""
    code = 1
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        try:
            _unshare(_NEWUSER | _NEWNS | _NEWPID | _NEWIPC)
        except SandboxError as error:
            os.write(tell, error.message.encode())
            os._exit(1)
        os.write(tell, b"mapped?")
        if not os.read(wait, 1):
            os._exit(1)
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        _libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)
        end_with_parent()
        pid = os.fork()
        if pid:
            os.write(tell, str(pid).encode())
            os.close(tell)
        else:
            os.close(tell)
            os.close(wait)
            end_with_parent()
            try:
                _mount_own()
                code = first()
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    finally:
        os._exit(code if code >= 0 else 128 - code)


def _mount_own() -> None:
    """What is new with each boot."""
    mount("proc", "/proc", "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    for path in ("/run", "/tmp", "/dev/shm"):
        mount("tmpfs", path, "tmpfs", _MS_NOSUID | _MS_NODEV, f"mode={'0755' if path == '/run' else '1777'}")


def _write(path: str, text: str) -> None:
    try:
        with open(path, "w", encoding="ascii") as file:
            file.write(text)
    except OSError as error:
        if error.errno in {errno.EPERM, errno.EACCES, errno.EINVAL}:
            raise SandboxError(f"cannot write {path}: {os.strerror(error.errno)}", hint=_HINT) from error
        raise
