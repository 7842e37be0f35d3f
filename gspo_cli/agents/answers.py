"""What the policy has answered, as OpenAI's chat completions return it: whole, or as a stream of events."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from gspo_cli.types import AgentTurn, FinishReason

ALPHANUMERIC = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
CREATED = 0  # seconds; the same answer is the same to the byte


@dataclass(frozen=True)
class TokenLogprob:
    """A sampled token as text, and its log-probability."""

    text: str
    logprob: float


@dataclass(frozen=True)
class Answer:
    """A turn that was sampled for a request. `name` tells answers apart; `prompt_tokens` and
    `completion_tokens` are counted as sampled, the end token included."""

    name: str
    model: str
    turn: str
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    logprobs: Sequence[TokenLogprob] | None = None

    @property
    def usage(self) -> dict[str, int]:
        """Tokens read and written."""
        total = self.prompt_tokens + self.completion_tokens
        counts = (self.prompt_tokens, self.completion_tokens, total)
        return dict(zip(("prompt_tokens", "completion_tokens", "total_tokens"), counts, strict=True))

    @property
    def reason(self) -> str:
        """Why it ended, in the words of the interface."""
        if self.finish_reason is FinishReason.length:
            return "length"
        return "tool_calls" if isinstance(self.turn, AgentTurn) and self.turn.calls else "stop"

    def message(self) -> dict[str, Any]:
        """The assistant's message."""
        turn = self.turn
        if not isinstance(turn, AgentTurn) or not turn.calls:
            return {"role": "assistant", "content": turn.words if isinstance(turn, AgentTurn) else turn}
        calls = [
            {
                "id": call_id(self.name, place),
                "type": "function",
                "function": {
                    "name": call.name,
                    "arguments": json.dumps(dict(call.arguments), ensure_ascii=False),
                },
            }
            for place, call in enumerate(turn.calls)
        ]
        return {"role": "assistant", "content": turn.words or None, "tool_calls": calls}

    def body(self) -> dict[str, Any]:
        """The completion as a whole."""
        choice = {"index": 0, "message": self.message(), "finish_reason": self.reason}
        return self._about("chat.completion") | {
            "choices": [choice | {"logprobs": self._logprobs()}],
            "usage": self.usage,
        }

    def events(self, with_usage: bool) -> Iterator[str]:
        """The completion as server-sent events: the role, the words, each call, why it ended, usage if it was
        asked for, and the end of the stream."""
        message = self.message()
        yield self._event({"role": "assistant", "content": ""})
        if message["content"]:
            yield self._event({"content": message["content"]}, logprobs=self._logprobs())
        for place, call in enumerate(message.get("tool_calls", ())):
            yield self._event({"tool_calls": [{"index": place} | call]})
        yield self._event({}, self.reason)
        if with_usage:
            yield _sent(self._about("chat.completion.chunk") | {"choices": [], "usage": self.usage})
        yield "data: [DONE]\n\n"

    def _about(self, kind: str) -> dict[str, Any]:
        return {"id": f"chatcmpl-{self.name}", "object": kind, "created": CREATED, "model": self.model}

    def _event(
        self, delta: dict[str, Any], reason: str | None = None, logprobs: dict[str, Any] | None = None
    ) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": logprobs}
        return _sent(self._about("chat.completion.chunk") | {"choices": [choice]})

    def _logprobs(self) -> dict[str, Any] | None:
        if self.logprobs is None:
            return None
        content = [
            {
                "token": each.text,
                "logprob": each.logprob,
                "bytes": list(each.text.encode()),
                "top_logprobs": [],
            }
            for each in self.logprobs
        ]
        return {"content": content, "refusal": None}


def call_id(answer: str, place: int) -> str:
    """Nine letters and digits, as templates of Mistral require, that tell the calls of all answers apart."""
    number = int.from_bytes(blake2b(f"{answer}/{place}".encode(), digest_size=8).digest())
    digits = []
    for _ in range(9):
        number, digit = divmod(number, len(ALPHANUMERIC))
        digits.append(ALPHANUMERIC[digit])
    return "".join(digits)


def error_body(
    message: str,
    field: str | None = None,
    kind: str = "invalid_request_error",
    code: str | None = None,
) -> dict[str, Any]:
    """What a request that failed is told."""
    return {"error": {"message": message, "type": kind, "param": field, "code": code}}


def _sent(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"
