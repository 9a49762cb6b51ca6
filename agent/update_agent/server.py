# SPDX-License-Identifier: Apache-2.0
"""The device HTTP API, requests 1 to 7 (device-api.md). Only imported in a child process."""

from __future__ import annotations

import binascii
import time

from update_agent import connection, identity, inventory
from update_agent.connection import Connector, Url
from update_agent.digest import sha256
from update_agent.errors import ClockError, ServerError
from update_agent.keys import DeviceKey
from update_agent.lean import is_text, json
from update_agent.remote import ABORTED, FAILED, GONE, NOTHING, OK, Reply
from update_agent.url import quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from update_agent.config import Config
    from update_agent.log import Log

_API = "/api/devices"
_DEPLOYMENTS = "/v1/deployments/device/deployments"
_DEPLOYMENTS_V2 = "/v2/deployments/device/deployments"
_MAX_ANSWER_BYTES = 1 << 20


class Session:
    """An authorization: the token and the server that gave it. Empty texts: none."""

    __slots__ = ("token", "url")

    def __init__(self, token: str = "", url: str = "") -> None:
        self.token = token
        self.url = url


class Answer:
    """A complete HTTP answer."""

    __slots__ = ("body", "date", "retry_after", "status")

    def __init__(self, status: int, body: bytes, *, retry_after: str = "", date: str = "") -> None:
        self.status = status
        self.body = body
        self.retry_after = retry_after
        self.date = date

    def error_text(self) -> str:
        """The server's own words, from the `error` field of its body; empty if there are none."""
        try:
            document = json.loads(self.body)
        except ValueError:
            return ""
        text = document.get("error") if isinstance(document, dict) else None
        return " ".join(text.split())[:500] if isinstance(text, str) else ""

    def describe(self) -> str:
        """Status and error text in words."""
        text = self.error_text()
        return f"the server answered {self.status}" + (f": {text}" if text else "")

    def json(self) -> object:
        """The decoded body. Raises ServerError."""
        try:
            document: object = json.loads(self.body)
            return document
        except ValueError as error:
            raise ServerError(f"the server's answer is not JSON: {error}") from error


def _http_date(text: str) -> float | None:
    import email.utils  # rarely needed, and large

    try:
        return email.utils.parsedate_to_datetime(text).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def retry_after_s(value: str, server_date: str, now: float) -> float | None:
    """Seconds to wait for a Retry-After value: whole seconds or an HTTP date; None if unreadable.

    A date is compared with the server's own Date header when there is one: our clock may not be set.
    """
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(value[:12])
    when = _http_date(value)
    if when is None:
        return None
    reference = _http_date(server_date)
    return max(0.0, when - (now if reference is None else reference))


def check_deployment(document: object) -> dict[str, object]:
    """The deployment, if it has what an update needs. Raises ServerError for a malformed one."""

    def bad(what: str) -> ServerError:
        return ServerError(f"malformed deployment from the server: {what}")

    if not isinstance(document, dict):
        raise bad("not a JSON object")
    identifier = document.get("id")
    if not isinstance(identifier, str) or not identifier:
        raise bad("no id")
    if (
        "/" in identifier
        or not identifier.isprintable()
        or len(identifier) > 128
        or identifier in {".", ".."}
    ):
        raise bad("the id cannot be used")  # it becomes part of a file name
    artifact = document.get("artifact")
    source = artifact.get("source") if isinstance(artifact, dict) else None
    uri = source.get("uri") if isinstance(source, dict) else None
    if not isinstance(uri, str) or not isinstance(artifact, dict):
        raise bad("no artifact.source.uri")
    Url(uri)
    if artifact.get("artifact_name") is not None and not is_text(artifact["artifact_name"]):
        raise bad("artifact.artifact_name is not text")
    return document


