"""The manner of an agent: empathy, action, professionalism, length and similarity, each in [0, 1].

Scored on what the agent says to the user, turn by turn, given the messages before; tool calls do not count.
Word counts can be gamed by listing words, so every part is scaled by the honesty of the turn (it reads as
English, and is not a list of keywords, not padded, not absurdly long, not a copy of the user's words or of an
earlier turn) and by its relevance: courtesies and small talk alone are worth nothing. For English only. The
time is linear in the length of the text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from gspo_cli.config.checks import require
from gspo_cli.rewards import manner_words
from gspo_cli.rewards.base import RewardFunction
from gspo_cli.rewards.readability import has_verb, readability, rising, words_of
from gspo_cli.tasks.tools import Speech, read_turn
from gspo_cli.types import Message, RewardResult, Trajectory

WEIGHTS = {"empathy": 0.15, "action": 0.3, "professionalism": 0.25, "length": 0.1, "similarity": 0.2}
SENTENCE = re.compile(r"[^.!?]+[.!?]*")
CLAUSE = re.compile(r"[.,;:!?\n]+")
ENDINGS = ("ing", "ed", "es", "ly", "s", "e")
MARKUP = ("<|", "|>", "</", "```", "[INST]")

LONG, TOO_LONG = 120, 360  # words: above the first a turn loses value, at the second it is worth nothing
LETTERS_PER_WORD = 8  # so that a text without spaces has a length, too
WINDOW, LEAST_KEYWORDS = 8, 4  # this many keywords (second) among this many words (first) may be a list
NATURAL = 0.12  # the least share of function words in prose
GRAM = 4  # this many words in the user's order are a copy
SUBSTANCE = 0.25  # share of the words in sentences with a subject, from which on a turn is relevant
VARIED = (0.5, 0.75)  # share of different turns: no variety, and enough of it


class MannerReward(RewardFunction):
    """The weighted mean of the five parts. `weights` replaces the defaults; a part left out has no weight.

    Where the problem's metadata holds `reference`, an answer or a list of them, similarity is the overlap (F1
    of words) of the last turn with the nearest one. Raises UserError on invalid weights."""

    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        self.weights = dict(WEIGHTS if weights is None else weights)
        for name, weight in self.weights.items():
            require(
                name in WEIGHTS,
                f"weights.{name}: is not a part of manner; choose from {', '.join(WEIGHTS)}",
            )
            require(0 <= weight < float("inf"), f"weights.{name}={weight}: must be 0 or more")
        require(sum(self.weights.values()) > 0, "weights: are all 0; give one part a positive number")

    def compute_reward(
        self, trajectory: Trajectory, turn: Message, context: Mapping[str, Any]
    ) -> RewardResult:
        """The mean, with the parts as components; all 0 if the agent said nothing."""
        reference = trajectory.problem.metadata.get("reference", ())
        references = (reference,) if isinstance(reference, str) else reference
        parts = manner(trajectory.messages, references, trajectory.num_turns)
        total = sum(weight * parts[name] for name, weight in self.weights.items())
        return RewardResult(total / sum(self.weights.values()), parts)


def manner(
    messages: Sequence[Message], references: Sequence[str] = (), own: int | None = None
) -> dict[str, float]:
    """The means of the five parts over the agent's turns, less where turns repeat; professionalism is that of
    the worst turn. Where `own` is given, the agent took that many turns, and earlier ones are examples."""
    context, turns = PriorText(), []
    examples = 0 if own is None else sum(message.role == "assistant" for message in messages) - own
    for message in messages:
        if message.role == "assistant" and examples > 0:
            examples -= 1
        elif message.role == "assistant":
            spoken = read_turn(message.content, {})
            if isinstance(spoken, Speech):
                turns.append(_score_turn(spoken.text, context))
        elif message.role != "system":
            context.add(message)
    if not turns:
        return dict.fromkeys(WEIGHTS, 0.0)
    varied = (
        rising(len({tuple(turn.words) for turn in turns}) / len(turns), *VARIED) if len(turns) > 1 else 1.0
    )
    parts = {name: varied * fmean(turn.worth * turn.parts[name] for turn in turns) for name in WEIGHTS}
    worst = min(turn.parts["professionalism"] for turn in turns)
    parts["professionalism"] = worst * varied * fmean(turn.worth for turn in turns)
    if references:
        nearest = max(overlap(turns[-1].words, words_of(text)) for text in references)
        parts["similarity"] = nearest * turns[-1].honesty
    return parts


@dataclass
class PriorText:
    """What was said before a turn."""

    subjects: set[str] = field(default_factory=set)  # stems of what users and tools wrote about
    grams: set[tuple[str, ...]] = field(default_factory=set)  # the user's word sequences of length `GRAM`
    texts: set[str] = field(default_factory=set)  # the user's messages and the agent's turns, as words
    said: set[tuple[str, ...]] = field(default_factory=set)  # the agent's word sequences of length `GRAM`
    upset: bool = False  # the user complained, and the agent has not responded to that yet

    def add(self, message: Message) -> None:
        """Record a message of a user or a tool."""
        words = words_of(message.content)
        self.subjects |= subjects_of(words)
        if message.role == "user":
            self.grams.update(_grams(words, GRAM))
            self.texts.add(" ".join(words))
            self.upset = self.upset or is_complaint(words)


@dataclass(frozen=True)
class ScoredTurn:
    """A turn of the agent with its `parts`, which count by its `worth`: honesty times relevance."""

    words: list[str]
    honesty: float
    worth: float
    parts: dict[str, float]


def _score_turn(text: str, context: PriorText) -> ScoredTurn:
    """The parts of one turn, which is added to `context`."""
    words = words_of(text)
    fit = length(words, len(text))
    readable = readability(text, lambda word: _is_known(word, context.subjects))
    honesty = fit * readable * prose(words) * freshness(words) * originality(words, context)
    parts = {
        "empathy": empathy(words, context.upset),
        "action": action(text, words, context.subjects),
        "professionalism": professionalism(text, words),
        "length": 1.0,
        "similarity": similarity(text, words, context.subjects),
    }
    worth = honesty * relevance(text, context.subjects) if honesty else 0.0
    context.texts.add(" ".join(words))
    context.said.update(_grams(words, GRAM))
    context.upset = context.upset and not _some(words, manner_words.EMPATHY)
    return ScoredTurn(words, honesty, worth, parts)


def empathy(words: Sequence[str], upset: bool) -> float:
    """1 if a complaint is answered with empathy, or there is no complaint; 0.5 if empathy is overdone."""
    kind = _count(words, manner_words.EMPATHY)
    if is_rude(words) or (upset and kind == 0):
        return 0.0
    return 1.0 if kind <= 2 else 0.5


def action(text: str, words: Sequence[str], subjects: set[str]) -> float:
    """1 for a relevant question, or for something done, promised or found that concerns the subject; 0.5 for
    either the action or the subject alone, or an irrelevant question; 0 for a refusal without a reason."""
    asks = "?" in text and len(words) > 2
    if not asks:
        bare = refuses(text, words) and not has_phrase(words, manner_words.REASONS)
        return 0.0 if bare else _substance(words, subjects)
    if subjects_of(words) & subjects or any(word.split("'")[0] in manner_words.ASKING for word in words):
        return 1.0
    sentences = (sentence for sentence in SENTENCE.findall(text) if "?" not in sentence)
    return max(0.5, _substance(words_of(" ".join(sentences)), subjects))


def relevance(text: str, subjects: set[str]) -> float:
    """1 if at least a quarter of the words stand in sentences with substance, 0 if none do."""
    sentences = [words for part in SENTENCE.findall(text) if (words := words_of(part))]
    asked = [part.rstrip().endswith("?") for part in SENTENCE.findall(text) if words_of(part)]
    total = sum(map(len, sentences))
    has = sum(
        len(words)
        for words, asks in zip(sentences, asked, strict=True)
        if (is_real_question(words, subjects) if asks else has_substance(words, subjects))
    )
    return rising(has / total, 0.0, SUBSTANCE) if total else 0.0


def is_real_question(words: Sequence[str], subjects: set[str]) -> bool:
    """Whether a question asks for something, and not only whether one can help; as long as nobody has named a
    subject, it may ask that, too."""
    if not subjects or len(words) < 3:
        return len(words) > 2
    if has_phrase(words, manner_words.OFFERS):
        return _names_subject(words, subjects)
    content = subjects_of(word for word in words if word not in manner_words.VAGUE)
    return bool(content) or not manner_words.QUESTION_WORDS.isdisjoint(words)


def has_substance(words: Sequence[str], subjects: set[str]) -> bool:
    """Whether a sentence tells, does or promises something, and not only what could be said to anybody."""
    if not has_verb(words):
        return False
    acts = _some(words, manner_words.DEEDS) and not has_phrase(words, manner_words.EMPTY_DEEDS)
    if acts or _some(words, manner_words.COURTEOUS):
        return acts
    return _has_number(words) or _names_subject(words, subjects)


def refuses(text: str, words: Sequence[str]) -> bool:
    """Whether a turn refuses, without an action or a number beside the refusal: "it is sent, it won't take
    long" is not a refusal. What is refused does not count as an action: "I cannot cancel order 482"."""
    if not has_phrase(words, manner_words.REFUSALS) and words[:1] != ["no"]:
        return False
    return not any(_acts(words_of(clause)) for clause in CLAUSE.split(text))


