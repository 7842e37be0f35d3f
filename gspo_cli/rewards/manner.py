"""How an agent speaks: empathy, action, professionalism, length and similarity, each in [0, 1].

Judged on what the agent says to the user, turn by turn, beside what it had heard until then; tool calls are
not speech. Word counts invite lists of words, so every part is scaled by how honestly the turn is written:
not a list of the words listened for, not padded, not of an absurd length, not the user's own words. Made for
English. The time is linear in the text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gspo_cli.config.checks import require
from gspo_cli.rewards import manner_words as lists
from gspo_cli.rewards.base import RewardFunction
from gspo_cli.tasks.tools import Speech, read_turn
from gspo_cli.types import Message, RewardResult, Trajectory

WEIGHTS = {"empathy": 0.15, "action": 0.3, "professionalism": 0.25, "length": 0.1, "similarity": 0.2}
WORD = re.compile(r"\w+(?:['-]\w+)*")
SENTENCE = re.compile(r"[^.!?]+[.!?]*")
CLAUSE = re.compile(r"[.,;:!?\n]+")
ENDINGS = ("ing", "ed", "es", "ly", "s", "e")
MARKUP = ("<|", "|>", "</", "```", "[INST]")

LONG, TOO_LONG = 120, 360  # words: from the first a turn loses, at the second it is worth nothing
LETTERS_OF_A_WORD = 8  # a text without spaces is as long as one with
WINDOW, LEAST_KEYWORDS = 8, 4  # so many keywords among so many words may be a list
NATURAL = 0.12  # least share of function words in prose
GRAM = 4  # so many words in the user's order are a copy


class MannerReward(RewardFunction):
    """The weighted mean of the five parts. `weights` replaces the defaults; a part left out weighs nothing.

    Where the problem's metadata holds `reference`, an answer or a list of them, similarity is the overlap (F1
    of words) of the last turn with the nearest. Raises UserError on weights that are none."""

    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        self.weights = dict(WEIGHTS if weights is None else weights)
        for name, weight in self.weights.items():
            require(name in WEIGHTS, f"weights.{name}: is no part of manner; there are {', '.join(WEIGHTS)}")
            require(0 <= weight < float("inf"), f"weights.{name}={weight}: must be 0 or more")
        require(sum(self.weights.values()) > 0, "weights: are all 0; give one part a positive number")

    def compute_reward(
        self, trajectory: Trajectory, turn: Message, context: Mapping[str, Any]
    ) -> RewardResult:
        """The mean, with the parts as components; all 0 where nothing was said."""
        reference = trajectory.problem.metadata.get("reference", ())
        parts = manner(trajectory.messages, (reference,) if isinstance(reference, str) else reference)
        total = sum(weight * parts[name] for name, weight in self.weights.items())
        return RewardResult(total / sum(self.weights.values()), parts)


def manner(messages: Iterable[Message], references: Sequence[str] = ()) -> dict[str, float]:
    """The five parts over all spoken turns: their means, but professionalism is as good as the worst turn."""
    heard, turns = Heard(), []
    for message in messages:
        if message.role == "assistant":
            spoken = read_turn(message.content, {})
            if isinstance(spoken, Speech):
                turns.append(_judge(spoken.text, heard))
        elif message.role != "system":
            heard.hear(message)
    if not turns:
        return dict.fromkeys(WEIGHTS, 0.0)
    if references:
        nearest = max(overlap(turns[-1].words, words_of(text)) for text in references)
        turns[-1].parts["similarity"] = nearest * turns[-1].honesty
        similarity = turns[-1].parts["similarity"]
    else:
        similarity = _mean([turn.parts["similarity"] for turn in turns])
    means = {name: _mean([turn.parts[name] for turn in turns]) for name in WEIGHTS}
    worst = min(turn.parts["professionalism"] for turn in turns)
    return {**means, "professionalism": worst, "similarity": similarity}


@dataclass
class Heard:
    """What stood in the conversation before a turn."""

    subjects: set[str] = field(default_factory=set)  # stems of what users and tools spoke about
    grams: set[tuple[str, ...]] = field(default_factory=set)  # the user's own words in their order
    texts: set[str] = field(default_factory=set)  # the user's messages and the agent's turns, as words
    upset: bool = False  # the user complained, and nobody has answered to that

    def hear(self, message: Message) -> None:
        """Take in the words of a user or a tool."""
        words = words_of(message.content)
        self.subjects |= subjects_of(words)
        if message.role == "user":
            self.grams.update(_grams(words, GRAM))
            self.texts.add(" ".join(words))
            self.upset = self.upset or is_complaint(words)


@dataclass(frozen=True)
class Turn:
    """A judged turn; `parts` are scaled by `honesty`."""

    words: list[str]
    honesty: float
    parts: dict[str, float]


def _judge(text: str, heard: Heard) -> Turn:
    """The parts of one turn, which is then part of what was heard."""
    words = words_of(text)
    fit = length(words, len(text))
    honesty = fit * prose(words) * freshness(words) * own_words(words, heard)
    parts = {
        "empathy": empathy(words, heard.upset),
        "action": action(text, words, heard.subjects),
        "professionalism": professionalism(text, words),
        "length": 1.0,
        "similarity": similarity(text, words, heard.subjects),
    }
    heard.texts.add(" ".join(words))
    heard.upset = heard.upset and not _some(words, lists.EMPATHY)
    return Turn(words, honesty, {name: honesty * value for name, value in parts.items()})


def empathy(words: Sequence[str], upset: bool) -> float:
    """1 where a complaint is answered to, or there is none to answer; half where it is said over and over."""
    kind = _count(words, lists.EMPATHY)
    if is_rude(words) or (upset and kind == 0):
        return 0.0
    return 1.0 if kind <= 2 else 0.5


def action(text: str, words: Sequence[str], subjects: set[str]) -> float:
    """1 for a question, or for something done, promised or found to be about what is at hand; half for either
    the deed or the matter alone, and for a question about neither; 0 for a refusal without a reason."""
    asks = "?" in text and len(words) > 2
    if not asks:
        bare = refuses(text, words) and not has_phrase(words, lists.REASONS)
        return 0.0 if bare else _told(words, subjects)
    if subjects_of(words) & subjects or any(word.split("'")[0] in lists.ASKING for word in words):
        return 1.0
    sentences = (sentence for sentence in SENTENCE.findall(text) if "?" not in sentence)
    return max(0.5, _told(words_of(" ".join(sentences)), subjects))


def refuses(text: str, words: Sequence[str]) -> bool:
    """Whether a turn refuses, and nothing in it is done or has a number: "it is sent, it won't take long" is
    none. What is refused is no deed, and its number is none: "I cannot cancel order 482"."""
    if not has_phrase(words, lists.REFUSALS) and words[:1] != ["no"]:
        return False
    return not any(_does(words_of(clause)) for clause in CLAUSE.split(text))


def professionalism(text: str, words: Sequence[str]) -> float:
    """0 for rudeness; less for capitals, strings of marks and markup that shows."""
    if is_rude(words):
        return 0.0
    capitals, letters = sum(c.isupper() for c in text), sum(c.isalpha() for c in text)
    shouts = letters >= 10 and capitals > letters / 2
    strings = any(marks in text for marks in ("!!!", "???", "!?!", "?!?"))
    shown = any(markup in text for markup in MARKUP)
    return max(0.0, 1.0 - 0.5 * shouts - 0.3 * strings - 0.5 * shown)


def similarity(text: str, words: Sequence[str], subjects: set[str]) -> float:
    """How much the turn speaks of what was heard: two shared words are enough, more earn no more. A question
    that shares none is half of it; where nothing was said yet, a question is all there is to say."""
    asks = 0.5 * ("?" in text)
    if not subjects:
        return 0.5 + asks
    return min(1.0, max(asks, len(subjects_of(words) & subjects) / min(2, len(subjects))))


def length(words: Sequence[str], characters: int) -> float:
    """1 for 3 to 120 words, 0 for none and from 360 on."""
    size = max(len(words), characters / LETTERS_OF_A_WORD)
    short = (0.0, 0.5, 0.75)[len(words)] if len(words) < 3 else 1.0
    return min(short, _falling(size, LONG, TOO_LONG))


def prose(words: Sequence[str]) -> float:
    """1 for sentences, towards 0 for lists of keywords; a bare list of other words is worth half."""
    crowded = _crowded_share(words)
    list_like = 1.0 if crowded == 0 else max(0.0, 0.7 - 2 * crowded)
    if len(words) < 12:
        return list_like
    function = sum(word in lists.FUNCTION_WORDS for word in words) / len(words)
    return list_like * (0.5 + 0.5 * min(1.0, function / NATURAL))


def freshness(words: Sequence[str]) -> float:
    """1 where hardly a pair of words comes back, 0 where most do: repeating words or sentences is padding."""
    pairs = list(_grams(words, 2))
    return 1.0 - _falling(len(set(pairs)) / len(pairs), 0.4, 0.9) if pairs else 1.0


def own_words(words: Sequence[str], heard: Heard) -> float:
    """1 for words of the agent's own, 0 for a copy of what the user said, or of an earlier turn."""
    if " ".join(words) in heard.texts:
        return 0.0
    grams = list(_grams(words, GRAM))
    copied = sum(gram in heard.grams for gram in grams)
    return _falling(copied / len(grams), 0.4, 0.9) if grams else 1.0


