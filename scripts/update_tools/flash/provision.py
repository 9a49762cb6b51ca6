# SPDX-License-Identifier: Apache-2.0
"""What makes a card the card of one device: files for its data partition, and only for that.

The root file systems stay as they were built: they are equal on all devices, and end up in artifacts.
"""

from __future__ import annotations

import io
import json
import re
import tempfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from update_agent.artifact import Reader
from update_agent.config import CONF_DIR
from update_agent.errors import UpdateError
from update_agent.url import Url
from update_tools import artifact

from .errors import FlashError
from .ext4_write import New

if TYPE_CHECKING:
    from update_tools.inspect.tree import Tree

# On the data partition, which the device mounts at /data.
STORE = "/mender"
IDENTITY = "/identity"
WIFI = "/network/wpa_supplicant.conf"
_MOUNT = "/data"
# What reads them there: the layer's class update-image and its package update-wifi.
WIFI_UNITS = ("/usr/lib/systemd/system/update-wifi@.service", "/lib/systemd/system/update-wifi@.service")
# Server -> beginning of its keys' names, the file that says where they are, and how it says so.
SSH_SERVERS = {
    "ssh": ("ssh_host_", "/etc/ssh/sshd_config", f"HostKey {_MOUNT}{IDENTITY}/ssh/"),
    "dropbear": (
        "dropbear_",
        "/etc/default/dropbear",
        f"DROPBEAR_RSAKEY_DIR={_MOUNT}{IDENTITY}/dropbear",
    ),
}

_HOST_KEY = re.compile(r"(ssh_host_[a-z0-9]+_key(\.pub)?|dropbear_[a-z0-9]+_host_key)")
_SERVERS = ("ServerURL", "Servers")
_KEYS = ("AuthPrivateKey", "HttpsClient.Key", "Security.AuthPrivateKey")


class Provision:
    """What the card shall get; empty fields are left as the image has them."""

    def __init__(self) -> None:
        self.device_type = ""
        self.server_url = ""
        self.server_certificate = b""
        self.tenant_token = ""
        self.device_key = b""
        self.host_keys: dict[str, bytes] = {}
        self.wifi = ""

    def __bool__(self) -> bool:
        return any(vars(self).values())

    def settings(self) -> dict[str, object]:
        """What of it stands in the data partition's mender.conf."""
        settings: dict[str, object] = {}
        if self.server_url:
            settings["Servers"] = [{"ServerURL": self.server_url}]
        if self.server_certificate:
            settings["ServerCertificate"] = f"{_MOUNT}{STORE}/server.crt"
        if self.tenant_token:
            settings["TenantToken"] = self.tenant_token
        return settings

    def check(self, root: Tree) -> None:
        """Raises FlashError for what a root file system's own configuration would override, or never read."""
        own = _document(root.text(f"{CONF_DIR}/mender.conf"), f"{CONF_DIR}/mender.conf")
        fixed = {key.lower() for key in _names(own)}
        rules: tuple[tuple[object, str, tuple[str, ...], str], ...] = (
            (self.server_url, "--server-url", _SERVERS, "UPDATE_SERVER_URL"),
            (
                self.server_certificate,
                "--server-certificate",
                ("ServerCertificate",),
                "UPDATE_SERVER_CERTIFICATE",
            ),
            (self.tenant_token, "--tenant-token", ("TenantToken",), "UPDATE_TENANT_TOKEN"),
            (self.device_key, "--device-key", _KEYS, ""),
            (self.device_type, "--device-type", ("DeviceTypeFile",), ""),
        )
        for wanted, option, keys, variable in rules:
            found = [key for key in keys if key.lower() in fixed]
            if wanted and found:
                how = f"build the image without {variable}" if variable else "leave the option out"
                raise FlashError(
                    f"{option} would not count: the image's {CONF_DIR}/mender.conf sets {found[0]}", hint=how
                )
        if self.host_keys:
            self._check_host_keys(root)
        if self.wifi and not any(root.find(unit) for unit in WIFI_UNITS):
            raise FlashError(
                "--wifi would not count: nothing in the image reads it",
                hint='IMAGE_INSTALL:append = " update-wifi" in the image, or its local.conf',
            )

    def _check_host_keys(self, root: Tree) -> None:
        for beginning, config, line in SSH_SERVERS.values():
            if line in (root.text(config) or ""):
                if any(name.startswith(beginning) for name in self.host_keys):
                    return
                raise FlashError(
                    f"--host-keys would not count: the image's SSH server wants {beginning}…",
                    hint="dropbearconvert openssh dropbear ssh_host_rsa_key dropbear_rsa_host_key, or back",
                )
        raise FlashError(
            "--host-keys would not count: no SSH server of the image looks on the data partition",
            hint="images of the layer's class update-image do, with openssh or dropbear in them",
        )

    def files(self, data: Tree) -> dict[str, New]:
        """Files for a data partition that holds `data` now."""
        files: dict[str, New] = {}
        if self.device_type:
            files[f"{STORE}/device_type"] = New(f"device_type={self.device_type}\n".encode(), 0o644)
            files |= self._bootstrap(data)
        if settings := self.settings():
            path = f"{STORE}/mender.conf"
            merged = _without(_document(data.text(path), path), settings) | settings
            files[path] = New((json.dumps(merged, indent=4) + "\n").encode(), 0o600)
        if self.server_certificate:
            files[f"{STORE}/server.crt"] = New(self.server_certificate, 0o644)
        if self.device_key:
            files[f"{STORE}/mender-agent.pem"] = New(self.device_key, 0o600)
        for name, content in self.host_keys.items():
            folder = f"{IDENTITY}/{'dropbear' if name.startswith('dropbear_') else 'ssh'}"
            files[f"{folder}/{name}"] = New(content, 0o644 if name.endswith(".pub") else 0o600)
        if self.wifi:
            files[WIFI] = New(self.wifi.encode(), 0o600)
        folders = {str(parent) for path in files for parent in PurePosixPath(path).parents}
        return files | {name: New(None, 0o700) for name in folders - {"/"}}

    def _bootstrap(self, data: Tree) -> dict[str, New]:
        """The image's bootstrap artifact names the image's device type; without ours it would not install."""
        path = f"{STORE}/bootstrap.mender"
        present = data.read(path)
        if present is None:
            return {}
        header = Reader(io.BytesIO(present)).header
        if self.device_type in header.device_types:
            return {}
        contents = artifact.Contents(
            name=header.name,
            device_types=[self.device_type],
            group=header.group,
            provides={
                key: value for key, value in header.provides.items() if not key.startswith("artifact_")
            },
            clears=header.clears,
            payload_type=None,
        )
        with tempfile.TemporaryDirectory() as scratch:
            made = Path(scratch, "bootstrap.mender")
            artifact.write(contents, made, artifact.Packing("gzip", None))
            return {path: New(made.read_bytes(), 0o644)}


