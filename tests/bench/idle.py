# SPDX-License-Identifier: Apache-2.0
"""Daemons that have nothing to do: memory, wake-ups and CPU, all in the same minute."""

from __future__ import annotations

import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench.report import Row
from tests.bench.run import BenchError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.bench.report import Report

LIBC = ("/libc.so.6", "/libc-2", "ld-linux", "/ld-musl", "/libm.so.6", "/libpthread", "/libdl", "/librt")


@dataclass
class Idler:
    """A daemon that runs: its processes are `pid` and all below."""

    name: str
    pid: int


@dataclass(frozen=True)
class Memory:
    """MiB. alone: RSS without the C library, which runs anyway; files counted once over the processes."""

    rss: float
    uss: float
    alone: float


def run(idlers: Sequence[Idler], report: Report, *, settle_s: float, window_s: float) -> None:
    """Wait until they have settled, look, wait for the window, look again."""
    time.sleep(settle_s)
    before = {idler.name: _activity(idler.pid) for idler in idlers}
    began = time.monotonic()
    time.sleep(window_s)
    for idler in idlers:
        after = _activity(idler.pid)
        elapsed = time.monotonic() - began
        if not after:
            raise BenchError(f"{idler.name} is not running any more")
        memory = _memory(idler.pid)
        woken = _change(before[idler.name], after, 0) / elapsed * 60
        used = _change(before[idler.name], after, 1) / 1e9 / elapsed * 3600
        for metric, unit, number in (
            ("RSS", "MiB", memory.rss),
            ("RSS without libc", "MiB", memory.alone),
            ("USS", "MiB", memory.uss),
            ("processes", "", float(len(_tree(idler.pid)))),
            ("wake-ups a minute", "", woken),
            ("CPU an hour", "s", used),
        ):
            report.add(Row("idle", "daemon", metric, unit), idler.name, number)


def stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """End them, politely, then not."""
    for process in processes:
        process.send_signal(signal.SIGTERM)
    for process in processes:
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _tree(pid: int) -> list[int]:
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            found += [int(word) for word in task.read_text().split()]
    return found


def _activity(pid: int) -> dict[int, tuple[int, int]]:
    """Of each thread of each process: context switches, and CPU in ns."""
    found = {}
    for member in _tree(pid):
        for task in Path(f"/proc/{member}/task").iterdir():
            cpu_ns = int((task / "schedstat").read_text().split()[0])
            lines = (task / "status").read_text().splitlines()
            switches = sum(int(line.split()[1]) for line in lines if "voluntary_ctxt" in line)
            found[int(task.name)] = (switches, cpu_ns)
    return found


def _change(before: dict[int, tuple[int, int]], after: dict[int, tuple[int, int]], which: int) -> int:
    """What the threads that are there at the end have done since; those that began meanwhile, all of it."""
    return sum(numbers[which] - before.get(thread, (0, 0))[which] for thread, numbers in after.items())


def _memory(pid: int) -> Memory:
    rss = uss = 0
    files: dict[str, int] = {}  # largest part of each that one process has mapped
    anonymous = 0
    for member in _tree(pid):
        mapped: dict[str, int] = {}
        path, size = "", 0
        for line in Path(f"/proc/{member}/smaps").read_text().splitlines():
            words = line.split()
            if "-" in words[0] and not words[0].endswith(":"):
                path = words[5] if len(words) > 5 else ""
            elif words[0] == "Rss:":
                size = int(words[1])
                rss += size
                mapped[path] = mapped.get(path, 0) + size
            elif words[0] in {"Private_Clean:", "Private_Dirty:"}:
                uss += int(words[1])
        for name, amount in mapped.items():
            if name.startswith("/"):
                files[name] = max(files.get(name, 0), amount)
            else:
                anonymous += amount
    alone = anonymous + sum(size for name, size in files.items() if not any(part in name for part in LIBC))
    return Memory(rss / 1024, uss / 1024, alone / 1024)
