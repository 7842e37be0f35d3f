"""Conversations of agents with the policy, in lock-step: a decoding step starts once every agent has asked
for its next turn, or is over, so that what shares a batch never depends on how long somebody took."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from gspo_cli.agents.answers import Answer, TokenLogprob
from gspo_cli.agents.endpoint import Asked as RequestIn
from gspo_cli.agents.endpoint import Endpoint, Gone, Waiting
from gspo_cli.agents.recording import Asked, Recorder
from gspo_cli.agents.requests import ClientTool, RequestError
from gspo_cli.agents.running import Agent, Running
from gspo_cli.agents.running import Endpoint as Access
from gspo_cli.errors import UserError
from gspo_cli.policy.chat import ChatFormat
from gspo_cli.policy.turns import TurnFormat
from gspo_cli.randomness import derived_seed
from gspo_cli.rollout.conversations import Limits, Start, run_to_end
from gspo_cli.rollout.engine import Completion, Request, RolloutEngine, Sampling
from gspo_cli.rollout.progress import RolloutProgress
from gspo_cli.tasks.base import SystemPrompt
from gspo_cli.tasks.tools import Speech, ToolCall, read_turn
from gspo_cli.tasks.tools.written import without_reasoning
from gspo_cli.types import AgentTurn, FinishReason, Outcome, RequestedCall, Trajectory

MOST_SEGMENTS = 1_000  # of one conversation
RETURNED = "returned"  # what the agent returned, in the outcome's details


@dataclass(frozen=True)
class _Over:
    """An agent has ended, with what it returned or an exception."""

    conversation: int
    found: Any


@dataclass(eq=False)
class _Conversation:
    """`asked` are its requests in flight, by what waits for them; `since` is when its agent was last given
    something, and `refused` why it got no more answers."""

    start: Start
    recorder: Recorder
    running: Running | None = None
    asked: dict[Waiting, Asked] = field(default_factory=dict)
    arrived: list[Waiting] = field(default_factory=list)
    masses: list[float] = field(default_factory=list)
    since: float = 0.0
    over: bool = False
    found: Any = None
    refused: FinishReason | None = None
    excluded: str | None = None


def roll_out_agents(
    engine: RolloutEngine,
    chat: ChatFormat,
    agent: Agent,
    starts: Sequence[Start],
    sampling: Sampling,
    limits: Limits,
    seed: int,
    progress: RolloutProgress | None = None,
) -> tuple[list[Trajectory], float]:
    """Run an agent on the problems of all `starts` at once; `seed` is the run's. What it returned is in its
    trajectory's outcome.

    -> finished conversations in the order of `starts`, and the probability mass that top_p and top_k left
    out, averaged over turns."""
    with engine.session(), _serving() as endpoint:
        rollout = _AgentRollout(engine, chat, agent, endpoint, sampling, limits, seed)
        run_to_end(rollout, engine, starts, progress)
    masses = [mass for conversation in rollout.conversations for mass in conversation.masses]
    return [_trajectory(c) for c in rollout.conversations], sum(masses) / max(1, len(masses))


@contextmanager
def _serving() -> Iterator[Endpoint]:
    endpoint = Endpoint()
    endpoint.start()
    try:
        yield endpoint
    finally:
        endpoint.stop()


class _AgentRollout:
    def __init__(
        self,
        engine: RolloutEngine,
        chat: ChatFormat,
        agent: Agent,
        endpoint: Endpoint,
        sampling: Sampling,
        limits: Limits,
        seed: int,
    ) -> None:
        self.engine, self.chat, self.agent, self.endpoint = engine, chat, agent, endpoint
        self.sampling, self.limits, self.seed = sampling, limits, seed
        self.conversations: list[_Conversation] = []
        self._flight: dict[int, tuple[int, Waiting]] = {}  # by the engine's number of a request
        self._formats: dict[tuple[ClientTool, ...], TurnFormat] = {}

    @property
    def active(self) -> bool:
        """Whether an agent goes on."""
        return any(not conversation.over for conversation in self.conversations)

    @property
    def finished(self) -> int:
        """Number of conversations that have ended."""
        return sum(conversation.over for conversation in self.conversations)

    def begin(self, start: Start) -> None:
        """Start an agent."""
        place = len(self.conversations)
        conversation = _Conversation(start, Recorder(self._format), since=time.monotonic())
        self.conversations.append(conversation)
        access = Access(
            self.endpoint.url, self.endpoint.open(place), self.endpoint.model, start.environment_seed
        )
        over = partial(self._report, place)
        conversation.running = self.agent.start(start.problem, access, over)

    def go_on(self) -> None:
        """Wait until every agent has asked or is over, then draw a token for each request."""
        self._listen()
        for place, conversation in enumerate(self.conversations):
            for waiting in sorted(conversation.arrived, key=lambda each: each.digest):
                self._ask(place, conversation, waiting)
            conversation.arrived.clear()
        for number, completion in sorted(self.engine.step().items()):
            place, waiting = self._flight.pop(number)
            self._deliver(place, self.conversations[place], waiting, completion)

    def close(self) -> None:
        """End what still runs."""
        for place, conversation in enumerate(self.conversations):
            if not conversation.over:
                self._end(place, conversation, None)
        self.agent.close()

    def _report(self, place: int, found: Any) -> None:
        self.endpoint.inbox.put(_Over(place, found))

    def _listen(self) -> None:
        """Take what comes in until nobody is thought to be busy."""
        while True:
            busy = [
                (conversation.since + self.limits.seconds, place)
                for place, conversation in enumerate(self.conversations)
                if not (conversation.over or conversation.asked or conversation.arrived)
            ]
            try:
                wait = max(0.0, min(busy)[0] - time.monotonic()) if busy else 0.0
                event = self.endpoint.inbox.get(timeout=wait) if wait else self.endpoint.inbox.get_nowait()
            except queue.Empty:
                if not busy:
                    return
                self._overdue(min(busy)[1])
                continue
            self._take(event)

    def _take(self, event: Any) -> None:
        if isinstance(event, RequestIn):
            conversation = self.conversations[event.waiting.conversation]
            if conversation.over:
                event.waiting.answer(RequestError("conversation", "is over", 410))
            else:
                conversation.arrived.append(event.waiting)
        elif isinstance(event, Gone):
            self._forget(event.waiting)
        elif not self.conversations[event.conversation].over:
            self._end(event.conversation, self.conversations[event.conversation], event.found)

    def _overdue(self, place: int) -> None:
        conversation = self.conversations[place]
        conversation.excluded = f"the agent took longer than {self.limits.seconds:g} s for its next request"
        self._end(place, conversation, None)

    def _ask(self, place: int, conversation: _Conversation, waiting: Waiting) -> None:
        """Put a request in flight, or refuse it."""
        recorder, request = conversation.recorder, waiting.request
        if recorder.turns + len(conversation.asked) >= self.limits.max_turns:
            conversation.refused = FinishReason.turns
            reason = f"has had the {self.limits.max_turns} answers of rollout.max_turns"
            self._refuse(conversation, waiting, RequestError("conversation", reason))
            return
        try:
            asked = recorder.ask(request)
        except UserError as error:
            self._refuse(conversation, waiting, RequestError("messages", str(error)))
            return
        tokens = len(asked.segment.token_ids)
        number = _number(place, asked.segment.number)
        if asked.turn == 0 and tokens > self.limits.max_prompt_length:
            reason = f"are {tokens} tokens, over rollout.max_prompt_length={self.limits.max_prompt_length}"
        elif tokens + self.sampling.max_new_tokens > self.limits.max_positions:
            reason = f"are {tokens} tokens, and the model has {self.limits.max_positions} positions"
        elif asked.segment.number >= MOST_SEGMENTS:
            reason = f"begin more than {MOST_SEGMENTS} sequences in one conversation"
        else:
            conversation.asked[waiting] = asked
            self._flight[number] = (place, waiting)
            draw = derived_seed(self.seed, "sample", *conversation.start.where, asked.turn, *asked.branch)
            ends = partial(self._has_stop, request.stops) if request.stops else None
            keep = recorder.turns + 1 < self.limits.max_turns
            limit = request.max_tokens
            self.engine.submit(
                Request(list(asked.segment.token_ids), draw, number, limit, ends), self.sampling, keep
            )
            return
        recorder.cancelled(asked)
        conversation.refused = FinishReason.length
        self._refuse(conversation, waiting, RequestError("messages", reason))

    def _refuse(self, conversation: _Conversation, waiting: Waiting, error: RequestError) -> None:
        conversation.since = time.monotonic()
        waiting.answer(error)

    def _forget(self, waiting: Waiting) -> None:
        """Nobody waits for a request: its row goes, and it leaves no trace."""
        place = waiting.conversation
        conversation = self.conversations[place]
        if waiting in conversation.arrived:
            conversation.arrived.remove(waiting)
        asked = conversation.asked.pop(waiting, None)
        if asked is not None:
            number = _number(place, asked.segment.number)
            self._flight.pop(number, None)
            self.engine.cancel(number)
            conversation.recorder.cancelled(asked)
        conversation.since = time.monotonic()

    def _deliver(
        self, place: int, conversation: _Conversation, waiting: Waiting, completion: Completion
    ) -> None:
        asked = conversation.asked.pop(waiting)
        request, ids = waiting.request, completion.token_ids
        prompt_tokens = len(asked.segment.token_ids)
        turn = _cut(delivered(asked.turns, ids), request.stops)
        conversation.recorder.answered(asked, completion, turn)
        conversation.masses.append(completion.truncated_mass)
        conversation.since = time.monotonic()
        name = "-".join(map(str, (*conversation.start.where, conversation.recorder.turns)))
        logprobs = None
        if request.with_logprobs:
            pairs = zip(ids, completion.logprobs, strict=True)
            logprobs = [TokenLogprob(self.chat.token(token), value) for token, value in pairs]
        reason = completion.finish_reason
        waiting.answer(Answer(name, self.endpoint.model, turn, reason, prompt_tokens, len(ids), logprobs))

    def _end(self, place: int, conversation: _Conversation, found: Any) -> None:
        """An agent is over: what it still asks is refused, and its caches are freed."""
        conversation.over, conversation.found = True, found
        for waiting in [*conversation.asked, *conversation.arrived]:
            self._forget(waiting)
        self.endpoint.close(place)
        for number in range(conversation.recorder.begun):
            self.engine.cancel(_number(place, number))
        if conversation.running is not None:
            conversation.running.end()

    def _format(self, tools: tuple[ClientTool, ...]) -> TurnFormat:
        if tools not in self._formats:
            self._formats[tools] = TurnFormat(self.chat, SystemPrompt(tools=tools))
        return self._formats[tools]

    def _has_stop(self, stops: Sequence[str], ids: list[int]) -> bool:
        text = self.chat.text(ids)
        return any(stop in text for stop in stops)


def _number(place: int, segment: int) -> int:
    """What the engine calls a segment of the conversation at `place`."""
    return place * MOST_SEGMENTS + segment


def delivered(turns: TurnFormat, ids: list[int]) -> str:
    """A sampled turn as the agent gets it: words, or an AgentTurn with calls; never reasoning. A call that
    cannot be read is words."""
    turn = turns.read(ids)
    if isinstance(turn, AgentTurn):
        if turn.calls:
            return AgentTurn("", turn.words, "", turn.calls)
        return str(turn) if turn.error else turn.words
    tools = {tool.name: tool for tool in turns.tools}
    found = read_turn(turn, tools) if tools else Speech(without_reasoning(turn))
    if isinstance(found, ToolCall):
        return AgentTurn("", "", "", (RequestedCall(found.name, found.arguments),))
    return found.text if isinstance(found, Speech) else without_reasoning(turn)


def _cut(turn: str, stops: Sequence[str]) -> str:
    """A turn up to the first of `stops` in its words."""
    words = turn.words if isinstance(turn, AgentTurn) else turn
    for stop in stops:
        words = words.partition(stop)[0]
    return AgentTurn("", words, "", turn.calls) if isinstance(turn, AgentTurn) else words


def _trajectory(conversation: _Conversation) -> Trajectory:
    """What the trainer gets: with a reason where the agent failed, unless it failed for want of answers."""
    found, reason = conversation.found, conversation.refused
    trajectory = conversation.recorder.trajectory(conversation.start.problem, reason)
    trajectory.excluded = conversation.excluded
    if isinstance(found, BaseException):
        if reason is None:
            trajectory.excluded = f"the agent raised {type(found).__name__}: {found}"
        found = 0.0
    if not trajectory.num_actions and trajectory.excluded is None:
        trajectory.excluded = "the agent asked for no answer"
    trajectory.outcome = Outcome(details={RETURNED: found})
    return trajectory
