"""Rewards of conversations: how things stand at the end, as the environment has checked it, and manner."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from gspo_cli.config.checks import require
from gspo_cli.rewards.base import RewardError, RewardFunction
from gspo_cli.rewards.composition import WeightedReward
from gspo_cli.rewards.manner import MannerReward
from gspo_cli.types import Message, RewardResult, Trajectory

# With 0.1 for manner the best conversation earns 1. Policy is 0 at best: its weight is what violations cost.
WEIGHTS = {"outcome": 0.6, "facts": 0.3, "policy": 0.5}
MANNER_WEIGHT = 0.1


class StandingReward(RewardFunction):
    """The environment's last standing, weighted by `weights`; each turn earns what changed with it.

    Solved where the environment's outcome says so. 0 where an environment reports no standing at all; one
    that lacks a weighted name is an error. Raises UserError on weights that are not finite numbers."""

    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        self.weights = dict(WEIGHTS if weights is None else weights)
        for name, weight in self.weights.items():
            require(math.isfinite(weight), f"weights.{name}={weight}: must be a finite number")

    def compute_reward(
        self, trajectory: Trajectory, turn: Message, context: Mapping[str, Any]
    ) -> RewardResult:
        """The weighted sum; the standing's values are the components."""
        solved = trajectory.outcome.solved
        if not any(trajectory.standings):
            return RewardResult(0.0, solved=solved)
        value, last, changes = 0.0, trajectory.standings[0], []
        for standing in trajectory.standings:
            before, last = value, standing or last  # a turn without report changes nothing
            value = self._value(last) if last else 0.0
            changes.append(value - before)
        return RewardResult(value, last, turn_rewards=changes, solved=solved)

    def _value(self, standing: Mapping[str, float]) -> float:
        missing = [name for name in self.weights if name not in standing]
        if missing:
            raise RewardError(
                f"StandingReward weighs {missing[0]}, which the environment does not report; it reports "
                f"{', '.join(standing) or 'nothing'}"
            )
        return math.fsum(weight * standing[name] for name, weight in self.weights.items())


def conversation_reward(
    weights: Mapping[str, float] | None = None, manner_weight: float = MANNER_WEIGHT
) -> WeightedReward:
    """Standing and manner as one reward in [0, 1]. Weights mean what they say: let those of what can be
    reached add up to 1 with `manner_weight`. Solved is what the environment says, whatever the manner."""
    return WeightedReward(
        {"standing": (1.0, StandingReward(weights)), "manner": (manner_weight, MannerReward())}
    )


def create_customer_service_reward(weights: Mapping[str, float] | None = None) -> WeightedReward:
    """The guide's name for the reward of a support agent: the outcome weighs most, then the facts told, then
    empathy, action, professionalism, length and similarity."""
    return conversation_reward(weights)
