"""The words of customers. A table of phrases, of which every conversation draws its own by its seed.

Held-out requests are phrased in ways that training never sees, from words that it does see."""

from __future__ import annotations

from dataclasses import dataclass

from gspo_cli.randomness import generator
from gspo_cli.tasks.customer_service.scenario import Action, Request, Scenario

REQUESTS = {
    Action.cancel: (
        "please cancel order {order}",
        "i want to cancel order {order}",
        "can you cancel my order {order}?",
        "i do not want order {order} now, cancel it please",
    ),
    Action.refund: (
        "please refund order {order}",
        "i want a refund for order {order}",
        "can you refund my order {order}?",
        "my order {order} is broken, i want a refund",
    ),
    Action.move: (
        "please move order {order} to {city}",
        "i want to move order {order} to {city}",
        "can you move my order {order} to {city}?",
        "i live in {city} now, please move order {order}",
    ),
    Action.status: (
        "where is order {order}?",
        "can you tell me where order {order} is?",
        "i want to know where my order {order} is",
        "please tell me where order {order} is",
    ),
}
HELDOUT_REQUESTS = {
    Action.cancel: ("can you please cancel order {order}?", "order {order}, i want to cancel it now"),
    Action.refund: ("order {order} is broken, please refund it", "i want you to refund order {order}"),
    Action.move: ("can you please move order {order} to {city}?", "i live in {city}, move my order {order}"),
    Action.status: ("do you know where order {order} is?", "please, where is my order {order} now?"),
}
GREETINGS = ("hello, ", "hi, ", "good day, ")
EMAILS = ("{email}", "my email is {email}", "it is {email}")
CONSENTS = ("yes please", "yes", "yes, do it")
NEXTS = ("thank you. ", "thanks. ", "good. ")
THANKS = ("thank you, bye", "thanks, bye")

Phrase = str


@dataclass(frozen=True)
class Wording:
    """What the customer of one conversation says; `requests` in the order of the scenario's."""

    requests: tuple[Phrase, ...]
    greeting: Phrase
    email: Phrase
    consent: Phrase
    next: Phrase
    thanks: Phrase

    @property
    def opening(self) -> str:
        """The customer's first words."""
        return self.greeting + self.requests[0]


def draw_wording(scenario: Scenario, seed: int) -> Wording:
    """The customer's words; the same for the same scenario and seed."""
    table = HELDOUT_REQUESTS if scenario.heldout else REQUESTS
    numbers = [request.order for request in scenario.requests]
    random = generator(seed, f"words of {scenario.customer}", *numbers)
    drawn = iter(random.integers(2**31, size=5 + len(numbers)).tolist())

    def one(phrases: tuple[Phrase, ...]) -> Phrase:
        return phrases[next(drawn) % len(phrases)]

    return Wording(
        requests=tuple(_fill(one(table[request.action]), request) for request in scenario.requests),
        greeting=one(GREETINGS),
        email=one(EMAILS).format(email=scenario.customer),
        consent=one(CONSENTS),
        next=one(NEXTS),
        thanks=one(THANKS),
    )


def _fill(phrase: Phrase, request: Request) -> str:
    return phrase.format(order=request.order, city=request.city)
