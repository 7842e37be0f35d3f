"""Sums of two numbers, generated: a tiny model learns them in minutes, without files or downloads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

from gspo_cli.config.checks import require, require_positive
from gspo_cli.randomness import generator
from gspo_cli.rewards.verifiers import VerifierReward
from gspo_cli.tasks.base import Task
from gspo_cli.tasks.files import Split, split
from gspo_cli.types import Demonstration, Message, Problem

# All pairs of two-digit numbers are 10,000; where there are more pairs than this, this many are drawn.
DRAWN_PAIRS = 20_000


@dataclass
class Arithmetic(Task):
    """`47+85=`, answered `231`: 132 in reverse, so that a model that writes left to right can carry.

    A sum and its mirror image (85+47) are held out together. With 1 or 2 digits every pair is used, with more
    digits a fixed sample of about 20,000.
    """

    digits: int = 2
    """Digits of each number, 1 to 9; up to 2 digits every pair is used, above that a fixed sample of
    20,000."""
    reversed_answer: bool = True
    """Writes the digits of answers in reverse, so that a model that writes left to right can carry."""
    heldout: int = 500
    """Number of held-out sums; above 0."""
    demonstrations_count: int = 20_000
    """Maximum demonstrations; above 0."""

    def __post_init__(self) -> None:
        require(1 <= self.digits <= 9, f"task.digits={self.digits}: must be between 1 and 9")
        require_positive("task", self, "heldout", "demonstrations_count")

    def train_problems(self) -> Sequence[Problem]:
        """Every sum that is not held out. Raises UserError if `heldout` takes them all."""
        return self._split.train

    def heldout_problems(self) -> Sequence[Problem]:
        """`heldout` sums, the same for every seed."""
        return self._split.heldout

    def demonstrations(self) -> Sequence[Demonstration]:
        """Solved training problems, `demonstrations_count` at most."""
        chosen = self.train_problems()[: self.demonstrations_count]
        return [Demonstration((*p.messages, Message("assistant", p.answer))) for p in chosen]

    def reward(self) -> VerifierReward:
        """1 for the exact answer."""
        return VerifierReward("exact")

    @cached_property
    def _split(self) -> Split:
        problems = [self._problem(first, second) for first, second in self._pairs()]
        return split(problems, self.heldout, lambda p: str(sorted(p.metadata["terms"])))

    def _pairs(self) -> Iterable[tuple[int, int]]:
        bound = 10**self.digits
        if bound**2 <= DRAWN_PAIRS:
            return product(range(bound), range(bound))
        drawn = generator(0, "arithmetic", self.digits).integers(bound, size=(DRAWN_PAIRS, 2))
        return dict.fromkeys((first, second) for first, second in drawn.tolist())

    def _problem(self, first: int, second: int) -> Problem:
        question, total = f"{first}+{second}=", str(first + second)
        return Problem(
            id=question,
            messages=(Message("user", question),),
            answer=total[::-1] if self.reversed_answer else total,
            metadata={"terms": (first, second)},
        )
