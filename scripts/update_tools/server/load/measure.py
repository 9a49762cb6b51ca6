# SPDX-License-Identifier: Apache-2.0
"""The processes that make load, what the server's processes cost, and one setting from end to end."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from sqlalchemy import insert

from update_agent.errors import UpdateError
from update_tools import artifact
from update_tools.server import auth, run
from update_tools.server.db import Device, DeviceKey, new_id
from update_tools.server.load.devices import DEVICE_TYPE, NEW, OLD, SimulatedDevice
from update_tools.server.postgres import Postgres
from update_tools.server.settings import open_database, open_signer

TICKS = os.sysconf("SC_CLK_TCK")
CONNECTIONS = 32
Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """How long and how hard."""

    flood_s: float = 8.0
    rounds: int = 3
    interval_s: float = 30.0
    pace_s: float = 60.0
    walkers: int = 300
    authorized: int = 1000


@dataclass(frozen=True)
class Setting:
    """One arrangement of servers."""

    database: str  # sqlite or postgresql
    processes: int
    devices: int

    @property
    def name(self) -> str:
        """For the report."""
        return f"{self.database} x{self.processes}, {self.devices} devices"


class Crowd:
    """The process that is the devices."""

    def __init__(self) -> None:
        self._process = _python("update_tools.server.load.fleet")

    def do(self, job: str, **how: Any) -> dict[str, Any]:
        """Have it do a job, and return the result."""
        process = self._process
        _pipe(process.stdin).write(json.dumps({"job": job, "with": how}) + "\n")
        _pipe(process.stdin).flush()
        line = _pipe(process.stdout).readline()
        if not line:
            raise UpdateError(f"the device process ended during {job!r} with code {process.wait()}")
        result: dict[str, Any] = json.loads(line)
        return result

    def close(self) -> None:
        """End it."""
        _pipe(self._process.stdin).close()
        self._process.wait()


def measure(setting: Setting, plan: Plan, say: Say) -> dict[str, Any]:
    """One setting on fresh servers. Returns rates, latencies, errors, memory and CPU time."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ota-bench-")))
        database_url = ""
        if setting.database == "postgresql":
            database_url = stack.enter_context(Postgres()).url("bench")
        options = ["--database-url", database_url] if database_url else []
        servers = [
            stack.enter_context(run.start(folder / "data", auto_accept=True, options=options))
            for _ in range(setting.processes)
        ]
        bare = stack.enter_context(_bare())
        crowd = Crowd()
        stack.callback(crowd.close)
        urls = [server.url for server in servers]
        pids = [server.pid for server in servers]

        say(f"{setting.name}: authorizing")
        result: dict[str, Any] = {"setting": setting.name}
        by_request = min(setting.devices, plan.authorized)
        result["authorize"] = crowd.do(
            "authorize", urls=urls, first=0, count=by_request, connections=CONNECTIONS
        )
        if by_request < setting.devices:
            tokens = _settle_devices(folder / "data", database_url, by_request, setting.devices)
            crowd.do("know", first=by_request, tokens=tokens)
        say(f"{setting.name}: first polls")
        first = min(20.0, setting.devices / 150)
        result["first polls"] = crowd.do("pace", urls=urls, interval_s=first, seconds=first)

        floods: list[dict[str, float]] = []
        for number in range(plan.rounds):
            say(f"{setting.name}: as fast as they can, round {number + 1}")
            floods.append(_flood(crowd, urls, pids, [bare.url], [bare.pid], plan.flood_s))
        result["flood"] = {key: _median([flood[key] for flood in floods]) for key in floods[0]}

        say(f"{setting.name}: each device once in {plan.interval_s:g} s")
        before = _cpu_s(pids)
        result["pace"] = crowd.do("pace", urls=urls, interval_s=plan.interval_s, seconds=plan.pace_s)
        result["pace"]["cpu_share"] = (_cpu_s(pids) - before) / result["pace"]["seconds"]

        say(f"{setting.name}: a deployment")
        count = min(plan.walkers, setting.devices)
        deployment_id = _deploy(servers[0], folder)
        before = _cpu_s(pids)
        result["walk"] = crowd.do(
            "walk", urls=urls, deployment_id=deployment_id, count=count, connections=CONNECTIONS
        )
        asked = sum(kind["count"] for kind in result["walk"]["kinds"].values())
        result["walk"]["cpu_ms"] = (_cpu_s(pids) - before) / max(asked, 1) * 1000
        counts = servers[0].management().overview(deployment_id)["counts"]
        result["walk"]["outcome"] = {"success": counts["success"], "failure": counts["failure"]}
        result["memory_mib"] = sum(_memory_mib(pid, "VmRSS") for pid in pids) / len(pids)
        result["peak_mib"] = max(_memory_mib(pid, "VmHWM") for pid in pids)
        return result


