# SPDX-License-Identifier: Apache-2.0
"""The system bus of a scenario's device, and an application on it that sets control maps."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import time
from typing import TYPE_CHECKING, Any

from update_agent.errors import UpdateError

if TYPE_CHECKING:
    Json = dict[str, Any]

_DESTINATION = "io.mender.UpdateManager"
_METHOD = ("/io/mender/UpdateManager", "io.mender.Update1.SetUpdateControlMap")
_PATIENCE_S = 30  # for the agent to appear on the bus
_TICK_S = 0.05
_CONFIGURATION = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <listen>unix:path={socket}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <allow own="*"/>
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
  </policy>
</busconfig>
"""


def missing() -> str:
    """What a bus needs and this machine lacks; empty if nothing."""
    if importlib.util.find_spec("update_agent.bus") is None:
        return "an agent that serves D-Bus"
    if importlib.util.find_spec("jeepney") is None:
        return "the Python package jeepney"
    return ", ".join(program for program in ("dbus-daemon", "dbus-send") if shutil.which(program) is None)


class LocalBus:
    """A bus of its own for one device. Use as a context manager."""

    def __init__(self, folder: str) -> None:
        socket = os.path.join(folder, "bus.socket")
        self.address = f"unix:path={socket}"
        path = os.path.join(folder, "bus.conf")
        with open(path, "w", encoding="utf-8") as file:
            file.write(_CONFIGURATION.format(socket=socket))
        with open(os.path.join(folder, "bus.log"), "w", encoding="utf-8") as log:
            self._daemon = subprocess.Popen(
                ["dbus-daemon", f"--config-file={path}", "--nofork", "--nopidfile", "--nosyslog"],
                stdin=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
            )

    def __enter__(self) -> LocalBus:
        return self

    def __exit__(self, *_: object) -> None:
        self._daemon.terminate()
        self._daemon.wait()

    def set_map(self, document: Json, *, patience_s: float = _PATIENCE_S) -> None:
        """Set a map as an application does, once the agent is there. Raises UpdateError if it is refused."""
        command = ["dbus-send", f"--bus={self.address}", "--print-reply", f"--dest={_DESTINATION}", *_METHOD]
        deadline = time.monotonic() + patience_s
        while True:
            result = subprocess.run(
                [*command, f"string:{json.dumps(document)}"], capture_output=True, text=True, check=False
            )
            if result.returncode == 0:
                return
            is_early = "ServiceUnknown" in result.stderr or "Failed to open connection" in result.stderr
            if not is_early or time.monotonic() > deadline:
                raise UpdateError(f"SetUpdateControlMap failed: {result.stderr.strip()}")
            time.sleep(_TICK_S)
