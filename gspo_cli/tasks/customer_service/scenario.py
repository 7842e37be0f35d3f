"""The content of a conversation with the shop: a small shop, one of its customers, and what they want.

A scenario is plain data and can be written as JSON. The customers of held-out problems are never those of
training problems."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import numpy as np

from gspo_cli.randomness import generator

NAMES = ("mia", "leo", "ana", "tom", "eva", "sam", "ida", "max", "lea", "ben", "zoe", "kai")
PRODUCTS = (
    *("lamp", "mug", "chair", "desk", "clock", "kettle"),
    *("radio", "pan", "towel", "brush", "bag", "plate"),
)
CITIES = ("rome", "paris", "oslo", "lima", "cairo", "delhi", "tokyo", "berlin")
STATUSES = ("pending", "shipped", "delivered", "cancelled")
PRICES = range(10, 100, 5)  # dollars, always two digits: order numbers have three

CUSTOMERS_PER_SHOP, PRODUCTS_PER_SHOP, ORDERS_PER_SHOP = 4, 8, 8
HELDOUT_CUSTOMERS = 200  # of 12 names x 90 numbers
REFUSED_SHARE = 0.25  # share of cancel or refund requests that the order's status forbids

Item = TypeVar("Item")


class Action(Enum):
    """What a customer can want."""

    cancel = "cancel"
    refund = "refund"
    move = "move"
    status = "status"


# the status an order must have; a question about its status is always allowed
REQUIRED_STATUS = {Action.cancel: "pending", Action.refund: "delivered", Action.move: "pending"}


class Order(NamedTuple):
    """A row of the orders table; `price` and `refunded` are dollars."""

    id: int
    customer: str
    product: str
    price: int
    city: str
    status: str
    refunded: int = 0


@dataclass(frozen=True)
class CustomerRequest:
    """One request of the customer; `city` is where to move the order, for such requests only."""

    action: Action
    order: int
    city: str = ""


@dataclass(frozen=True)
class ShopScenario:
    """A shop before the conversation, and the customer (an email) with their requests, in order."""

    customer: str
    requests: tuple[CustomerRequest, ...]
    customers: tuple[str, ...]
    products: tuple[tuple[str, int], ...]
    orders: tuple[Order, ...]
    heldout: bool = False

    @property
    def orders_by_id(self) -> Mapping[int, Order]:
        """The orders as they were at the start."""
        return {order.id: order for order in self.orders}

    def goal(self) -> str:
        """What a good conversation achieves, as text: `cancel 482; tell 517 delivered`."""
        return "; ".join(self._goal(request) for request in self.requests)

    def _goal(self, request: CustomerRequest) -> str:
        status = self.orders_by_id[request.order].status
        if REQUIRED_STATUS.get(request.action) != status:
            return f"tell {request.order} {status}"
        return f"{request.action.value} {request.order}" + (f" to {request.city}" if request.city else "")


def to_json(scenario: ShopScenario) -> dict[str, Any]:
    """The scenario as plain JSON values."""
    return json.loads(json.dumps(asdict(scenario), default=lambda action: action.value))


def from_json(values: Mapping[str, Any]) -> ShopScenario:
    """The scenario that `to_json` wrote."""
    return ShopScenario(
        customer=values["customer"],
        requests=tuple(
            CustomerRequest(Action(r["action"]), r["order"], r["city"]) for r in values["requests"]
        ),
        customers=tuple(values["customers"]),
        products=tuple((name, price) for name, price in values["products"]),
        orders=tuple(Order(*order) for order in values["orders"]),
        heldout=values["heldout"],
    )


@lru_cache(maxsize=2)
def customers(heldout: bool) -> tuple[str, ...]:
    """Emails of all customers of one side of the split."""
    emails = [f"{name}{number}@mail.com" for name in NAMES for number in range(10, 100)]
    mixed = _draw(generator(0, "shop customers"), emails, len(emails))
    return tuple(mixed[:HELDOUT_CUSTOMERS] if heldout else mixed[HELDOUT_CUSTOMERS:])


def draw_scenario(random: np.random.Generator, requests: int, heldout: bool) -> ShopScenario:
    """A random shop; its first customer has `requests` requests, each about a different order."""
    people = _draw(random, customers(heldout), CUSTOMERS_PER_SHOP)
    prices = _draw(random, PRICES, PRODUCTS_PER_SHOP)
    products = list(zip(_draw(random, PRODUCTS, PRODUCTS_PER_SHOP), prices, strict=True))
    # first digits differ: one digit is enough to distinguish the orders of a shop
    hundreds = _draw(random, range(1, 10), ORDERS_PER_SHOP)
    numbers = [100 * first + int(random.integers(100)) for first in hundreds]
    own = int(random.integers(max(2, requests), 5))
    wishes, orders = [], []
    for place, number in enumerate(numbers):
        owner = people[0] if place < own else _one(random, people[1:])
        product, price = _one(random, products)
        city, new_city = _draw(random, CITIES, 2)
        action, status = _draw_action(random)
        orders.append(Order(number, owner, product, price, city, status))
        if place < requests:
            wishes.append(CustomerRequest(action, number, new_city if action is Action.move else ""))
    return ShopScenario(
        customer=people[0],
        requests=tuple(wishes),
        customers=tuple(sorted(people)),
        products=tuple(products),
        orders=tuple(sorted(orders, key=lambda order: order.id)),
        heldout=heldout,
    )


def _draw_action(random: np.random.Generator) -> tuple[Action, str]:
    """A request and the status of its order. A request to move an order is always allowed."""
    action = _one(random, list(Action))
    others = [status for status in STATUSES[:3] if status != REQUIRED_STATUS.get(action)]
    refused = random.random() < REFUSED_SHARE
    if action is Action.status or (refused and action is not Action.move):
        return action, _one(random, others)
    return action, REQUIRED_STATUS[action]


def _one(random: np.random.Generator, items: Sequence[Item]) -> Item:
    return items[int(random.integers(len(items)))]


def _draw(random: np.random.Generator, items: Sequence[Item], count: int) -> list[Item]:
    """`count` different items."""
    return [items[int(place)] for place in random.permutation(len(items))[:count]]
