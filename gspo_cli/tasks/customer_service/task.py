"""Customer service in a small shop: a scripted customer, tools over a real database, and a policy to keep.

Generated; nothing is downloaded. Held-out problems have customers and phrases that training never sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import ClassVar

from gspo_cli.config.checks import require, require_fraction, require_positive
from gspo_cli.randomness import generator
from gspo_cli.tasks.customer_service import oracle
from gspo_cli.tasks.customer_service.environment import ShopEnvironment
from gspo_cli.tasks.customer_service.scenario import draw_scenario, to_json
from gspo_cli.tasks.customer_service.tools import POLICY, TOOLS
from gspo_cli.tasks.customer_service.user import draw_wording
from gspo_cli.tasks.scripted import Agent, ScriptedTask
from gspo_cli.tasks.tools import Tool
from gspo_cli.types import Message, Problem

MOST_PROBLEMS = 10_000  # limited because opening words differ between problems


@dataclass
class CustomerService(ScriptedTask):
    """Customers of a small shop want orders cancelled, refunded, moved to another city, or found: 1 to
    `difficulty` requests in a conversation, and sometimes what they want is not allowed.

    `careless` is the chance of each bad habit (see `oracle.Habit`) of the demonstrating agent; 0 gives good
    conversations only."""

    DIFFICULTY: ClassVar[str | None] = "difficulty"

    answer_length: int = 24
    max_turns: int = 14
    heldout: int = 200
    difficulty: int = 2
    """Maximum requests in one conversation, 1 to 4."""
    problems: int = 2000
    """Number of training problems, at most 10,000; above 0."""
    careless: float = 0.6
    """Probability of each bad habit of the agent in the demonstrations, between 0 and 1; 0 gives good
    conversations only."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            1 <= self.difficulty <= 4, f"task.difficulty={self.difficulty}: must be between 1 and 4; give 2"
        )
        require_positive("task", self, "problems")
        require_fraction("task", self, "careless")
        for name in ("problems", "heldout"):
            count = getattr(self, name)
            require(
                count <= MOST_PROBLEMS,
                f"task.{name}={count}: there are at most {MOST_PROBLEMS:,}; use fewer",
            )
        turns = 2 + 3 * self.difficulty
        require(
            self.max_turns >= turns,
            f"task.max_turns={self.max_turns}: is too few for task.difficulty={self.difficulty}, "
            f"whose conversations take up to {turns} agent turns; use at least {turns}",
        )

    def train_problems(self) -> Sequence[Problem]:
        """`problems` customers with their requests, the same for every seed of a run."""
        return self._train

    def heldout_problems(self) -> Sequence[Problem]:
        """`heldout` conversations with other customers, who use other phrases."""
        return self._heldout

    def environment(self) -> ShopEnvironment:
        """A customer and a shop."""
        return ShopEnvironment()

    def policy(self) -> str:
        """What the shop allows its agents."""
        return POLICY

    def tools(self) -> tuple[Tool, ...]:
        """Find a customer, look at an order, cancel, refund or move it."""
        return tuple(TOOLS.values())

    def agent(self, messages: Sequence[Message]) -> str:
        """See `oracle.answer`."""
        return oracle.answer(messages)

    def demonstrator(self, seed: int) -> Agent:
        """The oracle, with bad habits drawn by `seed`."""
        drawn = generator(seed, "habits").random(len(oracle.Habit))
        habits = [habit for habit, chance in zip(oracle.Habit, drawn, strict=True) if chance < self.careless]
        return partial(oracle.answer, habits=frozenset(habits))

    @cached_property
    def _train(self) -> list[Problem]:
        return self._draw("train", self.problems)

    @cached_property
    def _heldout(self) -> list[Problem]:
        return self._draw("heldout", self.heldout)

    def _draw(self, side: str, count: int) -> list[Problem]:
        random = generator(0, f"customer service, {side}", self.difficulty)
        found: dict[str, Problem] = {}  # by opening words, which do not repeat
        while len(found) < count:
            requests = int(random.integers(1, self.difficulty + 1))
            scenario = draw_scenario(random, requests, heldout=side == "heldout")
            opening = draw_wording(scenario, seed=0).opening
            if opening not in found:
                found[opening] = Problem(
                    id=f"{side}-{len(found)}",
                    messages=(Message("user", opening),),
                    answer=scenario.goal(),
                    metadata=to_json(scenario),
                    about=f"Your email is {scenario.customer}.",
                )
        return list(found.values())
