# SPDX-License-Identifier: Apache-2.0
"""A slot's boot partition, made from the /boot of its root file system. For a child process.

The firmware reads kernel, device tree, overlays and config.txt there, and has one command line for each boot
partition. So a plain root file system is the whole update: its /boot is what the boot partition gets, with
cmdline.txt naming the root partition that it belongs to.
"""

from __future__ import annotations

import os

from update_agent.errors import PayloadError
from update_agent.proc import output
from update_agent.slot_writer import install

TYPE_CHECKING = False
if TYPE_CHECKING:
    from update_agent.slots import Slot, Slots

_TIMEOUT_S = 60.0
_NEEDED = ("cmdline.txt", "config.txt")
_EXT_MAGIC = (1080, b"\x53\xef")
_CLONE_NEWNS = 0x20000
_MS_REC_PRIVATE = 0x4000 | 1 << 18
# What the kernel itself can find without an initial ramdisk.
_TAGS = (("/dev/disk/by-partuuid/", "PARTUUID="), ("/dev/disk/by-partlabel/", "PARTLABEL="))


def fill(root: Slot, boot: Slot, slots: Slots, mount_point: str) -> dict[str, object]:
    """Write the boot partition, verified, on the medium on return; what was done. Raises UpdateError.

    The root file system is mounted read-only where no other process sees it, and is unmounted by the kernel
    when this process ends, however it ends.
    """
    _leave_mount_namespace()
    try:
        os.makedirs(mount_point, exist_ok=True)
        journal = ",noload" if _is_ext(root.device) else ""  # replaying it would write to the slot
    except OSError as error:
        raise PayloadError(f"cannot look into {root.device}: {error}") from error
    _run(["mount", "-o", f"ro{journal}", root.device, mount_point], f"mount {root.device}")
    try:
        directory = os.path.join(mount_point, "boot")
        for name in _NEEDED:
            if not os.path.isfile(os.path.join(directory, name)):
                raise PayloadError(
                    f"the root file system on {root.device} has no /boot/{name}",
                    hint="for tryboot an image carries all of its boot partition in /boot: UPDATE_BOOTFLOW",
                )
        try:
            with open(os.path.join(directory, "cmdline.txt"), encoding="utf-8") as file:
                words = command_line(file.read(), root_argument(root))
            fd = os.open(boot.device, os.O_RDONLY | os.O_CLOEXEC)
            try:
                room = os.lseek(fd, 0, os.SEEK_END)
            finally:
                os.close(fd)
        except (OSError, UnicodeDecodeError) as error:
            raise PayloadError(f"cannot make the boot partition {boot.device}: {error}") from error
        from update_agent.fat16 import Fat16

        image = Fat16(directory, room, {"cmdline.txt": words.encode()})
        written = install(image, slots, boot)
    finally:
        _run(["umount", mount_point], f"unmount {root.device}")
    return {"size_bytes": written.size_bytes, "written_bytes": written.written_bytes}


def command_line(text: str, root: str) -> str:
    """The first line, which is all that the firmware reads, with this root= in place of any other."""
    words = text.partition("\n")[0].split()
    kept = [word for word in words if not word.startswith("root=")]
    at = next((number for number, word in enumerate(words) if word.startswith("root=")), len(kept))
    return " ".join([*kept[:at], root, *kept[at:]]) + "\n"


def root_argument(root: Slot) -> str:
    """The kernel's word for the root partition: as mender.conf names it, if the kernel knows that name."""
    for directory, tag in _TAGS:
        if root.configured.startswith(directory):
            return f"root={tag}{root.configured[len(directory) :]}"
    return f"root={root.device}"


def _is_ext(device: str) -> bool:
    fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        position, magic = _EXT_MAGIC
        return os.pread(fd, len(magic), position) == magic
    finally:
        os.close(fd)


def _leave_mount_namespace() -> None:
    """Have mounts of our own. Raises PayloadError."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS) or libc.mount(b"none", b"/", None, ctypes.c_ulong(_MS_REC_PRIVATE), None):
        raise PayloadError(
            f"cannot get a mount namespace: {os.strerror(ctypes.get_errno())}",
            hint="the agent must be root, and the kernel have CONFIG_NAMESPACES",
        )


def _run(argv: list[str], what: str) -> None:
    result, _, stderr = output(argv, timeout_s=_TIMEOUT_S)
    if not result.ok:
        said = stderr.decode(errors="backslashreplace").strip().replace("\n", "; ")
        raise PayloadError(f"cannot {what}: {argv[0]} {result.describe()}" + (f": {said}" if said else ""))
