"""Judging finished conversations, all at once."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence

from gspo_cli.concurrency import gather
from gspo_cli.config.choices import RewardErrors
from gspo_cli.errors import UserError
from gspo_cli.rewards.base import RewardError, RewardFunction, settled, verdicts
from gspo_cli.types import RewardResult, Trajectory

SUCCESS = 0.99  # a reward from here on counts as solved, where the reward itself does not say


def score_all(
    function: RewardFunction,
    trajectories: Sequence[Trajectory],
    on_error: RewardErrors,
    limit: int = 16,
    timeout: float = 60.0,
) -> None:
    """Set reward, components, turn rewards and `solved` of every trajectory that has no reason to be left
    out.

    The environment's own turn rewards are added to the total. Plain rewards are called here, one by one;
    those that are awaited run `limit` at a time, each for at most `timeout` seconds. A failing reward raises
    UserError, or marks the trajectory excluded, as `on_error` says; it is never a 0."""
    judged = [t for t in trajectories if t.excluded is None]
    results = judge(function, judged, limit, timeout)
    for trajectory, result in zip(judged, results, strict=True):
        if isinstance(result, RewardResult):
            settle(trajectory, result)
        elif on_error is RewardErrors.exclude:
            trajectory.excluded = str(result)
        else:
            raise UserError(
                f"reward: {result} on problem {trajectory.problem.id}; mend it, or leave such answers out "
                "with training.reward_errors=exclude"
            ) from result


def judge(
    function: RewardFunction, trajectories: Sequence[Trajectory], limit: int, timeout: float
) -> list[RewardResult | RewardError]:
    """The checked result of each trajectory, or the error instead of it."""
    found = verdicts(function, trajectories)
    awaited = iter(gather([verdict for verdict in found if inspect.isawaitable(verdict)], limit, timeout))
    done = [next(awaited) if inspect.isawaitable(verdict) else verdict for verdict in found]
    return [settled(function, t, result) for t, result in zip(trajectories, done, strict=True)]


def settle(trajectory: Trajectory, result: RewardResult) -> None:
    """Write `result` into `trajectory`. The turns' rewards add up to the whole: what neither environment nor
    reward gave to a turn goes to the last."""
    total = result.total_reward + math.fsum(trajectory.turn_rewards)
    turns = list(trajectory.turn_rewards)
    for turn, earned in enumerate(result.turn_rewards):
        turns[turn] += earned
    if turns:
        turns[-1] = total - math.fsum(turns[:-1])
    trajectory.turn_rewards = turns
    trajectory.reward = total
    trajectory.components = dict(result.component_rewards)
    trajectory.solved = total >= SUCCESS if result.solved is None else bool(result.solved)
