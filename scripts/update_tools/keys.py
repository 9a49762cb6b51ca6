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


class PrivateKey:
    """A key that signs manifests (artifact-v3.md section 3)."""

    def __init__(self, key: Supported) -> None:
        self._key = key

    @classmethod
    def load(cls, path: Path, passphrase: bytes | None = None) -> PrivateKey:
        """Read a PEM file: PKCS#1, SEC1 or PKCS#8. Raises ArtifactError for other keys."""
        try:
            key = serialization.load_pem_private_key(path.read_bytes(), passphrase)
        except OSError as error:
            raise ArtifactError(f"private key {path} cannot be read: {error.strerror}") from error
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise ArtifactError(
                f"private key {path} cannot be used: {error}",
                hint="PEM with BEGIN PRIVATE KEY, RSA PRIVATE KEY or EC PRIVATE KEY is expected",
            ) from error
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
