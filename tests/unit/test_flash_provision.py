# SPDX-License-Identifier: Apache-2.0
"""What `ota flash` puts into the data partition, where the agent finds it. The rest stays as it was built."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tempfile
from pathlib import Path

import pexpect
import pytest
from tests.unit import flash_card
from tests.unit.flash_card import loop
from tests.unit.peer import openssl
from tests.unit.test_flash import ENV, MIB, flash, on_a_terminal, said

from update_agent.artifact import Reader
from update_agent.config import load
from update_agent.keys import DeviceKey
from update_agent.log import Log
from update_tools.flash import ext4_write, provision, wifi
from update_tools.flash.cli import parser
from update_tools.flash.errors import FlashError
from update_tools.inspect.ext4 import Ext4Tree

LAYOUT = flash_card.LAYOUT
URL = "https://updates.example.com"
PASSWORD = 'say "friend" \\ enter'


@pytest.fixture
def card(tmp_path: Path) -> Path:
    return flash_card.make(tmp_path / "card.wic")


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    """A folder with all that can be given."""
    folder = tmp_path / "secrets"
    folder.mkdir()
    (folder / "device.pem").write_bytes(openssl("genpkey", "-algorithm", "ED25519"))
    (folder / "token").write_text("eyJ0.eyJ0.c2ln\n")
    (folder / "wifi").write_text(PASSWORD + "\n")
    (folder / "ssh").mkdir()
    (folder / "ssh/ssh_host_ed25519_key").write_text("a private key\n")
    (folder / "ssh/ssh_host_ed25519_key.pub").write_text("a public key\n")
    (folder / "ssh/id_rsa").write_text("of a person\n")
    names = ("-x509", "-newkey", "ed25519", "-nodes", "-subj", "/CN=updates", "-keyout", folder / "ca.key")
    (folder / "server.crt").write_bytes(openssl("req", *names))
    return folder


def everything(secrets: Path) -> list[object]:
    return [
        *("--device-type", "product-b", "--server-url", URL, "--server-certificate", secrets / "server.crt"),
        *("--tenant-token", secrets / "token", "--device-key", secrets / "device.pem"),
        *("--host-keys", secrets / "ssh", "--wifi", "Büro", "--wifi-password-file", secrets / "wifi"),
        *("--wifi-country", "DE"),
    ]


def tree(path: Path, slot: str = "DATA") -> Ext4Tree:
    image = io.BytesIO(path.read_bytes())
    return Ext4Tree(image, LAYOUT.offset(slot), slot)


def is_sound(path: Path, scratch: Path) -> bool:
    content = path.read_bytes()[LAYOUT.offset("DATA") :][: LAYOUT.sizes["DATA"]]
    (scratch / "data.ext4").write_bytes(content)
    done = subprocess.run(["e2fsck", "-fn", scratch / "data.ext4"], check=False, capture_output=True)
    return done.returncode == 0


def store_of(path: Path, target: Path) -> Path:
    """The agent's store as the device sees it at /data/mender."""
    data = tree(path)
    target.mkdir()
    for entry in data.below("/mender"):
        if entry.is_file:
            (target / Path(entry.path).name).write_bytes(data.content(entry, MIB))
    return target


MODES = {
    "/mender": 0o40700,
    "/mender/device_type": 0o100644,
    "/mender/mender.conf": 0o100600,
    "/mender/mender-agent.pem": 0o100600,
    "/mender/server.crt": 0o100644,
    "/network": 0o40700,
    "/network/wpa_supplicant.conf": 0o100600,
    "/identity": 0o40700,
    "/identity/ssh": 0o40700,
    "/identity/ssh/ssh_host_ed25519_key": 0o100600,
    "/identity/ssh/ssh_host_ed25519_key.pub": 0o100644,
}


