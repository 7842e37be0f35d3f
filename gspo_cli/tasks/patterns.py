"""What scripted users understand: clauses of an agent's text, and patterns of words and phrases over them.

A phrase matches whole words, in any letter case: "order" is not in "reordered". Patterns are never regular
expressions, so that no text takes long to match."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

LONGEST_TURN = 4000  # characters; users read no further
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
        """Whether it contains a phrase that `plain` has returned."""
        return phrase in self.text


@dataclass(frozen=True)
class Pattern:
    """Matches a clause with one phrase of every group and none of `none`; where `question` is given, only for
    questions (True) or only for statements (False)."""

    groups: tuple[tuple[str, ...], ...]
    none: tuple[str, ...] = ()
    question: bool | None = None

    def within(self, clause: Clause) -> bool:
        """Whether the pattern matches one clause."""
        return (
            self.question in (None, clause.asks)
            and all(any(clause.has(phrase) for phrase in group) for group in self.groups)
            and not any(clause.has(phrase) for phrase in self.none)
        )

    def holds(self, turn: Sequence[Clause]) -> bool:
        """Whether it matches one clause of a turn."""
        return any(self.within(clause) for clause in turn)


def plain(text: str) -> str:
    """Lower-case words with one space around each: `"What's up?"` is `" what s up "`; "" without words."""
    words = WORD.findall(text.casefold())
    return f" {' '.join(words)} " if words else ""


def clauses(text: str) -> list[Clause]:
    """The clauses of what an agent said, without empty ones."""
    sentences = SENTENCE.findall(text[:LONGEST_TURN])
    parts = [
        (plain(part), sentence.endswith("?")) for sentence in sentences for part in CLAUSE.split(sentence)
    ]
    return [Clause(words, asks) for words, asks in parts if words]