def _document(text: str | None, name: str) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        document = json.loads(text)
    except ValueError as error:
        raise FlashError(f"{name} of the image is no JSON: {error}") from error
    if not isinstance(document, dict):
        raise FlashError(f"{name} of the image is no JSON object")
    return document


def _names(document: dict[str, Any]) -> list[str]:
    """Keys, those of nested objects dotted."""
    nested = [
        f"{key}.{inner}" for key, value in document.items() if isinstance(value, dict) for inner in value
    ]
    return [*document, *nested]


def _without(document: dict[str, Any], settings: dict[str, object]) -> dict[str, Any]:
    """A document without what the settings replace. The agent takes keys in any case."""
    gone = {key.lower() for key in settings} | ({"serverurl"} if "Servers" in settings else set())
    return {key: value for key, value in document.items() if key.lower() not in gone}


# From the command line


def device_type(text: str) -> str:
    """Raises FlashError for what cannot stand in the file device_type."""
    if not re.fullmatch(r"[A-Za-z0-9._+:-]{1,128}", text):
        raise FlashError(f"--device-type {text!r} is no device type", hint="letters, digits, and . _ - + :")
    return text


def server_url(text: str) -> str:
    """Raises FlashError for what is no http or https URL."""
    try:
        return Url(text).text.strip()
    except UpdateError as error:
        raise FlashError(
            f"--server-url: {error.message}", hint="as in https://updates.example.com"
        ) from error


def one_line(path: Path, option: str) -> str:
    """The content of a file with one line, as a token is."""
    lines = read(path, option).decode(errors="replace").split()
    if len(lines) != 1:
        raise FlashError(f"{option} {path}: one word is expected, the file has {len(lines)}")
    return lines[0]


def read(path: Path, option: str) -> bytes:
    """The bytes of a file that an option names. Raises FlashError."""
    try:
        with path.open("rb") as file:
            return file.read(1 << 20)
    except OSError as error:
        raise FlashError(f"{option}: cannot read {path}: {error.strerror}") from error


def certificate(path: Path) -> bytes:
    """PEM certificates. Raises FlashError for anything else."""
    from cryptography.x509 import load_pem_x509_certificates

    content = read(path, "--server-certificate")
    try:
        load_pem_x509_certificates(content)
    except ValueError as error:
        raise FlashError(
            f"--server-certificate {path} holds no certificate", hint="PEM: -----BEGIN CERTIFICATE-----"
        ) from error
    return content


def device_key(path: Path) -> bytes:
    """A private key that the agent can use. Raises FlashError for another, and for one with a passphrase."""
    content = read(path, "--device-key")
    try:
        serialization.load_pem_private_key(content, None)
    except TypeError as error:
        raise FlashError(
            f"--device-key {path} has a passphrase, which the device cannot know",
            hint=f"openssl pkey -in {path} -out PLAIN",
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise FlashError(
            f"--device-key {path} is no private key",
            hint="openssl genpkey -algorithm ED25519 -out FILE makes one",
        ) from error
    return content


def host_keys(folder: Path) -> dict[str, bytes]:
    """Host keys by the names that OpenSSH or dropbear give them. Raises FlashError if there are none."""
    if not folder.is_dir():
        raise FlashError(f"--host-keys {folder} is no folder")
    found = {
        path.name: read(path, "--host-keys")
        for path in sorted(folder.iterdir())
        if _HOST_KEY.fullmatch(path.name) and path.is_file()
    }
    if not any(not name.endswith(".pub") for name in found):
        raise FlashError(
            f"--host-keys {folder} has no host keys",
            hint="ssh-keygen -q -t ed25519 -N '' -f DIR/ssh_host_ed25519_key makes one",
        )
    return found
