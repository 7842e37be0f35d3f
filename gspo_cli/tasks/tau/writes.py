"""The tools of the retail shop that change data, and their rules.

All rules are checked before the first change, so that a refused call changes nothing. Amounts are dollars,
rounded to cents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Annotated

from gspo_cli.tasks.tau.database import Record, RetailDatabase
from gspo_cli.tasks.tools import Example, OneOf, RefusedError, by_name, tool

CANCEL_REASONS = ("no longer needed", "ordered by mistake")
ADDRESS_FIELDS = ("address1", "address2", "city", "state", "country", "zip")
LONGEST_ADDRESS = 200  # characters in all: what an agent writes comes back in observations

OrderId = Annotated[str, "id of the order, with its #", Example("#W0000000")]
UserId = Annotated[str, "id of the user", Example("sara_doe_496")]
ItemIds = Annotated[
    list[str], "item ids, each as often as it is meant", Example(("1000000001", "1000000002"))
]
NewItemIds = Annotated[
    list[str],
    "item ids of the replacements, one for each item in the same order",
    Example(("2000000001", "2000000002")),
]
MethodId = Annotated[str, "id of a payment method of the user", Example("paypal_0000000")]
Address1 = Annotated[str, "street and number", Example("123 Main Street")]
Address2 = Annotated[str, 'apartment or suite; "" if there is none', Example("Suite 5")]
City = Annotated[str, "city", Example("New York")]
State = Annotated[str, "state", Example("NY")]
Country = Annotated[str, "country", Example("USA")]
Zip = Annotated[str, "zip code", Example("10001")]


@tool
def cancel_pending_order(
    database: RetailDatabase,
    /,
    order_id: OrderId,
    reason: Annotated[str, "why it is cancelled", OneOf(*CANCEL_REASONS)],
) -> str:
    """Cancel a pending order.

    Each payment method gets back what it has paid."""
    _order(database, order_id, "pending")
    if reason not in CANCEL_REASONS:
        raise RefusedError(f"the reason must be one of: {', '.join(CANCEL_REASONS)}")
    order = database.edit("orders", order_id)
    for method_id, amount in _paid(order).items():
        _refund(database, order, method_id, amount)
    order["status"] = "cancelled"
    order["cancel_reason"] = reason
    return f"order {order_id} is cancelled and refunded"


@tool
def modify_pending_order_address(
    database: RetailDatabase,
    /,
    order_id: OrderId,
    address1: Address1,
    address2: Address2,
    city: City,
    state: State,
    country: Country,
    zip: Zip,
) -> str:
    """Change the address that a pending order goes to."""
    _order(database, order_id, "pending")
    address = _address(address1, address2, city, state, country, zip)
    database.edit("orders", order_id)["address"] = address
    return f"order {order_id} goes to the new address"


@tool
def modify_user_address(
    database: RetailDatabase,
    /,
    user_id: UserId,
    address1: Address1,
    address2: Address2,
    city: City,
    state: State,
    country: Country,
    zip: Zip,
) -> str:
    """Change a user's default address."""
    if database.read("users", user_id) is None:
        raise RefusedError("there is no such user")
    address = _address(address1, address2, city, state, country, zip)
    database.edit("users", user_id)["address"] = address
    return "the default address is changed"


@tool
def modify_pending_order_payment(
    database: RetailDatabase, /, order_id: OrderId, payment_method_id: MethodId
) -> str:
    """Change how a pending order is paid.

    The new method is charged with the whole order, and the first one is paid back."""
    order = _order(database, order_id, "pending")
    if len(order["payment_history"]) != 1:
        raise RefusedError("the payment of this order can no longer be changed")
    paid = order["payment_history"][0]
    if paid["payment_method_id"] == payment_method_id:
        raise RefusedError("the new payment method must differ from the present one")
    _check_funds(database, order, payment_method_id, paid["amount"])
    order = database.edit("orders", order_id)
    _charge(database, order, payment_method_id, paid["amount"])
    _refund(database, order, paid["payment_method_id"], paid["amount"])
    return f"order {order_id} is paid with {payment_method_id}"


@tool
def modify_pending_order_items(
    database: RetailDatabase,
    /,
    order_id: OrderId,
    item_ids: ItemIds,
    new_item_ids: NewItemIds,
    payment_method_id: MethodId,
) -> str:
    """Replace items of a pending order; possible once for an order.

    The new items are other variants of the same products; the difference is charged or paid back."""
    order = _order(database, order_id, "pending")
    swaps = _swaps(database, order, item_ids, new_item_ids)
    difference = _difference(order, swaps)
    _check_funds(database, order, payment_method_id, difference)
    order = database.edit("orders", order_id)
    for position, variant in swaps:
        order["items"][position].update(
            item_id=variant["item_id"], price=variant["price"], options=dict(variant["options"])
        )
    if difference > 0:
        _charge(database, order, payment_method_id, difference)
    elif difference < 0:
        _refund(database, order, payment_method_id, -difference)
    order["status"] = "pending (item modified)"
    return f"the items of order {order_id} are changed; price difference {difference:.2f}"


