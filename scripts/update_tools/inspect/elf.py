# SPDX-License-Identifier: Apache-2.0
"""Section: every ELF file by pyelftools: machine and ABI, needed libraries, hardening, size by package."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO

from . import hardening
from .boards import ARCHITECTURES
from .packages import Packages

if TYPE_CHECKING:
    from .findings import Findings
    from .subject import Subject
    from .tree import Entry, Tree

_MAGIC = b"\x7fELF"
# Not run by this processor, or not run at all.
_APART = re.compile(r"/(usr/)?lib/firmware/|/boot/|/usr/lib/debug/|/\.debug/|/usr/share/|/usr/src/")
_ORIGIN = re.compile(r"\$ORIGIN|\$\{ORIGIN\}")
_EM_BPF = {"EM_BPF", 247}
_ARM_HARD, _ARM_SOFT = 0x400, 0x200
# What pyelftools lets through when a file is broken.
_PYELFTOOLS_RAISES = (
    AssertionError,
    AttributeError,
    IndexError,
    KeyError,
    MemoryError,
    OverflowError,
    RecursionError,
    TypeError,
    UnicodeDecodeError,
    ZeroDivisionError,
)
_CANARY = re.compile(rb"\0__(stack_chk_(fail|guard)|intel_security_cookie)(_local)?\0")
# Compilers of languages that need no guard on the stack, or bring another one.
_OTHER_LANGUAGES = (b"\xff Go buildinf:", b"rustc version", b"/rustc/")
# With -fstack-protector-strong (OE-core, Debian) hardly any code of this size has no array on its stack.
_MUCH_CODE_BYTES = 16 << 10
_MAX_SEGMENTS, _MAX_TAGS, _MAX_STRINGS_BYTES = 1024, 4096, 64 << 20


class Elf:
    """What matters of one ELF file. Raises ValueError if it is damaged."""

    def __init__(self, path: str, stream: BinaryIO) -> None:
        from elftools.common.exceptions import ELFError
        from elftools.elf.elffile import ELFFile

        self.path = path
        self._size = stream.seek(0, 2)
        try:
            file = ELFFile(stream)
            self.machine = str(file.header.e_machine)
            self.bits = int(file.elfclass)
            self.kind = str(file.header.e_type)
            self.float_abi = _float_abi(self.machine, int(file.header.e_flags), self.kind)
            self._segments(file, stream)
        except _PYELFTOOLS_RAISES as error:
            raise ValueError(f"pyelftools cannot read it: {error}") from error
        except ELFError as error:
            raise ValueError(f"pyelftools cannot read it: {error}") from error

    def _segments(self, file: Any, stream: BinaryIO) -> None:
        self.interpreter = ""
        self.needed: list[str] = []
        self.search: list[str] = []
        self.soname = ""
        self.is_dynamic = self.has_relro = self.binds_now = self.is_pie = False
        self.stack_is_executable = False
        self.code_bytes = 0
        has_stack_note = False
        strings = b""
        header = file.header
        if header.e_phnum > _MAX_SEGMENTS or (header.e_phnum and header.e_phentsize not in {32, 56}):
            raise ValueError(f"{header.e_phnum} segments of {header.e_phentsize} bytes")
        for segment in file.iter_segments():
            kind = segment.header.p_type
            if segment.header.p_offset + segment.header.p_filesz > self._size:
                raise ValueError("the file is cut off")
            if kind == "PT_LOAD" and segment.header.p_flags & 1:
                self.code_bytes += segment.header.p_filesz
            elif kind == "PT_INTERP":
                if segment.header.p_filesz > 4096:
                    raise ValueError("the name of its loader does not end")
                self.interpreter = str(segment.get_interp_name())
            elif kind == "PT_GNU_RELRO":
                self.has_relro = True
            elif kind == "PT_GNU_STACK":
                has_stack_note = True
                self.stack_is_executable = bool(segment.header.p_flags & 1)
            elif kind == "PT_DYNAMIC":
                self.is_dynamic = True
                strings = self._dynamic(file, segment, stream)
        if self.is_dynamic and not has_stack_note and self.machine != "EM_AARCH64":
            self.stack_is_executable = True  # Linux's default for files without the note, except on arm64
        self.has_canary = bool(_CANARY.search(strings))
        self.should_have_canary = (
            self.is_dynamic
            and self.code_bytes >= _MUCH_CODE_BYTES
            and (self.has_canary or not _is_of_other_language(stream))
        )

    def _dynamic(self, file: Any, segment: Any, stream: BinaryIO) -> bytes:
        """Take what the dynamic section says; its string table."""
        named: list[tuple[str, int]] = []
        table = size = 0
        for count, tag in enumerate(segment.iter_tags()):
            name, value = tag.entry.d_tag, tag.entry.d_val
            if count > _MAX_TAGS:
                raise ValueError("its dynamic section does not end")
            if name in {"DT_NEEDED", "DT_RPATH", "DT_RUNPATH", "DT_SONAME"}:
                named.append((name, value))
            elif name == "DT_BIND_NOW" or (name == "DT_FLAGS" and value & 8):
                self.binds_now = True
            elif name == "DT_FLAGS_1":
                self.binds_now = self.binds_now or bool(value & 1)
                self.is_pie = bool(value & 0x08000000)
            elif name == "DT_STRTAB":
                table = value
            elif name == "DT_STRSZ":
                size = value
        offsets = list(file.address_offsets(table)) if table else []
        if not offsets or size > _MAX_STRINGS_BYTES:
            raise ValueError("its dynamic section has no strings")
        stream.seek(offsets[0])
        strings = stream.read(size)
        for name, at in named:
            text = strings[at : at + 4096].split(b"\0")[0].decode(errors="backslashreplace")
            if name == "DT_NEEDED":
                self.needed.append(text)
            elif name == "DT_SONAME":
                self.soname = text
            else:
                self.search += [part for part in text.split(":") if part or text]
        return strings

    @property
    def is_program(self) -> bool:
        """Started by exec: it has an interpreter, or it is fixed in memory."""
        return self.kind == "ET_EXEC" or bool(self.interpreter) or self.is_pie

    @property
    def is_runnable(self) -> bool:
        """Program or library, not an object file such as a kernel module."""
        return self.kind in {"ET_EXEC", "ET_DYN"}

    @property
    def architecture(self) -> str:
        """Its name in ARCHITECTURES, else pyelftools' word for the machine."""
        for name, (machine, bits, float_abi) in ARCHITECTURES.items():
            if (machine, bits) == (self.machine, self.bits) and float_abi in {self.float_abi, ""}:
                return name
        return f"{self.machine.removeprefix('EM_').lower()}, {self.bits} bit"

    def document(self) -> dict[str, object]:
        """For JSON."""
        return {
            "architecture": self.architecture,
            "type": self.kind.removeprefix("ET_").lower(),
            "interpreter": self.interpreter,
            "needed": self.needed,
            "pie": self.kind == "ET_DYN" if self.is_program else None,
            "relro": ("full" if self.binds_now else "partial") if self.has_relro else "none",
            "canary": self.has_canary,
            "nx": not self.stack_is_executable,
        }


