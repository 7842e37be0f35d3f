"""Conversations of agents with the policy.

In lock-step a decoding step starts once every agent has asked for its next turn, or is over, so that what
shares a batch never depends on how long somebody took."""

from __future__ import annotations

import queue
import time
from collections import deque
from dataclasses import dataclass, field, replace
from functools import partial
from math import inf
from typing import Any

from gspo_cli.agents.endpoint import ENDED, EndpointServer, Gone, Received, Waiting
from gspo_cli.agents.exchange import Exchange
from gspo_cli.agents.recording import Asked, Recorder
from gspo_cli.agents.requests import TOO_LONG, TOO_MANY, ChatRequest, RequestError
from gspo_cli.agents.running import Agent, Endpoint, Running
from gspo_cli.config.choices import AgentSchedule
from gspo_cli.errors import UserError
from gspo_cli.policy.chat import ChatFormat
from gspo_cli.randomness import derived_seed
from gspo_cli.rewards.returned import RETURNED
from gspo_cli.rollout.conversations import Limits, Start
from gspo_cli.rollout.engine import Completion, RolloutEngine, Sampling
from gspo_cli.types import FinishReason, Outcome, Trajectory

MOST_SEGMENTS = 1_000  # of one conversation
MOST_VAIN = 10  # requests in a row that are refused, or given up by the client
PULSE = 5.0  # seconds after which a loop of agents that does nothing is named


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
    running: Running | None = None  # None before its agent has started
    asked: dict[Waiting, Asked] = field(default_factory=dict)
    arrived: list[Waiting] = field(default_factory=list)
    masses: list[float] = field(default_factory=list)
    since: float = 0.0
    over: bool = False
    found: Any = None
    late: bool = False
    vain: int = 0  # requests without an answer since the last one that had one
    refused: FinishReason | None = None
    excluded: str | None = None


@dataclass(frozen=True)
class Waits:
    """How agents share the engine: in lock-step or not, and how many run at once."""

    schedule: AgentSchedule = AgentSchedule.lockstep
    concurrency: int = 256


