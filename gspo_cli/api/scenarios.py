"""Scenarios and queries as the GSPO guide writes them, as the scenarios that `task=scenarios` reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gspo_cli.config.checks import require

SAID = ("opening", "user_responses", "goals", "beats")  # a row with one of these says what the user says
TEXTS = ("query", "prompt", "context", "user_goal")  # what the user says in a row without them, in this order
NAMES = {"user_goal": "wants", "query": "context", "prompt": "context"}  # how a scenario calls the others


def as_scenarios(rows: Any, what: str) -> list[Any]:
    """`rows`, a list, as scenarios. A text is a user who says it and nothing more. A dict without an `id` is
    numbered, and one that does not say what the user says opens with its `query`, `prompt`, `context` or
    `user_goal`. Anything else is left to the reader of scenarios. Raises UserError, with `what` they are,
    unless they are a list with an entry."""
    usable = isinstance(rows, Sequence) and not isinstance(rows, str | bytes)
    require(usable, f"{what}: is a {type(rows).__name__}; give a list of texts or dicts")
    require(len(rows) > 0, f"{what}: is empty; give at least two, one of which is held out")
    return [_as_scenario(row, f"{what}-{place}") for place, row in enumerate(rows)]


def has_goals(row: Any) -> bool:
    """Whether a conversation over the scenario `row` is scored by what it reaches."""
    return isinstance(row, Mapping) and bool(row.get("goals"))


def _as_scenario(row: Any, name: str) -> Any:
    if isinstance(row, str):
        return {"id": name, "user_responses": [row]}
    if not isinstance(row, Mapping):
        return row
    found = {"id": name, **row}
    if not any(key in row for key in SAID):
        text = next((row[key] for key in TEXTS if row.get(key)), None)
        if text is not None:
            found["user_responses"] = [text]
    for name_there, name_here in NAMES.items():
        if name_there in found:
            found.setdefault(name_here, found.pop(name_there))
    return found
