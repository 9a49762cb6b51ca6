# SPDX-License-Identifier: Apache-2.0
"""Artifacts for tests, correct ones and broken ones, byte by byte and without the tool or reader under test.

Artifact(files={"a.txt": b"x"}).build()                    a correct one
tar(replace(Artifact().members(), "version", data=b"{}"))  one with a member changed, same checksums
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import lzma
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from dataclasses import replace as changed
from pathlib import Path
from typing import Any

import zstandard

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    ".gz": lambda data: gzip.compress(data, mtime=0),
    ".xz": lambda data: lzma.compress(data, preset=1),
    ".zst": zstandard.ZstdCompressor(level=3).compress,
}
END = bytes(1024)


def header(
    name: str | bytes,
    size: int | bytes,
    *,
    kind: bytes = b"0",
    mode: bytes = b"0000644\0",
    magic: bytes = b"ustar\x0000",
    prefix: bytes = b"",
    link: bytes = b"",
    checksum: bytes | None = None,
) -> bytes:
    """One tar header block. A `size` of bytes goes in as it is."""
    raw_name = name.encode() if isinstance(name, str) else name
    raw_size = size if isinstance(size, bytes) else b"%011o\0" % size
    block = b"".join(
        (
            raw_name.ljust(100, b"\0"),
            mode,
            b"0000000\0" * 2,
            raw_size,
            b"%011o\0" % 0,
            b" " * 8,
            kind,
            link.ljust(100, b"\0"),
            magic,
            bytes(32 + 32 + 8 + 8),
            prefix.ljust(155, b"\0"),
        )
    ).ljust(512, b"\0")
    assert len(block) == 512
    return block[:148] + (checksum or b"%06o\0 " % sum(block)) + block[156:]


def padded(data: bytes) -> bytes:
    """Filled with zeros to whole blocks."""
    return data + bytes(-len(data) % 512)


@dataclass(frozen=True)
class Entry:
    """A tar member; `head` replaces its header block, `claimed` the size in it."""

    name: str
    data: bytes = b""
    kind: bytes = b"0"
    claimed: int | None = None
    head: bytes | None = None

    def encode(self) -> bytes:
        size = len(self.data) if self.claimed is None else self.claimed
        return (self.head or header(self.name, size, kind=self.kind)) + padded(self.data)


def tar(entries: Iterable[Entry], *, end: bytes = END) -> bytes:
    """An archive of these members."""
    return b"".join(entry.encode() for entry in entries) + end


def pax(records: dict[str, str], *, kind: bytes = b"x") -> bytes:
    """A PAX extension header with its records, to put before a member."""
    lines = []
    for key, value in records.items():
        rest = f" {key}={value}\n".encode()
        length = len(rest) + 1
        while len(f"{length}") + len(rest) != length:
            length += 1
        lines.append(f"{length}".encode() + rest)
    data = b"".join(lines)
    return header("PaxHeaders/x", len(data), kind=kind) + padded(data)


def long_name(name: str) -> bytes:
    """A GNU long name header, to put before a member."""
    data = name.encode() + b"\0"
    return header("././@LongLink", len(data), kind=b"L", magic=b"ustar  \0") + padded(data)


def replace(entries: list[Entry], name: str, /, **fields: Any) -> list[Entry]:
    """The same members with one changed; there must be one of that name."""
    assert any(entry.name == name for entry in entries)
    return [changed(entry, **fields) if entry.name == name else entry for entry in entries]


@dataclass
class Artifact:
    """A version 3 artifact; every part can be given, right or wrong. The manifest follows the parts."""

    name: str = "release-2"
    payload_type: str | None = "module"
    device_types: list[str] = field(default_factory=lambda: ["virt64"])
    files: dict[str, bytes] = field(default_factory=lambda: {"payload.bin": b"payload " * 100})
    scripts: dict[str, bytes] = field(default_factory=dict)
    compression: str = ""
    header_compression: str | None = None
    version: bytes = b'{"format":"mender","version":3}'
    header_info: dict[str, Any] | bytes | None = None
    type_info: dict[str, Any] | bytes | None = None
    meta_data: bytes | None = None
    header_entries: list[Entry] | None = None
    data_entries: list[Entry] | None = None
    sign: Callable[[bytes], bytes] | None = None
    """Gets the manifest, returns the raw signature."""
    edit_manifest: Callable[[str], str | bytes] = str

    def info(self) -> dict[str, Any]:
        """header-info as a correct artifact has it."""
        return {
            "payloads": [{"type": self.payload_type}],
            "artifact_provides": {"artifact_name": self.name},
            "artifact_depends": {"device_type": self.device_types},
        }

    def header_members(self) -> list[Entry]:
        """Members of the header archive."""
        if self.header_entries is not None:
            return self.header_entries
        info = self.info() if self.header_info is None else self.header_info
        kind = {"type": self.payload_type} if self.type_info is None else self.type_info
        entries = [Entry("header-info", _json(info))]
        entries += [Entry(f"scripts/{name}", data) for name, data in self.scripts.items()]
        entries.append(Entry("headers/0000/type-info", _json(kind)))
        if self.meta_data is not None:
            entries.append(Entry("headers/0000/meta-data", self.meta_data))
        return entries

    def members(self) -> list[Entry]:
        """Members of the outer archive."""
        suffix = self.compression if self.header_compression is None else self.header_compression
        packed = COMPRESS[suffix](tar(self.header_members()))
        if self.data_entries is None:
            entries = [Entry(name, data) for name, data in self.files.items()]
        else:
            entries = self.data_entries
        sums = {"version": self.version, f"header.tar{suffix}": packed}
        sums |= {f"data/0000/{name}": data for name, data in self.files.items()}
        lines = "".join(f"{hashlib.sha256(sums[name]).hexdigest()}  {name}\n" for name in sorted(sums))
        edited = self.edit_manifest(lines)
        manifest = edited.encode() if isinstance(edited, str) else edited
        members = [Entry("version", self.version), Entry("manifest", manifest)]
        if self.sign is not None:
            members.append(Entry("manifest.sig", base64.b64encode(self.sign(manifest))))
        members.append(Entry(f"header.tar{suffix}", packed))
        if self.payload_type is not None or entries:
            members.append(
                Entry(f"data/0000.tar{self.compression}", COMPRESS[self.compression](tar(entries)))
            )
        return members

    def build(self) -> bytes:
        """The artifact's bytes."""
        return tar(self.members())


