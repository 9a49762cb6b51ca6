# SPDX-License-Identifier: Apache-2.0
"""Run one command and tell what it cost: `python3 -I -S stopwatch.py OPTIONS < request`, answer on stdout.

A program of its own because the kernel counts the memory of who forks into the peak of what is forked: this
one is smaller than anything it measures but a shell. Everything the command leaves behind is waited for.

request: {"argv": [...], "env": {...}, "root": PATH, "sample": BOOL, "nice": N, "stdout": PATH, "log": PATH}
"""

import json
import os
import resource
import sys
import time

SAMPLE_S = 0.02


def adopt_orphans() -> None:
    """Children of children come to us when their parent ends, so that their time is counted."""
    import ctypes

    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def start(request: dict) -> int:
    """The command as a child in its own session, in its root directory."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        go_first(request["nice"])
        if request["root"] != "/":
            os.chroot(request["root"])
            os.chdir("/")
        for number, name, flags in (
            (0, "/dev/null", os.O_RDONLY),
            (1, request["stdout"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
            (2, request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND),
        ):
            os.dup2(os.open(name, flags, 0o600), number)
        execute(request["argv"], request["env"])
    except OSError as error:
        os.write(2, f"stopwatch: {request['argv'][0]}: {error}\n".encode())
    finally:
        os._exit(127)


def go_first(nice: int) -> None:
    """Before what else the machine does. The kernel compares sessions first (sched_autogroup)."""
    try:
        os.nice(nice)
        with open("/proc/self/autogroup", "w") as file:
            file.write(str(nice))
    except OSError:
        pass  # it does not group, or we may not


def execute(argv: list[str], env: dict[str, str]) -> None:
    """As os.execvpe, which would import more, from what may be another root by now."""
    folders = [""] if "/" in argv[0] else env["PATH"].split(":")
    for folder in folders:
        path = f"{folder}/{argv[0]}" if folder else argv[0]
        if os.access(path, os.X_OK):
            os.execve(path, argv, env)
    raise FileNotFoundError(2, "not found in PATH")


def tree(pid: int) -> list[int]:
    """The process and all that descend from it."""
    found = [pid]
    for parent in found:
        try:
            for task in os.listdir(f"/proc/{parent}/task"):
                with open(f"/proc/{parent}/task/{task}/children") as file:
                    found += [int(word) for word in file.read().split()]
        except OSError:
            pass  # ended meanwhile
    return found


def shared_fairly(pid: int) -> int:
    """PSS of a process in KiB: pages that n processes share count as 1/n."""
    try:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            return next((int(line.split()[1]) for line in file if line.startswith("Pss:")), 0)
    except OSError:
        return 0


def wait(pid: int, sample: bool) -> tuple[int, float, int]:
    """Exit status of the command, when it ended, and the peak of its tree in KiB (0 if not asked)."""
    peak = 0
    status = None
    ended = 0.0
    while True:
        try:
            reaped, code = os.waitpid(-1, os.WNOHANG if sample else 0)
        except ChildProcessError:
            assert status is not None
            return status, ended, peak
        if reaped == pid:
            status, ended = code, time.monotonic()
        if not reaped:
            peak = max(peak, sum(shared_fairly(member) for member in tree(os.getpid())[1:]))
            time.sleep(SAMPLE_S)


def main() -> None:
    """One command."""
    request = json.load(sys.stdin)
    adopt_orphans()
    began = time.monotonic()
    pid = start(request)
    status, ended, peak = wait(pid, request["sample"])
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    answer = {
        "code": os.waitstatus_to_exitcode(status),
        "wall_s": ended - began,
        "cpu_s": used.ru_utime + used.ru_stime,
        "rss_kib": used.ru_maxrss,
        "tree_kib": peak,
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
