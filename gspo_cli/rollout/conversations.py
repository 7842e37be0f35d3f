"""Conversations between the policy and environments, all turns in step; a single-turn task is done after one.

An environment that crashes, or answers with something that is no answer, is data: its conversation ends,
`excluded` holds the reason, and it leaves its group's baseline."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gspo_cli.concurrency import gather
from gspo_cli.config.schema import RolloutConfig
from gspo_cli.policy.chat import ChatFormat
from gspo_cli.randomness import derived_seed
from gspo_cli.rollout.engine import Completion, Request, RolloutEngine, Sampling
from gspo_cli.tasks.base import NO_SYSTEM_PROMPT, Environment, Step, SystemPrompt
from gspo_cli.types import FinishReason, Message, Outcome, Problem, Trajectory

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Start:
    """One conversation to hold. `where` places it, e.g. (iteration, prompt, sample): it fixes what is
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
        """Leave the conversation out: its environment is at fault."""
        reason = f"environment raised {type(error).__name__}: {error}"
        self.trajectory.excluded = self.trajectory.excluded or reason
        self.done = True


@dataclass(frozen=True)
class Rollout:
    """Finished conversations, in the order of their starts, and what top_p and top_k left out on average."""

    trajectories: list[Trajectory]
    truncated_mass: float


def roll_out(
    engine: RolloutEngine,
    chat: ChatFormat,
    environment: Callable[[], Environment],
    starts: Sequence[Start],
    sampling: Sampling,
    limits: Limits,
    seed: int,
    system: SystemPrompt = NO_SYSTEM_PROMPT,
) -> Rollout:
    """Hold all conversations to their end. `seed` is the run's; engines keep caches between turns."""
    conversations = [_open(start, environment(), chat, system, limits) for start in starts]
    turn = 0
    while live := [(i, c) for i, c in enumerate(conversations) if not c.done]:
        requests = [
            Request(c.trajectory.token_ids, derived_seed(seed, "sample", *c.start.where, turn), i)
            for i, c in live
        ]
        goes_on = turn + 1 < limits.max_turns and not all(c.environment.single_turn for _, c in live)
        completions = engine.generate(requests, sampling, keep_cache=goes_on)
        spoken = [_speak(c, completion, chat) for (_, c), completion in zip(live, completions, strict=True)]
        for (_, conversation), step in zip(live, _react(live, spoken, limits), strict=True):
            _hear(conversation, step, chat, sampling, limits)
        turn += 1
    engine.forget()
    for conversation in conversations:
        _finish(conversation)
    masses = [mass for c in conversations for mass in c.truncated_mass]
    return Rollout([c.trajectory for c in conversations], sum(masses) / max(1, len(masses)))


def opening(problem_messages: tuple[Message, ...], system_prompt: str) -> tuple[Message, ...]:
    """What the agent first sees: the task's system prompt, unless the problem brings its own, and the
    messages."""
    if not system_prompt or problem_messages[0].role == "system":
        return problem_messages
    return (Message("system", system_prompt), *problem_messages)


def _open(
    start: Start, environment: Environment, chat: ChatFormat, system: SystemPrompt, limits: Limits
) -> _Conversation:
    trajectory = Trajectory(start.problem, [], [], [], [], [], FinishReason.stop)
    conversation = _Conversation(start, environment, trajectory)
    try:
        messages = environment.reset(start.problem, start.environment_seed)
        conversation.opened = True
        messages = _checked_messages(messages, "reset")
        if not messages:
            raise ValueError("its reset returned no message: somebody has to speak first")
    except Exception as error:  # code we did not write
        conversation.fail(error)
        return conversation
    messages = opening(messages, system.text)
    trajectory.messages = list(messages)
    _append_heard(trajectory, chat.prompt_ids(messages, system.tools))
    if len(trajectory.token_ids) > limits.max_prompt_length:
        trajectory.excluded = (
            f"prompt of {len(trajectory.token_ids)} tokens is over rollout.max_prompt_length"
        )
        conversation.done = True
    return conversation


def _speak(conversation: _Conversation, completion: Completion, chat: ChatFormat) -> str:
    """Take down the agent's turn; returns what it says."""
    trajectory = conversation.trajectory
    _append_spoken(trajectory, completion)
    conversation.truncated_mass.append(completion.truncated_mass)
    text = chat.text(completion.token_ids)
    trajectory.messages.append(Message("assistant", text))
    trajectory.finish_reason = completion.finish_reason
    return text