@tool
def return_delivered_order_items(
    database: RetailDatabase, /, order_id: OrderId, item_ids: ItemIds, payment_method_id: MethodId
) -> str:
    """Take items of a delivered order back.

    The refund goes to the method that paid, or to a gift card."""
    order = _order(database, order_id, "delivered")
    method = _method(database, order, payment_method_id)
    _positions(order, item_ids)
    if method["source"] != "gift_card" and payment_method_id not in _paid(order):
        raise RefusedError("a refund goes to the original payment method or to a gift card")
    order = database.edit("orders", order_id)
    order["status"] = "return requested"
    order["return_items"] = sorted(item_ids)
    order["return_payment_method_id"] = payment_method_id
    return f"the return of order {order_id} is requested"


@tool
def exchange_delivered_order_items(
    database: RetailDatabase,
    /,
    order_id: OrderId,
    item_ids: ItemIds,
    new_item_ids: NewItemIds,
    payment_method_id: MethodId,
) -> str:
    """Exchange items of a delivered order; possible once for an order.

    The new items are other variants of the same products."""
    order = _order(database, order_id, "delivered")
    swaps = _swaps(database, order, item_ids, new_item_ids)
    difference = _difference(order, swaps)
    _check_funds(database, order, payment_method_id, difference)
    order = database.edit("orders", order_id)
    order["status"] = "exchange requested"
    order["exchange_items"] = sorted(item_ids)
    order["exchange_new_items"] = sorted(new_item_ids)
    order["exchange_payment_method_id"] = payment_method_id
    order["exchange_price_difference"] = difference
    return f"the exchange for order {order_id} is requested; price difference {difference:.2f}"


WRITES = by_name(
    cancel_pending_order,
    modify_pending_order_address,
    modify_pending_order_items,
    modify_pending_order_payment,
    modify_user_address,
    return_delivered_order_items,
    exchange_delivered_order_items,
)


def _order(database: RetailDatabase, order_id: str, status: str) -> Record:
    order = database.read("orders", order_id)
    if order is None:
        raise RefusedError("there is no such order; ids look like #W0000000")
    if order["status"] != status:
        raise RefusedError(f"the order is {order['status']}, not {status}")
    return order


def _method(database: RetailDatabase, order: Record, method_id: str) -> Record:
    method = database.record("users", order["user_id"])["payment_methods"].get(method_id)
    if method is None:
        raise RefusedError("the user has no such payment method")
    return method


def _check_funds(database: RetailDatabase, order: Record, method_id: str, amount: float) -> None:
    method = _method(database, order, method_id)
    if method["source"] == "gift_card" and method["balance"] < amount:
        raise RefusedError(f"the balance of the gift card, {method['balance']:.2f}, is too small")


def _positions(order: Record, item_ids: Sequence[str]) -> list[int]:
    """The indices of items in the order; an id given twice means two equal items."""
    if not item_ids:
        raise RefusedError("name at least one item")
    free = list(range(len(order["items"])))
    found = []
    for item_id in item_ids:
        place = next((n for n in free if order["items"][n]["item_id"] == item_id), None)
        if place is None:
            raise RefusedError("the order does not hold all of these items")
        free.remove(place)
        found.append(place)
    return found


def _swaps(
    database: RetailDatabase, order: Record, item_ids: Sequence[str], new_item_ids: Sequence[str]
) -> list[tuple[int, Record]]:
    """Each item's index in the order with the variant that replaces it."""
    if len(item_ids) != len(new_item_ids):
        raise RefusedError("give one new item for each item")
    swaps = []
    for place, new_id in zip(_positions(order, item_ids), new_item_ids, strict=True):
        product = database.read("products", order["items"][place]["product_id"]) or {"variants": {}}
        variant = product["variants"].get(new_id)
        if variant is None:
            raise RefusedError("a new item must be a variant of the same product")
        if not variant["available"]:
            raise RefusedError(f"item {new_id} is not available")
        swaps.append((place, variant))
    return swaps


def _difference(order: Record, swaps: Sequence[tuple[int, Record]]) -> float:
    return round(sum(variant["price"] - order["items"][place]["price"] for place, variant in swaps), 2)


def _paid(order: Record) -> dict[str, float]:
    """What each payment method has paid and not been paid back."""
    net: Counter[str] = Counter()
    for entry in order["payment_history"]:
        sign = 1 if entry["transaction_type"] == "payment" else -1
        net[entry["payment_method_id"]] += sign * entry["amount"]
    return {method: round(amount, 2) for method, amount in net.items() if round(amount, 2) > 0}


def _charge(database: RetailDatabase, order: Record, method_id: str, amount: float) -> None:
    _add_payment(database, order, method_id, amount, "payment", -amount)


def _refund(database: RetailDatabase, order: Record, method_id: str, amount: float) -> None:
    _add_payment(database, order, method_id, amount, "refund", amount)


def _add_payment(
    database: RetailDatabase, order: Record, method_id: str, amount: float, kind: str, to_balance: float
) -> None:
    """Write the order's history, and the balance where the method is a gift card."""
    order["payment_history"].append(
        {"transaction_type": kind, "amount": amount, "payment_method_id": method_id}
    )
    if database.record("users", order["user_id"])["payment_methods"][method_id]["source"] == "gift_card":
        card = database.edit("users", order["user_id"])["payment_methods"][method_id]
        card["balance"] = round(card["balance"] + to_balance, 2)


def _address(*values: str) -> dict[str, str]:
    """An address with the values of `ADDRESS_FIELDS`."""
    text = "".join(values)
    if not text.isprintable() or len(text) > LONGEST_ADDRESS:
        raise RefusedError(f"an address is plain text of at most {LONGEST_ADDRESS} characters")
    return dict(zip(ADDRESS_FIELDS, values, strict=True))