def overlap(words: Sequence[str], reference: Sequence[str]) -> float:
    """F1 of the two sets of words."""
    said, expected = set(words), set(reference)
    return 2 * len(said & expected) / (len(said) + len(expected)) if said and expected else 0.0


def words_of(text: str) -> list[str]:
    """Words in lower case; "don't" and "t-shirt" are one each."""
    return WORD.findall(text.replace("\u2019", "'").lower())


def subjects_of(words: Iterable[str]) -> set[str]:
    """Stems of the words that say what a text is about; "cancelled" and "cancel" are one."""
    return {_stem(word) for word in words if word not in lists.EMPTY_WORDS}


def is_complaint(words: Sequence[str]) -> bool:
    """Whether a user who says `words` is upset."""
    return _some(words, lists.UPSET) or not lists.UPSET_WORDS.isdisjoint(words)


def is_rude(words: Sequence[str]) -> bool:
    """Whether a rude word or phrase is among `words`."""
    return has_phrase(words, lists.RUDE)


def has_phrase(words: Sequence[str], phrases: Iterable[str]) -> bool:
    """Whether one of `phrases` stands among `words`, as whole words."""
    text = f" {' '.join(words)} "
    return any(f" {phrase} " in text for phrase in phrases)


def _told(words: Sequence[str], subjects: set[str]) -> float:
    """Half for a deed or a finding, half for a number or a subject."""
    concrete = _has_number(words) or bool(subjects_of(words) & subjects)
    acts = _some(words, lists.ACTION) or not lists.FINDINGS.isdisjoint(words)
    return 0.5 * acts + 0.5 * concrete


