"""Statistics that add up over micro-batches, minibatches and ranks."""

from __future__ import annotations

import operator
from dataclasses import field, fields
from typing import Any, Self


class Accumulator:
    """Base of dataclasses that are merged field by field: numbers, tuples and accumulators are summed,
    dictionaries are merged by key, and fields declared by `minimum()` or `maximum()` keep the smaller or
    larger value. None means that there is no value yet."""

    def __add__(self, other: Self) -> Self:
        values = {}
        for each in fields(self):  # type: ignore[arg-type]  # subclasses are dataclasses
            combine = each.metadata.get("combine", operator.add)
            values[each.name] = _combined(combine, getattr(self, each.name), getattr(other, each.name))
        return type(self)(**values)


def minimum(start: float | None = float("inf")) -> Any:
    """A field that keeps the smallest value."""
    return field(default=start, metadata={"combine": min})


def maximum(start: float | None = float("-inf")) -> Any:
    """A field that keeps the largest value."""
    return field(default=start, metadata={"combine": max})


def _combined(combine: Any, one: Any, other: Any) -> Any:
    if one is None or other is None:
        return other if one is None else one
    if isinstance(one, dict):
        return {key: _combined(combine, one.get(key), other.get(key)) for key in {**one, **other}}
    return combine(one, other)
