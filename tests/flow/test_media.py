# SPDX-License-Identifier: Apache-2.0
"""A saved state that cannot be read or written: real commands on a real tmpfs that is full or read-only.

Whatever is wrong, what runs on the device stays as it is, and the reason is told.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from update_tools.conform.lab import Lab

GIVEN = {"supports_rollback": True, "needs_reboot": "No", "faults": []}
FILE = "update-agent.json"

# Run in the datastore, of which nothing but FILE and its .previous matters here.
GARBAGE = f"printf '\\377garbage' >{FILE}"
GARBAGE_BOTH = f"{GARBAGE}; cp {FILE} {FILE}.previous"
TRUNCATED = f"truncate -s 60 {FILE}"
EMPTY = f": >{FILE}"
NEWER = f'sed -i \'s/"format": 1/"format": 2/\' {FILE} {FILE}.previous'
FULL = "dd if=/dev/zero of=fill bs=4096 2>/dev/null || true"
READ_ONLY = "mount -o remount,ro ."
INSTALLED = ("install", 0, "Installed, but not committed.", "")
BACK = [
    ("show-artifact", 0, "old", f"{FILE} is damaged"),
    ("commit", 1, "", "the update was interrupted in ArtifactInstall_Enter: use resume"),
    ("resume", 0, "Rolled back.", ""),
    ("show-artifact", 0, "old", ""),
]

# name: what happens before the commands, where an update waits for commit if it says so; then commands with
# exit code, a line of stdout, words of stderr
CASES: dict[str, tuple[str, str, list[tuple[str, int, str, str]]]] = {
    # The one before says that the installation has begun: what is not known to have ended is undone.
    "corrupt, with a previous one": ("waits", GARBAGE, BACK),
    "corrupt": ("", GARBAGE_BOTH, [("show-artifact", 0, "unknown", "is damaged"), INSTALLED]),
    "corrupt while an update waits": (
        "waits",
        GARBAGE_BOTH,
        [("commit", 2, "No update in progress.", "is damaged"), ("show-artifact", 0, "unknown", "")],
    ),
    "truncated": ("waits", TRUNCATED, BACK),
    "empty": (
        "waits",
        EMPTY,
        [("show-artifact", 0, "old", "is damaged"), ("rollback", 0, "Rolled back.", "")],
    ),
    "of a newer agent": (
        "waits",
        NEWER,
        [
            (
                "commit",
                2,
                "No update in progress.",
                "has format 2, this agent knows 1 (was it written by a newer",
            ),
            ("show-artifact", 0, "unknown", "has format 2"),
            INSTALLED,
        ],
    ),
    "full": (
        "",
        FULL,
        [
            ("show-artifact", 0, "old", ""),
            ("install", 1, "System not modified.", "No space left on device (is the data partition mounted"),
            ("show-artifact", 0, "old", ""),
        ],
    ),
    # The place of the last but one is what the next one needs.
    "full while an update waits": (
        "waits",
        FULL,
        [("commit", 0, "Committed.", ""), ("show-artifact", 0, "new", "")],
    ),
    "read-only": (
        "",
        READ_ONLY,
        [
            ("show-artifact", 0, "old", ""),
            ("install", 1, "", "Read-only file system (is the data partition mounted and writable?)"),
            ("show-artifact", 0, "old", ""),
        ],
    ),
    "read-only while an update waits": (
        "waits",
        READ_ONLY,
        [
            ("commit", 1, "", "Read-only file system"),
            ("rollback", 1, "", "Read-only file system"),
            ("show-artifact", 0, "old", ""),
        ],
    ),
}


@pytest.fixture
def lab() -> Iterator[Lab]:
    if subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode != 0:
        if os.environ.get("CI") == "true":
            pytest.fail("mounts of one's own need root")
        pytest.skip("mounts of one's own need root")
    with Lab(GIVEN) as made:
        made.furnish()
        made.configure("http://127.0.0.1:9")
        yield made


def prepared(lab: Lab, waits: str, harm: str) -> str:
    """Shell text: the datastore becomes a small tmpfs with the same content, to which something happens."""
    store = lab.store_dir
    lines = [f"cp -a {store} {store}.old", f"mount -t tmpfs -o size=256k,mode=755 none {store}"]
    lines += [f"cp -a {store}.old/. {store}", f"cd {store}"]
    if waits:
        lines.append(f"{agent('install', lab)} >/dev/null 2>&1")
    return "\n".join(["set -e", *lines, harm, "cd /", "set +e", ""])


def agent(verb: str, lab: Lab) -> str:
    arguments = [verb, lab.path("artifact.mender")] if verb == "install" else [verb]
    return shlex.join([sys.executable, "-m", "update_agent", *arguments])


@pytest.mark.parametrize("name", CASES)
def test_the_running_system_stays(lab: Lab, name: str) -> None:
    waits, harm, commands = CASES[name]
    script = prepared(lab, waits, harm)
    for number, (verb, *_) in enumerate(commands):
        out = f"{lab.root}/{number}"
        script += f"{agent(verb, lab)} >{out}.out 2>{out}.err; echo $? >{out}.code\n"
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], env=lab.environment(), check=False)
    assert done.returncode == 0
    for number, (verb, code, line, words) in enumerate(commands):
        text = {}
        for part in ("code", "out", "err"):
            with open(lab.path(f"{number}.{part}"), encoding="utf-8") as file:
                text[part] = file.read()
        assert text["code"].strip() == str(code), (verb, text)
        assert line in text["out"].splitlines() or not (line or text["out"]), (verb, text)
        assert words in text["err"], (verb, text)


@pytest.mark.parametrize("harm", [FULL, READ_ONLY])
def test_the_daemon_goes_on(lab: Lab, harm: str) -> None:
    script = f"{prepared(lab, '', harm)}exec {agent('daemon', lab)}"
    daemon = subprocess.Popen(
        ["unshare", "-m", "sh", "-c", script], env=lab.environment(), stderr=subprocess.PIPE, text=True
    )
    assert daemon.stderr is not None
    seen = ""
    for line in daemon.stderr:
        seen += line
        if "No answer to the deployment poll" in line:  # there is no server, but it asks
            daemon.send_signal(signal.SIGTERM)
    daemon.stderr.close()
    assert daemon.wait(60) == 0, seen
    assert "No answer to the deployment poll" in seen
