"""The interface of rewards, and how a run builds the one it names."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any

from gspo_cli.config.checks import require
from gspo_cli.config.compose import locate
from gspo_cli.errors import FOREIGN, UserError, as_exception
from gspo_cli.types import Message, RewardResult, Trajectory


class RewardError(Exception):
    """A reward function raised, took too long, or returned something that is not a finite RewardResult."""


Score = RewardResult | Awaitable[RewardResult] | Exception


class RewardFunction:
    """Base of all rewards. `compute_reward` may be a coroutine or a plain method."""

    def compute_reward(
        self, trajectory: Trajectory, turn: Message, context: Mapping[str, Any]
    ) -> RewardResult | Awaitable[RewardResult]:
        """The reward of `trajectory`, whose last agent message is `turn`; `context` holds the problem's
        answer and metadata."""
        raise NotImplementedError

    def compute_rewards(self, trajectories: Sequence[Trajectory]) -> Sequence[Score]:
        """One entry for each trajectory: its result, an awaitable of it, or the exception in its place.
        Override it where scoring a batch is cheaper than scoring its members one by one."""
        scores: list[Score] = []
        for trajectory in trajectories:
            problem = trajectory.problem
            turns = [message for message in trajectory.messages if message.role == "assistant"]
            turn = turns[-1] if turns else Message("assistant", "")
            context = {**problem.metadata, "problem": problem, "answer": problem.answer}
            try:
                scores.append(self.compute_reward(trajectory, turn, context))
            except FOREIGN as error:
                scores.append(as_exception(error))
        return scores


def build(path: str, settings: Mapping[str, Any]) -> RewardFunction:
    """An instance of the reward class at `path`, called with `settings`.

    Raises UserError if `path` is not a reward class, or if it does not take one of the settings."""
    cls = locate(path, "reward")
    is_reward = isinstance(cls, type) and issubclass(cls, RewardFunction)
    require(is_reward, f"reward={path}: must be a subclass of gspo_cli.rewards.base.RewardFunction")
    parameters = inspect.signature(cls).parameters.values()
    free = {p.name for p in parameters if p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    names = [p.name for p in parameters if p.name not in free]
    takes = f"its settings are {', '.join(names) or 'none'}"
    for key in settings:
        known = key in names or any(p.kind is p.VAR_KEYWORD for p in parameters)
        require(known, f"reward_settings.{key}: is not a setting of {path}; {takes}")
    for p in parameters:
        given = p.name in settings or p.name in free or p.default is not p.empty
        require(given, f"reward_settings.{p.name}: has no value, but {path} requires it; {takes}")
    try:
        return cls(**settings)
    except UserError:
        raise
    except FOREIGN as error:
        reason = f"{type(error).__name__}: {as_exception(error)}"
        raise UserError(f"reward={path}: rejects its reward_settings ({reason}); correct them") from error
