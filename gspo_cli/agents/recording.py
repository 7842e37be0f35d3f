"""What an agent's requests amount to: sequences of token ids, of which exactly those are trained that were
sampled.

A request that goes on from what was answered, by new messages alone, goes on with that sequence's ids. Any
other (an edited history, a summary, a second agent, a parallel branch) begins a new one."""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from gspo_cli.agents.requests import ChatRequest, ClientTool
from gspo_cli.policy.turns import TurnFormat
from gspo_cli.rollout.engine import Completion
from gspo_cli.types import AgentTurn, FinishReason, Message, Problem, RequestedCall, Trajectory

Spoken = tuple[str, str, tuple[tuple[str, str], ...]]  # role, text, and the name and arguments of each call
SHOWN = 200  # characters of a text in a cause


@dataclass
class Segment:
    """A sequence so far: ids, which of them were sampled, and with what log-probabilities. `heard` is what
    was said in it, `turns` the number of each turn in the conversation, and `asked` whether a request waits
    for its answer."""

    number: int
    tools: str
    heard: list[Spoken]
    messages: list[Message]
    token_ids: list[int] = field(default_factory=list)
    action_mask: list[bool] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    turn_ids: list[int] = field(default_factory=list)
    asked: bool = False
    calls: int = 0
    branch: tuple[int, ...] = ()
    why: str = ""

    def add(self, ids: Sequence[int], logprobs: Sequence[float] | None = None, turn: int = -1) -> None:
        """Append ids: sampled ones with their log-probabilities, or others."""
        self.token_ids.extend(ids)
        self.action_mask.extend([logprobs is not None] * len(ids))
        self.logprobs.extend([0.0] * len(ids) if logprobs is None else logprobs)
        self.turn_ids.extend([turn] * len(ids))


@dataclass(frozen=True)
class Asked:
    """A request in the conversation: the `segment` it goes on with, whose ids are the prompt, and what its
    draw depends on: `turn`, the place of the request in it, and for any but the first segment also `branch`,
    made of its first prompt and how many equal ones came before."""

    segment: Segment
    turns: TurnFormat
    turn: int
    branch: tuple[int, ...]

    @property
    def prompt_ids(self) -> list[int]:
        """What the policy reads."""
        return list(self.segment.token_ids)


