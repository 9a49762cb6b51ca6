# SPDX-License-Identifier: Apache-2.0
"""What a run does, decided before it begins: the same seed gives the same cuts. No I/O."""

from __future__ import annotations

import random

# How often each is deployed. The broken ones must end where they began, cut or not.
VARIANTS = {"good": 7, "refusing": 1, "panic": 1, "no-kernel": 1}
SECOND_CUT = 0.15
"""How often the start after a cut is cut, too."""


class Cut:
    """One power cut. Moments are parts of what an undisturbed update, or start, takes on this machine."""

    __slots__ = ("again", "moment", "number", "variant")

    def __init__(self, number: int, moment: float, again: float | None, variant: str) -> None:
        self.number = number
        self.moment = moment
        """0: the board has just come up; 1: an undisturbed update would be over."""
        self.again = again
        """The start that follows is cut as well: 0 power on, 1 about when the shell is there."""
        self.variant = variant
        """What is deployed if a deployment begins before this cut."""

    def __repr__(self) -> str:
        again = "" if self.again is None else f", then {self.again:.2f} of a start"
        return f"cut {self.number}: {self.moment:.2f} of an update{again}"


def make(seed: int, cuts: int) -> list[Cut]:
    """The cuts of a run."""
    dice = random.Random(seed)
    names, weights = list(VARIANTS), list(VARIANTS.values())
    planned = []
    for number in range(1, cuts + 1):
        moment = dice.random()
        again = dice.random() if dice.random() < SECOND_CUT else None
        planned.append(Cut(number, moment, again, dice.choices(names, weights)[0]))
    return planned
