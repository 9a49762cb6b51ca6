# SPDX-License-Identifier: Apache-2.0
"""What a device has installed before it ever installed anything."""

from __future__ import annotations

import os

from update_agent.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from update_agent.machine import Context


def bootstrap(context: Context) -> None:
    """On the very first start, take name and provides from the bootstrap artifact (config.md section 7).

    Without one the name is that of `artifact_info`, which images of client 3 have, else `unknown`. The file
    is deleted in all cases. Raises UpdateError when it cannot be installed; the name is `unknown` then.
    """
    if context.store.get("artifact-name") is not None:
        return
    path = context.config.bootstrap_artifact()
    name = "unknown"
    try:
        if not os.path.exists(path):
            name = _named_by_image(context.config.artifact_info()) or name
        else:
            from update_agent.standalone import DONE, Standalone

            machine = Standalone(context, verify=False)
            if machine.install(path) != DONE:
                raise ConfigError(f"cannot install the bootstrap artifact {path}: {machine.update.cause}")
    finally:
        if context.store.get("artifact-name") is None:
            context.store.write({"artifact-name": name})
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
        except OSError as error:
            context.log.error(f"cannot delete {path}: {os.strerror(error.errno or 0)}")


def _named_by_image(path: str) -> str:
    """The value of the line `artifact_name=NAME`; empty if there is none."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            pairs = [line.strip().partition("=") for line in file.read(4096).splitlines()]
    except OSError:
        return ""
    return "".join([value for key, _, value in pairs if key == "artifact_name"][:1])
