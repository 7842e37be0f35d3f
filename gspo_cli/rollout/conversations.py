"""Conversations between the policy and environments, all turns in step; a single-turn task is done after one.

An environment that crashes, or returns something of a wrong type, does not end the run: its conversation
ends, `excluded` holds the reason, and it is left out of its group's baseline."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gspo_cli.concurrency import gather
from gspo_cli.config.schema import RolloutConfig
from gspo_cli.randomness import derived_seed
from gspo_cli.rollout.engine import Completion, Request, RolloutEngine, Sampling
from gspo_cli.rollout.progress import RolloutProgress
from gspo_cli.rollout.prompts import Prompts
from gspo_cli.tasks.base import Environment, Step
from gspo_cli.types import FinishReason, Message, Outcome, Problem, Trajectory

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
    """Run all conversations to their end, as many at once as the engine has room for; `seed` is the run's.
    Engines keep caches between turns. `progress` counts finished conversations and sampled tokens.

    -> finished conversations in the order of `starts`, and the probability mass that top_p and top_k left
    out, averaged over turns."""
    if progress is not None:
        progress.start(len(starts))
    conversations: list[_Conversation] = []
    sampled, size = 0, 1
    while len(conversations) < len(starts):
        done = len(conversations)
        wave = [_open(starts[done], environment(), prompts, limits)]
        if not done:
            turns = 1 if wave[0].environment.single_turn else limits.max_turns
            longest = limits.max_prompt_length + turns * sampling.max_new_tokens
            size = engine.conversations_at_once(min(limits.max_positions, longest))
        wave += [_open(start, environment(), prompts, limits) for start in starts[done + 1 : done + size]]
        conversations += wave
        counted = None if progress is None else _Counted(progress, done, sampled)
        sampled += _converse(engine, prompts, wave, sampling, limits, seed, counted)
    if progress is not None:
        progress.end(sampled)
    masses = [mass for c in conversations for mass in c.truncated_mass]
    return [c.trajectory for c in conversations], sum(masses) / max(1, len(masses))


@dataclass
class _Counted:
    """Progress of conversations that run at once, after others: those that are finished and the tokens that
    were sampled before."""

    progress: RolloutProgress
    finished: int
    sampled: int


def _converse(
    engine: RolloutEngine,
    prompts: Prompts,
    conversations: Sequence[_Conversation],
    sampling: Sampling,
    limits: Limits,
    seed: int,
    counted: _Counted | None,
) -> int:
    """Run conversations turn by turn to their end. Returns how many tokens were sampled."""
    turn = sampled = 0
    while live := [(i, c) for i, c in enumerate(conversations) if not c.done]:
        requests = [
            Request(c.trajectory.token_ids, derived_seed(seed, "sample", *c.start.where, turn), i)
            for i, c in live
        ]
        continues = turn + 1 < limits.max_turns and not all(c.environment.single_turn for _, c in live)
        finished = len(conversations) - len(live)
        watched = _watched(counted, finished, sampled, continues)
        completions = engine.generate(requests, sampling, keep_cache=continues, **watched)
        sampled += sum(len(completion.token_ids) for completion in completions)
        acting = [conversation for _, conversation in live]
        texts = [_act(c, completion, prompts) for c, completion in zip(acting, completions, strict=True)]
        for conversation, step in zip(acting, _step(acting, texts, limits), strict=True):
            _observe(conversation, step, prompts, sampling, limits)
        turn += 1
    engine.forget()
    for conversation in conversations:
        _finish(conversation)
    return sampled


def _watched(counted: _Counted | None, finished: int, sampled: int, continues: bool) -> dict[str, Any]:
    """What an engine needs to report a turn, on top of what is `finished` and `sampled`. Its ended requests
    are finished conversations if no turn follows."""
    if counted is None:
        return {}
    finished, sampled = counted.finished + finished, counted.sampled + sampled

    def generated(ended: int, tokens: int) -> None:
        counted.progress.update(finished + (0 if continues else ended), sampled + tokens)

    return {"progress": generated}


def _open(start: Start, environment: Environment, prompts: Prompts, limits: Limits) -> _Conversation:
    trajectory = Trajectory(start.problem, [], [], [], [], [], FinishReason.stop)
    conversation = _Conversation(start, environment, trajectory)
    try:
        opening = environment.reset(start.problem, start.environment_seed)
        conversation.opened = True
        opening = _checked_messages(opening, "reset")
        if not opening:
            raise ValueError("its reset returned no message: the user must speak first")
    except Exception as error:  # code that is not ours
        conversation.fail(error)
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
    text = prompts.chat.text(completion.token_ids)
    trajectory.messages.append(Message("assistant", text))
    trajectory.finish_reason = completion.finish_reason
    return text


def _step(acting: Sequence[_Conversation], texts: Sequence[str], limits: Limits) -> list[Any]:
    """Each environment's step, or the exception that it raised; those that wait do so concurrently."""
    steps: list[Any] = []
    for conversation, text in zip(acting, texts, strict=True):
        try:
            steps.append(conversation.environment.step(text))
        except Exception as error:  # code that is not ours
            steps.append(error)
    waiting = [i for i, step in enumerate(steps) if inspect.isawaitable(step)]
    found = gather([steps[i] for i in waiting], limits.waiting, limits.seconds)
    for i, step in zip(waiting, found, strict=True):
        steps[i] = step
    return steps


def _observe(
    conversation: _Conversation, step: Any, prompts: Prompts, sampling: Sampling, limits: Limits
) -> None:
    """Record what the agent reads next, or end the conversation."""
    trajectory = conversation.trajectory
    try:
        step = _checked_step(step)
    except Exception as error:  # code that is not ours
        conversation.fail(error)
        return
    trajectory.turn_rewards.append(step.reward)
    trajectory.progress.append(step.progress)
    trajectory.messages.extend(step.messages)
    if step.done:
        conversation.done = True
        return
    ids = prompts.chat.suffix_ids(step.messages, trajectory.token_ids[-1])
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
        outcome = replace(outcome, counts=_finite(outcome.counts, "finish"))
    except Exception as error:  # code that is not ours
        conversation.fail(error)
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
    return Step(messages, bool(step.done), reward, _finite(step.progress, "step"))


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
    numbers = {name: float(value) for name, value in values.items()}
    broken = [name for name, value in numbers.items() if not math.isfinite(value)]
    if broken:
        raise ValueError(f"its {source} returned a {broken[0]} that is not finite")
    return numbers
