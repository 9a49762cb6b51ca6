# SPDX-License-Identifier: Apache-2.0
"""What the agent offers on D-Bus: objects, their methods, properties and errors. No sockets, no messages.

The tables below are what `Introspect` tells and what the files in agent/dbus/ say to other programs. The
`io.mender` interfaces are the reference's, errors included. `org.metaupdate.Update1` is our own: a program
that knows the reference must never meet a foreign member on its interfaces.
"""

from __future__ import annotations

import time

from update_agent.errors import ControlError, IdleError, StoreError, UpdateError
from update_agent.states import POINTS
from update_agent.status import first_end, holding_hooks, hook_end
from update_agent.update import Update

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from update_agent.daemon import Daemon
    from update_agent.forwarder import Forwarder

    Arguments = Sequence[tuple[str, str]]

_ERRORS = "org.freedesktop.DBus.Error."
FAILED = "io.mender.Failed"
REFUSED = "org.metaupdate.Update1.Error.Refused"  # the map or command is not valid, or cannot be saved
NO_UPDATE = "org.metaupdate.Update1.Error.NoUpdate"  # there is no update that it could be for
INTROSPECTABLE = "org.freedesktop.DBus.Introspectable"
PEER = "org.freedesktop.DBus.Peer"
PROPERTIES = "org.freedesktop.DBus.Properties"


class BusError(Exception):
    """A call that is answered with an error."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name
        self.message = message


class Method:
    """Arguments in and out, as (name, type)."""

    __slots__ = ("name", "put", "take")

    def __init__(self, name: str, take: Arguments = (), put: Arguments = ()) -> None:
        self.name = name
        self.take = take
        self.put = put

    @property
    def signature(self) -> str:
        """Of a call."""
        return "".join(kind for _, kind in self.take)

    @property
    def reply_signature(self) -> str:
        """Of the answer."""
        return "".join(kind for _, kind in self.put)


class Interface:
    """An interface and the one object that has it."""

    __slots__ = ("bus_name", "methods", "name", "path", "properties", "signals")

    def __init__(
        self,
        bus_name: str,
        path: str,
        name: str,
        methods: Sequence[Method],
        signals: Mapping[str, Arguments],
        properties: Mapping[str, str],
    ) -> None:
        self.bus_name = bus_name
        self.path = path
        self.name = name
        self.methods = {method.name: method for method in methods}
        self.signals = signals
        self.properties = properties


UPDATE = Interface(
    "io.mender.UpdateManager",
    "/io/mender/UpdateManager",
    "io.mender.Update1",
    [Method("SetUpdateControlMap", [("update_control_map", "s")], [("refresh_timeout", "i")])],
    {},
    {},
)
AUTHENTICATION = Interface(
    "io.mender.AuthenticationManager",
    "/io/mender/AuthenticationManager",
    "io.mender.Authentication1",
    [
        Method("GetJwtToken", [], [("token", "s"), ("server_url", "s")]),
        Method("FetchJwtToken", [], [("success", "b")]),
    ],
    {"JwtTokenStateChange": [("token", "s"), ("server_url", "s")]},
    {},
)
OWN = Interface(
    "org.metaupdate.Update",
    "/org/metaupdate/Update",
    "org.metaupdate.Update1",
    [
        Method("Pause", [("points", "as")]),
        Method("Continue", [("point", "s")]),
        Method("Fail", [("point", "s")]),
        # As SetUpdateControlMap, but at every point of this device, and an error tells the reason.
        Method("SetControlMap", [("control_map", "s")], [("refresh_timeout", "i")]),
    ],
    {},
    {
        "DeploymentId": "s",  # empty while no update is in progress
        "ArtifactName": "s",
        "State": "s",  # as state scripts know it: Idle, Sync, Download, ArtifactInstall, ...
        "PausedAt": "s",  # control point, or empty
        "PausedBy": "a(si)",  # id and priority of the maps that hold it
        "PausedByHooks": "a(ssts)",  # path and reason of the hooks that hold it; until when, what then
        "PausedUntil": "t",  # Unix time when the first of these says something else by itself; 0: never
        "AtExpiry": "s",  # what it says then: fail, continue, force_continue
        "BytesDone": "t",  # of the download
        "BytesTotal": "t",
        "Error": "s",  # the first failure of this update, in words
    },
)
INTERFACES = (UPDATE, AUTHENTICATION, OWN)

_STANDARD = f"""\
  <interface name="{INTROSPECTABLE}">
    <method name="Introspect">
      <arg name="xml_data" type="s" direction="out"/>
    </method>
  </interface>
  <interface name="{PEER}">
    <method name="Ping"/>
    <method name="GetMachineId">
      <arg name="machine_uuid" type="s" direction="out"/>
    </method>
  </interface>
  <interface name="{PROPERTIES}">
    <method name="Get">
      <arg name="interface_name" type="s" direction="in"/>
      <arg name="property_name" type="s" direction="in"/>
      <arg name="value" type="v" direction="out"/>
    </method>
    <method name="Set">
      <arg name="interface_name" type="s" direction="in"/>
      <arg name="property_name" type="s" direction="in"/>
      <arg name="value" type="v" direction="in"/>
    </method>
    <method name="GetAll">
      <arg name="interface_name" type="s" direction="in"/>
      <arg name="properties" type="a{{sv}}" direction="out"/>
    </method>
    <signal name="PropertiesChanged">
      <arg name="interface_name" type="s"/>
      <arg name="changed_properties" type="a{{sv}}"/>
      <arg name="invalidated_properties" type="as"/>
    </signal>
  </interface>
