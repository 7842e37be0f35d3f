"""Engine weights: a correction for the mismatch between the probabilities that the rollout engine samples
from and those that the trainer computes for the same weights (different kernels or precision).

Shapes: B sequences, T tokens, aligned as in `gspo_cli.types`. d = log pi_old - log pi_engine, per trained
token. Engine weights are constants: they are separate from the importance ratio between two updates, and
multiply the policy term only, never the KL penalty. A sequence of weight 0 stays in the denominator, so that
the share of the others in the step does not grow.

token_truncate: min(exp d, max), truncated importance sampling (Ionides 2008) per token. token_mask: exp d
within [1/max, max], else 0 (IcePop, arXiv 2510.18855). sequence_truncate: min(exp(mean d), max).
sequence_mask: 1 where exp(mean d) lies within [1/max, max], else 0. For sequences a product over tokens would
explode with length.

`off_policy_kept` is about the policy and the old one instead: which answers are still near enough to learn
from what was bad about them."""

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
    """Sums over trained tokens (`token_*`) or sequences with a trained token (`sequence_*`): their number,
    how many were truncated or masked, and their engine ratios before truncation."""

    counted: float = 0.0
    dropped: float = 0.0
    ratio_sum: float = 0.0


@torch.no_grad()
def engine_weights(
    old_logprobs: Tensor, sampling_logprobs: Tensor, action_mask: Tensor, algorithm: AlgorithmConfig
) -> tuple[Tensor, EngineStats]:
    """Three (B, T) -> weights (B, T), or (B, 1) for `sequence_*`, and their statistics. Weights are 1 where
    nothing is trained."""
    difference = token_log_ratio(old_logprobs, sampling_logprobs, action_mask)
    kind, limit = algorithm.engine_correction, algorithm.engine_weight_max
    if kind is EngineCorrection.none:
        return torch.ones_like(difference[:, :1]), EngineStats()
    if kind in (EngineCorrection.token_truncate, EngineCorrection.token_mask):
        ratio, counted = difference.exp(), action_mask
    else:
        ratio = sequence_log_ratio(difference, action_mask).exp()
        counted = action_mask.any(dim=1, keepdim=True)
    if kind in (EngineCorrection.token_truncate, EngineCorrection.sequence_truncate):
        weights, dropped = ratio.clamp(max=limit), ratio > limit
    else:
        dropped = (ratio > limit) | (ratio < 1 / limit)
        kept = ratio if kind is EngineCorrection.token_mask else torch.ones_like(ratio)
        weights = torch.where(dropped, 0, kept)
    sums = [counted.sum(), dropped.sum(), ratio[counted].sum()]
    return weights, EngineStats(*torch.stack([value.double() for value in sums]).tolist())


@torch.no_grad()
def off_policy_kept(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, action_mask: Tensor, limit: float
) -> Tensor:
    """False where an advantage is negative and the mean over the sequence's tokens of log(pi_old / pi) is
    above `limit` (DeepSeek-V3.2, arXiv 2512.02556, Eq. 9). Three (B, T), advantages (B, 1) or (B, T) -> of
    their shape.

    Like a weight of 0 this leaves the sequence in the denominator."""
    log_ratio = token_log_ratio(logprobs.detach(), old_logprobs, action_mask)
    return (advantages >= 0) | (-sequence_log_ratio(log_ratio, action_mask) <= limit)


def weighted(advantages: Tensor, weights: Tensor, action_mask: Tensor, level: RatioLevel) -> Tensor:
    """Advantages times engine weights, which weights the policy term under every clip mode: the term is
    proportional to A at a given sign of A, and weights are not negative.

    advantages (B, 1) or (B, T), weights likewise -> (B, 1) or (B, T), as the ratio level requires. A sequence
    ratio has one term for all its tokens, so their weights are averaged."""
    if level.is_whole and weights.shape[1] > 1:
        weights = trained_mean(weights, action_mask)
    return advantages * weights
