"""The evaluator of arithmetic that a model wrote: exact, small, and impossible to keep busy."""

from __future__ import annotations

import time
from fractions import Fraction

import pytest

from gspo_cli.tasks.expression import ExpressionError, evaluate


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3*5+7", Fraction(22)),
        ("3*(5+7)", Fraction(36)),
        ("-3 + 5 * 7", Fraction(32)),
        ("1/3+1/3+1/3", Fraction(1)),  # 1.0 in floats only by luck
        ("8/(3-8/3)", Fraction(24)),  # floats give 23.99...
        (" 7\n", Fraction(7)),
    ],
)
def test_values_are_exact_fractions(text, value):
    assert evaluate(text).value == value


def test_the_numbers_written_are_reported_from_left_to_right():
    assert evaluate("(12-3)*3").numbers == (12, 3, 3)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "nothing",
        "3+",
        "(3",
        "3)",
        "()",
        "2**3",
        "7//2",
        "+3",
        "1.5",
        "3 5",
        "1,2",
        "07",
        "1_000",
        "1or 2",
        "x",
        "3*5+7=22",
        "__import__('os')",
        "\u0663+1",  # an Arabic digit
        "1\x00",
    ],
)
def test_what_is_no_expression_is_an_error(text):
    with pytest.raises(ExpressionError):
        evaluate(text)


def test_dividing_by_zero_is_an_error():
    with pytest.raises(ExpressionError, match="divides by zero"):
        evaluate("5/(3-3)")


@pytest.mark.parametrize(
    "text",
    [
        "9**9**9",
        "9" * 100_000,
        "(" * 100_000 + "1" + ")" * 100_000,
        "-" * 190 + "1",
        "(" * 95 + "1" + ")" * 95 + "**9",
        "1+" * 10_000_000 + "1",
        "99999999*" * 100_000 + "1",
    ],
    ids=lambda text: text[:9],
)
def test_hostile_expressions_are_refused_within_a_second(text):
    start = time.monotonic()
    with pytest.raises(ExpressionError):
        evaluate(text)
    assert time.monotonic() - start < 1


def test_the_longest_allowed_expression_is_evaluated():
    assert evaluate("1+" * 49 + "1").value == 50
