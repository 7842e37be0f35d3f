"""math-verify in a separate process: an answer such as a tower of powers must not hang a run, and the
library's own time limits work in a main thread only."""

from __future__ import annotations

import re
from collections.abc import Callable

from gspo_cli.concurrency import TookTooLong
from gspo_cli.rewards.worker import Worker

SECONDS = 10
LATEX = re.compile(r"[\\^_{}]")
DELIMITED = re.compile(r"\$|\\[(\[]|\\boxed")


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
        # without delimiters the library reads \sqrt{3} as 3
        bare = LATEX.search(gold) and not DELIMITED.search(gold)
        first, second = (f"${gold}$", gold) if bare else (gold, f"${gold}$")
        expected = math_verify.parse(first) or math_verify.parse(second)
        return math_verify.verify(expected, math_verify.parse(answer_text)) if expected else None

    return compare


WORKER = Worker(_comparison)
