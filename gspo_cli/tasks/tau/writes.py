"""The tools of the retail shop that change data, and the rules that guard them.

All rules are checked before the first change, so that a refused call changes nothing. Amounts are dollars,
rounded to cents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from gspo_cli.tasks.tau.database import Book, Record

CANCEL_REASONS = ("no longer needed", "ordered by mistake")
ADDRESS_FIELDS = ("address1", "address2", "city", "state", "country", "zip")
LONGEST_ADDRESS = 200  # characters in all: what an agent writes comes back in observations


class RefusedError(Exception):
    """A call that the shop's rules forbid; the text is the observation."""


def cancel_pending_order(book: Book, order_id: str, reason: str) -> str:
    """Cancel and pay back what each method has paid."""
    _order(book, order_id, "pending")
    if reason not in CANCEL_REASONS:
        raise RefusedError(f"the reason must be one of: {', '.join(CANCEL_REASONS)}")
    order = book.edit("orders", order_id)
    for method_id, amount in _paid(order).items():
        _refund(book, order, method_id, amount)
    order["status"] = "cancelled"
    order["cancel_reason"] = reason
    return f"order {order_id} is cancelled and refunded"


def modify_pending_order_address(book: Book, order_id: str, **address: str) -> str:
    """Send a pending order elsewhere."""
    _order(book, order_id, "pending")
    _check_address(address)
    book.edit("orders", order_id)["address"] = _ordered(address)
    return f"order {order_id} goes to the new address"


def modify_user_address(book: Book, user_id: str, **address: str) -> str:
    """Change a user's default address."""
    if book.read("users", user_id) is None:
        raise RefusedError("there is no such user")
    _check_address(address)
    book.edit("users", user_id)["address"] = _ordered(address)
    return "the default address is changed"


def modify_pending_order_payment(book: Book, order_id: str, payment_method_id: str) -> str:
    """Charge another method with the whole order and pay the first one back."""
    order = _order(book, order_id, "pending")
    if len(order["payment_history"]) != 1:
        raise RefusedError("the payment of this order can no longer be changed")
    paid = order["payment_history"][0]
    if paid["payment_method_id"] == payment_method_id:
        raise RefusedError("the new payment method must differ from the present one")
    _check_funds(book, order, payment_method_id, paid["amount"])
    order = book.edit("orders", order_id)
    _charge(book, order, payment_method_id, paid["amount"])
    _refund(book, order, paid["payment_method_id"], paid["amount"])
    return f"order {order_id} is paid with {payment_method_id}"


def modify_pending_order_items(
    book: Book, order_id: str, item_ids: Sequence[str], new_item_ids: Sequence[str], payment_method_id: str
) -> str:
    """Replace items by other variants of their products; the difference is charged or paid back."""
    order = _order(book, order_id, "pending")
    swaps = _swaps(book, order, item_ids, new_item_ids)
    difference = _difference(order, swaps)
    _check_funds(book, order, payment_method_id, difference)
    order = book.edit("orders", order_id)
    for position, variant in swaps:
        order["items"][position].update(
            item_id=variant["item_id"], price=variant["price"], options=dict(variant["options"])
        )
    if difference > 0:
        _charge(book, order, payment_method_id, difference)
    elif difference < 0:
        _refund(book, order, payment_method_id, -difference)
    order["status"] = "pending (item modified)"
    return f"the items of order {order_id} are changed; price difference {difference:.2f}"


def return_delivered_order_items(
    book: Book, order_id: str, item_ids: Sequence[str], payment_method_id: str
) -> str:
    """Ask for items to be taken back, against the method that paid or a gift card."""
    order = _order(book, order_id, "delivered")
    method = _method(book, order, payment_method_id)
    _positions(order, item_ids)
    if method["source"] != "gift_card" and payment_method_id not in _paid(order):
        raise RefusedError("a refund goes to the original payment method or to a gift card")
    order = book.edit("orders", order_id)
    order["status"] = "return requested"
    order["return_items"] = sorted(item_ids)
    order["return_payment_method_id"] = payment_method_id
    return f"the return of order {order_id} is requested"


