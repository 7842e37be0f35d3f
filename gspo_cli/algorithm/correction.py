"""Engine weights: what makes up for a rollout engine that samples from slightly other probabilities than the
trainer computes (other kernels, another precision).

Shapes: B sequences, T tokens, aligned as in `gspo_cli.types`. d = log pi_old - log pi_engine, per trained
token, both of the same weights; its cause is numerical, so that an engine weight is a constant, and not the
importance ratio between two updates. Weights multiply the policy term alone, never the KL penalty. A sequence
of weight 0 stays in the denominator: the others' share of the step does not grow.

token_truncate: min(exp d, max), truncated importance sampling (Ionides 2008) per token. sequence_mask: 1
where exp(mean d) lies within [1/max, max], else 0: a product over tokens would explode with length."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gspo_cli.algorithm.objective import sequence_log_ratio, token_log_ratio
from gspo_cli.config.choices import EngineCorrection, RatioLevel
from gspo_cli.config.schema import AlgorithmConfig


@dataclass(frozen=True)
class EngineStats:
    """Sums over what was judged, tokens (`token_truncate`) or sequences (`sequence_mask`) with a trained
    token: how many, how many were truncated or masked, and their engine ratios before that."""

    judged: float = 0.0
    dropped: float = 0.0
    ratio_sum: float = 0.0

    def __add__(self, other: EngineStats) -> EngineStats:
        return EngineStats(
            self.judged + other.judged, self.dropped + other.dropped, self.ratio_sum + other.ratio_sum
        )


@torch.no_grad()
def engine_weights(
    old_logprobs: Tensor, sampling_logprobs: Tensor, action_mask: Tensor, algorithm: AlgorithmConfig
) -> tuple[Tensor, EngineStats]:
    """Three (B, T) -> weights (B, T), or (B, 1) for `sequence_mask`, and their statistics. 1 where nothing is
    trained."""
    difference = token_log_ratio(old_logprobs, sampling_logprobs, action_mask)
    limit = algorithm.engine_weight_max
    if algorithm.engine_correction is EngineCorrection.token_truncate:
        ratio, judged = difference.exp(), action_mask
        weights, dropped = ratio.clamp(max=limit), ratio > limit
    elif algorithm.engine_correction is EngineCorrection.sequence_mask:
        ratio = sequence_log_ratio(difference, action_mask).exp()
        judged = action_mask.any(dim=1, keepdim=True)
        dropped = (ratio > limit) | (ratio < 1 / limit)
        weights = (~dropped).to(ratio.dtype)
    else:
        return torch.ones_like(difference[:, :1]), EngineStats()
    sums = [judged.sum(), (dropped & judged).sum(), ratio[judged].sum()]
    return weights, EngineStats(*torch.stack([value.double() for value in sums]).tolist())


def weighted(advantages: Tensor, weights: Tensor, action_mask: Tensor, level: RatioLevel) -> Tensor:
    """Advantages that bring the engine weights into the policy term, for every clip mode: the term is
    proportional to A at a given sign of A, and weights are not negative.

    advantages (B, 1) or (B, T), weights likewise -> as the ratio level takes them. A sequence ratio has one
    term for all its tokens, so that their weights come in as their mean."""
    if level is RatioLevel.sequence and weights.shape[1] > 1:
        weights = _mean(weights, action_mask)
    return advantages * weights


def _mean(weights: Tensor, action_mask: Tensor) -> Tensor:
    """Over trained tokens. (B, T) -> (B, 1)"""
    total = torch.where(action_mask, weights, 0).sum(dim=1, keepdim=True)
    return total / action_mask.sum(dim=1, keepdim=True).clamp(min=1)
