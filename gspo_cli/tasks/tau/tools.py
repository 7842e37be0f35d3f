"""The tools of the retail shop in tau-bench's and in tau2-bench's set, and the replay of gold actions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from gspo_cli.tasks.tau.database import RetailDatabase
from gspo_cli.tasks.tau.lookups import (
    calculate,
    find_user_id_by_email,
    find_user_id_by_name_zip,
    get_item_details,
    get_order_details,
    get_product_details,
    get_user_details,
    list_all_product_types,
    think,
)
from gspo_cli.tasks.tau.writes import WRITES
from gspo_cli.tasks.tools import Example, Tool, ToolCall, by_name, read_turn, run_call, tool


@tool
def transfer_to_human_agents(
    database: RetailDatabase,
    /,
    summary: Annotated[str, "what the user wants", Example("wants to cancel a shipped order")],
) -> str:
    """Hand the user over to a human agent; this ends the conversation."""
    return "the user is handed over to a human agent"


TRANSFER = transfer_to_human_agents.name
SHARED = (
    find_user_id_by_email,
    find_user_id_by_name_zip,
    get_user_details,
    get_order_details,
    get_product_details,
    list_all_product_types,
    *WRITES.values(),
    calculate,
    transfer_to_human_agents,
)
TAU_TOOLS = (*SHARED, think)  # those of tau-bench
TAU2_TOOLS = (*SHARED, get_item_details)  # those of tau2-bench
ALL_TOOLS = by_name(*SHARED, think, get_item_details)


def owner(database: RetailDatabase, call: ToolCall) -> str | None:
    """The user whose data a call reads or changes; None if it belongs to no user."""
    order = database.read("orders", call.arguments.get("order_id", ""))
    return order["user_id"] if order is not None else call.arguments.get("user_id")


def gold_call(name: str, arguments: Mapping[str, Any], tools: Mapping[str, Tool]) -> ToolCall | None:
    """A gold action as the call that an agent would make; None if it is not a well-formed one."""
    call = read_turn(json.dumps({"name": name, "arguments": arguments}), tools)
    return call if isinstance(call, ToolCall) else None


def replay(database: RetailDatabase, actions: Sequence[Mapping[str, Any]]) -> int:
    """Carry out gold actions in order. Returns how many of them fail."""
    calls = [gold_call(action["name"], action["kwargs"], ALL_TOOLS) for action in actions]
    return sum(call is None or not run_call(call, ALL_TOOLS, database).ok for call in calls)