def _does(clause: Sequence[str]) -> bool:
    """Whether a clause holds a deed or a number; of one that refuses, only what it says before that, and only
    deeds that are done."""
    if clause[:1] == ["no"]:
        return False
    text = f" {' '.join(clause)} "
    start = min((at for phrase in lists.REFUSALS if (at := text.find(f" {phrase} ")) >= 0), default=-1)
    if start < 0:
        return _has_number(clause) or _some(clause, lists.DEEDS)
    before = text[:start].split()
    done = [word for word in before if word.endswith("ed") or word in lists.DONE]
    return _has_number(before) or _some(done, lists.DEEDS)


def _has_number(words: Iterable[str]) -> bool:
    return any(word.isdecimal() for word in words)


def _stem(word: str) -> str:
    for ending in ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            word = word.removesuffix(ending)
            break
    return word[:-1] if len(word) > 3 and word[-1] == word[-2] and not word.isdecimal() else word


def _crowded_share(words: Sequence[str]) -> float:
    """Share of the words that stand in a window crowded with keywords."""
    size, crowded, until = min(WINDOW, len(words)), 0, 0
    for start in range(len(words) - size + 1):
        if _is_crowded(words[start : start + size]):
            crowded += start + size - max(start, until)
            until = start + size
    return crowded / len(words) if words else 0.0


def _is_crowded(window: Sequence[str]) -> bool:
    """Whether keywords are nearly all that `window` says, with no grammar to speak of: "sorry and help and
    refund and resolve", but not "refund of 40 dollars sent, thanks"."""
    grammar = [word for word in window if word in lists.FUNCTION_WORDS]
    keywords = _count(window, lists.KEYWORDS)
    least = LEAST_KEYWORDS if len(window) == WINDOW else LEAST_KEYWORDS + 1
    return keywords >= max(least, 0.8 * (len(window) - len(grammar))) and len(set(grammar)) <= 2


def _grams(words: Sequence[str], size: int) -> Iterable[tuple[str, ...]]:
    return zip(*(words[start:] for start in range(size)), strict=False)


def _count(words: Iterable[str], beginnings: tuple[str, ...]) -> int:
    return sum(word.startswith(beginnings) for word in words)


def _some(words: Iterable[str], beginnings: tuple[str, ...]) -> bool:
    return any(word.startswith(beginnings) for word in words)


def _falling(value: float, high: float, low: float) -> float:
    """1 up to `high`, 0 from `low` on, a line between."""
    return min(1.0, max(0.0, (low - value) / (low - high)))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
