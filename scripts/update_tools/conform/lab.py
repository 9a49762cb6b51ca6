# SPDX-License-Identifier: Apache-2.0
"""The device of a scenario: a throw-away root with the agent's configuration, scripts, module and artifact.

Scripts and module are real POSIX sh. Each notes its call in the journal and then follows its faults: files
`faults/NAME` with lines `action times`, worked off one after the other, and `count/NAME`, to survive kills.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
import sys
import tempfile
from typing import TYPE_CHECKING, Any

import update_agent
from update_agent.backoff import delays
from update_agent.errors import UpdateError
from update_agent.log import Log
from update_agent.scripts import parse_name
from update_agent.store import Store
from update_tools.conform import artifact
from update_tools.conform.trace import Journal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    Json = dict[str, Any]

DEVICE_TYPE = "conform"
MODULE = "conform-module"
_ARTIFACT_STATES = (
    "ArtifactInstall",
    "ArtifactReboot",
    "ArtifactCommit",
    "ArtifactRollback",
    "ArtifactRollbackReboot",
    "ArtifactFailure",
)
_ACTIONS = ("Enter", "Leave", "Error")
_FAULTS = ("fail", "kill", "timeout", "retry_later", "pass")
_FOLDERS = (
    "bin",
    "conf/scripts",
    "count",
    "data/identity",
    "data/modules/v3",
    "faults",
    "left",
    "store",
)
_EXPIRATION_S = 8  # of control maps that are to expire: enough to reach any control point
_LIMIT_S = 2  # time limit of a script or module call that a scenario lets run out

_LIBRARY = r"""
# step KIND NAME: note the call, then do what the faults say about this occurrence of NAME.
step() {
    echo "@ $1:$2" >>"$lab/journal"
    count=0
    if [ -e "$lab/count/$2" ]; then read -r count <"$lab/count/$2"; fi
    count=$((count + 1))
    echo "$count" >"$lab/count/$2"
    fault=pass
    if [ -e "$lab/faults/$2" ]; then
        sum=0
        while read -r action times; do
            if [ "$times" != always ]; then sum=$((sum + times)); fi
            if [ "$times" = always ] || [ "$count" -le "$sum" ]; then
                fault=$action
                break
            fi
        done <"$lab/faults/$2"
    fi
    case $fault in
    fail) exit 1 ;;
    retry_later) exit 21 ;;
    kill) ask kill ;;
    timeout) sleep 600 ;; # a child: the whole process group must be ended
    esac
}

# ask WHAT: have the harness do it to the whole device; nothing happens on it any more until then.
ask() {
    echo "! $1" >>"$lab/journal"
    sleep 600
}
"""

_MODULE = r"""
cd "$2"
case $1 in
NeedsArtifactReboot | SupportsRollback) step query "$1" ;;
*) step module "$1" ;;
esac
case $1 in
ProvidePayloadFileSizes) if [ -n "$sizes" ]; then echo "$sizes"; fi ;;
NeedsArtifactReboot) echo "$reboot" ;;
SupportsRollback) echo "$rollback" ;;
Download | DownloadWithFileSizes)
    while read -r stream size <stream-next; do
        case $1 in
        Download) [ -z "$size" ] ;;
        DownloadWithFileSizes) [ "$size" -eq "$expected_size" ] ;;
        esac
        cat "$stream" >"tmp/${stream##*/}"
        cmp "tmp/${stream##*/}" "$lab/payload" >&2
    done
    # Files that no artifact may contain but someone may have left in the scripts directory.
    if [ -d "$store/scripts" ]; then cp -p "$lab/left"/. "$store/scripts" -R; fi
    ;;
