# SPDX-License-Identifier: Apache-2.0
"""Verify the signature of a manifest with the `openssl` program (artifact-v3.md section 3).

RSA (PKCS#1 v1.5, at least 2048 bits) and ECDSA P-256 sign SHA-256(manifest), as mender-artifact does. Ed25519
is an extension of ours: it signs the manifest's bytes themselves; other clients refuse such artifacts.
Nothing touches the disk: key, signature and digest reach openssl through memory files.
"""

from __future__ import annotations

import binascii
import os

from update_agent.digest import sha256
from update_agent.errors import ArtifactError, ProcError
from update_agent.proc import output

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from update_agent.proc import Result

MIN_RSA_BITS = 2048
MAX_KEY_FILE_BYTES = 64 << 10
_TIMEOUT_S = 60.0
_RSA = bytes.fromhex("06092a864886f70d010101")  # OIDs with tag and length
_EC = bytes.fromhex("06072a8648ce3d0201")
_P256 = bytes.fromhex("06082a8648ce3d030107")
_ED25519 = bytes.fromhex("06032b6570")


class Key:
    """A public key: kind is `RSA`, `ECDSA` or `Ed25519`; pem is what openssl reads."""

    __slots__ = ("kind", "path", "pem")

    def __init__(self, path: str, kind: str, pem: bytes) -> None:
        self.path = path
        self.kind = kind
        self.pem = pem


def check(manifest: bytes, signature: bytes, key_paths: Sequence[str]) -> str:
    """Path of the first key that verifies the signature (base64 text) over the manifest.

    Keys are tried in order; an unreadable one matters only if no other verifies. Raises ArtifactError.
    """
    text = b"".join(signature.split())
    try:
        raw = binascii.a2b_base64(text, strict_mode=True)
    except binascii.Error as error:
        raise ArtifactError(f"manifest.sig is not base64: {error}") from error
    if not raw:
        raise ArtifactError("manifest.sig is empty")
    reasons = []
    for path in key_paths:
        try:
            key = load(path)
            if verify(key, manifest, raw):
                return path
            reasons.append(f"{path}: {key.kind} key did not make this signature")
        except ArtifactError as error:
            reasons.append(str(error))
    raise ArtifactError(
        f"the artifact's signature is not valid for any configured key: {'; '.join(reasons)}",
        hint="sign it with the private key that belongs to ArtifactVerifyKey",
    )


def load(path: str) -> Key:
    """Read a public key in PEM form (`BEGIN PUBLIC KEY`). Raises ArtifactError if it cannot be used."""
    try:
        with open(path, "rb") as file:
            pem = file.read(MAX_KEY_FILE_BYTES + 1)
    except OSError as error:
        raise ArtifactError(f"verification key {path} cannot be read: {error.strerror}") from error
    begin, end = b"-----BEGIN PUBLIC KEY-----", b"-----END PUBLIC KEY-----"
    start = pem.find(begin)
    stop = pem.find(end, start)
    if start < 0 or stop < 0 or len(pem) > MAX_KEY_FILE_BYTES:
        raise ArtifactError(
            f"verification key {path} is not a public key in PEM form",
            hint="it begins with BEGIN PUBLIC KEY; make it with openssl pkey -in private.key -pubout",
        )
    try:
        kind = key_kind(
            binascii.a2b_base64(b"".join(pem[start + len(begin) : stop].split()), strict_mode=True)
        )
    except (ValueError, IndexError) as error:
        raise ArtifactError(f"verification key {path} is damaged: {error}") from error
    if not kind.isalnum():
        raise ArtifactError(
            f"verification key {path} is {kind}",
            hint=f"RSA of at least {MIN_RSA_BITS} bits, ECDSA P-256 and Ed25519 keys are accepted",
        )
    return Key(path, kind, pem[start : stop + len(end)] + b"\n")


def verify(key: Key, manifest: bytes, signature: bytes) -> bool:
    """Whether the key made this signature (raw bytes). Raises ArtifactError without openssl."""
    if key.kind == "Ed25519":
        return _openssl(key, manifest, signature, ["-rawin"])
    digest = sha256(manifest).digest()
    options = ["-pkeyopt", "digest:sha256"]
    if key.kind == "RSA":
        return _openssl(key, digest, signature, [*options, "-pkeyopt", "rsa_padding_mode:pkcs1"])
    # 64 bytes are r and s; a DER signature of that length is possible, if very unlikely
    if len(signature) == 64 and _openssl(key, digest, ecdsa_to_der(signature), options):
        return True
    return signature[:1] == b"\x30" and _openssl(key, digest, signature, options)


def ecdsa_to_der(signature: bytes) -> bytes:
    """The 64 bytes r and s as ASN.1 SEQUENCE of two INTEGERs."""
    half = len(signature) // 2
    body = b""
    for part in (signature[:half], signature[half:]):
        number = int.from_bytes(part, "big")
        encoded = number.to_bytes(number.bit_length() // 8 + 1, "big")  # a leading zero keeps it positive
        body += bytes((0x02, len(encoded))) + encoded
    return bytes((0x30, len(body))) + body


def key_kind(der: bytes) -> str:
    """What a SubjectPublicKeyInfo holds: a kind we verify with, or in words why not."""
    outer, rest = der_element(der, 0x30)
    algorithm, key = der_element(outer, 0x30)
    if rest:
        raise ValueError("bytes after the key")
    if algorithm.startswith(_RSA):
        bits, _ = der_element(key, 0x03)
        numbers, _ = der_element(bits[1:], 0x30)
        modulus, _ = der_element(numbers, 0x02)
        size = int.from_bytes(modulus, "big").bit_length()
        return "RSA" if size >= MIN_RSA_BITS else f"an RSA key of only {size} bits"
    if algorithm.startswith(_EC):
        return "ECDSA" if algorithm == _EC + _P256 else "on an elliptic curve other than P-256"
    return "Ed25519" if algorithm == _ED25519 else "of an unknown kind"


def der_element(data: bytes, tag: int) -> tuple[bytes, bytes]:
    """Content of the first element, which must have this tag, and what follows it."""
    if data[0] != tag:
        raise ValueError(f"tag {data[0]:#x} where {tag:#x} belongs")
    length, start = data[1], 2
    if length & 0x80:
        start = 2 + (length & 0x7F)
        length = int.from_bytes(data[2:start], "big")
    if start + length > len(data):
        raise ValueError("cut off")
    return data[start : start + length], data[start + length :]


def _openssl(
    key: Key,
    data: bytes,
    signature: bytes,
    options: Sequence[str],
    run: Callable[..., tuple[Result, bytes, bytes]] = output,
) -> bool:
    files: list[int] = []
    try:
        paths = []
        for content in (key.pem, signature, data):
            fd = os.memfd_create("signature")
            files.append(fd)
            os.write(fd, content)
            paths.append(f"/proc/{os.getpid()}/fd/{fd}")
        argv = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", paths[0], "-sigfile", paths[1]]
        result, _, errors = run([*argv, "-in", paths[2], *options], timeout_s=_TIMEOUT_S)
    except ProcError as error:
        raise ArtifactError(
            f"cannot verify the artifact's signature: {error.message}", hint="add openssl to the image"
        ) from error
    finally:
        for fd in files:
            os.close(fd)
    if result.code not in (0, 1):
        raise ArtifactError(
            f"cannot verify the artifact's signature: openssl {result.describe()}: "
            f"{errors.decode('utf-8', 'replace').strip()[:300]}"
        )
    return result.ok
