# SPDX-License-Identifier: Apache-2.0
"""SHA-256 by OpenSSL, without the other hashes that `hashlib` loads beside it."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hashlib import sha256
else:
    try:
        from _hashlib import openssl_sha256 as sha256
    except ImportError:  # a Python without OpenSSL
        from hashlib import sha256

__all__ = ["sha256"]
