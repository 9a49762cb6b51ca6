# SPDX-License-Identifier: Apache-2.0
"""The agent on the system bus: connection, names, messages. What is offered there is in `bus_objects`.

Everything happens in the daemon's loop; nothing waits for the bus. A bus that is missing, refuses us or is
restarted is tried again, ever more slowly, and never stops an update.
"""

from __future__ import annotations

import socket
import time

from jeepney import DBusAddress, HeaderFields, MessageFlag, MessageType, Parser, new_error, new_signal
from jeepney.auth import BEGIN, Authenticator
from jeepney.bus import find_system_bus
from jeepney.bus_messages import DBusNameFlags, message_bus
from jeepney.wrappers import new_method_return

from update_agent.bus_objects import AUTHENTICATION, INTERFACES, OWN, PROPERTIES, BusError, Objects

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from jeepney import Message

    from update_agent.daemon import Daemon

_SEND_S = 2.0  # a bus that takes nothing for so long is given up
_GREETING_S = 15.0  # from connecting to having a name
_RETRY_MAX_S = 60.0
_OWNER = {1: "has", 2: "waits for", 4: "has"}  # replies to RequestName; 3 needs a flag that we do not set


class Bus:
    """The connection. `start` once; it then keeps itself connected."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._loop = daemon.context.loop
        self._log = daemon.log
        self._objects = Objects(daemon)
        self._socket: socket.socket | None = None
        self._auth = Authenticator()
        self._parser = Parser()
        self._serial = 0
        self._pending: dict[int, str] = {}  # serials of our own calls, and what they ask for
        self._is_greeted = False
        self._retry_s = 1.0
        self._told: dict[str, tuple[str, Any]] = {}
        self._complaint = ""

    def start(self) -> None:
        """Connect now, or later and again."""
        self._daemon.watchers.append(self._tell_properties)
        self._daemon.remote.watchers.append(self._tell_token)
        self._connect()

    # Connection

    def _connect(self) -> None:
        self._auth = Authenticator()
        self._parser = Parser()
        self._pending = {}
        self._serial = 0
        self._is_greeted = False
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        connection.settimeout(_SEND_S)
        try:
            # DBUS_SYSTEM_BUS_ADDRESS, or the usual place.
            connection.connect(find_system_bus())
        except (OSError, RuntimeError, ValueError) as error:  # the latter two: an address of no use
            connection.close()
            self._retry(f"cannot connect: {error}")
            return
        self._socket = connection
        self._loop.watch(connection.fileno(), self._readable)
        self._loop.call_at(time.monotonic() + _GREETING_S, self._too_slow)
        self._send(self._auth.data_to_send() or b"")

    def _too_slow(self) -> None:
        self._lose(f"no greeting within {_GREETING_S:.0f} s")

    def _lose(self, reason: str) -> None:
        """Give this connection up and come back."""
        if self._socket is None:
            return
        self._loop.unwatch(self._socket.fileno())
        self._loop.cancel(self._too_slow)
        try:
            self._socket.shutdown(socket.SHUT_RDWR)  # children may have copies of the descriptor
        except OSError:
            pass
        self._socket.close()
        self._socket = None
        if self._is_greeted:
            self._retry_s = 1.0
        self._retry(reason)

    def _retry(self, reason: str) -> None:
        if reason != self._complaint:  # once, not every minute
            self._log.warning(f"D-Bus: {reason}; updates go on, trying again")
        self._complaint = reason
        self._loop.call_at(time.monotonic() + self._retry_s, self._connect)
        self._retry_s = min(2 * self._retry_s, _RETRY_MAX_S)

    def _send(self, data: bytes) -> None:
        if self._socket is None:
            return
        try:
            self._socket.sendall(data)
        except OSError as error:
            self._lose(f"the connection broke: {error}")

    def _post(self, message: Message) -> int:
        self._serial += 1
        self._send(message.serialise(serial=self._serial))
        return self._serial

    def _readable(self) -> None:
        assert self._socket is not None
        try:
            data = self._socket.recv(65536)
        except OSError as error:
            self._lose(f"the connection broke: {error}")
            return
        if not data:
            self._lose("the bus closed the connection")
        elif self._auth.authenticated:
            self._parser.add_data(data)
            self._take_messages()
        else:
            self._authenticate(data)

    def _authenticate(self, data: bytes) -> None:
        try:
            self._auth.feed(data)
        except ValueError as error:
            self._lose(str(error))
            return
        if self._auth.authenticated:
            self._send(BEGIN)
            self._ask("greeting", message_bus.Hello())
            flags = DBusNameFlags.allow_replacement | DBusNameFlags.replace_existing
            for interface in INTERFACES:
                self._ask(interface.bus_name, message_bus.RequestName(interface.bus_name, flags))

    def _ask(self, what: str, message: Message) -> None:
        self._pending[self._post(message)] = what

    # Messages

    def _take_messages(self) -> None:
        while self._socket is not None:
            try:
                message = self._parser.get_next_message()
            except Exception as error:
                # The bus checks what it passes on; what jeepney cannot read all the same is left out.
                self._log.debug(f"D-Bus: a message could not be read: {error!r}")
                self._parser.next_msg_size = None
                continue
            if message is None:
                return
            kind = message.header.message_type
            if kind is MessageType.method_call:
                self._answer(message)
            elif kind is MessageType.signal:
                self._note_name(message)
            else:
                self._take_reply(message)

    def _answer(self, message: Message) -> None:
        fields = message.header.fields
        try:
            signature, body = self._objects.call(
                fields[HeaderFields.path],
                fields.get(HeaderFields.interface),
                fields[HeaderFields.member],
                fields.get(HeaderFields.signature, ""),
                message.body,
            )
            reply = new_method_return(message, signature or None, body)
        except BusError as error:
            reply = new_error(message, error.name, "s", (error.message,))
        if not message.header.flags & MessageFlag.no_reply_expected:
            self._post(reply)

    def _take_reply(self, message: Message) -> None:
        """The reply to a call of ours: greeting or name."""
        what = self._pending.pop(message.header.fields.get(HeaderFields.reply_serial, 0), "")
        if not what:
            return
        if message.header.message_type is MessageType.error:
            # Without a name of its own it still serves the others.
            reason = message.body[0] if message.body else message.header.fields[HeaderFields.error_name]
            self._log.error(
                f"D-Bus: {what} was refused: {reason}; is the policy in /usr/share/dbus-1/system.d?"
            )
        elif what == "greeting":
            self._loop.cancel(self._too_slow)
            self._is_greeted = True
            self._complaint = ""
            self._told = self._objects.properties()
        else:
            self._log.info(f"D-Bus: the agent {_OWNER.get(message.body[0], 'does not have')} {what}")

    def _note_name(self, message: Message) -> None:
        """Another program may replace us; the bus gives the name back when that ends."""
        fields = message.header.fields
        if fields.get(HeaderFields.sender) != "org.freedesktop.DBus" or not self._is_greeted:
            return
        member = fields.get(HeaderFields.member)
        if member == "NameLost":
            self._log.warning(f"D-Bus: another program has taken {message.body[0]}")

    # Signals

    def _tell_properties(self) -> None:
        if not self._is_greeted or self._socket is None:
            return
        now = self._objects.properties()
        changed = {name: value for name, value in now.items() if value != self._told.get(name)}
        if changed:
            self._told = now
            self._emit(OWN.path, PROPERTIES, "PropertiesChanged", "sa{sv}as", (OWN.name, changed, []))

    def _tell_token(self, token: str, server_url: str) -> None:
        if self._is_greeted:
            name = AUTHENTICATION.name
            body = (token, self._objects.url_for(server_url))
            self._emit(AUTHENTICATION.path, name, "JwtTokenStateChange", "ss", body)

    def _emit(self, path: str, interface: str, name: str, signature: str, body: tuple[Any, ...]) -> None:
        self._post(new_signal(DBusAddress(path, interface=interface), name, signature, body))
