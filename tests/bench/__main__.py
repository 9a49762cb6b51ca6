# SPDX-License-Identifier: Apache-2.0
"""Measure the agent, the desk tools and their peers. Nothing here asserts; scripts/bench --help."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from tests.bench.lab import Lab
from tests.bench.report import Report
from tests.bench.run import BenchError

from update_agent.errors import UpdateError

PARTS = ("size", "machine", "idle", "desk", "install")


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measures speed, memory and size of the agent and the desk tools, beside what the "
        "machine can do and beside other agents where these are there. As root. Nothing is asserted.",
    )
    parser.add_argument("--only", metavar="PART,...", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--rounds", type=int, default=5, help="default 5")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number of every round, too")
    parser.add_argument("--size", type=int, default=256, metavar="MIB", help="of the image, default 256")
    parser.add_argument("--no-peers", action="store_true", help="only ours")
    parser.add_argument(
        "--fetch-peers",
        action="store_true",
        help="get Debian's mender-client, rauc and swupdate into the cache, unpacked, not installed; no more",
    )
    parser.add_argument("--quick", action="store_true", help="low compression, short waits: a smoke test")
    options = parser.parse_args(words)
    options.parts = [part for part in options.only.split(",") if part]
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"--only: {', '.join(sorted(unknown))}: known are {', '.join(PARTS)}")
    return options


def main(words: list[str] | None = None) -> int:
    """Exit code 0 when everything could be measured, 1 if a part failed, 2 for usage."""
    options = arguments(words)
    console = Console(width=None if sys.stdout.isatty() else 160)
    if options.fetch_peers:
        from tests.bench.peers import fetch

        print(fetch())
        return 0
    if os.geteuid() != 0:
        raise BenchError("loop devices and mounts need root", hint="sudo scripts/bench")
    report = Report()
    report.facts = facts()
    began = time.monotonic()
    folder = tempfile.mkdtemp(prefix="bench-")
    try:
        lab = Lab(Path(folder), report, options)
        try:
            lab.run()
        finally:
            lab.close()
    finally:
        os.rmdir(folder)  # never more than that: the host's files may be mounted in it
    report.facts["load average, end"] = load()
    report.facts["took"] = f"{time.monotonic() - began:.0f} s"
    report.show(console)
    if options.json:
        report.save(options.json)
    return 1 if lab.failures else 0


def facts() -> dict[str, str]:
    """The machine, in words."""
    model = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "machine": f"{model}, {os.cpu_count()} cores, Linux {platform.release()}",
        "Python": platform.python_version(),
        "load average, start": load(),
    }


def load() -> str:
    """Of the last minutes: above the number of cores, wall times mean little."""
    return " ".join(f"{value:.1f}" for value in os.getloadavg())


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UpdateError as error:
        print(f"bench: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"       {error.hint}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
