# SPDX-License-Identifier: Apache-2.0
"""Private keys that sign artifacts: RSA, ECDSA P-256, and Ed25519 as an extension of ours."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from update_agent.errors import ArtifactError
from update_agent.signature import MIN_RSA_BITS

if TYPE_CHECKING:
    from pathlib import Path

Supported = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


_LIMIT_BYTES = 1 << 20

# What people take for a private key, and what it is.
_NOT_PRIVATE = (
    (b"-----BEGIN PUBLIC KEY", "a public key", "the private key of the pair signs"),
    (b"-----BEGIN RSA PUBLIC KEY", "a public key", "the private key of the pair signs"),
    (b"-----BEGIN CERTIFICATE-", "a certificate", "the private key that belongs to it signs"),
    (
        b"-----BEGIN OPENSSH PRIVATE KEY",
        "a key in OpenSSH's own format",
        "ssh-keygen -p -m PKCS8 -f COPY converts a copy of it",
    ),
    (b"ssh-", "a public key of OpenSSH", "a private key in PEM is expected"),
)


def _load(pem: bytes, passphrase: bytes | None, path: Path) -> object:
    """The key in these bytes. Raises ArtifactError that says what they are instead."""
    start = pem.lstrip()
    for beginning, what, hint in _NOT_PRIVATE:
        if start.startswith(beginning):
            raise ArtifactError(f"{path} is {what}, no private key in PEM", hint=hint)
    is_encrypted = b"ENCRYPTED" in start[:300]
    if is_encrypted and not passphrase:
        raise ArtifactError(
            f"private key {path} has a passphrase", hint="put it into the environment: OTA_KEY_PASSPHRASE"
        )
    try:
        return serialization.load_pem_private_key(pem, passphrase if is_encrypted else None)
    except UnsupportedAlgorithm as error:
        raise ArtifactError(
            f"private key {path} is of a kind that is not known here", hint="RSA, ECDSA P-256 and Ed25519 are"
        ) from error
    except (ValueError, TypeError) as error:
        if is_encrypted:
            raise ArtifactError(
                f"private key {path} does not open with this passphrase", hint="OTA_KEY_PASSPHRASE gave it"
            ) from error
        raise ArtifactError(
            f"{path} is no private key, or a damaged one",
            hint="PEM with BEGIN PRIVATE KEY, RSA PRIVATE KEY or EC PRIVATE KEY is expected",
        ) from error


class PrivateKey:
    """A key that signs manifests (artifact-v3.md section 3)."""

    def __init__(self, key: Supported) -> None:
        self._key = key

    @classmethod
    def load(cls, path: Path, passphrase: bytes | None = None) -> PrivateKey:
        """Read a PEM file: PKCS#1, SEC1 or PKCS#8. Raises ArtifactError for other keys."""
        try:
            with path.open("rb") as file:
                pem = file.read(_LIMIT_BYTES)
        except OSError as error:
            raise ArtifactError(f"private key {path} cannot be read: {error.strerror}") from error
        key = _load(pem, passphrase, path)
        if isinstance(key, rsa.RSAPrivateKey):
            if key.key_size < MIN_RSA_BITS:
                raise ArtifactError(f"private key {path}: RSA of {key.key_size} bits is too short")
            return cls(key)
        if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1):
            return cls(key)
        if isinstance(key, ed25519.Ed25519PrivateKey):
            return cls(key)
        raise ArtifactError(
            f"private key {path} is of a kind that devices do not accept",
            hint=f"RSA of at least {MIN_RSA_BITS} bits, ECDSA P-256, or Ed25519 (update-agent only)",
        )

    @property
    def only_ours(self) -> bool:
        """Signatures by this kind of key are refused by other clients."""
        return isinstance(self._key, ed25519.Ed25519PrivateKey)

    def sign(self, manifest: bytes) -> bytes:
        """The content of manifest.sig. RSA and Ed25519 sign the same bytes in the same way each time."""
        if isinstance(self._key, rsa.RSAPrivateKey):
            raw = self._key.sign(manifest, padding.PKCS1v15(), hashes.SHA256())
        elif isinstance(self._key, ed25519.Ed25519PrivateKey):
            raw = self._key.sign(manifest)
        else:
            r, s = decode_dss_signature(self._key.sign(manifest, ec.ECDSA(hashes.SHA256())))
            raw = r.to_bytes(32, "big") + s.to_bytes(32, "big")
        return base64.b64encode(raw)
