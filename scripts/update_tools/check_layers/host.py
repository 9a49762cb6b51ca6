# SPDX-License-Identifier: Apache-2.0
"""The machine: Debian packages, the locale, and a user who is not root, as whom BitBake runs."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from pathlib import Path

from .errors import CheckError

SCRIPTS = Path(__file__).resolve().parents[2]
LISTS = ("debian-packages.txt", "debian-packages-layers.txt")
USER = "builder"
LOCALE = "en_US.UTF-8"


def packages(text: str) -> list[str]:
    """Names in a list file."""
    return [name for line in text.splitlines() if (name := line.partition("#")[0].strip())]


def missing_packages() -> list[str]:
    """Packages of LISTS that are not installed; none on a host that is not Debian, where nobody knows."""
    if shutil.which("dpkg-query") is None:
        return []
    names = [name for file in LISTS for name in packages((SCRIPTS / file).read_text())]
    command = ["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\n", *names]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    there = {line.split()[0] for line in said.splitlines() if line.endswith(" installed")}
    return [name for name in dict.fromkeys(names) if name not in there]


def has_locale() -> bool:
    """kas sets this locale for BitBake, which stops without it."""
    said = subprocess.run(["locale", "-a"], capture_output=True, text=True, check=False).stdout
    return any(line.lower().replace("-", "") == LOCALE.lower().replace("-", "") for line in said.splitlines())


def install(user: str) -> list[str]:
    """Install what is missing, as root; returns what was done. Raises CheckError."""
    if os.geteuid() != 0:
        raise CheckError(
            "--install needs root", hint="without root, ask for: " + " ".join(missing_packages())
        )
    done = []
    if names := missing_packages():
        _run(["apt-get", "update", "-q"])
        _run(["apt-get", "install", "-q", "-y", "--no-install-recommends", *names])
        done.append(f"installed {' '.join(names)}")
    if not has_locale():
        _run(["localedef", "-i", "en_US", "-f", "UTF-8", LOCALE])
        done.append(f"made the locale {LOCALE}")
    if not _exists(user):
        _run(["useradd", "--create-home", user])
        done.append(f"made the user {user}")
    return done


def check(user: str) -> None:
    """Raise CheckError if something that --install would bring is not there."""
    lacking = missing_packages()
    if not has_locale():
        lacking.append(f"the locale {LOCALE}")
    if os.geteuid() == 0 and not _exists(user):
        lacking.append(f"a user {user} (BitBake refuses root)")
    if lacking:
        raise CheckError(f"not on this machine: {', '.join(lacking)}", hint="scripts/check-layers --install")


def become(user: str) -> list[str]:
    """Words before a command that make it run as this user; none if we are not root."""
    if os.geteuid() != 0:
        return []
    return ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "--"]


def give(path: Path, user: str) -> None:
    """Make a directory the user's, with all in it."""
    if os.geteuid() == 0:
        entry = pwd.getpwnam(user)
        for folder, names, files in os.walk(path):
            for name in (".", *names, *files):
                os.chown(os.path.join(folder, name), entry.pw_uid, entry.pw_gid, follow_symlinks=False)


def can_read(path: Path, user: str) -> bool:
    """Whether the user may read a file."""
    return subprocess.run([*become(user), "test", "-r", str(path)], check=False).returncode == 0


def _exists(user: str) -> bool:
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True


def _run(command: list[str]) -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    if subprocess.run(command, stdin=subprocess.DEVNULL, env=environment, check=False).returncode != 0:
        raise CheckError(f"{' '.join(command[:3])} failed")