class Api:
    """Requests with a token, authorizing as needed. `session` is what to keep for the next process.

    Network conditions raise ServerError; answers the specification gives a meaning become a Reply.
    """

    def __init__(
        self,
        config: Config,
        log: Log,
        session: Session | None = None,
        *,
        connector: Connector | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._config = config
        self._log = log
        self.session = session or Session()
        self._connector = connector or Connector(config)
        self._clock = clock

    # Authorization

    def authorize(self) -> None:
        """Get a token from the first server that gives one; `session` is empty when ServerError is raised."""
        self.session = Session()
        servers = self._config.servers
        if not servers:
            raise ServerError("no server is configured", hint="set ServerURL in mender.conf")
        key = DeviceKey(self._config, self._log)
        key.ensure()
        request = {"id_data": identity.id_data(self._config), "pubkey": key.public_pem()}
        if self._config.tenant_token:
            request["tenant_token"] = self._config.tenant_token
        request["tier"] = self._config.device_tier
        body = json.dumps(request, separators=(",", ":")).encode()
        headers = {
            "X-MEN-Signature": binascii.b2a_base64(key.sign(body), newline=False).decode(),
            "Authorization": "API_KEY",  # servers ignore it, but it must not be empty
        }
        reasons = []
        kind = ServerError
        for server in servers:
            try:
                answer = self._send(server, "POST", "/v1/authentication/auth_requests", body, headers)
                if answer.status == 200:
                    self.session = Session(_token(answer.body), server)
                    self._log.info(f"Authorized by {connection.without_query(server)}")
                    return
                reason, hint = answer.describe(), ""
                if answer.status == 401:
                    hint = "has the device been accepted on the server?"
            except ServerError as error:
                reason, hint = error.message, error.hint
                kind = ClockError if isinstance(error, ClockError) else kind
            shown = f"{connection.without_query(server)}: {reason}"
            self._log.error(f"Authorization failed at {shown}" + (f" ({hint})" if hint else ""))
            reasons.append((shown, hint))
        raise kind("authorization failed at " + "; ".join(shown for shown, _ in reasons), hint=reasons[-1][1])

    def authorized(self) -> Reply:
        """`authorize`, as a reply."""
        self.authorize()
        return Reply(OK)

    # Requests 2 to 7

    def next_deployment(self, provides: Mapping[str, str], device_type: str) -> Reply:
        """Poll: OK with the deployment, NOTHING, or FAILED. Falls back to v1 where there is no v2."""
        all_provides = {**provides, "device_type": device_type}
        answer = self._request(
            "POST",
            f"{_DEPLOYMENTS_V2}/next",
            {"device_provides": all_provides, "update_control_map": True},
        )
        if answer.status == 404:
            names = {"artifact_name": provides.get("artifact_name", ""), "device_type": device_type}
            query = "&".join(f"{name}={quote(value)}" for name, value in names.items())
            answer = self._request("GET", f"{_DEPLOYMENTS}/next?{query}")
        if answer.status == 200:
            return Reply(OK, check_deployment(answer.json()))
        if answer.status == 204:
            return Reply(NOTHING)
        return self._failed(answer)

    def report(self, deployment_id: str, status: str, substate: str = "") -> Reply:
        """Status report: OK, ABORTED or FAILED."""
        body = {"status": status, "substate": substate} if substate else {"status": status}
        answer = self._request("PUT", f"{_DEPLOYMENTS}/{quote(deployment_id)}/status", body)
        if answer.status == 204:
            return Reply(OK)
        if answer.status == 409:
            return Reply(ABORTED, reason=answer.describe())
        return self._failed(answer)

    def control_map(self, deployment_id: str) -> Reply:
        """Control map refresh: OK with the map as sent, GONE or FAILED."""
        path = f"{_DEPLOYMENTS_V2}/{quote(deployment_id)}/update_control_map"
        answer = self._request("GET", path)
        if answer.status == 200:
            document = answer.json()
            control_map = document.get("update_control_map") if isinstance(document, dict) else None
            if control_map is None:
                return Reply(FAILED, reason="the server answered 200 without a control map")
            return Reply(OK, control_map)
        if answer.status == 404:
            return Reply(GONE, reason=answer.describe())
        return self._failed(answer)

    def upload_log(self, deployment_id: str, path: str) -> Reply:
        """Send a log file: OK, GONE (too large for the server: give up) or FAILED."""
        from update_agent import logupload

        try:
            with open(path, "rb") as file:
                body = logupload.body(file)
        except OSError as error:
            raise ServerError(f"cannot read the deployment log {path}: {error.strerror}") from error
        answer = self._request("PUT", f"{_DEPLOYMENTS}/{quote(deployment_id)}/log", body)
        if answer.status == 204:
            return Reply(OK)
        if answer.status == 413:
            return Reply(GONE, reason=answer.describe())
        return self._failed(answer)

    def send_inventory(self, provides: Mapping[str, str], last_sum: str) -> Reply:
        """Send the inventory unless its checksum is `last_sum`: OK with the checksum, or FAILED."""
        if not self.session.token:
            self.authorize()
            last_sum = ""
        attributes = inventory.collect(self._config.inventory_dir(), provides, self._log)
        body = json.dumps(attributes, separators=(",", ":")).encode()
        checksum = sha256(body).hexdigest()
        if checksum == last_sum:
            self._log.debug("The inventory has not changed")
            return Reply(OK, checksum)
        answer = self._request("PUT", "/v1/inventory/device/attributes", body)
        return Reply(OK, checksum) if answer.status == 200 else self._failed(answer)

    # Common rules

    def _request(self, method: str, path: str, body: object = None) -> Answer:
        """One request with the token; after a 401 once more with a fresh one.

        Also once more at another server when there are several and this one cannot be reached any more.
        """
        if not self.session.token:
            self.authorize()
        data = body
        if body is not None and not isinstance(body, bytes):
            data = json.dumps(body, separators=(",", ":")).encode()
        try:
            answer = self._send_authorized(method, path, data)
        except ServerError as error:
            if len(self._config.servers) < 2:
                raise
            self._log.warning(f"Looking for another server: {error}")
            self.authorize()
            answer = self._send_authorized(method, path, data)
        if answer.status == 401:
            self._log.info("The server no longer accepts the token, authorizing again")
            self.authorize()
            answer = self._send_authorized(method, path, data)
        return answer

    def _send_authorized(self, method: str, path: str, data: object) -> Answer:
        headers = {"Authorization": f"Bearer {self.session.token}"}
        body = data if isinstance(data, bytes) else None
        return self._send(self.session.url, method, path, body, headers)

    def _send(
        self, server: str, method: str, path: str, body: bytes | None, headers: Mapping[str, str]
    ) -> Answer:
        """Send to a server and read the whole answer. Raises ServerError if there is none."""
        url = Url(connection.join(server, _API + path))
        shown = f"{method} {connection.without_query(url.text)}"
        all_headers = {"Accept": "application/json", **headers}
        if body is not None:
            all_headers["Content-Type"] = "application/json"
        try:
            http, response = self._connector.send(method, url, all_headers, body, reuse=True)
            try:
                data = response.read(_MAX_ANSWER_BYTES + 1)
                if response.length:
                    raise ServerError(f"{shown}: the answer ended early or is too large")
            except BaseException:
                http.close()
                raise
            self._connector.keep(url, http, response)
        except connection.ERRORS as error:
            reason, hint = connection.explain(error)
            kind = ClockError if connection.is_about_time(error) else ServerError
            raise kind(f"{shown}: {reason}", hint=hint) from error
        if len(data) > _MAX_ANSWER_BYTES:
            raise ServerError(f"{shown}: the answer is larger than {_MAX_ANSWER_BYTES} bytes")
        answer = Answer(
            response.status,
            data,
            retry_after=response.getheader("Retry-After", ""),
            date=response.getheader("Date", ""),
        )
        self._log.debug(f"{shown}: {answer.status}")
        return answer

    def _failed(self, answer: Answer) -> Reply:
        wait_s = None
        if answer.status == 429:
            wait_s = retry_after_s(answer.retry_after, answer.date, self._clock())
        return Reply(FAILED, retry_after_s=wait_s, reason=answer.describe())


def _token(body: bytes) -> str:
    """The token in an authorization answer. Raises ServerError for an empty or unusable one."""
    try:
        token = body.decode("ascii").strip()
    except UnicodeDecodeError:
        token = ""
    if not token or not token.isprintable() or " " in token:
        raise ServerError("the server answered 200 without a usable token")
    return token
