# SPDX-License-Identifier: Apache-2.0
"""What the device tells about itself: generators and built-in attributes (device-api.md section 6)."""

from __future__ import annotations

import os
import stat

from update_agent import __version__
from update_agent.errors import ServerError, UpdateError
from update_agent.identity import run_program, single_or_list

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Protocol

    class Log(Protocol):
        def warning(self, message: str) -> None: ...
        def error(self, message: str) -> None: ...


_PREFIX = "mender-inventory-"


def generators(directory: str, log: Log) -> list[str]:
    """Paths of the generators, sorted; none without the directory. Other files of such a name: a warning."""
    try:
        names = sorted(name for name in os.listdir(directory) if name.startswith(_PREFIX))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ServerError(f"cannot read {directory}: {os.strerror(error.errno or 0)}") from error
    found = []
    for name in names:
        path = os.path.join(directory, name)
        try:
            mode = os.stat(path).st_mode
        except OSError:
            mode = 0
        if stat.S_ISREG(mode) and mode & 0o111:
            found.append(path)
        else:
            log.warning(f"{path} is not used for the inventory: not an executable file")
    return found


def collect(directory: str, provides: Mapping[str, str], log: Log) -> list[dict[str, str | list[str]]]:
    """All attributes, sorted by name, as they go over the wire.

    A generator that fails is logged and its data dropped. `provides` and the built-in attributes fill in
    names that no generator gives. Raises ServerError if there are generators and every one failed.
    """
    values: dict[str, list[str]] = {}
    programs = generators(directory, log)
    failures = 0
    for path in programs:
        try:
            pairs = run_program(path)
        except UpdateError as error:
            log.error(f"Inventory generator failed, its data is left out: {error}")
            failures += 1
            continue
        for name, given in pairs.items():
            values.setdefault(name, []).extend(given)
    if programs and failures == len(programs):
        raise ServerError(f"all {failures} inventory generators in {directory} failed")
    provider = "external" if "mender_client_version" in values else "internal"
    values.setdefault("mender_client_version", [__version__])
    values["mender_client_version_provider"] = [provider]
    for name, value in provides.items():
        values.setdefault(name, [value])
    return [{"name": name, "value": single_or_list(given)} for name, given in sorted(values.items())]
