"""Human-readable changes that a conversation made to its records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LONGEST = 60  # characters of a value, which may be an agent's words


def differences(before: Any, after: Any) -> list[str]:
    """Fields of two records that differ, one line each: `items[0].price: 5.0 -> 7.5`."""
    old, new = _fields("", before), _fields("", after)
    return [
        f"{name}: {_shown(old.get(name))} -> {_shown(new.get(name))}"
        for name in {**old, **new}
        if old.get(name) != new.get(name)
    ]


def _fields(name: str, value: Any) -> dict[str, Any]:
    """Every value inside `value` that is not a mapping or a list, by its path."""
    if isinstance(value, Mapping):
        inside = {f"{name}.{key}" if name else str(key): part for key, part in value.items()}
    elif isinstance(value, list):
        inside = {f"{name}[{place}]": part for place, part in enumerate(value)}
    else:
        return {name: value}
    return {key: leaf for place, part in inside.items() for key, leaf in _fields(place, part).items()}


def _shown(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
