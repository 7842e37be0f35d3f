"""A difficulty curriculum: problems are drawn from one level of the task, and a held-out score raises it.

The level is decided by regular evaluations alone, which are the same on every rank and in a resumed run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from gspo_cli.config.schema import RunConfig
from gspo_cli.tasks.levels import Level
from gspo_cli.training.collecting import ProblemOrder
from gspo_cli.types import Problem


class Curriculum:
    """The order in which a run draws problems. Without a curriculum there is a single level.

    `state` is what a checkpoint keeps: the place of the present level, and how many problems had been drawn
    when it began, from which its own epochs count."""

    def __init__(self, config: RunConfig, levels: Sequence[Level]) -> None:
        training = config.training
        self.levels, self.raise_at = levels, training.difficulty_curriculum_raise_at
        self.state = (0, 0)
        self._on = training.difficulty_curriculum_start is not None
        self._every = config.evaluation.every
        self._orders = [ProblemOrder(level.train, config.seed) for level in levels]

    @property
    def level(self) -> Level:
        """What problems are drawn from."""
        return self.levels[self.state[0]]

    @property
    def problems(self) -> Sequence[Problem]:
        """All training problems of the present level."""
        return self.level.train

    @property
    def at_target(self) -> bool:
        """Whether the present level is the task itself."""
        return self.level is self.levels[-1]

    def take(self, cursor: int, count: int) -> list[Problem]:
        """The next `count` problems of the level, where `cursor` were drawn at all levels."""
        place, began = self.state
        return self._orders[place].take(cursor - began, count)

    def epoch(self, cursor: int) -> float:
        """How often the problems of the level were gone through."""
        return (cursor - self.state[1]) / len(self.problems)

    @property
    def raised(self) -> str:
        """That the level rose, in a sentence."""
        key = f"task.{self.level.task.DIFFICULTY}"
        return f"curriculum: problems of {key}={self.level.number} are trained on from now on"

    def metrics(self) -> dict[str, Any]:
        """The level, for a line of metrics.jsonl."""
        return {"curriculum/level": self.level.number} if self._on else {}

    def evaluated(self, target_score: float | None, score: Callable[[], float | None]) -> dict[str, Any]:
        """The level, the last one and the score of the level, for a line of evals.jsonl; `score` measures it
        on held-out problems of the level. At the last level it is the run's own, `target_score`."""
        if not self._on:
            return {}
        reached = target_score if self.at_target else score()
        return self.metrics() | {"curriculum/target": self.levels[-1].number, "curriculum/score": reached}

    def rise(self, score: float | None, iteration: int, cursor: int) -> bool:
        """Go to the next level where `score`, on held-out problems of this one, suffices. The evaluation at
        the end of a run decides nothing unless it is a regular one: a longer run does not have it. Returns
        whether the level rose."""
        if not self._on or self.at_target or iteration % self._every:  # which is above 0 with a curriculum
            return False
        if score is None or score < self.raise_at:
            return False
        self.state = (self.state[0] + 1, cursor)
        return True
