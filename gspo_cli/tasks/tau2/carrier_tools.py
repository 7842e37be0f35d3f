"""What can be done at the carrier."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated

from gspo_cli.tasks.tau2.world import Record, TelecomWorld, data_allowance
from gspo_cli.tasks.tools import Example, RefusedError, tool

MOST_REFUEL_GB = 2.0  # of the published policy
PhoneNumber = Annotated[str, "phone number", Example("555-000-0000")]
CustomerId = Annotated[str, "id of the customer", Example("C1000")]
LineId = Annotated[str, "id of a line of the customer", Example("L1000")]
BillId = Annotated[str, "id of a bill of the customer", Example("B1000")]
RecordId = Annotated[str, "id of a customer, line, bill, device or plan", Example("L1000")]
PlanId = Annotated[str, "id of the new plan", Example("P1000")]
Gigabytes = Annotated[float, f"gigabytes, above 0 and at most {MOST_REFUEL_GB:g}", Example(1.5)]
TABLE_BY_LETTER = {"C": "customers", "L": "lines", "B": "bills", "D": "devices", "P": "plans"}


@tool
def get_customer_by_phone(world: TelecomWorld, /, phone_number: PhoneNumber) -> str:
    """Show the customer whose own number or line it is."""
    lines = {key for key, line in world.tables["lines"].items() if line["phone_number"] == phone_number}
    return _customer(
        world, lambda one: one["phone_number"] == phone_number or not lines.isdisjoint(one["line_ids"])
    )


@tool
def get_customer_by_id(world: TelecomWorld, /, customer_id: CustomerId) -> str:
    """Show a customer."""
    return json.dumps(world.record("customers", customer_id))


@tool
def get_customer_by_name(
    world: TelecomWorld,
    /,
    full_name: Annotated[str, "first and last name", Example("Sara Doe")],
    date_of_birth: Annotated[str, "year, month and day", Example("1990-12-31")],
) -> str:
    """Show the customer of this name who was born on this day."""
    wanted = (full_name.lower(), date_of_birth)
    return _customer(world, lambda one: (one["full_name"].lower(), one["date_of_birth"]) == wanted)


@tool
def get_details_by_id(
    world: TelecomWorld,
    /,
    id: RecordId,
) -> str:
    """Show any record of the carrier."""
    return json.dumps(world.record(TABLE_BY_LETTER.get(id[:1], "lines"), id))


@tool
def get_bills_for_customer(world: TelecomWorld, /, customer_id: CustomerId) -> str:
    """Show all bills of a customer."""
    return json.dumps(
        [world.record("bills", key) for key in world.record("customers", customer_id)["bill_ids"]]
    )


@tool
def get_data_usage(world: TelecomWorld, /, customer_id: CustomerId, line_id: LineId) -> str:
    """Show how much data a line has used, and may use."""
    line = world.line_of(customer_id, line_id)
    return f"used {line['data_used_gb']:.1f} GB of {data_allowance(world, line):.1f} GB"


@tool
def list_plans(world: TelecomWorld, /) -> str:
    """Show all plans."""
    return json.dumps(list(world.tables["plans"].values()))


@tool
def change_plan(world: TelecomWorld, /, customer_id: CustomerId, line_id: LineId, plan_id: PlanId) -> str:
    """Give a line another plan."""
    line, plan = world.line_of(customer_id, line_id), world.record("plans", plan_id)
    line["plan_id"] = plan_id
    return f"line {line['line_id']} has the plan {plan['name']}"


@tool
def refuel_data(
    world: TelecomWorld, /, customer_id: CustomerId, line_id: LineId, gb_amount: Gigabytes
) -> str:
    """Add data to a line at its plan's price."""
    line = world.line_of(customer_id, line_id)
    if not 0 < gb_amount <= MOST_REFUEL_GB:
        raise RefusedError(f"gb_amount must be above 0 and at most {MOST_REFUEL_GB}")
    line["data_refueling_gb"] += gb_amount
    price = gb_amount * world.record("plans", line["plan_id"])["data_refueling_price_per_gb"]
    return f"added {gb_amount:g} GB for {price:.2f}"


@tool
def enable_roaming(world: TelecomWorld, /, customer_id: CustomerId, line_id: LineId) -> str:
    """Let a line be used abroad, at the carrier."""
    world.line_of(customer_id, line_id)["roaming_enabled"] = True
    return "roaming is enabled for the line"


@tool
def disable_roaming(world: TelecomWorld, /, customer_id: CustomerId, line_id: LineId) -> str:
    """Keep a line from being used abroad, at the carrier."""
    world.line_of(customer_id, line_id)["roaming_enabled"] = False
    return "roaming is disabled for the line"


@tool
def suspend_line(world: TelecomWorld, /, customer_id: CustomerId, line_id: LineId) -> str:
    """Take a line out of service, at the carrier."""
    line = world.line_of(customer_id, line_id)
    if line["status"] != "Active":
        raise RefusedError(f"the line is {line['status']}, not Active")
    line["status"] = "Suspended"
    return "the line is suspended"


@tool
def resume_line(world: TelecomWorld, /, customer_id: CustomerId, line_id: LineId) -> str:
    """Put a suspended line into service, at the carrier."""
    line = world.line_of(customer_id, line_id)
    if line["status"] != "Suspended":
        raise RefusedError(f"the line is {line['status']}, not Suspended")
    line["status"] = "Active"
    return "the line is active; the phone finds it after a reboot"


@tool
def send_payment_request(world: TelecomWorld, /, customer_id: CustomerId, bill_id: BillId) -> str:
    """Ask the customer to pay a bill; one at a time."""
    bill = world.bill_of(customer_id, bill_id)
    waiting = [world.record("bills", key) for key in world.record("customers", customer_id)["bill_ids"]]
    if any(other["status"] == "Awaiting Payment" for other in waiting):
        raise RefusedError("another payment request is open")
    if bill["status"] == "Paid":
        raise RefusedError("the bill is paid")
    bill["status"] = "Awaiting Payment"
    return "the payment request is sent"


def _customer(world: TelecomWorld, matches: Callable[[Record], bool]) -> str:
    found = next((one for one in world.tables["customers"].values() if matches(one)), None)
    if found is None:
        raise RefusedError("there is no such customer")
    return json.dumps(found)
