"""From finished conversations to rewards: score, validate, write the result to the trajectory."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from threading import Event, Thread
from typing import Any

from gspo_cli.concurrency import TookTooLong, gather
from gspo_cli.config.choices import RewardErrors
from gspo_cli.errors import FOREIGN, UserError, as_exception
from gspo_cli.rewards.base import RewardError, RewardFunction, Score
from gspo_cli.types import RewardResult, Trajectory, as_number, as_truth

SUCCESS = 0.99  # lowest reward that counts as solved if the reward function does not set `solved`


def score_all(
    function: RewardFunction,
    trajectories: Sequence[Trajectory],
    on_error: RewardErrors,
    limit: int = 16,
    timeout: float = 60.0,
) -> None:
    """Set reward, components, turn rewards and `solved` of every trajectory that is not excluded already.

    The environment's own turn rewards are added to the total. A reward that fails raises UserError or
    excludes the trajectory, depending on `on_error`; it never becomes a 0."""
    scored = [t for t in trajectories if t.excluded is None]
    lent = [_with_own_lists(trajectory) for trajectory in scored]
    for trajectory, value in zip(scored, score(function, lent, limit, timeout), strict=True):
        try:
            write_result(trajectory, validate(function, trajectory, value))
        except RewardError as error:
            if on_error is not RewardErrors.exclude:
                raise UserError(
                    f"reward: {error} on problem {trajectory.problem.id}; fix it, or leave such answers out "
                    "with training.reward_errors=exclude"
                ) from error
            trajectory.excluded = str(error)


def _with_own_lists(trajectory: Trajectory) -> Trajectory:
    """A copy for somebody's code: what it appends or clears is not what is trained."""
    values = {field.name: getattr(trajectory, field.name) for field in fields(trajectory)}
    lists: dict[str, Any] = {name: [*value] for name, value in values.items() if type(value) is list}
    return replace(trajectory, **lists)


def score(
    function: RewardFunction, trajectories: Sequence[Trajectory], limit: int = 16, timeout: float = 60.0
) -> list[Any]:
    """What `function` returns for each trajectory, or the exception in its place; not validated yet.

    Plain rewards run here, one by one. Coroutines run `limit` at a time, each for at most `timeout` seconds.
    """
    with _named_while_it_hangs(function, timeout):
        scores = call(function, trajectories)
    awaited = iter(gather([value for value in scores if inspect.isawaitable(value)], limit, timeout))
    return [next(awaited) if inspect.isawaitable(value) else value for value in scores]


@contextmanager
def _named_while_it_hangs(function: RewardFunction, seconds: float) -> Iterator[None]:
    """A block that prints the reward's name each `seconds` until it ends: nothing here can end the reward."""
    ended = Event()

    def watch() -> None:
        waited = 0.0
        while not ended.wait(seconds):
            waited += seconds
            print(
                f"warning: reward {type(function).__name__} has not returned for {waited:g} s; Ctrl-C twice "
                "stops the run, and training.isolate_reward=true ends such a reward by itself",
                file=sys.stderr,
                flush=True,
            )

    Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def call(function: RewardFunction, trajectories: Sequence[Trajectory]) -> list[Score]:
    """`function.compute_rewards`, with an exception for every trajectory where it fails as a whole."""
    try:
        scores = list(function.compute_rewards(trajectories))
        if len(scores) != len(trajectories):
            returned = f"{type(function).__name__} returned {len(scores)} results"
            raise RewardError(f"{returned} for {len(trajectories)} conversations")
        return scores
    except FOREIGN as error:
        return [as_exception(error)] * len(trajectories)


def validate(function: RewardFunction, trajectory: Trajectory, value: Any) -> RewardResult:
    """`value` with plain numbers. Raises RewardError if it is an exception, is not a RewardResult, holds a
    number that is not finite, or has more turn rewards than the trajectory has turns."""
    name = type(function).__name__
    if isinstance(value, RewardError):
        raise value
    if isinstance(value, TookTooLong):
        raise RewardError(f"{name} {value}")
    if isinstance(value, BaseException):
        raise RewardError(f"{name} raised {type(value).__name__}: {value}") from value
    if not isinstance(value, RewardResult):
        raise RewardError(f"{name} returned {type(value).__name__}, not RewardResult")
    try:
        total = as_number(value.total_reward)
        components = {part: as_number(number) for part, number in value.component_rewards.items()}
        turns = [as_number(number) for number in value.turn_rewards]
    except FOREIGN as error:  # a number of somebody's own class
        reason = as_exception(error)
        raise RewardError(f"{name} returned a reward that is not a number: {reason}") from error
    for part in components:
        if not isinstance(part, str) or not part.isprintable():
            raise RewardError(f"{name} returned a component called {part!r}; give it a printable name")
    numbered = {f"turn_rewards[{place}]": number for place, number in enumerate(turns)}
    for part, number in {"total_reward": total, **components, **numbered}.items():
        if not math.isfinite(number):
            raise RewardError(f"{name} returned a {part} that is not finite")
    if len(turns) > trajectory.num_turns:
        raise RewardError(f"{name} returned {len(turns)} turn_rewards for {trajectory.num_turns} turns")
    try:
        solved = None if value.solved is None else as_truth(value.solved)
    except TypeError as error:
        raise RewardError(f"{name} returned a solved that is neither true nor false: {error}") from error
    return RewardResult(total, components, value.metadata, turns, solved)


def write_result(trajectory: Trajectory, result: RewardResult) -> None:
    """Write a validated `result` to `trajectory`. Its turn rewards then add up to its reward: what neither
    environment nor reward gave to a turn goes to the last one."""
    total = result.total_reward + math.fsum(trajectory.turn_rewards)
    turns = list(trajectory.turn_rewards)
    for turn, earned in enumerate(result.turn_rewards):
        turns[turn] += earned
    if turns:
        turns[-1] = total - math.fsum(turns[:-1])
    trajectory.turn_rewards = turns
    trajectory.reward = total
    trajectory.components = dict(result.component_rewards)
    trajectory.solved = total >= SUCCESS if result.solved is None else result.solved
