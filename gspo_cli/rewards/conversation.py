"""Rewards of conversations: the progress that the environment reports, and the manner of the agent."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gspo_cli.config.checks import require
from gspo_cli.rewards.base import RewardError, RewardFunction
from gspo_cli.rewards.composition import WeightedReward
from gspo_cli.rewards.manner import MannerReward
from gspo_cli.types import Message, RewardResult, Trajectory

# With 0.1 for manner the best conversation earns 1. Policy is at most 0: its weight is what violations cost.
WEIGHTS = {"outcome": 0.6, "facts": 0.3, "policy": 0.5}
MANNER_WEIGHT = 0.1
# the names that the GSPO guide gives the domains of conversations
DOMAINS = {
    "customer_service": ("customer", "cs", "support"),
    "technical_support": ("technical", "tech_support", "it", "it_support", "helpdesk"),
    "sales": ("sales_assistant", "marketing", "product"),
    "tutoring": ("tutor", "education"),
}


class ProgressReward(RewardFunction):
    """The environment's last progress, weighted by `weights`; each turn earns the change it made.

    Solved if the environment's outcome says so. 0 for an environment that reports no progress at all; a
    weighted name that is missing from the progress is an error. Raises UserError on infinite weights."""

    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        self.weights = dict(WEIGHTS if weights is None else weights)
        for name, weight in self.weights.items():
            require(math.isfinite(weight), f"weights.{name}={weight}: must be a finite number")

    def compute_reward(
        self, trajectory: Trajectory, turn: Message, context: Mapping[str, Any]
    ) -> RewardResult:
        """The weighted sum; the reported values are the components."""
        solved = trajectory.outcome.solved
        if not any(trajectory.progress):
            return RewardResult(0.0, solved=solved)
        value, last, changes = 0.0, trajectory.progress[0], []
        for progress in trajectory.progress:
            before, last = value, progress or last  # a turn without report changes nothing
            value = self._value(last) if last else 0.0
            changes.append(value - before)
        return RewardResult(value, last, turn_rewards=changes, solved=solved)

    def _value(self, progress: Mapping[str, float]) -> float:
        missing = [name for name in self.weights if name not in progress]
        if missing:
            raise RewardError(
                f"ProgressReward weighs {missing[0]}, which the environment does not report; it reports "
                f"{', '.join(progress) or 'nothing'}"
            )
        return math.fsum(weight * progress[name] for name, weight in self.weights.items())


class MannerInProgress(MannerReward):
    """Manner in proportion to what was reached, so that manner alone earns nothing: the total is manner times
    the outcome, between 0 and 1. Where `weights`, those of the progress, have no outcome, it is the weighted
    progress as a share of `best`. Where the environment reports no progress at all, manner counts in full."""

    def __init__(self, weights: Mapping[str, float] | None = None, best: float = 1.0) -> None:
        super().__init__()
        self.progress, self.best = ProgressReward(weights), best

    def compute_reward(
        self, trajectory: Trajectory, turn: Message, context: Mapping[str, Any]
    ) -> RewardResult:
        """Manner times progress; the components are the parts of manner alone."""
        manner = super().compute_reward(trajectory, turn, context)
        reached = self.progress.compute_reward(trajectory, turn, context)
        last = reached.component_rewards
        if not last:
            return manner
        has_outcome = "outcome" in self.progress.weights
        share = last["outcome"] if has_outcome else reached.total_reward / self.best
        return replace(manner, total_reward=min(1.0, max(0.0, share)) * manner.total_reward)


def conversation_reward(
    weights: Mapping[str, float] | None = None, manner_weight: float = MANNER_WEIGHT
) -> WeightedReward:
    """Progress and manner as one reward in [0, 1]. Choose weights so that a perfect conversation, with
    `manner_weight`, adds up to 1. Manner counts in proportion to the outcome (see `MannerInProgress`).
    `solved` is what the environment reports, whatever the manner."""
    best = 1.0 - manner_weight if manner_weight < 1 else 1.0
    manner = MannerInProgress(weights, best)
    return WeightedReward({"standing": (1.0, ProgressReward(weights)), "manner": (manner_weight, manner)})


def create_customer_service_reward(weights: Mapping[str, float] | None = None) -> WeightedReward:
    """The reward of a customer service agent: the outcome weighs most, then the facts told, then empathy,
    action, professionalism, length and similarity."""
    return conversation_reward(weights)


def create_domain_reward(domain: str, weights: Mapping[str, float] | None = None) -> WeightedReward:
    """The reward of an agent in a domain of the guide: customer_service, technical_support, sales or
    tutoring, or another of its names for them. All four score what the environment reports (the outcome, the
    facts told, the policy) and the manner: the goals of a domain are its environment's. Raises UserError on
    another domain."""
    asked = str(domain).strip().lower()
    known = any(asked in (name, *others) for name, others in DOMAINS.items())
    require(known, f"create_domain_reward: {domain} is not a domain; choose one of {', '.join(DOMAINS)}")
    return conversation_reward(weights)