def _json(document: dict[str, Any] | bytes) -> bytes:
    return document if isinstance(document, bytes) else json.dumps(document).encode()


@dataclass(frozen=True)
class SigningKey:
    """A key pair made by openssl: kind `rsa`, `rsa1024`, `ec`, `p384` or `ed25519`."""

    kind: str
    private: Path
    public: Path

    @classmethod
    def make(cls, directory: Path, kind: str, name: str = "key") -> SigningKey:
        options = {
            "rsa": ["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"],
            "rsa1024": ["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024"],
            "ec": ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"],
            "p384": ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"],
            "ed25519": ["-algorithm", "ED25519"],
        }[kind]
        private, public = directory / f"{name}-{kind}.pem", directory / f"{name}-{kind}.pub"
        _openssl("genpkey", *options, "-out", str(private))
        if kind != "ed25519":  # mender-artifact 3.9 reads PKCS#1 and SEC1, not PKCS#8
            private.write_bytes(_openssl("pkey", "-in", str(private), "-traditional"))
        _openssl("pkey", "-in", str(private), "-pubout", "-out", str(public))
        return cls(kind, private, public)

    def sign(self, manifest: bytes) -> bytes:
        """The signature; of ECDSA as ASN.1 DER."""
        data = self.private.with_suffix(".data")
        arguments = ["pkeyutl", "-sign", "-inkey", str(self.private), "-in", str(data)]
        if self.kind == "ed25519":
            data.write_bytes(manifest)
            return _openssl(*arguments, "-rawin")
        data.write_bytes(hashlib.sha256(manifest).digest())
        return _openssl(*arguments, "-pkeyopt", "digest:sha256")

    def sign_raw(self, manifest: bytes) -> bytes:
        """ECDSA as r and s, 32 bytes each, as mender-artifact writes it."""
        der = self.sign(manifest)
        r_length = der[3]
        r, s = der[4 : 4 + r_length], der[6 + r_length :]
        return b"".join(int.from_bytes(part, "big").to_bytes(32, "big") for part in (r, s))


def _openssl(*arguments: str) -> bytes:
    return subprocess.run(["openssl", *arguments], check=True, capture_output=True).stdout
