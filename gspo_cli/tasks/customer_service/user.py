"""The scripted customer: a pure function of what they want, what has been said so far, and the agent's words.

The customer sees neither the tools nor the database, and believes the agent: the first answer completes a
request, whether it is true or not. Held-out requests are phrased in ways that training never sees, in words
that it does see."""

from __future__ import annotations

from dataclasses import dataclass, replace

from gspo_cli.randomness import generator
from gspo_cli.tasks.customer_service.listening import Mentions, TurnMentions, listen
from gspo_cli.tasks.customer_service.scenario import Action, CustomerRequest, Order, ShopScenario

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


def draw_wording(scenario: ShopScenario, seed: int) -> Wording:
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


def _fill(phrase: Phrase, request: CustomerRequest) -> str:
    return phrase.format(order=request.order, city=request.city)


PATIENCE = 3  # clarifications; the last one ends the conversation
GIVES_UP = "this does not help me, bye"
PUZZLED = "sorry, i do not understand. "
# questions about what is missing in a report that only names the order and what was done
WHICH_AMOUNT = "how many dollars do i get for order {order}?"
WHICH_CITY = "where does order {order} go now?"
REFUSING = {  # statuses that explain why a request cannot be granted
    Action.cancel: {"shipped", "delivered"},
    Action.refund: {"pending", "shipped", "cancelled"},
    Action.move: {"shipped", "delivered", "cancelled"},
}
CANCEL_WORDS = {"complete", "completed", "done", "processed", "successful", "confirmed"}
REFUND_WORDS = {
    *("done", "issued", "processed", "made", "completed", "complete", "given"),
    *("initiated", "successful", "receive", "sent", "credited", "way"),
}
MOVE_WORDS = {"moved", "changed", "updated", "redirected", "goes", "done"}
OPEN_QUESTION = {"what", "how", "which", "help"}
GO_AHEAD = {"proceed", "ahead", "continue", "okay", "ok", "right", "correct", "agree", "confirm", "yes"}
SOMETHING_ELSE = {"else", "another", "other", "anything", "reason", "more", "further", "everything"}


@dataclass(frozen=True)
class Mood:
    """The customer's view of the conversation: `current` is the index of the current request, `agreed` what
    they have agreed to."""

    current: int = 0
    email_given: bool = False
    agreed: frozenset[CustomerRequest] = frozenset()
    clarifications: int = 0


@dataclass(frozen=True)
class Reaction:
    """What the customer says, and whether they took the agent's words as the answer to their request."""

    text: str
    mood: Mood
    answered: bool = False
    done: bool = False


def react(scenario: ShopScenario, wording: Wording, mood: Mood, text: str) -> Reaction:
    """React to the agent's words."""
    named = listen(text)
    request, phrase = scenario.requests[mood.current], wording.requests[mood.current]
    answered = is_answer(request, named.said)
    if "email" in named.asked.words and not mood.email_given:
        return Reaction(wording.email, replace(mood, email_given=True))
    # after a yes, a report is a report even where a question follows it
    if is_consent_question(request, named) and not (answered and request in mood.agreed):
        return Reaction(wording.consent, replace(mood, agreed=mood.agreed | {request}))
    if answered:
        return _next_request(wording, mood)
    if "email" in (named.asked if mood.email_given else named.all).words:
        if mood.email_given:
            return _puzzled(mood, wording.email)
        return Reaction(wording.email, replace(mood, email_given=True))
    if _proposal(named).actions or named.asked.orders - {request.order}:
        return Reaction(f"no, {phrase}", mood)
    if named.asked.words & OPEN_QUESTION:
        return Reaction(phrase, mood)
    if _is_bare_report(request, named.said):
        missing = WHICH_CITY if request.action is Action.move else WHICH_AMOUNT
        return _puzzled(mood, missing.format(order=request.order))
    return _puzzled(mood, PUZZLED + phrase)


def is_answer(request: CustomerRequest, said: Mentions) -> bool:
    """Whether the statements complete the request for the customer: a report, a refusal with the status, or
    the status asked for. They name this order and no other."""
    if said.orders != {request.order}:
        return False
    if request.action is Action.status:
        return len(said.statuses) == 1
    complete = len(said.cities if request.action is Action.move else said.amounts) == 1
    bound = request.action is Action.move and said.bound == {request.city}
    if complete and (bound or _reports(request.action, said)):
        return True
    return len(said.statuses) == 1 and said.statuses <= REFUSING[request.action]


def is_true_answer(request: CustomerRequest, said: Mentions, goal: Order) -> bool:
    """Whether an answer says what the order's row in the goal state says, and no other amount, city or
    status."""
    if not (said.amounts <= {goal.price} and said.cities <= {goal.city}):
        return False
    if request.action is Action.move and goal.city == request.city:
        # "it will be delivered to rome" is about the future
        moved = said.bound == {goal.city} or _reports(Action.move, said)
        return said.cities == {goal.city} and moved
    if request.action in (Action.cancel, Action.refund) and goal.refunded:
        named = said.statuses <= {goal.status} and said.amounts == {goal.refunded}
        return named and _reports(request.action, said)
    claims_refund = _reports(Action.refund, said) and said.amounts
    claims_cancelling = _reports(Action.cancel, said) and goal.status != "cancelled"
    return said.statuses == {goal.status} and not claims_refund and not claims_cancelling


def is_consent_question(request: CustomerRequest, named: TurnMentions) -> bool:
    """Whether the agent asks permission for exactly this action on exactly this order."""
    proposed = _proposal(named)
    if not named.asked.orders and named.asked.words & SOMETHING_ELSE:
        return False
    orders = named.asked.orders or named.all.orders
    if request.action is Action.status or orders != {request.order} or request.action in proposed.denied:
        return False
    # a cancelled order is refunded, too: a question may say so
    actions = proposed.actions - ({Action.refund} if request.action is Action.cancel else set())
    rightly = request.action is not Action.move or proposed.cities == {request.city}
    return actions == {request.action} and rightly


def _proposal(named: TurnMentions) -> Mentions:
    """What the agent asks permission for; "i can cancel order 482. shall i go ahead?" has it in a
    statement."""
    asked = named.asked
    if asked.actions or not asked.words & GO_AHEAD or asked.words & (OPEN_QUESTION | SOMETHING_ELSE):
        return asked
    return named.all


def _reports(action: Action, said: Mentions) -> bool:
    """Whether the statements say that the action was done."""
    reported = said.reported
    if action is Action.cancel:
        finished = "cancellation" in reported and not reported.isdisjoint(CANCEL_WORDS)
        return "cancelled" in reported or finished
    if action is Action.refund:
        issued = "refund" in reported and not reported.isdisjoint(REFUND_WORDS)
        return ("refunded" in reported or issued) and "cancelled" not in reported
    return not reported.isdisjoint(MOVE_WORDS)


def _is_bare_report(request: CustomerRequest, said: Mentions) -> bool:
    return (
        request.action is not Action.status
        and said.orders == {request.order}
        and _reports(request.action, said)
    )


def _next_request(wording: Wording, mood: Mood) -> Reaction:
    place = mood.current + 1
    if place == len(wording.requests):
        return Reaction(wording.thanks, replace(mood, current=place), answered=True, done=True)
    return Reaction(wording.next + wording.requests[place], replace(mood, current=place), answered=True)


def _puzzled(mood: Mood, text: str) -> Reaction:
    mood = replace(mood, clarifications=mood.clarifications + 1)
    if mood.clarifications == PATIENCE:
        return Reaction(GIVES_UP, mood, done=True)
    return Reaction(text, mood)
