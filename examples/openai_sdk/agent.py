"""A support agent as one writes it with the OpenAI SDK: two tools over an SQLite database of orders."""

import json
import sqlite3

from openai import OpenAI

from gspo_cli import Endpoint, Problem

POLICY = "You work for a shop. Use a tool, then tell the customer in a short sentence what it said."
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": description,
            "parameters": {
                "type": "object",
                "properties": {"order": {"type": "string", "description": "number of the order"}},
                "required": ["order"],
            },
        },
    }
    for name, description in [("get_order", "Look up an order"), ("refund_order", "Pay an order back")]
]
EXAMPLES = [
    ("Where is order 512?", "get_order", "512", "order 512: sofa, shipped", "Your order 512 is shipped."),
    (
        "Please pay order 733 back.",
        "refund_order",
        "733",
        "order 733: refunded",
        "Your order 733 is refunded.",
    ),
]


def history() -> list[dict]:
    """Two conversations that went well, which show a small model what is wanted."""
    messages = [{"role": "system", "content": POLICY}]
    for question, tool, order, result, reply in EXAMPLES:
        function = {"name": tool, "arguments": json.dumps({"order": order})}
        asked = {"id": tool, "type": "function", "function": function}
        messages += [
            {"role": "user", "content": question},
            {"role": "assistant", "tool_calls": [asked]},
            {"role": "tool", "tool_call_id": asked["id"], "content": result},
            {"role": "assistant", "content": reply},
        ]
    return messages


def open_shop(orders: list[list]) -> sqlite3.Connection:
    """The customer's orders in a fresh database."""
    shop = sqlite3.connect(":memory:")
    shop.execute("CREATE TABLE orders (id TEXT PRIMARY KEY, item TEXT, status TEXT)")
    shop.executemany("INSERT INTO orders VALUES (?, ?, ?)", orders)
    return shop


def call(shop: sqlite3.Connection, name: str, arguments: dict) -> str:
    """What a tool answers."""
    order = str(arguments.get("order", ""))
    found = shop.execute("SELECT item, status FROM orders WHERE id = ?", (order,)).fetchone()
    if found is None:
        return f"error: there is no order {order!r}"
    if name == "get_order":
        return f"order {order}: {found[0]}, {found[1]}"
    if name == "refund_order":
        shop.execute("UPDATE orders SET status = 'refunded' WHERE id = ?", (order,))
        return f"order {order}: refunded"
    return f"error: there is no tool {name}"


def run(problem: Problem, endpoint: Endpoint) -> float:
    """Serve one customer, and say how well that went, from 0 to 1."""
    row = problem.metadata
    shop = open_shop(row["orders"])
    client = OpenAI(base_url=endpoint.base_url, api_key=endpoint.api_key)
    messages = [*history(), {"role": "user", "content": row["prompt"]}]
    looked_up, reply = False, ""
    for _ in range(3):
        answer = client.chat.completions.create(model=endpoint.model, messages=messages, tools=TOOLS)
        message = answer.choices[0].message
        messages.append(message)
        if not message.tool_calls:
            reply = message.content or ""
            break
        for each in message.tool_calls:
            result = call(shop, each.function.name, json.loads(each.function.arguments))
            looked_up = looked_up or not result.startswith("error")
            messages.append({"role": "tool", "tool_call_id": each.id, "content": result})
    left = shop.execute("SELECT id, item, status FROM orders ORDER BY id").fetchall()
    right = looked_up and left == sorted(tuple(order) for order in row["orders_after"])
    return 0.6 * right + 0.4 * (right and row["told"] in reply.lower())
