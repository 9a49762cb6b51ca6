# SPDX-License-Identifier: Apache-2.0
"""The update in hand: what is known of it, its saved form, and what its end leaves installed."""

from __future__ import annotations

from update_agent.errors import StoreError
from update_agent.lean import json
from update_agent.provides import new_provides

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from update_agent.store import Store

VERSION = 2  # of the saved form (state-machine.md sections 7 and 11)
INCONSISTENT = "_INCONSISTENT"
COMMAND_KEY = "standalone-state"  # the store's key of an update of a command
_REBOOT = {"": "", "Yes": "reboot-type-custom", "Automatic": "reboot-type-automatic", "No": ""}
_ROLLBACK = {"": "", "Yes": "rollback-supported", "No": "rollback-not-supported"}


class Update:
    """One artifact on its way in, from a deployment or from a command.

    `payload_type` is None until an artifact header was accepted, and "" for an artifact without payload.
    """

    __slots__ = (
        "all_rollbacks_successful",
        "artifact_group",
        "artifact_name",
        "cause",
        "clears",
        "device_types",
        "expire",
        "id",
        "live_s",
        "needs_reboot",
        "payload_type",
        "provides",
        "save_count",
        "supports_rollback",
        "uri",
    )

    def __init__(self, update_id: str = "", uri: str = "") -> None:
        self.id = update_id
        self.uri = uri
        self.expire = ""
        self.device_types: list[str] = []
        self.payload_type: str | None = None
        self.artifact_name = ""
        self.artifact_group = ""
        self.provides: dict[str, str] | None = None
        self.clears: list[str] | None = None
        self.needs_reboot = ""  # "", No, Yes, Automatic: the last answer to NeedsArtifactReboot
        self.supports_rollback = ""  # "", No, Yes
        self.live_s = 0  # between live reports; 0: the server wants none
        self.cause = ""  # its first failure, in words; saved, because the report comes after reboots
        self.save_count = 0
        self.all_rollbacks_successful = False

    def accept(self, header: Mapping[str, object]) -> None:
        """Take over what an artifact header says (the document of `intake.describe`)."""
        self.payload_type = str(header["payload_type"] or "")
        self.artifact_name = str(header["name"])
        self.artifact_group = str(header["group"])
        self.device_types = _texts(header["device_types"]) or []
        self.provides = _text_map(header["provides"])
        self.clears = _texts(header["clears"])

    def to_text(self, name: str) -> str:
        """The saved form under this stored name."""
        artifact: dict[str, object] = {
            "Source": {"URI": self.uri, "Expire": self.expire},
            "device_types_compatible": self.device_types,
            "PayloadTypes": [] if self.payload_type is None else [self.payload_type],
            "artifact_name": self.artifact_name,
            "artifact_group": self.artifact_group,
        }
        if self.provides is not None:
            artifact["artifact_provides"] = self.provides
        if self.clears is not None:
            artifact["clears_artifact_provides"] = self.clears
        info: dict[str, object] = {
            "ID": self.id,
            "Artifact": artifact,
            "RebootRequested": [_REBOOT[self.needs_reboot]] if self.needs_reboot else [],
            "SupportsRollback": _ROLLBACK[self.supports_rollback],
            "StateDataStoreCount": self.save_count,
            "HasDBSchemaUpdate": False,
            "AllRollbacksSuccessful": self.all_rollbacks_successful,
        }
        if self.cause:
            info["Cause"] = self.cause  # ours
        if self.live_s:
            info["LiveReports"] = self.live_s  # ours
        return json.dumps({"Version": VERSION, "Name": name, "UpdateInfo": info}, separators=(",", ":"))


def from_text(text: str) -> tuple[str, Update]:
    """The stored name and the update of a saved form. Raises StoreError when it is not one of version 2."""
    try:
        document = json.loads(text)
        version, name, info = document["Version"], document["Name"], document["UpdateInfo"]
        if version != VERSION:
            raise StoreError(f"the saved update has version {version!r}, this agent knows {VERSION}")
        artifact = info["Artifact"]
        update = Update(str(info["ID"]), str(artifact["Source"]["URI"]))
        update.expire = str(artifact["Source"].get("Expire", ""))
        update.device_types = _texts(artifact.get("device_types_compatible")) or []
        types = _texts(artifact.get("PayloadTypes")) or []
        update.payload_type = types[0] if types else None
        update.artifact_name = str(artifact["artifact_name"])
        update.artifact_group = str(artifact.get("artifact_group", ""))
        update.provides = _text_map(artifact.get("artifact_provides"))
        update.clears = _texts(artifact.get("clears_artifact_provides"))
        reboot = _texts(info.get("RebootRequested")) or []
        words = {value: word for word, value in _REBOOT.items() if value}
        update.needs_reboot = words.get(reboot[0], "No") if reboot else ""
        words = {value: word for word, value in _ROLLBACK.items()}
        update.supports_rollback = words.get(str(info.get("SupportsRollback", "")), "")
        update.save_count = int(info.get("StateDataStoreCount", 0))
        update.cause = str(info.get("Cause", ""))
        update.live_s = int(info.get("LiveReports", 0))
        update.all_rollbacks_successful = info.get("AllRollbacksSuccessful") is True
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"the saved update cannot be understood: {error!r}") from error
    return str(name), update


def _texts(value: object) -> list[str] | None:
    return [str(item) for item in value] if isinstance(value, list) else None


def _text_map(value: object) -> dict[str, str] | None:
    return {str(key): str(item) for key, item in value.items()} if isinstance(value, dict) else None


# What the device has installed: the store's keys artifact-name, artifact-group, artifact-provides


def installed(store: Store) -> dict[str, str]:
    """Everything the device provides as one flat map: artifact_name, artifact_group if any, and the rest."""
    provides = _text_map(store.get_json("artifact-provides")) or {}
    flat = {"artifact_name": store.get("artifact-name") or "unknown"}
    group = store.get("artifact-group")
    if group:
        flat["artifact_group"] = group
    return {**flat, **provides}


def commit(store: Store, update: Update, *, clean: bool, with_provides: bool) -> dict[str, str | None]:
    """The store's changes at the end of an update: name (inconsistent unless `clean`), group and provides."""
    if with_provides:
        new = new_provides(
            installed(store),
            name=update.artifact_name,
            group=update.artifact_group,
            provides=update.provides,
            clears=update.clears,
        )
    else:
        new = {**installed(store), "artifact_name": update.artifact_name}
        if update.artifact_group:
            new["artifact_group"] = update.artifact_group
    name = new.pop("artifact_name")
    if not clean and not name.endswith(INCONSISTENT):
        name += INCONSISTENT
    group = new.pop("artifact_group", None)
    rest = json.dumps(new, sort_keys=True, separators=(",", ":")) if new else None
    return {"artifact-name": name, "artifact-group": group, "artifact-provides": rest}
