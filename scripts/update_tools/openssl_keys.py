# SPDX-License-Identifier: Apache-2.0
"""Private keys that the program `openssl` signs with, where cryptography is not installed: a Yocto build."""

from __future__ import annotations

import binascii
import hashlib
import os
from typing import TYPE_CHECKING

from update_agent.errors import ArtifactError
from update_agent.proc import output
from update_agent.signature import MIN_RSA_BITS, der_element, key_kind

if TYPE_CHECKING:
    from pathlib import Path

_TIMEOUT_S = 60.0
_DIGEST = ["-pkeyopt", "digest:sha256"]


class PrivateKey:
    """A key that signs manifests, like `keys.PrivateKey`; RSA and Ed25519 make the same signatures."""

    def __init__(self, path: Path, kind: str, passphrase: bytes | None) -> None:
        self._path = path
        self._kind = kind
        self._passphrase = passphrase

    @classmethod
    def load(cls, path: Path, passphrase: bytes | None = None) -> PrivateKey:
        """Read a PEM file: PKCS#1, SEC1 or PKCS#8. Raises ArtifactError for other keys."""
        try:
            path.read_bytes()
        except OSError as error:
            raise ArtifactError(f"private key {path} cannot be read: {error.strerror}") from error
        public = _openssl(path, passphrase, "pkey", "-in", str(path), "-pubout", "-outform", "DER")
        kind = key_kind(public)
        if not kind.isalnum():
            raise ArtifactError(
                f"private key {path} is {kind}",
                hint=f"RSA of at least {MIN_RSA_BITS} bits, ECDSA P-256, or Ed25519 (update-agent only)",
            )
        return cls(path, kind, passphrase)

    @property
    def only_ours(self) -> bool:
        """Signatures by this kind of key are refused by other clients."""
        return self._kind == "Ed25519"

    def sign(self, manifest: bytes) -> bytes:
        """The content of manifest.sig."""
        if self._kind == "Ed25519":
            return binascii.b2a_base64(self._pkeyutl(manifest, "-rawin"), newline=False)
        digest = hashlib.sha256(manifest).digest()
        if self._kind == "RSA":
            raw = self._pkeyutl(digest, *_DIGEST, "-pkeyopt", "rsa_padding_mode:pkcs1")
        else:
            numbers, _ = der_element(self._pkeyutl(digest, *_DIGEST), 0x30)
            r, rest = der_element(numbers, 0x02)
            s, _ = der_element(rest, 0x02)
            raw = b"".join(int.from_bytes(part, "big").to_bytes(32, "big") for part in (r, s))
        return binascii.b2a_base64(raw, newline=False)

    def _pkeyutl(self, data: bytes, *options: str) -> bytes:
        fd = os.memfd_create("manifest")
        try:
            os.write(fd, data)
            source = f"/proc/{os.getpid()}/fd/{fd}"
            arguments = ("pkeyutl", "-sign", "-inkey", str(self._path), "-in", source, *options)
            return _openssl(self._path, self._passphrase, *arguments)
        finally:
            os.close(fd)


def _openssl(path: Path, passphrase: bytes | None, *arguments: str) -> bytes:
    """What openssl prints. Without a passphrase an encrypted key fails, instead of asking a terminal."""
    # In a file in memory: everybody can read the arguments of a process.
    fd = os.memfd_create("passphrase")
    try:
        os.write(fd, (passphrase or b"") + b"\n")
        argv = ["openssl", *arguments, "-passin", f"file:/proc/{os.getpid()}/fd/{fd}"]
        result, stdout, stderr = output(argv, timeout_s=_TIMEOUT_S)
    finally:
        os.close(fd)
    if not result.ok or not stdout:
        said = stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise ArtifactError(
            f"private key {path} cannot be used: openssl {result.describe()}: {''.join(said)[:300]}",
            hint="PEM with BEGIN PRIVATE KEY, RSA PRIVATE KEY or EC PRIVATE KEY is expected,"
            " its passphrase in OTA_KEY_PASSPHRASE",
        )
    return stdout
