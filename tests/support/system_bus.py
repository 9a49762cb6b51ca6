# SPDX-License-Identifier: Apache-2.0
"""A D-Bus system bus of one's own: Debian's dbus-daemon on a private address, with the agent's policy files.

Users have the rights of a real system bus: nobody may own a name or call a method unless a policy says so.
"""

from __future__ import annotations

import os
import shutil
import subprocess

from update_agent.errors import UpdateError

_POLICIES = os.path.join(
    os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))),
    "agent",
    "dbus",
)
_CONFIG = """\
<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-BUS Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path={path}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <deny own="*"/>
    <deny send_type="method_call"/>
    <allow send_type="signal"/>
    <allow send_requested_reply="true" send_type="method_return"/>
    <allow send_requested_reply="true" send_type="error"/>
    <allow receive_type="method_call"/>
    <allow receive_type="method_return"/>
    <allow receive_type="error"/>
    <allow receive_type="signal"/>
    <allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus"/>
    <allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus.Introspectable"/>
  </policy>
  <includedir>{policies}</includedir>
{developer}</busconfig>
"""
_DEVELOPER = """\
  <policy user="{uid}"><allow own="*"/><allow send_destination="*"/><allow receive_sender="*"/></policy>
"""


class PrivateBus:
    """The bus at `path`. It can be stopped, and started again as after a crash."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.address = f"unix:path={path}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and return when clients can connect. Raises UpdateError."""
        program = shutil.which("dbus-daemon")
        if program is None:
            raise UpdateError("dbus-daemon is not installed", hint="Debian's package dbus has it")
        uid = os.geteuid()
        config = f"{self.path}.conf"
        with open(config, "w", encoding="utf-8") as file:
            # Whoever is not root plays root's part on the own bus.
            developer = _DEVELOPER.format(uid=uid) if uid else ""
            file.write(_CONFIG.format(path=self.path, policies=_POLICIES, developer=developer))
        self._process = subprocess.Popen(
            [program, f"--config-file={config}", "--nofork", "--nopidfile", "--print-address"],
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            self.stop()
            raise UpdateError("dbus-daemon did not start", hint="it has said why on stderr")

    def stop(self) -> None:
        """Kill it, as a crash does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None
        if os.path.exists(self.path):
            os.unlink(self.path)

    def call(
        self, bus_name: str, path: str, member: str, *arguments: str
    ) -> subprocess.CompletedProcess[str]:
        """Call a method with dbus-send; arguments as `string:TEXT`. Waits for the reply."""
        return subprocess.run(
            [
                "dbus-send",
                f"--bus={self.address}",
                "--print-reply=literal",
                f"--dest={bus_name}",
                path,
                member,
                *arguments,
            ],
            capture_output=True,
            text=True,
            check=False,
        )
