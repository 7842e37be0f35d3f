"""How answers are sampled, and by which engine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from gspo_cli.config.checks import (
    require,
    require_at_most,
    require_fraction,
    require_not_negative,
    require_positive,
)
from gspo_cli.config.choices import Engine, OldLogprobs
from gspo_cli.config.marks import PLAIN, Marks


@dataclass
class RolloutConfig:
    """How answers are sampled. Log-probabilities are those of the distribution at `temperature`."""

    TRUST: ClassVar[Marks] = {"old_logprobs_chosen": PLAIN, "default_lengths": PLAIN}

    engine: Engine = Engine.transformers
    """What generates answers."""
    old_logprobs: OldLogprobs = OldLogprobs.auto
    """Where the log-probabilities of the old policy come from. A run saves what `auto` came to."""
    old_logprobs_chosen: str = ""
    """Why `auto` came to that; written by the program."""
    old_logprobs_band: float | None = None
    """The clip width that the engine's noise is held against; null takes the algorithm's own, gspo-compare
    gives the narrowest of its runs; above 0."""
    temperature: float = 1.0
    """Sampling temperature; scoring divides logits by it too; above 0."""
    top_p: float = 1.0
    """Probability mass that sampling keeps, at most 1; below 1 biases the ratio (logged as
    sampling/truncated_mass); above 0."""
    top_k: int = 0
    """Number of tokens that sampling keeps; 0 keeps all; 0 or more."""
    default_lengths: list[str] = field(default_factory=list)
    """Names of the two lengths below that may be lowered to fit the model's positions; by default those that
    are not given."""
    max_prompt_length: int = 256
    """Longest prompt in tokens, including system prompt and tools; problems with longer prompts are left out;
    above 0."""
    max_completion_length: int = 256
    """Longest answer, or turn of a conversation, in tokens; above 0."""
    max_turns: int = 8
    """Maximum turns of the agent in a conversation; above 0."""
    batch_size: int = 256
    """Maximum answers that the transformers engine generates at once; above 0."""
    cache_gb: float | None = None
    """GiB that the transformers engine's key-value caches may take, half of it those of conversations that
    wait for their next turn; what does not fit runs later. null takes a quarter of the device's memory,
    or half of what is free once the weights are loaded if that is less, and saves it; above 0."""
    environment_concurrency: int = 16
    """Maximum environments that wait for something (such as a user behind a URL) at once; above 0."""
    environment_timeout: float = 120.0
    """Seconds that an environment may wait within one turn, or an agent (task=agent) may take for its next
    request; above 0."""
    vllm_memory: float = 0.4
    """Share of the GPU's memory for vLLM's weights and cache; without a GPU, share of the machine's memory
    for the cache; between 0 and 1."""

    def __post_init__(self) -> None:
        require_positive(
            "rollout", self, "temperature", "top_p", "max_prompt_length", "max_completion_length"
        )
        require_at_most("rollout", self, temperature=100.0)
        require_positive("rollout", self, "max_turns", "batch_size")
        if self.cache_gb is not None:
            require_positive("rollout", self, "cache_gb")
        if self.old_logprobs_band is not None:
            require_positive("rollout", self, "old_logprobs_band")
        require_positive("rollout", self, "environment_concurrency", "environment_timeout")
        require_fraction("rollout", self, "top_p")
        require_not_negative("rollout", self, "top_k")
        require(
            0 < self.vllm_memory < 1,
            f"rollout.vllm_memory={self.vllm_memory}: is a share of the memory between 0 and 1; give 0.4",
        )

    @property
    def truncates(self) -> bool:
        """Whether sampling draws from less than the whole distribution, which biases the ratio."""
        return self.top_p < 1 or self.top_k > 0
