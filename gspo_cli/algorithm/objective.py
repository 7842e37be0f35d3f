"""The policy objective as pure functions of tensors: ratio -> clip -> aggregate, and the KL penalty.

Shapes: B sequences, T tokens, aligned as in `gspo_cli.types`. `action_mask` (B, T) is true on trained
tokens; all other positions may hold anything. `advantages` is (B, 1), or (B, T) where the ratio level has a
token axis. Denominators are passed in: they count one whole optimizer step, independent of how it is split
into micro-batches and ranks. `weights` (B,) are those of sequences in their mean, None for 1 each: the
sequences of one answer share a weight of 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from gspo_cli.algorithm.accumulators import Accumulator, maximum, minimum
from gspo_cli.algorithm.gates import surrogate
from gspo_cli.config.choices import Aggregation, KLEstimator, RatioLevel
from gspo_cli.config.schema import AlgorithmConfig


@dataclass(frozen=True)
class LossStats(Accumulator):
    """Sums over trained tokens and sequences.

    `deviation_*` describe ratio - 1 at the algorithm's own level: per sequence, or per token for token
    ratios. `kl_sum` is of the penalty against the reference, `moved_sum` of k3 from the old policy."""

    tokens: float = 0.0
    sequences: float = 0.0
    clipped_low: float = 0.0
    clipped_high: float = 0.0
    clipped_sequences: float = 0.0
    ratios: float = 0.0
    deviation_sum: float = 0.0
    deviation_squares: float = 0.0
    deviation_min: float = minimum()
    deviation_max: float = maximum()
    kl_sum: float = 0.0
    moved_sum: float = 0.0
    loss: float = 0.0


def token_log_ratio(logprobs: Tensor, old_logprobs: Tensor, action_mask: Tensor) -> Tensor:
    """log w_t = log pi(y_t) - log pi_old(y_t), 0 where not trained. (B, T) -> (B, T)"""
    # mask before exp: inf * 0 is nan
    return torch.where(action_mask, logprobs - old_logprobs, 0)


def sequence_log_ratio(log_ratio: Tensor, action_mask: Tensor) -> Tensor:
    """log s = mean over trained tokens of log w_t (GSPO paper, Eq. 7). (B, T) -> (B, 1)"""
    return log_ratio.sum(dim=1, keepdim=True) / action_mask.sum(dim=1, keepdim=True).clamp(min=1)


def level_log_ratio(log_ratio: Tensor, action_mask: Tensor, level: RatioLevel) -> Tensor:
    """Value of the log ratio at `level`, from that of tokens, 0 where not trained. (B, T) -> (B, T) for
    `token`, else (B, 1)"""
    if level is RatioLevel.token:
        return log_ratio
    if level is RatioLevel.sequence_product:
        return log_ratio.sum(dim=1, keepdim=True)
    return sequence_log_ratio(log_ratio, action_mask)


def trained_mean(values: Tensor, action_mask: Tensor) -> Tensor:
    """Mean over the trained tokens of a sequence, ignoring all other positions. (B, T) -> (B, 1)"""
    total = torch.where(action_mask, values, 0).sum(dim=1, keepdim=True)
    return total / action_mask.sum(dim=1, keepdim=True).clamp(min=1)


def importance_log_ratio(
    logprobs: Tensor, old_logprobs: Tensor, action_mask: Tensor, level: RatioLevel
) -> Tensor:
    """Logarithm of the ratio at `level`, with its gradient: (B, T) for token levels, (B, 1) for those of
    whole answers.

    token: Eq. 2; sequence: Eq. 7; sequence_token: value of the sequence ratio, gradient per token (Eq. 14);
    sequence_product: pi(y) / pi_old(y) of the whole answer, the action of arXiv 2402.14740."""
    log_ratio = token_log_ratio(logprobs, old_logprobs, action_mask)
    log_s = level_log_ratio(log_ratio, action_mask, level)
    if level is not RatioLevel.sequence_token:
        return log_s
    own = torch.where(action_mask, logprobs - logprobs.detach(), 0)  # value 0, gradient of log pi
    return log_s.detach() + own


def kl_penalty(logprobs: Tensor, ref_logprobs: Tensor, action_mask: Tensor, estimator: KLEstimator) -> Tensor:
    """KL(policy || reference) per token. (B, T) -> (B, T), 0 where not trained.

    k2 = d^2 / 2 and k3 = exp(-d) - 1 + d with d = log p - log ref; both have zero gradient where the two
    agree. k1 = d is for the reward: as a loss its expected gradient is zero."""
    difference = torch.where(action_mask, logprobs - ref_logprobs, 0)
    if estimator is KLEstimator.k1:
        return difference
    if estimator is KLEstimator.k2:
        return difference.square() / 2
    return torch.expm1(-difference) + difference


def reward_kl(old_logprobs: Tensor, ref_logprobs: Tensor, action_mask: Tensor) -> Tensor:
    """k1 averaged over a sequence's trained tokens; its reward is reduced by beta x k1. (B, T) -> (B,)"""
    log_ratio = token_log_ratio(old_logprobs, ref_logprobs, action_mask)
    return sequence_log_ratio(log_ratio, action_mask).squeeze(dim=1)


