"""Engine weights: a correction for the mismatch between the probabilities that the rollout engine samples
from and those that the trainer computes for the same weights (different kernels or precision).

Shapes: B sequences, T tokens, aligned as in `gspo_cli.types`. d = log pi_old - log pi_engine, per trained
token. Engine weights are constants: they are separate from the importance ratio between two updates, and
multiply the policy term only, never the KL penalty. A sequence of weight 0 stays in the denominator, so that
the share of the others in the step does not grow.

token_truncate: min(exp d, max), truncated importance sampling (Ionides 2008) per token. sequence_mask: 1
where exp(mean d) lies within [1/max, max], else 0: a product over tokens would explode with length."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gspo_cli.algorithm.accumulators import Accumulator
from gspo_cli.algorithm.objective import sequence_log_ratio, token_log_ratio, trained_mean
from gspo_cli.config.choices import EngineCorrection, RatioLevel
from gspo_cli.config.schema import AlgorithmConfig


@dataclass(frozen=True)
class EngineStats(Accumulator):
    """Sums over trained tokens (`token_truncate`) or sequences with a trained token (`sequence_mask`): their
    number, how many were truncated or masked, and their engine ratios before truncation."""

    counted: float = 0.0
    dropped: float = 0.0
    ratio_sum: float = 0.0


@torch.no_grad()
def engine_weights(
    old_logprobs: Tensor, sampling_logprobs: Tensor, action_mask: Tensor, algorithm: AlgorithmConfig
) -> tuple[Tensor, EngineStats]:
    """Three (B, T) -> weights (B, T), or (B, 1) for `sequence_mask`, and their statistics. Weights are 1
    where nothing is trained."""
    difference = token_log_ratio(old_logprobs, sampling_logprobs, action_mask)
    limit = algorithm.engine_weight_max
    if algorithm.engine_correction is EngineCorrection.token_truncate:
        ratio, counted = difference.exp(), action_mask
        weights, dropped = ratio.clamp(max=limit), ratio > limit
    elif algorithm.engine_correction is EngineCorrection.sequence_mask:
        ratio = sequence_log_ratio(difference, action_mask).exp()
        counted = action_mask.any(dim=1, keepdim=True)
        dropped = (ratio > limit) | (ratio < 1 / limit)
        weights = (~dropped).to(ratio.dtype)
    else:
        return torch.ones_like(difference[:, :1]), EngineStats()
    sums = [counted.sum(), (dropped & counted).sum(), ratio[counted].sum()]
    return weights, EngineStats(*torch.stack([value.double() for value in sums]).tolist())


def weighted(advantages: Tensor, weights: Tensor, action_mask: Tensor, level: RatioLevel) -> Tensor:
    """Advantages times engine weights, which weights the policy term under every clip mode: the term is
    proportional to A at a given sign of A, and weights are not negative.

    advantages (B, 1) or (B, T), weights likewise -> (B, 1) or (B, T), as the ratio level requires. A sequence
    ratio has one term for all its tokens, so their weights are averaged."""
    if level.is_whole and weights.shape[1] > 1:
        weights = trained_mean(weights, action_mask)
    return advantages * weights
