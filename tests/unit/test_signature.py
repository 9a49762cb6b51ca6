# SPDX-License-Identifier: Apache-2.0
"""Signatures, with the real openssl on both sides."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from tests.support.artifacts import SigningKey

from update_agent import signature
from update_agent.errors import ArtifactError, ProcError

MANIFEST = b"00  version\n" * 50


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, SigningKey]:
    directory = tmp_path_factory.mktemp("keys")
    made = {kind: SigningKey.make(directory, kind) for kind in ("rsa", "rsa1024", "ec", "p384", "ed25519")}
    return made | {"other": SigningKey.make(directory, "ec", "other")}


def encoded(raw: bytes) -> bytes:
    return base64.b64encode(raw)


@pytest.mark.parametrize("kind", ["rsa", "ec", "ed25519"])
def test_good_signature(keys: dict[str, SigningKey], kind: str) -> None:
    key = keys[kind]
    assert signature.check(MANIFEST, encoded(key.sign(MANIFEST)), [str(key.public)]) == str(key.public)


@pytest.mark.parametrize("kind", ["rsa", "ec", "ed25519"])
def test_other_manifest_is_refused(keys: dict[str, SigningKey], kind: str) -> None:
    key = keys[kind]
    text = encoded(key.sign(MANIFEST))
    with pytest.raises(ArtifactError, match="did not make this signature"):
        signature.check(MANIFEST + b"x", text, [str(key.public)])


def test_ecdsa_as_r_and_s(keys: dict[str, SigningKey]) -> None:
    """The form mender-artifact writes, with r and s of every length."""
    key = keys["ec"]
    for number in range(20):
        manifest = MANIFEST + b"%d" % number
        raw = key.sign_raw(manifest)
        assert len(raw) == 64
        assert signature.check(manifest, encoded(raw), [str(key.public)])
    with pytest.raises(ArtifactError, match="not valid for any configured key"):
        signature.check(MANIFEST, encoded(raw[:63] + bytes([raw[63] ^ 1])), [str(key.public)])


@pytest.mark.parametrize(
    ("raw", "der"),
    [
        (bytes(63) + b"\x01", "3006 0201 00 0201 01".replace(" ", "")),
        (b"\x80" + bytes(31) + b"\x7f" + bytes(31), "3045 0221 0080" + "00" * 31 + "0220 7f" + "00" * 31),
    ],
)
def test_ecdsa_der(raw: bytes, der: str) -> None:
    assert signature.ecdsa_to_der(raw).hex() == der.replace(" ", "")


def test_white_space_in_the_text(keys: dict[str, SigningKey]) -> None:
    key = keys["rsa"]
    text = encoded(key.sign(MANIFEST))
    assert signature.check(MANIFEST, text[:64] + b"\n" + text[64:] + b" \r\n", [str(key.public)])


def test_keys_in_order_and_an_unreadable_one(keys: dict[str, SigningKey], tmp_path: Path) -> None:
    key, other = keys["rsa"], keys["other"]
    missing = str(tmp_path / "missing.pem")
    text = encoded(key.sign(MANIFEST))
    assert signature.check(MANIFEST, text, [missing, str(other.public), str(key.public)]) == str(key.public)
    with pytest.raises(ArtifactError) as caught:
        signature.check(MANIFEST, text, [missing, str(other.public)])
    message = str(caught.value)
    assert f"{missing} cannot be read: No such file" in message
    assert f"{other.public}: ECDSA key did not make this signature" in message
    assert "sign it with the private key that belongs to ArtifactVerifyKey" in message


def test_kind_of_key_and_of_signature_differ(keys: dict[str, SigningKey]) -> None:
    for signer in ("rsa", "ec", "ed25519"):
        for verifier in {"rsa", "ec", "ed25519"} - {signer}:
            with pytest.raises(ArtifactError, match="did not make this signature"):
                signature.check(MANIFEST, encoded(keys[signer].sign(MANIFEST)), [str(keys[verifier].public)])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "manifest.sig is empty"),
        (b"\n", "manifest.sig is empty"),
        (b"!!!!", "manifest.sig is not base64"),
        (b"AAAA", "did not make this signature"),
        (encoded(bytes(64)), "did not make this signature"),
        (encoded(bytes(256)), "did not make this signature"),
        (encoded(b"\x30" * 70), "did not make this signature"),
    ],
)
@pytest.mark.parametrize("kind", ["rsa", "ec", "ed25519"])
def test_nonsense_is_refused(keys: dict[str, SigningKey], kind: str, text: bytes, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        signature.check(MANIFEST, text, [str(keys[kind].public)])


@pytest.mark.parametrize(
    ("kind", "message"),
    [("rsa1024", "an RSA key of only 1024 bits"), ("p384", "on an elliptic curve other than P-256")],
)
def test_keys_not_accepted(keys: dict[str, SigningKey], kind: str, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        signature.load(str(keys[kind].public))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a public key in PEM form (it begins with BEGIN PUBLIC KEY"),
        (b"-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----\n", "is not a public key"),
        (b"-----BEGIN PUBLIC KEY-----\n????\n-----END PUBLIC KEY-----\n", "is damaged"),
        (b"-----BEGIN PUBLIC KEY-----\n\n-----END PUBLIC KEY-----\n", "is damaged"),
        (b"-----BEGIN PUBLIC KEY-----\nMIIB\n-----END PUBLIC KEY-----\n", "is damaged"),
        (
            b"-----BEGIN PUBLIC KEY-----\n" + b"A" * 70000 + b"-----END PUBLIC KEY-----\n",
            "is not a public key",
        ),
    ],
)
def test_keys_that_are_none(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(content)
    with pytest.raises(ArtifactError) as caught:
        signature.load(str(path))
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


def test_text_around_the_key_is_ignored(keys: dict[str, SigningKey], tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(b"# our key\n" + keys["ec"].public.read_bytes() + b"\n# end\n")
    assert signature.check(MANIFEST, encoded(keys["ec"].sign(MANIFEST)), [str(path)]) == str(path)


def test_openssl_missing(
    keys: dict[str, SigningKey], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    key = keys["rsa"]
    text = encoded(key.sign(MANIFEST))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ArtifactError, match=r"cannot verify the artifact's signature: .*openssl") as caught:
        signature.check(MANIFEST, text, [str(key.public)])
    assert "add openssl to the image" in str(caught.value)
    assert not isinstance(caught.value, ProcError)
