"""Sums of two numbers, generated: a tiny model learns them in minutes, without files or downloads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import ClassVar

from gspo_cli.config.checks import require, require_positive
from gspo_cli.randomness import generator
from gspo_cli.rewards.verifiers import VerifierReward
from gspo_cli.tasks.base import Task
from gspo_cli.tasks.questions import QuestionTask
from gspo_cli.tasks.splits import Split, split
from gspo_cli.types import Demonstration, Message, Problem

# All pairs of two-digit numbers are 10,000; where there are more pairs than this, this many are drawn.
DRAWN_PAIRS = 20_000


@dataclass
class Arithmetic(QuestionTask):
    """`What is 47 + 85?`, answered `132`. Without instructions the question is `47+85=` and the answer `231`:
    132 in reverse, so that a tiny model, which writes left to right, can carry.

    A sum and its mirror image (85+47) are held out together. With 1 or 2 digits every pair is used, with more
    digits a fixed sample of about 20,000.
    """

    DIFFICULTY: ClassVar[str | None] = "digits"

    digits: int | None = None
    """Digits of each number, 1 to 9; null means 2, or numbers up to 20 where there are `instructions`: a
    small chat model sometimes solves these, and reinforcement needs some success."""
    largest: int | None = None
    """Largest number of a sum, 1 to 10**9 - 1, for a difficulty between two values of `digits`, which it
    replaces; null means as `digits` says."""
    reversed_answer: bool | None = None
    """Writes the digits of answers in reverse, so that a model that writes left to right can carry; null does
    so where there are no `instructions`."""
    heldout: int | None = None
    """Number of held-out sums, above 0; null means 500, or a fifth of all sums where that is fewer."""
    demonstrations_count: int = 20_000
    """Maximum demonstrations; above 0."""

    def __post_init__(self) -> None:
        require(
            self.digits is None or 1 <= self.digits <= 9,
            f"task.digits={self.digits}: must be between 1 and 9, or null",
        )
        require(
            self.largest is None or 1 <= self.largest < 10**9,
            f"task.largest={self.largest}: must be between 1 and {10**9 - 1}, or null for all numbers of "
            "task.digits digits",
        )
        require_positive("task", self, "demonstrations_count")
        require(
            self.heldout is None or self.heldout > 0, f"task.heldout={self.heldout}: must be above 0, or null"
        )
        require(
            not (self.reversed_answer and self.instructions),
            "task.reversed_answer=true: instructions ask for plain numbers; set "
            "task.reversed_answer=null, or task.instructions=false",
        )
        super().__post_init__()

    @property
    def answer_form(self) -> str:
        """A number and nothing else."""
        return "Reply with the number only."

    def levels(self, start: int) -> list[Task]:
        """Sums of numbers with so many digits. Raises UserError where `largest` replaces `digits`."""
        require(
            self.largest is None,
            f"training.difficulty_curriculum_start={start}: rises by task.digits, which task.largest="
            f"{self.largest} replaces; use task.largest=null task.digits={start + 1}",
        )
        return super().levels(start)

    def demonstrations(self) -> Sequence[Demonstration]:
        """Solved training problems, `demonstrations_count` at most."""
        return super().demonstrations()[: self.demonstrations_count]

    def reward(self) -> VerifierReward:
        """1 for the right number; words around it are accepted where there are instructions."""
        return VerifierReward("numeric" if self.instructions else "exact")

    def sides(self) -> Split:
        """`heldout` sums, and all others. Raises UserError if `heldout` takes them all."""
        problems = [self._problem(first, second) for first, second in self._pairs()]
        held = min(500, len(problems) // 5) if self.heldout is None else self.heldout
        return split(problems, held, lambda p: str(sorted(p.metadata["terms"])))

    def _pairs(self) -> Iterable[tuple[int, int]]:
        """All pairs of numbers, or, where there are more than 20,000, a fixed sample of about so many."""
        if self.largest is not None:
            bound = self.largest + 1
        elif self.digits is not None:
            bound = 10**self.digits
        else:
            bound = 21 if self.instructions else 100
        if bound**2 <= DRAWN_PAIRS:
            return product(range(bound), range(bound))
        drawn = generator(0, "arithmetic", len(str(bound - 1))).integers(bound, size=(DRAWN_PAIRS, 2))
        return dict.fromkeys((first, second) for first, second in drawn.tolist())

    def _problem(self, first: int, second: int) -> Problem:
        terse, total = f"{first}+{second}=", str(first + second)
        question = f"What is {first} + {second}?" if self.instructions else terse
        backwards = not self.instructions if self.reversed_answer is None else self.reversed_answer
        return Problem(
            id=terse,
            messages=self.asked((Message("user", question),)),
            answer=total[::-1] if backwards else total,
            metadata={"terms": (first, second)},
        )
