# SPDX-License-Identifier: Apache-2.0
"""THE TABLE: the states, every step of an update, and where each leads. No I/O; nothing else lists states.

Resume, script lookup, reports, pause points, the documentation's diagram and the tests read these rows.
Source of the behaviour: the specification's state-machine.md (client 5.x, control points of client 3.5).

An update is walked step by step: a step does one piece of work and ends in an event, the event picks the next
step. DAEMON and STANDALONE are the two ways through the same work, walked by the same machine.
"""

from __future__ import annotations

ROOTFS, ARTIFACT = "rootfs", "artifact"  # where a state's scripts come from


class State:
    """A state in the field's sense: what scripts and reports are named after.

    `hooks` tells which scripts ever run: E enter, L leave, ! error. `pause` tells before which of them an
    update can be held: E and L where the reference knows the point and maps on the wire may name it, e and l
    where only this device does.
    """

    __slots__ = ("hooks", "name", "pause", "scripts")

    def __init__(self, name: str, scripts: str, hooks: str, pause: str) -> None:
        self.name = name
        self.scripts = scripts
        self.hooks = hooks
        self.pause = pause


# fmt: off
STATES = (
    #     state                     scripts   hooks  pause
    State("Idle",                   ROOTFS,   "EL",  ""),
    State("Sync",                   ROOTFS,   "EL!", ""),
    State("Download",               ROOTFS,   "EL!", "el"),
    State("ArtifactInstall",        ARTIFACT, "EL!", "El"),
    State("ArtifactReboot",         ARTIFACT, "EL!", "El"),
    State("ArtifactCommit",         ARTIFACT, "EL!", "E"),
    State("ArtifactRollback",       ARTIFACT, "EL",  ""),
    State("ArtifactRollbackReboot", ARTIFACT, "EL!", ""),
    State("ArtifactFailure",        ARTIFACT, "EL",  ""),
)
# fmt: on
ACTIONS = ("Enter", "Leave", "Error")
STATE_BY_NAME = {state.name: state for state in STATES}
_POINTS = [(f"{s.name}_{'Enter' if c in 'Ee' else 'Leave'}", c.isupper()) for s in STATES for c in s.pause]
POINTS = tuple(point for point, _ in _POINTS)  # in the order in which an update reaches them
# Points that a control map on the wire may name (control-map.md section 1); the others are local.
WIRE_POINTS = tuple(point for point, on_wire in _POINTS if on_wire)


class Work:
    """What a step does: a kind, and for most kinds what it is done with.

    | kind      | subject               | events beside ok and fail                          |
    |-----------|-----------------------|----------------------------------------------------|
    | hook      | State_Action          |                                                    |
    | module    | update-module call    |                                                    |
    | query     | update-module query   | the answer: Yes, No, Automatic                     |
    | reboot    | update-module call    |                                                    |
    | report    | status                | aborted (the server answered 409)                  |
    | control   | pause point           | go instead of ok, booted (rebooted meanwhile)      |
    | wait      |                       | deployment, inventory                              |
    | request   | inventory, deployment | nothing                                            |
    | download  |                       | nothing (artifact without payload)                 |
    | save      | InState (standalone)  | stop (`--stop-before`)                             |
    | do        | a function's name     | decide (standalone: wait for commit or rollback)   |

    A step that saves may also end in `loop`: it was saved too often, the update goes in circles.
    """

    __slots__ = ("kind", "subject")

    def __init__(self, kind: str, subject: str = "") -> None:
        self.kind = kind
        self.subject = subject

    @property
    def state(self) -> str:
        """State of a hook or pause point: `ArtifactInstall` of `ArtifactInstall_Enter`."""
        return self.subject.partition("_")[0]

    @property
    def action(self) -> str:
        """Action of a hook or pause point: `Enter` of `ArtifactInstall_Enter`."""
        return self.subject.partition("_")[2]


# How the failure of a step leads on:
SAME = "same"  # the same way as success; a hook stops at its first failing script
ALL = "all"  # the same way as success; a hook runs all its scripts, failing or not


