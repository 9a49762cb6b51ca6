# SPDX-License-Identifier: Apache-2.0
"""The server as the daemon sees it: one method per request, each in a child process, each with a reply.

Resident, so it imports no HTTP; the work is in `server.py`. The session (token and server) lives here, in
memory only, and goes into each child and back.
"""

from __future__ import annotations

from update_agent import child
from update_agent.errors import UpdateError
from update_agent.loop import plain_wait

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from update_agent.config import Config
    from update_agent.log import Log
    from update_agent.loop import Loop, Wait
    from update_agent.server import Api

OK = "ok"  # done; `value` has what was asked for
NOTHING = "nothing"  # poll: no deployment
ABORTED = "aborted"  # 409: the deployment was aborted, or the device decommissioned
GONE = "gone"  # control map: no such deployment any more; log: refused for good. Asking again is useless
FAILED = "failed"  # no connection, no token, an unexpected or malformed answer


class Reply:
    """What came of a request. Conditions of the network are replies, never exceptions."""

    __slots__ = ("kind", "reason", "retry_after_s", "value")

    def __init__(
        self, kind: str, value: object = None, *, retry_after_s: float | None = None, reason: str = ""
    ) -> None:
        self.kind = kind
        self.value = value
        self.retry_after_s = retry_after_s  # 429 with a readable Retry-After: wait exactly that
        self.reason = reason  # why not, in words, with the server's own; for the log

    def __repr__(self) -> str:
        return f"Reply({self.kind!r}, {self.value!r}, reason={self.reason!r})"

    def to_json(self) -> dict[str, object]:
        """For the way from the child to the parent."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_json(cls, document: Mapping[str, object]) -> Reply:
        """The reverse of `to_json`."""
        retry_after = document["retry_after_s"]
        return cls(
            str(document["kind"]),
            document["value"],
            retry_after_s=float(retry_after) if isinstance(retry_after, (int, float)) else None,
            reason=str(document["reason"]),
        )


class Remote:
    """Requests to the server. Each waits for its reply; `wait` serves other descriptors meanwhile."""

    def __init__(self, config: Config, log: Log, wait: Wait = plain_wait) -> None:
        self._config = config
        self._log = log
        self._wait = wait
        self.token = ""  # of the authorized session, never on disk, never in a log line
        self.server_url = ""
        self._inventory_sum = ""
        self._background: child.Work | None = None
        self.watchers: list[Callable[[str, str], None]] = []  # told token and URL after an authorization

    def drop_token(self) -> None:
        """Forget the session; the next request authorizes first."""
        self.token = self.server_url = ""

    def authorize(self) -> Reply:
        """Get a fresh token now. On failure the old one is forgotten, too."""
        self.drop_token()
        return self._ask("authorization", lambda api: api.authorized())

    def authorize_in_background(self, loop: Loop) -> None:
        """Begin to get a fresh token, unless that is going on already; `watchers` hear of its end.

        Raises OSError when there can be no child process.
        """
        if self._background is not None:
            return
        process = child.Work(
            self._work(lambda api: api.authorized(), token="", url=""), log=self._log, what="authorization"
        )
        self._background = process

        def readable() -> None:
            if process.receive(None):
                return
            loop.unwatch(process.read_fd)
            self._background = None
            self.drop_token()  # a token counts as new even if the server gave the same again
            reply = self._settle(process.result)
            process.close()
            if reply.kind != OK:
                self._log.error(f"Authorization failed: {reply.reason}")
                self._tell()

        loop.watch(process.read_fd, readable)

    def poll(self, provides: Mapping[str, str]) -> Reply:
        """Ask for a deployment: OK with the deployment as the server sent it (checked), NOTHING, or FAILED.

        `provides` is everything stored; the device type is added here.
        """
        return self._ask("the poll", lambda api: api.next_deployment(provides, self._config.device_type()))

    def report(self, deployment_id: str, status: str, substate: str = "") -> Reply:
        """Report a deployment status: OK, ABORTED or FAILED. One try."""
        return self._ask(f"report {status!r}", lambda api: api.report(deployment_id, status, substate))

    def control_map(self, deployment_id: str) -> Reply:
        """Fetch the deployment's control map: OK with the map (unchecked JSON), GONE or FAILED."""
        return self._ask("the control map", lambda api: api.control_map(deployment_id))

    def upload_log(self, deployment_id: str, path: str) -> Reply:
        """Send a deployment log file: OK, GONE (it will never be accepted) or FAILED."""
        return self._ask("the deployment log", lambda api: api.upload_log(deployment_id, path))

    def inventory(self, provides: Mapping[str, str] | None = None) -> Reply:
        """Run the generators and send the inventory: OK (also when unchanged) or FAILED.

        `provides` are added as attributes where no generator gives that name.
        """
        reply = self._ask(
            "the inventory", lambda api: api.send_inventory(provides or {}, self._inventory_sum)
        )
        if reply.kind == OK:
            self._inventory_sum = str(reply.value)
        return reply

    def _ask(self, what: str, request: Callable[[Api], Reply]) -> Reply:
        """Run one request in a child; take over the session it ends with."""
        work = self._work(request, token=self.token, url=self.server_url)
        reply = self._settle(lambda: child.run(work, log=self._log, wait=self._wait, what=what))
        if reply.kind not in {OK, NOTHING}:
            self._log.debug(f"Request for {what}: {reply.reason}")
        return reply

    def _work(
        self, request: Callable[[Api], Reply], *, token: str, url: str
    ) -> Callable[[child.Channel], object]:
        """What the child does: the request, with a session that begins with this token."""

        def work(_channel: child.Channel) -> object:
            from update_agent.server import Api, Session

            api = Api(self._config, self._log, Session(token, url))
            try:
                reply = request(api)
            except UpdateError as error:
                reply = Reply(FAILED, reason=str(error))
            return {"reply": reply.to_json(), "token": api.session.token, "url": api.session.url}

        return work

    def _settle(self, get_result: Callable[[], object]) -> Reply:
        """The reply that a child gives, or why it gave none."""
        try:
            result = get_result()
        except UpdateError as error:
            return Reply(FAILED, reason=str(error))
        assert isinstance(result, dict)
        is_new = result["token"] != self.token
        self.token, self.server_url = str(result["token"]), str(result["url"])
        if is_new:
            self._inventory_sum = ""  # the server may see another device now: tell it everything again
            self._tell()
        return Reply.from_json(result["reply"])

    def _tell(self) -> None:
        for watcher in self.watchers:
            watcher(self.token, self.server_url)
