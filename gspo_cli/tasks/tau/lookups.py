"""The tools of the retail shop that only look things up."""

from __future__ import annotations

import json
import re
from fractions import Fraction
from typing import Annotated, Any

from gspo_cli.tasks.tau.database import RetailDatabase
from gspo_cli.tasks.tau.writes import OrderId, UserId, Zip
from gspo_cli.tasks.tools import Example, RefusedError, tool

Email = Annotated[str, "email of the user", Example("sara.doe@example.com")]
ProductId = Annotated[str, "id of the product, not of an item", Example("3000000001")]
ItemId = Annotated[str, "id of the variant", Example("1000000001")]
Expression = Annotated[str, "what to compute", Example("(3 + 4) * 2")]
Thought = Annotated[str, "what you think", Example("First I need the order.")]

LONGEST_EXPRESSION = 100
TOKENS = re.compile(r"\d+(?:\.\d+)?|[-+*/()]")


@tool
def find_user_id_by_email(database: RetailDatabase, /, email: Email) -> str:
    """Find the id of a user by their email."""
    return _found(database.data.ids_by_email.get(email.lower()), "user")


@tool
def find_user_id_by_name_zip(
    database: RetailDatabase,
    /,
    first_name: Annotated[str, "first name", Example("Sara")],
    last_name: Annotated[str, "last name", Example("Doe")],
    zip: Zip,
) -> str:
    """Find the id of a user who does not know the email."""
    return _found(database.data.ids_by_name_zip.get((first_name.lower(), last_name.lower(), zip)), "user")


@tool
def get_user_details(database: RetailDatabase, /, user_id: UserId) -> str:
    """Show a user's profile, payment methods and orders."""
    return json.dumps(_found(database.read("users", user_id), "user"))


@tool
def get_order_details(database: RetailDatabase, /, order_id: OrderId) -> str:
    """Show the status, items, address and payments of an order."""
    return json.dumps(_found(database.read("orders", order_id), "order"))


@tool
def get_product_details(
    database: RetailDatabase,
    /,
    product_id: ProductId,
) -> str:
    """Show the variants of a product with their item ids, options and prices."""
    return json.dumps(_found(database.read("products", product_id), "product"))


@tool
def get_item_details(database: RetailDatabase, /, item_id: ItemId) -> str:
    """Show one variant of a product."""
    return json.dumps(_found(database.data.variants.get(item_id), "item"))


@tool
def list_all_product_types(database: RetailDatabase, /) -> str:
    """List the products with their ids."""
    return json.dumps(dict(sorted((product["name"], key) for key, product in database.data.products.items())))


@tool
def calculate(database: RetailDatabase, /, expression: Expression) -> str:
    """Compute with + - * / and parentheses.

    The value is rounded to cents. The expression is evaluated here and never executed."""
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


@tool
def think(database: RetailDatabase, /, thought: Thought) -> str:
    """Note a thought; nothing happens."""
    return "ok"


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