class Step:
    """One row: a piece of work and where each of its events leads.

    `save`: stored name, written durably before the work (`save_mid`: in the middle of it).
    `failure`: on the failure path, where an unwritable disk is logged and does not change the way.
    `quiet`: a failure does not count in the outcome. `retried`: a report that is repeated with backoff and
    whose failure counts. `pause_save`, `pause_report`: stored name and status while paused here; a pause that
    ends is stored as `save_mid`, if there is one.
    `good`, `bad`: what ok and fail add to a standalone outcome. `other`: edges of the remaining events.
    """

    __slots__ = (
        "all_scripts",
        "bad",
        "edges",
        "failure",
        "good",
        "name",
        "pause_report",
        "pause_save",
        "quiet",
        "retried",
        "save",
        "save_mid",
        "work",
    )

    def __init__(
        self,
        name: str,
        work: str,
        ok: str,
        fail: str,
        *,
        save: str = "",
        save_mid: str = "",
        failure: bool = False,
        quiet: bool = False,
        retried: bool = False,
        pause_save: str = "",
        pause_report: str = "",
        good: str = "",
        bad: str = "",
        **other: str,
    ) -> None:
        self.name = name
        self.work = Work(*work.split())
        self.edges = {"ok": ok, "fail": ok if fail in {SAME, ALL} else fail, **other}
        self.all_scripts = fail == ALL
        self.save = save
        self.save_mid = save_mid
        self.failure = failure
        self.quiet = quiet
        self.retried = retried
        self.pause_save = pause_save
        self.pause_report = pause_report
        self.good = good.split()
        self.bad = bad.split()


_DOWNLOAD_FAILED = "DownloadFailed Failed NoRollbackNecessary"

