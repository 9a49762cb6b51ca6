# SPDX-License-Identifier: Apache-2.0
"""Signatures of the server's own: valid for their purpose and time, and for nothing else."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from update_tools.server.faults import Unauthorized
from update_tools.server.tokens import Signer

SIGNER = Signer(b"k" * 32)


def test_token() -> None:
    token = SIGNER.issue({"sub": "device", "exp": 100})
    assert SIGNER.open(token, now_s=99.0)["sub"] == "device"
    with pytest.raises(Unauthorized, match="expired"):
        SIGNER.open(token, now_s=100.0)
    with pytest.raises(Unauthorized, match="not issued"):
        Signer(b"x" * 32).open(token, now_s=99.0)


@given(st.integers(0, 400), st.characters(codec="latin-1"))
def test_a_changed_token_is_worth_nothing(place: int, char: str) -> None:
    token = SIGNER.issue({"sub": "device", "exp": 100})
    place %= len(token)
    changed = token[:place] + char + token[place + 1 :]
    try:
        claims = SIGNER.open(changed, now_s=1.0)
    except Unauthorized:
        return
    # base64 has spare bits in its last character: the signature's bytes may be the same
    assert claims == {"sub": "device", "exp": 100}


def test_a_signature_is_for_one_purpose() -> None:
    signature = SIGNER.sign("download", "x")
    assert SIGNER.is_valid("download", "x", signature)
    assert not SIGNER.is_valid("form", "x", signature)
    assert not SIGNER.is_valid("download", "y", signature)
    assert not SIGNER.is_valid("download", "x", "ü" * 64)


def test_two_at_once_make_one_key(tmp_path: Path) -> None:
    path = tmp_path / "server.key"
    with ThreadPoolExecutor(8) as pool:
        signatures = set(pool.map(lambda _: Signer.load(path).sign("a", "b"), range(8)))
    assert len(signatures) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["server.key"]


def test_a_broken_key_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "server.key"
    path.write_bytes(b"short")
    with pytest.raises(ValueError, match="5 bytes"):
        Signer.load(path)
    assert path.read_bytes() == b"short"
