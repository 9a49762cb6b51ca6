# SPDX-License-Identifier: Apache-2.0
"""The server as the daemon sees it: one method per request, each with a reply.

Resident, so it imports no HTTP: a child process does the work (`worker.py`), the same one for all requests
and the download of a deployment. The session (token and server) lives here, in memory only, and goes into
the child with each request and back.
"""

from __future__ import annotations

import time

from update_agent import child
from update_agent.errors import UpdateError
from update_agent.loop import plain_wait

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from update_agent.config import Config
    from update_agent.log import Log
    from update_agent.loop import Loop
    from update_agent.update import Update
    from update_agent.worker import Worker

    Answer = Callable[[dict[str, object]], dict[str, object] | None]

OK = "ok"  # done; `value` has what was asked for
NOTHING = "nothing"  # poll: no deployment
ABORTED = "aborted"  # 409: the deployment was aborted, or the device decommissioned
GONE = "gone"  # control map: no such deployment any more; log: refused for good. Asking again is useless
FAILED = "failed"  # no connection, no token, an unexpected or malformed answer

_REST_S = 10.0  # without a request; starting a child anew costs 40 ms, keeping it 18 MB


class Reply:
    """What came of a request. Conditions of the network are replies, never exceptions."""

    __slots__ = ("is_clock", "kind", "reason", "retry_after_s", "value")

    def __init__(
        self,
        kind: str,
        value: object = None,
        *,
        retry_after_s: float | None = None,
        reason: str = "",
        is_clock: bool = False,
    ) -> None:
        self.kind = kind
        self.value = value
        self.retry_after_s = retry_after_s  # 429 with a readable Retry-After: wait exactly that
        self.reason = reason  # why not, in words, with the server's own; for the log
        self.is_clock = is_clock  # the device's clock may be why: try again when it has been set

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
            is_clock=document["is_clock"] is True,
        )