# fmt: off
# A deployment, driven by the daemon.
DAEMON = (
    #    step                      work                                   ok leads to               fail leads to            saved as; other events
    # Idle and Sync
    Step("idle.enter",             "hook Idle_Enter",                     "idle",                   ALL),
    Step("idle",                   "wait",                                "",                       SAME,                    deployment="idle.leave.deployment", inventory="idle.leave.inventory"),
    Step("idle.leave.deployment",  "hook Idle_Leave",                     "sync.enter.deployment",  ALL),
    Step("idle.leave.inventory",   "hook Idle_Leave",                     "sync.enter.inventory",   ALL),
    Step("sync.enter.deployment",  "hook Sync_Enter",                     "sync.poll",              "sync.error"),
    Step("sync.enter.inventory",   "hook Sync_Enter",                     "sync.inventory",         "sync.error"),
    Step("sync.inventory",         "request inventory",                   "sync.leave",             "sync.error"),
    Step("sync.poll",              "request deployment",                  "sync.leave.update",      "sync.error",            nothing="sync.leave"),
    Step("sync.leave",             "hook Sync_Leave",                     "idle.enter",             "sync.error"),
    Step("sync.leave.update",      "hook Sync_Leave",                     "control.download",       "sync.error.update"),
    Step("sync.error",             "hook Sync_Error",                     "idle.enter",             ALL),
    Step("sync.error.update",      "hook Sync_Error",                     "deployment.end",         ALL),
    # Download
    Step("control.download",       "control Download_Enter",              "",                       "rollback.not_needed",   go="status.downloading", waited="download.renew", pause_save="pause-before-download", pause_report="downloading"),
    Step("download.renew",         "do renew_link",                       "status.downloading",     "rollback.not_needed"),
    Step("status.downloading",     "report downloading",                  "download.enter",         SAME,                    aborted="cleanup"),
    Step("download.enter",         "hook Download_Enter",                 "download",               "download.error",        save="update-store"),
    Step("download",               "download",                            "control.download.leave", "download.error",        save_mid="update-store", nothing="download.leave.empty"),
    Step("control.download.leave", "control Download_Leave",              "",                       "rollback.not_needed",   go="download.leave", save_mid="update-store", pause_save="pause-after-download", pause_report="downloading"),
    Step("download.leave",         "hook Download_Leave",                 "control.install",        "download.error"),
    Step("download.leave.empty",   "hook Download_Leave",                 "provides.commit",        "download.error"),
    Step("download.error",         "hook Download_Error",                 "rollback.not_needed",    ALL),
    Step("rollback.not_needed",    "do rollback_not_needed",              "cleanup",                SAME),
    # ArtifactInstall
    Step("control.install",        "control ArtifactInstall_Enter",       "",                       "rollback.check",        go="status.installing", pause_save="pause-before-install", pause_report="pause_before_installing"),
    Step("status.installing",      "report installing",                   "install.enter",          SAME,                    aborted="cleanup"),
    Step("install.enter",          "hook ArtifactInstall_Enter",          "install",                "install.error",         save="update-install"),
    Step("install",                "module ArtifactInstall",              "control.install.leave",  "install.error"),
    Step("control.install.leave",  "control ArtifactInstall_Leave",       "",                       "rollback.check",        go="install.leave", save_mid="update-install", pause_save="pause-after-install", pause_report="installing"),
    Step("install.leave",          "hook ArtifactInstall_Leave",          "reboot.check",           "install.error"),
    Step("install.error",          "hook ArtifactInstall_Error",          "rollback.check",         ALL),
    # ArtifactReboot
    Step("reboot.check",           "query NeedsArtifactReboot",           "",                       "rollback.check",        Yes="control.reboot", Automatic="control.reboot", No="control.commit"),
    Step("control.reboot",         "control ArtifactReboot_Enter",        "",                       "rollback.check",        go="status.rebooting", booted="reboot.verify", pause_save="pause-before-reboot", pause_report="pause_before_rebooting"),
    Step("status.rebooting",       "report rebooting",                    "reboot.enter",           SAME,                    aborted="rollback.check"),
    Step("reboot.enter",           "hook ArtifactReboot_Enter",           "reboot",                 "reboot.error",          save="reboot"),
    Step("reboot",                 "reboot ArtifactReboot",               "reboot.verify",          "reboot.error"),
    Step("reboot.verify",          "module ArtifactVerifyReboot",         "control.reboot.leave",   "reboot.error",          save="after-reboot"),
    Step("control.reboot.leave",   "control ArtifactReboot_Leave",        "",                       "rollback.check",        go="reboot.leave", save_mid="after-reboot", pause_save="pause-after-reboot", pause_report="rebooting"),
    Step("reboot.leave",           "hook ArtifactReboot_Leave",           "control.commit",         "reboot.error"),
    Step("reboot.error",           "hook ArtifactReboot_Error",           "rollback.check",         ALL),
    # ArtifactCommit
    Step("control.commit",         "control ArtifactCommit_Enter",        "",                       "rollback.check",        go="precommit", pause_save="pause-before-commit", pause_report="pause_before_committing"),
    Step("precommit",              "do drop_token",                       "status.precommit",       SAME),
    Step("status.precommit",       "report installing",                   "commit.enter",           "rollback.check",        aborted="rollback.check", retried=True),
    Step("commit.enter",           "hook ArtifactCommit_Enter",           "commit",                 "commit.error",          save="update-commit"),
    Step("commit",                 "module ArtifactCommit",               "commit.after",           "commit.error"),
    Step("commit.after",           "do nothing",                          "commit.leave",           "commit.error.late",     save="update-after-commit"),
    Step("commit.leave",           "hook ArtifactCommit_Leave",           "provides.commit",        "commit.error.late"),
    Step("commit.error.late",      "hook ArtifactCommit_Error",           "provides.commit",        ALL),
    Step("commit.error",           "hook ArtifactCommit_Error",           "rollback.check",         ALL),
    # ArtifactRollback
    Step("rollback.check",         "query SupportsRollback",              "",                       "failure.enter",         Yes="rollback.enter", No="failure.enter"),
    Step("rollback.enter",         "hook ArtifactRollback_Enter",         "rollback",               SAME,                    save="rollback", failure=True),
    Step("rollback",               "module ArtifactRollback",             "rollback.leave",         "rollback.leave.failed"),
    Step("rollback.leave",         "hook ArtifactRollback_Leave",         "rollback.check_reboot",  SAME),
    Step("rollback.leave.failed",  "hook ArtifactRollback_Leave",         "failure.enter",          ALL),
    Step("rollback.check_reboot",  "query NeedsArtifactReboot",           "",                       "failure.enter",         Yes="rollback_reboot.enter", Automatic="rollback_reboot.enter", No="rollback.done"),
    # ArtifactRollbackReboot
    Step("rollback_reboot.enter",  "hook ArtifactRollbackReboot_Enter",   "rollback_reboot",        SAME,                    save="rollback-reboot", failure=True),
    Step("rollback_reboot",        "reboot ArtifactRollbackReboot",       "rollback_reboot.verify", SAME,                    quiet=True),
    Step("rollback_reboot.verify", "module ArtifactVerifyRollbackReboot", "rollback_reboot.leave",  "rollback_reboot",       save="after-rollback-reboot", failure=True, quiet=True),
    Step("rollback_reboot.leave",  "hook ArtifactRollbackReboot_Leave",   "rollback.done",          "rollback_reboot.error"),
    Step("rollback_reboot.error",  "hook ArtifactRollbackReboot_Error",   "failure.enter",          ALL),
    Step("rollback.done",          "do rollback_done",                    "failure.enter",          SAME),
    # ArtifactFailure
    Step("failure.enter",          "hook ArtifactFailure_Enter",          "failure",                SAME,                    save="update-error", failure=True),
    Step("failure",                "module ArtifactFailure",              "failure.leave",          SAME,                    save="update-error", failure=True),
    Step("failure.leave",          "hook ArtifactFailure_Leave",          "provides.commit",        SAME),
    # Cleanup and the end
    Step("provides.commit",        "do commit_provides",                  "cleanup",                SAME,                    save_mid="cleanup", failure=True),
    Step("cleanup",                "module Cleanup",                      "status.final",           SAME,                    save="cleanup", failure=True),
    Step("loop",                   "do break_loop",                       "status.final",           SAME),
    Step("status.final",           "report final",                        "clear",                  SAME,                    aborted="clear", retried=True),
    Step("clear",                  "do clear",                            "deployment.end",         SAME),
    Step("deployment.end",         "do end_deployment",                   "idle.enter",             SAME),
)

