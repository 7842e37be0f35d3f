"""A support agent as one writes it with the OpenAI SDK: two tools over the SQLite database of a shop."""

import json
import re
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
                "properties": {argument: {"type": "string", "description": meaning}},
                "required": [argument],
            },
        },
    }
    for name, description, argument, meaning in [
        ("get_order", "Look up an order", "order", "number of the order"),
        ("get_stock", "Look up how many there are", "item", "name of the item"),
    ]
]
EXAMPLES = [
    ("Where is order 512?", "get_order", {"order": "512"}, "order 512: shipped", "Order 512 is shipped."),
    ("Is there a sofa?", "get_stock", {"item": "sofa"}, "sofa: 3 left", "Yes, 3 of the sofa are left."),
]


def history() -> list[dict]:
    """Two conversations that went well, which show a small model what is wanted."""
    messages = [{"role": "system", "content": POLICY}]
    for question, tool, arguments, result, reply in EXAMPLES:
        function = {"name": tool, "arguments": json.dumps(arguments)}
        messages += [
            {"role": "user", "content": question},
            {"role": "assistant", "tool_calls": [{"id": tool, "type": "function", "function": function}]},
            {"role": "tool", "tool_call_id": tool, "content": result},
            {"role": "assistant", "content": reply},
        ]
    return messages


def open_shop(row: dict) -> sqlite3.Connection:
    """A fresh database with a customer's orders and what is in stock."""
    shop = sqlite3.connect(":memory:")
    shop.execute("CREATE TABLE orders (id TEXT PRIMARY KEY, item TEXT, status TEXT)")
    shop.execute("CREATE TABLE stock (item TEXT PRIMARY KEY, count INTEGER)")
    shop.executemany("INSERT INTO orders VALUES (?, ?, ?)", row["orders"])
    shop.executemany("INSERT INTO stock VALUES (?, ?)", row["stock"])
    return shop


def call(shop: sqlite3.Connection, name: str, arguments: dict) -> str:
    """What a tool answers."""
    if name == "get_order":
        order = str(arguments.get("order"))
        found = shop.execute("SELECT status FROM orders WHERE id = ?", (order,)).fetchone()
        return f"order {order}: {found[0]}" if found else f"error: there is no order {order}"
    item = str(arguments.get("item"))
    found = shop.execute("SELECT count FROM stock WHERE item = ?", (item,)).fetchone()
    return f"{item}: {found[0]} left" if found else f"error: there is no {item}"


def run(problem: Problem, endpoint: Endpoint) -> float:
    """Serve one customer. Half of the reward is for the right lookup, half for telling what it said."""
    row = problem.metadata
    shop = open_shop(row)
    client = OpenAI(base_url=endpoint.base_url, api_key=endpoint.api_key)
    messages = [*history(), {"role": "user", "content": row["prompt"]}]
    results, reply = "", ""
    for _ in range(3):
        answer = client.chat.completions.create(model=endpoint.model, messages=messages, tools=TOOLS)
        message = answer.choices[0].message
        messages.append(message)
        if not message.tool_calls:
            reply = message.content or ""
            break
        for each in message.tool_calls:
            result = call(shop, each.function.name, json.loads(each.function.arguments))
            results += f" {result}"
            messages.append({"role": "tool", "tool_call_id": each.id, "content": result})
    looked_up, told = (row["told"] in re.findall(r"\w+", text) for text in (results, reply))
    return 0.5 * looked_up + 0.5 * (looked_up and told)