class Remote:
    """Requests to the server. Each waits for its reply; a `loop` serves other descriptors meanwhile."""

    def __init__(self, config: Config, log: Log, loop: Loop | None = None) -> None:
        self._config = config
        self._log = log
        self._loop = loop
        self._helper = child.Helper(self._perform, log=log, wait=loop.wait if loop else plain_wait)
        self._worker: Worker | None = None  # in the child
        self.token = ""  # of the authorized session, never on disk, never in a log line
        self.server_url = ""
        self._inventory_sum = ""
        self._background: child.Work | None = None
        self._telling: child.Work | None = None
        self.watchers: list[Callable[[str, str], None]] = []  # told token and URL after an authorization

    def drop_token(self) -> None:
        """Forget the session; the next request authorizes first."""
        self.token = self.server_url = ""

    def rest(self) -> None:
        """Nothing is to be asked for a while: end the child process. The next request starts another."""
        if self._loop is not None:
            self._loop.cancel(self.rest)
        self._told()
        self._helper.rest()

    def authorize(self) -> Reply:
        """Get a fresh token now. On failure the old one is forgotten, too."""
        self.drop_token()
        return self._ask("authorization", "authorized")

    def authorize_in_background(self, loop: Loop) -> None:
        """Begin to get a fresh token, unless that is going on already; `watchers` hear of its end.

        Raises OSError when there can be no child process.
        """
        if self._background is not None:
            return
        task = {**self._task("authorized"), "token": "", "url": ""}
        process = child.Work(
            lambda channel: self._perform(channel, task), log=self._log, what="authorization"
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
        return self._ask("the poll", "next_deployment", dict(provides), self._config.device_type())

    def report(
        self,
        deployment_id: str,
        status: str,
        substate: str = "",
        *,
        give_up: Callable[[], bool] | None = None,
    ) -> Reply:
        """Report a deployment status: OK, ABORTED or FAILED. One try, ended early if `give_up` says so."""
        what = f"report {status!r}"
        return self._ask(what, "report", deployment_id, status, substate, give_up=give_up)

    def tell(self, deployment_id: str, status: str, substate: str) -> None:
        """Report in the background; what comes of it concerns nobody. One at a time, others are left out."""
        if self._telling is not None or self._loop is None:
            return
        task = self._task("report", deployment_id, status, substate)
        try:
            process = child.Work(
                lambda channel: self._perform(channel, task), log=self._log, what="a live report"
            )
        except OSError:
            return
        self._telling = process

        def readable() -> None:
            if not process.receive(None):
                self._told()

        self._loop.watch(process.read_fd, readable)

    def _told(self) -> None:
        """The report in the background ended, or is to end now."""
        process, self._telling = self._telling, None
        if process is not None and self._loop is not None:
            self._loop.unwatch(process.read_fd)
            process.close()

    def control_map(self, deployment_id: str, *, give_up: Callable[[], bool] | None = None) -> Reply:
        """Fetch the deployment's control map: OK with the map (unchecked JSON), GONE or FAILED.

        Ended early if `give_up` says so.
        """
        return self._ask("the control map", "control_map", deployment_id, give_up=give_up)

    def upload_log(self, deployment_id: str, path: str) -> Reply:
        """Send a deployment log file: OK, GONE (it will never be accepted) or FAILED."""
        return self._ask("the deployment log", "upload_log", deployment_id, path)

    def inventory(self, provides: Mapping[str, str] | None = None) -> Reply:
        """Run the generators and send the inventory: OK (also when unchanged) or FAILED.

        `provides` are added as attributes where no generator gives that name.
        """
        reply = self._ask("the inventory", "send_inventory", dict(provides or {}), self._inventory_sum)
        if reply.kind == OK:
            self._inventory_sum = str(reply.value)
        return reply

    def download(self, update: Update, installed: Mapping[str, str], answer: Answer) -> None:
        """Take the update's artifact in. Raises UpdateError.

        `answer` gets `intake.describe` of the headers before the payload is touched, and the progress; if it
        raises, the download ends.
        """
        task = self._task("download", update.id, update.uri, dict(installed), update.live_s)
        self._take_over(self._helped(task, "the download", answer))

    def _ask(
        self, what: str, method: str, *arguments: object, give_up: Callable[[], bool] | None = None
    ) -> Reply:
        """Make one request and take over the session it ends with."""
        task = self._task(method, *arguments)
        reply = self._settle(lambda: self._helped(task, what, give_up=give_up))
        if reply.kind not in {OK, NOTHING}:
            self._log.debug(f"Request for {what}: {reply.reason}")
        return reply

    def _task(self, method: str, *arguments: object) -> dict[str, object]:
        """What the child is told: a method of `Worker` or `Api`, the session, and where to log."""
        return {
            "do": method,
            "with": arguments,
            "token": self.token,
            "url": self.server_url,
            "log": self._log.deployment_path,
        }

    def _helped(
        self,
        task: dict[str, object],
        what: str,
        answer: Answer | None = None,
        give_up: Callable[[], bool] | None = None,
    ) -> object:
        if self._loop is not None:
            self._loop.cancel(self.rest)
        try:
            return self._helper.ask(task, answer, what=what, give_up=give_up)
        finally:
            if self._loop is not None:
                self._loop.call_at(time.monotonic() + _REST_S, self.rest)

    def _perform(self, channel: child.Channel, task: dict[str, object]) -> object:
        """In the child: the task."""
        if self._worker is None:
            from update_agent.worker import Worker

            self._worker = Worker(self._config, self._log)
        return self._worker.perform(channel, task)

    def _settle(self, get_result: Callable[[], object]) -> Reply:
        """The reply that a child gives, or why it gave none."""
        try:
            return self._take_over(get_result())
        except UpdateError as error:
            return Reply(FAILED, reason=str(error))

    def _take_over(self, result: object) -> Reply:
        """Keep the session that a request ended with; return its reply."""
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