def _flood(
    crowd: Crowd, urls: list[str], pids: list[int], bare_urls: list[str], bare_pids: list[int], seconds: float
) -> dict[str, float]:
    """Polls beside the bare framework's constant, one after the other so that both see the same machine."""
    values: dict[str, float] = {}
    for name, where, who in (("bare", bare_urls, bare_pids), ("poll", urls, pids)):
        before = _cpu_s(who)
        done = crowd.do("flood", urls=where, seconds=seconds, connections=CONNECTIONS)
        poll = done["kinds"]["poll"]
        values[f"{name}_per_s"] = poll["count"] / done["seconds"]
        values[f"{name}_p50_s"] = poll["p50_s"]
        values[f"{name}_p99_s"] = poll["p99_s"]
        values[f"{name}_cpu_us"] = (_cpu_s(who) - before) / max(poll["count"], 1) * 1e6
        values[f"{name}_errors"] = sum(poll["errors"].values())
    values["load"] = os.getloadavg()[0]
    values["ratio"] = values["bare_per_s"] / values["poll_per_s"]
    values["cpu_ratio"] = values["poll_cpu_us"] / values["bare_cpu_us"]
    return values


@dataclass(frozen=True)
class Bare:
    """The framework alone, running."""

    url: str
    pid: int


@contextlib.contextmanager
def _bare() -> Iterator[Bare]:
    process = _python("update_tools.server.load.bare")
    try:
        yield Bare(_pipe(process.stdout).readline().strip(), process.pid)
    finally:
        process.kill()
        process.wait()


def _python(module: str) -> subprocess.Popen[str]:
    # In a session of its own like the server: the kernel shares the processor between sessions.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    argv = [sys.executable, "-m", module]
    return subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )


def _settle_devices(data: Path, database_url: str, first: int, end: int) -> list[str]:
    """Accepted devices straight into the database, as their authorizations would leave them; their tokens."""
    db = open_database(data, database_url)
    try:
        signer = open_signer(db, data)
        rows = []
        keys = []
        for number in range(first, end):
            device = SimulatedDevice(number)
            device_id, key_id = new_id(), new_id()
            row = {"id": device_id, "identity": device.identity(), "status": "accepted"}
            rows.append({**row, "device_type": DEVICE_TYPE, "artifact_name": OLD})
            keys.append(
                DeviceKey(
                    id=key_id,
                    device_id=device_id,
                    public_key=device.public_key(),
                    kind="Ed25519",
                    status="accepted",
                )
            )
        with db.write() as session:
            session.execute(insert(Device), rows)
            session.execute(
                insert(DeviceKey),
                [
                    {name: getattr(key, name) for name in ("id", "device_id", "public_key", "kind", "status")}
                    for key in keys
                ],
            )
        return [auth.issue_token(signer, key) for key in keys]
    finally:
        db.close()


def _deploy(server: run.Server, folder: Path) -> str:
    payload = folder / "payload"
    payload.write_bytes(bytes(4096))
    path = folder / "release.mender"
    artifact.write(artifact.Contents(NEW, [DEVICE_TYPE], "bench", [payload]), path)
    management = server.management()
    management.upload(path)
    rules = {"hold": {"failed_percent": 50, "at_least": 100}}
    states = {"states": {"ArtifactCommit_Enter": {"action": "continue"}}}
    return management.deploy("bench", NEW, map=states, rules=rules)


def _cpu_s(pids: list[int]) -> float:
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICKS


def _memory_mib(pid: int, name: str) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    return 0.0


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe
