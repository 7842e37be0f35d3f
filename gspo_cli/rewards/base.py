"""How conversations are judged."""

from __future__ import annotations

import inspect
import math
from collections.abc import Awaitable, Mapping
from typing import Any

from gspo_cli.types import Message, RewardResult, Trajectory


class RewardError(Exception):
    """A reward function raised, or returned something that is not a finite RewardResult."""


class RewardFunction:
    """Base of all rewards. `compute_reward` may be a coroutine or a plain method."""

    def compute_reward(
        self, trajectory: Trajectory, turn: Message, context: Mapping[str, Any]
    ) -> RewardResult | Awaitable[RewardResult]:
        """Judge `trajectory`, whose last agent message is `turn`; `context` holds the problem's answer and
        metadata."""
        raise NotImplementedError


async def score(function: RewardFunction, trajectory: Trajectory) -> RewardResult:
    """The checked result of `function`. Raises RewardError where it raises or is not finite."""
    turn = next((m for m in reversed(trajectory.messages) if m.role == "assistant"), Message("assistant", ""))
    context = {
        **trajectory.problem.metadata,
        "problem": trajectory.problem,
        "answer": trajectory.problem.answer,
    }
    name = type(function).__name__
    try:
        result = function.compute_reward(trajectory, turn, context)
        if inspect.isawaitable(result):
            result = await result
    except Exception as error:  # code we did not write
        raise RewardError(f"{name} raised {type(error).__name__}: {error}") from error
    if not isinstance(result, RewardResult):
        raise RewardError(f"{name} returned {type(result).__name__}, not RewardResult")
    try:  # numbers of numpy and torch are welcome, and leave as plain ones
        total = float(result.total_reward)
        components = {part: float(value) for part, value in result.component_rewards.items()}
    except (TypeError, ValueError) as error:
        raise RewardError(f"{name} returned a reward that is not a number: {error}") from error
    broken = [
        part for part, value in {"total_reward": total, **components}.items() if not math.isfinite(value)
    ]
    if broken:
        raise RewardError(f"{name} returned a {broken[0]} that is not finite")
    return RewardResult(total, components, result.metadata)
