"""The tools of the telecom tasks as agents see them, the replay of gold actions, and the policy's rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Annotated, Any

from gspo_cli.tasks.tau.tools import gold_call
from gspo_cli.tasks.tau2 import carrier_tools, phone_tools
from gspo_cli.tasks.tau2.world import TODAY, TelecomWorld
from gspo_cli.tasks.tools import (
    Example,
    FunctionTool,
    Observation,
    ToolCall,
    by_name,
    run_call,
    tool,
)


@tool
def transfer_to_human_agents(
    world: TelecomWorld, /, summary: Annotated[str, "what is wrong", Example("the SIM card is locked")]
) -> str:
    """Hand the ticket over to a human agent; this ends the conversation."""
    return "the ticket is handed over"


TRANSFER = transfer_to_human_agents.name


def _tools_of(module: ModuleType) -> list[FunctionTool]:
    """The tools of a module in their order."""
    return [value for value in vars(module).values() if isinstance(value, FunctionTool)]


TOOLS = by_name(*_tools_of(carrier_tools), *_tools_of(phone_tools), transfer_to_human_agents)


def perform(world: TelecomWorld, call: ToolCall) -> Observation:
    """Run a call, and add it to the world's calls where it succeeds."""
    observation = run_call(call, TOOLS, world)
    if observation.ok:
        world.calls.append((call.name, call.arguments))
    return observation


def gold_calls(actions: Sequence[Mapping[str, Any]]) -> list[ToolCall | None]:
    """Gold actions as the calls that an agent would make; None for those that are not well-formed."""
    return [gold_call(action["name"], action["arguments"], TOOLS) for action in actions]


def replay(world: TelecomWorld, actions: Sequence[Mapping[str, Any]]) -> int:
    """Carry out gold actions in order. Returns how many of them fail."""
    return sum(call is None or not perform(world, call).ok for call in gold_calls(actions))


def broken_rule(world: TelecomWorld, call: ToolCall, ticket: str) -> str | None:
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
