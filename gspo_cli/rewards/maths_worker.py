"""math-verify in a separate process: an answer such as a tower of powers must not hang a run, and the
library's own time limits work in a main thread only."""

from __future__ import annotations

import re
from collections.abc import Callable

from gspo_cli.concurrency import TookTooLong
from gspo_cli.rewards.worker import Worker

SECONDS = 10
LONGEST = 200  # characters of a formula without delimiters
DELIMITED = re.compile(r"\$|\\[(\[]|\\boxed")
# a text of words around a number, such as "72 apples", and not a formula such as "2sqrt(3)" or "5 and 6"
WORDS = re.compile(
    r"(?:(?<![\w\\])(?!(?:sqrt|sin|cos|tan|log|exp|and|or|pi|ln)(?![A-Za-z]))[A-Za-z]{3,}|(?<=[0-9]\s)(?!(?:or|and)\b)[A-Za-z]{2,})"
)
NAMES = re.compile(r"(?<![A-Za-z\\])(sin|cos|tan|log|exp|ln|pi)(?![A-Za-z])")
THIN = re.compile(r"\\[,;:! ]|\\(?:left|right)(?![A-Za-z])|\$")
SPACE = re.compile(r"(?<![0-9]) | (?![0-9])")  # not between two digits, where it matters


def is_formula(text: str) -> bool:
    """Whether a text is mathematics as a whole, without words and delimiters."""
    return 0 < len(text) <= LONGEST and not DELIMITED.search(text) and not WORDS.search(text)


def squeezed(text: str) -> str:
    """A text without spaces and dollar signs, which do not change what it means."""
    return SPACE.sub("", " ".join(THIN.sub(" ", text).split()))


def equal_mathematics(answer_text: str, gold: str) -> bool | None:
    """Whether both are equal; False after `SECONDS`, None if `gold` cannot be parsed."""
    try:
        equal: bool | None = WORKER.ask((answer_text, gold), SECONDS)
    except TookTooLong:
        return False
    return equal


def _comparison() -> Callable[[tuple[str, str]], bool | None]:
    import math_verify

    def compare(texts: tuple[str, str]) -> bool | None:
        answer_text, gold = texts
        # without delimiters the library reads 3+2i as 3
        latex = NAMES.sub(r"\\\1 ", gold)
        first, second = (f"${latex}$", gold) if is_formula(gold) else (gold, f"${latex}$")
        expected = math_verify.parse(first) or math_verify.parse(second)
        return math_verify.verify(expected, math_verify.parse(answer_text)) if expected else None

    return compare


WORKER = Worker(_comparison)
