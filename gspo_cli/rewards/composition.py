"""Several rewards as one: a weighted sum within bounds."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Awaitable, Mapping, Sequence
from itertools import accumulate, pairwise, zip_longest
from typing import Any

from gspo_cli.config.checks import require
from gspo_cli.rewards.base import RewardError, RewardFunction, Score
from gspo_cli.rewards.scoring import call, validate
from gspo_cli.types import Message, RewardResult, Trajectory


class WeightedReward(RewardFunction):
    """The sum of weight x reward over `parts`, clamped to [`minimum`, `maximum`].

    Each part is logged unweighted under its name, and its own components as name/component. The result is
    solved if every part that sets `solved` reports success. Asynchronous parts run concurrently. Raises
    UserError on invalid weights or bounds."""

    def __init__(
        self,
        parts: Mapping[str, tuple[float, RewardFunction]],
        minimum: float = 0.0,
        maximum: float = 1.0,
    ) -> None:
        require(len(parts) > 0, "parts: is empty; give name: (weight, reward)")
        for name, (weight, part) in parts.items():
            require(math.isfinite(weight), f"parts.{name}: has weight {weight}; give a finite number")
            is_reward = isinstance(part, RewardFunction)
            require(is_reward, f"parts.{name}: is not a RewardFunction; give (weight, reward)")
        require(minimum < maximum, f"minimum={minimum}: must be below maximum={maximum}")
        self.parts = dict(parts)
        self.minimum, self.maximum = minimum, maximum

    def compute_reward(
        self, trajectory: Trajectory, turn: Message, context: Mapping[str, Any]
    ) -> RewardResult | Awaitable[RewardResult]:
        """The bounded sum; a coroutine if a part is one. Raises RewardError if a part fails."""
        [score] = self.compute_rewards([trajectory])
        if isinstance(score, Exception):
            raise score
        return score

    def compute_rewards(self, trajectories: Sequence[Trajectory]) -> list[Score]:
        """Calls each part once with all trajectories, so that parts which work in batches can."""
        columns = [call(part, trajectories) for _, part in self.parts.values()]
        scores: list[Score] = []
        for trajectory, values in zip(trajectories, zip(*columns, strict=True), strict=True):
            waits = any(inspect.isawaitable(value) for value in values)
            failed = self._failure(trajectory, values) if waits else None
            try:
                scores.append(failed or (self._await if waits else self._combine)(trajectory, values))
            except RewardError as error:
                scores.append(error)
        return scores

    def _failure(self, trajectory: Trajectory, values: Sequence[Score]) -> RewardError | None:
        """The error of the first part that has failed already. Parts that would still have to be awaited are
        then closed: nothing is sent for a score that cannot be."""
        for (_, part), value in zip(self.parts.values(), values, strict=True):
            if inspect.isawaitable(value):
                continue
            try:
                validate(part, trajectory, value)
            except RewardError as error:
                for other in values:
                    if inspect.iscoroutine(other):
                        other.close()
                return error
        return None

    async def _await(self, trajectory: Trajectory, values: Sequence[Score]) -> RewardResult:
        pending = [value for value in values if inspect.isawaitable(value)]
        awaited = iter(await asyncio.gather(*pending, return_exceptions=True))
        results = [next(awaited) if inspect.isawaitable(value) else value for value in values]
        return self._combine(trajectory, results)

    def _combine(self, trajectory: Trajectory, values: Sequence[Any]) -> RewardResult:
        """The weighted sum of what the parts returned. Raises the RewardError of the first part that
        failed."""
        results = {
            name: validate(part, trajectory, value)
            for (name, (_, part)), value in zip(self.parts.items(), values, strict=True)
        }
        weighted = [(self.parts[name][0], result) for name, result in results.items()]
        total = math.fsum(weight * result.total_reward for weight, result in weighted)
        turns = ([weight * earned for earned in result.turn_rewards] for weight, result in weighted)
        by_turn = [math.fsum(earned) for earned in zip_longest(*turns, fillvalue=0.0)]
        decided = [result.solved for result in results.values() if result.solved is not None]
        components: dict[str, float] = {}
        for name, result in results.items():
            components[name] = result.total_reward
            components |= {f"{name}/{part}": value for part, value in result.component_rewards.items()}
        return RewardResult(
            self._bounded(total),
            components,
            {name: result.metadata for name, result in results.items() if result.metadata},
            self._bounded_turns(by_turn),
            all(decided) if decided else None,
        )

    def _bounded(self, total: float) -> float:
        return min(max(total, self.minimum), self.maximum)

    def _bounded_turns(self, by_turn: Sequence[float]) -> list[float]:
        """The change of the running total with each turn, where the running total is clamped like the final
        reward: otherwise turns after a damaging one would earn what the lower bound hides."""
        progress = [0.0, *(self._bounded(earned) for earned in accumulate(by_turn))]
        return [after - before for before, after in pairwise(progress)]
