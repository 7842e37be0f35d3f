"""Countdown, generated: reach a target with + - * / from a few small numbers, each used exactly once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations, islice
from typing import Any, ClassVar

from gspo_cli.config.checks import require, require_fraction, require_positive
from gspo_cli.randomness import generator
from gspo_cli.rewards.base import RewardFunction
from gspo_cli.tasks.expression import ExpressionError, evaluate
from gspo_cli.tasks.questions import QuestionTask
from gspo_cli.tasks.splits import Split, split
from gspo_cli.types import Message, Problem, RewardResult, Trajectory

# Three numbers up to 9 make 165 hands and 2,253 problems; these limits leave none out. Larger settings
# are a sample: a hand of four numbers takes 10 ms to solve and reaches about sixty targets.
DRAWS = 20_000
TARGETS_PER_HAND = 50
PROBLEMS = 10_000


@dataclass
class Countdown(QuestionTask):
    """`3 5 7 = 22`, or the same in words, answered by an expression such as `3*5+7`. Every target can be
    reached."""

    DIFFICULTY: ClassVar[str | None] = "numbers"

    numbers: int = 3
    """Numbers per problem, 2 to 4."""
    largest: int = 9
    """Largest of the numbers, 2 to 99."""
    heldout: int = 200
    """Number of held-out pairs of numbers and target; above 0."""
    well_formed_weight: float = 0.1
    """Reward of a well-formed expression with a wrong value, between 0 and 1."""

    def __post_init__(self) -> None:
        require(2 <= self.numbers <= 4, f"task.numbers={self.numbers}: must be between 2 and 4")
        require(2 <= self.largest <= 99, f"task.largest={self.largest}: must be between 2 and 99")
        require_positive("task", self, "heldout")
        require_fraction("task", self, "well_formed_weight")
        super().__post_init__()

    @property
    def answer_form(self) -> str:
        """An expression and nothing else."""
        return "Reply with the expression only, written with digits, + - * / and parentheses."

    def reward(self) -> RewardFunction:
        """See CountdownReward."""
        return CountdownReward(self.well_formed_weight)

    def sides(self) -> Split:
        """`heldout` pairs of numbers and target, and all others. Raises UserError if these are all."""
        found: list[Problem] = []
        for hand in self._hands():
            targets = islice(solutions(hand).items(), TARGETS_PER_HAND)
            found.extend(self._problem(hand, target, answer) for target, answer in targets)
            if len(found) >= PROBLEMS:
                break
        return split(found, self.heldout, lambda problem: problem.id)

    def _hands(self) -> Iterator[tuple[int, ...]]:
        random = generator(0, "countdown", self.numbers, self.largest)
        drawn = random.integers(1, self.largest + 1, size=(DRAWS, self.numbers)).tolist()
        return iter(dict.fromkeys(tuple(sorted(hand)) for hand in drawn))

    def _problem(self, hand: tuple[int, ...], target: int, answer: str) -> Problem:
        terse = f"{' '.join(map(str, hand))} = {target}"
        numbers = f"{', '.join(map(str, hand[:-1]))} and {hand[-1]}"
        question = (
            f"Write an expression equal to {target} that uses each of the numbers {numbers} exactly once."
        )
        return Problem(
            id=terse,
            messages=self.asked((Message("user", question if self.instructions else terse),)),
            answer=answer,
            metadata={"numbers": hand, "target": target},
        )


class CountdownReward(RewardFunction):
    """`well_formed`: an expression of exactly the given numbers; `exact`: it also has the target's value.

    The total is weight * well_formed + (1 - weight) * exact: some credit for any such expression, none for
    text. An equation whose right side is the target counts as its left side."""

    def __init__(self, well_formed_weight: float = 0.1) -> None:
        self.weight = well_formed_weight

    def compute_reward(
        self, trajectory: Trajectory, turn: Message, context: Mapping[str, Any]
    ) -> RewardResult:
        """The last answer against the problem's numbers and target."""
        numbers, target = (trajectory.problem.metadata[name] for name in ("numbers", "target"))
        written, equals, value = trajectory.answer.partition("=")
        try:
            expression = evaluate(written if value.strip() == str(target) else written + equals + value)
        except ExpressionError:  # a bad answer is not an error
            return RewardResult(0.0, {"well_formed": 0.0, "exact": 0.0})
        well_formed = sorted(expression.numbers) == sorted(numbers)
        exact = well_formed and expression.value == target
        total = self.weight * well_formed + (1 - self.weight) * exact
        return RewardResult(total, {"well_formed": float(well_formed), "exact": float(exact)})


@dataclass(frozen=True)
class _Term:
    """A value and how it is written; `binding` is 1 for a sum, 2 for a product, 3 for a number."""

    value: Fraction
    text: str
    binding: int = 3

    def inside(self, binding: int) -> str:
        """The text, in parentheses where it binds less than `binding`."""
        return self.text if self.binding >= binding else f"({self.text})"


def solutions(numbers: tuple[int, ...]) -> dict[int, str]:
    """Every positive integer that `numbers` reach, each used once, with the shortest expression found."""
    found: dict[int, str] = {}
    for term in _reach(tuple(_Term(Fraction(number), str(number)) for number in numbers)):
        if term.value.denominator == 1 and term.value > 0:
            best = found.get(int(term.value), term.text)
            found[int(term.value)] = min(best, term.text, key=lambda text: (len(text), text))
    return dict(sorted(found.items()))


def _reach(terms: tuple[_Term, ...]) -> Iterator[_Term]:
    if len(terms) == 1:
        yield terms[0]
        return
    for first, second in combinations(range(len(terms)), 2):
        rest = tuple(term for place, term in enumerate(terms) if place not in (first, second))
        for joined in _join(terms[first], terms[second]):
            yield from _reach((*rest, joined))


def _join(a: _Term, b: _Term) -> Iterator[_Term]:
    yield _Term(a.value + b.value, f"{a.text}+{b.text}", 1)
    yield _Term(a.value * b.value, f"{a.inside(2)}*{b.inside(2)}", 2)
    for left, right in ((a, b), (b, a)):
        yield _Term(left.value - right.value, f"{left.text}-{right.inside(2)}", 1)
        if right.value:
            yield _Term(left.value / right.value, f"{left.inside(2)}/{right.inside(3)}", 2)
