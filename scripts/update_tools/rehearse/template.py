# SPDX-License-Identifier: Apache-2.0
"""What a machine starts with, made once for a rehearsal: its files, and the artifact that it is sent."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from update_agent.config import KEYS
from update_agent.errors import UpdateError
from update_agent.log import Log
from update_agent.states import ARTIFACT, ROOTFS
from update_agent.store import Store
from update_tools.conform import artifact as small
from update_tools.rehearse import rootdir
from update_tools.rehearse.server import PORT
from update_tools.rehearse.team import ROOTFS_IMAGE, InputError, program_beside
from update_tools.rehearse.trees import HOST_ETC

if TYPE_CHECKING:
    from update_tools.rehearse.team import Team

    Json = dict[str, Any]

CONTROL = "/.rehearsal"
SLOTS = ("2", "3")
ROOT_FOLDERS = ("etc", "home", "root", "opt", "srv", "var")  # of the root file system: each slot has its own
ENV_BYTES = 0x2000
ENV_DEVICE = "/dev/mmcblk0"
OLD, NEW = b"old system\n" * 512, b"new system\n" * 512
_DEFAULT_S = {key: int(default) for key, _, default, _ in KEYS if isinstance(default, int)}
_TRIES = 24  # of a script that wants to be called again later, at most
_FROM_HOST = ("ld.so.cache", "ld.so.conf", "localtime", "os-release", "protocols", "services", "mime.types")
_DATE = r"""#!/bin/sh
# The clock of the rehearsal, which leaps over waits.
read -r ahead <@control@/ahead
for word; do
    case $word in -d* | --d* | -s* | --s* | -r* | --ref* | -f* | --f*) exec @control@/bin/date "$@" ;; esac
done
exec @control@/bin/date --date="@$(($(@control@/bin/date +%s) + ahead))" "$@"
"""
_REBOOT = r"""#!/bin/sh
kill -TERM 1
exec sleep 60
"""
_SYSTEMCTL = r"""#!/bin/sh
# There are no services here: all is well.
for word; do
    case $word in
    reboot | poweroff | halt | kexec) exec reboot ;;
    is-failed) exit 1 ;;
    is-active | is-system-running) echo active; exit 0 ;;
    esac
