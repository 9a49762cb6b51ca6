# SPDX-License-Identifier: Apache-2.0
"""What the server signs with its own key: device tokens, download links, form tokens.

One 32-byte key in the data folder; each use has its own key derived from it, so a signature made for one
purpose is worth nothing for another.
"""

from __future__ import annotations

import base64
import hmac
import json
import os
import secrets
from pathlib import Path
from typing import Any

from update_tools.server.faults import Unauthorized

KEY_BYTES = 32


class Signer:
    """Makes and checks signatures of the server's own."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._derived: dict[str, bytes] = {}

    @classmethod
    def load(cls, path: Path) -> Signer:
        """Read the key, or make one (0600, on the medium before it is used)."""
        try:
            key = path.read_bytes()
        except FileNotFoundError:
            key = _make_key(path)
        if len(key) != KEY_BYTES:
            raise ValueError(f"{path} has {len(key)} bytes, a server key has {KEY_BYTES}")
        return cls(key)

    def sign(self, purpose: str, text: str) -> str:
        """A hex signature over the text, valid for this purpose only."""
        return hmac.digest(self._derive(purpose), text.encode(), "sha256").hex()

    def is_valid(self, purpose: str, text: str, signature: str) -> bool:
        """Whether `signature` is ours; takes the same time for every wrong one."""
        return hmac.compare_digest(self.sign(purpose, text).encode(), signature.encode("utf-8", "replace"))

    def issue(self, claims: dict[str, Any]) -> str:
        """A JWT (HS256) with these claims."""
        head = _b64({"alg": "HS256", "typ": "JWT"})
        body = f"{head}.{_b64(claims)}"
        return f"{body}.{_encode(self._mac(body))}"

    def open(self, token: str, *, now_s: float) -> dict[str, Any]:
        """The claims of a token of ours that has not expired. Raises Unauthorized."""
        try:
            body, _, signature = token.rpartition(".")
            if not hmac.compare_digest(self._mac(body), _decode(signature)):
                raise Unauthorized("the token was not issued by this server")
            claims = json.loads(_decode(body.split(".")[1]))
            expires = float(claims["exp"])
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise Unauthorized("the token is malformed") from error
        if now_s >= expires:
            raise Unauthorized("the token has expired")
        assert isinstance(claims, dict)
        return claims

    def _mac(self, body: str) -> bytes:
        return hmac.digest(self._derive("token"), body.encode("utf-8", "replace"), "sha256")

    def _derive(self, purpose: str) -> bytes:
        found = self._derived.get(purpose)
        if found is None:
            found = self._derived[purpose] = hmac.digest(self._key, purpose.encode(), "sha256")
        return found


def _make_key(path: Path) -> bytes:
    key = secrets.token_bytes(KEY_BYTES)
    beside = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(key)
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(beside, path)  # two servers starting at once: the first one's key counts
    except FileExistsError:
        return path.read_bytes()
    finally:
        os.unlink(beside)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return key


def _b64(value: dict[str, Any]) -> str:
    return _encode(json.dumps(value, separators=(",", ":")).encode())


def _encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
