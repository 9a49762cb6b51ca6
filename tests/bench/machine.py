# SPDX-License-Identifier: Apache-2.0
"""What the state machine costs: an empty update, each state script, a deployment, the start of a command.

The update module and the scripts do nothing. A script's cost is a twentieth of the difference that twenty of
them make, of runs one after the other.
"""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench.agents import OURS, UpdateAgent
from tests.bench.peers import cpu_s
from tests.bench.report import Row
from tests.bench.run import PATH, BenchError, measure
from tests.bench.server import Deployment

from update_tools.conform import artifact

if TYPE_CHECKING:
    from tests.bench.device import Device
    from tests.bench.report import Report
    from tests.bench.server import Server

MODULE = "nothing"
SCRIPTS = 20
FOLDER = "/media/nothing"
SCRIPT = b"#!/bin/sh\nexit 0\n"
_STATES = ("ArtifactInstall_Enter", "ArtifactInstall_Leave", "ArtifactCommit_Enter", "ArtifactCommit_Leave")
_PATIENCE_S = 60


def data_dir(folder: Path) -> Path:
    """What /usr/share/mender of a device has here: the module and an identity."""
    for name, text in (
        (f"modules/v3/{MODULE}", SCRIPT),
        ("identity/mender-device-identity", b"#!/bin/sh\necho mac=00:11:22:33:44:55\n"),
    ):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text)
        path.chmod(0o755)
    (folder / "inventory").mkdir(exist_ok=True)
    return folder


def artifacts(folder: Path) -> Path:
    """Empty updates without and with scripts, two of each: the same one is not installed twice."""
    folder.mkdir(exist_ok=True)
    for count in (0, SCRIPTS):
        scripts = {f"{_STATES[n % 4]}_{n // 4:02}": SCRIPT for n in range(count)}
        for which in "ab":
            name = f"nothing-{count}-{which}"
            data = artifact.build(name, device_type="bench", payload_type=MODULE, scripts=scripts)
            (folder / f"{name}.mender").write_bytes(data)
    (folder / "script").write_bytes(SCRIPT)
    (folder / "script").chmod(0o755)
    return folder


class Subject:
    """An agent as far as this part needs it: program, environment, device."""

    def __init__(self, name: str, program: str, device: Device, env: dict[str, str]) -> None:
        self.name = name
        self.program = program
        self.device = device
        self.env = {"PATH": PATH, "LANG": "C.UTF-8", "HOME": "/tmp", **env}


def ours(device: Device) -> Subject:
    """The agent."""
    return Subject(OURS, "update-agent", device, UpdateAgent.ENV)


def mender(device: Device) -> Subject:
    """mender-client 3.4."""
    return Subject("mender 3.4", "mender", device, {})


class Bench:
    """All of it, for each subject."""

    def __init__(self, subjects: list[Subject], server: Server, report: Report, rounds: int) -> None:
        self._subjects = subjects
        self._server = server
        self._report = report
        self._rounds = rounds

    def run(self) -> None:
        """Rounds of everything, subjects taking turns."""
        for _ in range(self._rounds):
            self._limits()
            for subject in self._subjects:
                self._start(subject)
                self._scripts(subject)
        for subject in self._subjects:
            for count in (0, SCRIPTS):
                Daemon(subject, self._server).measure(self._report, count, self._rounds)

    def _limits(self) -> None:
        device = self._subjects[0].device
        bare = measure(["python3", "-I", "-S", "-c", "pass"], root=device.root)
        self._add("show-artifact", "wall", "limit", bare.wall_s)
        self._add("show-artifact", "CPU", "limit", bare.cpu_s)
        loop = f"i=0; while [ $i -lt {SCRIPTS} ]; do {FOLDER}/script; i=$((i + 1)); done"
        alone = measure(["sh", "-c", "true"], root=device.root)
        many = measure(["sh", "-c", loop], root=device.root)
        self._add("state script", "wall, each", "limit", (many.wall_s - alone.wall_s) / SCRIPTS)
        self._add("state script", "CPU, each", "limit", (many.cpu_s - alone.cpu_s) / SCRIPTS)

    def _start(self, subject: Subject) -> None:
        cost = measure([subject.program, "show-artifact"], root=subject.device.root, env=subject.env)
        self._add("show-artifact", "wall", subject.name, cost.wall_s)
        self._add("show-artifact", "CPU", subject.name, cost.cpu_s)

    def _scripts(self, subject: Subject) -> None:
        costs = []
        for count in (0, SCRIPTS):
            subject.device.renew()
            argv = [subject.program, "install", f"{FOLDER}/nothing-{count}-a.mender"]
            costs.append(measure(argv, root=subject.device.root, env=subject.env))
        without, with_ = costs
        self._add("empty update", "wall", subject.name, without.wall_s)
        self._add("empty update", "CPU", subject.name, without.cpu_s)
        self._add("state script", "wall, each", subject.name, (with_.wall_s - without.wall_s) / SCRIPTS)
        self._add("state script", "CPU, each", subject.name, (with_.cpu_s - without.cpu_s) / SCRIPTS)

    def _add(self, case: str, metric: str, who: str, seconds: float) -> None:
        self._report.add(Row("machine", case, metric, "ms"), who, seconds * 1000)


