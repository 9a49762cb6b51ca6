# SPDX-License-Identifier: Apache-2.0
"""mender.conf: one table of keys, two files, environment and paths (spec: config.md)."""

from __future__ import annotations

import os

from update_agent.errors import ConfigError
from update_agent.lean import json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

CONF_DIR = "/etc/mender"
DATA_DIR = "/usr/share/mender"
DATASTORE = "/var/lib/mender"
CONTROL_SOCKET = "/run/update-agent/control.sock"

# Dotted names are nested objects. A default of None means "not set"; the kind then says what is accepted.
#   key in mender.conf                          kind   default  attribute
KEYS: tuple[tuple[str, str, object, str], ...] = (
    ("ServerURL", "text", None, "server_url"),
    ("Servers", "servers", None, "server_list"),
    ("ServerCertificate", "text", "", "server_certificate"),
    ("SkipVerify", "bool", False, "skip_verify"),
    ("TenantToken", "text", "", "tenant_token"),
    ("DeviceTier", "text", "standard", "device_tier"),
    ("ArtifactVerifyKey", "text", "", "artifact_verify_key"),
    ("ArtifactVerifyKeys", "texts", None, "artifact_verify_key_list"),
    ("HttpsClient.Certificate", "text", "", "https_client_certificate"),
    ("HttpsClient.Key", "text", "", "https_client_key"),
    ("HttpsClient.SSLEngine", "text", "", "https_client_engine"),
    ("Security.AuthPrivateKey", "text", "", "auth_private_key"),
    ("Security.SSLEngine", "text", "", "auth_engine"),
    ("UpdatePollIntervalSeconds", "seconds", 1800, "update_poll_interval_s"),
    ("InventoryPollIntervalSeconds", "seconds", 28800, "inventory_poll_interval_s"),
    ("RetryPollIntervalSeconds", "seconds", 300, "retry_poll_interval_s"),
    ("RetryPollCount", "count", 0, "retry_poll_count"),
    ("RetryDownloadCount", "retries", 10, "retry_download_count"),
    ("StateScriptTimeoutSeconds", "seconds", 3600, "script_timeout_s"),
    ("StateScriptRetryTimeoutSeconds", "seconds", 1800, "script_retry_timeout_s"),
    ("StateScriptRetryIntervalSeconds", "seconds", 60, "script_retry_interval_s"),
    ("ModuleTimeoutSeconds", "seconds", 14400, "module_timeout_s"),
    ("UpdateControlMapExpirationTimeSeconds", "seconds", None, "map_expiration_set_s"),
    ("UpdateControlMapBootExpirationTimeSeconds", "seconds", 600, "map_boot_expiration_s"),
    ("UpdateControlMapPollIntervalSeconds", "seconds", None, "map_poll_interval_set_s"),
    ("DBus.Enabled", "bool", True, "dbus_enabled"),
    ("DeviceTypeFile", "text", "", "device_type_file_set"),
    ("UpdateLogPath", "text", "", "update_log_path_set"),
    ("DaemonLogLevel", "text", "info", "daemon_log_level"),
    ("RootfsPartA", "text", "", "rootfs_part_a"),
    ("RootfsPartB", "text", "", "rootfs_part_b"),
    # Ours. What chooses the slot: "uboot" (or GRUB), "tryboot" (Raspberry Pi's firmware); empty: found out.
    # Then the partitions of tryboot: that of autoboot.txt, and the boot partitions of root A and root B.
    ("Bootloader", "text", "", "bootloader"),
    ("AutobootPart", "text", "", "autoboot_part"),
    ("BootPartA", "text", "", "boot_part_a"),
    ("BootPartB", "text", "", "boot_part_b"),
    # Ours. True: a pause survives a restart (see agent/README.md); False: exactly as client 3.5 does.
    ("PauseSurvivesRestart", "bool", True, "pause_survives_restart"),
    # Ours. True: a success is reported as one also when the device restarts before that; False: as a failure
    # then, which is what both clients do. Likewise whether a rollback with a script that failed stays failed.
    ("OutcomeSurvivesRestart", "bool", True, "outcome_survives_restart"),
    # Ours. Members of this group may use the control socket, beside root.
    ("ControlGroup", "text", "", "control_group"),
    # Ours. What one run of a state script, or call of an update module, may add to the logs; an upload has at
    # least its last 10 KiB.
    ("ScriptOutputLimitBytes", "bytes", 256 << 10, "script_output_limit_bytes"),
    # Ours. First wait of every backoff, its unit, and the least cap for reports and map refreshes.
    ("RetryFirstIntervalSeconds", "seconds", 60, "retry_first_interval_s"),
)

_BY_NAME = {row[0].lower(): row for row in KEYS}
_NUMBERS = ("seconds", "bytes", "count", "retries")
_MOST = (1 << 31) - 1
_GROUPS = {key.split(".")[0].lower() for key, _, _, _ in KEYS if "." in key}


