"""What an agent of the shop can do, and what the policy allows.

The tools do whatever the database allows. A call that breaks the policy is counted, not prevented. An
observation is one short line; the observation of a call that failed begins with `error:`."""

from __future__ import annotations

import sqlite3
from collections.abc import Set
from typing import Annotated

from gspo_cli.tasks.customer_service.database import COLUMNS
from gspo_cli.tasks.customer_service.scenario import (
    CITIES,
    REQUIRED_STATUS,
    Action,
    CustomerRequest,
    Order,
    ShopScenario,
)
from gspo_cli.tasks.tools import Example, OneOf, RefusedError, ToolCall, by_name, tool

POLICY = """You are the customer service agent of a small shop. A customer writes to you about an order: to \
cancel it, to get a refund, to move it to another city, or to know its status. One step a turn:
1. Ask who it is: "May I please have your email?" If something is broken, say sorry. Use no tool before you \
know the email.
2. Find the customer with the tool find_customer. It lists their orders. Look up and change no other \
orders.
3. If the customer only wants to know where an order is, tell its status: "Your order 700 is shipped."
4. Only a pending order can be cancelled or moved, and only a delivered order can be refunded, once. If the \
status forbids it, change nothing: "Sorry, order 700 is shipped, so I cannot cancel it."
5. If it is allowed, ask for a yes with the action, the order number and the new city: "Shall I cancel \
order 700?", "Shall I refund order 700?", "Shall I move order 700 to Rome?"
6. When the customer has said yes, make the change with its tool.
7. Say what was done, with the order number and the dollars or the city: "Your order 700 is cancelled, 30 \
dollars are refunded.", "Your 30 dollars for order 700 are refunded.", "Your order 700 is moved to Rome."
The customer then has another wish, which starts at step 3, or says goodbye. Speak about one order at a \
time. Tell only what the tools have shown you. Be kind and brief."""

LONGEST_ECHO = 40
LONGEST_OBSERVATION = 200
TEMPLATE_MARKS = "<>|[]"  # characters that chat templates use

OrderId = Annotated[str, "number of the order, three digits", Example("700")]


@tool
def find_customer(
    connection: sqlite3.Connection,
    /,
    email: Annotated[str, "email address of the customer", Example("name00@mail.com")],
) -> str:
    """Find a customer and list their orders with product and status."""
    email = normalized(email)
    if not connection.execute("SELECT email FROM customers WHERE email = ?", (email,)).fetchall():
        raise RefusedError(f"no customer {printable(email, LONGEST_ECHO)}")
    query = "SELECT id, product, status FROM orders WHERE customer = ? ORDER BY id"
    listed = ", ".join(" ".join(map(str, row)) for row in connection.execute(query, (email,)))
    return f"{email.partition('@')[0]}: {listed or 'no orders'}"


@tool
def get_order(connection: sqlite3.Connection, /, order_id: OrderId) -> str:
    """Show product, price, status and city of an order."""
    order = _order(connection, order_id)
    refunded = ", refunded" if order.refunded else ""
    return (
        f"order {order.id}: {order.product}, {order.price} dollars, {order.status}, to {order.city}{refunded}"
    )


@tool
def cancel_order(connection: sqlite3.Connection, /, order_id: OrderId) -> str:
    """Cancel a pending order and refund its price."""
    order = _order(connection, order_id, Action.cancel)
    connection.execute("UPDATE orders SET status = 'cancelled', refunded = price WHERE id = ?", (order.id,))
    return f"ok: {order.id} cancelled, {order.price} dollars refunded"


@tool
def refund_order(connection: sqlite3.Connection, /, order_id: OrderId) -> str:
    """Refund the price of a delivered order."""
    order = _order(connection, order_id, Action.refund)
    if order.refunded:
        raise RefusedError(f"order {order.id} is refunded")
    connection.execute("UPDATE orders SET refunded = price WHERE id = ?", (order.id,))
    return f"ok: {order.id}, {order.price} dollars refunded"


@tool
def change_address(
    connection: sqlite3.Connection,
    /,
    order_id: OrderId,
    city: Annotated[str, "the new city", OneOf(*CITIES)],
) -> str:
    """Send a pending order to another city."""
    order, city = _order(connection, order_id, Action.move), normalized(city)
    if city not in CITIES:
        raise RefusedError(f"no delivery to {printable(city, LONGEST_ECHO)}")
    connection.execute("UPDATE orders SET city = ? WHERE id = ?", (city, order.id))
    return f"ok: {order.id} moved to {city}"


TOOLS = by_name(find_customer, get_order, cancel_order, refund_order, change_address)
WRITES = {
    cancel_order.name: Action.cancel,
    refund_order.name: Action.refund,
    change_address.name: Action.move,
}
TOOL_OF = {action: name for name, action in WRITES.items()}


def _order(connection: sqlite3.Connection, order_id: str, action: Action | None = None) -> Order:
    """An order, for `action` where its status allows that. Raises RefusedError."""
    query = f"SELECT {COLUMNS} FROM orders WHERE id = ?"
    row = connection.execute(query, (order_number(order_id),)).fetchone()
    if row is None:
        raise RefusedError(f"no order {printable(order_id, LONGEST_ECHO)}")
    order = Order(*row)
    if action is not None and order.status != REQUIRED_STATUS[action]:
        raise RefusedError(f"order {order.id} is {order.status}")
    return order


def printable(text: str, longest: int) -> str:
    """`text` without control characters and marks of chat templates, cut to `longest` characters."""
    kept = [char for char in text[: 2 * longest] if char.isprintable() and char not in TEMPLATE_MARKS]
    return "".join(kept)[:longest]


def order_number(text: str) -> int | None:
    """The number of an order as agents write it: `482` or `#482`; None for anything else."""
    digits = text.strip().removeprefix("#")
    return int(digits) if digits.isascii() and digits.isdecimal() and len(digits) < 10 else None


def normalized(text: str) -> str:
    """An email or a city as the database writes it."""
    # SQLite takes no lone surrogates, which JSON can contain
    return text.encode(errors="ignore").decode().strip().lower()


def broken_rule(
    call: ToolCall, scenario: ShopScenario, found: bool, agreed: Set[CustomerRequest]
) -> str | None:
    """The rule of the policy that a call breaks, in words. `found`: the customer was found by their email;
    `agreed`: what they have agreed to."""
    if call.name == find_customer.name:
        email = normalized(call.arguments["email"])
        others = email in scenario.customers and email != scenario.customer
        return f"looked up another customer, {email}" if others else None
    if not found:
        return f"used {call.name} before the customer was found"
    number = order_number(call.arguments["order_id"])
    order = scenario.orders_by_id.get(number) if number is not None else None
    if order is not None and order.customer != scenario.customer:
        return f"used {call.name} on order {number} of another customer"
    action = WRITES.get(call.name)
    if action is None or order is None:
        return None
    city = normalized(call.arguments.get("city", ""))
    if CustomerRequest(action, order.id, city) in agreed:
        return None
    return f"used {call.name} on order {number} without the customer's consent"
