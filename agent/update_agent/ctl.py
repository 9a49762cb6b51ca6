# SPDX-License-Identifier: Apache-2.0
"""Local control without D-Bus: a Unix socket on which the daemon takes commands and tells its status.

One JSON object a line each way. Requests are `{"verb": VERB, ...}`; the reply to each is `{"ok": true,
"result": ...}`, or `{"ok": false, "error": ..., "hint": ..., "kind": ...}` with nothing changed:

| verb     | more keys          | result                                                             |
|----------|--------------------|--------------------------------------------------------------------|
| status   | follow (optional)  | the document of `status.status`; `follow`: again after each change |
| maps     |                    | the list of `Decisions.maps`                                       |
| set-map  | map: JSON text     | seconds after which to send the map again; all POINTS may be in it |
| pause    | points             | the points                                                         |
| continue | point (optional)   | the points                                                         |
| fail     | point (optional)   | the points                                                         |

Who may: root, the user the agent runs as, and members of the group that `ControlGroup` in mender.conf names.
"""

from __future__ import annotations

import os
import struct

from update_agent.errors import ConfigError, ControlError, UpdateError
from update_agent.lean import accept, json, socket
from update_agent.states import POINTS
from update_agent.status import status

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from update_agent.daemon import Daemon

_LINE_MAX = 256 * 1024  # a map of 64 Ki characters, each escaped
_CLIENTS_MAX = 16
_SEND_S = 1.0  # a client that does not read for so long is dropped
_SO_PEERGROUPS = 59  # linux/socket.h; supplementary groups of the peer as gid_t[]


class Refused(Exception):
    """The caller has no right to be here."""


class ControlSocket:
    """Serves clients from the daemon's loop. `listen` raises ConfigError when there can be no socket."""

    def __init__(self, daemon: Daemon, path: str, group: str = "") -> None:
        self._daemon = daemon
        self._path = path
        self._gid = _group_id(group) if group else None
        self._listener: socket.socket | None = None
        self._clients: dict[int, _Client] = {}
        self._told = ""

    def listen(self) -> None:
        """Make the socket, and serve it from now on."""
        loop = self._daemon.context.loop
        try:
            os.makedirs(os.path.dirname(self._path), mode=0o755, exist_ok=True)
            _remove_stale(self._path)
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            old_mask = os.umask(0o177)
            try:
                listener.bind(self._path)
            finally:
                os.umask(old_mask)
            if self._gid is not None:
                os.chown(self._path, -1, self._gid)
                os.chmod(self._path, 0o660)
            listener.listen(_CLIENTS_MAX)
            listener.setblocking(False)
        except OSError as error:
            raise ConfigError(
                f"cannot listen on the control socket {self._path}: {error.strerror or error}"
            ) from error
        self._listener = listener
        loop.watch(listener.fileno(), self._accept)
        self._daemon.watchers.append(self._tell_followers)

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            connection = accept(self._listener)
        except OSError:
            return  # gone again
        client = _Client(connection)
        try:
            self._authorize(connection)
            if len(self._clients) >= _CLIENTS_MAX:
                raise Refused("TooManyClients: try again later")
        except (Refused, OSError) as error:
            client.send(_failure(ControlError(str(error))))
            client.close()
            return
        fd = connection.fileno()
        self._clients[fd] = client
        self._daemon.context.loop.watch(fd, lambda: self._serve(fd))

    def _authorize(self, connection: socket.socket) -> None:
        pid, uid, gid = struct.unpack("iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid in {0, os.geteuid()}:
            return
        if self._gid is not None:
            # 1024 bytes is Python's limit; someone in more than 256 groups counts by the primary one.
            try:
                groups = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 1024)
            except OSError:
                groups = b""
            if self._gid == gid or self._gid in struct.unpack(f"{len(groups) // 4}I", groups):
                return
        self._daemon.log.warning(f"Control socket: process {pid} of user {uid} was refused")
        raise Refused("AccessDenied: only root and members of ControlGroup may control updates")

    def _serve(self, fd: int) -> None:
        client = self._clients[fd]
        for line in client.lines():
            reply = self._reply(client, line)
            if not client.send(reply):
                break
        if client.is_closed:
            self._drop(fd)

    def _drop(self, fd: int) -> None:
        self._daemon.context.loop.unwatch(fd)
        self._clients.pop(fd).close()

    def _reply(self, client: _Client, line: bytes) -> dict[str, object]:
        try:
            try:
                request = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ControlError(f"the request is not JSON: {error}") from error
            if not isinstance(request, dict):
                raise ControlError("the request is not a JSON object")
            return {"ok": True, "result": self._do(client, request)}
        except UpdateError as error:
            return _failure(error)

    def _do(self, client: _Client, request: dict[str, object]) -> object:
        decisions = self._daemon.decisions
        verb = request.get("verb")
        if verb == "status":
            client.follows = request.get("follow") is True
            return status(self._daemon)
        if verb == "maps":
            return decisions.maps()
        if verb == "set-map":
            return decisions.set_map(_text(request, "map"), POINTS)
        if verb == "pause":
            points = request.get("points")
            if not isinstance(points, list) or not all(isinstance(point, str) for point in points):
                raise ControlError("points must be a list of control points")
            return decisions.pause(points)
        if verb == "continue":
            return decisions.go_on(_text(request, "point", ""))
        if verb == "fail":
            return decisions.fail(_text(request, "point", ""))
        raise ControlError(
            f"unknown verb {json.dumps(verb)[:60]}", hint="status, maps, set-map, pause, continue or fail"
        )

    def _tell_followers(self) -> None:
        if not any(client.follows for client in self._clients.values()):
            return
        document = status(self._daemon)
        essence = _essence(document)
        if essence == self._told:
            return
        self._told = essence
        for fd, client in list(self._clients.items()):
            if client.follows and not client.send({"ok": True, "result": document}):
                self._drop(fd)