esac
"""


class Lab:
    """One throw-away device. Use as a context manager: the folder is removed unless it is to be kept."""

    def __init__(self, given: Mapping[str, Any], *, keep: bool = False) -> None:
        self.given = given
        self._keep = keep
        self.root = tempfile.mkdtemp(prefix="conform-")
        for folder in _FOLDERS:
            os.makedirs(os.path.join(self.root, folder))
        self.store_dir = self.path("store")
        self.journal = Journal(self.path("journal"), self.path("store/scripts"))
        self.artifact = b""
        self.bus_address = ""  # of the device's system bus, if it has one

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._keep:
            shutil.rmtree(self.root, ignore_errors=True)

    def path(self, name: str) -> str:
        """A path in the folder."""
        return os.path.join(self.root, name)

    # Furnishing

    def furnish(self) -> None:
        """Lay out everything but mender.conf, which needs the server's address."""
        given = self.given
        self._write("store/device_type", f"device_type={DEVICE_TYPE}\n")
        self._program("data/identity/mender-device-identity", "echo mac=00:11:22:33:44:55\n")
        self._write("lib.sh", _assignments({"lab": self.root, "store": self.store_dir}) + _LIBRARY)
        self._write("conf/scripts/version", "3\n")
        self._write("payload", artifact.PAYLOAD.decode())
        self._faults()
        self._program("bin/reboot", "step system reboot\nask reboot\n")
        answers = {
            "sizes": given.get("provide_file_sizes") or "",
            "reboot": given["needs_reboot"],
            "rollback": "Yes" if given["supports_rollback"] else "No",
            "expected_size": str(len(artifact.PAYLOAD)),
        }
        self._program(f"data/modules/v3/{MODULE}", _assignments(answers) + _MODULE)
        for name in self._rootfs_scripts():
            self._program(f"conf/scripts/{name}", self._script(name))
        for name in given.get("other_files") or ():
            for folder in ("conf/scripts", "left"):  # an invalid name must not run in either
                self._program(f"{folder}/{name}", f"step script {shlex.quote(name)}\n")
        for name in given.get("non_executable") or ():
            folder = "left" if name.startswith("Artifact") else "conf/scripts"
            self._program(f"{folder}/{name}", f"step script {name}\n")
            os.chmod(self.path(f"{folder}/{name}"), 0o644)
        for name, hook in (given.get("pause_hooks") or {}).items():
            os.makedirs(self.path("conf/pause.d"), exist_ok=True)
            self._write(f"conf/pause.d/{name}", json.dumps(hook))
        store = Store(self.store_dir, Log(stream=sys.stderr))
        store.write({"artifact-name": "old"})
        self.artifact = self._artifact()

    def configure(self, server_url: str) -> None:
        """Write mender.conf: the scenario's settings, with times made short."""
        # Scenarios expect what the clients do when the power goes during a pause or in Cleanup.
        document: Json = {
            "PauseSurvivesRestart": False,
            "OutcomeSurvivesRestart": False,
            "ServerURL": server_url,
        }
        document["DBus"] = {"Enabled": bool(self.bus_address)}
        document.update({**(self.given.get("config") or {}), **short_times(self.given)})
        self._write("conf/mender.conf", json.dumps(document, indent=1))

    def environment(self) -> dict[str, str]:
        """Environment of the agent; nothing of the caller's configuration or proxies gets in."""
        agent = os.path.dirname(os.path.dirname(update_agent.__file__))
        tools = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        system = os.environ.get("PATH", os.defpath)
        return {
            "PATH": f"{self.path('bin')}:{system}",
            "PYTHONPATH": f"{agent}:{tools}",
            "LANG": "C.UTF-8",
            "MENDER_CONF_DIR": self.path("conf"),
            "MENDER_DATA_DIR": self.path("data"),
            "MENDER_DATASTORE_DIR": self.store_dir,
            "UPDATE_CONTROL_SOCKET": self.path("control.socket"),
            "DBUS_SYSTEM_BUS_ADDRESS": self.bus_address,
        }

    def command(self, *arguments: str) -> list[str]:
        """The agent's command line. Its log goes into the journal."""
        writes = self.given.get("db_writes_allowed")
        program = ["-m", "update_agent"]
        if writes is not None:
            program = ["-m", "update_tools.conform.full_disk", str(writes), self.path("state-writes")]
        return [sys.executable, *program, "--log-file", self.journal.path, *arguments]

    # What the device says at the end

    def saved(self, key: str) -> str | None:
        """A value of the agent's store."""
        return Store(self.store_dir, Log(stream=sys.stderr)).get(key)

    def artifact_name(self) -> str:
        """The installed artifact in the words of scenarios: new, old, inconsistent."""
        name = self.saved("artifact-name") or ""
        return "inconsistent" if name == "new_INCONSISTENT" else name

    def in_state(self) -> str | None:
        """InState of a standalone update; None if there is none."""
        text = self.saved("standalone-state")
        return None if text is None else str(json.loads(text)["InState"])

    # Pieces

    def _rootfs_scripts(self) -> list[str]:
        states = ["Download"]
        if self.given.get("idle_sync_scripts"):
            states += ["Idle", "Sync"]
        extra = [name for name in self.given.get("extra_scripts") or () if not name.startswith("Artifact")]
        return [*(f"{state}_{action}_00" for state in states for action in _ACTIONS), *extra]

    def _artifact(self) -> bytes:
        given = self.given
        payload_type: str | None = MODULE
        if given.get("unknown_payload_type"):
            payload_type = "no-such-module"
        if given.get("empty_payload"):
            payload_type = None
        names = [f"{state}_{action}_00" for state in _ARTIFACT_STATES for action in _ACTIONS]
        names += [name for name in given.get("extra_scripts") or () if name.startswith("Artifact")]
        if payload_type is None:
            names = []
        data = artifact.build(
            "new",
            device_type="another-device" if given.get("device_type_mismatch") else DEVICE_TYPE,
            payload_type=payload_type,
            scripts={name: self._text(self._script(name)).encode() for name in names},
            is_broken=bool(given.get("bad_artifact")),
        )
        with open(self.path("artifact.mender"), "wb") as file:
            file.write(data)
        return data

    def _script(self, name: str) -> str:
        """What a state script does; some make a version file bad while they run, whatever comes of them."""
        parsed = parse_name(name)
        if parsed is None:
            raise UpdateError(f"extra script {name!r} is not a valid name", hint="use other_files for it")
        text = ""
        if name == self.given.get("artifact_version_bad_after"):
            # Before Download there is no such directory, and Download replaces it.
            text += 'if [ -d "$store/scripts" ]; then echo 99 >"$store/scripts/version"; fi\n'
        if self.given.get("bad_rootfs_version_at_commit") and parsed == ("ArtifactCommit", "Enter"):
            text += 'echo 99 >"$lab/conf/scripts/version"\n'
        return f"{text}step script {name}\n"

    def _faults(self) -> None:
        lines: dict[str, list[str]] = {}
        for fault in self.given.get("faults") or ():
            times = fault.get("times", 1)
            if fault["do"] not in _FAULTS or not (times == "always" or isinstance(times, int)):
                raise UpdateError(
                    f"unknown fault {json.dumps(fault)}", hint=f"do is one of {', '.join(_FAULTS)}"
                )
            lines.setdefault(fault["at"], []).append(f"{fault['do']} {times}\n")
        for name, table in lines.items():
            self._write(f"faults/{name}", "".join(table))

    def _text(self, body: str) -> str:
        return f"#!/bin/sh\nset -eu\n. {shlex.quote(self.path('lib.sh'))}\n{body}"

    def _program(self, name: str, body: str) -> None:
        self._write(name, self._text(body))
        os.chmod(self.path(name), 0o755)

    def _write(self, name: str, text: str) -> None:
        with open(self.path(name), "w", encoding="utf-8") as file:
            file.write(text)


