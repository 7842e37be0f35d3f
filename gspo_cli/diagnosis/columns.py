"""The numbers of a long log in little memory: a column for each name, and rows that read like records."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from gspo_cli.plain_files import LARGEST

Columns = dict[str, "array[float]"]


class Row(Mapping[str, float]):
    """A line of a log. Whole numbers are int, as in JSON; what the line does not have is not a key."""

    __slots__ = ("_columns", "_place")

    def __init__(self, columns: Columns, place: int) -> None:
        self._columns, self._place = columns, place

    def __getitem__(self, name: str) -> float:
        value = self._columns[name][self._place]
        if math.isnan(value):
            raise KeyError(name)
        return int(value) if value.is_integer() else value

    def get(self, name: str, default: Any = None) -> Any:
        """The value as float, or `default`; faster than the one of Mapping."""
        column = self._columns.get(name)
        value = math.nan if column is None else column[self._place]
        return default if math.isnan(value) else value

    def __iter__(self) -> Iterator[str]:
        return (name for name, column in self._columns.items() if not math.isnan(column[self._place]))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def rows_of(records: Iterable[Mapping[str, Any]]) -> list[Row]:
    """The numbers of `records`, which are read one by one, within +-LARGEST: squares and sums of larger ones
    are no floats."""
    columns: Columns = {}
    count = 0
    for record in records:
        for name, value in record.items():
            if isinstance(value, int | float):
                column = columns.setdefault(name, array("d"))
                _fill(column, count)
                column.append(min(max(value, -LARGEST), LARGEST) if value == value else math.nan)
        count += 1
    for column in columns.values():
        _fill(column, count)
    return [Row(columns, place) for place in range(count)]


def _fill(column: array[float], length: int) -> None:
    """Make a column `length` long; NaN stands for what is missing."""
    if len(column) < length:
        column.extend([math.nan] * (length - len(column)))
