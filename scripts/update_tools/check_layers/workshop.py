# SPDX-License-Identifier: Apache-2.0
"""The folder that checks work in: a copy of the repository, checkouts, build directories, logs."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from . import host
from .errors import CheckError, Failed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from .rows import Row

REPOSITORY = Path(__file__).resolve().parents[3]


class Run:
    """How a command ended: its exit code (None: time was up), what it said, how long it took."""

    __slots__ = ("code", "output", "seconds")

    def __init__(self, code: int | None, output: str, seconds: float) -> None:
        self.code = code
        self.output = output
        self.seconds = seconds


class Build:
    """A kind of configuration: kas files after the row's own, and a name for its directory."""

    __slots__ = ("name", "overlays")

    def __init__(self, name: str, *overlays: str) -> None:
        self.name = name
        self.overlays = tuple(f"tests/layer/kas/{overlay}.yml" for overlay in overlays)


PLAIN = Build("", "offline")
BARE = Build("bare", "offline", "without-layer")
STANDINS = Build("standins", "offline", "standins")


class Workshop:
    """WORK/repository, WORK/SERIES (checkouts), WORK/SERIES/build-..., WORK/logs."""

    def __init__(self, folder: Path, mirrors: Path, user: str) -> None:
        self.folder = folder
        self.mirrors = mirrors
        self.user = user
        self.repository = folder / "repository"
        self.logs = folder / "logs"
        self.premirrors = ""
        self.version = ""
        """Commit of the repository, and whether it was changed."""
        self._environments: dict[tuple[str, str], dict[str, str]] = {}

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Hold the folder, with a fresh copy of the repository in it. Raises CheckError if it is in use."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise CheckError(f"{self.folder} is in use", hint="give another one with --work") from error
            for name in ("logs", "home", *("wrynose", "scarthgap")):
                (self.folder / name).mkdir(exist_ok=True)
            self._copy_repository()
            # The mirrors may be somebody else's; kas runs git with a home of its own.
            for name in ("gitconfig", "home/.gitconfig"):
                (self.folder / name).write_text("[safe]\n\tdirectory = *\n")
            for name in ("home", "wrynose", "scarthgap"):
                if host.become(self.user) and (self.folder / name).owner() != self.user:
                    host.give(self.folder / name, self.user)
            yield

    def _copy_repository(self) -> None:
        """Tracked and new files as they are now: BitBake minds it when files change under it."""
        git = ["git", "-c", "safe.directory=*", "-C", str(REPOSITORY)]
        described = subprocess.run(
            [*git, "describe", "--always", "--dirty"], capture_output=True, text=True, check=True
        )
        self.version = described.stdout.strip()
        command = [*git, "ls-files", "-z", "-co", "--exclude-standard"]
        listed = subprocess.run(command, capture_output=True, check=True).stdout
        wanted = {Path(os.fsdecode(name)) for name in listed.split(b"\0") if name}
        for path in self._files():
            if path not in wanted:
                (self.repository / path).unlink()
        for path in wanted:
            source, target = REPOSITORY / path, self.repository / path
            if source.is_file() and not _same(source, target):
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target)
        os.utime(self.repository / "requirements.lock", (0, 0))  # no older than that: nobody renews .venv
        venv = self.repository / ".venv"
        if not venv.is_symlink():
            venv.symlink_to(REPOSITORY / ".venv")
        if not (self.repository / ".git").exists():  # kas takes files to be of one repository by git
            subprocess.run(["git", "init", "-q", str(self.repository)], check=True)
        python = REPOSITORY / ".venv/bin/python"
        if not host.can_read(python, self.user):
            raise CheckError(f"{self.user} cannot read {python}", hint="--user, or a checkout elsewhere")

    def _files(self) -> Iterator[Path]:
        for folder, names, files in os.walk(self.repository):
            names[:] = [name for name in names if name not in {".git", ".venv"}]
            for name in files:
                yield (Path(folder) / name).relative_to(self.repository)

    def build_folder(self, row: Row, build: Build) -> Path:
        """Where BitBake works for a row."""
        return self.folder / row.series / f"build-{row.board}{'-' + build.name if build.name else ''}"

    def kas(
        self,
        row: Row,
        words: Sequence[str],
        log: Path,
        *,
        limit_s: int = 900,
        build: Build = PLAIN,
        env: Mapping[str, str] | None = None,
    ) -> Run:
        """`kas WORDS` for a row; the word FILES becomes its files with the build's overlays."""
        files = ":".join((row.files, *build.overlays))
        command = [".venv/bin/python", "-m", "kas", *(files if word == "FILES" else word for word in words)]
        environment = {
            "KAS_WORK_DIR": str(self.folder / row.series),
            "KAS_BUILD_DIR": str(self.build_folder(row, build)),
            "KAS_CLONE_DEPTH": "1",
            "KAS_PREMIRRORS": self.premirrors,
            "GITCONFIG_FILE": str(self.folder / "gitconfig"),
            **(env or {}),
        }
        return self.run(command, log, limit_s=limit_s, env=environment)

    def prepare(self, row: Row, build: Build, log: Path, env: Mapping[str, str] | None = None) -> None:
        """Let kas check out and write the configuration of a build, once; keep its environment for `bitbake`.

        BitBake is then called without kas, which would write it each time, and 6.0 parse it anew.
        """
        if (row.name, build.name) not in self._environments:
            file = self.folder / "home/environment"
            words = ["shell", "FILES", "-c", f"env -0 > {file}"]
            passed(self.kas(row, words, log, build=build, env=env), "kas shell")
            pairs = (pair.partition("=") for pair in file.read_text().split("\0") if pair)
            self._environments[row.name, build.name] = {name: value for name, _, value in pairs}

    def bitbake(self, row: Row, build: Build, command: Sequence[str], log: Path, *, limit_s: int) -> Run:
        """A command in a build that is prepared: its directory, its environment."""
        environment = {**self._environments[row.name, build.name], "HOME": str(self.folder / "home")}
        return self.run(command, log, limit_s=limit_s, env=environment, cwd=self.build_folder(row, build))

    def run(
        self,
        command: Sequence[str],
        log: Path,
        *,
        limit_s: int,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> Run:
        """Run a command as the user, in the copy of the repository or `cwd`; what it says goes to the log."""
        environment = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(self.folder / "home"),
            "LC_ALL": "C.UTF-8",
            "TERM": "dumb",
            "PYTHONDONTWRITEBYTECODE": "1",
            **(env or {}),
        }
        log.parent.mkdir(parents=True, exist_ok=True)
        start = time.monotonic()
        with open(log, "ab") as file:
            file.write(f"$ {' '.join(command)}\n".encode())
            file.flush()
            begin = file.tell()
            process = subprocess.Popen(
                [*host.become(self.user), *command],
                cwd=cwd or self.repository,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                code: int | None = process.wait(limit_s)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGTERM)
                    process.wait()
        with open(log, "rb") as file:
            file.seek(begin)
            output = file.read().decode(errors="replace")
        return Run(code, output, time.monotonic() - start)


def passed(run: Run, what: str) -> str:
    """The output of a run that went well. Raises Failed."""
    if run.code is None:
        raise Failed(f"{what} took more than {run.seconds:.0f} s")
    if run.code != 0:
        said = [line for line in run.output.splitlines() if "ERROR" in line] or run.output.splitlines()
        raise Failed(f"{what} exited with {run.code}: {' '.join(said[:1])[:300]}")
    return run.output


def _same(source: Path, target: Path) -> bool:
    """Whether a file was copied already, by size and time."""
    try:
        ours, theirs = source.stat(), target.stat()
    except FileNotFoundError:
        return False
    return (ours.st_size, ours.st_mtime_ns, ours.st_mode) == (
        theirs.st_size,
        theirs.st_mtime_ns,
        theirs.st_mode,
    )


def default_folder() -> Path:
    """A place that root and the user can both reach."""
    return Path(f"/var/tmp/meta-update-check-layers-{os.getuid()}")