done
"""
_IDENTITY = "#!/bin/sh\necho mac=02:00:00:00:00:01\n"


class Template:
    """A folder of the host: `root` is copied into each machine, `usr` lies over the host's /usr."""

    def __init__(self, team: Team, folder: Path, *, clock: str = "") -> None:
        """Make it. `clock`: ISO time at which each rehearsal begins. Raises InputError."""
        self.team = team
        self.folder = folder
        self.root, self.usr = folder / "root", folder / "usr"
        self.clock = clock
        self.root.mkdir(parents=True)
        if team.root is not None:
            rootdir.copy(team.root, self.root)
        self._usr()
        self._etc()
        self._data()
        self.artifact = folder / "artifact.mender"
        self.old, self.new = OLD, NEW
        self._artifact()
        for path in (folder, *folder.rglob("*")):
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o755)

    @property
    def lower(self) -> list[str]:
        """What is laid over one another as /usr."""
        own = [str(self.team.root / "usr")] if self.team.root and (self.team.root / "usr").is_dir() else []
        return [*own, str(self.usr), "/usr"]

    @property
    def shared(self) -> list[str]:
        """Folders of the host that are shown as they are."""
        return [f"/etc/{name}" for name in HOST_ETC if os.path.isdir(f"/etc/{name}")]

    @property
    def program_roots(self) -> list[Path]:
        """Where programs of the machine are found, as roots."""
        return [*([self.team.root] if self.team.root else []), self.folder, self.root, Path("/")]

    def tries(self) -> int:
        """How often a script that exits with 21 is called before the agent gives up."""
        interval_s, window_s = self._retry()
        return max(1, -(-window_s // interval_s))

    # Pieces

    def _put(self, path: str, text: str | bytes, mode: int = 0o644) -> None:
        """A file of the machine, by its path there."""
        rootdir.put(self.root, path, text.encode() if isinstance(text, str) else text, mode)

    def _usr(self) -> None:
        """What lies over the host's /usr, and hooks with their programs."""
        for name, text in (
            ("bin/date", _DATE.replace("@control@", CONTROL)),
            ("sbin/reboot", _REBOOT),
            ("bin/systemctl", _SYSTEMCTL),
            ("share/mender/identity/mender-device-identity", _IDENTITY),
        ):
            rootdir.put(self.usr, name, text.encode(), 0o755)
        for name, hook in self.team.hooks.items():
            program = program_of(hook)
            beside = program_beside(self.team, program) if program else None
            if beside is not None and program.startswith("/usr/"):
                rootdir.put(self.folder, program, beside.read_bytes(), 0o755)
            elif beside is not None:
                self._put(program, beside.read_bytes(), 0o755)
            self._put(f"etc/mender/pause.d/{name}", hook)

    def _etc(self) -> None:
        self._put("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n")
        self._put("etc/group", "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n")
        self._put("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n")
        self._put("etc/hosts", "127.0.0.1 localhost rehearsal\n")
        self._put("etc/hostname", "rehearsal\n")
        self._put("etc/resolv.conf", "nameserver 192.0.2.53\noptions timeout:1 attempts:1\n")
        self._put(
            "etc/fw_env.config",
            "".join(f"{ENV_DEVICE} {n * ENV_BYTES:#x} {ENV_BYTES:#x}\n" for n in (0, 1)),
        )
        for name in _FROM_HOST:
            if os.path.isfile(f"/etc/{name}"):
                self._put(f"etc/{name}", Path(f"/etc/{name}").read_bytes())
        for name in HOST_ETC:
            if os.path.isdir(f"/etc/{name}"):
                rootdir.make_folder(self.root, f"etc/{name}")
        for script in self.team.of(ROOTFS):
            self._put(f"etc/mender/scripts/{script.name}", script.data, script.mode & 0o7777)
        if self.team.version is not None:
            self._put("etc/mender/scripts/version", self.team.version)
        self._put("etc/mender/mender.conf", json.dumps(self._conf(), indent=1))

    def _data(self) -> None:
        data = "data/mender"
        self._put(f"{data}/device_type", f"device_type={self.team.device_type}\n")
        self._put(f"{data}/mender.conf", json.dumps({"ServerURL": f"http://127.0.0.1:{PORT}"}, indent=1))
        key = subprocess.run(
            ["openssl", "genpkey", "-algorithm", "ed25519"], capture_output=True, check=False
        )
        if key.returncode == 0:  # made once here, and not by each machine
            self._put(f"{data}/mender-agent.pem", key.stdout, 0o600)
        folder = rootdir.make_folder(self.root, data)
        store = Store(str(folder), Log(stream=open(os.devnull, "w", encoding="utf-8")))  # noqa: SIM115
        store.write(
            {"artifact-name": "old", "artifact-provides": json.dumps({"rootfs-image.version": "old"})}
        )
        for name in ("home", "root", "opt", "srv", "var/lib", "var/log", "var/tmp", "var/cache"):
            rootdir.make_folder(self.root, name)
        for link, to in (("lib/mender", "/data/mender"), ("run", "/run"), ("lock", "/run/lock")):
            if not os.path.lexists(self.root / "var" / link):
                (self.root / "var" / link).symlink_to(to)

    def _retry(self) -> tuple[int, int]:
        found = {str(key).lower(): value for key, value in self.team.conf.items()}

        def seconds(key: str) -> int:
            value = found.get(key.lower())
            return value if isinstance(value, int) and value > 0 else _DEFAULT_S[key]

        window_s = seconds("StateScriptRetryTimeoutSeconds")
        return max(seconds("StateScriptRetryIntervalSeconds"), -(-window_s // _TRIES)), window_s

    def _conf(self) -> Json:
        """The team's configuration, but for what ties it to its own server and partitions."""
        ours = (
            "server",
            "tenanttoken",
            "https",
            "artifactverify",
            "rootfspart",
            "devicetype",
            "dbus",
            "updatelog",
        )
        kept = {key: value for key, value in self.team.conf.items() if not key.lower().startswith(ours)}
        interval_s, window_s = self._retry()
        kept = {key: value for key, value in kept.items() if not key.lower().startswith("statescriptretry")}
        return {
            **kept,
            "RootfsPartA": f"{ENV_DEVICE}p{SLOTS[0]}",
            "RootfsPartB": f"{ENV_DEVICE}p{SLOTS[1]}",
            "DBus": {"Enabled": False},
            "StateScriptRetryIntervalSeconds": interval_s,
            "StateScriptRetryTimeoutSeconds": window_s,
        }

    def _artifact(self) -> None:
        """The artifact: the team's own, or with a small payload when only its scripts matter."""
        team = self.team
        if team.header is not None and team.payload_type not in {ROOTFS_IMAGE, ""}:
            assert team.artifact_from is not None
            shutil.copyfile(team.artifact_from, self.artifact)
            place = f"usr/share/mender/modules/v3/{team.payload_type}"
            if not any((root / place).exists() for root in self.program_roots):
                raise InputError(
                    f"there is no update module {team.payload_type}, which the artifact needs",
                    hint=f"put it into DIR/{place} and give --root DIR",
                )
            return
        data = small.build(
            team.header.name if team.header else "new",
            device_type=team.device_type,
            payload_type=team.payload_type or None,
            scripts={script.name: script.data for script in team.of(ARTIFACT)},
            payload=self.new,
            type_info={
                "artifact_provides": {"rootfs-image.version": "new"},
                "clears_artifact_provides": ["rootfs-image.*"],
            },
        )
        self.artifact.write_bytes(data)


def program_of(hook: bytes) -> str:
    """The program that a hook's file names; empty if it names none."""
    try:
        program = json.loads(hook)["when"]["program"]
    except (ValueError, KeyError, TypeError):
        return ""
    return program if isinstance(program, str) and program.startswith("/") else ""


def pack_environment(values: dict[str, str], counter: int) -> bytes:
    """One copy of U-Boot's redundant environment."""
    text = b"".join(f"{name}={value}\0".encode() for name, value in sorted(values.items())) + b"\0"
    if len(text) > ENV_BYTES - 5:
        raise UpdateError("the boot environment is full")
    text = text.ljust(ENV_BYTES - 5, b"\0")
    return zlib.crc32(text).to_bytes(4, "little") + bytes([counter & 0xFF]) + text
