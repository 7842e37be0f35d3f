"""The shop's SQLite database: built once per scenario, cloned in memory for every conversation.

No two conversations share a clone. Values reach SQL as parameters only."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from functools import lru_cache

from gspo_cli.tasks.customer_service.scenario import CITIES, STATUSES, Order, ShopScenario

SCHEMA = f"""
CREATE TABLE customers (email TEXT PRIMARY KEY);
CREATE TABLE products (
    name TEXT PRIMARY KEY,
    price INTEGER NOT NULL CHECK (price > 0)
);
CREATE TABLE orders (
    id INTEGER PRIMARY KEY,
    customer TEXT NOT NULL REFERENCES customers (email),
    product TEXT NOT NULL REFERENCES products (name),
    price INTEGER NOT NULL CHECK (price > 0),
    city TEXT NOT NULL CHECK (city IN {CITIES}),
    status TEXT NOT NULL CHECK (status IN {STATUSES}),
    refunded INTEGER NOT NULL CHECK (refunded BETWEEN 0 AND price),
    CHECK (refunded = 0 OR status IN ('delivered', 'cancelled')),
    CHECK (refunded = price OR status <> 'cancelled')
);
"""
COLUMNS = ", ".join(Order._fields)

Orders = Mapping[int, Order]


@lru_cache(maxsize=512)  # all answers of a group share their scenario
def _image(scenario: ShopScenario) -> bytes:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.executescript(SCHEMA)
    connection.executemany("INSERT INTO customers VALUES (?)", [(email,) for email in scenario.customers])
    connection.executemany("INSERT INTO products VALUES (?, ?)", scenario.products)
    connection.executemany("INSERT INTO orders VALUES (?, ?, ?, ?, ?, ?, ?)", scenario.orders)
    image = connection.serialize()
    connection.close()
    return image


def open_shop(scenario: ShopScenario) -> sqlite3.Connection:
    """A new database with the scenario's data; the caller closes it."""
    # different threads may step the same conversation
    connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    connection.deserialize(_image(scenario))
    return connection


def read_orders(connection: sqlite3.Connection) -> Orders:
    """All orders by number."""
    return {row[0]: Order(*row) for row in connection.execute(f"SELECT {COLUMNS} FROM orders ORDER BY id")}


def distance(first: Orders, second: Orders) -> int:
    """How many orders differ."""
    return sum(first[number] != second[number] for number in first)


def order_changes(before: Orders, after: Orders) -> list[str]:
    """Human-readable differences: `order 482: status pending -> cancelled`."""
    lines = []
    for number in before:
        rows = zip(Order._fields, before[number], after[number], strict=True)
        changed = [f"{name} {old} -> {new}" for name, old, new in rows if old != new]
        if changed:
            lines.append(f"order {number}: {', '.join(changed)}")
    return lines
