# SPDX-License-Identifier: Apache-2.0
"""A device key that never leaves its module: PKCS#11 by OpenSSL's engine, the module being SoftHSM."""

from __future__ import annotations

import io
import os
import subprocess
from pathlib import Path

import pytest
from tests.support.debian import unpacked

from update_agent.config import Config
from update_agent.errors import ServerError
from update_agent.keys import DeviceKey, kind
from update_agent.log import Log

LIBRARIES = "usr/lib/x86_64-linux-gnu"


@pytest.fixture
def token(tmp_path: Path, pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A token named `device`; the directory for keys that go into it."""
    if os.uname().machine != "x86_64":
        pytest.skip("the paths are those of amd64")
    hsm, tool, engine, p11 = (
        Path(unpacked(package, pytestconfig))
        for package in ("libsofthsm2", "softhsm2", "libengine-pkcs11-openssl", "libp11-3")
    )
    (tmp_path / "tokens").mkdir()
    configuration = tmp_path / "softhsm2.conf"
    configuration.write_text(f"directories.tokendir = {tmp_path}/tokens\nobjectstore.backend = file\n")
    monkeypatch.setenv("SOFTHSM2_CONF", str(configuration))
    monkeypatch.setenv("PKCS11_MODULE_PATH", f"{hsm}/usr/lib/softhsm/libsofthsm2.so")
    monkeypatch.setenv("OPENSSL_ENGINES", f"{engine}/{LIBRARIES}/engines-3")
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{p11}/{LIBRARIES}")
    monkeypatch.setenv("PATH", f"{tool}/usr/bin", prepend=os.pathsep)
    softhsm("--init-token", "--free", "--label", "device", "--so-pin", "1234")
    return tmp_path


def softhsm(*arguments: str) -> None:
    module = os.environ["PKCS11_MODULE_PATH"]
    argv = ["softhsm2-util", "--module", module, *arguments, "--pin", "1234"]
    subprocess.run(argv, check=True, capture_output=True)


def openssl(*arguments: str) -> bytes:
    return subprocess.run(["openssl", *arguments], check=True, capture_output=True).stdout


def device_key(token: Path, name: str, pin: str = "1234") -> DeviceKey:
    config = Config()
    config.datastore = str(token)
    config.auth_private_key = f"pkcs11:token=device;object={name};type=private?pin-value={pin}"
    config.auth_engine = "pkcs11"
    return DeviceKey(config, Log(stream=io.StringIO()))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("rsa", ("-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048")),
        ("ecdsa", ("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")),
    ],
)
def test_a_key_in_a_module_signs(token: Path, name: str, options: tuple[str, ...]) -> None:
    pem, body = str(token / "key.pem"), token / "body"
    openssl("genpkey", *options, "-out", pem)
    public = openssl("pkey", "-in", pem, "-pubout").decode()
    softhsm("--import", pem, "--token", "device", "--label", name, "--id", "01")
    os.unlink(pem)
    key = device_key(token, name)
    key.ensure()
    assert not (token / "mender-agent.pem").exists()
    assert key.public_pem() == public
    assert kind(public) == name
    body.write_bytes(b'{"id_data":"x"}' * 1000)
    (token / "signature").write_bytes(key.sign(body.read_bytes()))
    (token / "public.pem").write_text(public)
    verify = ["-verify", str(token / "public.pem"), "-signature", str(token / "signature")]
    openssl("dgst", "-sha256", *verify, str(body))


def test_a_key_that_the_module_does_not_have(token: Path) -> None:
    with pytest.raises(ServerError, match="reading the device key pkcs11:token=device;object=none"):
        device_key(token, "none").public_pem()


def test_a_key_of_tls_may_not_stay_in_the_module(token: Path) -> None:
    from update_agent.tls import context_for

    config = Config()
    config.https_client_certificate = str(token / "certificate.pem")
    config.https_client_key = "pkcs11:token=device;object=tls"
    with pytest.raises(ServerError, match=r"not supported for TLS .*Security.AuthPrivateKey may stay"):
        context_for(config)
