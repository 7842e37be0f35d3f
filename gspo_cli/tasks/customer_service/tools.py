"""What an agent of the shop can do. The tools do as they are told wherever the database allows it; whether
the agent was permitted to is the policy's question (`policy.py`).

An observation is one short line. It begins with `error:` where nothing was found or done."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from gspo_cli.tasks.customer_service.database import COLUMNS
from gspo_cli.tasks.customer_service.scenario import CITIES, REQUIRED_STATUS, Action, Order
from gspo_cli.tasks.tools import Parameter, Tool, ToolCall

ORDER_ID = Parameter("order_id", "number of the order, three digits")

TOOLS = {
    tool.name: tool
    for tool in (
        Tool(
            "find_customer",
            "Find a customer and list their orders with product and status.",
            (Parameter("email", "email address of the customer"),),
        ),
        Tool("get_order", "Show product, price, status and city of an order.", (ORDER_ID,)),
        Tool("cancel_order", "Cancel a pending order and refund its price.", (ORDER_ID,)),
        Tool("refund_order", "Refund the price of a delivered order.", (ORDER_ID,)),
        Tool(
            "change_address",
            "Send a pending order to another city.",
            (ORDER_ID, Parameter("city", f"the new city, one of {', '.join(CITIES)}")),
        ),
    )
}
WRITES = {
    "cancel_order": Action.cancel,
    "refund_order": Action.refund,
    "change_address": Action.move,
}
LONGEST_ECHO = 40
LONGEST_OBSERVATION = 200
TEMPLATE_MARKS = "<>|[]"  # chat templates are written with these


def plain(text: str, longest: int) -> str:
    """`text` without control characters and marks of chat templates, cut to `longest` characters."""
    kept = [char for char in text[: 2 * longest] if char.isprintable() and char not in TEMPLATE_MARKS]
    return "".join(kept)[:longest]


def order_number(text: str) -> int | None:
    """The number of an order in an agent's writing: `482` or `#482`; None for anything else."""
    digits = text.strip().removeprefix("#")
    return int(digits) if digits.isascii() and digits.isdecimal() and len(digits) < 10 else None


def normal(text: str) -> str:
    """An email or a city as the database writes it."""
    # halves of characters, which JSON can smuggle in, are no text that SQLite takes
    return text.encode(errors="ignore").decode().strip().lower()


def use_tool(connection: sqlite3.Connection, call: ToolCall) -> str:
    """Do what a well-formed call asks and say what came of it."""
    if call.name == "find_customer":
        return _find_customer(connection, normal(call.arguments["email"]))
    order = _order(connection, call.arguments["order_id"])
    if order is None:
        return f"error: no order {plain(call.arguments['order_id'], LONGEST_ECHO)}"
    if call.name == "get_order":
        return _describe(order)
    return _write(connection, WRITES[call.name], order, normal(call.arguments.get("city", "")))


def _find_customer(connection: sqlite3.Connection, email: str) -> str:
    if _rows(connection, "SELECT email FROM customers WHERE email = ?", email) == []:
        return f"error: no customer {plain(email, LONGEST_ECHO)}"
    rows = _rows(connection, "SELECT id, product, status FROM orders WHERE customer = ? ORDER BY id", email)
    listed = ", ".join(f"{number} {product} {status}" for number, product, status in rows)
    return f"{email.partition('@')[0]}: {listed or 'no orders'}"


def _order(connection: sqlite3.Connection, order_id: str) -> Order | None:
    rows = _rows(connection, f"SELECT {COLUMNS} FROM orders WHERE id = ?", order_number(order_id))
    return Order(*rows[0]) if rows else None


def _describe(order: Order) -> str:
    refunded = ", refunded" if order.refunded else ""
    return (
        f"order {order.id}: {order.product}, {order.price} dollars, {order.status}, to {order.city}{refunded}"
    )


def _write(connection: sqlite3.Connection, action: Action, order: Order, city: str) -> str:
    if order.status != REQUIRED_STATUS[action]:
        return f"error: order {order.id} is {order.status}"
    if action is Action.cancel:
        update = "UPDATE orders SET status = 'cancelled', refunded = price WHERE id = ?"
        connection.execute(update, (order.id,))
        return f"ok: {order.id} cancelled, {order.price} dollars refunded"
    if action is Action.refund:
        if order.refunded:
            return f"error: order {order.id} is refunded"
        connection.execute("UPDATE orders SET refunded = price WHERE id = ?", (order.id,))
        return f"ok: {order.id}, {order.price} dollars refunded"
    if city not in CITIES:
        return f"error: no delivery to {plain(city, LONGEST_ECHO)}"
    connection.execute("UPDATE orders SET city = ? WHERE id = ?", (city, order.id))
    return f"ok: {order.id} moved to {city}"


def _rows(connection: sqlite3.Connection, query: str, value: str | int | None) -> Sequence[tuple]:
    return connection.execute(query, (value,)).fetchall()
