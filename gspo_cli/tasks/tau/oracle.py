"""An agent that knows the gold actions: for demonstrations, and to show that tasks can be solved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gspo_cli.tasks.tau.database import RetailData
from gspo_cli.tasks.tau.environment import RetailEnvironment
from gspo_cli.tasks.tau.tools import ALL_TOOLS, TRANSFER
from gspo_cli.tasks.tau.writes import WRITES
from gspo_cli.tasks.tools import write_line
from gspo_cli.types import Problem

ASK_WHO = "May I have your email, or your name and zip code?"
ASK_WHAT = "Thank you. How can I help you?"
REPORT = "That is done. Can I help you with anything else?"
REFUSE = "I am sorry, that is not possible. Is there anything else?"


def service(data: RetailData, environment: RetailEnvironment, problem: Problem) -> Iterator[str]:
    """Turns that serve a scripted user: identify, look up, ask for a yes, act, report."""
    yield ASK_WHO
    yield _identify(data, problem)
    yield ASK_WHAT
    for action in problem.metadata["actions"]:
        order_id = action["kwargs"]["order_id"]
        yield from _look_up(data, action)
        yield f"I will use {action['name']} on order {order_id}. Do you confirm?"
        failed = environment.tool_errors
        yield _written(action)
        yield REPORT if environment.tool_errors == failed else REFUSE
    yield REPORT


def ticket_work(data: RetailData, problem: Problem) -> Iterator[str]:
    """Turns that carry out a ticket without words, and end it with the outputs that had to be told."""
    yield _identify(data, problem)
    for action in problem.metadata["actions"]:
        if action["name"] in WRITES:
            yield from _look_up(data, action)
            yield _written(action)
    yield " ".join(["Done.", *problem.metadata["outputs"]])
    yield write_line(TRANSFER, "the ticket is done")


def _identify(data: RetailData, problem: Problem) -> str:
    user = data.users[problem.metadata["user_id"]]
    if user["email"] in problem.metadata["instruction"]:
        return write_line("find_user_id_by_email", user["email"])
    name = user["name"]
    return write_line(
        "find_user_id_by_name_zip", name["first_name"], name["last_name"], user["address"]["zip"]
    )


def _look_up(data: RetailData, action: Mapping[str, Any]) -> Iterator[str]:
    """Calls that read what the action needs: the order, and the products of the items to replace."""
    order_id = action["kwargs"].get("order_id")
    if order_id not in data.orders:
        return
    yield write_line("get_order_details", order_id)
    if "new_item_ids" in action["kwargs"]:
        products = {item["item_id"]: item["product_id"] for item in data.orders[order_id]["items"]}
        chosen = [products[item] for item in action["kwargs"]["item_ids"] if item in products]
        for product_id in dict.fromkeys(chosen):
            yield write_line("get_product_details", product_id)


def _written(action: Mapping[str, Any]) -> str:
    """A gold action in the line form."""
    places = [parameter.name for parameter in ALL_TOOLS[action["name"]].parameters]
    return write_line(action["name"], *(action["kwargs"][place] for place in places))