def _convert(kind: str, value: object) -> object:
    """The value as this kind, or raise TypeError saying what is expected."""
    if kind == "bool" and isinstance(value, bool):
        return value
    if kind == "text" and isinstance(value, str):
        return value
    if kind in _NUMBERS and isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _MOST:
        return value
    if kind == "texts" and isinstance(value, list) and all(isinstance(item, str) for item in value):
        return list(value)
    if kind == "servers" and isinstance(value, list):
        urls = []
        for item in value:
            lowered = {str(k).lower(): v for k, v in item.items()} if isinstance(item, dict) else {}
            if not isinstance(lowered.get("serverurl"), str):
                raise TypeError('a list of {"ServerURL": "https://…"}')
            urls.append(lowered["serverurl"])
        return urls
    names = {"bool": "true or false", "text": "text", "texts": "a list of texts", "servers": "a list"}
    raise TypeError(names.get(kind, f"a whole number up to {_MOST}"))


class Config:
    """The effective configuration. Attributes are those of KEYS, seconds as int, paths as text."""

    def __init__(self) -> None:
        self.conf_dir = os.environ.get("MENDER_CONF_DIR", CONF_DIR)
        self.data_dir = os.environ.get("MENDER_DATA_DIR", DATA_DIR)
        self.datastore = os.environ.get("MENDER_DATASTORE_DIR", DATASTORE)
        self.control_socket = os.environ.get("UPDATE_CONTROL_SOCKET", CONTROL_SOCKET)
        self.warnings: list[str] = []
        self.key_passphrase = ""  # of an encrypted device key; never in a configuration file
        self.server_url: str | None
        self.server_list: list[str] | None
        self.server_certificate: str
        self.skip_verify: bool
        self.tenant_token: str
        self.device_tier: str
        self.artifact_verify_key: str
        self.artifact_verify_key_list: list[str] | None
        self.https_client_certificate: str
        self.https_client_key: str
        self.https_client_engine: str
        self.auth_private_key: str
        self.auth_engine: str
        self.update_poll_interval_s: int
        self.inventory_poll_interval_s: int
        self.retry_poll_interval_s: int
        self.retry_poll_count: int
        self.retry_download_count: int
        self.script_timeout_s: int
        self.script_retry_timeout_s: int
        self.script_retry_interval_s: int
        self.module_timeout_s: int
        self.map_expiration_set_s: int | None
        self.map_boot_expiration_s: int
        self.map_poll_interval_set_s: int | None
        self.dbus_enabled: bool
        self.device_type_file_set: str
        self.update_log_path_set: str
        self.daemon_log_level: str
        self.rootfs_part_a: str
        self.rootfs_part_b: str
        self.bootloader: str
        self.autoboot_part: str
        self.boot_part_a: str
        self.boot_part_b: str
        self.pause_survives_restart: bool
        self.outcome_survives_restart: bool
        self.control_group: str
        self.script_output_limit_bytes: int
        self.retry_first_interval_s: int
        for _, _, default, attribute in KEYS:
            setattr(self, attribute, default)

    # What follows from the keys

    @property
    def servers(self) -> list[str]:
        """Server URLs in order, duplicates dropped."""
        urls = self.server_list or ([self.server_url] if self.server_url else [])
        return list(dict.fromkeys(urls))

    @property
    def artifact_verify_keys(self) -> list[str]:
        """Paths of public keys; not empty means unsigned artifacts are refused."""
        return self.artifact_verify_key_list or (
            [self.artifact_verify_key] if self.artifact_verify_key else []
        )

    @property
    def map_expiration_s(self) -> int:
        """Life of a control map after it was set."""
        return self.map_expiration_set_s or 2 * self.update_poll_interval_s

    @property
    def map_poll_interval_s(self) -> int:
        """Longest wait between two refreshes while paused."""
        return self.map_poll_interval_set_s or self.update_poll_interval_s

    @property
    def update_log_path(self) -> str:
        """Directory of the deployment logs."""
        return self.update_log_path_set or self.datastore

    # Paths (config.md section 3)

    def scripts_rootfs(self) -> str:
        """State scripts of the image."""
        return os.path.join(self.conf_dir, "scripts")

    def scripts_artifact(self) -> str:
        """State scripts of the artifact being installed."""
        return os.path.join(self.datastore, "scripts")

    def hook_dirs(self) -> list[str]:
        """Pause hooks: of the image's packages, then of the product, which counts before the other."""
        return [os.path.join(directory, "pause.d") for directory in (self.data_dir, self.conf_dir)]

    def tree_dir(self) -> str:
        """File tree of the update module."""
        return os.path.join(self.datastore, "modules", "v3", "payloads", "0000", "tree")

    def modules_dir(self) -> str:
        """Executables of the update modules."""
        return os.path.join(self.data_dir, "modules", "v3")

    def key_file(self) -> str:
        """The device key."""
        return os.path.join(self.datastore, "mender-agent.pem")

    def identity_script(self) -> str:
        """Prints the identity as key=value lines."""
        return os.path.join(self.data_dir, "identity", "mender-device-identity")

    def inventory_dir(self) -> str:
        """Holds mender-inventory-* programs."""
        return os.path.join(self.data_dir, "inventory")

    def bootstrap_artifact(self) -> str:
        """Sets name and provides on the first start."""
        return os.path.join(self.datastore, "bootstrap.mender")

    def artifact_info(self) -> str:
        """Names the image, for client 3 (`artifact_name=NAME`)."""
        return os.path.join(self.conf_dir, "artifact_info")

    def device_type(self) -> str:
        """The device type. Raises ConfigError unless its file holds exactly one `device_type=NAME` line."""
        path = self.device_type_file_set or os.path.join(self.datastore, "device_type")
        try:
            with open(path, encoding="utf-8") as file:
                lines = file.read(4096).splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"cannot read the device type from {path}: {getattr(error, 'strerror', error)}",
                hint="the image must contain it: one line, device_type=NAME",
            ) from error
        key, _, name = lines[0].partition("=") if len(lines) == 1 else ("", "", "")
        if key != "device_type" or not name:
            raise ConfigError(f"{path} must hold one line, device_type=NAME, and nothing else")
        return name

    # Reading

    def merge(self, document: object, source: str) -> None:
        """Take over the keys of one parsed file. Raises ConfigError on a validation error.

        Keys are matched without regard to case; unknown ones are ignored; a wrong type is a warning.
        """
        if not isinstance(document, dict):
            raise ConfigError(f"{source} must hold one JSON object")
        seen: set[str] = set()
        for name, value in _flatten(document):
            known = _BY_NAME.get(name.lower())
            if known is None:
                if name.lower() in _GROUPS:
                    self.warnings.append(f"{source}: {name} is ignored, it must be an object")
                continue
            key, kind, default, attribute = known
            try:
                converted = _convert(kind, value)
            except TypeError as error:
                self.warnings.append(f"{source}: {key} is ignored, it must be {error}")
                continue
            if kind == "retries" and not 1 <= int(str(converted)) <= 10000:
                raise ConfigError(f"{source}: {key} is {converted}, it must be 1 … 10000")
            seen.add(key)
            if kind in {"seconds", "bytes", "count"} and int(str(converted)) <= 0:
                converted = default
            setattr(self, attribute, converted)
        for one, many in (("ServerURL", "Servers"), ("ArtifactVerifyKey", "ArtifactVerifyKeys")):
            if {one, many} <= seen:
                raise ConfigError(f"{source} has both {one} and {many}", hint="keep one of them")
        if "ServerURL" in seen:
            self.server_list = None
        if "ArtifactVerifyKey" in seen:
            self.artifact_verify_key_list = None
        if self.device_tier not in {"standard", "micro"}:
            raise TierError(f"{source}: DeviceTier {self.device_tier!r} is not supported")