def _is_of_other_language(stream: BinaryIO) -> bool:
    """Go and Rust say so somewhere in the file."""
    stream.seek(0)
    before = b""
    while piece := stream.read(1 << 20):
        if any(mark in before + piece for mark in _OTHER_LANGUAGES):
            return True
        before = piece[-32:]
    return False


def _float_abi(machine: str, flags: int, kind: str) -> str:
    if machine != "EM_ARM" or kind == "ET_REL":
        return ""
    return "hard" if flags & _ARM_HARD else "soft" if flags & _ARM_SOFT else ""


def section(subject: Subject) -> dict[str, object] | None:
    """All ELF files as a document; None without a root file system."""
    root = subject.root
    if root is None:
        return None
    files = read_all(root, subject.findings)
    if not files:
        return None
    architecture = subject.board.architecture or _most(files)
    libraries = _Libraries(root, files)
    packages = Packages(root)
    for file in files.values():
        if not _check_machine(subject.findings, file, architecture):
            continue
        libraries.check(subject.findings, file)
        if file.is_runnable:
            hardening.check(subject.findings, file)
    of_package: dict[str, list[Elf]] = {}
    for path, file in files.items():
        of_package.setdefault(packages.owner(path), []).append(file)
    hardening.check_canaries(subject.findings, files.values())
    sizes = {name: sum(root.entries[file.path].size for file in group) for name, group in of_package.items()}
    order = sorted(sizes, key=lambda name: (-sizes[name], name))
    return {
        "architecture": architecture,
        "packages_from": packages.source,
        "size_by_package": {name: sizes[name] for name in order},
        "hardening": hardening.summary(files.values()),
        "hardening_by_package": {name: hardening.summary(of_package[name]) for name in order},
        "files": {path: file.document() for path, file in files.items()},
    }


