# SPDX-License-Identifier: Apache-2.0
"""A PostgreSQL of one's own, for tests and measurements: Debian's program, a private folder, no port."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType

from update_agent.errors import UpdateError

PROGRAMS = Path("/usr/lib/postgresql")
USERS = ("postgres", "nobody")  # root may not run it
START_TIMEOUT_S = 60.0


def find_programs() -> Path:
    """The folder with the newest initdb and postgres. Raises UpdateError."""
    found = sorted(PROGRAMS.glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    elsewhere = shutil.which("postgres")
    if elsewhere is None:
        raise UpdateError("PostgreSQL is missing", hint="install the Debian package postgresql")
    return Path(elsewhere).parent


class Postgres:
    """A running server: `url(NAME)` for a new database, `stop()`.

    Without `is_durable` it never waits for disks. It listens on a socket file only, and what it wrote is gone
    when it stops.
    """

    def __init__(self, *, is_durable: bool = True) -> None:
        programs = find_programs()
        self._folder = Path(tempfile.mkdtemp(prefix="ota-postgres-"))
        self._user, self._group = _account()
        data = self._folder / "data"
        if self._user is not None and self._group is not None:
            os.chown(self._folder, self._user, self._group)
        try:
            self._run(programs / "initdb", "-D", data, "-U", "ota", "-A", "trust", "-E", "UTF8", "--locale=C")
            settings = {"listen_addresses": "", "unix_socket_directories": str(self._folder)}
            if not is_durable:
                settings |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
            options: list[str] = [
                word for name, value in settings.items() for word in ("-c", f"{name}={value}")
            ]
            self._log = (self._folder / "log").open("wb")
            self._process = subprocess.Popen(
                [programs / "postgres", "-D", data, *options],
                stdout=self._log,
                stderr=self._log,
                start_new_session=True,
                user=self._user,
                group=self._group,
            )
            self.pid = self._process.pid
            self._wait(programs / "pg_isready")
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        self._programs = programs

    def url(self, name: str, template: str = "template0") -> str:
        """Make a database, as a copy of another if wanted, and return its address for `--database-url`."""
        self._run(self._programs / "createdb", "-h", self._folder, "-U", "ota", "-T", template, name)
        return f"postgresql+psycopg://ota@/{name}?host={self._folder}"

    def stop(self) -> None:
        """End it and remove its folder."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGQUIT)  # nothing of it is needed any more
            self._process.wait()
        self._log.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Postgres:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _wait(self, is_ready: Path) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        argv: list[str | Path] = [is_ready, "-q", "-h", self._folder, "-U", "ota"]
        while subprocess.run(argv, check=False).returncode != 0:
            if self._process.poll() is not None or time.monotonic() > deadline:
                tail = (self._folder / "log").read_text(errors="replace").strip().splitlines()[-3:]
                raise UpdateError(f"PostgreSQL did not start: {' / '.join(tail)}")
            time.sleep(0.05)

    def _run(self, *argv: str | Path) -> None:
        answer = subprocess.run(
            argv,
            capture_output=True,
            text=True,
            check=False,
            cwd=self._folder,
            user=self._user,
            group=self._group,
        )
        if answer.returncode != 0:
            raise UpdateError(f"{Path(argv[0]).name} failed: {answer.stderr.strip()}")


def _account() -> tuple[int | None, int | None]:
    """User and group to run it as; None: we are not root, so our own."""
    if os.geteuid() != 0:
        return None, None
    for name in USERS:
        try:
            entry = pwd.getpwnam(name)
            return entry.pw_uid, entry.pw_gid
        except KeyError:
            continue
    raise UpdateError("PostgreSQL may not run as root", hint=f"make an account {USERS[0]}")