class TierError(ConfigError):
    """A bad DeviceTier is an error wherever it stands (config.md section 1)."""


def _flatten(document: dict[str, object]) -> list[tuple[str, object]]:
    flat: list[tuple[str, object]] = []
    for name, value in document.items():
        if name.lower() in _GROUPS and isinstance(value, dict):
            flat += [(f"{name}.{inner}", item) for inner, item in value.items()]
        else:
            flat.append((name, value))
    return flat


def _read(config: Config, path: str, *, required: bool) -> None:
    """Merge one file. A missing or broken default file is a warning; a named one (`required`) is an error."""
    try:
        with open(path, encoding="utf-8") as file:
            config.merge(json.loads(file.read()), path)
    except FileNotFoundError as error:
        if required:
            raise ConfigError(f"configuration file {path} does not exist") from error
    except TierError:
        raise
    except (OSError, ValueError, ConfigError) as error:
        reason = str(getattr(error, "strerror", error)).removeprefix(f"{path}: ")
        if required:
            raise ConfigError(f"cannot use configuration file {path}: {reason}") from error
        config.warnings.append(f"{path}: the rest of this file is ignored: {reason}")


def load(
    *,
    path: str | None = None,
    fallback: str | None = None,
    datastore: str | None = None,
    overrides: Mapping[str, object] | None = None,
    reader: Callable[..., None] = _read,
) -> Config:
    """The effective configuration: fallback file, then main file, then command-line overrides (attributes).

    Raises ConfigError for a named file that is missing or broken, and for a bad DeviceTier anywhere.
    """
    config = Config()
    if datastore:
        config.datastore = datastore
    reader(config, fallback or os.path.join(config.datastore, "mender.conf"), required=fallback is not None)
    reader(config, path or os.path.join(config.conf_dir, "mender.conf"), required=path is not None)
    for attribute, value in (overrides or {}).items():
        setattr(config, attribute, value)
    return config
