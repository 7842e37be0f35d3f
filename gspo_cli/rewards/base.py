"""How conversations are judged."""

from __future__ import annotations

import inspect
import math
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any

from gspo_cli.concurrency import TookTooLong
from gspo_cli.config.checks import require
from gspo_cli.config.compose import locate
from gspo_cli.errors import UserError
from gspo_cli.types import Message, RewardResult, Trajectory


class RewardError(Exception):
    """A reward function raised, took too long, or returned something that is not a finite RewardResult."""


Verdict = RewardResult | Awaitable[RewardResult] | RewardError


class RewardFunction:
    """Base of all rewards. `compute_reward` may be a coroutine or a plain method."""

    def compute_reward(
        self, trajectory: Trajectory, turn: Message, context: Mapping[str, Any]
    ) -> RewardResult | Awaitable[RewardResult]:
        """Judge `trajectory`, whose last agent message is `turn`; `context` holds the problem's answer and
        metadata."""
        raise NotImplementedError

    def compute_rewards(self, trajectories: Sequence[Trajectory]) -> Sequence[Verdict]:
        """Judge many at once, one entry each; what fails is an entry, too. For a class to override where a
        batch is cheaper than its members."""
        return [_verdict(self, trajectory) for trajectory in trajectories]


def build(path: str, settings: Mapping[str, Any]) -> RewardFunction:
    """The reward whose class `path` names, called with `settings`. Raises UserError where it is none, or
    where a setting is not one of its own."""
    cls = locate(path, "reward")
    is_reward = isinstance(cls, type) and issubclass(cls, RewardFunction)
    require(is_reward, f"reward={path}: must be a subclass of gspo_cli.rewards.base.RewardFunction")
    parameters = inspect.signature(cls).parameters.values()
    free = {p.name for p in parameters if p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    names = [p.name for p in parameters if p.name not in free]
    takes = f"it takes {', '.join(names) or 'none'}"
    for key in settings:
        known = key in names or any(p.kind is p.VAR_KEYWORD for p in parameters)
        require(known, f"reward_settings.{key}: is not a setting of {path}; {takes}")
    for p in parameters:
        given = p.name in settings or p.name in free or p.default is not p.empty
        require(given, f"reward_settings.{p.name}: has no value, and {path} needs one; {takes}")
    try:
        return cls(**settings)
    except (TypeError, ValueError) as error:  # a class we did not write
        raise UserError(f"reward={path}: refuses its reward_settings ({error}); correct them") from error


async def score(function: RewardFunction, trajectory: Trajectory) -> RewardResult:
    """The checked result of `function`. Raises RewardError where it raises or is not finite."""
    [verdict] = verdicts(function, [trajectory])
    if inspect.isawaitable(verdict):
        try:
            verdict = await verdict
        except Exception as error:  # code we did not write
            raise failure(function, error) from error
    result = settled(function, trajectory, verdict)
    if isinstance(result, RewardError):
        raise result
    return result


def verdicts(function: RewardFunction, trajectories: Sequence[Trajectory]) -> list[Verdict]:
    """What `function` says of each trajectory. Raises nothing; `settled` checks what came of each."""
    try:
        found = list(function.compute_rewards(trajectories))
    except Exception as error:  # code we did not write
        return [failure(function, error) for _ in trajectories]
    if len(found) != len(trajectories):
        name = type(function).__name__
        lacking = RewardError(f"{name} returned {len(found)} results for {len(trajectories)} conversations")
        return [lacking for _ in trajectories]
    return found


def settled(function: RewardFunction, trajectory: Trajectory, result: Any) -> RewardResult | RewardError:
    """What a verdict comes to: `result` is what was returned or awaited, or the exception instead of it."""
    if isinstance(result, BaseException):
        return failure(function, result)
    try:
        return _checked(type(function).__name__, trajectory, result)
    except RewardError as error:
        return error


def failure(function: RewardFunction, error: BaseException) -> RewardError:
    """`error` as the RewardError that names its function; one that is a RewardError says enough."""
    if isinstance(error, RewardError):
        return error
    name = type(function).__name__
    if isinstance(error, TookTooLong):
        return RewardError(f"{name} {error}")
    failed = RewardError(f"{name} raised {type(error).__name__}: {error}")
    failed.__cause__ = error
    return failed


def _verdict(function: RewardFunction, trajectory: Trajectory) -> Verdict:
    turn = next((m for m in reversed(trajectory.messages) if m.role == "assistant"), Message("assistant", ""))
    context = {
        **trajectory.problem.metadata,
        "problem": trajectory.problem,
        "answer": trajectory.problem.answer,
    }
    try:
        return function.compute_reward(trajectory, turn, context)
    except Exception as error:  # code we did not write
        return failure(function, error)


def _checked(name: str, trajectory: Trajectory, result: Any) -> RewardResult:
    """`result` with plain finite numbers."""
    if not isinstance(result, RewardResult):
        raise RewardError(f"{name} returned {type(result).__name__}, not RewardResult")
    try:  # numbers of numpy and torch are welcome, and leave as plain ones
        total = float(result.total_reward)
        components = {part: float(value) for part, value in result.component_rewards.items()}
        turns = [float(value) for value in result.turn_rewards]
    except (TypeError, ValueError) as error:
        raise RewardError(f"{name} returned a reward that is not a number: {error}") from error
    numbered = {f"turn_rewards[{place}]": value for place, value in enumerate(turns)}
    values = {"total_reward": total, **components, **numbered}
    broken = [part for part, value in values.items() if not math.isfinite(value)]
    if broken:
        raise RewardError(f"{name} returned a {broken[0]} that is not finite")
    if len(turns) > trajectory.num_turns:
        raise RewardError(f"{name} returned {len(turns)} turn_rewards for {trajectory.num_turns} turns")
    return RewardResult(total, components, result.metadata, turns, result.solved)
