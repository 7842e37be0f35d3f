"""The contract of a rollout engine: token ids in; token ids, log-probabilities and finish reason out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from gspo_cli.rollout.progress import Generated
from gspo_cli.types import FinishReason


@dataclass(frozen=True)
class Request:
    """One turn to generate. `conversation` names the dialogue across turns, `seed` fixes what is drawn."""

    prompt_ids: list[int]
    seed: int
    conversation: int


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
    """Generates with the policy's current weights. The same request gives the same tokens in any batch."""

    @property
    def max_positions(self) -> int:
        """Longest sequence the model takes, prompt and answer together, in tokens."""

    def conversations_at_once(self, tokens: int) -> int:
        """How many conversations of up to `tokens` keep their caches between turns."""

    def generate(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        keep_cache: bool,
        progress: Generated | None = None,
    ) -> list[Completion]:
        """One completion per request, in order. `keep_cache`: these conversations may continue. `progress`,
        where it is given, is called after each step."""

    def forget(self) -> None:
        """Drop the caches of all conversations, which have ended."""

    def refresh(self) -> dict[str, float]:
        """Load the policy's new weights. Returns metrics of the transfer."""