def _react(live: Sequence[tuple[int, _Conversation]], spoken: Sequence[str], limits: Limits) -> list[Any]:
    """Each environment's step, or the exception that it raised; those that wait do so side by side."""
    steps: list[Any] = []
    for (_, conversation), text in zip(live, spoken, strict=True):
        try:
            steps.append(conversation.environment.step(text))
        except Exception as error:  # code we did not write
            steps.append(error)
    waiting = [i for i, step in enumerate(steps) if inspect.isawaitable(step)]
    found = gather([steps[i] for i in waiting], limits.waiting, limits.seconds)
    for i, step in zip(waiting, found, strict=True):
        steps[i] = step
    return steps


def _hear(
    conversation: _Conversation, step: Any, chat: ChatFormat, sampling: Sampling, limits: Limits
) -> None:
    """Append what the agent hears next, or end the conversation."""
    trajectory = conversation.trajectory
    try:
        step = _checked_step(step)
    except Exception as error:  # code we did not write
        conversation.fail(error)
        return
    trajectory.turn_rewards.append(step.reward)
    trajectory.progress.append(step.progress)
    trajectory.messages.extend(step.messages)
    if step.done:
        conversation.done = True
        return
    heard = chat.suffix_ids(step.messages, trajectory.token_ids[-1])
    if trajectory.num_turns >= limits.max_turns:
        trajectory.finish_reason = FinishReason.turns
    elif len(trajectory.token_ids) + len(heard) + sampling.max_new_tokens > limits.max_positions:
        trajectory.finish_reason = FinishReason.length
    else:
        _append_heard(trajectory, heard)
        return
    conversation.done = True


def _finish(conversation: _Conversation) -> None:
    if not conversation.opened:
        return
    try:
        outcome = _checked_outcome(conversation.environment.finish())
    except Exception as error:  # code we did not write
        conversation.fail(error)
        return
    if conversation.trajectory.excluded is None:
        conversation.trajectory.outcome = outcome


def _checked_step(step: Any) -> Step:
    """What an environment's step came to, with plain finite numbers; raises where it is no Step."""
    if isinstance(step, Exception):
        raise step
    if not isinstance(step, Step):
        raise TypeError(f"its step returned {type(step).__name__}, not Step")
    messages = _checked_messages(step.messages, "step")
    reward = _finite({"reward": step.reward}, "step")["reward"]
    return Step(messages, bool(step.done), reward, _finite(step.progress, "step"))


def _checked_outcome(outcome: Any) -> Outcome:
    if not isinstance(outcome, Outcome):
        raise TypeError(f"its finish returned {type(outcome).__name__}, not Outcome")
    return replace(outcome, counts=_finite(outcome.counts, "finish"))


def _checked_messages(messages: Any, source: str) -> tuple[Message, ...]:
    if inspect.iscoroutine(messages):
        messages.close()
    if not isinstance(messages, tuple | list):
        raise TypeError(f"its {source} returned {type(messages).__name__} in place of messages")
    for message in messages:
        said = isinstance(message, Message) and isinstance(message.content, str)
        if not (said and message.role in ROLES):
            raise TypeError(f"its {source} returned {str(message)[:80]!r} in place of a message")
    return tuple(messages)


def _finite(values: Mapping[str, Any], source: str) -> dict[str, float]:
    numbers = {name: float(value) for name, value in values.items()}
    broken = [name for name, value in numbers.items() if not math.isfinite(value)]
    if broken:
        raise ValueError(f"its {source} returned a {broken[0]} that is not finite")
    return numbers


def _append_heard(trajectory: Trajectory, ids: list[int]) -> None:
    trajectory.token_ids.extend(ids)
    trajectory.action_mask.extend([False] * len(ids))
    trajectory.sampling_logprobs.extend([0.0] * len(ids))
    trajectory.turn_ids.extend([-1] * len(ids))


def _append_spoken(trajectory: Trajectory, completion: Completion) -> None:
    count = len(completion.token_ids)
    trajectory.token_ids.extend(completion.token_ids)
    trajectory.action_mask.extend([True] * count)
    trajectory.sampling_logprobs.extend(completion.logprobs)
    trajectory.turn_ids.extend([trajectory.num_turns] * count)
