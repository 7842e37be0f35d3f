"""Tutoring of a pupil whose sum went wrong: ask, hint at the right step, never tell the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from gspo_cli.randomness import generator
from gspo_cli.tasks.scenarios.task import GeneratedScenarios
from gspo_cli.tasks.tutoring.pupil import BY_NAME, MISCONCEPTIONS, pupil, suits
from gspo_cli.types import Message

POLICY = """You help a pupil with a sum that went wrong. One step a turn, one short sentence:
1. Ask the pupil: "How did you do it?"
2. Find the step that went wrong, and give exactly one hint at it. The pupil forgot the carry: "What do you \
do with the carry?" Wrote the digits in the wrong order: "Look at the order of the digits." Counted wrong: \
"Please count the ones again." Subtracted instead of adding: "Look at the sign." Wrote ones under tens: \
"Line up the ones."
3. When the pupil has the right answer, go on: "Now try the next sum."
Never tell the answer, neither in digits nor in words. Never say that a wrong sum is right."""
CLUES = {"order": "first", "count": "fingers", "sign": "take", "line": "under", "carry": "write"}


def solve(messages: Sequence[Message]) -> str:
    """The next turn of a tutor who solves every conversation: asks, finds the mistake in the pupil's steps,
    and gives the next sum."""
    turns = sum(message.role == "assistant" for message in messages)
    if turns == 0:
        return "how did you do it?"
    if turns > 1:
        return "now try the next sum."
    return BY_NAME[_diagnosis(messages[-1].content)].hint


def _diagnosis(steps: str) -> str:
    """The misconception that the pupil's steps show."""
    return next(name for name, clue in CLUES.items() if clue in steps)


@dataclass
class Tutoring(GeneratedScenarios):
    """A pupil, a sum, and a second one that shows whether the hint was right. Held out are sums and words."""

    def policy(self) -> str:
        """How to help, in words."""
        return POLICY

    def agent(self, messages: Sequence[Message]) -> str:
        """See `solve`."""
        return solve(messages)

    def scenario(self, trained: bool, number: int) -> dict[str, Any]:
        """A pupil with two sums."""
        random = generator(0, "tutoring", int(trained), number)
        name = MISCONCEPTIONS[number % len(MISCONCEPTIONS)].name
        pool = self._pools[name, trained]
        chosen = [pool[i] for i in random.choice(len(pool), size=2, replace=False)]
        return pupil(name, chosen, trained, int(random.integers(1000)))

    @cached_property
    def _pools(self) -> dict[tuple[str, bool], list[tuple[int, int]]]:
        """Sums by misconception and side."""
        pairs = [(first, second) for first in range(10, 90) for second in range(2, 90)]
        return {
            (m.name, trained): [pair for pair in pairs if suits(m.name, *pair) and _is_held(*pair) != trained]
            for m in MISCONCEPTIONS
            for trained in (True, False)
        }


def _is_held(first: int, second: int) -> bool:
    """Every seventh pair of numbers, without a pattern that shows."""
    return (32 * first + 31 * second) % 7 == 0
