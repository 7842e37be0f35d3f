"""An agent that solves every conversation of the shop from the messages alone.

It produces the demonstrations of the cold start, and tests use it to show that every problem can be solved.
With bad habits it still demonstrates the vocabulary and the tools, as logs of real agents do, and leaves room
for reinforcement learning to improve."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from enum import Enum

from gspo_cli.tasks.customer_service.scenario import CITIES, REQUIRED_STATUS, Action
from gspo_cli.tasks.customer_service.tools import TOOL_OF
from gspo_cli.tasks.tools import write_line
from gspo_cli.types import Message

EMAIL = re.compile(r"[a-z]{3}[0-9]{2}@mail\.com")
ORDER = re.compile(r"\b[0-9]{3}\b")
LISTED = re.compile(r"\b([0-9]{3}) [a-z]+ ([a-z]+)")  # 482 lamp pending
REFUNDED = re.compile(r"([0-9]+) dollars")
REFUSED = re.compile(r"error: order [0-9]{3} is ([a-z]+)")


class Habit(Enum):
    """A bad habit: not asking who the customer is (hasty), not asking before a change (bold), trying what the
    status forbids and reporting it as done (boastful)."""

    hasty = "hasty"
    bold = "bold"
    boastful = "boastful"


def answer(messages: Sequence[Message], habits: frozenset[Habit] = frozenset()) -> str:
    """The next turn of a kind and brief agent; without `habits` it solves the conversation."""
    said = [message.content for message in messages if message.role == "user"]
    request, order = next((text, found[0]) for text in reversed(said) if (found := ORDER.search(text)))
    if Habit.hasty in habits:
        return _serve(request, order, messages[-1], {}, habits)
    email = EMAIL.search(" ".join(said))
    if email is None:
        kind = "sorry for that" if _complains(messages[-1]) else "happy to help"
        return f"{kind}, may i please have your email?"
    name = email.group().partition("@")[0]
    listing = next((m.content for m in messages if m.role == "tool" and m.content.startswith(name)), None)
    if listing is None:
        return write_line("find_customer", email.group())
    return _serve(request, order, messages[-1], dict(LISTED.findall(listing)), habits)


def _serve(
    request: str, order: str, last: Message, statuses: Mapping[str, str], habits: frozenset[Habit]
) -> str:
    """Ask for consent, act on it, report; or report the status if there is nothing to do."""
    action = _action(request)
    city = next((city for city in CITIES if city in request), "")
    if action is Action.status:
        return f"your order {order} is {statuses.get(order, 'pending')}."
    refused = REFUSED.match(last.content)
    status = refused.group(1) if refused else statuses.get(order, REQUIRED_STATUS[action])
    if status != REQUIRED_STATUS[action] and Habit.boastful not in habits:
        return f"sorry, order {order} is {status}, so i cannot {action.value} it."
    if last.role == "tool" and (refused or last.content.startswith("ok:")):
        return _report(action, order, city, last.content)
    if Habit.bold in habits or last.content.startswith("yes"):
        return write_line(TOOL_OF[action], order, *([city] if city else []))
    apology = "sorry for that, " if _complains(last) else ""
    return f"{apology}shall i {action.value} order {order}{f' to {city}' if city else ''} for you?"


def _report(action: Action, order: str, city: str, observation: str) -> str:
    if action is Action.move:
        return f"your order {order} is moved to {city}."
    refunded = REFUNDED.search(observation)
    dollars = refunded.group(1) if refunded else order[1:]  # a boastful agent makes it up
    if action is Action.cancel:
        return f"your order {order} is cancelled, {dollars} dollars are refunded."
    return f"your {dollars} dollars for order {order} are refunded."


def _complains(message: Message) -> bool:
    return message.role == "user" and "broken" in message.content


def _action(request: str) -> Action:
    return next((action for action in Action if action.value in request), Action.status)