@pytest.mark.parametrize("kind", ["file", "device"])
def test_everything_arrives_where_the_agent_looks(
    kind: str, card: Path, secrets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "medium"
    if kind == "file":
        assert flash(card, "--to-file", place, "--json", *everything(secrets)) == 0
    else:
        with loop(place, 40 * MIB) as device:
            assert flash(card, device, "--yes", "--json", *everything(secrets)) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["provisioned"] == [
        *(
            "device_key",
            "device_type",
            "host_keys",
            "server_certificate",
            "server_url",
            "tenant_token",
            "wifi",
        )
    ]
    data = tree(place)
    found = {path: data.entries[path] for path in MODES}
    assert {path: entry.mode for path, entry in found.items()} == MODES
    assert {(entry.uid, entry.gid) for entry in found.values()} == {(0, 0)}
    assert "/identity/ssh/id_rsa" not in data.entries
    assert is_sound(place, tmp_path)

    store = store_of(place, tmp_path / "store")
    (tmp_path / "root.conf").write_text(json.dumps(flash_card.CONFIG))
    config = load(path=str(tmp_path / "root.conf"), datastore=str(store))
    assert config.warnings == []
    assert config.servers == [URL]
    assert config.tenant_token == "eyJ0.eyJ0.c2ln"
    assert config.server_certificate == "/data/mender/server.crt"
    assert config.device_type() == "product-b"
    key = DeviceKey(config, Log(stream=io.StringIO()))
    key.ensure()
    assert key.public_pem() == openssl("pkey", "-in", secrets / "device.pem", "-pubout").decode()
    header = Reader(io.BytesIO((store / "bootstrap.mender").read_bytes())).header
    assert (header.name, header.device_types) == ("release-1", ["product-b"])


def test_the_root_file_systems_stay_as_built(card: Path, secrets: Path, tmp_path: Path) -> None:
    place = tmp_path / "medium"
    assert flash(card, "--to-file", place, *everything(secrets)) == 0
    before, after = card.read_bytes(), place.read_bytes()
    start = LAYOUT.offset("DATA")
    assert after[:start] == before[:start]
    assert after[start:] != before[start:]
    for secret in (
        (secrets / "device.pem").read_bytes().split(b"\n")[1],
        b"friend",
        b"eyJ0",
        b"a private key",
    ):
        assert secret in after[start:]
        assert secret not in after[:start]


def test_a_second_time_the_new_counts(card: Path, tmp_path: Path) -> None:
    """Starting over with a card that has settings of its own."""
    place = tmp_path / "medium"
    assert flash(card, "--to-file", place, "--server-url", URL, "--wifi", "one", "--wifi-open") == 0
    given = ("--server-url", "http://10.0.0.1:8080", "--wifi", "two", "--wifi-open")
    assert flash(place, "--to-file", tmp_path / "second", *given) == 0
    data = tree(tmp_path / "second")
    assert json.loads(data.text("/mender/mender.conf") or "") == {
        "Servers": [{"ServerURL": "http://10.0.0.1:8080"}]
    }
    assert f"ssid={b'two'.hex()}" in (data.text("/network/wpa_supplicant.conf") or "")
    assert is_sound(tmp_path / "second", tmp_path)


def test_other_settings_of_the_data_partition_stay() -> None:
    wanted = provision.Provision()
    wanted.server_url = URL

    class Data:
        def text(self, path: str) -> str:
            return '{"serverurl": "https://old", "UpdatePollIntervalSeconds": 7}'

    files = wanted.files(Data())  # type: ignore[arg-type]
    assert json.loads(files["/mender/mender.conf"].content or b"") == {
        "UpdatePollIntervalSeconds": 7,
        "Servers": [{"ServerURL": URL}],
    }


@pytest.mark.parametrize(
    ("config", "option"),
    [
        ({"Servers": [{"ServerURL": "https://other"}]}, "--server-url"),
        ({"serverurl": "https://other"}, "--server-url"),
        ({"TenantToken": "abc"}, "--tenant-token"),
        ({"ServerCertificate": "/etc/mender/server.crt"}, "--server-certificate"),
        ({"HttpsClient": {"Key": "/etc/key.pem"}}, "--device-key"),
        ({"Security": {"AuthPrivateKey": "pkcs11:x"}}, "--device-key"),
        ({"DeviceTypeFile": "/etc/device_type"}, "--device-type"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_what_the_image_would_override_is_refused(
    config: dict[str, object],
    option: str,
    packed: bool,
    secrets: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    image = flash_card.make(tmp_path / "card.wic", config)
    place = tmp_path / "medium"
    if packed:
        image = tmp_path / "card.wic.gz"
        image.write_bytes(flash_card.PACKERS["gz"]((tmp_path / "card.wic").read_bytes()))
    assert flash(image, "--to-file", place, *everything(secrets)) == 2
    assert f"{option} would not count: the image's /etc/mender/mender.conf sets" in said(capsys)
    if packed:  # known only when it is unpacked
        assert not place.read_bytes()[:MIB].strip(b"\0")
    else:
        assert not place.exists()


class Root:
    """Of a root file system, the files that say what an image reads."""

    def __init__(self, files: dict[str, str]) -> None:
        self.text = files.get
        self.find = files.get


SSHD = {"/etc/ssh/sshd_config": "HostKey /data/identity/ssh/ssh_host_rsa_key\n"}
DROPBEAR = {
    "/etc/default/dropbear": 'DROPBEAR_EXTRA_ARGS="-w"\nDROPBEAR_RSAKEY_DIR=/data/identity/dropbear\n'
}


@pytest.mark.parametrize(
    ("files", "keys", "message"),
    [
        (SSHD, "ssh_host_rsa_key", ""),
        (DROPBEAR, "dropbear_rsa_host_key", ""),
        (SSHD, "dropbear_rsa_host_key", "wants ssh_host_"),
        (DROPBEAR, "ssh_host_rsa_key", "wants dropbear_"),
        ({}, "ssh_host_rsa_key", "no SSH server of the image looks"),
        (
            {"/etc/ssh/sshd_config": "#HostKey /etc/ssh/ssh_host_rsa_key\n"},
            "ssh_host_rsa_key",
            "no SSH server",
        ),
        ({}, "", "nothing in the image reads it"),
        ({provision.WIFI_UNITS[1]: "[Service]"}, "", ""),
    ],
)
def test_what_the_image_does_not_read_is_refused(files: dict[str, str], keys: str, message: str) -> None:
    wanted = provision.Provision()
    if keys:
        wanted.host_keys = {keys: b"key"}
    else:
        wanted.wifi = "network"
    if message:
        with pytest.raises(FlashError, match=message):
            wanted.check(Root(files))  # type: ignore[arg-type]
    else:
        wanted.check(Root(files))  # type: ignore[arg-type]


def test_an_image_without_data_partition(
    card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open(card, "r+b") as file:
        file.seek(LAYOUT.offset("DATA"))
        file.write(bytes(MIB))
    assert flash(card, "--to-file", tmp_path / "medium", "--server-url", URL) == 2
    assert "the image has no data partition" in said(capsys)


def test_a_full_data_partition(card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "large").write_bytes(os.urandom(4 * MIB))
    commands = f"write {tmp_path}/large large\n"
    where = f"{card}?offset={LAYOUT.offset('DATA')}"
    subprocess.run(
        ["debugfs", "-w", "-f", "-", where], input=commands, text=True, check=True, capture_output=True
    )
    keys = tmp_path / "ssh"
    keys.mkdir()
    (keys / "ssh_host_rsa_key").write_text("x" * 20000)
    assert flash(card, "--to-file", tmp_path / "medium", "--host-keys", keys) == 2
    assert "debugfs could not fill the data partition" in said(capsys)
    assert not (tmp_path / "medium").read_bytes()[:MIB].strip(b"\0"), "it would boot without its keys"


def test_what_cannot_be_meant(
    card: Path, secrets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    locked = tmp_path / "locked.pem"
    locked.write_bytes(openssl("genpkey", "-algorithm", "ED25519", "-aes256", "-pass", "pass:x"))
    (tmp_path / "two").write_text("two words")
    (tmp_path / "empty").write_text("")
    (tmp_path / "short").write_text("short")
    (tmp_path / "bytes").write_bytes(b"p\xe4ssword")
    table: list[tuple[list[object], str]] = [
        (["--device-type", "two words"], "is no device type"),
        (["--device-type", "a\nb"], "is no device type"),
        (["--server-url", "ftp://x"], "--server-url: 'ftp://x' is not an http:// or https:// URL"),
        (["--server-certificate", secrets / "token"], "holds no certificate"),
        (["--tenant-token", tmp_path / "two"], "one word is expected, the file has 2"),
        (["--tenant-token", tmp_path / "none"], "cannot read"),
        (["--device-key", secrets / "token"], "is no private key"),
        (["--device-key", secrets / "server.crt"], "is no private key"),
        (["--device-key", locked], "has a passphrase, which the device cannot know"),
        (["--host-keys", tmp_path / "none"], "is no folder"),
        (["--host-keys", tmp_path], "has no host keys"),
        (["--wifi", "x" * 33, "--wifi-open"], "1 to 32 bytes, not 33"),
        (["--wifi", "x", "--wifi-open", "--wifi-country", "de"], "is no country"),
        (["--wifi", "x", "--wifi-password-file", tmp_path / "short"], "cannot be one"),
        (["--wifi", "x", "--wifi-password-file", tmp_path / "empty"], "--wifi-open if the network has none"),
        (
            ["--wifi", "x", "--wifi-password-file", tmp_path / "none"],
            f"{tmp_path}/none: No such file or directory",
        ),
        (["--wifi", "x", "--wifi-password-file", tmp_path / "bytes"], "is no text in UTF-8"),
        (["--wifi", "x", "--wifi-open", "--wifi-password-file", tmp_path / "two"], "one of them"),
        (["--wifi", "x"], "the password of Wi-Fi 'x' is missing"),
        (["--wifi-country", "DE"], "--wifi SSID is missing"),
    ]
    for words, message in table:
        assert flash(card, "--to-file", tmp_path / "medium", *words) == 2, words
        assert message in said(capsys), words
    assert not (tmp_path / "medium").exists()


def test_a_password_is_asked_for_and_not_shown(card: Path, tmp_path: Path) -> None:
    terminal = on_a_terminal("flash", card, "--to-file", tmp_path / "medium", "--wifi", "Garten")
    terminal.expect_exact("Password of Wi-Fi Garten: ")
    terminal.sendline("much too secret")
    terminal.expect_exact("into the data partition: wifi")
    terminal.expect(pexpect.EOF)
    assert "much too" not in terminal.before
    assert terminal.wait() == 0
    assert 'psk="much too secret"' in (tree(tmp_path / "medium").text("/network/wpa_supplicant.conf") or "")


def test_a_password_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTA_WIFI_PASSWORD", PASSWORD)
    assert wifi.password("x", None) == PASSWORD
    assert "OTA_WIFI_PASSWORD" not in ENV


def test_no_option_takes_a_secret() -> None:
    """What stands on a command line, everybody on the machine can read."""
    actions = {option: action.metavar for action in parser()._actions for option in action.option_strings}
    assert {actions[option] for option in ("--wifi-password-file", "--tenant-token", "--device-key")} == {
        "FILE"
    }
    assert not [option for option, metavar in actions.items() if "password" in option and metavar != "FILE"]


def test_networks() -> None:
    assert "key_mgmt=NONE" in wifi.configuration("open", "")
    key = "A" * 64
    text = wifi.configuration("raw key", key)
    assert f"psk={key.lower()}\n" in text
    assert "SAE" not in text
    assert "ssid=6bff\n" in wifi.configuration(os.fsdecode(b"k\xff"), ""), "a name need not be text"
    assert 'psk="' + PASSWORD + '"\n' in wifi.configuration("words", PASSWORD)
    for bad in ("seven77", "x" * 65, "ümläute!!", "line\nbreak"):
        with pytest.raises(FlashError, match="cannot be one"):
            wifi.configuration("x", bad)


def test_a_secret_is_in_no_file_of_this_machine(
    card: Path, secrets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A debugfs of ours looks what it is given, and what lies about. The other tests run the real one."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    program = tmp_path / "bin/debugfs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ncat > {tmp_path}/commands\nfind {scratch} -type f > {tmp_path}/found\n")
    program.chmod(0o755)
    monkeypatch.setattr(ext4_write, "PATH", f"{program.parent}:/usr/bin:/bin")
    assert flash(card, "--to-file", tmp_path / "medium", *everything(secrets)) == 2
    commands = (tmp_path / "commands").read_text()
    assert "write /proc/self/fd/" in commands
    assert "friend" not in commands
    assert (tmp_path / "found").read_text() == ""
