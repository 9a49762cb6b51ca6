# SPDX-License-Identifier: MIT
"""The agent's configuration of a machine and a product."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

DIRECTORY = "/etc/mender"


def settings(value: Callable[[str], str | None]) -> dict[str, object]:
    """mender.conf as a dictionary; value("NAME") is a variable of the layer."""
    found: dict[str, object] = {
        "RootfsPartA": f"{value('UPDATE_STORAGE_PART')}{value('UPDATE_PART_A')}",
        "RootfsPartB": f"{value('UPDATE_STORAGE_PART')}{value('UPDATE_PART_B')}",
        "UpdatePollIntervalSeconds": int(value("UPDATE_POLL_INTERVAL_S") or 0),
        "InventoryPollIntervalSeconds": int(value("UPDATE_INVENTORY_INTERVAL_S") or 0),
    }
    if value("UPDATE_BOOTFLOW") == "tryboot":
        found["Bootloader"] = "tryboot"
        for key, name in (("AutobootPart", "BOOT"), ("BootPartA", "BOOT_A"), ("BootPartB", "BOOT_B")):
            found[key] = f"{value('UPDATE_STORAGE_PART')}{value(f'UPDATE_PART_{name}')}"
    if server := value("UPDATE_SERVER_URL"):
        found["Servers"] = [{"ServerURL": server}]
    if token := value("UPDATE_TENANT_TOKEN"):
        found["TenantToken"] = token
    if value("UPDATE_SERVER_CERTIFICATE"):
        found["ServerCertificate"] = f"{DIRECTORY}/server.crt"
    if keys := (value("UPDATE_VERIFY_KEYS") or "").split():
        found["ArtifactVerifyKeys"] = [
            f"{DIRECTORY}/artifact-verify-key-{number}.pem" for number in range(len(keys))
        ]
    return found
