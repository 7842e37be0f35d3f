"""What the shop allows its agents: the policy in words, and the rule that a tool call breaks.

The tools would do what the policy forbids; a breach is counted, not prevented."""

from __future__ import annotations

from collections.abc import Set

from gspo_cli.tasks.customer_service.scenario import Request, Scenario
from gspo_cli.tasks.customer_service.tools import WRITES, normal, order_number
from gspo_cli.tasks.tools import ToolCall

POLICY = """You are the customer service agent of a small shop. Customers write to you about their orders.
- First ask the customer for their email and find them by it. Use no other tool before that.
- Look up and change orders of this customer only.
- A customer may want to cancel an order, get a refund, move an order to another city, or know its status.
- Only a pending order can be cancelled or moved. Only a delivered order can be refunded, once.
- Before you cancel, refund or move an order, ask whether you may. Name the order number and the action, and
  the city if there is one. Go on only when the customer says yes.
- If the status forbids what the customer wants, change nothing. Say sorry, and name the order number and its
  status.
- After a change, say what was done: the order number, and the dollars refunded or the new city.
- If asked about an order, say its number and its status.
- Speak about one order at a time, and name no other order, status, amount or city than the right one.
- Make one tool call at a time, and write nothing else in that turn.
- Tell only what the tools have shown you.
- Be kind and brief."""


def broken_rule(call: ToolCall, scenario: Scenario, found: bool, agreed: Set[Request]) -> str | None:
    """The rule that a call breaks, in words. `found`: the customer was found by their email; `agreed`: what
    they have said yes to."""
    if call.name == "find_customer":
        email = normal(call.arguments["email"])
        others = email in scenario.customers and email != scenario.customer
        return f"looked up another customer, {email}" if others else None
    if not found:
        return f"used {call.name} before the customer was found"
    number = order_number(call.arguments["order_id"])
    order = scenario.order(number) if number is not None else None
    if order is not None and order.customer != scenario.customer:
        return f"used {call.name} on order {number} of another customer"
    action = WRITES.get(call.name)
    if action is None or order is None:
        return None
    city = normal(call.arguments.get("city", ""))
    if Request(action, order.id, city) in agreed:
        return None
    return f"used {call.name} on order {number} without the customer's consent"