# The same work as commands of a person or a script: install, commit, rollback, resume.
STANDALONE = (
    #    step                        work                                 ok leads to                 fail leads to     outcome; other events
    # Download
    Step("prepare",                  "do prepare",                        "download.enter",           "exit",           nothing="exit", bad=_DOWNLOAD_FAILED),
    Step("download.enter",           "hook Download_Enter",               "download",                 "download.error", bad=_DOWNLOAD_FAILED),
    Step("download",                 "download",                          "download.leave",           "download.error", good="Downloaded", bad=_DOWNLOAD_FAILED),
    Step("download.leave",           "hook Download_Leave",               "save.before_install",      "download.error", bad=_DOWNLOAD_FAILED),
    Step("download.error",           "hook Download_Error",               "save.cleanup",             ALL),
    # ArtifactInstall
    Step("save.before_install",      "save Before_ArtifactInstall_Enter", "save.install",             "save.cleanup",   stop="exit"),
    Step("save.install",             "save ArtifactInstall_Enter",        "install.enter",            "save.cleanup"),
    Step("install.enter",            "hook ArtifactInstall_Enter",        "install",                  "install.error",  bad="InstallFailed Failed"),
    Step("install",                  "module ArtifactInstall",            "install.leave",            "install.error",  good="Installed", bad="InstallFailed Failed"),
    Step("install.leave",            "hook ArtifactInstall_Leave",        "query.reboot_rollback",    "install.error",  bad="InstallFailed Failed"),
    Step("install.error",            "hook ArtifactInstall_Error",        "query.rollback",           ALL),
    Step("query.reboot_rollback",    "do ask_reboot_and_rollback",        "save.before_commit",       "query.rollback", decide="exit", bad="Failed"),
    # ArtifactCommit
    Step("save.before_commit",       "save Before_ArtifactCommit_Enter",  "save.commit",              "query.rollback", stop="exit"),
    Step("save.commit",              "save ArtifactCommit_Enter",         "commit.enter",             "query.rollback"),
    Step("commit.enter",             "hook ArtifactCommit_Enter",         "commit",                   "commit.error",   bad="CommitFailed Failed"),
    Step("commit",                   "module ArtifactCommit",             "save.before_commit_leave", "commit.error",   good="Committed", bad="CommitFailed Failed"),
    Step("save.before_commit_leave", "save Before_ArtifactCommit_Leave",  "save.commit_leave",        "commit.error",   stop="exit"),
    Step("save.commit_leave",        "save ArtifactCommit_Leave",         "commit.leave",             "commit.error"),
    Step("commit.leave",             "hook ArtifactCommit_Leave",         "save.cleanup",             ALL,              bad="CommitFailed Failed FailedInPostCommit"),
    Step("commit.error",             "hook ArtifactCommit_Error",         "query.rollback",           ALL),
    # ArtifactRollback
    Step("query.rollback",           "do ask_rollback",                   "save.rollback",            "save.failure",   nothing="save.failure", decide="exit"),
    Step("save.rollback",            "save ArtifactRollback_Enter",       "rollback.enter",           SAME,             stop="exit", failure=True),
    Step("rollback.enter",           "hook ArtifactRollback_Enter",       "rollback",                 ALL,              bad="Failed RollbackFailed"),
    Step("rollback",                 "module ArtifactRollback",           "rollback.leave",           SAME,             good="RolledBack", bad="Failed RollbackFailed"),
    Step("rollback.leave",           "hook ArtifactRollback_Leave",       "save.failure",             ALL),
    # ArtifactFailure
    Step("save.failure",             "save ArtifactFailure_Enter",        "failure.enter",            SAME,             stop="exit", failure=True),
    Step("failure.enter",            "hook ArtifactFailure_Enter",        "failure",                  ALL,              bad="Failed RollbackFailed"),
    Step("failure",                  "module ArtifactFailure",            "failure.leave",            SAME,             bad="Failed RollbackFailed"),
    Step("failure.leave",            "hook ArtifactFailure_Leave",        "save.cleanup",             ALL),
    # Cleanup and the end
    Step("save.cleanup",             "save Cleanup",                      "cleanup",                  SAME,             stop="exit", failure=True),
    Step("cleanup",                  "module Cleanup",                    "end",                      SAME,             good="Cleaned", bad="Failed CleanupFailed"),
    Step("end",                      "do end_standalone",                 "exit",                     SAME),
)
# fmt: on
DAEMON_STEPS = {step.name: step for step in DAEMON}
STANDALONE_STEPS = {step.name: step for step in STANDALONE}
EXIT = "exit"

