# SPDX-License-Identifier: Apache-2.0
"""What may be true of a board after a power cut, after the start that follows, and at a deployment's end.

Everything is compared with what lies on the card, byte for byte: a system is known by its digest. No I/O.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

FINAL = ("success", "failure")
ORDER = ("downloading", "installing", "rebooting", "installing", "success")
"""What the server hears of an update that succeeds; a failure may come after any of the first four."""


class Problem:
    """What did not hold. `kind`: unbootable, untrue (a report), environment, state, stuck."""

    __slots__ = ("kind", "text")

    def __init__(self, kind: str, text: str) -> None:
        self.kind = kind
        self.text = text

    def __repr__(self) -> str:
        return f"{self.kind}: {self.text}"


class System:
    """A root file system: what it calls itself, and its digest on the card."""

    __slots__ = ("digest", "name")

    def __init__(self, name: str, digest: str) -> None:
        self.name = name
        self.digest = digest


class Update:
    """A deployment: the running system, the coming one, their partitions, and whether that is any good."""

    __slots__ = ("is_good", "new", "new_part", "old", "old_part")

    def __init__(self, old: System, old_part: int, new: System, new_part: int, *, is_good: bool) -> None:
        self.old, self.old_part = old, old_part
        self.new, self.new_part = new, new_part
        self.is_good = is_good


class Card:
    """What is on the card of a board that is off: the environment (None: both copies bad), and each slot."""

    __slots__ = ("digests", "values")

    def __init__(self, values: Mapping[str, str] | None, digests: Mapping[int, str]) -> None:
        self.values = values
        self.digests = digests

    @property
    def on_trial(self) -> bool:
        return (self.values or {}).get("upgrade_available") == "1"


def card(update: Update, found: Card, status: str) -> list[Problem]:
    """What is wrong with a card after a cut, when the server had been told `status` last."""
    if found.values is None:
        return [Problem("environment", "both copies of the boot environment are bad")]
    part, trial = found.values.get("mender_boot_part", ""), found.on_trial
    problems = []
    if found.digests[update.old_part] != update.old.digest:
        problems.append(Problem("state", f"the running system on partition {update.old_part} was written to"))
    new_is_whole = found.digests[update.new_part] == update.new.digest
    if part not in {str(update.old_part), str(update.new_part)}:
        problems.append(Problem("environment", f"mender_boot_part is {part!r}"))
    chosen_is_new = part == str(update.new_part)
    if trial and not chosen_is_new:
        problems.append(Problem("environment", "the running system itself is on trial"))
    if chosen_is_new and not new_is_whole:
        problems.append(Problem("unbootable", f"partition {part} is chosen, and not written whole"))
    if chosen_is_new and not trial and not update.is_good:
        problems.append(Problem("state", "a system that must not be committed is"))
    if status == "success" and (trial or not chosen_is_new):
        problems.append(Problem("untrue", "success was reported, and the update is not committed"))
    if status == "failure" and chosen_is_new:
        problems.append(Problem("untrue", "failure was reported, and the new system is chosen"))
    if status == "rebooting" and not new_is_whole:
        problems.append(Problem("untrue", "rebooting was reported before the new system was whole"))
    return problems


def start(update: Update, found: Card, part: int, name: str) -> list[Problem]:
    """What is wrong with what came up from a card."""
    values = found.values or {}
    chosen = values.get("mender_boot_part", "")
    allowed = {update.old_part: update.old.name, update.new_part: update.new.name}
    problems = []
    if allowed.get(part) != name:
        problems.append(Problem("state", f"partition {part} runs {name}, not {allowed.get(part)}"))
    expected = {int(chosen)} if chosen.isdigit() else set(allowed)
    if found.on_trial:
        # The boot of the trial may have been counted already, and not every new system starts.
        spent = values.get("bootcount", "0") != "0"
        expected = {update.old_part} if spent else {update.old_part, update.new_part}
    if part not in expected:
        problems.append(Problem("state", f"partition {part} came up, the environment says {chosen}"))
    return problems


def end(update: Update, statuses: Sequence[str], part: int, name: str, shown: str) -> list[Problem]:
    """What is wrong with a deployment that is over, when `name` runs and the agent calls it `shown`."""
    problems = []
    last = statuses[-1] if statuses else ""
    ended_new = (part, name) == (update.new_part, update.new.name)
    if not ended_new and (part, name) != (update.old_part, update.old.name):
        problems.append(Problem("state", f"partition {part} runs {name}: neither of the two"))
    if last not in FINAL:
        problems.append(Problem("stuck", f"the last status is {last!r}"))
    elif (last == "success") != ended_new:
        problems.append(Problem("untrue", f"{last} was reported, and {name} runs from partition {part}"))
    if ended_new and not update.is_good:
        problems.append(Problem("state", "a system that must not be committed is"))
    if shown != name:
        problems.append(Problem("untrue", f"the agent says that {shown} is installed, {name} runs"))
    told = list(statuses[:-1] if last == "failure" else statuses)
    if not _is_in_order(told, whole=last == "success"):
        problems.append(Problem("untrue", f"the statuses are out of order: {', '.join(statuses)}"))
    return problems


def _is_in_order(told: Sequence[str], *, whole: bool) -> bool:
    """Each status in its place, once or repeated; any may be missing, for a cut swallows reports."""
    place = 0
    for number, status in enumerate(told):
        if number and told[number - 1] == status:
            continue
        while place < len(ORDER) and ORDER[place] != status:
            place += 1
        if place == len(ORDER):
            return False
        place += 1
    return (place == len(ORDER)) == whole
