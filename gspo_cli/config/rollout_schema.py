"""How answers are sampled, and by which engine."""

from __future__ import annotations

from dataclasses import dataclass

from gspo_cli.config.checks import require, require_fraction, require_not_negative, require_positive
from gspo_cli.config.choices import Engine, OldLogprobs


@dataclass
class RolloutConfig:
    """How answers are sampled. Log-probabilities are those of the distribution at `temperature`. At most
    `environment_concurrency` environments that wait for something (a user behind a URL) do so at once, each
    for `environment_timeout` seconds a turn. `vllm_memory` is the share of the GPU's memory that vLLM may
    take for its weights and cache, without a GPU the share of the machine's for the cache alone."""

    engine: Engine = Engine.transformers
    old_logprobs: OldLogprobs = OldLogprobs.recompute
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_prompt_length: int = 256
    max_completion_length: int = 256
    max_turns: int = 8
    batch_size: int = 256
    environment_concurrency: int = 16
    environment_timeout: float = 120.0
    vllm_memory: float = 0.4

    def __post_init__(self) -> None:
        require_positive(
            "rollout", self, "temperature", "top_p", "max_prompt_length", "max_completion_length"
        )
        require_positive("rollout", self, "max_turns", "batch_size")
        require_positive("rollout", self, "environment_concurrency", "environment_timeout")
        require_fraction("rollout", self, "top_p")
        require_not_negative("rollout", self, "top_k")
        require(
            0 < self.vllm_memory < 1,
            f"rollout.vllm_memory={self.vllm_memory}: is a share of the memory; must lie between 0 and 1",
        )

    @property
    def truncates(self) -> bool:
        """Whether sampling draws from less than the whole distribution, which biases the ratio."""
        return self.top_p < 1 or self.top_k > 0
