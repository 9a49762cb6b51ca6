# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: E501 - one row a line
"""Everything that a rehearsal can find, as a table: its name, how bad it is, and what to do about it. No I/O.

Names that `ota inspect` has as well mean the same there.
"""

from __future__ import annotations

from update_tools import findings
from update_tools.findings import ERROR, WARNING
from update_tools.inspect.findings import CATALOGUE as _INSPECT

__all__ = ["CATALOGUE", "ERROR", "WARNING", "Finding", "Findings"]

_SHARED = (
    "script-bad-name",
    "script-no-such-hook",
    "script-unreachable",
    "script-not-executable",
    "script-no-interpreter",
    "script-crlf",
    "script-empty",
    "scripts-version",
    "hook-invalid",
    "hook-program-missing",
)

# fmt: off
CATALOGUE: dict[str, tuple[str, str]] = {
    **{name: (_INSPECT[name][0], _INSPECT[name][-1]) for name in _SHARED},
    "hook-unreachable":       (ERROR,   "this payload never comes to that point: choose another one, or remove the hook"),
    "script-fails":           (ERROR,   "it fails an update in which nothing is wrong; its output says why"),
    "fails-on-failure-path":  (ERROR,   "after a failure less is there than after a success: check before use, and exit with 0"),
    "fails-when-repeated":    (ERROR,   "a device comes here again with the next update: make it do nothing where all is done (mkdir -p, rm -f)"),
    "fails-after-kill":       (ERROR,   "after a power cut /run and /tmp are empty and what was begun is half done: keep what is needed in $UPDATE_DATA_DIR"),
    "script-hangs":           (ERROR,   "it did not end: give what it waits for a limit (timeout 60 ...); the agent waits StateScriptTimeoutSeconds"),
    "retries-for-ever":       (ERROR,   "exit code 21 until StateScriptRetryTimeoutSeconds was over: it must come to a decision, or the limit is too short"),
    "not-idempotent":         (ERROR,   "write files as a whole instead of adding to them; leave out with --ignore what may grow"),
    "not-rolled-back":        (WARNING, "undo it in an ArtifactRollback or ArtifactFailure script, or leave it out with --ignore"),
    "leaves-process":         (ERROR,   "what a script starts must end with it: stop it, or have the service manager run it"),
    "output-cut":             (WARNING, "the server gets at least the last 10 KiB of a script's output, and may get no more: print less"),
    "writes-rootfs":          (WARNING, "the other slot does not have it, and a read-only root refuses it: keep it in $UPDATE_DATA_DIR"),
    "network-needed":         (ERROR,   "there may be no network at that moment: exit with 21 to be called again, or go on without"),
    "network-used":           (WARNING, "it went on without a network here; has it a limit for one that is slow?"),
    "hook-never-ends":        (ERROR,   "it held until its limit, or for ever: there must be a way on without a person"),
    "hook-breaks":            (ERROR,   "its program must exit with 0, 1 or 21 within 30 s; whatever else it does keeps the update waiting"),
    "hook-fails-update":      (ERROR,   "it fails an update in which nothing is wrong"),
    "never-ran":              (WARNING, "a script before it in the same hook fails each time, or something takes it away or its right to be executed"),
    "update-fails":           (ERROR,   "no script or program of a hook failed: the payload's module, or a hook whose limit ends in failure"),
    "update-stuck":           (ERROR,   "the update came to no end; the log of this scenario says where"),
    "bashism":                (WARNING, "the device's /bin/sh may be BusyBox: write it in POSIX sh, or begin it with #!/bin/bash"),
}
# fmt: on


class Finding:
    """One flaw: what, of which script or hook, in which scenarios it was seen, and what to do."""

    __slots__ = ("hint", "name", "scenarios", "severity", "what", "where")

    def __init__(self, name: str, where: str, what: str) -> None:
        self.name = name
        self.severity, self.hint = CATALOGUE[name]
        self.where = where
        self.what = what
        self.scenarios: list[str] = []

    def document(self) -> dict[str, object]:
        """For JSON."""
        return {
            name: getattr(self, name) for name in ("severity", "name", "where", "what", "hint", "scenarios")
        }


class Findings(findings.Findings[Finding]):
    """What was found. Each name and place is told once, with the scenarios that showed it."""

    def __init__(self) -> None:
        super().__init__(CATALOGUE)

    def add(self, name: str, where: str, what: str, scenario: str = "") -> None:
        """A finding of the catalogue."""
        finding = self._found.setdefault((name, where), Finding(name, where, what))
        if scenario and scenario not in finding.scenarios:
            finding.scenarios.append(scenario)

    def has(self, where: str, *names: str) -> bool:
        """Whether one of these was found there."""
        return any((name, where) in self._found for name in names)
