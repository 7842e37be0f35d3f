"""Actor-critic: advantages from a value head, and its loss.

Shapes: K steps of one conversation; B sequences, T tokens, aligned as in `gspo_cli.types`. The value of a
token is that of the state before it, from the hidden state that predicts it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from gspo_cli.algorithm.accumulators import Accumulator


@dataclass(frozen=True)
class ValueStats(Accumulator):
    """Sums over trained tokens: their number, the squared error of the value, and how many values were
    clipped."""

    tokens: float = 0.0
    squares: float = 0.0
    clipped: float = 0.0


def gae(rewards: Sequence[float], values: Sequence[float], discount: float, lam: float) -> list[float]:
    """Generalized advantage estimates (arXiv 1506.02438, Eq. 16) of K steps, the last of which ends the
    conversation: A_k = delta_k + discount lam A_(k+1) with delta_k = r_k + discount V_(k+1) - V_k."""
    advantages, later, following = [0.0] * len(rewards), 0.0, 0.0
    for step in range(len(rewards) - 1, -1, -1):
        delta = rewards[step] + discount * following - values[step]
        later = advantages[step] = delta + discount * lam * later
        following = values[step]
    return advantages


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, action_mask: Tensor, clip: float | None
) -> tuple[Tensor, ValueStats]:
    """Half the squared error of the value of each token, and its statistics. Four (B, T) -> (B, T), 0 where
    not trained.

    With `clip` it is the larger of the errors of the value and of the value within `clip` of the old one
    (PPO), which stops a value that has moved that far towards its return."""
    values = torch.where(action_mask, values, 0)
    returns = torch.where(action_mask, returns, 0)
    error = (values - returns).square()
    clipped = torch.zeros_like(action_mask)
    if clip is not None:
        old = torch.where(action_mask, old_values, 0)
        limited = (old + (values - old).clamp(-clip, clip) - returns).square()
        clipped = limited > error
        error = torch.where(clipped, limited, error)
    sums = (action_mask.sum(), (values - returns).detach().square().sum(), clipped.sum())
    return error / 2, ValueStats(*torch.stack([each.double() for each in sums]).tolist())


def whitened(advantages: Sequence[float], std_floor: float) -> list[float]:
    """Advantages of all trained tokens of an iteration, minus their mean and divided by their standard
    deviation (n - 1), which is at least `std_floor`; 0 where all are equal. (N,) -> (N,)"""
    if len(advantages) < 2:
        return [0.0] * len(advantages)
    values = torch.tensor(advantages, dtype=torch.float64)
    centered = values - values.mean()
    spread = values.std().clamp(min=std_floor)
    scale = values.abs().max().clamp(min=1)
    return (centered / spread if spread > 1e-9 * scale else torch.zeros_like(values)).tolist()


def explained_variance(values: Sequence[float], returns: Sequence[float]) -> float | None:
    """1 - Var(return - value) / Var(return): 1 for a perfect value, 0 for a constant one, below 0 for one
    that is worse; None where all returns are equal."""
    if not returns:
        return None
    whole = _variance(returns)
    if whole <= 1e-12 * fmean(r * r for r in returns):
        return None
    return 1 - _variance([r - v for r, v in zip(returns, values, strict=True)]) / whole


def _variance(values: Sequence[float]) -> float:
    middle = fmean(values)
    return fmean((value - middle) ** 2 for value in values)
