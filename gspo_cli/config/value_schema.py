"""Typed configuration of `algorithm.value`: the value head of an actor-critic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from gspo_cli.config.checks import require, require_at_most, require_not_negative, require_positive
from gspo_cli.config.choices import GaeSteps
from gspo_cli.config.marks import Marks


@dataclass
class ValueConfig:
    """The value head and generalized advantage estimation (arXiv 1506.02438); used with
    advantage_baseline=value only."""

    TRUST: ClassVar[Marks] = {}

    gae_lambda: float = 1.0
    """How far later rewards count before values stand for them; from 0 to 1, where they always count. At
    0.95, 0.6% of a reward reaches the token that is 100 tokens before it, until the values have learned to
    stand for it."""
    gae_steps: GaeSteps = GaeSteps.token
    """What a step of the estimate is."""
    clip: float | None = 0.2
    """How far a value may move from what it was before the updates (PPO); above 0; null does not limit it."""
    coefficient: float = 0.1
    """Weight of the value loss in the gradient of the model below the head; 0 or more; 0 trains the head
    alone."""
    learning_rate: float = 1e-3
    """Learning rate of the head, which has an AdamW of its own; above 0. It follows training.schedule."""

    def __post_init__(self) -> None:
        group = "algorithm.value"
        require(
            0 <= self.gae_lambda <= 1,
            f"{group}.gae_lambda={self.gae_lambda}: must be from 0 to 1; give 1",
        )
        require(
            self.clip is None or self.clip > 0,
            f"{group}.clip={self.clip}: must be above 0; give null for no limit",
        )
        require_not_negative(group, self, "coefficient")
        require_positive(group, self, "learning_rate")
        require_at_most(group, self, learning_rate=1.0, coefficient=1e3)
