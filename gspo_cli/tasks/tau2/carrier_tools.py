"""What can be done at the carrier. Every function takes the world and returns what the agent reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from gspo_cli.tasks.tau2.world import Record, RefusedError, World, data_allowance

MOST_REFUEL_GB = 2.0  # of the published policy
TABLE_BY_LETTER = {"C": "customers", "L": "lines", "B": "bills", "D": "devices", "P": "plans"}


def get_customer_by_phone(world: World, phone_number: str) -> str:
    """The customer whose own number or line it is."""
    lines = {key for key, line in world.tables["lines"].items() if line["phone_number"] == phone_number}
    return _customer(
        world, lambda one: one["phone_number"] == phone_number or not lines.isdisjoint(one["line_ids"])
    )


def get_customer_by_id(world: World, customer_id: str) -> str:
    """The customer."""
    return json.dumps(world.record("customers", customer_id))


def get_customer_by_name(world: World, full_name: str, date_of_birth: str) -> str:
    """The customer of this name who was born on this day."""
    wanted = (full_name.lower(), date_of_birth)
    return _customer(world, lambda one: (one["full_name"].lower(), one["date_of_birth"]) == wanted)


def get_details_by_id(world: World, id: str) -> str:
    """Any record of the carrier."""
    return json.dumps(world.record(TABLE_BY_LETTER.get(id[:1], "lines"), id))


def get_bills_for_customer(world: World, customer_id: str) -> str:
    """All bills of a customer."""
    return json.dumps(
        [world.record("bills", key) for key in world.record("customers", customer_id)["bill_ids"]]
    )


def get_data_usage(world: World, customer_id: str, line_id: str) -> str:
    """What a line has used, and may use."""
    line = world.line_of(customer_id, line_id)
    return f"used {line['data_used_gb']:.1f} GB of {data_allowance(world, line):.1f} GB"


def list_plans(world: World) -> str:
    """All plans."""
    return json.dumps(list(world.tables["plans"].values()))


def change_plan(world: World, customer_id: str, line_id: str, plan_id: str) -> str:
    """Give a line another plan."""
    line, plan = world.line_of(customer_id, line_id), world.record("plans", plan_id)
    line["plan_id"] = plan_id
    return f"line {line['line_id']} has the plan {plan['name']}"


def refuel_data(world: World, customer_id: str, line_id: str, gb_amount: float) -> str:
    """Add data to a line at its plan's price."""
    line = world.line_of(customer_id, line_id)
    if not 0 < gb_amount <= MOST_REFUEL_GB:
        raise RefusedError(f"gb_amount must be above 0 and at most {MOST_REFUEL_GB}")
    line["data_refueling_gb"] += gb_amount
    price = gb_amount * world.record("plans", line["plan_id"])["data_refueling_price_per_gb"]
    return f"added {gb_amount:g} GB for {price:.2f}"


def enable_roaming(world: World, customer_id: str, line_id: str) -> str:
    """Let a line be used abroad."""
    world.line_of(customer_id, line_id)["roaming_enabled"] = True
    return "roaming is enabled for the line"


def disable_roaming(world: World, customer_id: str, line_id: str) -> str:
    """Keep a line from being used abroad."""
    world.line_of(customer_id, line_id)["roaming_enabled"] = False
    return "roaming is disabled for the line"


def suspend_line(world: World, customer_id: str, line_id: str) -> str:
    """Take a line out of service."""
    line = world.line_of(customer_id, line_id)
    if line["status"] != "Active":
        raise RefusedError(f"the line is {line['status']}, not Active")
    line["status"] = "Suspended"
    return "the line is suspended"


def resume_line(world: World, customer_id: str, line_id: str) -> str:
    """Put a suspended line into service."""
    line = world.line_of(customer_id, line_id)
    if line["status"] != "Suspended":
        raise RefusedError(f"the line is {line['status']}, not Suspended")
    line["status"] = "Active"
    return "the line is active; the phone finds it after a reboot"


def send_payment_request(world: World, customer_id: str, bill_id: str) -> str:
    """Ask the customer to pay a bill; one at a time."""
    bill = world.bill_of(customer_id, bill_id)
    waiting = [world.record("bills", key) for key in world.record("customers", customer_id)["bill_ids"]]
    if any(other["status"] == "Awaiting Payment" for other in waiting):
        raise RefusedError("another payment request is open")
    if bill["status"] == "Paid":
        raise RefusedError("the bill is paid")
    bill["status"] = "Awaiting Payment"
    return "the payment request is sent"


CARRIER_TOOLS: Mapping[str, Callable[..., str]] = {
    tool.__name__: tool
    for tool in (
        get_customer_by_phone,
        get_customer_by_id,
        get_customer_by_name,
        get_details_by_id,
        get_bills_for_customer,
        get_data_usage,
        list_plans,
        change_plan,
        refuel_data,
        enable_roaming,
        disable_roaming,
        suspend_line,
        resume_line,
        send_payment_request,
    )
}


def _customer(world: World, matches: Callable[[Record], bool]) -> str:
    found = next((one for one in world.tables["customers"].values() if matches(one)), None)
    if found is None:
        raise RefusedError("there is no such customer")
    return json.dumps(found)
