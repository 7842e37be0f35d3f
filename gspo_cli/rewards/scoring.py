"""Judging finished conversations, all at once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from gspo_cli.config.choices import RewardErrors
from gspo_cli.errors import UserError
from gspo_cli.rewards.base import RewardError, RewardFunction, score
from gspo_cli.types import RewardResult, Trajectory


def score_all(function: RewardFunction, trajectories: Sequence[Trajectory], on_error: RewardErrors) -> None:
    """Set reward and components of every trajectory that has no reason to be left out.

    The environment's own turn rewards are added to the total. A failing reward raises UserError, or marks the
    trajectory excluded, as `on_error` says; it is never a 0."""
    judged = [t for t in trajectories if t.excluded is None]
    for trajectory, result in zip(judged, asyncio.run(_gather(function, judged)), strict=True):
        if isinstance(result, RewardError):
            if on_error is RewardErrors.stop:
                raise UserError(
                    f"reward: {result} on problem {trajectory.problem.id}; mend it, or leave such "
                    "answers out with "
                    "training.reward_errors=exclude"
                ) from result
            trajectory.excluded = str(result)
            continue
        trajectory.reward = result.total_reward + sum(trajectory.turn_rewards)
        trajectory.components = dict(result.component_rewards)


async def _gather(
    function: RewardFunction, trajectories: Sequence[Trajectory]
) -> list[RewardResult | RewardError]:
    async def one(trajectory: Trajectory) -> RewardResult | RewardError:
        try:
            return await score(function, trajectory)
        except RewardError as error:
            return error

    return await asyncio.gather(*(one(trajectory) for trajectory in trajectories))