def professionalism(text: str, words: Sequence[str]) -> float:
    """0 for rudeness; less for capitals, repeated punctuation and visible markup."""
    if is_rude(words):
        return 0.0
    capitals, letters = sum(c.isupper() for c in text), sum(c.isalpha() for c in text)
    shouts = letters >= 10 and capitals > letters / 2
    strings = any(marks in text for marks in ("!!!", "???", "!?!", "?!?"))
    shown = any(markup in text for markup in MARKUP)
    return max(0.0, 1.0 - 0.5 * shouts - 0.3 * strings - 0.5 * shown)


def similarity(text: str, words: Sequence[str], subjects: set[str]) -> float:
    """How many subjects the turn shares with the messages before: two are enough. A question scores at least
    0.5; if nothing was said before, a question scores 1 and anything else 0.5."""
    asks = 0.5 * ("?" in text)
    if not subjects:
        return 0.5 + asks
    return min(1.0, max(asks, len(subjects_of(words) & subjects) / min(2, len(subjects))))


def length(words: Sequence[str], characters: int) -> float:
    """1 for 3 to 120 words, 0 for none and from 360 on."""
    size = max(len(words), characters / LETTERS_PER_WORD)
    short = (0.0, 0.5, 0.75)[len(words)] if len(words) < 3 else 1.0
    return min(short, _falling(size, LONG, TOO_LONG))


