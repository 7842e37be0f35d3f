"""The tools of the retail shop that only look things up."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from gspo_cli.tasks.tau.database import Book
from gspo_cli.tasks.tau.writes import RefusedError

LONGEST_EXPRESSION = 100
TOKENS = re.compile(r"\d+(?:\.\d+)?|[-+*/()]")


def find_user_id_by_email(book: Book, email: str) -> str:
    """The user id; letter case does not matter."""
    return _found(book.shop.ids_by_email.get(email.lower()), "user")


def find_user_id_by_name_zip(book: Book, first_name: str, last_name: str, zip: str) -> str:
    """The user id; letter case does not matter."""
    return _found(book.shop.ids_by_name_zip.get((first_name.lower(), last_name.lower(), zip)), "user")


def get_user_details(book: Book, user_id: str) -> str:
    """The user's record as JSON."""
    return json.dumps(_found(book.read("users", user_id), "user"))


def get_order_details(book: Book, order_id: str) -> str:
    """The order as JSON."""
    return json.dumps(_found(book.read("orders", order_id), "order"))


def get_product_details(book: Book, product_id: str) -> str:
    """The product with all its variants as JSON."""
    return json.dumps(_found(book.read("products", product_id), "product"))


def get_item_details(book: Book, item_id: str) -> str:
    """One variant as JSON."""
    return json.dumps(_found(book.shop.variants.get(item_id), "item"))


def list_all_product_types(book: Book) -> str:
    """Product ids by name, as JSON."""
    return json.dumps(dict(sorted((product["name"], key) for key, product in book.shop.products.items())))


def calculate(book: Book, expression: str) -> str:
    """The value of + - * / and parentheses, rounded to cents; computed here, never executed."""
    spaceless = "".join(expression.split())
    tokens = TOKENS.findall(spaceless)
    if len(spaceless) > LONGEST_EXPRESSION or "".join(tokens) != spaceless:
        raise RefusedError(f"write numbers, + - * / and parentheses, at most {LONGEST_EXPRESSION} characters")
    tokens.reverse()  # the next token is the last
    try:
        value = _sum(tokens)
    except (IndexError, ValueError, ZeroDivisionError) as error:
        raise RefusedError("this is not an expression that has a value") from error
    if tokens:
        raise RefusedError("this is not an expression that has a value")
    return f"{float(value):.2f}"


def think(book: Book, thought: str) -> str:
    """Nothing happens."""
    return "ok"


LOOKUPS: Mapping[str, Callable[..., str]] = {
    lookup.__name__: lookup
    for lookup in (
        find_user_id_by_email,
        find_user_id_by_name_zip,
        get_user_details,
        get_order_details,
        get_product_details,
        get_item_details,
        list_all_product_types,
        calculate,
        think,
    )
}


def _found(value: Any, kind: str) -> Any:
    if value is None:
        raise RefusedError(f"there is no such {kind}")
    return value


def _sum(tokens: list[str]) -> Fraction:
    value = _product(tokens)
    while tokens and tokens[-1] in "+-":
        sign = 1 if tokens.pop() == "+" else -1
        value += sign * _product(tokens)
    return value


def _product(tokens: list[str]) -> Fraction:
    value = _factor(tokens)
    while tokens and tokens[-1] in "*/":
        value = value * _factor(tokens) if tokens.pop() == "*" else value / _factor(tokens)
    return value


def _factor(tokens: list[str]) -> Fraction:
    token = tokens.pop()
    if token == "-":
        return -_factor(tokens)
    if token != "(":
        return Fraction(token)
    value = _sum(tokens)
    if tokens.pop() != ")":
        raise ValueError("a parenthesis is not closed")
    return value
