# SPDX-License-Identifier: Apache-2.0
"""The device of the kill matrix: two root partitions, a boot loader with its environment, scripts, modules.

All of it is one folder. The partitions are files; the environment is a real redundant one in a file, which
Debian's fw_printenv and fw_setenv read and write; what the boot loader does at a boot is done here, by the
contract that the layer's boot script keeps. Scripts and the update module are real POSIX sh.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import update_agent
from update_agent.errors import UpdateError
from update_agent.log import Log
from update_agent.states import ACTIONS, ARTIFACT, STATES
from update_agent.store import Store
from update_agent.update import installed
from update_tools.bench.env import Copy, Environment
from update_tools.conform import artifact
from update_tools.conform.trace import Journal

if TYPE_CHECKING:
    from collections.abc import Mapping

    Json = dict[str, Any]

DEVICE_TYPE = "kills"
ROOTFS, MODULE = "rootfs-image", "kills-module"
NEXT = "next"  # name of the artifact that is offered when the update is over
PAYLOAD = b"new system\n" * 3000
_OLD = b"old system\n" * 3000
_BOOTLIMIT = 1
_ENV_BYTES = 0x2000
_FOLDERS = (
    "bin",
    "conf/scripts",
    "conf/pause.d",
    "data/identity",
    "data/modules/v3",
    "dev",
    "faults",
    "root",
    "store",
)

_LIBRARY = r"""
# linger SECONDS: the one program that the agent is killed over takes so long.
linger() {
    if [ -e "$lab/linger" ]; then
        read -r name <"$lab/linger"
        if [ "$name" = "${0##*/}" ]; then
            rm -f "$lab/linger"
            sleep "$1"
        fi
    fi
}

# begin NAME: note it.
begin() {
    echo "@ $1" >>"$lab/journal"
    linger 60
}

# end NAME: note it, and exit as the update says.
end() {
    code=0
    if [ -e "$lab/faults/${1#*:}" ]; then read -r code <"$lab/faults/${1#*:}"; fi
    echo "@ end $1" >>"$lab/journal"
    exit "$code"
}
"""

# Keeps one file, which stands for the system: the new one is moved in, the old one back.
_MODULE = r"""
cd "$2"
begin "module:$1"
case $1 in
NeedsArtifactReboot) echo "$reboot" ;;
SupportsRollback) echo Yes ;;
Download)
    while read -r stream <stream-next; do
        cat "$stream" >"tmp/${stream##*/}"
    done
    sync -f tmp
    ;;
ArtifactInstall)
    cp "$lab/system" tmp/before.new
    cp "$lab/boots" tmp/boots
    mv tmp/before.new tmp/before
    cp tmp/payload.txt "$lab/system.new"
    mv "$lab/system.new" "$lab/system"
    ;;
ArtifactVerifyReboot)
    if cmp -s tmp/boots "$lab/boots"; then
        echo "it was not booted" >&2
        exit 1
    fi
    ;;
ArtifactReboot | ArtifactRollbackReboot) reboot ;;
ArtifactRollback)
    if [ -e tmp/before ]; then
        cp tmp/before "$lab/system.new"
        mv "$lab/system.new" "$lab/system"
    fi
    ;;
