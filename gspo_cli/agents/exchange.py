"""One request and its answer: a chat completion as the engine takes it, and what was sampled for it as the
client gets it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial

from gspo_cli.agents.answers import Answer, TokenLogprob
from gspo_cli.agents.requests import ChatRequest, ClientTool
from gspo_cli.policy.chat import ChatFormat
from gspo_cli.policy.turns import TurnFormat
from gspo_cli.rollout.engine import Completion, Request
from gspo_cli.tasks.base import SystemPrompt
from gspo_cli.tasks.tools import Speech, ToolCall, read_turn
from gspo_cli.tasks.tools.written import without_reasoning
from gspo_cli.types import AgentTurn, RequestedCall

MOST_FORMATS = 256  # formats of turns that are remembered, one for each set of tools


class Exchange:
    """Puts clients' requests to an engine and its completions into answers. `model` is the name that clients
    know the policy by."""

    def __init__(self, chat: ChatFormat, model: str) -> None:
        self.chat, self.model = chat, model
        self._formats: dict[str, TurnFormat] = {}

    def format_of(self, tools: tuple[ClientTool, ...]) -> TurnFormat:
        """How turns are read and written where a client has declared `tools`."""
        key = json.dumps([tool.schema() for tool in tools], sort_keys=True)
        if key not in self._formats:
            if len(self._formats) >= MOST_FORMATS:
                self._formats.clear()
            self._formats[key] = TurnFormat(self.chat, SystemPrompt(tools=tools))
        return self._formats[key]

    def prompt_ids(self, request: ChatRequest) -> list[int]:
        """Ids of a whole request, up to where the answer begins. Raises UserError where the chat template
        rejects the messages."""
        return self.format_of(request.tools).prompt_ids(request.messages, announced=True)

    def engine_request(
        self, request: ChatRequest, prompt_ids: Sequence[int], seed: int, number: int
    ) -> Request:
        """What the engine, which calls it `number`, is to generate after `prompt_ids`."""
        ends = partial(self._has_stop, request.stops) if request.stops else None
        return Request(list(prompt_ids), seed, number, request.max_tokens, ends)

    def answer(
        self, name: str, request: ChatRequest, prompt_tokens: int, turns: TurnFormat, completion: Completion
    ) -> Answer:
        """What a client gets that has sent `request`; `name` tells answers apart."""
        ids, logprobs = completion.token_ids, None
        turn = _cut(delivered(turns, ids), request.stops)
        if request.with_logprobs:
            pairs = zip(ids, completion.logprobs, strict=True)
            logprobs = [TokenLogprob(self.chat.token(token), value) for token, value in pairs]
        return Answer(name, self.model, turn, completion.finish_reason, prompt_tokens, len(ids), logprobs)

    def _has_stop(self, stops: Sequence[str], ids: list[int]) -> bool:
        """Whether the last token completes a stop text: a character takes four tokens at most."""
        text = self.chat.text(ids[-4 * max(map(len, stops)) - 8 :])
        return any(stop in text for stop in stops)


def delivered(turns: TurnFormat, ids: list[int]) -> str:
    """A sampled turn as the client gets it: words, or an AgentTurn with calls; never reasoning. A call that
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
