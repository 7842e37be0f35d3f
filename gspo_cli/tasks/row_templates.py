"""Jinja over the columns of a row, in a sandbox: it reads the row and no more, and what it writes is bounded.

A template says a text, a filter whether a row is used. A value that is null may be tested, but never written:
it would become the word None."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, TypeVar

from jinja2 import StrictUndefined, TemplateError
from jinja2.filters import FILTERS
from jinja2.sandbox import ImmutableSandboxedEnvironment

from gspo_cli.errors import UserError
from gspo_cli.tasks.problem_index import UnusableRow

LONGEST = 1_000_000  # characters of a text
# widths of formats that are long, or arguments, as in %1000000d, %*d, {:1000000} and {:{}}
WIDE_PERCENT = re.compile(r"%(\([^)]*\))?[^%a-zA-Z]*(\*|\d{7})")
WIDE_BRACES = re.compile(r"\{[^{}]*(\{|[^{}\d]\d{7})")
SIZED = ("batch", "center", "indent", "slice", "tojson")  # filters whose arguments are sizes of the result
FAULTS = (
    TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
    RecursionError,
    MemoryError,
)
ALL = 'row is all columns; write row["name"] for one of them, row["row"] where that is its name'
T = TypeVar("T")


class NullError(ValueError):
    """A value that is null would be written as a text."""


class MethodNameError(TypeError):
    """A column, or a key in one, has the name of a method, here `name`."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class Null:
    """A value that is null: false, equal to none, without attributes, and not a text."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __str__(self) -> str:
        raise NullError(self._name)

    __repr__ = __str__

    def __format__(self, form: str) -> str:
        return str(self)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name) if name.startswith("__") else NullError(self._name)

    def __bool__(self) -> bool:
        return False

    def __eq__(self, other: object) -> bool:
        return other is None or isinstance(other, Null)

    def __hash__(self) -> int:
        return hash(None)


class WholeRow(dict[str, Any]):
    """All columns of a row by name."""

    __hash__ = None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mapping):
            raise TypeError(ALL)
        return super().__eq__(other)


class Sandbox(ImmutableSandboxedEnvironment):
    """What is not there is an error, and so is a text or a list that is repeated, a text that is filled up to
    more than LONGEST characters, or a large power."""

    intercepted_binops = frozenset({"*", "**", "%"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """A product or a power of numbers, or a remainder or format. Raises TypeError for other products, for
        large powers and for wide formats."""
        if operator == "%":
            _require_narrow(isinstance(left, str) and WIDE_PERCENT.search(left))
            return super().call_binop(context, operator, left, right)
        numbers = all(isinstance(side, int | float) for side in (left, right))
        if not numbers or (operator == "**" and not (abs(left) < LONGEST and abs(right) <= 100)):
            raise TypeError(f"{operator} is for numbers here, which must be small where they are powers")
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, called: Any, /, *arguments: Any, **named: Any) -> Any:
        """A call. Raises TypeError where a method of a value makes too long a text of it."""
        method = getattr(called, "__wrapped__", called)  # the library wraps `format`
        value, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if isinstance(value, str) and name in ("format", "format_map"):
            _require_narrow(WIDE_BRACES.search(value.replace("{{", "")))
        elif isinstance(value, str | bytes | int):
            _require_narrow(_has_large(arguments, named))
        return super().call(context, called, *arguments, **named)

    def getattr(self, obj: Any, attribute: str) -> Any:
        """`obj.attribute`. Raises MethodNameError where that is a method although there is such a key."""
        if isinstance(obj, Mapping) and attribute in obj and hasattr(obj, attribute):
            raise MethodNameError(attribute)
        return super().getattr(obj, attribute)


def _require_narrow(wide: object) -> None:
    if wide:
        raise TypeError(f"it fills up a text to more than {LONGEST:,} characters, or to a width in the row")


def _has_large(arguments: Sequence[Any], named: Mapping[str, Any]) -> bool:
    return any(isinstance(each, int) and each > LONGEST for each in (*arguments, *named.values()))


def _sized(name: str) -> Callable[..., Any]:
    """The filter `name` of the library. It raises TypeError where its arguments are too large."""

    @wraps(FILTERS[name])
    def narrow(*arguments: Any, **named: Any) -> Any:
        _require_narrow(_has_large(arguments, named))
        return FILTERS[name](*arguments, **named)

    return narrow


def _formatted(form: Any, *arguments: Any, **named: Any) -> str:
    """For `format`, which may not write wide texts."""
    _require_narrow(WIDE_PERCENT.search(str(form)))
    return FILTERS["format"](form, *arguments, **named)


def _marked(value: Any, name: str) -> Any:
    """`value` with Null for each null, also within; `name` is where it is."""
    if isinstance(value, Mapping):
        return {key: _marked(each, str(key)) for key, each in value.items()}
    if isinstance(value, list):
        return [_marked(each, name) for each in value]
    return Null(name) if value is None else value


def _written(value: Any) -> Any:
    """A value that a template writes. Raises where its text would be Python's, and not the row's."""
    if value is None:
        raise NullError("a value")
    if isinstance(value, WholeRow):
        raise TypeError(ALL)
    if callable(value) and not isinstance(value, StrictUndefined):
        raise TypeError(f"{getattr(value, '__name__', 'it')} is a method, not a value")
    return value


def _json(value: Any, **settings: Any) -> str:
    """For `tojson`, which may write null."""

    def plain(other: Any) -> Any:
        if isinstance(other, Null):
            return None
        raise TypeError(f"{type(other).__name__} is not JSON")

    return json.dumps(value, default=plain, **settings)


SANDBOX = Sandbox(undefined=StrictUndefined, finalize=_written)
SANDBOX.tests["none"] = lambda value: value is None or isinstance(value, Null)
SANDBOX.policies["json.dumps_function"] = _json
SANDBOX.filters |= {**{name: _sized(name) for name in SIZED}, "format": _formatted}


class RowTemplate:
    """The text that the template `text` of the setting `key` says of a row. Raises UserError, when made, if
    it is not a template."""

    def __init__(self, key: str, text: str) -> None:
        self._text, self._said = text, f"{key}={text!r:.80}"
        self._template = _tried(self._said, "", text, lambda: SANDBOX.from_string(text))

    def __call__(self, row: Mapping[str, Any], where: str) -> str:
        """Raises UserError where the template does not suit the row, UnusableRow where it writes a null."""
        return _tried(self._said, where, self._text, lambda: self._rendered(row))

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
        self._text, self._said = text, f"{key}={text!r:.80}"
        self._holds = _tried(
            self._said, "", text, lambda: SANDBOX.compile_expression(text, undefined_to_none=False)
        )

    def __call__(self, row: Mapping[str, Any], where: str) -> bool:
        """Raises UserError where the expression does not suit the row, UnusableRow where it makes a text of a
        null."""
        return _tried(self._said, where, self._text, lambda: bool(self._holds(_context(row))))


def _context(row: Mapping[str, Any]) -> dict[str, Any]:
    """The columns by name, and all of them as `row`, for names that are no words, or that of a method."""
    columns = {name: _marked(value, name) for name, value in row.items()}
    return {**columns, "row": WholeRow(columns)}


def _tried(said: str, where: str, text: str, action: Callable[[], T]) -> T:
    place = f"does not suit {where}" if where else "is not usable"
    try:
        return action()
    except NullError as error:
        raise UnusableRow(f"{where}: {error} is null, and {said} takes it for a text") from error
    except MethodNameError as error:
        before = re.search(rf"([\w.\[\]'\"]*)\.{re.escape(error.name)}\b", text)
        owner = before[1] if before else "row"
        fix = f'{owner}["{error.name}"] in place of {owner}.{error.name}, which is a method'
        raise UserError(f"{said}: {place}; write {fix}") from error
    except FAULTS as error:
        reason = "it needs too much memory" if isinstance(error, MemoryError) else error
        raise UserError(f"{said}: {place} ({reason}); correct it") from error
