"""The grammar of tau-bench's synthetic instructions: who the user is, and a list of requests.

    Your name is F L and your zip code is Z. You are P. Cancel order #W1 because no longer needed.
    Return #W2 via M: A; B; For #W3, exchange X {..} to {..}; via M. For #W4, change payment to M.
    For #W4, change address to {..} (same as #W5).

Instructions in free text have no script: they take another kind of user."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

HEAD = re.compile(
    r"Your name is (?P<first>\S+) (?P<last>\S+) and your "
    r"(?:zip code is (?P<zip>\d+)|email is (?P<email>\S+@\S+))\. You are (?P<manner>[^.]*)\. "
)
CANCEL = re.compile(r"Cancel order (?P<order>#W\d+) because (?P<reason>[a-z ]+)\. ")
RETURN = re.compile(r"Return (?P<order>#W\d+) via (?P<method>\w+): (?P<items>(?:[^;{}#]+(?:\{[^{}]*\})?; )+)")
RETURNED = re.compile(r"(?P<name>[^;{}#]+)(?:\{(?P<options>[^{}]*)\})?; ")
ITEMS = re.compile(
    r"For (?P<order>#W\d+), (?P<verb>modify|exchange) "
    r"(?P<items>(?:[^;{}#]+ \{[^{}]*\} to \{[^{}]*\}; )+)via (?P<method>\w+)\. "
)
ITEM = re.compile(r"(?P<name>[^;{}#]+) \{(?P<old>[^{}]*)\} to \{(?P<new>[^{}]*)\}; ")
PAYMENT = re.compile(r"For (?P<order>#W\d+), change payment to (?P<method>\w+)\. ")
ADDRESS = re.compile(
    r"For (?P<order>#W\d+), change address to \{(?P<address>[^{}]*)\}(?: \(same as #W\d+\))?\. "
)
PAIR = re.compile(r"'(?P<key>[^']*)': (?:'(?P<single>[^']*)'|\"(?P<double>[^\"]*)\")")


@dataclass(frozen=True)
class OrderRequest:
    """One request: the tool that carries it out, its order, and the user's words for it."""

    tool: str
    order_id: str
    words: str


@dataclass(frozen=True)
class UserScript:
    """A user with requests; either `zip` or `email` is known."""

    first_name: str
    last_name: str
    zip: str | None
    email: str | None
    requests: tuple[OrderRequest, ...]


def read_script(instruction: str) -> UserScript | None:
    """The script of an instruction; None if the grammar does not fit."""
    text = instruction.strip() + " "
    head = HEAD.match(text)
    if head is None:
        return None
    requests, position = [], head.end()
    while position < len(text):
        request, position = _next_request(text, position)
        if request is None:
            return None
        requests.append(request)
    if not requests:
        return None
    return UserScript(head["first"], head["last"], head["zip"], head["email"], tuple(requests))


def _next_request(text: str, position: int) -> tuple[OrderRequest | None, int]:
    for pattern, read in FORMS.items():
        match = pattern.match(text, position)
        if match is not None:
            return read(match), match.end()
    return None, position


def _cancel(match: re.Match[str]) -> OrderRequest:
    words = f"I want to cancel order {match['order']}: {match['reason']}."
    return OrderRequest("cancel_pending_order", match["order"], words)


def _return(match: re.Match[str]) -> OrderRequest:
    items = ", ".join(_named(item["name"], item["options"]) for item in RETURNED.finditer(match["items"]))
    words = f"I want to return from order {match['order']}: {items}. Refund {match['method']}."
    return OrderRequest("return_delivered_order_items", match["order"], words)


def _items(match: re.Match[str]) -> OrderRequest:
    pending = match["verb"] == "modify"
    wishes = "; ".join(_wish(item) for item in ITEM.finditer(match["items"]))
    words = (
        f"In order {match['order']} I want to {'change' if pending else 'exchange'} {wishes}. "
        f"Use {match['method']} for the difference."
    )
    tool = "modify_pending_order_items" if pending else "exchange_delivered_order_items"
    return OrderRequest(tool, match["order"], words)


def _wish(item: re.Match[str]) -> str:
    new = _in_words(item["new"])
    other = f"one with {new}, the rest as it is" if new else "the very same one"
    return f"the {_named(item['name'], item['old'])} for {other}"


def _named(name: str, options: str | None) -> str:
    return f"{name.strip()} ({_in_words(options)})" if options else name.strip()


def _payment(match: re.Match[str]) -> OrderRequest:
    words = f"I want to pay order {match['order']} with {match['method']} instead."
    return OrderRequest("modify_pending_order_payment", match["order"], words)


def _address(match: re.Match[str]) -> OrderRequest:
    pairs = dict(_pairs(match["address"]))
    pairs.pop("order_id", None)
    address = ", ".join(f"{key} {value}" for key, value in pairs.items())
    words = f"Please send order {match['order']} to another address: {address}."
    return OrderRequest("modify_pending_order_address", match["order"], words)


FORMS: Mapping[re.Pattern[str], Callable[[re.Match[str]], OrderRequest]] = {
    CANCEL: _cancel,
    RETURN: _return,
    ITEMS: _items,
    PAYMENT: _payment,
    ADDRESS: _address,
}


def _in_words(options: str) -> str:
    return ", ".join(f"{key} {value}" for key, value in _pairs(options))


def _pairs(text: str) -> list[tuple[str, str]]:
    return [(pair["key"], pair["single"] or pair["double"] or "") for pair in PAIR.finditer(text)]
