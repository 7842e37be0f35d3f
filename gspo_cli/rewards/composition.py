"""Several rewards as one: a weighted sum within bounds."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Awaitable, Mapping, Sequence
from itertools import accumulate, pairwise, zip_longest
from typing import Any

from gspo_cli.config.checks import require
from gspo_cli.rewards.base import RewardError, RewardFunction, Verdict, settled, verdicts
from gspo_cli.types import Message, RewardResult, Trajectory


class WeightedReward(RewardFunction):
    """The sum of weight x reward over `parts`, kept between `minimum` and `maximum`.

    Each part is logged unweighted under its name, and its own parts as name/part. It is solved where every
    part that decides so says yes. Parts that are awaited run side by side. Raises UserError on settings that
    make no sum."""

    def __init__(
        self,
        parts: Mapping[str, tuple[float, RewardFunction]],
        minimum: float = 0.0,
        maximum: float = 1.0,
    ) -> None:
        require(len(parts) > 0, "parts: are empty; give name: (weight, reward)")
        for name, (weight, part) in parts.items():
            require(math.isfinite(weight), f"parts.{name}: has weight {weight}; give a finite number")
            is_reward = isinstance(part, RewardFunction)
            require(is_reward, f"parts.{name}: is no RewardFunction; give (weight, reward)")
        require(minimum < maximum, f"minimum={minimum}: must be below maximum={maximum}")
        self.parts = dict(parts)
        self.minimum, self.maximum = minimum, maximum

    def compute_reward(
        self, trajectory: Trajectory, turn: Message, context: Mapping[str, Any]
    ) -> RewardResult | Awaitable[RewardResult]:
        """The bounded sum, to be awaited where a part is. Raises RewardError where a part fails."""
        [verdict] = self.compute_rewards([trajectory])
        if isinstance(verdict, RewardError):
            raise verdict
        return verdict

    def compute_rewards(self, trajectories: Sequence[Trajectory]) -> list[Verdict]:
        """Every part judges all trajectories, so that a part which works in batches can."""
        columns = [verdicts(part, trajectories) for _, part in self.parts.values()]
        rows = zip(*columns, strict=True)
        return [self._verdict(t, row) for t, row in zip(trajectories, rows, strict=True)]

    def _verdict(self, trajectory: Trajectory, row: Sequence[Verdict]) -> Verdict:
        failed = next((verdict for verdict in row if isinstance(verdict, RewardError)), None)
        if failed is not None:
            for verdict in row:  # nobody awaits the others now
                if inspect.iscoroutine(verdict):
                    verdict.close()
            return failed
        if any(inspect.isawaitable(verdict) for verdict in row):
            return self._awaited(trajectory, row)
        return self._combined(trajectory, row)

    async def _awaited(self, trajectory: Trajectory, row: Sequence[Verdict]) -> RewardResult:
        pending = [verdict for verdict in row if inspect.isawaitable(verdict)]
        done = iter(await asyncio.gather(*pending, return_exceptions=True))
        results = [next(done) if inspect.isawaitable(verdict) else verdict for verdict in row]
        combined = self._combined(trajectory, results)
        if isinstance(combined, RewardError):
            raise combined
        return combined

    def _combined(self, trajectory: Trajectory, row: Sequence[Any]) -> RewardResult | RewardError:
        results: dict[str, RewardResult] = {}
        for (name, (_, part)), value in zip(self.parts.items(), row, strict=True):
            result = settled(part, trajectory, value)
            if isinstance(result, RewardError):
                return result
            results[name] = result
        weighted = [(self.parts[name][0], result) for name, result in results.items()]
        total = math.fsum(weight * result.total_reward for weight, result in weighted)
        turns = ([weight * earned for earned in result.turn_rewards] for weight, result in weighted)
        by_turn = [math.fsum(earned) for earned in zip_longest(*turns, fillvalue=0.0)]
        decided = [result.solved for result in results.values() if result.solved is not None]
        return RewardResult(
            self._bounded(total),
            _named(results),
            {name: result.metadata for name, result in results.items() if result.metadata},
            self._bounded_turns(by_turn),
            all(decided) if decided else None,
        )

    def _bounded(self, total: float) -> float:
        return min(max(total, self.minimum), self.maximum)

    def _bounded_turns(self, by_turn: Sequence[float]) -> list[float]:
        """What each turn earns of a total that never leaves the bounds: else the turns after a damage would
        be paid what the lower bound forgives."""
        progress = [0.0, *(self._bounded(earned) for earned in accumulate(by_turn))]
        return [after - before for before, after in pairwise(progress)]


def _named(results: Mapping[str, RewardResult]) -> dict[str, float]:
    """Each part's total under its name, its own parts under name/part."""
    named: dict[str, float] = {}
    for name, result in results.items():
        named[name] = result.total_reward
        named |= {f"{name}/{part}": value for part, value in result.component_rewards.items()}
    return named
