"""Conversations between the policy and environments; a single-turn task is done after one turn.

Each conversation goes on to its next turn while others still generate. One whose environment waits for
something, such as a user behind a URL, goes on once no other generates: what shares a batch never depends on
how long somebody took.

An environment that crashes, or returns something of a wrong type, does not end the run: its conversation
ends, `excluded` holds the reason, and it is left out of its group's baseline."""

from __future__ import annotations

import inspect
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from gspo_cli.concurrency import gather
from gspo_cli.config.schema import RolloutConfig
from gspo_cli.errors import FOREIGN, as_exception
from gspo_cli.randomness import derived_seed
from gspo_cli.rollout.engine import Completion, Request, RolloutEngine, Sampling
from gspo_cli.rollout.progress import RolloutProgress
from gspo_cli.rollout.prompts import Prompts
from gspo_cli.tasks.base import Environment, Step
from gspo_cli.types import (
    FinishReason,
    Message,
    Outcome,
    Problem,
    Trajectory,
    as_number,
    as_truth,
)

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Start:
    """One conversation to run. `where` is its place, e.g. (iteration, prompt, sample): it fixes what is
    sampled; `environment_seed` is shared by all answers of a group."""

    problem: Problem
    where: tuple[int, ...]
    environment_seed: int


@dataclass(frozen=True)
class Limits:
    """Caps of a conversation, in turns and tokens; `waiting` environments wait at once, `seconds` a turn."""

    max_turns: int
    max_prompt_length: int
    max_positions: int
    waiting: int = 16
    seconds: float = 120.0

    @classmethod
    def of(cls, rollout: RolloutConfig, engine: RolloutEngine) -> Limits:
        """The caps under `rollout` with the engine's model."""
        return cls(
            rollout.max_turns,
            rollout.max_prompt_length,
            engine.max_positions,
            rollout.environment_concurrency,
            rollout.environment_timeout,
        )


@dataclass
class _Conversation:
    start: Start
    environment: Environment
    trajectory: Trajectory
    truncated_mass: list[float] = field(default_factory=list)
    opened: bool = False
    done: bool = False

    def fail(self, error: Exception) -> None:
        """Exclude the conversation: its environment is at fault."""
        reason = f"environment raised {type(error).__name__}: {error}"
        self.trajectory.excluded = self.trajectory.excluded or reason
        self.done = True


def roll_out(
    engine: RolloutEngine,
    prompts: Prompts,
    environment: Callable[[], Environment],
    starts: Sequence[Start],
    sampling: Sampling,
    limits: Limits,
    seed: int,
    progress: RolloutProgress | None = None,
) -> tuple[list[Trajectory], float]:
    """Run all conversations to their end; the engine decides how many go on at once; `seed` is the run's.
    Engines keep caches between turns. `progress` counts finished conversations and sampled tokens.

    -> finished conversations in the order of `starts`, and the probability mass that top_p and top_k left
    out, averaged over turns."""
    rollout = _Rollout(engine, prompts, environment, sampling, limits, seed)
    with engine.session():
        run_to_end(rollout, engine, starts, progress)
    masses = [mass for c in rollout.conversations for mass in c.truncated_mass]
    return [c.trajectory for c in rollout.conversations], sum(masses) / max(1, len(masses))


class Rollout(Protocol):
    """Conversations that go on together, a token at a time."""

    @property
    def active(self) -> bool:
        """Whether a conversation goes on."""

    @property
    def finished(self) -> int:
        """Number of conversations that have ended."""

    def begin(self, start: Start) -> None:
        """Open a conversation."""

    def go_on(self) -> None:
        """Let all go on by one token."""

    def close(self) -> None:
        """Give up what has not ended."""


def run_to_end(
    rollout: Rollout, engine: RolloutEngine, starts: Sequence[Start], progress: RolloutProgress | None
) -> None:
    """Begin all `starts`, and let them go on until none is left; within the engine's session."""
    sampled = engine.sampled
    if progress is not None:
        progress.start(len(starts))
    with closing(rollout):
        for start in starts:
            rollout.begin(start)
        while rollout.active:
            rollout.go_on()
            if progress is not None:
                progress.update(rollout.finished, engine.sampled - sampled)
    if progress is not None:
        progress.end(engine.sampled - sampled)


