# SPDX-License-Identifier: Apache-2.0
"""The daemon's own dealings with the saved state; whole deployments are played by the scenarios."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from update_agent.bootloader import UBoot
from update_agent.config import Config
from update_agent.daemon import Daemon
from update_agent.log import Log
from update_agent.loop import Loop, Signals
from update_agent.machine import Context
from update_agent.remote import Remote
from update_agent.store import BusyError, Store
from update_agent.update import installed

DEPLOYMENT = {"id": "3f1c", "artifact": {"artifact_name": "v3", "source": {"uri": "https://example.com/a"}}}


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    old = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGUSR2)}
    wakeup_fd = signal.set_wakeup_fd(-1)
    config = Config()
    config.datastore = str(tmp_path)
    log = Log("error")
    loop = Loop()
    context = Context(config, log, Store(str(tmp_path), log), loop, UBoot())
    yield Daemon(context, Remote(config, log), Signals(loop))
    signal.set_wakeup_fd(wakeup_fd)
    for number, handler in old.items():
        signal.signal(number, handler)


def test_what_a_command_saved_between_poll_and_lock_is_seen(daemon: Daemon) -> None:
    command = Store(daemon.config.datastore, daemon.log)
    command.lock()
    command.write({"artifact-name": "v2"})
    with pytest.raises(BusyError):
        daemon._take_on(DEPLOYMENT)
    assert not daemon.update.id
    command.unlock()
    assert daemon._take_on(DEPLOYMENT) == "ok"
    assert installed(daemon.store)["artifact_name"] == "v2"
    daemon.write_state("update-store")
    assert Store(daemon.config.datastore, daemon.log).get("artifact-name") == "v2"
