"""The scripted customer: a pure function of what they want, what has been said so far, and the agent's words.

The customer sees neither the tools nor the database. They believe what they are told: the first answer to a
request settles it for them, be it true or not."""

from __future__ import annotations

from dataclasses import dataclass, replace

from gspo_cli.tasks.customer_service.listening import Heard, Mentions, listen
from gspo_cli.tasks.customer_service.scenario import Action, Order, Request, Scenario
from gspo_cli.tasks.customer_service.wording import Wording

PATIENCE = 3  # clarifications; the last ends the conversation
GIVES_UP = "this does not help me, bye"
PUZZLED = "sorry, i do not understand. "
# what is missing in a report that names the order and what was done, and no more
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
    """How far the conversation is for the customer: `current` is the place of the request they are at,
    `agreed` what they have said yes to."""

    current: int = 0
    email_given: bool = False
    agreed: frozenset[Request] = frozenset()
    clarifications: int = 0


@dataclass(frozen=True)
class Reply:
    """What the customer says, and whether they took the agent's words as the answer to their request."""

    text: str
    mood: Mood
    answered: bool = False
    done: bool = False


def reply(scenario: Scenario, wording: Wording, mood: Mood, text: str) -> Reply:
    """React to the agent's words."""
    heard = listen(text)
    request, phrase = scenario.requests[mood.current], wording.requests[mood.current]
    answered = is_answer(request, heard.said)
    if "email" in heard.asked.words and not mood.email_given:
        return Reply(wording.email, replace(mood, email_given=True))
    # who has said yes hears a report in a report, whatever is asked behind it
    if is_consent_question(request, heard) and not (answered and request in mood.agreed):
        return Reply(wording.consent, replace(mood, agreed=mood.agreed | {request}))
    if answered:
        return _next_request(wording, mood)
    if "email" in (heard.asked if mood.email_given else heard.all).words:
        if mood.email_given:
            return _puzzled(mood, wording.email)
        return Reply(wording.email, replace(mood, email_given=True))
    if _proposal(heard).actions or heard.asked.orders - {request.order}:
        return Reply(f"no, {phrase}", mood)
    if heard.asked.words & OPEN_QUESTION:
        return Reply(phrase, mood)
    if _is_bare_report(request, heard.said):
        missing = WHICH_CITY if request.action is Action.move else WHICH_AMOUNT
        return _puzzled(mood, missing.format(order=request.order))
    return _puzzled(mood, PUZZLED + phrase)


def is_answer(request: Request, said: Mentions) -> bool:
    """Whether the statements settle the request for the customer: a report, a refusal with the status, or
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


def is_true_answer(request: Request, said: Mentions, goal: Order) -> bool:
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


def is_consent_question(request: Request, heard: Heard) -> bool:
    """Whether the agent asks leave for exactly this action on exactly this order."""
    proposed = _proposal(heard)
    if not heard.asked.orders and heard.asked.words & SOMETHING_ELSE:
        return False
    orders = heard.asked.orders or heard.all.orders
    if request.action is Action.status or orders != {request.order} or request.action in proposed.denied:
        return False
    # a cancelled order is refunded, too: a question may say so
    actions = proposed.actions - ({Action.refund} if request.action is Action.cancel else set())
    rightly = request.action is not Action.move or proposed.cities == {request.city}
    return actions == {request.action} and rightly


def _proposal(heard: Heard) -> Mentions:
    """What the agent asks leave for: "i can cancel order 482. shall i go ahead?" names it in a statement."""
    asked = heard.asked
    if asked.actions or not asked.words & GO_AHEAD or asked.words & (OPEN_QUESTION | SOMETHING_ELSE):
        return asked
    return heard.all


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


def _is_bare_report(request: Request, said: Mentions) -> bool:
    return (
        request.action is not Action.status
        and said.orders == {request.order}
        and _reports(request.action, said)
    )


def _next_request(wording: Wording, mood: Mood) -> Reply:
    place = mood.current + 1
    if place == len(wording.requests):
        return Reply(wording.thanks, replace(mood, current=place), answered=True, done=True)
    return Reply(wording.next + wording.requests[place], replace(mood, current=place), answered=True)


def _puzzled(mood: Mood, text: str) -> Reply:
    mood = replace(mood, clarifications=mood.clarifications + 1)
    if mood.clarifications == PATIENCE:
        return Reply(GIVES_UP, mood, done=True)
    return Reply(text, mood)