class _Rollout:
    """Conversations so far, by the place of their start, and those that are neither ended nor excluded."""

    def __init__(
        self,
        engine: RolloutEngine,
        prompts: Prompts,
        environment: Callable[[], Environment],
        sampling: Sampling,
        limits: Limits,
        seed: int,
    ) -> None:
        self.engine, self.prompts, self.environment = engine, prompts, environment
        self.sampling, self.limits, self.seed = sampling, limits, seed
        self.conversations: list[_Conversation] = []
        self._active: set[int] = set()
        self._waiting: dict[int, Awaitable[Any]] = {}  # what their environments wait for

    @property
    def finished(self) -> int:
        """Number of conversations that have ended."""
        return len(self.conversations) - len(self._active)

    @property
    def active(self) -> bool:
        """Whether a conversation goes on."""
        return bool(self._active)

    def go_on(self) -> None:
        """Let all go on by one token."""
        for place, completion in sorted(self.engine.step().items()):
            self._answered(place, completion)
        if self._waiting and len(self._waiting) == len(self._active):
            waiting = dict(self._waiting)
            self._waiting = {}
            found = gather(list(waiting.values()), self.limits.waiting, self.limits.seconds)
            for place, step in zip(waiting, found, strict=True):
                self._observed(place, step)

    def close(self) -> None:
        """Where the rollout did not come to its end: nobody awaits what its environments began."""
        for step in self._waiting.values():
            if inspect.iscoroutine(step):
                step.close()

    def begin(self, start: Start) -> None:
        """Open a conversation, and ask for its first turn."""
        conversation = _open(start, self.environment(), self.prompts, self.limits)
        place = len(self.conversations)
        self.conversations.append(conversation)
        self._active.add(place)
        self._next_turn(place)

    def _next_turn(self, place: int) -> None:
        """Ask for the agent's next turn, or end the conversation."""
        conversation = self.conversations[place]
        if conversation.done:
            self._active.remove(place)
            self.engine.cancel(place)
            _finish(conversation)
            return
        trajectory, turn = conversation.trajectory, conversation.trajectory.num_turns
        seed = derived_seed(self.seed, "sample", *conversation.start.where, turn)
        may_go_on = turn + 1 < self.limits.max_turns and not conversation.environment.single_turn
        self.engine.submit(Request(list(trajectory.token_ids), seed, place), self.sampling, may_go_on)

    def _answered(self, place: int, completion: Completion) -> None:
        conversation = self.conversations[place]
        text = _act(conversation, completion, self.prompts)
        step: Any
        try:
            step = conversation.environment.step(text)
        except FOREIGN as error:
            step = as_exception(error)
        if inspect.isawaitable(step):
            self._waiting[place] = step
        else:
            self._observed(place, step)

    def _observed(self, place: int, step: Any) -> None:
        _observe(self.conversations[place], step, self.prompts, self.sampling, self.limits)
        self._next_turn(place)


def _open(start: Start, environment: Environment, prompts: Prompts, limits: Limits) -> _Conversation:
    trajectory = Trajectory(start.problem, [], [], [], [], [], FinishReason.stop)
    conversation = _Conversation(start, environment, trajectory)
    try:
        opening = environment.reset(start.problem, start.environment_seed)
        conversation.opened = True
        opening = _checked_messages(opening, "reset")
        if not opening:
            raise ValueError("its reset returned no message: the user must speak first")
    except FOREIGN as error:
        conversation.fail(as_exception(error))
        return conversation
    trajectory.messages = list(prompts.messages(opening))
    _record(trajectory, prompts.ids(opening))
    if len(trajectory.token_ids) > limits.max_prompt_length:
        trajectory.excluded = (
            f"prompt of {len(trajectory.token_ids)} tokens is over rollout.max_prompt_length"
        )
        conversation.done = True
    return conversation


