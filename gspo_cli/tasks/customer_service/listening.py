"""What an agent's words name, as the scripted user understands them: orders, amounts, cities, statuses and
actions. Questions are kept apart from statements.

Statements are read clause by clause: what is denied, wished for or only possible does not count as a
statement. Any text takes only a few passes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from gspo_cli.tasks.customer_service.scenario import CITIES, STATUSES, Action

SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n")
CLAUSE_END = re.compile(r"[,;:!?]|\.(?![0-9])|\b(?:and|but|so|because|which|that(?! are\b))\b")
CHUNK = re.compile(r"\S+")
WORD = re.compile(r"[0-9]+(?:\.[0-9]+)?|[a-z][a-z0-9]*")
ASKS = re.compile(r"please (?:confirm|(?:say|reply|answer)(?: with)? yes)")
EMAIL = re.compile(r"\be-?mail address\b|\be-mail\b|\bmail address\b")
DO_THAT = re.compile(r"\bdo (?:that|this|it|so)\b")
NUMBER = re.compile(r"\b(?:no|nr)\. ?(?=#?[0-9])")  # "order no. 482" is one sentence
DURATION = re.compile(
    r"\b[0-9]{1,2}(?: ?(?:-|–|to|or) ?[0-9]{1,2})?[ -](?:(?:business|working) )?(?:days?|weeks?|hours?)\b"
)
CITY = "|".join(CITIES)
SEND = r"\b(?:send|sending|sent|ship|shipping|shipped|deliver|delivered)\b"
FORMER_CITY = re.compile(rf"\b(?:from|instead of|rather than|not|no longer) (?:{CITY})\b")
BOUND = re.compile(  # where an order ships from now on
    r"(?:\b(?:will|ll) (?:now )?(?:be (?:now )?(?:delivered|sent|shipped|going)|go|ship|arrive)"
    r"|\b(?:have|ve|has been|was) (?:now )?sent(?: it| order [#]?[0-9]{3})?"
    rf"|\bnow(?: going| ships| heading| set to ship)?) (?:to )?({CITY})\b"
)
ACTION_WORDS = {
    Action.cancel: re.compile(r"\b(?:cancel|canceling|cancelling|cancellation|cancelled)\b"),
    Action.refund: re.compile(
        r"\b(?:refund|refunded|refunding|refunds)\b|\b(?:dollars|money) back\b"
        r"|\b(?:give|pay|return) (?:you )?(?:the |your )?(?:money|\$?[0-9]{2} dollars)\b"
    ),
    Action.move: re.compile(
        r"\b(?:move|moved|moving|address|redirect|redirected|redirecting|destination|city"
        r"|change|changed|changing|update|updated|updating)\b"
        r"|\b(?:send|sending) (?!you\b|a refund\b|the refund\b|(?:the |your )?(?:money|\$?[0-9]))"
    ),
}
SHIPPING = re.compile(rf"{SEND}[^,;.!?]{{0,30}}? to (?:{CITY})\b")  # means a move if nothing else is named
# "can't" is read as "can" and "t"
DENIALS = {"not", "cannot", "t", "unable", "never", "longer", "neither", "nor"}
AVOIDS = {"without", "instead", "rather", "stop", "avoid"}
OFFER = re.compile(
    r"\b(?:once|if|when|after|soon as|unless) (?:you|i) (?:confirm|agree|approve|say|do|have)\b"
)
POSSIBLE = {"can", "could", "to", "should", "may", "might", "would", "must", "cannot"}
CONDITIONS = {"if", "once", "until", "when", "unless", "after", "before", "soon"}
WISHES = {"like", "want", "wanted", "wish", "need"}
STATED = {"is", "are", "was", "were", "been", "has", "have", "ve"}
PAST = {"was", "were"}
ATTEMPTS = {"cancel", "refund", "move", "change", "redirect", "send"}


class Mentions(NamedTuple):
    """What a text names. A number of three digits is an order, any other an amount. `reported` has the words
    that are not denied, wished for or only possible; `bound` the cities where an order ships from now on;
    `denied` the actions that will not happen."""

    words: frozenset[str]
    orders: frozenset[int]
    amounts: frozenset[float]
    cities: frozenset[str]
    statuses: frozenset[str]
    actions: frozenset[Action]
    reported: frozenset[str]
    bound: frozenset[str]
    denied: frozenset[Action]


@dataclass(frozen=True)
class TurnMentions:
    """A turn of the agent: what its statements name, what its questions name, and both together."""

    said: Mentions
    asked: Mentions
    all: Mentions


def listen(text: str) -> TurnMentions:
    """What the words of a turn name."""
    spoken = CHUNK.sub(_without_email, text.lower()).replace("canceled", "cancelled").replace("’", "'")
    spoken = DO_THAT.sub("proceed", spoken)
    spoken = DURATION.sub(" ", NUMBER.sub("", EMAIL.sub("email", spoken)))
    sentences = SENTENCE_END.split(spoken)
    asking = [sentence for sentence in sentences if _asks(sentence)]
    saying = [sentence for sentence in sentences if not _asks(sentence)]
    said, asked = _mentions(saying), _mentions(asking)
    both = Mentions._make(one | other for one, other in zip(said, asked, strict=True))
    return TurnMentions(said, asked, both)


def _without_email(chunk: re.Match[str]) -> str:
    """Digits of an email are not an order number; a full stop after it stays."""
    text = chunk.group()
    return text if "@" not in text else text[-1] if text[-1] in ".!?" else ""


def _asks(sentence: str) -> bool:
    return sentence.rstrip(" \"')*").endswith("?") or ASKS.search(sentence) is not None


def _mentions(sentences: list[str]) -> Mentions:
    text = "\n".join(sentences)
    found = WORD.findall(text)
    words = frozenset(word for word in found if not word[0].isdigit())
    numbers = {word for word in found if word[0].isdigit()}
    orders = {number for number in numbers if len(number) == 3 and "." not in number}
    clauses = [clause for sentence in sentences for clause in CLAUSE_END.split(sentence)]
    told = [WORD.findall(clause) for clause in clauses if not OFFER.search(clause)]
    return Mentions(
        words=words,
        orders=frozenset(int(number) for number in orders),
        amounts=frozenset(float(number) for number in numbers - orders),
        cities=_cities(text, words),
        statuses=_statuses(told),
        actions=_actions(text),
        reported=frozenset(word for clause in told for word in _reported(clause)),
        bound=frozenset(city for clause in clauses for city in BOUND.findall(clause)),
        denied=frozenset(action for clause in clauses for action in _denied(clause)),
    )


def _cities(text: str, words: frozenset[str]) -> frozenset[str]:
    """Of "from rome to oslo" and "to oslo instead of rome" only oslo, wherever it is the only other one."""
    current = frozenset(WORD.findall(FORMER_CITY.sub(" ", text))) & set(CITIES)
    return current if len(current) == 1 else words & set(CITIES)


def _actions(text: str) -> frozenset[Action]:
    named = frozenset(action for action, names in ACTION_WORDS.items() if names.search(text))
    if named == frozenset() and SHIPPING.search(text):
        return frozenset({Action.move})
    return named


def _denied(clause: str) -> Iterable[Action]:
    """The actions named within three words of a denial."""
    words = WORD.findall(clause)
    for place, word in enumerate(words):
        if word in DENIALS or word in AVOIDS:
            yield from _actions(" ".join(words[place + 1 : place + 5]))


def _statuses(clauses: Sequence[Sequence[str]]) -> frozenset[str]:
    """The statuses that are reported; past statuses, or those of only some orders, count if there are no
    others."""
    now: set[str] = set()
    otherwise: set[str] = set()
    for clause in clauses:
        only, untold = False, -3
        for place, word in enumerate(clause):
            if word in CONDITIONS:
                break
            only = only or word == "only"
            if word not in STATUSES:
                continue
            # "not delivered or shipped" denies both
            if _untold(clause, place) or (untold == place - 2 and clause[place - 1] == "or"):
                untold = place
            else:
                past = only or PAST & set(clause[max(0, place - 2) : place])
                (otherwise if past else now).add(word)
    return frozenset(now or otherwise)


def _untold(clause: Sequence[str], place: int) -> bool:
    """Whether the status at `place` is denied, wished for, or about the future."""
    near = clause[max(0, place - 3) : place]
    if _wished(clause, place) or _possible(clause, place):
        return True
    if "be" in near[-2:] and clause[place] != "cancelled":
        return True  # "will be delivered"; "will be cancelled" is a promise, which may or may not be kept
    if clause[place] == "cancelled" and DENIALS & set(clause[max(0, place - 12) : place]):
        return True  # "cannot have it cancelled" reports no status
    # "cannot cancel shipped orders" reports one
    return bool(DENIALS & set(near)) and not ATTEMPTS & set(near)


def _possible(clause: Sequence[str], place: int) -> bool:
    before = clause[max(0, place - 4) : place]
    return "be" in before[-2:] and not POSSIBLE.isdisjoint(before)


def _wished(clause: Sequence[str], place: int) -> bool:
    """Whether the word is wished for: "you would like order 482 cancelled", but not "i want to say it is"."""
    for word in reversed(clause[max(0, place - 8) : place]):
        if word in STATED or word in WISHES:
            return word in WISHES
    return False


def _reported(clause: Sequence[str]) -> Iterable[str]:
    """The words of a clause up to a denial or a condition, without wishes and possibilities."""
    for place, word in enumerate(clause):
        if word in DENIALS or word in CONDITIONS:
            return
        if not (_possible(clause, place) or _wished(clause, place)):
            yield word