def short_times(given: Mapping[str, Any]) -> Json:
    """Time settings under which the scenario takes seconds and still shows the same number of tries."""
    config = given.get("config") or {}

    def setting(key: str, default: int) -> int:
        value = config.get(key) or default
        return int(value)

    # A retry window of W seconds and an interval of I leave room for ceil(W / I) attempts.
    attempts = math.ceil(
        setting("StateScriptRetryTimeoutSeconds", 1800) / setting("StateScriptRetryIntervalSeconds", 60)
    )
    times: Json = {
        "StateScriptRetryIntervalSeconds": 1,
        "StateScriptRetryTimeoutSeconds": attempts,
        "RetryFirstIntervalSeconds": 1,
        "RetryPollIntervalSeconds": 1,
        "UpdatePollIntervalSeconds": 1,
        "UpdateControlMapPollIntervalSeconds": 1,
        "UpdateControlMapExpirationTimeSeconds": 3600,
    }
    # Reports and refreshes keep the number of retries that the unshortened settings give.
    is_refresh = bool(given.get("refresh_failures")) and not given.get("status_failures")
    cap_s = (
        setting("UpdatePollIntervalSeconds", 1800) if is_refresh else setting("RetryPollIntervalSeconds", 300)
    )
    times["RetryPollCount"] = len(list(delays(max(60, cap_s), int(config.get("RetryPollCount") or 0))))
    if any(event["type"] == "expire" for event in given.get("control_events") or ()):
        times["UpdateControlMapExpirationTimeSeconds"] = _EXPIRATION_S
        times["UpdateControlMapBootExpirationTimeSeconds"] = _EXPIRATION_S
    timed_out = {fault["at"] for fault in given.get("faults") or () if fault["do"] == "timeout"}
    if any(parse_name(name) for name in timed_out):
        times["StateScriptTimeoutSeconds"] = _LIMIT_S
    if any(not parse_name(name) for name in timed_out):
        times["ModuleTimeoutSeconds"] = _LIMIT_S
    return times


def _assignments(variables: Mapping[str, str]) -> str:
    return "".join(f"{name}={shlex.quote(text)}\n" for name, text in variables.items())


def leftovers(session: int) -> Iterable[int]:
    """Processes of a session (of the agent and what it started) that are alive."""
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/stat", encoding="utf-8", errors="replace") as file:
                fields = file.read().rpartition(")")[2].split()
        except OSError:
            continue  # gone meanwhile
        if fields[0] not in {"Z", "X"} and int(fields[3]) == session:
            yield int(entry)
