"""Random batches in float64, and the loss and gradient that the objective gives on them."""

from __future__ import annotations

import torch

from gspo_cli.algorithm.objective import loss_denominator, policy_loss
from gspo_cli.config.choices import RatioLevel
from gspo_cli.config.schema import AlgorithmConfig

LIMIT = 12  # tokens of the longest answer, as `constant` divides by it


def algorithm(level="token", left=0.2, right=0.27, **more):
    return AlgorithmConfig(
        name="test",
        ratio_level=RatioLevel[level],
        clip_range_left=left,
        clip_range_right=right,
        learning_rate=1.0,
        **more,
    )


def batch(seed, rows=5, length=7, spread=0.5):
    """logprobs (with gradient), old_logprobs, advantages (B, 1), action_mask: trained tokens with gaps and of
    uneven number, a row of a single one, and ratios on both sides of every band."""
    random = torch.Generator().manual_seed(seed)
    old = -3 * torch.rand(rows, length, generator=random, dtype=torch.float64)
    logprobs = old + spread * torch.randn(rows, length, generator=random, dtype=torch.float64)
    advantages = torch.randn(rows, 1, generator=random, dtype=torch.float64)
    mask = torch.rand(rows, length, generator=random) < 0.7
    mask[0] = False
    mask[:, length // 2] = True
    return logprobs.requires_grad_(), old, advantages, mask


def computed(config, logprobs, old, advantages, mask, **more):
    """Loss of a whole step and its gradient by the log-probabilities."""
    denominator = loss_denominator(mask.sum(dim=1).tolist(), config.aggregation, LIMIT)
    loss, stats = policy_loss(logprobs, old, advantages, mask, config, denominator, **more)
    (gradient,) = torch.autograd.grad(loss, logprobs)
    return loss.detach(), gradient, stats


def differences(found, expected, logprobs):
    """Largest differences of a loss and its gradient from those of `expected`, a naive loss."""
    (gradient,) = torch.autograd.grad(expected, logprobs)
    return (found[0] - expected).abs().item(), (found[1] - gradient).abs().max().item()
