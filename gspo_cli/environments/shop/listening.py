"""What an agent's words name, as the scripted user understands them: orders, amounts, cities, statuses and
actions; sentences that ask are kept apart from sentences that say.

Nothing here takes more than a pass or two over the text, whatever it is."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

from gspo_cli.environments.shop.scenario import CITIES, STATUSES, Action

SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n")
CHUNK = re.compile(r"\S+")
WORD = re.compile(r"[0-9]+(?:\.[0-9]+)?|[a-z][a-z0-9]*")

ACTION_WORDS = {
    Action.cancel: {"cancel", "canceling", "cancelling", "cancellation", "cancelled"},
    Action.refund: {"refund", "refunded", "refunding", "refunds"},
    Action.move: {"move", "moved", "moving", "address", "send", "redirect", "redirected"},
}
DENIALS = {"not", "cannot", "t", "unable", "never"}  # "can't" is read as "can" and "t"


class Mentions(NamedTuple):
    """What a text names. A number of three digits is an order, any other an amount."""

    words: frozenset[str]
    orders: frozenset[int]
    amounts: frozenset[float]
    cities: frozenset[str]
    statuses: frozenset[str]
    actions: frozenset[Action]
    denies: bool


@dataclass(frozen=True)
class Heard:
    """A turn of the agent: what its statements name, what its questions name, and both together."""

    said: Mentions
    asked: Mentions
    all: Mentions


def listen(text: str) -> Heard:
    """Understand a turn as far as its words go."""
    spoken = (
        CHUNK.sub(_without_email, text.lower()).replace("canceled", "cancelled").replace("e-mail", "email")
    )
    sentences = SENTENCE_END.split(spoken)
    asking = [sentence for sentence in sentences if _asks(sentence)]
    saying = [sentence for sentence in sentences if not _asks(sentence)]
    said, asked = _mentions(saying), _mentions(asking)
    return Heard(said, asked, Mentions(*(one | other for one, other in zip(said, asked, strict=True))))


def _without_email(chunk: re.Match[str]) -> str:
    """The digits of an email are no order; a full stop behind it stays."""
    text = chunk.group()
    return text if "@" not in text else text[-1] if text[-1] in ".!?" else ""


def _asks(sentence: str) -> bool:
    return sentence.rstrip(" \"')*").endswith("?") or "please confirm" in sentence


def _mentions(sentences: list[str]) -> Mentions:
    found = WORD.findall("\n".join(sentences))
    words = frozenset(word for word in found if not word[0].isdigit())
    numbers = {word for word in found if word[0].isdigit()}
    orders = {number for number in numbers if len(number) == 3 and "." not in number}
    denies = not words.isdisjoint(DENIALS)
    statuses = words & set(STATUSES)
    return Mentions(
        words=words,
        orders=frozenset(int(number) for number in orders),
        amounts=frozenset(float(number) for number in numbers - orders),
        cities=words & set(CITIES),
        # "cannot be cancelled" tells no status
        statuses=statuses - {"cancelled"} if denies else statuses,
        actions=frozenset(action for action, names in ACTION_WORDS.items() if words & names),
        denies=denies,
    )