class Recorder:
    """The sequences of one conversation, of which `begun` have begun. `format_of` makes the format of turns
    for tools; `cause` tells why the first request that was answered and did not go on had to begin anew."""

    def __init__(self, format_of: Callable[[tuple[ClientTool, ...]], TurnFormat]) -> None:
        self._format_of = format_of
        self._segments: list[Segment] = []
        self._answers: list[tuple[Segment, Completion]] = []
        self.cause = ""
        self.begun = 0

    @property
    def turns(self) -> int:
        """Number of answers so far."""
        return len(self._answers)

    def ask(self, request: ChatRequest) -> Asked:
        """Where a request goes on. Raises UserError where the chat template rejects the messages."""
        tools, said = _tools(request.tools), [_spoken(message) for message in request.messages]
        turns = self._format_of(request.tools)
        segment = next((s for s in reversed(self._segments) if _goes_on(s, tools, said)), None)
        if segment is None:
            ids = turns.prompt_ids(request.messages, announced=True)
            segment = Segment(self.begun, tools, [], [], branch=self._branch(ids), why=self._why(tools, said))
            self.begun += 1
            segment.add(ids)
            self._segments.append(segment)
        else:
            new = request.messages[len(segment.heard) :]
            segment.add(turns.after(segment.messages[-1].content, new, segment.token_ids[-1]))
        new = request.messages[len(segment.heard) :]
        segment.messages += new
        segment.heard += said[len(segment.heard) :]
        segment.asked = True
        segment.calls += 1
        return Asked(segment, turns, segment.calls - 1, segment.branch)

    def answered(self, asked: Asked, completion: Completion, turn: str) -> None:
        """Record what was sampled for a request, and the `turn` that was delivered to the agent."""
        segment = asked.segment
        segment.add(completion.token_ids, completion.logprobs, self.turns)
        message = Message("assistant", turn)
        segment.messages.append(message)
        segment.heard.append(_spoken(message))
        segment.asked = False
        self.cause = self.cause or segment.why
        self._answers.append((segment, completion))

    def cancelled(self, asked: Asked) -> None:
        """Forget a request that nobody waits for: what it added is not part of the conversation."""
        segment = asked.segment
        sampled = max((place for place, mine in enumerate(segment.action_mask) if mine), default=-1) + 1
        for values in (segment.token_ids, segment.action_mask, segment.logprobs, segment.turn_ids):
            del values[sampled:]
        answers = [place for place, (role, *_) in enumerate(segment.heard) if role == "assistant"]
        last = max(answers, default=-1)
        if not sampled:
            self._segments.remove(segment)
        del segment.heard[last + 1 :], segment.messages[last + 1 :]
        segment.asked = False
        segment.calls -= 1

    def trajectory(self, problem: Problem, finish_reason: FinishReason | None = None) -> Trajectory:
        """The conversation for the trainer: all sequences with an answer, one after the other."""
        kept = [segment for segment in self._segments if any(segment.action_mask)]
        if finish_reason is None:
            finish_reason = self._answers[-1][1].finish_reason if self._answers else FinishReason.stop
        found = Trajectory(problem, [], [], [], [], [], finish_reason)
        for segment in kept:
            if len(kept) > 1:
                found.segments.append(len(found.token_ids))
            found.token_ids += segment.token_ids
            found.action_mask += segment.action_mask
            found.sampling_logprobs += segment.logprobs
            found.turn_ids += segment.turn_ids
            found.messages += segment.messages
        found.turn_rewards = [0.0] * self.turns
        found.progress = [{} for _ in range(self.turns)]
        return found

    def _branch(self, ids: Sequence[int]) -> tuple[int, ...]:
        """What tells a sequence that begins with `ids` from others: nothing for the first."""
        taken = {segment.branch for segment in self._segments}
        if () not in taken:
            return ()
        digest = blake2b(array("q", ids).tobytes(), digest_size=8).digest()
        parts = int.from_bytes(digest[:4]), int.from_bytes(digest[4:])
        return next((*parts, count) for count in range(len(taken) + 1) if (*parts, count) not in taken)

    def _why(self, tools: str, said: Sequence[Spoken]) -> str:
        """Why a request does not go on with the last segment, in words; "" for the first."""
        if not self._segments:
            return ""
        last = self._segments[-1]
        if last.tools != tools:
            return f"its tools changed: {last.tools[:SHOWN]!r} became {tools[:SHOWN]!r}"
        if last.asked:
            return "it asked again before it had its answer"
        for place, (before, now) in enumerate(zip(last.heard, said, strict=False)):
            if before != now:
                return f"its message {place} ({now[0]}) changed: {_shown(before)} became {_shown(now)}"
        if len(said) <= len(last.heard):
            return "it left out what was said before"
        return "it has an answer of the assistant that was not sampled here"


def _goes_on(segment: Segment, tools: str, said: Sequence[Spoken]) -> bool:
    """Whether a request continues a segment: it repeats all of its messages, and adds others, none of them
    the assistant's."""
    known = len(segment.heard)
    new = [role for role, *_ in said[known:]]
    same = segment.tools == tools and [*said[:known]] == segment.heard
    return same and not segment.asked and bool(new) and "assistant" not in new


def _spoken(message: Message) -> Spoken:
    """What makes two messages the same: role, text without outer white space, and calls."""
    turn = message.content
    if not isinstance(turn, AgentTurn):
        return message.role, str(turn).strip(), ()
    return message.role, turn.words.strip(), tuple(map(_called, turn.calls))


def _called(call: RequestedCall) -> tuple[str, str]:
    return call.name, _canonical(call.arguments)


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _tools(tools: Sequence[ClientTool]) -> str:
    return _canonical([tool.schema() for tool in tools])


def _shown(spoken: Spoken) -> str:
    _, text, calls = spoken
    return repr(" ".join([text, *(f"{name}({arguments})" for name, arguments in calls)]).strip()[:SHOWN])
