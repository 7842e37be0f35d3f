"""Files of a folder that may come from a stranger or a bad disk: only plain ones are read, none outside of
it, and numbers in them are floats."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gspo_cli.errors import UserError

LARGEST = 1e300  # of numbers that are computed with: sums of many are still floats
LARGEST_COMPARED = 1e70  # fourth powers are, too
DEEPEST = 50  # lists and objects inside each other, in what is compared
LARGEST_WHOLE = 2**53  # beyond it, whole numbers are not exact as floats, nor are sums of arrays of them
DIGITS = 300  # of whole numbers that are surely floats


def machine_json(text: str | bytes) -> Any:
    """What a file for programs holds. Whole numbers beyond all floats become infinite. Raises ValueError."""
    try:
        return json.loads(text, parse_int=lambda digits: (int if len(digits) <= DIGITS else float)(digits))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def bounded_json(text: str | bytes) -> Any:
    """`machine_json` that raises ValueError for a number beyond LARGEST_COMPARED, or not finite, and for more
    than DEEPEST lists and objects inside each other: what is computed with them calls itself as deeply.
    Numbers nearer to 0 than 1 / LARGEST_COMPARED are 0: their powers are. Whole numbers beyond LARGEST_WHOLE
    are floats."""
    try:
        value = json.loads(text, parse_int=_bounded, parse_float=_bounded, parse_constant=_bounded)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    inside = [value]
    for _ in range(DEEPEST):
        inside = [inner for outer in inside for inner in _items(outer)]
    if inside:
        raise ValueError("it is nested too deeply")
    return value


def _items(value: Any) -> Iterable[Any]:
    """What a list or an object holds; of all else nothing."""
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _bounded(text: str) -> int | float:
    value = float(text)
    if not abs(value) <= LARGEST_COMPARED:  # NaN is not, either
        raise ValueError(f"{text[:20]} is not a number of a run")
    if text.lstrip("-").isdecimal() and abs(int(text)) <= LARGEST_WHOLE:
        return int(text)
    return value if abs(value) * LARGEST_COMPARED >= 1 else 0.0


def is_bounded(value: Any) -> bool:
    """Whether a value is a number that can be computed with."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST


def require_plain(path: Path, links: bool = False) -> None:
    """Raise UserError if something at `path` is no plain file: reading a pipe or a device would not end. Nor
    may it be a link that leads out of its folder, unless `links` may."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):  # absent, which the reader says
        return
    if not stat.S_ISREG(mode):
        raise UserError(f"{path}: is not a plain file; put the file itself in its place")
    if not links and path.is_symlink() and not path.resolve().is_relative_to(path.parent.resolve()):
        raise UserError(
            f"{path}: is a link that leads out of its folder, to {path.resolve()}; put the file itself there"
        )