# What the update counts as when it goes on after a restart, and how each event changes that.
OK, FAILED, ROLLED_BACK, BROKEN = "no_failures", "failure", "rollback_attempted", "rollback_failed"
TRACKING = {
    OK: {"failure": FAILED, "loop": BROKEN},
    FAILED: {"rollback_started": ROLLED_BACK, "loop": BROKEN},
    ROLLED_BACK: {"failure": BROKEN, "loop": BROKEN},
    BROKEN: {},
}
BY_FLAG = "by_flag"  # ROLLED_BACK if AllRollbacksSuccessful was saved, else FAILED


class Saved:
    """A stored name: the step at which a restarted agent goes on, and what the update then counts as."""

    __slots__ = ("considered", "name", "resume")

    def __init__(self, name: str, resume: str, considered: str) -> None:
        self.name = name
        self.resume = resume
        self.considered = considered


SAVED = (
    #     stored name                 goes on at                considered
    Saved("update-store", "cleanup", ROLLED_BACK),
    # ours: a pause survives a restart
    *(Saved(step.pause_save, step.name, OK) for step in DAEMON if step.work.kind == "control"),
    Saved("reboot", "reboot.verify", OK),
    Saved("update-after-commit", "commit.after", OK),  # saved again: a script that always kills is a loop
    Saved("update-after-first-commit", "commit.after", OK),  # written by 3.5
    Saved("rollback", "rollback.enter", ROLLED_BACK),
    Saved("rollback-reboot", "rollback_reboot.verify", ROLLED_BACK),
    Saved("after-rollback-reboot", "rollback_reboot.verify", ROLLED_BACK),
    Saved("verify-rollback-reboot", "rollback_reboot.verify", ROLLED_BACK),  # written by 3.5
    Saved("update-error", "failure.enter", BY_FLAG),
    Saved("cleanup", "cleanup", BY_FLAG),
    Saved("cleanup-after-success", "cleanup", OK),  # ours: a success is reported as one
    Saved("status-report-error", "idle.enter", OK),  # written by 3.5
    # update-install, after-reboot, update-commit and every unknown name:
    Saved("", "rollback.check", FAILED),
)
SAVED_AFTER_SUCCESS = {"cleanup": "cleanup-after-success"}  # what a name is while nothing has failed
_SAVED_BY_NAME = {saved.name: saved for saved in SAVED}

