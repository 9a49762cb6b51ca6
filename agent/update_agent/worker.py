# SPDX-License-Identifier: Apache-2.0
"""What the child process of `remote.py` does: requests and the download, over one set of connections."""

from __future__ import annotations

from update_agent import bootloader
from update_agent.connection import Connector
from update_agent.errors import ClockError, UpdateError
from update_agent.loop import plain_wait
from update_agent.remote import FAILED, OK, Reply
from update_agent.server import Api, Session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from update_agent.child import Channel
    from update_agent.config import Config
    from update_agent.live import Teller
    from update_agent.log import Log

    Progress = Callable[[int, int | None], None]


class Worker:
    """Performs the tasks that `Remote` makes, one at a time."""

    def __init__(self, config: Config, log: Log) -> None:
        self._config = config
        self._log = log
        self._connector = Connector(config)
        self._api = Api(config, log, connector=self._connector)

    def perform(self, channel: Channel, task: dict[str, Any]) -> object:
        """The reply to a task, and the session after it. Raises UpdateError when a download fails."""
        self._log.follow_deployment(task["log"])
        self._api.session = Session(task["token"], task["url"])
        if task["do"] == "download":
            self._download(channel, *task["with"])
            reply = Reply(OK)
        else:
            try:
                reply = getattr(self._api, task["do"])(*task["with"])
            except UpdateError as error:
                reply = Reply(FAILED, reason=str(error), is_clock=isinstance(error, ClockError))
        return {"reply": reply.to_json(), "token": self._api.session.token, "url": self._api.session.url}

    def _download(
        self, channel: Channel, deployment_id: str, uri: str, installed: dict[str, str], live_s: int
    ) -> None:
        """Take an artifact in, with live reports if they are wanted."""
        teller = self._teller(deployment_id, live_s) if live_s else None
        try:
            self._take_in(channel, deployment_id, uri, installed, _progress(channel, teller))
        finally:
            if teller is not None:
                teller.close()

    def _take_in(
        self, channel: Channel, deployment_id: str, uri: str, installed: dict[str, str], progress: Progress
    ) -> None:
        """Show an artifact's headers to the parent, then stream the payload to its module."""
        # Most polls find nothing to download.
        from update_agent.intake import Intake, describe
        from update_agent.transfer import Download

        def renew() -> str:
            """The server hands the same deployment out, with a fresh link, until it knows the outcome."""
            reply = self._api.next_deployment(installed, self._config.device_type())
            deployment: Any = reply.value if reply.kind == OK else {"id": ""}
            return str(deployment["artifact"]["source"]["uri"]) if deployment["id"] == deployment_id else ""

        source = Download(
            self._config, self._log, progress=progress, connector=self._connector, renew=renew
        ).open(uri)
        # Not the loop's wait: signals, D-Bus and the control socket are the parent's to serve.
        boot = bootloader.find(self._config, self._log, plain_wait)
        intake = Intake(source, self._config, self._log, boot, plain_wait)
        intake.accept(installed)
        channel.ask(describe(intake.header))
        if intake.header.payload_type is not None:
            intake.prepare(installed)
        intake.stream()

    def _teller(self, deployment_id: str, live_s: int) -> Teller:
        """Live reports of the download, over a connection of their own."""
        from update_agent.live import Teller

        session = Session(self._api.session.token, self._api.session.url)
        api = Api(self._config, self._log, session)

        def report(substate: str) -> bool:
            try:
                return api.report(deployment_id, "downloading", substate).kind == OK
            except UpdateError:
                return False

        return Teller(report, live_s)


def _progress(channel: Channel, teller: Teller | None) -> Progress:
    """Tell the parent about every hundredth of the download."""
    told = 0

    def progress(done_bytes: int, size_bytes: int | None) -> None:
        nonlocal told
        if teller is not None:
            teller.done_bytes, teller.size_bytes = done_bytes, size_bytes or 0
        hundredth = done_bytes * 100 // size_bytes if size_bytes else 0
        if hundredth > told:
            told = hundredth
            channel.send({"done_bytes": done_bytes, "size_bytes": size_bytes})

    return progress