def loss_denominator(
    action_counts: Iterable[int], aggregation: Aggregation, max_completion_length: int
) -> float:
    """The denominator of one optimizer step, from the trained tokens of each of its sequences; at least 1.

    Sequences without a trained token do not count; `sequence_mean` and `sequence_sum` count the others."""
    counts = [count for count in action_counts if count > 0]
    if aggregation is Aggregation.token_mean:
        return float(max(1, sum(counts)))
    length = max_completion_length if aggregation is Aggregation.constant else 1
    return float(max(1, len(counts)) * length)


def aggregate(
    term: Tensor,
    action_mask: Tensor,
    aggregation: Aggregation,
    denominator: float,
    weights: Tensor | None = None,
) -> Tensor:
    """Sum of a micro-batch's terms as its share of the step's mean. (B, T) -> ()"""
    per_sequence = torch.where(action_mask, term, 0).sum(dim=1)  # (B,)
    if aggregation is Aggregation.sequence_mean:
        per_sequence = per_sequence / action_mask.sum(dim=1).clamp(min=1)
        per_sequence = per_sequence if weights is None else per_sequence * weights
    return per_sequence.sum() / denominator


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    action_mask: Tensor,
    algorithm: AlgorithmConfig,
    denominator: float,
    ref_logprobs: Tensor | None = None,
    weights: Tensor | None = None,
) -> tuple[Tensor, LossStats]:
    """A micro-batch's share of the loss of one optimizer step, and its statistics.

    logprobs, old_logprobs, action_mask, ref_logprobs (B, T); advantages (B, 1) or (B, T). Adding up the
    losses of all micro-batches gives the step's loss. Raises ValueError on shapes that would broadcast
    silently or are meaningless.
    """
    check_shapes(logprobs, old_logprobs, advantages, action_mask, algorithm.ratio_level)
    log_ratio = importance_log_ratio(logprobs, old_logprobs, action_mask, algorithm.ratio_level)
    by_token = token_log_ratio(logprobs, old_logprobs, action_mask)
    term, low, high = surrogate(log_ratio, by_token, logprobs, advantages, action_mask, algorithm)
    loss = -aggregate(term.expand_as(logprobs), action_mask, algorithm.aggregation, denominator, weights)
    kl = torch.zeros_like(logprobs)
    if ref_logprobs is not None and algorithm.kl_in_loss:
        kl = kl_penalty(logprobs, ref_logprobs, action_mask, algorithm.kl_estimator)
        if algorithm.kl_bias_corrected:
            # DeepSeek-V3.2 (arXiv 2512.02556): an expectation under the policy, from samples of the old one
            kl = kl * by_token.exp()
        penalty = aggregate(kl, action_mask, algorithm.aggregation, denominator, weights)
        loss = loss + algorithm.beta * penalty
    per_token = algorithm.ratio_level is RatioLevel.token
    # at the sequence levels all tokens of a row have the same value
    reported = log_ratio.detach() if per_token else log_ratio.detach()[:, :1]
    # the tokens were sampled from the old policy: k3 of KL(old || policy), near 0 in double
    moved = kl_penalty(old_logprobs.double(), logprobs.detach().double(), action_mask, KLEstimator.k3)
    return loss, _stats(loss, reported, low, high, kl, moved, action_mask, weights)


def check_shapes(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, action_mask: Tensor, level: RatioLevel
) -> None:
    """Raise ValueError unless shapes are (B, T), and advantages (B, 1), or (B, T) for levels with a token
    axis."""
    rows, length = logprobs.shape
    if old_logprobs.shape != logprobs.shape or action_mask.shape != logprobs.shape:
        raise ValueError("logprobs, old_logprobs and action_mask must have one shape (B, T)")
    allowed = {(rows, 1)} if level.is_whole else {(rows, 1), (rows, length)}
    if tuple(advantages.shape) not in allowed:
        raise ValueError(
            f"advantages of shape {tuple(advantages.shape)} do not fit a {level.value} ratio over "
            f"{(rows, length)}: a sequence ratio takes one advantage "
            "per sequence (B, 1); use sequence_token for one per token"
        )


def answers(rows: Tensor, weights: Tensor | None) -> Tensor:
    """How many answers the sequences where `rows` (B,) is true amount to. -> ()"""
    return rows.sum() if weights is None else (rows * weights).sum()


def _stats(
    loss: Tensor,
    log_ratio: Tensor,
    low: Tensor,
    high: Tensor,
    kl: Tensor,
    moved: Tensor,
    action_mask: Tensor,
    weights: Tensor | None,
) -> LossStats:
    trained = action_mask.any(dim=1, keepdim=True)
    counted = action_mask if log_ratio.shape == action_mask.shape else trained
    deviation = torch.expm1(log_ratio)[counted]  # exact near 0, where the GSPO band lies
    if deviation.numel() == 0:
        return LossStats(loss=loss.item())
    clipped = (low | high).any(dim=1)
    sums = [
        action_mask.sum(),
        answers(trained[:, 0], weights),
        low.sum(),
        high.sum(),
        answers(clipped, weights),
        counted.sum(),
        deviation.sum(),
        deviation.square().sum(),
        deviation.min(),
        deviation.max(),
        kl.detach().sum(),
        moved.sum(),
        loss.detach(),
    ]
    return LossStats(*torch.stack([value.double() for value in sums]).tolist())
