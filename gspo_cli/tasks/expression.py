"""Arithmetic that a model wrote, evaluated exactly and never executed.

Only integers, + - * /, unary minus and parentheses are allowed; the signs of print (× ÷ −) are read as
these. Without powers, no short text has a huge value, and caps on length and depth bound the work; scorers
that call `eval` hang on `9**9**9`."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

MAX_LENGTH = 200
MAX_DEPTH = 50
ALLOWED = re.compile(r"[0-9+\-*/() ]+")
SIGNS = str.maketrans({"×": "*", "·": "*", "÷": "/", "\u2212": "-"})
OPERATIONS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


class ExpressionError(ValueError):
    """The text is not an expression of this small language, or it divides by zero."""


@dataclass(frozen=True)
class Expression:
    """The exact value of an expression, and the integers written in it from left to right."""

    value: Fraction
    numbers: tuple[int, ...]


def evaluate(text: str) -> Expression:
    """The value and the numbers of `text`. Raises ExpressionError if it is not such an expression."""
    text = text.strip().translate(SIGNS)
    if len(text) > MAX_LENGTH:
        raise ExpressionError(f"longer than {MAX_LENGTH} characters")
    if not ALLOWED.fullmatch(text):  # this also avoids the parser's warnings
        raise ExpressionError("only digits, + - * / and parentheses are allowed")
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:  # what ast.parse documents
        raise ExpressionError(f"not an expression: {error}") from error
    numbers: list[int] = []
    return Expression(_value(tree.body, MAX_DEPTH, numbers), tuple(numbers))


def _value(node: ast.expr, depth: int, numbers: list[int]) -> Fraction:
    if depth == 0:
        raise ExpressionError(f"nested deeper than {MAX_DEPTH}")
    match node:
        case ast.Constant(value=int(number)):
            numbers.append(number)
            return Fraction(number)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, depth - 1, numbers)
        case ast.BinOp(left=left, op=symbol, right=right) if type(symbol) in OPERATIONS:
            first, second = _value(left, depth - 1, numbers), _value(right, depth - 1, numbers)
            try:
                return OPERATIONS[type(symbol)](first, second)
            except ZeroDivisionError as error:
                raise ExpressionError("divides by zero") from error
    raise ExpressionError("only + - * / and unary minus are allowed")
