"""Tutoring of a pupil whose sum went wrong: ask, hint at the right step, never tell the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from gspo_cli.randomness import generator
from gspo_cli.tasks.scenarios.environment import ScenarioEnvironment
from gspo_cli.tasks.scripted import ScriptedTask
from gspo_cli.tasks.tutoring.pupil import BY_NAME, MISCONCEPTIONS, scenario, suits
from gspo_cli.types import Message, Problem

POLICY = (
    "you help a pupil with a sum that went wrong. first ask how the pupil did it. then give one hint at the "
    "step that went wrong: the carry, the order of the digits, the counting, the sign, or the way the "
    "numbers are lined up. never tell the answer. do not say that a wrong sum is right. when the pupil "
    "has the right answer, ask for the next sum. one step a turn, one short sentence."
)
CLUES = {"order": "first", "count": "fingers", "sign": "take", "line": "under", "carry": "write"}


def solve(messages: Sequence[Message]) -> str:
    """The tutor who knows how: asks, reads the mistake from the pupil's steps, and goes on."""
    turns = sum(message.role == "assistant" for message in messages)
    heard = messages[-1].content
    if turns == 0:
        return "how did you do it?"
    if turns > 1:
        return "now try the next sum."
    return BY_NAME[_diagnosis(heard)].hint


def _diagnosis(steps: str) -> str:
    """The misconception that the pupil's steps show."""
    return next(name for name, clue in CLUES.items() if clue in steps)


@dataclass
class Tutoring(ScriptedTask):
    """A pupil, a sum, and a second one that shows whether the hint was right. Held out are sums and words."""

    problems: int = 1500
    """Number of training problems."""

    def policy(self) -> str:
        """How to help, in words."""
        return POLICY

    def agent(self, messages: Sequence[Message]) -> str:
        """See `solve`."""
        return solve(messages)

    def environment(self) -> ScenarioEnvironment:
        """A pupil."""
        return ScenarioEnvironment()

    def train_problems(self) -> Sequence[Problem]:
        """`problems` pupils."""
        return self._sides[0]

    def heldout_problems(self) -> Sequence[Problem]:
        """`heldout` pupils with sums and openings that are never trained on."""
        return self._sides[1]

    @cached_property
    def _sides(self) -> tuple[list[Problem], list[Problem]]:
        pools = {m.name: [pair for pair in _pairs() if suits(m.name, *pair)] for m in MISCONCEPTIONS}
        train = [self._problem(pools, True, place) for place in range(self.problems)]
        held = [self._problem(pools, False, place) for place in range(self.heldout)]
        return train, held

    def _problem(self, pools: dict[str, list[tuple[int, int]]], trained: bool, place: int) -> Problem:
        random = generator(0, "tutoring", int(trained), place)
        name = MISCONCEPTIONS[place % len(MISCONCEPTIONS)].name
        pool = [pair for pair in pools[name] if _is_held(*pair) != trained]
        chosen = [pool[i] for i in random.choice(len(pool), size=2, replace=False)]
        row = scenario(name, chosen, trained, int(random.integers(1000)))
        side = "train" if trained else "heldout"
        return Problem(f"{side}-{place}", (Message("user", row["opening"]),), metadata={"scenario": row})


def _pairs() -> list[tuple[int, int]]:
    return [(first, second) for first in range(10, 90) for second in range(2, 90)]


def _is_held(first: int, second: int) -> bool:
    """Every seventh pair of numbers, without a pattern that shows."""
    return (32 * first + 31 * second) % 7 == 0