"""
_DOCTYPE = """\
<!DOCTYPE node PUBLIC "-//freedesktop//DTD D-BUS Object Introspection 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd">
"""


def interface_xml(interface: Interface) -> str:
    """The interface as an element of introspection data."""
    lines = [f'  <interface name="{interface.name}">']
    for method in interface.methods.values():
        arguments = [*((*a, "in") for a in method.take), *((*a, "out") for a in method.put)]
        if not arguments:
            lines.append(f'    <method name="{method.name}"/>')
            continue
        lines.append(f'    <method name="{method.name}">')
        lines += [f'      <arg name="{n}" type="{t}" direction="{d}"/>' for n, t, d in arguments]
        lines.append("    </method>")
    for signal, arguments_of_signal in interface.signals.items():
        lines.append(f'    <signal name="{signal}">')
        lines += [f'      <arg name="{n}" type="{t}"/>' for n, t in arguments_of_signal]
        lines.append("    </signal>")
    for name, kind in interface.properties.items():
        lines.append(f'    <property name="{name}" type="{kind}" access="read"/>')
    return "\n".join([*lines, "  </interface>\n"])


def introspect(path: str) -> str:
    """Introspection data of an object, or of a folder of objects. Raises BusError for any other path."""
    below = path.rstrip("/") + "/"
    children = sorted({i.path[len(below) :].split("/")[0] for i in INTERFACES if i.path.startswith(below)})
    content = "".join(_STANDARD + interface_xml(i) for i in INTERFACES if i.path == path)
    if not content and not children:
        raise BusError(f"{_ERRORS}UnknownObject", f"there is no object {path}")
    content += "".join(f'  <node name="{child}"/>\n' for child in children)
    return f"{_DOCTYPE}<node>\n{content}</node>\n"


class Objects:
    """Answers calls on behalf of the daemon."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._forwarder: Forwarder | None = None  # once a program has asked for the token

    def call(
        self, path: str, interface: str | None, member: str, signature: str, body: Sequence[Any]
    ) -> tuple[str, tuple[Any, ...]]:
        """Carry out a method call. Returns signature and body of the reply; raises BusError."""
        if interface in {None, INTROSPECTABLE} and member == "Introspect":
            _expect(signature, "")
            return "s", (introspect(path),)
        if interface in {None, PEER} and member in {"Ping", "GetMachineId"}:
            _expect(signature, "")
            return ("", ()) if member == "Ping" else ("s", (_machine_id(),))
        introspect(path)  # raises for unknown objects
        if interface in {None, PROPERTIES} and member in {"Get", "GetAll", "Set"}:
            return self._property_call(path, member, signature, body)
        for known in INTERFACES:
            if known.path == path and interface in {None, known.name} and member in known.methods:
                method = known.methods[member]
                _expect(signature, method.signature)
                return method.reply_signature, getattr(self, f"_{member}")(*body)
        raise BusError(f"{_ERRORS}UnknownMethod", f"{path} has no method {interface or ''}.{member}")

    # io.mender.Update1

    def _SetUpdateControlMap(self, text: str) -> tuple[int]:  # noqa: N802
        try:
            return (self._daemon.decisions.set_map(text),)
        except (ControlError, StoreError) as error:
            # The reference's words; the reason is in the log.
            raise BusError(FAILED, "Method returned error, see Mender logs for more details") from error

    # io.mender.Authentication1

    def _GetJwtToken(self) -> tuple[str, str]:  # noqa: N802
        remote = self._daemon.remote
        self._forward()
        return remote.token, self.url_for(remote.server_url)

    def _forward(self) -> None:
        """Have a local way to the server; nobody needs one before the first program asks."""
        if self._forwarder is None:
            from update_agent.forwarder import Forwarder

            daemon = self._daemon
            self._forwarder = Forwarder(daemon.config, daemon.log, daemon.context.loop)

    def url_for(self, server_url: str) -> str:
        """The address of the server for programs on this device."""
        return self._forwarder.url_for(server_url) if self._forwarder else server_url

    def _FetchJwtToken(self) -> tuple[bool]:  # noqa: N802
        self._forward()
        try:
            self._daemon.remote.authorize_in_background(self._daemon.context.loop)
        except OSError as error:  # no process or descriptor left
            self._daemon.log.error(f"Cannot start an authorization: {error.strerror}")
            return (False,)
        return (True,)

    # org.metaupdate.Update1

    def _Pause(self, points: list[str]) -> tuple[()]:  # noqa: N802
        self._command(lambda: self._daemon.decisions.pause(points))
        return ()

    def _Continue(self, point: str) -> tuple[()]:  # noqa: N802
        self._command(lambda: self._daemon.decisions.go_on(point))
        return ()

    def _Fail(self, point: str) -> tuple[()]:  # noqa: N802
        self._command(lambda: self._daemon.decisions.fail(point))
        return ()

    def _SetControlMap(self, text: str) -> tuple[int]:  # noqa: N802
        return (self._command(lambda: self._daemon.decisions.set_map(text, POINTS)),)

    def _command(self, command: Any) -> Any:
        try:
            result = command()
        except IdleError as error:
            raise BusError(NO_UPDATE, str(error)) from error
        except UpdateError as error:
            raise BusError(REFUSED, str(error)) from error
        return result

    def properties(self) -> dict[str, tuple[str, Any]]:
        """The properties of OWN, as (type, value)."""
        daemon = self._daemon
        update: Update = daemon.update
        by = daemon.pause.by if daemon.pause else ()
        first = first_end(daemon)
        values = {
            "DeploymentId": update.id,
            "ArtifactName": update.artifact_name,
            "State": daemon.state,
            "PausedAt": daemon.paused_at,
            "PausedBy": [(entry.map.id, entry.map.priority) for entry in by],
            "PausedByHooks": [
                (vote.hook.path, vote.why, *_end(hook_end(vote))) for vote in holding_hooks(daemon)
            ],
            "PausedUntil": _end(first)[0],
            "AtExpiry": _end(first)[1],
            "BytesDone": daemon.done_bytes if update.id else 0,
            "BytesTotal": daemon.size_bytes if update.id else 0,
            "Error": daemon.update.cause,
        }
        return {name: (OWN.properties[name], value) for name, value in values.items()}

    def _property_call(
        self, path: str, member: str, signature: str, body: Sequence[Any]
    ) -> tuple[str, tuple[Any, ...]]:
        _expect(signature, {"Get": "ss", "GetAll": "s", "Set": "ssv"}[member])
        interface = next((i for i in INTERFACES if i.path == path and i.name == body[0]), None)
        if interface is None and body[0] not in {INTROSPECTABLE, PEER, PROPERTIES}:
            raise BusError(f"{_ERRORS}UnknownInterface", f"{path} has no interface {body[0]}")
        properties = self.properties() if interface is OWN else {}
        if member == "GetAll":
            return "a{sv}", (properties,)
        if body[1] not in properties:
            raise BusError(f"{_ERRORS}UnknownProperty", f"{body[0]} has no property {body[1]}")
        if member == "Set":
            raise BusError(f"{_ERRORS}PropertyReadOnly", f"{body[1]} can only be read")
        return "v", (properties[body[1]],)


def _expect(signature: str, wanted: str) -> None:
    if signature != wanted:
        raise BusError(f"{_ERRORS}InvalidArgs", f"arguments are '{signature}', must be '{wanted}'")


def _machine_id() -> str:
    for path in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        try:
            with open(path, encoding="ascii") as file:
                return file.read(64).strip()
        except (OSError, ValueError):
            continue
    raise BusError(f"{_ERRORS}Failed", "this machine has no machine-id")


def _end(end: tuple[float, str] | None) -> tuple[int, str]:
    """Unix time and answer at the end of a hold; 0 and empty if it has none."""
    if end is None or end[0] == float("inf"):
        return 0, ""
    return round(time.time() - time.monotonic() + end[0]), end[1]
