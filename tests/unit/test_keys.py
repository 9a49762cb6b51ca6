# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
from pathlib import Path

import pytest
from tests.unit.peer import openssl

from update_agent.config import Config
from update_agent.errors import ServerError
from update_agent.keys import DeviceKey
from update_agent.log import Log

BODY = b'{"id_data":"x"}' * 1000  # larger than a pipe takes at once

KINDS = {
    "ed25519": ("genpkey", "-algorithm", "ED25519"),
    "rsa": ("genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"),
    "rsa-old-format": ("genrsa", "-traditional", "2048"),
    "ecdsa": ("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"),
    "ecdsa-old-format": ("ecparam", "-name", "prime256v1", "-genkey"),
}


@pytest.fixture
def config(tmp_path: Path) -> Config:
    config = Config()
    config.datastore = str(tmp_path)
    return config


def device_key(config: Config) -> DeviceKey:
    return DeviceKey(config, Log(stream=io.StringIO()))


def verify(tmp_path: Path, key: DeviceKey, data: bytes, signature: bytes) -> None:
    """Raises CalledProcessError when openssl does not accept the signature."""
    (tmp_path / "public.pem").write_text(key.public_pem())
    (tmp_path / "data").write_bytes(data)
    (tmp_path / "signature").write_bytes(signature)
    how = ["-rawin"] if len(signature) == 64 else ["-rawin", "-digest", "sha256"]
    openssl(
        *("pkeyutl", "-verify", "-pubin", "-inkey", tmp_path / "public.pem"),
        *("-in", tmp_path / "data", "-sigfile", tmp_path / "signature", *how),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_existing_keys_of_all_kinds_sign(config: Config, tmp_path: Path, kind: str) -> None:
    path = Path(config.key_file())
    path.write_bytes(openssl(*KINDS[kind]))
    before = path.read_bytes()
    key = device_key(config)
    key.ensure()
    assert key.public_pem().startswith("-----BEGIN PUBLIC KEY-----\n")
    assert key.public_pem().endswith("-----END PUBLIC KEY-----\n")
    verify(tmp_path, key, BODY, key.sign(BODY))
    assert path.read_bytes() == before


def test_a_missing_key_is_made_once_and_only_for_root(config: Config, tmp_path: Path) -> None:
    key = device_key(config)
    key.ensure()
    path = Path(config.key_file())
    assert path.stat().st_mode & 0o777 == 0o600
    made = path.read_bytes()
    assert b"PRIVATE KEY" in made
    assert len(key.sign(BODY)) == 64  # Ed25519
    verify(tmp_path, key, BODY, key.sign(BODY))
    device_key(config).ensure()
    assert path.read_bytes() == made
    device_key(config).ensure(force=True)
    assert path.read_bytes() != made
    assert sorted(entry.name for entry in tmp_path.iterdir() if "mender" in entry.name) == [
        "mender-agent.pem"
    ]


@pytest.mark.parametrize(
    "content", [b"", b"garbage", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"]
)
def test_a_broken_key_is_an_error_and_stays(config: Config, content: bytes) -> None:
    path = Path(config.key_file())
    path.write_bytes(content)
    key = device_key(config)
    key.ensure()
    with pytest.raises(ServerError, match="reading the device key"):
        key.sign(BODY)
    assert path.read_bytes() == content


def test_an_encrypted_key_fails_instead_of_asking(config: Config) -> None:
    Path(config.key_file()).write_bytes(openssl(*KINDS["ed25519"], "-aes256", "-pass", "pass:secret"))
    with pytest.raises(ServerError, match="reading the device key"):
        device_key(config).public_pem()


@pytest.mark.parametrize("kind", ["ed25519", "rsa"])
def test_an_encrypted_key_opens_with_its_passphrase(config: Config, tmp_path: Path, kind: str) -> None:
    Path(config.key_file()).write_bytes(openssl(*KINDS[kind], "-aes256", "-pass", "pass:s3 cret"))
    config.key_passphrase = "s3 cret"
    key = device_key(config)
    verify(tmp_path, key, BODY, key.sign(BODY))
    config.key_passphrase = "wrong"
    with pytest.raises(ServerError, match=r"reading the device key .*passphrase-file"):
        device_key(config).public_pem()


def test_configured_keys_come_first_and_are_never_made(config: Config, tmp_path: Path) -> None:
    config.https_client_key = str(tmp_path / "tls.pem")
    assert device_key(config).location == config.https_client_key
    config.auth_private_key = str(tmp_path / "auth.pem")
    key = device_key(config)
    assert key.location == config.auth_private_key
    key.ensure()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ServerError, match=r"auth\.pem"):
        key.public_pem()


def test_a_missing_data_partition_is_explained(config: Config) -> None:
    config.datastore += "/not-mounted"
    with pytest.raises(ServerError, match="mounted"):
        device_key(config).ensure()


def test_keys_of_other_kinds_are_refused(config: Config) -> None:
    Path(config.key_file()).write_bytes(openssl("genpkey", "-algorithm", "ED448"))
    with pytest.raises(ServerError, match="unknown kind"):
        device_key(config).sign(BODY)
