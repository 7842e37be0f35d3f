"""The contract of a rollout engine: token ids in; token ids, log-probabilities and finish reason out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from gspo_cli.types import FinishReason


@dataclass(frozen=True)
class Request:
    """One turn to generate. `conversation` names the dialogue across turns, `seed` fixes what is drawn.

    `limit` lowers the most tokens of this turn, and `ends` tells of the tokens so far whether the turn ends
    with them, as with an end token."""

    prompt_ids: list[int]
    seed: int
    conversation: int
    limit: int | None = None
    ends: Callable[[list[int]], bool] | None = None


@dataclass(frozen=True)
class Sampling:
    """How tokens are sampled; temperature 0 is greedy."""

    temperature: float
    top_p: float
    top_k: int
    max_new_tokens: int
    stop_ids: frozenset[int]


@dataclass(frozen=True)
class Completion:
    """What was generated, end token included. `logprobs` are those of the whole distribution at the
    temperature (at 1 for greedy); `truncated_mass` is the mean probability that top_p and top_k left out."""

    token_ids: list[int]
    logprobs: list[float]
    finish_reason: FinishReason
    truncated_mass: float = 0.0


class RolloutEngine(Protocol):
    """Generates with the policy's current weights. The same request gives the same tokens whatever else is in
    flight. What is in flight together has the same stop ids, and the same sampling unless an engine says that
    it mixes them."""

    sampled: int
    """Tokens drawn so far, in all sessions."""

    @property
    def max_positions(self) -> int:
        """Longest sequence the model takes, prompt and answer together, in tokens."""

    def session(self) -> AbstractContextManager[None]:
        """A stretch in which weights stay as they are. At its end, even by an exception, nothing is in flight
        and no cache is kept."""

    def submit(self, request: Request, sampling: Sampling, keep_cache: bool) -> None:
        """Take a request; it joins those in flight at one of the next steps. `keep_cache`: the conversation
        may continue. Raises ValueError if one of this conversation is in flight already, or the engine cannot
        end turns as the request asks, or sample it beside those in flight."""

    def step(self) -> dict[int, Completion]:
        """Draw a token for every request in flight. Returns what ended, by conversation."""

    def cancel(self, conversation: int) -> None:
        """Drop the conversation's request and its cache, where there are any."""

    def refresh(self) -> dict[str, float]:
        """Load the policy's new weights. Returns metrics of the transfer."""


def generate(
    engine: RolloutEngine, requests: Sequence[Request], sampling: Sampling, keep_cache: bool = False
) -> list[Completion]:
    """One completion per request, in order; the conversations differ."""
    with engine.session():
        return finish(engine, requests, sampling, keep_cache)


def finish(
    engine: RolloutEngine, requests: Sequence[Request], sampling: Sampling, keep_cache: bool
) -> list[Completion]:
    """`generate` within a session."""
    for request in requests:
        engine.submit(request, sampling, keep_cache)
    found: dict[int, Completion] = {}
    while len(found) < len(requests):
        found |= engine.step()
    return [found[request.conversation] for request in requests]
