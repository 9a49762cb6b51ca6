# SPDX-License-Identifier: Apache-2.0
"""The commands install, commit, rollback and resume: the same machine, driven by a person or a script."""

from __future__ import annotations

import sys

from update_agent.errors import StoreError, UpdateError
from update_agent.lean import json
from update_agent.log import tell
from update_agent.machine import Context, Machine
from update_agent.states import COMMIT_FROM, IN_STATE, ROLLBACK_NOT_FROM, STANDALONE_STEPS, Step
from update_agent.update import COMMAND_KEY, Update, commit, from_text, installed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from update_agent.intake import Intake

DONE, FAILED, NOTHING, REBOOT = 0, 1, 2, 4  # exit codes (config.md section 8)
_VERSION = 2
_ANEW = "install an artifact anew"


class Standalone(Machine):
    """Walks `STANDALONE`; `flags` collect what happened in this run (the table's `good` and `bad`)."""

    flow = STANDALONE_STEPS

    def __init__(
        self,
        context: Context,
        *,
        stop_before: Sequence[str] = (),
        progress: ProgressBar | None = None,
        verify: bool = True,
    ) -> None:
        super().__init__(context)
        self.flags: set[str] = set()
        self.reasons: list[str] = []
        self._stop_before = stop_before
        self._progress = progress
        self._verify = verify
        self._in_state = ""
        self._has_failed = False
        self._is_rolled_back = False
        self._intake: Intake | None = None

    # Commands; each returns an exit code

    @property
    def is_saved(self) -> bool:
        """An update is in progress, which a later command can go on with."""
        return self.store.get(COMMAND_KEY) is not None

    def install(self, source: str) -> int:
        """Take an artifact in from a path or URL, and install it. It waits for commit if it can be undone."""
        if self._is_understood():
            self.flags |= {"Failed", "NoRollbackNecessary"}
            self.failed("Update already in progress. Please commit or roll back first")
            return FAILED
        if self._is_deployment_saved():
            self.flags |= {"Failed", "NoRollbackNecessary"}
            self.failed("a deployment from the server is in progress; the daemon finishes it when it runs")
            return FAILED
        self.update = Update(uri=source)
        return self._run("prepare")

    def _is_understood(self) -> bool:
        """An update is saved, and a command could go on with it. What no command can is in nobody's way."""
        try:
            return self._load()
        except StoreError as error:
            self.log.error(f"Cannot go on with the saved update: {error}")
            return False

    def _is_deployment_saved(self) -> bool:
        """True if the daemon was interrupted in a deployment: the file tree of the module is that one's."""
        text = self.store.get("state")
        if not text:
            return False
        try:
            from_text(text)
        except StoreError:
            return False  # there is none, or none that anybody could go on with
        return True

    def commit(self) -> int:
        """Make the installed artifact permanent."""
        return self._continue("commit", lambda state: state in COMMIT_FROM)

    def rollback(self) -> int:
        """Undo the installed artifact."""
        return self._continue(
            "roll back", lambda state: state not in ROLLBACK_NOT_FROM, start="query.rollback"
        )

    def resume(self) -> int:
        """Go on with an update that was interrupted or told to stop."""
        return self._continue("resume", lambda _state: True)

    def _continue(self, verb: str, may: Callable[[str], bool], start: str = "") -> int:
        if not self._load():
            self.flags.add("NoUpdateInProgress")
            self.reasons.append(f"No update in progress: Cannot {verb}")
            return NOTHING
        if not may(self._in_state):
            self.flags.add("Failed")
            self.failed(f"cannot {verb} now, the update was interrupted in {self._in_state}: use resume")
            return FAILED
        if self._has_failed:
            self.flags.add("Failed")
        if self._is_rolled_back:
            self.flags.add("RolledBack")
        return self._run(start or IN_STATE[self._in_state])

    def _run(self, start: str) -> int:
        self.walk(start)
        if self.is_saved and self._has_failed:
            self._has_failed = False  # what went wrong so far was told; the update itself goes on
            self._write(self._in_state)
        return FAILED if "Failed" in self.flags else DONE

    def note(self, step: Step, event: str) -> None:
        if event == "fail":
            self.flags.update(step.bad)
        elif event == "ok":
            self.flags.update(step.good)
        if "Failed" in self.flags:
            self._has_failed = True
        if self.flags & {"RolledBack", "NoRollbackNecessary"}:
            self._is_rolled_back = True
        if "RollbackFailed" in self.flags:
            self._is_rolled_back = False

    def failed(self, reason: str) -> None:
        if self._progress is not None:
            self._progress.end()
        super().failed(reason)
        self.reasons.append(reason)

    # Saved state

    def save(self, step: Step, name: str) -> None:
        raise AssertionError(f"standalone steps save by work of their own, not {step.name} as {name}")

    def on_save(self, step: Step) -> str:
        """Store where we are, or stop before this state if told so (after storing it)."""
        try:
            self._write(step.work.subject)
        except StoreError as error:
            self.flags.add("Failed")
            self.failed(str(error))
            return "fail"
        if step.work.subject.removeprefix("Before_") in self._stop_before and "stop" in step.edges:
            return "stop"
        return "ok"

    def _write(self, in_state: str) -> None:
        self._in_state = in_state
        update = self.update
        document: dict[str, object] = {
            "Version": _VERSION,
            "ArtifactName": update.artifact_name,
            "ArtifactGroup": update.artifact_group,
            "PayloadTypes": [update.payload_type or ""],
            "InState": in_state,
            "Failed": self._has_failed,
            "RolledBack": self._is_rolled_back,
        }
        if update.provides is not None:
            document["ArtifactTypeInfoProvides"] = update.provides
        if update.clears is not None:
            document["ArtifactClearsProvides"] = update.clears
        self.store.write({COMMAND_KEY: json.dumps(document, separators=(",", ":"))})

    def _load(self) -> bool:
        """Take over the saved update; False if there is none. Raises StoreError if it is damaged."""
        text = self.store.get(COMMAND_KEY)
        if text is None:
            return False
        try:
            document = json.loads(text)
            if document["Version"] not in {1, _VERSION}:
                raise StoreError(
                    f"the saved update has version {document['Version']}, this agent knows {_VERSION}",
                    hint=_ANEW,
                )
            update = Update()
            update.artifact_name = str(document["ArtifactName"])
            update.artifact_group = str(document.get("ArtifactGroup") or "")
            update.payload_type = str(document["PayloadTypes"][0])
            update.provides = document.get("ArtifactTypeInfoProvides")
            update.clears = document.get("ArtifactClearsProvides")
            in_state = document.get("InState", "") if document["Version"] == _VERSION else COMMIT_FROM[0]
            if in_state not in IN_STATE:
                raise StoreError(f"the saved update is in the unknown state {in_state!r}", hint=_ANEW)
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise StoreError(f"the saved update cannot be understood: {error!r}", hint=_ANEW) from error
        self.update = update
        self._in_state = in_state
        self._has_failed = document.get("Failed") is True
        self._is_rolled_back = document.get("RolledBack") is True
        return True

    # Work

    def do_prepare(self, _step: Step) -> str:
        """Open the artifact, verify its headers, see whether it is for us, and make the file tree."""
        from update_agent.intake import Intake, describe, open_source

        source = open_source(self.update.uri, self.config, self.log, self._progress)
        context = self.context
        self._intake = Intake(
            source, self.config, self.log, context.bootloader, context.loop.wait, verify=self._verify
        )
        have = installed(self.store)
        self._intake.accept(have)
        self.update.accept(describe(self._intake.header))
        if not self.update.payload_type:
            self._intake.stream()
            self.store.write(commit(self.store, self.update, clean=True, with_provides=True))
            self.flags |= {"Downloaded", "Installed", "Committed"}
            return "nothing"
        self._intake.prepare(have)
        self._payload = self._intake.payload
        return "ok"

    def on_download(self, _step: Step) -> str:
        """Stream the payload to its module."""
        assert self._intake is not None
        self._intake.stream()
        return "ok"

    def do_ask_reboot_and_rollback(self, _step: Step) -> str:
        """Whether a reboot is wanted, and whether to wait for commit or rollback (decide) or commit now."""
        if self.ask("NeedsArtifactReboot") != "No":
            self.flags.add("RebootRequired")
        if self.ask("SupportsRollback") == "Yes":
            self._write(COMMIT_FROM[0])
            return "decide"
        self.flags.add("AutoCommitWanted")
        return "ok"

    def do_ask_rollback(self, _step: Step) -> str:
        """Whether the module can undo. Without: only a failed update goes on, to ArtifactFailure."""
        had_failed = "Failed" in self.flags
        try:
            answer = self.ask("SupportsRollback")
        except UpdateError:
            self.flags |= {"Failed", "RollbackFailed"}
            raise
        if answer == "Yes":
            return "ok"
        self.flags |= {"Failed", "NoRollback"}
        if not had_failed:
            self.reasons.append("the update module cannot roll back; the update is still in progress")
        return "nothing" if had_failed else "decide"

    def do_end_standalone(self, _step: Step) -> str:
        """Store what is installed now, and forget the update."""
        changes: dict[str, str | None] = {}
        if not self._is_rolled_back:
            changes = commit(self.store, self.update, clean=not self._has_failed, with_provides=True)
        self.store.write({**changes, COMMAND_KEY: None})
        return "ok"


