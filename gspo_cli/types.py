"""The data that flows through a run, free of torch.

Problem -> Trajectory -> Batch (`gspo_cli.training.batch`) -> loss and metrics.

Positions: every per-token list is aligned with `token_ids`. Entry t belongs to token t, and its
log-probability is the one of token t given tokens 0..t-1. Entry 0 is never trained. The shift between logits
and tokens happens in one place only, `gspo_cli.policy.policy`.

Three log-probabilities keep three names: `sampling_logprobs` (the rollout engine's, when the token was
drawn), `old_logprobs` (the trainer's, before the first update on the batch), `logprobs` (the policy being
trained).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


@dataclass(frozen=True)
class RequestedCall:
    """A tool call as a model has written it: neither the name nor the arguments are checked."""

    name: str
    arguments: Mapping[str, Any] = field(hash=False)


@dataclass(frozen=True)
class Message:
    """One message of a conversation; `role` is system, user, assistant or tool. The content of an assistant's
    may be an `AgentTurn`."""

    role: str
    content: str


class AgentTurn(str):
    """An agent's turn as a text, and what its model's own format says of it.

    `words` are for the user, `calls` for the environment, and `reasoning` for nobody. `error` says why calls
    cannot be read; the text is then the turn as sampled. Otherwise it has words and calls, each call written
    in one form whatever the model: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`."""

    words: str
    reasoning: str
    calls: tuple[RequestedCall, ...]
    error: str

    def __new__(
        cls, written: str, words: str, reasoning: str, calls: tuple[RequestedCall, ...], error: str = ""
    ) -> AgentTurn:
        """`written` is the turn as sampled."""
        turn = super().__new__(cls, written if error else _as_text(words, calls))
        turn.words, turn.reasoning, turn.calls, turn.error = words, reasoning, calls, error
        return turn

    def __getnewargs__(self) -> tuple[Any, ...]:
        """How it is copied, also to another process."""
        return str(self), self.words, self.reasoning, self.calls, self.error


def _as_text(words: str, calls: Sequence[RequestedCall]) -> str:
    objects = [{"name": call.name, "arguments": dict(call.arguments)} for call in calls]
    written = [f"<tool_call>{json.dumps(each, ensure_ascii=False)}</tool_call>" for each in objects]
    return "\n".join([*([words] if words or not calls else []), *written])


@dataclass(frozen=True)
class Problem:
    """One thing to solve: the messages the agent first sees and what a reward needs to score the answer.
    `about` tells a person who takes the user's place who they are."""

    id: str
    messages: tuple[Message, ...]
    answer: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    about: str = ""


@dataclass(frozen=True)
class Demonstration:
    """A conversation that ends well, for the cold start; its assistant messages are trained on, except those
    among the first `given`, which belong to the prompt."""

    messages: tuple[Message, ...]
    given: int = 0


class FinishReason(Enum):
    """Why a conversation ended: by itself, with a turn at its length limit (or no room for another), or with
    as many turns as it may have."""

    stop = "stop"
    length = "length"
    turns = "turns"


def as_number(value: Any) -> float:
    """A number of code that is not ours, also of numpy or torch, as a float. Raises TypeError where it is
    text or no number, ValueError where no float is as large."""
    if isinstance(value, str | bytes | bytearray):
        raise TypeError(f"{value!r:.80} is text")
    try:
        return float(value)
    except OverflowError as error:
        raise ValueError("it is too large") from error


def as_truth(value: Any) -> bool:
    """True or false of code that is not ours, also of numpy or torch. Raises TypeError on anything else, such
    as the text "no"."""
    plain = value.item() if hasattr(value, "item") else value
    if not isinstance(plain, bool):
        raise TypeError(f"{plain!r:.80}")
    return plain


@dataclass(frozen=True)
class RewardResult:
    """A reward with its named parts. `total_reward` is what is trained on; the parts are logged.

    `turn_rewards`, where given, says how much of the total each of the agent's turns earned; the remainder of
    the total belongs to the last turn. `solved` decides success where the total alone does not (None: a total
    of 0.99 or more is a success)."""

    total_reward: float
    component_rewards: Mapping[str, float] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    turn_rewards: Sequence[float] = ()
    solved: bool | None = None


@dataclass(frozen=True)
class Outcome:
    """The outcome of a conversation, as reported by its environment. `counts` are logged as
    environment/<name>, `details` are for people and for custom rewards, as plain JSON values."""

    solved: bool | None = None
    counts: Mapping[str, float] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Trajectory:
    """One conversation as the trainer sees it: ragged lists of length n = number of tokens.

    `segments` says where its sequences begin, if it has several: an agent that changes what was said before
    goes on in a new one, and is rewarded for all of them.

    `action_mask[t]` is true if the policy sampled token t. `turn_ids[t]` numbers the agent's turns from 0
    and is -1 elsewhere. `turn_rewards` has one entry per agent turn; once scored they add up to `reward`.
    `progress` has one entry per agent turn: the environment's `Step.progress` after it. `reward` is None
    until it is scored, and stays None with `excluded` set to the reason if a grader failed and the settings
    exclude such samples.
    """

    problem: Problem
    token_ids: list[int]
    action_mask: list[bool]
    sampling_logprobs: list[float]
    turn_ids: list[int]
    messages: list[Message]
    finish_reason: FinishReason
    turn_rewards: list[float] = field(default_factory=list)
    progress: list[Mapping[str, float]] = field(default_factory=list)
    outcome: Outcome = field(default_factory=Outcome)
    reward: float | None = None
    solved: bool = False
    components: Mapping[str, float] = field(default_factory=dict)
    excluded: str | None = None
    segments: list[int] = field(default_factory=list)

    @property
    def spans(self) -> list[slice]:
        """Where each of its sequences stands, in order."""
        ends = [*self.segments[1:], len(self.token_ids)]
        return [slice(start, end) for start, end in zip(self.segments or [0], ends, strict=True)]

    @property
    def standings(self) -> list[Mapping[str, float]]:
        """The former name of `progress`."""
        return self.progress

    @property
    def num_actions(self) -> int:
        """Number of trained tokens."""
        return sum(self.action_mask)

    @property
    def num_turns(self) -> int:
        """Number of turns the agent took."""
        return len(self.turn_rewards)

    @property
    def answer(self) -> str:
        """Text of the agent's last turn; empty if it said nothing."""
        spoken = [message.content for message in self.messages if message.role == "assistant"]
        return spoken[-1] if spoken else ""