def prose(words: Sequence[str]) -> float:
    """1 for sentences, towards 0 for lists of keywords; a list of other words scores 0.5."""
    crowded = _crowded_share(words)
    list_like = 1.0 if crowded == 0 else max(0.0, 0.7 - 2 * crowded)
    if len(words) < 12:
        return list_like
    function = sum(word in manner_words.FUNCTION_WORDS for word in words) / len(words)
    return list_like * (0.5 + 0.5 * min(1.0, function / NATURAL))


def freshness(words: Sequence[str]) -> float:
    """1 if hardly any pair of words is repeated, 0 if most are: repetition is padding."""
    pairs = list(_grams(words, 2))
    return 1.0 - _falling(len(set(pairs)) / len(pairs), 0.4, 0.9) if pairs else 1.0


def originality(words: Sequence[str], context: PriorText) -> float:
    """1 for new text, 0 for a copy of what the user said, or of an earlier turn."""
    if " ".join(words) in context.texts:
        return 0.0
    grams = list(_grams(words, GRAM))
    if not grams:
        return 1.0
    copied = sum(gram in context.grams for gram in grams) / len(grams)
    repeated = sum(gram in context.said for gram in grams) / len(grams)
    return min(_falling(copied, 0.4, 0.9), _falling(repeated, 0.75, 0.9))


def overlap(words: Sequence[str], reference: Sequence[str]) -> float:
    """F1 of the two sets of words."""
    found, expected = set(words), set(reference)
    return 2 * len(found & expected) / (len(found) + len(expected)) if found and expected else 0.0


def subjects_of(words: Iterable[str]) -> set[str]:
    """Stems of the words that tell what a text is about; "cancelled" and "cancel" have the same stem."""
    return {_stem(word) for word in words if word not in manner_words.EMPTY_WORDS}


