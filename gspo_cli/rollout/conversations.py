"""Conversations between the policy and environments, all turns in step; a single-turn task is done after one.

A crashing environment is data: its conversation ends, `excluded` holds the reason, and it leaves its group's
baseline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from gspo_cli.config.schema import RolloutConfig
from gspo_cli.environments.base import Environment, Step
from gspo_cli.policy.chat import ChatFormat
from gspo_cli.randomness import derived_seed
from gspo_cli.rollout.engine import Completion, Request, RolloutEngine, Sampling
from gspo_cli.types import FinishReason, Message, Problem, Trajectory


@dataclass(frozen=True)
class Start:
    """One conversation to hold. `where` places it, e.g. (iteration, prompt, sample): it fixes what is
    sampled; `environment_seed` is shared by all answers of a group."""

    problem: Problem
    where: tuple[int, ...]
    environment_seed: int


@dataclass(frozen=True)
class Limits:
    """Caps of a conversation, in turns and tokens."""

    max_turns: int
    max_prompt_length: int
    max_positions: int

    @classmethod
    def of(cls, rollout: RolloutConfig, engine: RolloutEngine) -> Limits:
        """The caps under `rollout` with the engine's model."""
        return cls(rollout.max_turns, rollout.max_prompt_length, engine.max_positions)


@dataclass
class _Conversation:
    start: Start
    environment: Environment
    trajectory: Trajectory
    truncated_mass: list[float] = field(default_factory=list)
    done: bool = False


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
    system_prompt: str = "",
) -> Rollout:
    """Hold all conversations to their end. `seed` is the run's; engines keep caches between turns."""
    conversations = [_open(start, environment(), chat, system_prompt, limits) for start in starts]
    turn = 0
    while live := [(i, c) for i, c in enumerate(conversations) if not c.done]:
        requests = [
            Request(c.trajectory.token_ids, derived_seed(seed, "sample", *c.start.where, turn), i)
            for i, c in live
        ]
        goes_on = turn + 1 < limits.max_turns and not all(c.environment.single_turn for _, c in live)
        completions = engine.generate(requests, sampling, keep_cache=goes_on)
        for (_, conversation), completion in zip(live, completions, strict=True):
            _take_turn(conversation, completion, chat, sampling, limits)
        turn += 1
    engine.forget()
    masses = [mass for c in conversations for mass in c.truncated_mass]
    return Rollout([c.trajectory for c in conversations], sum(masses) / max(1, len(masses)))


def opening(problem_messages: tuple[Message, ...], system_prompt: str) -> tuple[Message, ...]:
    """What the agent first sees: the task's system prompt, unless the problem brings its own, and the
    messages."""
    if not system_prompt or problem_messages[0].role == "system":
        return problem_messages
    return (Message("system", system_prompt), *problem_messages)


def _open(
    start: Start, environment: Environment, chat: ChatFormat, system_prompt: str, limits: Limits
) -> _Conversation:
    trajectory = Trajectory(start.problem, [], [], [], [], [], FinishReason.stop)
    conversation = _Conversation(start, environment, trajectory)
    try:
        messages = opening(environment.reset(start.problem, start.environment_seed), system_prompt)
    except Exception as error:  # code we did not write
        _fail(conversation, error)
        return conversation
    trajectory.messages = list(messages)
    _append_heard(trajectory, chat.prompt_ids(messages))
    if len(trajectory.token_ids) > limits.max_prompt_length:
        trajectory.excluded = (
            f"prompt of {len(trajectory.token_ids)} tokens is over rollout.max_prompt_length"
        )
        conversation.done = True
    return conversation


def _take_turn(
    conversation: _Conversation, completion: Completion, chat: ChatFormat, sampling: Sampling, limits: Limits
) -> None:
    trajectory = conversation.trajectory
    _append_spoken(trajectory, completion)
    conversation.truncated_mass.append(completion.truncated_mass)
    text = chat.text(completion.token_ids)
    trajectory.messages.append(Message("assistant", text))
    trajectory.finish_reason = completion.finish_reason
    try:
        step = conversation.environment.step(text)
    except Exception as error:  # code we did not write
        _fail(conversation, error)
        return
    trajectory.turn_rewards.append(step.reward)
    conversation.done = (
        step.done
        or trajectory.num_turns >= limits.max_turns
        or not _continue(trajectory, step, chat, sampling, limits)
    )


def _continue(
    trajectory: Trajectory, step: Step, chat: ChatFormat, sampling: Sampling, limits: Limits
) -> bool:
    """Append what the agent hears next; False where the model has no room left for another turn."""
    heard = chat.suffix_ids(step.messages, trajectory.token_ids[-1])
    if len(trajectory.token_ids) + len(heard) + sampling.max_new_tokens > limits.max_positions:
        trajectory.finish_reason = FinishReason.length
        return False
    _append_heard(trajectory, heard)
    trajectory.messages.extend(step.messages)
    return True


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


def _fail(conversation: _Conversation, error: Exception) -> None:
    conversation.trajectory.excluded = f"environment raised {type(error).__name__}: {error}"
    conversation.done = True
