# SPDX-License-Identifier: Apache-2.0
"""The server of a rehearsal, beside the machine: hands out one artifact again and again."""

from __future__ import annotations

import json
import os
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

from update_tools.conform import peer

if TYPE_CHECKING:
    from update_tools.rehearse.runner import Notes

    Json = dict[str, Any]

PORT = 8080
_DEPLOYMENTS = f"{peer.DEVICE}/v{{}}/deployments/device/deployments"
_PATIENCE_S = 600


def deployment_id(leg: int) -> str:
    """Of the n-th update of a scenario."""
    return f"0a1b2c3d-4e5f-4a6b-8c7d-{leg:012d}"


class Server:
    """Answers until the process ends. `control`: the folder in which the machine's runner says what ended."""

    def __init__(self, control: Path, artifact: bytes, device_type: str, name: str, notes: Notes) -> None:
        self._control = control
        self._artifact = artifact
        self._device_type = device_type
        self._name = name
        self._notes = notes
        self._lock = threading.Lock()
        self._may_go_on = threading.Event()
        self._leg = 0
        self._over = 0
        self._has_final = False
        self._tell = -1

    def serve(self, go: int, tell: int) -> None:
        """Serve. A byte from `go` begins the next update; a byte to `tell` says that it is over."""
        self._tell = tell
        server = ThreadingHTTPServer(("127.0.0.1", PORT), peer._handler(self._answer))
        server.daemon_threads = True
        server.handle_error = lambda *_: None  # type: ignore[method-assign]
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        while os.read(go, 1):
            with self._lock:
                self._leg += 1
                self._has_final = False
            self._may_go_on.set()

    def _answer(self, method: str, path: str, body: bytes) -> tuple[int, bytes] | None:
        if path == _DEPLOYMENTS.format(2) + "/next":
            self._see_end()
            self._may_go_on.wait(_PATIENCE_S)
            return 200, json.dumps(self._next()).encode()
        if path == "/health":  # scripts ask for it, to see whether the server is there
            return 200, b"ok\n"
        if path.endswith("/auth_requests"):
            return 200, peer.TOKEN.encode()
        if path.endswith("/device/attributes"):
            return 200, b""
        if method == "GET" and path == "/artifact.mender":
            return 200, self._artifact
        if method == "PUT" and path.endswith("/status"):
            document = json.loads(body)
            substate = str(document.get("substate") or "")
            self._notes("status", status=str(document["status"]), substate=substate)
            self._has_final = self._has_final or document["status"] in {"success", "failure"}
            return 204, b""
        if method == "PUT" and path.endswith("/log"):
            return 204, b""
        return 404, b'{"error":"no such path"}'

    def _see_end(self) -> None:
        """The agent asks for work: if it is through with the update, say so, once."""
        with self._lock:
            try:
                ended = int((self._control / "ended").read_text() or 0)
            except (FileNotFoundError, ValueError):
                ended = 0
            if (ended == self._leg or self._has_final) and self._leg > self._over:
                self._over = self._leg
                self._may_go_on.clear()
                os.write(self._tell, b"!")

    def _next(self) -> Json:
        return {
            "id": deployment_id(self._leg),
            "artifact": {
                "source": {
                    "uri": f"http://127.0.0.1:{PORT}/artifact.mender",
                    "expire": "2099-01-01T00:00:00Z",
                },
                "artifact_name": self._name,
                "device_types_compatible": [self._device_type],
            },
        }
