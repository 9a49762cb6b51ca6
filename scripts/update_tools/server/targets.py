# SPDX-License-Identifier: Apache-2.0
"""Which devices a filter means: the management API's predicates over a device's attributes. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from update_tools.server.faults import Unprocessable

SCOPES = ("inventory", "identity", "system")
OPERATORS = ("$eq", "$ne", "$gt", "$gte", "$lt", "$lte", "$in", "$nin", "$exists")
MAX_TERMS = 50

Attributes = Mapping[tuple[str, str], Any]


@dataclass(frozen=True)
class Term:
    """One predicate; a device must meet all terms of a filter."""

    attribute: str
    operator: str
    value: Any
    scope: str = "inventory"

    def document(self) -> dict[str, Any]:
        """As the API has it."""
        return {"scope": self.scope, "attribute": self.attribute, "type": self.operator, "value": self.value}


def parse(value: Any) -> list[Term]:
    """A filter's terms from a management request. Raises Unprocessable naming the field that is wrong."""
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_TERMS:
        raise Unprocessable(f"filter.terms must be a list of 1 to {MAX_TERMS} terms")
    terms = []
    for number, entry in enumerate(value, 1):
        where = f"filter term {number}"
        if not isinstance(entry, dict) or not isinstance(entry.get("attribute"), str):
            raise Unprocessable(f"{where} must be an object with an attribute")
        if not _is_text(entry):
            raise Unprocessable(f"{where} has half a surrogate pair in it")
        operator, scope = entry.get("type", "$eq"), entry.get("scope", "inventory")
        if operator not in OPERATORS:
            raise Unprocessable(f"{where}: type {operator!r:.40} is not known", hint=" ".join(OPERATORS))
        if scope not in SCOPES:
            raise Unprocessable(f"{where}: scope {scope!r:.40} is not known", hint=" ".join(SCOPES))
        wanted = entry.get("value")
        values = wanted if isinstance(wanted, list) else [wanted]
        if operator in ("$in", "$nin") and values is not wanted:
            raise Unprocessable(f"{where}: {operator} needs a list of values")
        if operator == "$exists" and not isinstance(wanted, bool):
            raise Unprocessable(f"{where}: $exists needs true or false")
        if not all(isinstance(each, str | int | float) for each in values):
            raise Unprocessable(f"{where}: value must be text, a number, or a list of such")
        terms.append(Term(entry["attribute"], operator, wanted, scope))
    return terms


def _is_text(value: Any) -> bool:
    """Whether all texts in it can be stored; JSON may bring half a surrogate pair."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def attributes(
    *,
    identity: str,
    inventory: Iterable[Mapping[str, Any]] | None,
    device_type: str,
    artifact_name: str,
    group: str,
) -> dict[tuple[str, str], Any]:
    """What a device is known by. What it polls with counts where its inventory has no such attribute."""
    known: dict[tuple[str, str], Any] = {
        ("inventory", "device_type"): device_type,
        ("inventory", "artifact_name"): artifact_name,
    }
    known.update({("inventory", entry["name"]): entry["value"] for entry in inventory or ()})
    known.update({("identity", name): value for name, value in json.loads(identity).items()})
    if group:
        known["system", "group"] = group
    return known


def matches(terms: Sequence[Term], known: Attributes) -> bool:
    """Whether a device meets all terms. An attribute with several values meets one if any value does."""
    return all(_meets(term, known) for term in terms)


def _meets(term: Term, known: Attributes) -> bool:
    value = known.get((term.scope, term.attribute))
    if term.operator == "$exists":
        return (value is not None) is term.value
    values = value if isinstance(value, list) else [] if value is None else [value]
    if term.operator in ("$ne", "$nin"):
        unwanted = term.value if isinstance(term.value, list) else [term.value]
        return not any(_same(each, other) for each in values for other in unwanted)
    if term.operator in ("$eq", "$in"):
        wanted = term.value if isinstance(term.value, list) else [term.value]
        return any(_same(each, other) for each in values for other in wanted)
    return any(_compare(term.operator, each, term.value) for each in values)


def _same(one: Any, other: Any) -> bool:
    """Inventory is text on the wire: 6 and "6" are the same."""
    return str(one) == str(other)


def _compare(operator: str, one: Any, other: Any) -> bool:
    left: float | str
    right: float | str
    try:
        left, right = float(one), float(other)
    except (TypeError, ValueError):
        left, right = str(one), str(other)
    return _is_ordered(operator, left, right)


def _is_ordered(operator: str, left: Any, right: Any) -> bool:
    if operator.startswith("$gt"):
        return bool(left > right or (operator == "$gte" and left == right))
    return bool(left < right or (operator == "$lte" and left == right))