def read_all(root: Tree, findings: Findings) -> dict[str, Elf]:
    """Every ELF file that the board's processor runs, by path."""
    files = {}
    for path, entry in sorted(root.entries.items()):
        if not _is_elf(root, entry) or _APART.match(path) or path.endswith((".o", ".a")):
            continue
        try:
            file = Elf(path, root.open(entry))
        except ValueError as error:
            findings.add("elf-damaged", path, str(error))
            continue
        if file.machine not in _EM_BPF:
            files[path] = file
    return files


def _is_elf(root: Tree, entry: Entry) -> bool:
    return entry.is_file and entry.size >= 52 and root.content(entry, 4) == _MAGIC


def _most(files: dict[str, Elf]) -> str:
    """The architecture that most are of: so the odd one out is found on any board."""
    counts = Counter(file.architecture for file in files.values() if file.is_runnable)
    return counts.most_common(1)[0][0] if counts else next(iter(files.values())).architecture


def _check_machine(findings: Findings, file: Elf, architecture: str) -> bool:
    if file.architecture == architecture or (not file.is_runnable and file.machine == _machine(architecture)):
        return True
    if file.machine == _machine(architecture) == "EM_ARM":
        findings.add(
            "wrong-float-abi", file.path, f"{file.float_abi or 'no'} float ABI, the image is {architecture}"
        )
    else:
        findings.add(
            "wrong-architecture", file.path, f"it is {file.architecture}, the image is {architecture}"
        )
    return False


def _machine(architecture: str) -> str:
    return ARCHITECTURES.get(architecture, ("", 0, ""))[0]


class _Libraries:
    """Finds libraries as the device's loader does: own path, ld.so.conf, the default directories."""

    def __init__(self, root: Tree, files: dict[str, Elf]) -> None:
        self._root = root
        self._files = files
        self._by_name: dict[tuple[str, str, int], str] = {}
        for path, file in files.items():
            for name in {path.rpartition("/")[2], file.soname}:
                self._by_name.setdefault((name, file.machine, file.bits), path)
        self._directories = ["/lib", "/usr/lib", "/lib64", "/usr/lib64"]
        for base in ("/lib", "/usr/lib"):
            for name in root.names(base):
                if re.fullmatch(r"\w+-linux-(gnu|musl)\w*", name):
                    self._directories.append(f"{base}/{name}")
        self._configured("/etc/ld.so.conf", 0)
        for name in root.names("/etc"):
            if name.startswith("ld-musl-") and name.endswith(".path"):
                self._directories += (root.text(f"/etc/{name}") or "").replace(":", "\n").split()

    def _configured(self, path: str, depth: int) -> None:
        for line in (self._root.text(path) or "").splitlines():
            words = line.split("#")[0].split()
            if words[:1] == ["include"] and depth < 4:
                for pattern in words[1:]:
                    directory = str(PurePosixPath("/etc", pattern).parent)
                    for name in self._root.names(directory):
                        if PurePosixPath(name).match(PurePosixPath(pattern).name):
                            self._configured(f"{directory}/{name}", depth + 1)
            else:
                self._directories += words

    def check(self, findings: Findings, file: Elf) -> None:
        """Add findings for what the file needs and does not find."""
        if file.interpreter and self._root.find(file.interpreter) is None:
            findings.add("missing-interpreter", file.path, file.interpreter)
        origin = str(PurePosixPath(file.path).parent)
        own = [_ORIGIN.sub(lambda _: origin, part) for part in file.search]
        for part in own:
            if not part.startswith("/") or re.match(r"/(home|build|tmp|work|root|mnt|media)/", part):
                findings.add("insecure-rpath", file.path, f"{part or 'an empty entry'}")
        for name in file.needed:
            self._check_library(findings, file, name, own)

    def _check_library(self, findings: Findings, file: Elf, name: str, own: list[str]) -> None:
        if "/" in name:
            origin = str(PurePosixPath(file.path).parent)
            places = [_ORIGIN.sub(lambda _: origin, name)]
        else:
            places = [f"{directory}/{name}" for directory in (*own, *self._directories)]
        other = None
        for place in places:
            entry = self._root.find(place)
            if entry is None or not entry.is_file:
                continue
            library = self._files.get(entry.path)
            if library is None or (library.machine, library.bits) == (file.machine, file.bits):
                return
            other = library
        if other is not None:
            findings.add(
                "library-wrong-architecture", file.path, f"{name}: {other.path} is {other.architecture}"
            )
            return
        elsewhere = self._by_name.get((name, file.machine, file.bits), "")
        if not elsewhere:
            findings.add("missing-library", file.path, name)
        elif file.is_program:  # what loads a library may have loaded its libraries before it
            what = f"{name}: there is {elsewhere}, where the loader does not look"
            findings.add("missing-library", file.path, what)