# InState of a standalone update: the step at which a later command goes on, and which commands may.
IN_STATE = {
    "Before_ArtifactInstall_Enter": "save.before_install",
    "ArtifactInstall_Enter": "save.rollback",
    "Before_ArtifactCommit_Enter": "save.before_commit",
    "ArtifactCommit_Enter": "save.rollback",
    "Before_ArtifactCommit_Leave": "save.before_commit_leave",
    "ArtifactCommit_Leave": "commit.leave",
    "ArtifactRollback_Enter": "save.rollback",
    "ArtifactFailure_Enter": "save.failure",
    "Cleanup": "save.cleanup",
}
COMMIT_FROM = ("Before_ArtifactCommit_Enter", "ArtifactCommit_Enter")
ROLLBACK_NOT_FROM = ("ArtifactCommit_Leave", "ArtifactFailure_Enter", "Cleanup")

STOP_BEFORE = tuple(
    step.work.subject.removeprefix("Before_")
    for step in STANDALONE
    if step.work.kind == "save" and "stop" in step.edges
)
# A save is refused when this many went before it in one update (state-machine.md section 8).
MAX_SAVES = 28


def resume_after(stored_name: str) -> Saved:
    """Where an update stored under this name goes on after a restart."""
    return _SAVED_BY_NAME.get(stored_name, _SAVED_BY_NAME[""])


def points_ahead(step_name: str) -> list[str]:
    """The pause points that a deployment at this step may still reach, the one it is at included.

    The rows of DAEMON stand in the order of the way through them.
    """
    names = [step.name for step in DAEMON]
    rest = DAEMON[names.index(step_name) :]
    return [step.work.subject for step in rest if step.work.kind == "control"]


# The part of a step's name before the dot belongs to the state whose scripts it runs.
_STATE_OF_STEPS = {
    step.name.partition(".")[0]: step.work.state for step in DAEMON if step.work.kind == "hook"
}
_STATE_OF_STEPS["prepare"] = "Download"  # of commands; in the daemon it is a part of `download`


def state_of(step: Step) -> str:
    """The state in the field's sense that a step belongs to; empty for reports and other steps between states."""
    if step.work.kind == "control":
        return step.work.state
    return _STATE_OF_STEPS.get(step.name.partition(".")[0], "")


def next_step(step: Step, event: str) -> str:
    """The step after `step` ended in `event`. `loop` leads to the loop breaker wherever it happens."""
    return "loop" if event == "loop" else step.edges[event]