def _act(conversation: _Conversation, completion: Completion, prompts: Prompts) -> str:
    """Record the agent's turn; returns its text."""
    trajectory = conversation.trajectory
    _record(trajectory, completion.token_ids, completion.logprobs, trajectory.num_turns)
    conversation.truncated_mass.append(completion.truncated_mass)
    text = prompts.turns.read(completion.token_ids)
    trajectory.messages.append(Message("assistant", text))
    trajectory.finish_reason = completion.finish_reason
    return text


def _observe(
    conversation: _Conversation, step: Any, prompts: Prompts, sampling: Sampling, limits: Limits
) -> None:
    """Record what the agent reads next, or end the conversation."""
    trajectory = conversation.trajectory
    try:
        step = _checked_step(step)
    except FOREIGN as error:
        conversation.fail(as_exception(error))
        return
    trajectory.turn_rewards.append(step.reward)
    trajectory.progress.append(step.progress)
    said = trajectory.messages[-1].content
    trajectory.messages.extend(step.messages)
    if step.done:
        conversation.done = True
        return
    ids = prompts.turns.after(said, step.messages, trajectory.token_ids[-1])
    if trajectory.num_turns >= limits.max_turns:
        trajectory.finish_reason = FinishReason.turns
    elif len(trajectory.token_ids) + len(ids) + sampling.max_new_tokens > limits.max_positions:
        trajectory.finish_reason = FinishReason.length
    else:
        _record(trajectory, ids)
        return
    conversation.done = True


def _finish(conversation: _Conversation) -> None:
    if not conversation.opened:
        return
    try:
        outcome = conversation.environment.finish()
        if not isinstance(outcome, Outcome):
            raise TypeError(f"its finish returned {type(outcome).__name__}, not Outcome")
        solved = None if outcome.solved is None else _truth(outcome.solved, "solved")
        outcome = replace(outcome, solved=solved, counts=_finite(outcome.counts, "finish"))
    except FOREIGN as error:
        conversation.fail(as_exception(error))
        return
    if conversation.trajectory.excluded is None:
        conversation.trajectory.outcome = outcome


def _record(
    trajectory: Trajectory, ids: Sequence[int], logprobs: Sequence[float] | None = None, turn: int = -1
) -> None:
    """Append tokens: those that the policy sampled, with their log-probabilities, or those that it reads."""
    trajectory.token_ids.extend(ids)
    trajectory.action_mask.extend([logprobs is not None] * len(ids))
    trajectory.sampling_logprobs.extend([0.0] * len(ids) if logprobs is None else logprobs)
    trajectory.turn_ids.extend([turn] * len(ids))


def _checked_step(step: Any) -> Step:
    """An environment's step with plain finite numbers; raises what it raised, or where it is not a Step."""
    if isinstance(step, Exception):
        raise step
    if not isinstance(step, Step):
        raise TypeError(f"its step returned {type(step).__name__}, not Step")
    messages = _checked_messages(step.messages, "step")
    reward = _finite({"reward": step.reward}, "step")["reward"]
    return Step(messages, _truth(step.done, "done"), reward, _finite(step.progress, "step"))


def _checked_messages(messages: Any, source: str) -> tuple[Message, ...]:
    if inspect.iscoroutine(messages):
        messages.close()
    if not isinstance(messages, tuple | list):
        raise TypeError(f"its {source} returned {type(messages).__name__} instead of messages")
    for message in messages:
        is_text = isinstance(message, Message) and isinstance(message.content, str)
        if not (is_text and message.role in ROLES):
            raise TypeError(f"its {source} returned {str(message)[:80]!r} instead of a message")
    return tuple(messages)


def _finite(values: Mapping[str, Any], source: str) -> dict[str, float]:
    numbers = {name: as_number(value) for name, value in values.items()}
    broken = [name for name, value in numbers.items() if not math.isfinite(value)]
    if broken:
        raise ValueError(f"its {source} returned a {broken[0]} that is not finite")
    return numbers


def _truth(value: Any, name: str) -> bool:
    try:
        return as_truth(value)
    except TypeError as error:
        raise TypeError(f"its {name} is {error}, neither true nor false") from error