def result_text(flags: set[str]) -> list[str]:
    """The lines that tell a person what came of it (config.md section 8): prefix, operation, more."""
    lines = []
    if "AutoCommitWanted" in flags and flags & {"Committed", "CommitFailed"}:
        lines.append("Update Module doesn't support rollback. Committing immediately.")
    after_commit = flags & {"FailedInPostCommit", "CleanupFailed"}  # failures that leave it committed
    operations = {
        "DownloadFailed": "Streaming failed.",
        "InstallFailed": "Installation failed.",
        "CommitFailed": "Committing failed.",
    }
    if "FailedInPostCommit" in flags:
        del operations["CommitFailed"]
    failed = [text for flag, text in operations.items() if flag in flags]
    if failed:
        lines.append(failed[0])
    elif "Failed" in flags and not (after_commit and "Committed" in flags):
        pass  # what became of the device is said below
    elif "Committed" in flags:
        lines.append("Installed and committed." if "Installed" in flags else "Committed.")
    elif "Installed" in flags:
        lines += [
            "Installed, but not committed.",
            "Use 'commit' to update, or 'rollback' to roll back the update.",
        ]
    elif "Downloaded" in flags:
        lines.append("Streamed to storage, but not installed/enabled.")
    elif "NoUpdateInProgress" in flags:
        lines.append("No update in progress.")
    elif flags == {"Cleaned"}:
        lines.append("Cleaned up.")
    more = []
    undo = {
        "RollbackFailed": "Rollback failed. System may be in an inconsistent state.",
        "NoRollback": "Update Module does not support rollback. System may be in an inconsistent state.",
        "NoRollbackNecessary": "System not modified.",
        "RolledBack": "Rolled back.",
    }
    more += [text for flag, text in undo.items() if flag in flags][:1]
    if "FailedInPostCommit" in flags:
        more.append("One or more post-commit steps failed.")
    if "CleanupFailed" in flags:
        more.append("Cleanup failed.")
    if "RebootRequired" in flags:
        more.append("At least one payload requested a reboot of the device it updated.")
    return [*lines, " ".join(more)] if more else lines


class ProgressBar:
    """Download progress: a bar on a terminal, a line for each tenth elsewhere. Writes to stdout."""

    def __init__(self) -> None:
        self._is_terminal = sys.stdout.isatty()
        self._shown = -1
        self._is_open = False  # the bar has the rest of its line

    def end(self) -> None:
        """What is printed next begins a line of its own."""
        if self._is_open:
            tell("")
            self._is_open = False

    def __call__(self, done_bytes: int, size_bytes: int | None) -> None:
        if not size_bytes:
            return
        percent = done_bytes * 100 // size_bytes
        step = percent if self._is_terminal else percent // 10
        if step == self._shown:
            return
        self._shown = step
        if self._is_terminal:
            bar = "#" * (percent // 2)
            tell(f"\r[{bar:<50}] {percent:3d} % of {size_bytes / 1e6:.1f} MB", end="")
            self._is_open = True
            if percent == 100:
                self.end()
        else:
            tell(f"{percent} %")
