"""Jinja over the columns of a row, in a sandbox: it reads the row and no more, and what it writes is bounded.

A template says a text, a filter whether a row is used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from gspo_cli.errors import UserError

LONGEST = 1_000_000  # characters of a text
FAULTS = (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError)
T = TypeVar("T")


class Sandbox(ImmutableSandboxedEnvironment):
    """What is not there is an error, and so is a text or a list that is repeated, or a large power."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """A product or a power of numbers. Raises TypeError for other products and for large powers."""
        numbers = all(isinstance(side, int | float) for side in (left, right))
        if not numbers or (operator == "**" and not (abs(left) < LONGEST and abs(right) <= 100)):
            raise TypeError(f"{operator} is for numbers here, which must be small where they are powers")
        return super().call_binop(context, operator, left, right)


SANDBOX = Sandbox(undefined=StrictUndefined)


class RowTemplate:
    """The text that the template `text` of the setting `key` says of a row. Raises UserError, when made, if
    it is not a template."""

    def __init__(self, key: str, text: str) -> None:
        self._said = f"{key}={text!r:.80}"
        self._template = _tried(self._said, "", lambda: SANDBOX.from_string(text))

    def __call__(self, row: Mapping[str, Any], where: str) -> str:
        """Raises UserError where the template does not suit the row."""
        return _tried(self._said, where, lambda: self._rendered(row))

    def _rendered(self, row: Mapping[str, Any]) -> str:
        pieces, size = [], 0
        for piece in self._template.generate(_context(row)):
            pieces.append(piece)
            size += len(piece)
            if size > LONGEST:
                raise ValueError(f"it writes more than {LONGEST:,} characters")
        text = "".join(pieces)
        text.encode()  # half of a character would end a run later
        return text


class RowFilter:
    """Whether the expression `text` of the setting `key` holds for a row. Raises UserError, when made, if it
    is not an expression."""

    def __init__(self, key: str, text: str) -> None:
        self._said = f"{key}={text!r:.80}"
        self._holds = _tried(
            self._said, "", lambda: SANDBOX.compile_expression(text, undefined_to_none=False)
        )

    def __call__(self, row: Mapping[str, Any], where: str) -> bool:
        """Raises UserError where the expression does not suit the row."""
        return _tried(self._said, where, lambda: bool(self._holds(_context(row))))


def _context(row: Mapping[str, Any]) -> dict[str, Any]:
    """The columns by name, and all of them as `row`, for names that are no words."""
    return {"row": row, **row}


def _tried(said: str, where: str, action: Callable[[], T]) -> T:
    try:
        return action()
    except FAULTS as error:
        place = f"does not suit {where}" if where else "is not usable"
        raise UserError(f"{said}: {place} ({error}); correct it") from error
