# SPDX-License-Identifier: Apache-2.0
"""External update modules: executables, called by protocol v3 (artifact-v3.md sections 8-11)."""

from __future__ import annotations

import os

from update_agent.errors import PayloadError, ProcError
from update_agent.files import remove_tree
from update_agent.loop import plain_wait
from update_agent.output import MODULE, OutputLines
from update_agent.payload import QUERIES
from update_agent.proc import output, run
from update_agent.store import sync_directory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from update_agent.log import Log
    from update_agent.loop import Wait
    from update_agent.payload import Header, Tree
    from update_agent.proc import Result
    from update_agent.slot_writer import Source

# After SIGTERM at the time limit, before SIGKILL.
GRACE_S = 10.0
_COPY_BYTES = 1 << 18


class ExternalModule:
    """One update module and its file tree."""

    def __init__(
        self,
        path: str,
        tree: Tree,
        timeout_s: float,
        log: Log,
        wait: Wait = plain_wait,
        *,
        output_limit_bytes: int | None = None,
    ) -> None:
        self._path = path
        self._output_limit_bytes = output_limit_bytes
        self._tree = tree
        self._timeout_s = timeout_s
        self._log = log
        self._wait = wait

    def prepare(self, header: Header, *, current: Mapping[str, str]) -> None:
        """Make a fresh file tree, on the medium on return."""
        self._tree.create(header, current)

    def call(self, name: str) -> None:
        """Make a call, its output logged line by line. Raises PayloadError unless the module exits with 0."""
        self._need_tree(name)
        self._check(name, self._run(name, self._wait))

    def query(self, name: str) -> str:
        """The module's answer, "No" when it says nothing.

        Raises PayloadError on anything but exit 0 and at most one line that is one of the known words.
        """
        self._need_tree(name)
        try:
            result, stdout, stderr = output(
                self._argv(name),
                timeout_s=self._timeout_s,
                cwd=self._tree.path,
                limit_bytes=4096,
                grace_s=GRACE_S,
                wait=self._wait,
            )
        except ProcError as error:
            raise PayloadError(f"update module {self._path}: {error.message}", hint=error.hint) from error
        lines = OutputLines(self._log, MODULE)
        lines.feed("stderr", stderr)
        lines.close()
        self._check(name, result)
        answer = stdout.decode(errors="backslashreplace").removesuffix("\n")
        words = QUERIES[name]
        if answer and answer not in words:
            raise PayloadError(
                f"update module {self._path} answered {answer[:80]!r} to {name}",
                hint=f"one line with one of {', '.join(words)}",
            )
        return answer or "No"

    def download(self, files: Iterator[Source]) -> None:
        """Hand the payload to the module through FIFOs, or store it in `files/` if it does not ask for them.

        Asks ProvidePayloadFileSizes first. Raises PayloadError; an error of the source ends the module at
        once, before the FIFOs are closed, so that it cannot take a part for the whole.
        """
        from update_agent.streams import Streams

        with_sizes = self.query("ProvidePayloadFileSizes") == "Yes"
        name = "DownloadWithFileSizes" if with_sizes else "Download"
        streams = Streams(self._path, self._tree.path, files, with_sizes=with_sizes)
        try:
            result = self._run(name, streams.wait)
            streams.end()
        finally:
            streams.close()
        self._check(name, result)
        if not streams.was_asked:
            self._store(streams.rest())
        elif not streams.is_done:
            raise PayloadError(
                f"update module {self._path}: {name} exited with 0 before it had taken the whole payload "
                f"({streams.progress})",
                hint="it must open stream-next until a read from it is empty",
            )

    def hold(self, point: str) -> None:
        """Nothing: the protocol knows no pauses."""

    def release(self, point: str) -> None:
        """Nothing."""

    def rebooted(self, point: str) -> bool:
        """False: the protocol cannot tell, so a pause stays a pause."""
        return False

    def cleanup(self) -> None:
        """Make the Cleanup call unless the tree is gone, then delete the tree whatever it returned."""
        try:
            if self._tree.exists:
                self.call("Cleanup")
        finally:
            self._tree.remove()

    # Parts of the above

    def _argv(self, name: str) -> list[str]:
        return [self._path, name, self._tree.path]

    def _need_tree(self, name: str) -> None:
        if not self._tree.exists:
            raise PayloadError(
                f"update module {self._path}: cannot call {name}, the file tree {self._tree.path} is missing",
                hint="was the datastore emptied during the update?",
            )

    def _run(self, name: str, wait: Wait) -> Result:
        lines = OutputLines(self._log, MODULE, limit_bytes=self._output_limit_bytes)
        try:
            return run(
                self._argv(name),
                timeout_s=self._timeout_s,
                cwd=self._tree.path,
                on_output=lines.feed,
                grace_s=GRACE_S,
                wait=wait,
            )
        except ProcError as error:
            raise PayloadError(f"update module {self._path}: {error.message}", hint=error.hint) from error
        finally:
            lines.close()

    def _check(self, name: str, result: Result) -> None:
        if not result.ok:
            raise PayloadError(
                f"update module {self._path}: {name} {result.describe()}",
                hint="ModuleTimeoutSeconds is the limit" if result.timed_out else "its output is in the log",
            )

    def _store(self, files: Iterator[Source]) -> None:
        """Put the payload into `files/` of the tree, on the medium on return. Raises PayloadError."""
        directory = self._tree / "files"
        buffer = memoryview(bytearray(_COPY_BYTES))
        try:
            remove_tree(directory)
            for file in files:
                os.makedirs(directory, mode=0o700, exist_ok=True)
                path = os.path.join(directory, safe_name(file.name))
                fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                try:
                    while count := file.readinto(buffer):
                        rest = buffer[:count]
                        while rest:
                            rest = rest[os.write(fd, rest) :]
                    os.fsync(fd)
                finally:
                    os.close(fd)
            if os.path.isdir(directory):
                sync_directory(directory)
                sync_directory(self._tree.path)
        except OSError as error:
            raise PayloadError(
                f"cannot store the payload in {directory}: {error}",
                hint="is the data partition large enough for it?",
            ) from error


def safe_name(name: str) -> str:
    """The name of a payload file if it stays in its directory and on one line, else PayloadError."""
    if name in {"", ".", ".."} or set(name) & set("/\0\n"):
        raise PayloadError(
            f"payload file name {name!r} would leave the file tree",
            hint="write the artifact with plain names",
        )
    return name
