"""What scripted users understand: clauses of an agent's words, and patterns of words and phrases over them.

A phrase is looked for as whole words, in any case: "order" is not in "reordered". No regular expression comes
from outside, so no text takes long to read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

LONGEST_HEARD = 4000  # characters; nobody listens longer in one turn
SENTENCE = re.compile(r"[^.!?;\n]*[.!?;\n]?")
CLAUSE = re.compile(r"[,:()]")
WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class Clause:
    """Words between two punctuation marks, as `" word word "`; `asks` where their sentence ends with a
    question mark."""

    text: str
    asks: bool

    def has(self, phrase: str) -> bool:
        """Whether a phrase that `plain` has returned stands in it."""
        return phrase in self.text


@dataclass(frozen=True)
class Pattern:
    """Holds for a clause with one phrase of every group and none of `none`; where `question` is given, the
    clause has to be one, or not."""

    groups: tuple[tuple[str, ...], ...]
    none: tuple[str, ...] = ()
    question: bool | None = None

    def within(self, clause: Clause) -> bool:
        """Whether the pattern holds for one clause."""
        return (
            self.question in (None, clause.asks)
            and all(any(clause.has(phrase) for phrase in group) for group in self.groups)
            and not any(clause.has(phrase) for phrase in self.none)
        )

    def holds(self, heard: Sequence[Clause]) -> bool:
        """Whether it holds for one clause of a turn."""
        return any(self.within(clause) for clause in heard)


def plain(text: str) -> str:
    """Lower-case words with one space around each: `"What's up?"` is `" what s up "`; "" without words."""
    words = WORD.findall(text.casefold())
    return f" {' '.join(words)} " if words else ""


def clauses(text: str) -> list[Clause]:
    """The clauses of what an agent said, without empty ones."""
    sentences = SENTENCE.findall(text[:LONGEST_HEARD])
    parts = [
        (plain(part), sentence.endswith("?")) for sentence in sentences for part in CLAUSE.split(sentence)
    ]
    return [Clause(words, asks) for words, asks in parts if words]
