"""The tools of the telecom tasks as agents see them, and how a call is carried out."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from typing import Any

from gspo_cli.tasks.tau2.carrier_tools import CARRIER_TOOLS
from gspo_cli.tasks.tau2.phone_tools import PHONE_TOOLS
from gspo_cli.tasks.tau2.world import TODAY, RefusedError, World
from gspo_cli.tasks.tools import Kind, Parameter, Tool, ToolCall, read_turn

TRANSFER = "transfer_to_human_agents"
FUNCTIONS = {**CARRIER_TOOLS, **PHONE_TOOLS}
DESCRIPTIONS = {
    "phone_number": "such as 555-000-0000",
    "customer_id": "such as C1000",
    "line_id": "such as L1000",
    "bill_id": "such as B1000",
    "plan_id": "such as P1000",
    "id": "id of a customer, line, bill, device or plan",
    "full_name": "first and last name",
    "date_of_birth": "as 1990-12-31",
    "gb_amount": "gigabytes",
    "mode": "4g_5g_preferred, 4g_only, 3g_only or 2g_only",
    "app_name": "an installed app",
    "permission": "such as storage or sms",
    "apn_name": "name of the access point",
    "mmsc_url": "address of the message centre",
}


def _tool(name: str) -> Tool:
    """A function's tool: its docstring and its parameters after the world."""
    function = FUNCTIONS[name]
    names = list(inspect.signature(function).parameters)[1:]
    parameters = tuple(
        Parameter(name, DESCRIPTIONS[name], Kind.number if name == "gb_amount" else Kind.text)
        for name in names
    )
    where = "On the phone" if name in PHONE_TOOLS else "At the carrier"
    return Tool(name, f"{where}: {function.__doc__}", parameters)


SOLO_TOOLS = (
    *(_tool(name) for name in FUNCTIONS),
    Tool(
        TRANSFER,
        "Hand the ticket over to a human agent; this ends the conversation.",
        (Parameter("summary", "what is wrong"),),
    ),
)
TOOLS = {tool.name: tool for tool in SOLO_TOOLS}


def perform(world: World, call: ToolCall) -> tuple[str, bool]:
    """Carry out a well-formed call: what is observed, and whether it succeeded."""
    try:
        text = (
            "the ticket is handed over"
            if call.name == TRANSFER
            else FUNCTIONS[call.name](world, **call.arguments)
        )
    except RefusedError as refusal:
        return f"error: {refusal}", False
    world.calls.append((call.name, call.arguments))
    return text, True


def gold_call(action: Mapping[str, Any]) -> ToolCall | None:
    """A gold action as the call that an agent would make; None where it is no well-formed one."""
    call = read_turn(json.dumps({"name": action["name"], "arguments": action["arguments"]}), TOOLS)
    return call if isinstance(call, ToolCall) else None


def replay(world: World, actions: Sequence[Mapping[str, Any]]) -> int:
    """Carry out gold actions in order. Returns how many of them fail."""
    calls = [gold_call(action) for action in actions]
    return sum(call is None or not perform(world, call)[1] for call in calls)


def broken_rule(world: World, call: ToolCall, ticket: str) -> str | None:
    """The rule of the published policy that a call is about to break, in words."""
    customer = world.tables["customers"].get(call.arguments.get("customer_id", ""))
    if call.name == "resume_line" and customer is not None:
        bills = [world.tables["bills"][key]["status"] for key in customer["bill_ids"]]
        line = world.tables["lines"].get(call.arguments["line_id"])
        if "Overdue" in bills or "Awaiting Payment" in bills:
            return "resume_line: a bill is overdue"
        if line is not None and line["contract_end_date"] < TODAY:
            return "resume_line: the contract of the line is over"
    if call.name == "send_payment_request":
        bill = world.tables["bills"].get(call.arguments["bill_id"])
        if bill is not None and bill["status"] != "Overdue":
            return "send_payment_request: the bill is not overdue"
    if call.name == "make_payment" and "permission" not in ticket:
        return "make_payment: the customer has not allowed it"
    return None
