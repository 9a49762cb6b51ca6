# SPDX-License-Identifier: Apache-2.0
"""An update that was installed with a command and waits for commit or rollback, when a deployment comes.

There is one file tree and one directory of artifact scripts: the deployment takes them. A root file system
on trial is decided about first, because the next boot would go back from it.
"""

from __future__ import annotations

from update_agent.errors import PayloadError
from update_agent.lean import json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from update_agent.bootloader import Bootloader
    from update_agent.log import Log


def give_way(saved: str, bootloader: Bootloader, log: Log) -> None:
    """Say that the saved update is over, or raise PayloadError if it must be decided about first."""
    try:
        update = json.loads(saved)
        name, kind = update["ArtifactName"], update["PayloadTypes"][0]
    except (ValueError, KeyError, IndexError, TypeError):
        name = kind = "?"
    if kind == "rootfs-image" and bootloader.read("upgrade_available").get("upgrade_available") == "1":
        raise PayloadError(
            f"{name}, installed with a command, is on trial",
            hint="first make it permanent with `update-agent commit`, or undo it with `rollback`",
        )
    log.warning(f"{name}, installed with a command and never committed, can no longer be: a deployment comes")