esac
end "module:$1"
"""

_PRINTENV = 'exec "$real" -c "$lab/fw_env.config" "$@"\n'
# A power cut or a kill in the middle of a write is what redundant environments are for; this is the other
# thing that can happen: the write comes later than the agent's end.
_SETENV = r"""
linger 0.2
exec "$real" -c "$lab/fw_env.config" "$@"
"""


class Facts:
    """What is true of the device at one moment."""

    def __init__(self, device: AbDevice) -> None:
        values, self.damage = device.boot_variables()
        store = Store(device.path("store"), Log(stream=sys.stderr))
        self.boot_part = values.get("mender_boot_part", "")
        self.boot_part_hex = values.get("mender_boot_part_hex", "")
        self.upgrade_available = values.get("upgrade_available", "")
        self.running = device.running
        self.system = device.system()
        self.provides = installed(store)
        self.state = store.get("state")
        self.in_state = store.get("standalone-state")
        self.hooks = store.get("pause-hooks")
        self.maps = store.get("update-control-maps") or ""
        self.has_tree = os.path.isdir(device.path("store/modules/v3/payloads/0000/tree"))

    @property
    def is_settled(self) -> bool:
        """The boot loader will boot again what runs now, whatever happens."""
        return self.upgrade_available == "0" and self.boot_part == self.running

    def wrong_environment(self, *, may_be_torn: bool = False) -> str:
        """What is not as it must be after an update; empty if nothing. One copy may be damaged if it may."""
        if self.damage and not may_be_torn:
            return self.damage
        if self.upgrade_available != "0":
            return f"upgrade_available is {self.upgrade_available}"
        if self.boot_part != self.running:
            return f"mender_boot_part is {self.boot_part}, but {self.running} runs"
        if self.boot_part_hex != self.boot_part:
            return f"mender_boot_part_hex is {self.boot_part_hex}, mender_boot_part is {self.boot_part}"
        return ""


class AbDevice:
    """One throw-away device. Use as a context manager: the folder is removed unless it is to be kept."""

    slots = ("2", "3")  # numbers of the root partitions
    reboots_at_start = False  # the agent may do so before anything else

    def __init__(
        self, payload_type: str, *, reboot: str, faults: Mapping[str, int], keep: bool = False
    ) -> None:
        """`reboot`: the module's answer to NeedsArtifactReboot. `faults`: exit codes of scripts and calls."""
        self.payload_type = payload_type
        self._keep = keep
        memory = "/dev/shm"  # fsync costs nothing there
        self.root = os.path.realpath(
            tempfile.mkdtemp(prefix="kills-", dir=memory if os.access(memory, os.W_OK) else None)
        )
        for folder in _FOLDERS:
            os.makedirs(self.path(folder))
        self.journal = Journal(self.path("journal"), self.path("store/scripts"))
        self.running = self.slots[0]
        self._reboot = reboot
        self._faults = faults
        self.artifacts: dict[str, bytes] = {}

    def __enter__(self) -> AbDevice:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._keep:
            shutil.rmtree(self.root, ignore_errors=True)

    def path(self, name: str) -> str:
        """A path in the folder."""
        return os.path.join(self.root, name)

    # Furnishing

    def furnish(self) -> None:
        """Lay out everything but mender.conf, which needs the server's address. Raises UpdateError."""
        self._write("store/device_type", f"device_type={DEVICE_TYPE}\n")
        self._write("lib.sh", _assignments(lab=self.root) + _LIBRARY)
        self._write("cmdline", "")
        self._write("boots", "0\n")
        self.partitions()
        self._write("system", _OLD.decode())
        self._program("data/identity/mender-device-identity", "echo mac=00:11:22:33:44:55\n")
        self._program("bin/reboot", 'echo "@ reboot" >>"$lab/journal"\nexec sleep 60\n')
        self._program(f"data/modules/v3/{MODULE}", _assignments(reboot=self._reboot) + _MODULE)
        for name, code in self._faults.items():
            self._write(f"faults/{name}", f"{code}\n")
        for action in ACTIONS:
            self._program(f"conf/scripts/Download_{action}_00", _script(f"Download_{action}_00"))
        self._mount_root()
        store = Store(self.path("store"), Log(stream=sys.stderr))
        store.write({"artifact-name": "old", "artifact-provides": json.dumps({f"{ROOTFS}.version": "old"})})
        self.artifacts = {name: self._artifact(name) for name in ("new", NEXT)}
        for name, data in self.artifacts.items():
            with open(self.path(f"{name}.mender"), "wb") as file:
                file.write(data)

    def configure(self, server_url: str, *, has_bus: bool) -> None:
        """Write mender.conf, with short times."""
        document: Json = {
            "ServerURL": server_url,
            **self.partitions_config(),
            "RetryFirstIntervalSeconds": 1,
            "RetryPollIntervalSeconds": 1,
            "UpdatePollIntervalSeconds": 1,
            "UpdateControlMapExpirationTimeSeconds": 3600,
            "DBus": {"Enabled": has_bus},
        }
        self._write("conf/mender.conf", json.dumps(document, indent=1))

    def agent_environment(self, bus_address: str) -> dict[str, str]:
        """Environment of the agent; nothing of the caller's configuration or proxies gets in."""
        agent = os.path.dirname(os.path.dirname(update_agent.__file__))
        tools = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        return {
            "PATH": f"{self.path('bin')}:{os.environ.get('PATH', os.defpath)}",
            "PYTHONPATH": f"{agent}:{tools}",
            "LANG": "C.UTF-8",
            "MENDER_CONF_DIR": self.path("conf"),
            "MENDER_DATA_DIR": self.path("data"),
            "MENDER_DATASTORE_DIR": self.path("store"),
            "UPDATE_CONTROL_SOCKET": self.path("control.socket"),
            "DBUS_SYSTEM_BUS_ADDRESS": bus_address,
        }

    def ask_program(self, point: str, code: int) -> None:
        """A pause hook that asks a program, and what the program answers from now on."""
        self._program("bin/ask", f"exit {code}\n")
        hook = {
            "point": point,
            "when": {"program": self.path("bin/ask"), "interval_s": 1},
            "limit_s": 3600,
            "at_limit": "fail",
        }
        self._write("conf/pause.d/10-ask.json", json.dumps(hook))

    def choose_point(self, text: str) -> None:
        """The point at which the agent is killed in its next run (faults.py); none if empty."""
        self._write("kill", text)

    # Boot loader

    def partitions(self) -> None:
        """Make the root partitions, and what the boot loader needs."""
        for part in self.slots:
            self._write(f"dev/mmcblk0p{part}", _OLD.decode())
        self._boot_environment()

    def partitions_config(self) -> Json:
        """What mender.conf says of them."""
        return {
            f"RootfsPart{x}": self.path(f"dev/mmcblk0p{n}") for x, n in zip("AB", self.slots, strict=True)
        }

    def payload(self) -> bytes:
        """The new system."""
        return PAYLOAD

    def boot_variables(self) -> tuple[dict[str, str], str]:
        """What the boot loader will do, and what is damaged of it."""
        environment = self.environment()
        is_good = all(copy.is_valid for copy in environment.copies)
        return environment.values, "" if is_good else "a copy of the boot environment is damaged"

    def lose_power(self) -> None:
        """What the hardware forgets: nothing here."""

    def reboot_by_hand(self) -> None:
        """As a person does who has read what the boot loader wants for it."""
        self.boot()

    def boot(self) -> None:
        """What the boot loader does: count boots of a system that is not committed, and go back after one."""
        values = self.environment().values
        part = values["mender_boot_part"]
        if values["upgrade_available"] == "1":
            count = int(values["bootcount"]) + 1
            if count > _BOOTLIMIT:
                failure = f"partition {part}: not committed after {_BOOTLIMIT} boot(s)"
                part = "2" if part == "3" else "3"
                self._set_environment(
                    {
                        "mender_boot_part": part,
                        "mender_boot_part_hex": part,
                        "upgrade_available": "0",
                        "bootcount": "0",
                        "boot_failure": failure,
                    }
                )
            else:
                self._set_environment({"bootcount": str(count)})
        self.started(part)

    def started(self, part: str) -> None:
        """The system on a root partition runs."""
        self.running = part
        self._mount_root()
        if os.path.exists(self.path("linger")):
            os.unlink(self.path("linger"))
        with open(self.path("boots"), encoding="utf-8") as file:
            boots = int(file.read())
        self._write("boots", f"{boots + 1}\n")
        self.journal.note(f"booted {part}")

    def tear_environment(self) -> None:
        """Leave the copy that was written last as a write that broke off in its middle."""
        newer = self.environment().newer
        assert newer is not None
        with open(self.path("env"), "r+b") as file:
            file.seek(newer.offset + _ENV_BYTES // 2)
            file.write(b"torn")

    def environment(self) -> Environment:
        """The boot environment as both copies have it."""
        with open(self.path("env"), "rb") as file:
            return Environment(*(Copy(offset, file.read(_ENV_BYTES)) for offset in (0, _ENV_BYTES)))

    def system(self) -> str:
        """Which system runs: old, new, or neither."""
        path = "system" if self.payload_type == MODULE else f"dev/mmcblk0p{self.running}"
        with open(self.path(path), "rb") as file:
            content = file.read()
        return {_OLD: "old", PAYLOAD: "new"}.get(content, "neither")

    def program(self, name: str, body: str) -> None:
        """Write a program for the agent to find."""
        self._program(name, body)

    # Pieces

    def _boot_environment(self) -> None:
        config = self.path("fw_env.config")
        offsets = (0, _ENV_BYTES)
        self._write(
            "fw_env.config", "".join(f"{self.path('env')} {at:#x} {_ENV_BYTES:#x}\n" for at in offsets)
        )
        for tool, body in (
            ("fw_printenv", 'exec "$real" -c "$lab/fw_env.config" "$@"\n'),
            ("fw_setenv", _SETENV),
        ):
            real = shutil.which(tool)
            if real is None:
                raise UpdateError(f"there is no {tool}", hint="apt-get install libubootenv-tool")
            self._program(f"bin/{tool}", _assignments(real=real) + body)
        with open(self.path("env"), "wb") as file:
            file.write(bytes(2 * _ENV_BYTES))
        with open(self.path("defaults"), "w", encoding="utf-8") as file:
            file.write(
                "mender_boot_part=2\nmender_boot_part_hex=2\nupgrade_available=0\nbootcount=0\nbootlimit=1\n"
            )
        for copy in ("1", "2"):  # each write goes to the older one
            subprocess.run(
                ["fw_setenv", "-c", config, "-f", self.path("defaults"), "made", copy],
                check=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )

    def _set_environment(self, values: Mapping[str, str]) -> None:
        script = "".join(f"{name}={value}\n" for name, value in values.items())
        subprocess.run(
            ["fw_setenv", "-c", self.path("fw_env.config"), "-s", "-"],
            input=script.encode(),
            check=True,
            stdout=subprocess.DEVNULL,
        )

    def _mount_root(self) -> None:
        """Have the kernel's tables, as the agent reads them, say which partition is mounted at the root."""
        device = self.path(f"dev/mmcblk0p{self.running}")
        self._write("mountinfo", f"21 1 179:{self.running} / {self.path('root')} rw - ext4 {device} rw\n")

    def _artifact(self, name: str) -> bytes:
        names = [
            f"{state.name}_{action}_00" for state in STATES if state.scripts == ARTIFACT for action in ACTIONS
        ]
        return artifact.build(
            name,
            device_type=DEVICE_TYPE,
            payload_type=self.payload_type,
            scripts={script: self._text(_script(script)).encode() for script in names},
            payload=self.payload(),
            type_info={
                "artifact_provides": {f"{ROOTFS}.version": name},
                "clears_artifact_provides": [f"{ROOTFS}.*"],
            },
        )

    def _text(self, body: str) -> str:
        return f"#!/bin/sh\nset -eu\n. {shlex.quote(self.path('lib.sh'))}\n{body}"

    def _program(self, name: str, body: str) -> None:
        self._write(name, self._text(body))
        os.chmod(self.path(name), 0o755)

    def _write(self, name: str, text: str) -> None:
        """Replace a file as a whole: the agent may be reading it."""
        path = Path(self.path(name))
        beside = path.with_name(f"{path.name}.beside")
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)


def _script(name: str) -> str:
    return f"begin script:{name}\nend script:{name}\n"


def _assignments(**variables: str) -> str:
    return "".join(f"{name}={shlex.quote(text)}\n" for name, text in variables.items())
