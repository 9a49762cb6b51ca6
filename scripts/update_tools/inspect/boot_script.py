# SPDX-License-Identifier: Apache-2.0
"""Section: boot.scr (U-Boot's legacy image), and the kernel and device tree that it loads from a slot."""

from __future__ import annotations

import gzip
import io
import re
import struct
import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .subject import Subject
    from .tree import Tree

SCRIPT = "/boot.scr"
_MAGIC = 0x27051956
_IH_TYPE_SCRIPT = 6
_LOAD = re.compile(
    r"^\s*(?:if\s+)?(?:load|ext4load)\s+mmc\s+\S+\s+\$\{?(\w+)\}?\s+(/\S+?)(?:;.*)?$", re.MULTILINE
)
_UNFILLED = re.compile(r"@@[A-Z][A-Z0-9_]*@@")
_FIXED_ROOT = re.compile(r"\broot=(/dev/\S+|PARTUUID=\S+|UUID=\S+|LABEL=\S+)")


_ROOT_STEM = re.compile(r"\broot=(/dev/[^\s$]+)\$\{")


class ScriptError(ValueError):
    """Not a script image."""


def parse(data: bytes) -> tuple[str, str]:
    """Name and text of a script image. Raises ScriptError, as U-Boot would refuse it."""
    if len(data) < 72:
        raise ScriptError("too short for an image")
    magic, header_crc, _, size, _, _, data_crc, _, _, kind, _, name = struct.unpack_from(">7I4B32s", data)
    if magic != _MAGIC:
        raise ScriptError("not made by mkimage")
    if zlib.crc32(data[:4] + bytes(4) + data[8:64]) != header_crc:
        raise ScriptError("the checksum of its header is wrong")
    body = data[64 : 64 + size]
    if len(body) != size or zlib.crc32(body) != data_crc:
        raise ScriptError("the checksum of its text is wrong")
    if kind != _IH_TYPE_SCRIPT:
        raise ScriptError(f"an image of type {kind}, not a script")
    (length,) = struct.unpack_from(">I", body)
    return name.split(b"\0")[0].decode(errors="replace"), body[8 : 8 + length].decode(errors="replace")


def section(subject: Subject) -> dict[str, object] | None:
    """The script and what it loads as a document; None without a boot partition."""
    boot = subject.boot
    if boot is None or subject.is_tryboot:
        return None
    data = boot.read(SCRIPT)
    if data is None:
        subject.findings.add("boot-script-missing", SCRIPT, "the boot partition has no boot script")
        return None
    try:
        name, text = parse(data)
    except ScriptError as error:
        subject.findings.add("boot-script-damaged", SCRIPT, str(error))
        return None
    _check_text(subject, text)
    _check_command_line(subject, boot)
    files = loads(text)
    for variable, path in files.items():
        _check_loaded(subject, variable, path)
    return {"name": name, "size_bytes": len(data), "loads": files, "text": text}


def loads(text: str) -> dict[str, str]:
    """Variable with the address -> path, of everything that a script loads.

    "/boot/" alone is a name that the layer left empty; the script tests for that.
    """
    return {match[1]: match[2] for match in _LOAD.finditer(text) if not match[2].endswith("/")}


def _check_text(subject: Subject, text: str) -> None:
    code = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    for word in sorted(set(_UNFILLED.findall(code))):
        subject.findings.add("boot-script-unfilled", SCRIPT, word)
    if "mender_boot_part" not in code:
        subject.findings.add("boot-script-one-slot", SCRIPT, "it never reads mender_boot_part")
    for stem in sorted(set(_ROOT_STEM.findall(code))):
        others = [slot.node for slot in subject.slots if slot.number and slot.node != f"{stem}{slot.number}"]
        if others:
            what = f"root={stem}…, mender.conf says {' and '.join(others)}"
            subject.findings.add("boot-script-other-card", SCRIPT, what)


def _check_command_line(subject: Subject, boot: Tree) -> None:
    """Raspberry Pi's firmware hands cmdline.txt on; the kernel takes the last root= it reads."""
    if match := _FIXED_ROOT.search(boot.text("/cmdline.txt") or ""):
        subject.findings.add("cmdline-fixed-root", "/cmdline.txt", match[0])


def _check_loaded(subject: Subject, variable: str, path: str) -> None:
    root = subject.root
    if root is None or "$" in path or "@@" in path:
        return
    data = root.read(path)
    if variable.startswith("kernel"):
        if data is None:
            subject.findings.add("kernel-missing", path, "the boot script loads it from the slot")
            return
        possible = kernel_architectures(data)
        wanted = subject.board.architecture
        if possible and wanted and wanted not in possible:
            what = f"a kernel for {possible[0]}, the board is {wanted}"
            subject.findings.add("kernel-wrong-architecture", path, what)
    elif variable.startswith("fdt") and data is None:
        subject.findings.add("devicetree-missing", path, "the boot script loads it from the slot")


def kernel_architectures(data: bytes) -> tuple[str, ...]:
    """Architectures that a kernel can be for, by the header of its image; none if that says nothing."""
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.GzipFile(fileobj=io.BytesIO(data)).read(4096)
        except (OSError, EOFError, zlib.error):
            return ()
    if data[0x38:0x3C] == b"ARM\x64":
        return ("aarch64",)
    if data[0x38:0x3C] == b"RSC\x05":
        return ("riscv64",)
    if data[0x24:0x28] in {b"\x18\x28\x6f\x01", b"\x01\x6f\x28\x18"}:
        return ("armhf", "armel")
    return ("x86_64", "i386") if data[0x202:0x206] == b"HdrS" else ()
