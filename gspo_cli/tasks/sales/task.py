"""Sales to a customer who needs a phone: the agent asks the need, looks products up, recommends the one that
fits need and budget, answers a doubt truthfully, and asks for the order."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gspo_cli.randomness import generator
from gspo_cli.tasks.sales.customer import DOUBTS, FEATURES, GET, LIST, customer, products
from gspo_cli.tasks.scenarios.task import GeneratedScenarios
from gspo_cli.tasks.tools import Tool, write_line
from gspo_cli.types import Message

POLICY = """You sell phones. One step a turn, one short sentence:
1. Ask the customer: "What do you need?" They say which feature they need, and how much they can pay.
2. Look at the prices with the tool list_products.
3. Look with the tool get_product at one phone a turn that costs no more than the customer can pay, until \
one has the feature. Never guess.
4. Recommend exactly this one phone by its name: "I recommend the nova. It has a good camera."
5. Answer the customer's question with what get_product has shown of this phone, the number with its unit: \
"The warranty is 2 years."
6. Ask for the order: "Do you want to order it?" The customer then says goodbye."""
CLUES = {"warranty": ("breaks", "warranty"), "delivery": ("soon", "delivery"), "weight": ("heavy", "light")}


def solve(messages: Sequence[Message]) -> str:
    """The next turn of an agent that solves every conversation."""
    last = messages[-1].content
    said_before = [message.content for message in messages if message.role == "assistant"]
    if not said_before:
        return "what do you need?"
    users = [message.content for message in messages if message.role == "user"]
    feature = next(name for name in FEATURES if re.search(rf"\b{name}\b", users[1]))
    budget = int(re.findall(r"\d+", users[1])[0])
    if messages[-1].role == "tool":
        return _look_on(last, messages, feature, budget)
    if len(users) == 2:
        return write_line(LIST.name)
    if len(users) == 3:
        return _answer(users[2], messages)
    return "do you want to order it?"


def _look_on(entry: str, messages: Sequence[Message], feature: str, budget: int) -> str:
    """Recommend the product just looked up where it fits; else look up the next affordable one."""
    if " costs " in entry and feature in entry.split(", "):
        return f"i recommend the {entry.split()[0]}. it has a good {feature}."
    prices = next(m.content for m in messages if m.role == "tool").split(", ")
    affordable = [name for name, price in map(str.split, prices) if int(price) <= budget]
    asked = {message.content for message in messages if message.role == "assistant"}
    return next(call for name in affordable if (call := write_line(GET.name, name)) not in asked)


def _answer(question: str, messages: Sequence[Message]) -> str:
    """What the recommended product's entry says about the objection."""
    entry = next(message.content for message in reversed(messages) if message.role == "tool")
    name = next(key for key, clues in CLUES.items() if any(clue in question for clue in clues))
    doubt = next(doubt for doubt in DOUBTS if doubt.entry == name)
    value = next(part.split()[1] for part in entry.split(", ") if part.startswith(name))
    return f"the {name} is {value} {doubt.units[1]}."


@dataclass
class Sales(GeneratedScenarios):
    """Customers with a need, a budget and a doubt. Held out are tables of products and words."""

    def policy(self) -> str:
        """How to sell, in words."""
        return POLICY

    def tools(self) -> tuple[Tool, ...]:
        """The product table, in two views."""
        return (LIST, GET)

    def agent(self, messages: Sequence[Message]) -> str:
        """See `solve`."""
        return solve(messages)

    def scenario(self, trained: bool, number: int) -> dict[str, Any]:
        """A customer and four products."""
        random = generator(0, "sales", int(trained), number)
        feature = FEATURES[number % len(FEATURES)]
        doubt = DOUBTS[number // len(FEATURES) % len(DOUBTS)]
        budget = 10 * int(random.integers(12, 30))
        table = products(random, feature, budget)
        return customer(feature, budget, table, doubt, trained, int(random.integers(1000)))
