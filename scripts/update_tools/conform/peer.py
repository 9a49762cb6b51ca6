# SPDX-License-Identifier: Apache-2.0
"""The server of a scenario: device API and artifact on a loopback port, failing as the scenario says."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from update_tools.conform.trace import Journal

    Json = dict[str, Any]

DEPLOYMENT_ID = "f3a1c5d2-7b64-4e09-9d8e-3c5b7a9f1e20"
TOKEN = "token-of-the-scenario"
DEVICE = "/api/devices"
_NEXT = f"{DEVICE}/v2/deployments/device/deployments/next"
_PATIENCE_S = 60
_MAP = f"{DEVICE}/v2/deployments/device/deployments/{DEPLOYMENT_ID}/update_control_map"
_STATUS = f"{DEVICE}/v1/deployments/device/deployments/{DEPLOYMENT_ID}/status"
_LOG = f"{DEVICE}/v1/deployments/device/deployments/{DEPLOYMENT_ID}/log"


class Listener:
    """An HTTP server on a loopback port, serving in threads of its own.

    `answer` gets method, path and body; it returns status code and body, or None to hang up instead.
    """

    def __init__(self, answer: Callable[[str, str, bytes], tuple[int, bytes] | None]) -> None:
        self._server = _Server(("127.0.0.1", 0), _handler(answer))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Where it listens."""
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}"

    def close(self) -> None:
        """Stop serving and free the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Peer:
    """One server for one scenario. `given` is the scenario's; what happens is noted in the journal."""

    def __init__(self, given: Mapping[str, Any], journal: Journal, artifact: bytes) -> None:
        self._given = given
        self._journal = journal
        self._artifact = artifact
        self._lock = threading.Lock()
        self._may_answer_poll = threading.Event()
        self._map = given.get("server_map")
        self._is_aborted = False
        self._is_over = False
        self._reports: dict[
            str, int
        ] = {}  # status: number of its reports, attempts of one report counted once
        self._attempts: dict[str, int] = {}  # status or status#n: attempts so far
        self._refreshes: dict[str, int] = {}  # control point: refreshes so far
        self._listener = Listener(self.answer)
        self.url = self._listener.url
        self.close = self._listener.close

    def offer(self) -> None:
        """Answer polls from now on; until then they are kept waiting."""
        self._may_answer_poll.set()

    def patch(self, document: Json) -> None:
        """Replace the deployment's control map, as an operator does."""
        with self._lock:
            self._map = document

    def abort(self) -> None:
        """The deployment is gone: its map is not found any more."""
        with self._lock:
            self._is_aborted = True

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, bytes] | None:
        """Status code and body for a request, or None to hang up without an answer."""
        if path == _NEXT:
            self._may_answer_poll.wait(_PATIENCE_S)
        with self._lock:
            match method, path:
                case "POST", "/api/devices/v1/authentication/auth_requests":
                    return 200, TOKEN.encode()
                case "PUT", "/api/devices/v1/inventory/device/attributes":
                    return 200, b""
                case "POST", _ if path == _NEXT:
                    return self._next()
                case "GET", "/artifact.mender":
                    return (404, b"") if self._given.get("broken_download") else (200, self._artifact)
                case "GET", _ if path == _MAP:
                    return self._refresh()
                case "PUT", _ if path == _STATUS:
                    return self._report(str(json.loads(body)["status"]))
                case "PUT", _ if path == _LOG:
                    self._journal.note("logs" if json.loads(body).get("messages") else "logs:empty")
                    return 204, b""
            return 404, b'{"error":"no such path"}'

    def _next(self) -> tuple[int, bytes]:
        if self._is_over:
            return 204, b""
        deployment: Json = {
            "id": DEPLOYMENT_ID,
            "artifact": {
                "source": {"uri": f"{self.url}/artifact.mender", "expire": "2099-01-01T00:00:00Z"},
                "artifact_name": "new",
                "device_types_compatible": ["conform"],
            },
        }
        if self._map is not None:
            deployment["update_control_map"] = {"id": DEPLOYMENT_ID, **self._map}
        return 200, json.dumps(deployment).encode()

    def _refresh(self) -> tuple[int, bytes]:
        point = self._point()
        number = self._refreshes[point] = self._refreshes.get(point, 0) + 1
        failures = (self._given.get("refresh_failures") or {}).get(point, 0)
        if failures == "always" or number <= failures:
            self._journal.note("map_refresh:error")
            return 500, b'{"error":"as the scenario says"}'
        if self._is_aborted or self._map is None:
            self._journal.note("map_refresh:404")
            return 404, b'{"error":"no such deployment"}'
        self._journal.note("map_refresh:200")
        return 200, json.dumps({"update_control_map": {"id": DEPLOYMENT_ID, **self._map}}).encode()

    def _point(self) -> str:
        """The control point the agent is at, by the statuses it has sent."""
        if "installing" not in self._reports:
            return "ArtifactInstall_Enter"
        if "rebooting" not in self._reports and self._given["needs_reboot"] != "No":
            return "ArtifactReboot_Enter"
        return "ArtifactCommit_Enter"

    def _report(self, status: str) -> tuple[int, bytes] | None:
        if not self._is_repeated(status):
            self._reports[status] = self._reports.get(status, 0) + 1
        numbered = f"{status}#{self._reports[status]}"
        failures = self._given.get("status_failures") or {}
        for key in (numbered, status):
            number = self._attempts[key] = self._attempts.get(key, 0) + 1
            fails = failures.get(key, 0)
            if fails == "aborted":
                self._journal.note(f"status:{status}=409")
                self._is_over = True
                return 409, b'{"error":"aborted"}'
            if fails == "always" or number <= fails:
                self._journal.note(f"status:{status}=unreachable")
                return None
        self._journal.note(f"status:{status}")
        self._is_over = self._is_over or status in {"success", "failure"}
        return 204, b""

    def _is_repeated(self, status: str) -> bool:
        """True for another attempt of the report before: nothing but waiting happened since."""
        for event in reversed(self._journal.trace()):
            if event != "retry_wait":
                return event == f"status:{status}=unreachable"
        return False


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Quiet: agents are killed in the middle of requests."""


def _handler(
    answer_to: Callable[[str, str, bytes], tuple[int, bytes] | None],
) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            is_open = self.path.startswith(f"{DEVICE}/v1/authentication/") or not self.path.startswith(DEVICE)
            if not is_open and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                answer: tuple[int, bytes] | None = (401, b'{"error":"no valid token"}')
            else:
                answer = answer_to(self.command, self.path, body)
            if answer is None:
                self.close_connection = True
                return
            code, content = answer
            self.send_response(code)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_PUT = do_POST = _serve  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Quiet: the journal has what matters."""

    return Handler
