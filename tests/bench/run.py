# SPDX-License-Identifier: Apache-2.0
"""Run a command under the stopwatch, in a device's root or the host's, and get the cost as an object."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from update_agent.errors import UpdateError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

STOPWATCH = Path(__file__).with_name("stopwatch.py")
PYTHON = "/usr/bin/python3"  # the system's: starts faster than a virtual environment's, as on a device
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NICE = -10  # what is measured goes before what else the machine does


class BenchError(UpdateError):
    """Something could not be measured."""


@dataclass(frozen=True)
class Cost:
    """What a command took. cpu_s: with all children; rss_mib: largest process; tree_mib: PSS of all."""

    wall_s: float
    cpu_s: float
    rss_mib: float
    tree_mib: float = 0.0
    written_mib: float = 0.0


def put_first(pid: int) -> None:
    """Give a process that leads a session its priority, if we may. The kernel compares sessions first."""
    try:
        os.setpriority(os.PRIO_PROCESS, pid, NICE)
        Path(f"/proc/{pid}/autogroup").write_text(str(NICE))
    except OSError:
        pass


def measure(
    argv: Sequence[str | Path],
    *,
    root: Path = Path("/"),
    env: Mapping[str, str] | None = None,
    sample: bool = False,
    stdout: str = "/dev/null",
    codes: Sequence[int] = (0,),
) -> Cost:
    """Run the command to its end. Raises BenchError with its last words if it exits with none of `codes`."""
    fd, name = tempfile.mkstemp(dir=root / "tmp", prefix="bench-", suffix=".log")
    os.close(fd)
    log = Path(name)
    request = {
        "argv": [str(word) for word in argv],
        "env": {"PATH": PATH, "LANG": "C.UTF-8", "HOME": "/tmp", **(env or {})},
        "root": str(root),
        "sample": sample,
        "nice": NICE,
        "stdout": stdout,
        "log": f"/tmp/{log.name}",
    }
    done = subprocess.run(
        [PYTHON, "-I", "-S", STOPWATCH],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=False,
    )
    said = log.read_text(errors="replace")
    log.unlink()
    if done.returncode:
        raise BenchError(f"the stopwatch failed: {done.stderr[-1000:]}")
    answer = json.loads(done.stdout)
    if answer["code"] not in codes:
        raise BenchError(
            f"{' '.join(request['argv'])} exited with {answer['code']}: " + "\n".join(said.splitlines()[-8:])
        )
    return Cost(answer["wall_s"], answer["cpu_s"], answer["rss_kib"] / 1024, answer["tree_kib"] / 1024)