def exchange_delivered_order_items(
    book: Book, order_id: str, item_ids: Sequence[str], new_item_ids: Sequence[str], payment_method_id: str
) -> str:
    """Ask for items to be exchanged for other variants of their products."""
    order = _order(book, order_id, "delivered")
    swaps = _swaps(book, order, item_ids, new_item_ids)
    difference = _difference(order, swaps)
    _check_funds(book, order, payment_method_id, difference)
    order = book.edit("orders", order_id)
    order["status"] = "exchange requested"
    order["exchange_items"] = sorted(item_ids)
    order["exchange_new_items"] = sorted(new_item_ids)
    order["exchange_payment_method_id"] = payment_method_id
    order["exchange_price_difference"] = difference
    return f"the exchange for order {order_id} is requested; price difference {difference:.2f}"


WRITES: Mapping[str, Callable[..., str]] = {
    write.__name__: write
    for write in (
        cancel_pending_order,
        modify_pending_order_address,
        modify_pending_order_items,
        modify_pending_order_payment,
        modify_user_address,
        return_delivered_order_items,
        exchange_delivered_order_items,
    )
}


def _order(book: Book, order_id: str, status: str) -> Record:
    order = book.read("orders", order_id)
    if order is None:
        raise RefusedError("there is no such order; ids look like #W0000000")
    if order["status"] != status:
        raise RefusedError(f"the order is {order['status']}, not {status}")
    return order


def _method(book: Book, order: Record, method_id: str) -> Record:
    method = book.read("users", order["user_id"])["payment_methods"].get(method_id)
    if method is None:
        raise RefusedError("the user has no such payment method")
    return method


def _check_funds(book: Book, order: Record, method_id: str, amount: float) -> None:
    method = _method(book, order, method_id)
    if method["source"] == "gift_card" and method["balance"] < amount:
        raise RefusedError(f"the balance of the gift card, {method['balance']:.2f}, is too small")


def _positions(order: Record, item_ids: Sequence[str]) -> list[int]:
    """Where the items stand in the order; an id given twice means two equal items."""
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
    book: Book, order: Record, item_ids: Sequence[str], new_item_ids: Sequence[str]
) -> list[tuple[int, Record]]:
    """Each item's place in the order with the variant that replaces it."""
    if len(item_ids) != len(new_item_ids):
        raise RefusedError("give one new item for each item")
    swaps = []
    for place, new_id in zip(_positions(order, item_ids), new_item_ids, strict=True):
        product = book.read("products", order["items"][place]["product_id"]) or {"variants": {}}
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
    """What each payment method has paid and not got back."""
    net: Counter[str] = Counter()
    for entry in order["payment_history"]:
        sign = 1 if entry["transaction_type"] == "payment" else -1
        net[entry["payment_method_id"]] += sign * entry["amount"]
    return {method: round(amount, 2) for method, amount in net.items() if round(amount, 2) > 0}


def _charge(book: Book, order: Record, method_id: str, amount: float) -> None:
    _book_payment(book, order, method_id, amount, "payment", -amount)


def _refund(book: Book, order: Record, method_id: str, amount: float) -> None:
    _book_payment(book, order, method_id, amount, "refund", amount)


def _book_payment(
    book: Book, order: Record, method_id: str, amount: float, kind: str, to_balance: float
) -> None:
    """Write the order's history, and the balance where the method is a gift card."""
    order["payment_history"].append(
        {"transaction_type": kind, "amount": amount, "payment_method_id": method_id}
    )
    if book.read("users", order["user_id"])["payment_methods"][method_id]["source"] == "gift_card":
        card = book.edit("users", order["user_id"])["payment_methods"][method_id]
        card["balance"] = round(card["balance"] + to_balance, 2)


def _check_address(address: Mapping[str, str]) -> None:
    text = "".join(address.values())
    if not text.isprintable() or len(text) > LONGEST_ADDRESS:
        raise RefusedError(f"an address is plain text of at most {LONGEST_ADDRESS} characters")


def _ordered(address: Mapping[str, str]) -> dict[str, str]:
    return {name: address[name] for name in ADDRESS_FIELDS}
