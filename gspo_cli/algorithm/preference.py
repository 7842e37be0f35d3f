"""Preference optimization: the best answer of a group against its worst, relative to the reference.

Shapes: P prompts, G answers per prompt, N pairs. h = L(best) - L(worst), where L is an answer's
log-probability under the policy minus that under the reference: summed over its tokens
(aggregation=sequence_sum) or their mean (sequence_mean, which normalizes by length). DPO, arXiv 2305.18290,
Eq. 7: -log sigmoid(beta h); IPO, arXiv 2310.12036, Eq. 17: (h - 1 / (2 beta))^2.

The gradient of a pair's loss is its slope in h times the difference of the two answers' gradients. An
answer's advantage is its share of that, computed before each step, in the term `ratio A` at ratio 1."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from gspo_cli.algorithm.accumulators import Accumulator
from gspo_cli.algorithm.advantages import has_spread
from gspo_cli.config.choices import Preference


@dataclass(frozen=True)
class PreferenceStats(Accumulator):
    """Sums over pairs: their number, the loss, how many prefer the best answer (h > 0), and beta L of the
    best and of the worst."""

    pairs: float = 0.0
    loss: float = 0.0
    correct: float = 0.0
    chosen: float = 0.0
    rejected: float = 0.0


def best_and_worst(rewards: Tensor, valid: Tensor) -> Tensor:
    """1 for the best answer of each group, -1 for the worst, 0 for the others; the first of equal ones. A
    group whose rewards are equal has neither. rewards, valid (P, G) -> (P, G)"""
    signs = torch.zeros_like(rewards)
    best = torch.where(valid, rewards, -torch.inf).argmax(dim=1, keepdim=True)
    worst = torch.where(valid, rewards, torch.inf).argmin(dim=1, keepdim=True)
    signs.scatter_(1, best, 1.0).scatter_(1, worst, -1.0)
    return torch.where(has_spread(rewards, valid)[:, None], signs, 0.0)


def pair_losses(difference: Tensor, kind: Preference, beta: float) -> tuple[Tensor, Tensor]:
    """The loss of each pair and its slope, from `difference` h. (N,) -> two (N,)"""
    if kind is Preference.ipo:
        distance = difference - 1 / (2 * beta)
        return distance.square(), 2 * distance
    return softplus(-beta * difference), -beta * torch.sigmoid(-beta * difference)
