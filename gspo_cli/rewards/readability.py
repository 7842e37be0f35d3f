"""Whether a text reads as English sentences, from 0 to 1. Word salad, other languages, keyboard mashing and
strings of digits or punctuation do not.

There is no dictionary and no model. What counts is which small words (articles, prepositions, pronouns,
auxiliaries) stand side by side, how many of the words are known, and how many content words stand in a row.
The time is linear in the length of the text."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import groupby

from gspo_cli.rewards import grammar_words as grammar
from gspo_cli.rewards import manner_words

WORD = re.compile(r"\w+(?:['-]\w+)*")
SENTENCE_END = re.compile(r"[.!?]+(?=\s|$)|\n")
CLAUSE_END = re.compile(r"[,;:()\"\u201c\u201d\u2013\u2014]+|\s-+\s")
CODE = frozenset('{}[]<>()"=_:;|\\/@#^&*~`+')  # rare in sentences
FRAGMENT = 4  # words: in a shorter sentence one error is enough
ROW = 5  # this many content words in a row are a list, not a noun with its adjectives
Known = Callable[[str], bool]


def readability(text: str, is_known: Known) -> float:
    """Share of the words of `text` that stand in readable sentences, less where few of them are words rather
    than numbers and marks; 0 without words. `is_known(word)`: the word belongs to the conversation or to the
    agent's vocabulary."""
    numbers = words = readable = 0.0
    for sentence in SENTENCE_END.split(text):
        clauses = [found for part in CLAUSE_END.split(sentence) if (found := words_of(part))]
        size = sum(map(len, clauses))
        words += size
        numbers += sum(word.isdecimal() for clause in clauses for word in clause)
        readable += size * _sentence(clauses, is_known) if clauses else 0.0
    letters = sum(c.isalpha() for c in text)
    marks = sum(not (c.isalnum() or c.isspace()) for c in text)
    code = sum(c in CODE for c in text)
    if not letters:
        return 0.0
    prose = rising(letters / (letters + marks), 0.3, 0.6) * rising(letters / (letters + code), 0.6, 0.9)
    return readable / words * rising(1 - numbers / words, 0.2, 0.5) * prose


def words_of(text: str) -> list[str]:
    """Words in lower case; "don't" and "t-shirt" are one word each."""
    return WORD.findall(text.replace("\u2019", "'").lower())


def has_verb(words: Sequence[str]) -> bool:
    """Whether a sentence has a common verb, a participle, or starts with what it asks the user to do."""
    if any(word in grammar.PREDICATES or (len(word) > 3 and word.endswith("ed")) for word in words):
        return True
    first = next((word for word in words if word not in grammar.OPENERS), "")
    return first in grammar.VERBS or first.startswith(manner_words.DEEDS)


def rising(value: float, low: float, high: float) -> float:
    """0 up to `low`, 1 from `high` on, linear between."""
    return min(1.0, max(0.0, (value - low) / (high - low)))


def _sentence(clauses: Sequence[Sequence[str]], is_known: Known) -> float:
    words = [word for clause in clauses for word in clause if not word.isdecimal()]
    if not words:
        return 0.0
    small = [word for word in words if word in grammar.SMALL_WORDS]
    share = (len(small) + sum(is_known(word) for word in words if word not in grammar.SMALL_WORDS)) / len(
        words
    )
    errors = sum(map(_errors, clauses)) + (clauses[-1][-1] in grammar.NEVER_LAST)
    if len(words) < FRAGMENT:
        return float(share >= 0.5 and not errors)
    # "in", "die" and "no" are words of many languages
    is_english = share >= 0.6 or any(word not in grammar.SHARED_WORDS for word in small)
    language = max(rising(share, 0.4, 0.6), rising(len(small) / len(words), 0.15, 0.25)) * is_english
    size = sum(map(len, clauses))
    listed = 0.5 * sum(map(_listed, clauses))
    return language * (1 - rising((errors + listed) / size, 0.02, 0.08))


def _errors(clause: Sequence[str]) -> int:
    """How many pairs of neighbors are not English."""
    return sum(map(_is_error, clause, clause[1:]))


def _is_error(word: str, following: str) -> bool:
    if word == following:
        return word.isalpha() and word not in grammar.DOUBLED
    if word == "a" and following[0] in "aeio" and not following.startswith(("one", "once", "eu")):
        return True
    if word == "an" and following[0] in "bcdgjkpqtvwyz":
        return True
    return (word, following) in grammar.IMPOSSIBLE


def _listed(clause: Sequence[str]) -> int:
    """How many words too many stand in rows of content words that are not verbs."""
    excess = 0
    for is_row, row in groupby(clause, lambda word: word not in grammar.SMALL_WORDS and not word.isdecimal()):
        words = list(row)
        nouns = sum(word not in grammar.VERBS and not word.endswith("ed") for word in words)
        if is_row and len(words) >= ROW:
            excess += max(0, nouns - ROW + 2)
    return excess