class AgentRollout:
    """One rollout of an agent, whose conversations `endpoint` knows by numbers from `first` on. `notes` are
    things that a person should hear of, by kind."""

    def __init__(
        self,
        engine: RolloutEngine,
        chat: ChatFormat,
        agent: Agent,
        endpoint: EndpointServer,
        first: int,
        waits: Waits,
        sampling: Sampling,
        limits: Limits,
        seed: int,
    ) -> None:
        self.engine, self.agent = engine, agent
        self.endpoint, self.first, self.waits = endpoint, first, waits
        self.sampling, self.limits, self.seed = sampling, limits, seed
        self.notes: dict[str, str] = {}
        self._conversations: list[_Conversation] = []
        self._queued: deque[int] = deque()
        self._flight: dict[int, tuple[int, Waiting]] = {}  # by the engine's number of a request
        self._exchange = Exchange(chat, endpoint.model)

    @property
    def active(self) -> bool:
        """Whether an agent goes on."""
        return any(not conversation.over for conversation in self._conversations)

    @property
    def finished(self) -> int:
        """Number of conversations that have ended."""
        return sum(conversation.over for conversation in self._conversations)

    @property
    def trajectories(self) -> list[Trajectory]:
        """The conversations for the trainer, in the order of their starts."""
        return [_trajectory(conversation) for conversation in self._conversations]

    @property
    def truncated_mass(self) -> float:
        """The probability mass that top_p and top_k left out, averaged over turns."""
        masses = [mass for conversation in self._conversations for mass in conversation.masses]
        return sum(masses) / max(1, len(masses))

    def begin(self, start: Start) -> None:
        """Start an agent, as soon as few enough others run."""
        self._queued.append(len(self._conversations))
        self._conversations.append(_Conversation(start, Recorder(self._exchange.format_of)))
        self._fill()

    def go_on(self) -> None:
        """Wait until every agent has asked or is over, then draw a token for each request."""
        self._listen()
        for place, conversation in enumerate(self._conversations):
            for waiting in sorted(conversation.arrived, key=lambda each: each.digest):
                self._ask(place, conversation, waiting)
            conversation.arrived.clear()
        ended = self.engine.step()
        self._hear()  # who has gone meanwhile gets no answer, and leaves no trace
        for number, completion in sorted(ended.items()):
            if number in self._flight:
                place, waiting = self._flight.pop(number)
                self._deliver(self._conversations[place], waiting, completion)

    def close(self) -> None:
        """End what still runs."""
        self._queued.clear()
        for place, conversation in enumerate(self._conversations):
            if not conversation.over:
                self._end(place, conversation, None)

    def _fill(self) -> None:
        """Start agents whose turn it is."""
        running = sum(c.running is not None and not c.over for c in self._conversations)
        while self._queued and running < self.waits.concurrency:
            place = self._queued.popleft()
            conversation = self._conversations[place]
            key, start = self.endpoint.open(self.first + place), conversation.start
            access = Endpoint(self.endpoint.url, key, self.endpoint.model, start.environment_seed)
            conversation.since = time.monotonic()
            conversation.running = self.agent.start(start.problem, access, partial(self._report, place))
            running += 1

    def _report(self, place: int, found: Any) -> None:
        self.endpoint.inbox.put(_Over(self.first + place, found))

    def _listen(self) -> None:
        """Take what comes in until nobody is thought to be busy, or something can be drawn without them."""
        while True:
            due, place = min(self._busy(), default=(inf, -1))
            patience = due - time.monotonic() if place >= 0 and self._waits_for_all() else 0.0
            try:
                if patience > 0:
                    event = self.endpoint.inbox.get(timeout=min(patience, PULSE))
                else:
                    event = self.endpoint.inbox.get_nowait()
            except queue.Empty:
                if due <= time.monotonic():
                    self._overdue(place)
                elif patience > 0:
                    self._name_blocked()
                else:
                    return
                continue
            self._take(event)

    def _hear(self) -> None:
        """Take what has come in already."""
        while not self.endpoint.inbox.empty():
            self._take(self.endpoint.inbox.get())

    def _busy(self) -> list[tuple[float, int]]:
        """The agents that have not asked, and until when they may take."""
        return [
            (conversation.since + self.limits.seconds, place)
            for place, conversation in enumerate(self._conversations)
            if conversation.running is not None
            and not (conversation.over or conversation.asked or conversation.arrived)
        ]

    def _waits_for_all(self) -> bool:
        waiting = self._flight or any(conversation.arrived for conversation in self._conversations)
        return self.waits.schedule is AgentSchedule.lockstep or not waiting

    def _name_blocked(self) -> None:
        where = self.agent.blocked()
        if where:
            self.notes.setdefault(
                "blocked",
                f"task.agent: the loop of its coroutines has been blocked for {PULSE:g} s {where}; await "
                "what takes long, or make the agent a plain function, which gets a thread of its own",
            )

    def _take(self, event: Any) -> None:
        number = event.conversation if isinstance(event, _Over) else event.waiting.conversation
        place = number - self.first
        if place < 0:  # of an earlier rollout, whose keys are void
            if isinstance(event, Received):
                event.waiting.answer(ENDED)
            return
        conversation = self._conversations[place]
        if isinstance(event, Gone):
            self._forget(event.waiting)
            if not conversation.over:
                self._in_vain(place)
        elif isinstance(event, _Over):
            if not conversation.over:
                self._end(place, conversation, event.found)
                self._fill()
        elif conversation.over:
            event.waiting.answer(ENDED)
        elif not event.waiting.future.done():  # else it was sent again, and has its answer by now
            if conversation.asked or conversation.arrived:
                self._name_parallel(conversation)
            conversation.arrived.append(event.waiting)
            self._name_sampling(event.waiting.request)

    def _overdue(self, place: int) -> None:
        conversation = self._conversations[place]
        took = f"took longer than {self.limits.seconds:g} s for its next request"
        conversation.excluded, conversation.late = f"the agent {took}", True
        self.notes.setdefault(
            "late",
            f"task.agent: on problem {conversation.start.problem.id} it {took}, and the conversation is left "
            "out; from here on the run cannot be reproduced to the bit; raise rollout.environment_timeout if "
            "the agent needs longer",
        )
        self._end(place, conversation, None)
        self._fill()

    def _name_parallel(self, conversation: _Conversation) -> None:
        self.notes.setdefault(
            "parallel",
            f"task.agent: on problem {conversation.start.problem.id} it asks for several answers at once; "
            "what is drawn then depends on which comes first: the run cannot be reproduced to the bit",
        )

    def _name_sampling(self, request: ChatRequest) -> None:
        mine = {"temperature": self.sampling.temperature, "top_p": self.sampling.top_p}
        asked = [f"{name}={value}" for name, value in request.sampling if mine.get(name) != value]
        if asked and self.sampling.temperature > 0:
            self.notes.setdefault(
                "sampling",
                f"task.agent: it asks for {', '.join(asked)}, which has no effect: answers are sampled as "
                "rollout.temperature, top_p and top_k say, and greedily in evaluations",
            )

    def _ask(self, place: int, conversation: _Conversation, waiting: Waiting) -> None:
        """Put a request in flight, or refuse it."""
        recorder, request = conversation.recorder, waiting.request
        if recorder.turns + len(conversation.asked) >= self.limits.max_turns:
            conversation.refused = FinishReason.turns
            reason = f"has had the {self.limits.max_turns} answers of rollout.max_turns"
            self._refuse(place, waiting, RequestError("conversation", reason, code=TOO_MANY))
            return
        try:
            asked = recorder.ask(request)
        except Exception as error:  # whatever a request is, it ends no run
            why = str(error) if isinstance(error, UserError) else f"cannot be read ({type(error).__name__})"
            self._refuse(place, waiting, RequestError("messages", why))
            return
        tokens = len(asked.segment.token_ids)
        number, code = _number(place, asked.segment.number), TOO_LONG
        if asked.turn == 0 and tokens > self.limits.max_prompt_length:
            reason = f"are {tokens} tokens, over rollout.max_prompt_length={self.limits.max_prompt_length}"
        elif tokens + self.sampling.max_new_tokens > self.limits.max_positions:
            reason = f"are {tokens} tokens, and the model has {self.limits.max_positions} positions"
        elif asked.segment.number >= MOST_SEGMENTS:
            reason, code = f"begin more than {MOST_SEGMENTS} sequences in one conversation", TOO_MANY
        else:
            conversation.asked[waiting] = asked
            self._flight[number] = (place, waiting)
            draw = derived_seed(self.seed, "sample", *conversation.start.where, asked.turn, *asked.branch)
            keep = recorder.turns + 1 < self.limits.max_turns
            made = self._exchange.engine_request(request, asked.segment.token_ids, draw, number)
            try:
                self.engine.submit(made, self.sampling, keep)
            except ValueError as error:  # the engine cannot end turns as the request asks
                self._forget(waiting)
                self._refuse(place, waiting, RequestError("stop", str(error)))
            return
        recorder.cancelled(asked)
        conversation.refused = FinishReason.length
        self._refuse(place, waiting, RequestError("messages", reason, code=code))

    def _refuse(self, place: int, waiting: Waiting, error: RequestError) -> None:
        waiting.answer(error)
        self._in_vain(place)

    def _in_vain(self, place: int) -> None:
        """A request has no answer: an agent that goes on and on like that would hold up all others."""
        conversation = self._conversations[place]
        conversation.since = time.monotonic()
        conversation.vain += 1
        if conversation.vain == MOST_VAIN and not conversation.over:
            if conversation.refused is None:
                conversation.excluded = (
                    f"{MOST_VAIN} of the agent's requests in a row were refused, or given up by its client, "
                    "whose timeout has to be longer than the other agents take"
                )
            self._end(place, conversation, 0.0)
            self._fill()

    def _forget(self, waiting: Waiting) -> None:
        """Nobody waits for a request: its row goes, and it leaves no trace."""
        place = waiting.conversation - self.first
        conversation = self._conversations[place]
        if waiting in conversation.arrived:
            conversation.arrived.remove(waiting)
        asked = conversation.asked.pop(waiting, None)
        if asked is not None:
            number = _number(place, asked.segment.number)
            self._flight.pop(number, None)
            self.engine.cancel(number)
            conversation.recorder.cancelled(asked)

    def _deliver(self, conversation: _Conversation, waiting: Waiting, completion: Completion) -> None:
        asked = conversation.asked.pop(waiting)
        name = "-".join(map(str, (*conversation.start.where, conversation.recorder.turns + 1)))
        tokens = len(asked.segment.token_ids)
        answer = self._exchange.answer(name, waiting.request, tokens, asked.turns, completion)
        most = waiting.request.max_tokens
        if completion.finish_reason is FinishReason.length and most and most < self.sampling.max_new_tokens:
            completion = replace(completion, finish_reason=FinishReason.stop)  # as the agent wished
        conversation.recorder.answered(asked, completion, answer.turn)
        conversation.refused, conversation.vain = None, 0
        conversation.masses.append(completion.truncated_mass)
        conversation.since = time.monotonic()
        waiting.answer(answer)

    def _end(self, place: int, conversation: _Conversation, found: Any) -> None:
        """An agent is over: what it still asks is refused, and its caches are freed."""
        conversation.over, conversation.found = True, found
        if conversation.recorder.cause:
            self.notes.setdefault(
                "sequence",
                "task.agent: a request did not go on with its conversation as it was, and began another "
                f"sequence: {conversation.recorder.cause}; each sequence is read and trained by itself",
            )
        for waiting in [*conversation.asked, *conversation.arrived]:
            self._forget(waiting)
        self.endpoint.close(self.first + place)
        for number in range(conversation.recorder.begun):
            self.engine.cancel(_number(place, number))
        if conversation.running is not None:
            conversation.running.end()


def _number(place: int, segment: int) -> int:
    """What the engine calls a segment of the conversation at `place`."""
    return place * MOST_SEGMENTS + segment


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
    counts = {"sequences": len(trajectory.spans), "timeouts": int(conversation.late)}
    trajectory.outcome = Outcome(counts=counts, details={RETURNED: found})
    return trajectory