def is_complaint(words: Sequence[str]) -> bool:
    """Whether `words` of a user show that they are upset."""
    return _some(words, manner_words.UPSET) or not manner_words.UPSET_WORDS.isdisjoint(words)


def is_rude(words: Sequence[str]) -> bool:
    """Whether a rude word or phrase is among `words`."""
    return has_phrase(words, manner_words.RUDE)


def has_phrase(words: Sequence[str], phrases: Iterable[str]) -> bool:
    """Whether `words` contain one of `phrases`, as whole words."""
    text = f" {' '.join(words)} "
    return any(f" {phrase} " in text for phrase in phrases)


def _substance(words: Sequence[str], subjects: set[str]) -> float:
    """0.5 for an action or a finding, plus 0.5 for a number or a subject."""
    concrete = _has_number(words) or bool(subjects_of(words) & subjects)
    acts = _some(words, manner_words.ACTION) or not manner_words.FINDINGS.isdisjoint(words)
    return 0.5 * acts + 0.5 * concrete


def _acts(clause: Sequence[str]) -> bool:
    """Whether a clause has an action or a number; if it refuses, only what comes before the refusal counts,
    and only completed actions."""
    if clause[:1] == ["no"]:
        return False
    text = f" {' '.join(clause)} "
    start = min((at for phrase in manner_words.REFUSALS if (at := text.find(f" {phrase} ")) >= 0), default=-1)
    if start < 0:
        return _has_number(clause) or _some(clause, manner_words.DEEDS)
    before = text[:start].split()
    done = [word for word in before if word.endswith("ed") or word in manner_words.DONE]
    return _has_number(before) or _some(done, manner_words.DEEDS)


def _names_subject(words: Sequence[str], subjects: set[str]) -> bool:
    """Whether a word is a subject of the conversation or of service in general."""
    return bool(subjects_of(words) & subjects) or not manner_words.SERVICE.isdisjoint(words)


def _is_known(word: str, subjects: set[str]) -> bool:
    """Whether `word` belongs to an agent's vocabulary or to the conversation."""
    usual = word in manner_words.EMPTY_WORDS or word in manner_words.ASKING or word in manner_words.SERVICE
    return usual or word.startswith(manner_words.KEYWORDS) or _stem(word) in subjects


def _has_number(words: Iterable[str]) -> bool:
    return any(word.isdecimal() for word in words)


def _stem(word: str) -> str:
    for ending in ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            word = word.removesuffix(ending)
            break
    return word[:-1] if len(word) > 3 and word[-1] == word[-2] and not word.isdecimal() else word


def _crowded_share(words: Sequence[str]) -> float:
    """Share of the words inside windows that are crowded with keywords."""
    size, crowded, until = min(WINDOW, len(words)), 0, 0
    for start in range(len(words) - size + 1):
        if _is_crowded(words[start : start + size]):
            crowded += start + size - max(start, until)
            until = start + size
    return crowded / len(words) if words else 0.0


def _is_crowded(window: Sequence[str]) -> bool:
    """Whether `window` is nearly all keywords, with hardly any grammar: "sorry and help and refund and
    resolve", but not "refund of 40 dollars sent, thanks"."""
    grammar = [word for word in window if word in manner_words.FUNCTION_WORDS]
    keywords = _count(window, manner_words.KEYWORDS)
    least = LEAST_KEYWORDS if len(window) == WINDOW else LEAST_KEYWORDS + 1
    return keywords >= max(least, 0.8 * (len(window) - len(grammar))) and len(set(grammar)) <= 2


def _grams(words: Sequence[str], size: int) -> Iterable[tuple[str, ...]]:
    return zip(*(words[start:] for start in range(size)), strict=False)


def _count(words: Iterable[str], beginnings: tuple[str, ...]) -> int:
    return sum(word.startswith(beginnings) for word in words)


def _some(words: Iterable[str], beginnings: tuple[str, ...]) -> bool:
    return any(word.startswith(beginnings) for word in words)


def _falling(value: float, high: float, low: float) -> float:
    """1 up to `high`, 0 from `low` on, linear between."""
    return 1.0 - rising(value, high, low)
