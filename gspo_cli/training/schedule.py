"""Learning rate by optimizer step."""

from __future__ import annotations

import math

from gspo_cli.config.choices import Schedule
from gspo_cli.config.schema import RunConfig


def learning_rate(config: RunConfig, step: int, total_steps: int) -> float:
    """The rate of optimizer step `step` (from 0): linear warm-up, then the schedule. Never 0 on the first
    step."""
    warmup = config.training.warmup_iterations * config.training.updates_per_rollout
    peak = config.algorithm.learning_rate
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    match config.training.schedule:
        case Schedule.constant:
            return peak
        case Schedule.linear:
            return peak * (1 - progress)
        case Schedule.cosine:
            return peak * (1 + math.cos(math.pi * progress)) / 2
