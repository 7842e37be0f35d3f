"""Before training: the difference between log-probabilities of the same tokens that should be equal.

Shapes: B sequences, T tokens. GSPO's clip band is a few 1e-4 wide, and rounding in bf16 is of that size: a
ratio that noise moves over a third of the band is clipped at random."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gspo_cli.algorithm.objective import sequence_log_ratio
from gspo_cli.config.choices import ClipMode, OldLogprobs
from gspo_cli.config.schema import RunConfig
from gspo_cli.diagnosis.rules import NOISE_SHARE
from gspo_cli.policy.policy import Policy
from gspo_cli.randomness import generator
from gspo_cli.rollout.prompts import Prompts
from gspo_cli.training.strategy import Strategy
from gspo_cli.types import Problem

ROWS, TOKENS = 8, 32  # prompts, and random tokens after each, which stand for an answer
PADDING = 8  # columns added to a row that is alone in its batch


@dataclass(frozen=True)
class NoiseFloor:
    """Largest |s - 1| of unchanged weights: `same` between scoring and the update pass on the same batch,
    `layouts` between a sequence in the batch and the sequence alone."""

    same: float
    layouts: float


def noise_floor(
    config: RunConfig, policy: Policy, strategy: Strategy, problems: Sequence[Problem], prompts: Prompts
) -> NoiseFloor:
    """Measure on prompts of `problems`, with random tokens as answers. No weight or gradient changes.

    Every rank makes the same calls on the same tokens."""
    rows = _sequences(config, policy, problems, prompts)
    answered = min(TOKENS, config.rollout.max_completion_length)
    width = max(map(len, rows)) + (PADDING if len(rows) == 1 else 0)
    token_ids, mask = _batch(rows, answered, width, policy)

    def score(token_ids: Tensor, mask: Tensor) -> Tensor:
        return strategy.forward(token_ids, mask, config.rollout.temperature)[0].detach()

    with torch.no_grad():
        old = score(token_ids, mask)
        alone = torch.zeros_like(old)
        for place, row in enumerate(rows):
            alone[place, : len(row)] = score(*_batch([row], answered, len(row), policy))[0]
    with policy.updating():
        new = score(token_ids, mask)
    return NoiseFloor(_deviation(new - old, mask), _deviation(alone - old, mask))


def noise_limit(config: RunConfig) -> float:
    """The noise limit: a third of the band's narrower side; infinite without a band."""
    algorithm = config.algorithm
    widths = [w for w in (algorithm.clip_range_left, algorithm.clip_range_right) if w is not None]
    clips = algorithm.clip_mode is not ClipMode.none
    return NOISE_SHARE * min(widths) if clips and widths else math.inf


def noise_text(floor: NoiseFloor, limit: float) -> str:
    """The card's line."""
    band = f"band {limit / NOISE_SHARE:.2g} (limit {limit:.1g})" if math.isfinite(limit) else "no clip band"
    return f"same layout {floor.same:.1g}, other layouts {floor.layouts:.1g}; {band}"


def noise_warnings(config: RunConfig, floor: NoiseFloor) -> list[str]:
    """A message with the fix if noise is over the limit.

    Noise between layouts only affects the ratio if old log-probabilities come from the engine, which uses a
    different layout."""
    limit, found = noise_limit(config), []
    if not floor.same <= limit:
        found.append(
            f"numerical noise of the ratio is {floor.same:.1e} before training, over a third of the clip "
            f"width {limit / NOISE_SHARE:.1e}: answers will be clipped at random; use "
            "hardware.precision=fp32 or a wider algorithm.clip_range"
        )
    if not floor.layouts <= limit and config.rollout.old_logprobs is OldLogprobs.engine:
        found.append(
            f"rollout.old_logprobs=engine: log-probabilities of two batch layouts give ratios "
            f"{floor.layouts:.1e} apart, over a third of the clip width {limit / NOISE_SHARE:.1e}; use "
            "rollout.old_logprobs=recompute, hardware.precision=fp32 or a wider algorithm.clip_range"
        )
    return found


def _sequences(
    config: RunConfig, policy: Policy, problems: Sequence[Problem], prompts: Prompts
) -> list[list[int]]:
    """Prompts with random tokens after them, shortest first, as many as fit into a micro-batch."""
    draw = generator(config.seed, "preflight")
    count = min(TOKENS, config.rollout.max_completion_length)
    vocabulary = policy.causal_model.config.get_text_config().vocab_size
    rows = []
    for problem in problems[:ROWS]:
        answer = draw.integers(vocabulary, size=count).tolist()
        rows.append([*prompts.ids(problem.messages), *answer])
    rows.sort(key=len)
    budget = config.hardware.tokens_per_microbatch
    fitting = [row for place, row in enumerate(rows, start=1) if place * len(row) <= budget]
    return fitting or rows[:1]


def _batch(rows: Sequence[list[int]], answered: int, width: int, policy: Policy) -> tuple[Tensor, Tensor]:
    """Right-padded ids, and a mask of the last `answered` of each row. -> two (B, width)"""
    ids = [row + [policy.chat.pad_id] * (width - len(row)) for row in rows]
    ends = torch.tensor([len(row) for row in rows], device=policy.device)[:, None]
    place = torch.arange(width, device=policy.device)[None]
    return torch.tensor(ids, device=policy.device), (place >= ends - answered) & (place < ends)


def _deviation(log_ratio: Tensor, mask: Tensor) -> float:
    """Largest |s - 1| of a batch. Two (B, T)"""
    return torch.expm1(sequence_log_ratio(log_ratio, mask)).abs().max().item()
