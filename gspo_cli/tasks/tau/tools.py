"""The tools of the retail shop as agents see them, and how a call is carried out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gspo_cli.tasks.tau.database import Book
from gspo_cli.tasks.tau.lookups import LOOKUPS
from gspo_cli.tasks.tau.writes import WRITES, RefusedError
from gspo_cli.tasks.tools import Kind, Parameter, Tool, ToolCall, read_turn

TRANSFER = "transfer_to_human_agents"

ORDER = Parameter("order_id", "the order, such as #W0000000")
USER = Parameter("user_id", "the user, such as sara_doe_496")
ITEMS = Parameter("item_ids", "the items, each as often as it is meant", Kind.list)
NEW_ITEMS = Parameter("new_item_ids", "their replacements, in the same order", Kind.list)
METHOD = Parameter("payment_method_id", "a payment method of the user")
ADDRESS = (
    Parameter("address1", "street and number"),
    Parameter("address2", "apartment or suite; may be empty"),
    Parameter("city", "city"),
    Parameter("state", "state, such as NY"),
    Parameter("country", "country, such as USA"),
    Parameter("zip", "zip code"),
)

FIND_BY_EMAIL = Tool("find_user_id_by_email", "Find a user.", (Parameter("email", "email of the user"),))
FIND_BY_NAME_ZIP = Tool(
    "find_user_id_by_name_zip",
    "Find a user who does not know the email.",
    (
        Parameter("first_name", "first name"),
        Parameter("last_name", "last name"),
        Parameter("zip", "zip code"),
    ),
)
THINK = Tool("think", "Note a thought; nothing happens.", (Parameter("thought", "the thought"),))
ITEM_DETAILS = Tool("get_item_details", "Show one variant.", (Parameter("item_id", "the variant"),))
SHARED = (
    FIND_BY_EMAIL,
    FIND_BY_NAME_ZIP,
    Tool("get_user_details", "Show a user's profile, payment methods and orders.", (USER,)),
    Tool("get_order_details", "Show an order.", (ORDER,)),
    Tool(
        "get_product_details",
        "Show the variants of a product with prices.",
        (Parameter("product_id", "the product, not an item"),),
    ),
    Tool("list_all_product_types", "List the products with their ids."),
    Tool(
        "cancel_pending_order",
        "Cancel a pending order.",
        (ORDER, Parameter("reason", "no longer needed, or ordered by mistake")),
    ),
    Tool("modify_pending_order_address", "Change where a pending order goes.", (ORDER, *ADDRESS)),
    Tool(
        "modify_pending_order_items",
        "Replace items of a pending order; possible once for an order.",
        (ORDER, ITEMS, NEW_ITEMS, METHOD),
    ),
    Tool("modify_pending_order_payment", "Change how a pending order is paid.", (ORDER, METHOD)),
    Tool("modify_user_address", "Change a user's default address.", (USER, *ADDRESS)),
    Tool("return_delivered_order_items", "Take items of a delivered order back.", (ORDER, ITEMS, METHOD)),
    Tool(
        "exchange_delivered_order_items",
        "Exchange items of a delivered order; possible once for an order.",
        (ORDER, ITEMS, NEW_ITEMS, METHOD),
    ),
    Tool("calculate", "Compute with + - * / and parentheses.", (Parameter("expression", "what to compute"),)),
    Tool(
        TRANSFER,
        "Hand the user over to a human agent; this ends the conversation.",
        (Parameter("summary", "what the user wants"),),
    ),
)
TAU_TOOLS = (*SHARED, THINK)  # those of tau-bench
TAU2_TOOLS = (*SHARED, ITEM_DETAILS)  # those of tau2-bench
ALL_TOOLS = {tool.name: tool for tool in (*SHARED, THINK, ITEM_DETAILS)}


@dataclass(frozen=True)
class Observation:
    """What a call came to; `ok` is false where the shop refused it."""

    text: str
    ok: bool


def perform(book: Book, call: ToolCall) -> Observation:
    """Carry out a well-formed call."""
    if call.name == TRANSFER:
        return Observation("the user is handed over to a human agent", ok=True)
    function = WRITES.get(call.name) or LOOKUPS[call.name]
    try:
        return Observation(function(book, **call.arguments), ok=True)
    except RefusedError as refusal:
        return Observation(f"error: {refusal}", ok=False)


def owner(book: Book, call: ToolCall) -> str | None:
    """The user whose data a call reads or changes; None where it is nobody's."""
    order = book.read("orders", call.arguments.get("order_id", ""))
    return order["user_id"] if order is not None else call.arguments.get("user_id")


def gold_call(action: Mapping[str, Any]) -> ToolCall | None:
    """A gold action as the call that an agent would make; None where it is no well-formed one."""
    call = read_turn(json.dumps({"name": action["name"], "arguments": action["kwargs"]}), ALL_TOOLS)
    return call if isinstance(call, ToolCall) else None


def replay(book: Book, actions: list[Mapping[str, Any]]) -> int:
    """Carry out gold actions in order. Returns how many of them fail."""
    calls = [gold_call(action) for action in actions]
    return sum(call is None or not perform(book, call).ok for call in calls)