class Daemon:
    """A daemon that is given one deployment after the other; SIGUSR1 makes it poll."""

    def __init__(self, subject: Subject, server: Server) -> None:
        self._subject = subject
        self._server = server

    def measure(self, report: Report, count: int, rounds: int) -> None:
        """Deployments with this number of scripts, the first one not counted."""
        subject = self._subject
        subject.device.renew()
        subject.device.configure(
            ServerURL=self._server.url,
            UpdatePollIntervalSeconds=86400,
            InventoryPollIntervalSeconds=86400,
            RetryPollIntervalSeconds=300,
        )
        self._server.requests.clear()
        process = subject.device.spawn([subject.program, "daemon"], subject.env)
        case = "daemon, empty deployment" if count == 0 else f"daemon, {count} scripts"
        try:
            self._settle(process)
            before = 0.0
            for number in range(rounds + 1):
                if number == 1:
                    before = cpu_s(process.pid)
                wall, requests = self._deploy(process, count, number)
                if number:
                    report.add(
                        Row("machine", case, "first status to success", "ms"), subject.name, wall * 1000
                    )
                    report.add(Row("machine", case, "HTTP requests", ""), subject.name, requests)
            used = (cpu_s(process.pid) - before) / rounds
            report.add(Row("machine", case, "CPU", "ms"), subject.name, used * 1000)
        except BenchError as error:
            said = (subject.device.root / "tmp/daemon.log").read_text(errors="replace")
            raise BenchError(f"{subject.name}: {error}: {said[-1500:]}") from error
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()

    def _deploy(self, process: subprocess.Popen[bytes], count: int, number: int) -> tuple[float, int]:
        """Seconds from first status to success, and requests from the poll on."""
        name = f"nothing-{count}-{'ab'[number % 2]}"
        self._server.offer(Deployment(f"{number:08}-0000-4000-8000-{count:012}", name, f"{name}.mender"))
        process.send_signal(signal.SIGUSR1)
        if not self._server.finished.wait(_PATIENCE_S):
            raise BenchError(f"the deployment {name} did not come to its end")
        statuses = [request for request in self._server.requests if request.status]
        if statuses[-1].status != "success":
            raise BenchError(f"the deployment {name} failed")
        requests = len(self._server.requests)
        self._settle(process)
        return statuses[-1].at - statuses[0].at, requests

    def _settle(self, process: subprocess.Popen[bytes]) -> None:
        """Wait until it has asked for something and nothing has come for a while."""
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            time.sleep(0.1)
            if process.poll() is not None:
                raise BenchError(f"the daemon ended with {process.returncode}")
            last = self._server.requests[-1:]
            if last and time.monotonic() - last[0].at > 0.5:
                return
            if time.monotonic() > deadline:
                raise BenchError("the daemon does not become idle")
