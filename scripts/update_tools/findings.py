# SPDX-License-Identifier: Apache-2.0
"""What `ota inspect` and `ota rehearse` share: findings of a catalogue, counted, errors first. No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable, Iterator

ERROR, WARNING = "error", "warning"


class Named(Protocol):
    """A finding: its name in the catalogue, how bad it is, and its place."""

    name: str
    severity: str
    where: str


F = TypeVar("F", bound=Named)


class Findings(Generic[F]):
    """Each finding once, by a key; in the order of the catalogue's names, errors first."""

    def __init__(self, catalogue: Collection[str]) -> None:
        self._order = {name: number for number, name in enumerate(catalogue)}
        self._found: dict[Hashable, F] = {}

    def __iter__(self) -> Iterator[F]:
        found = self._found.values()
        return iter(sorted(found, key=lambda f: (f.severity != ERROR, self._order[f.name], f.where)))

    def __len__(self) -> int:
        return len(self._found)

    def count(self, severity: str) -> int:
        """How many there are of one severity."""
        return sum(finding.severity == severity for finding in self._found.values())