class _Client:
    """One connection."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._rest = b""
        self.follows = False
        self.is_closed = False
        connection.settimeout(_SEND_S)

    def lines(self) -> list[bytes]:
        """The complete lines that came in. The client is closed at its end and when a line is too long."""
        try:
            chunk = self._connection.recv(65536)
        except OSError:
            chunk = b""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        if not chunk:
            self.is_closed = True
        elif len(self._rest) > _LINE_MAX:
            self.send(_failure(ControlError(f"a request may have at most {_LINE_MAX} bytes")))
            self.is_closed = True
        return lines

    def send(self, document: dict[str, object]) -> bool:
        """False, and the client is closed, when it does not take it."""
        try:
            self._connection.sendall(json.dumps(document).encode() + b"\n")
        except OSError:
            self.is_closed = True
        return not self.is_closed

    def close(self) -> None:
        """End the connection, also for copies of it in child processes."""
        try:
            self._connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._connection.close()


def _failure(error: UpdateError) -> dict[str, object]:
    return {"ok": False, "error": error.message, "hint": error.hint, "kind": type(error).__name__}


def _text(request: dict[str, object], key: str, default: str | None = None) -> str:
    value = request.get(key, default)
    if not isinstance(value, str):
        raise ControlError(f"{key} must be text")
    return value


def _essence(document: dict[str, object]) -> str:
    """A status without the seconds that pass by themselves."""

    def strip(value: object) -> object:
        if isinstance(value, dict):
            return {key: strip(item) for key, item in value.items() if not key.endswith("_in_s")}
        if isinstance(value, list):
            return [strip(item) for item in value]
        return value

    return json.dumps(strip(document))


def _group_id(name: str) -> int:
    import grp

    try:
        return grp.getgrnam(name).gr_gid
    except KeyError as error:
        raise ConfigError(f"ControlGroup: there is no group {name!r}") from error


def _remove_stale(path: str) -> None:
    """Remove what a killed agent left. Raises OSError if another agent serves the socket."""
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        probe.settimeout(_SEND_S)
        probe.connect(path)
    except FileNotFoundError:
        return
    except ConnectionRefusedError:
        os.unlink(path)
        return
    finally:
        probe.close()
    raise OSError(0, "another agent serves it")


def daemon_pid(path: str) -> int:
    """The process that serves the socket; 0 if none does."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        connection.connect(path)
        return int(struct.unpack("iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0])
    except OSError:
        return 0
    finally:
        connection.close()


def ask(path: str, request: dict[str, object], answer: Callable[[object], None]) -> None:
    """A client: send one request and give each result to `answer`, until the daemon ends the conversation.

    Without `follow` there is one result. Raises ControlError or IdleError for what the daemon refused, and
    ControlError when there is no daemon.
    """
    from update_agent import errors

    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        try:
            connection.connect(path)
        except PermissionError as error:
            raise ControlError(
                f"no permission for {path}", hint="be root or in the group of ControlGroup in mender.conf"
            ) from error
        except OSError as error:
            raise ControlError(
                f"cannot reach the update daemon at {path}: {error.strerror}", hint="is it running?"
            ) from error
        try:
            connection.sendall(json.dumps(request).encode() + b"\n")
            with open(os.dup(connection.fileno()), "rb") as lines:
                for line in lines:
                    reply = json.loads(line)
                    if not reply["ok"]:
                        kind = getattr(errors, str(reply["kind"]), ControlError)
                        raise kind(reply["error"], hint=reply["hint"])
                    answer(reply["result"])
                    if not request.get("follow"):
                        return
        except OSError as error:
            raise ControlError(f"the update daemon went away: {error.strerror}") from error
    finally:
        connection.close()
    raise ControlError("the update daemon ended the conversation", hint="did it stop?")
