"""Rewards to advantages, relative to the other answers to the same prompt.

Shapes: P prompts, G answers per prompt."""

from __future__ import annotations

import torch
from torch import Tensor

from gspo_cli.config.choices import AdvantageBaseline, AdvantageScale

ZERO_RANGE = 1e-6  # rewards of a group closer than this, relative to their size, count as equal


def group_advantages(
    rewards: Tensor,
    valid: Tensor,
    baseline: AdvantageBaseline = AdvantageBaseline.group_mean,
    scale: AdvantageScale = AdvantageScale.group_std,
) -> Tensor:
    """How much better each answer is than its group. rewards, valid (P, G) -> (P, G) in float64.

    GSPO paper, Eq. 6, with the sample standard deviation (n - 1), as TRL and verl have it. Answers that are
    not `valid` leave the baseline and get 0, whatever their reward. A group whose rewards are equal, or that
    has fewer than two valid answers, gets exactly 0.
    """
    rewards = torch.where(valid, rewards, 0).double()
    count = valid.sum(dim=1, keepdim=True)  # (P, 1)
    centred = torch.where(valid, rewards - rewards.sum(dim=1, keepdim=True) / count.clamp(min=1), 0)
    if scale is AdvantageScale.group_std:
        spread = (centred.square().sum(dim=1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()  # (P, 1)
    elif scale is AdvantageScale.batch_std:
        everything = rewards[valid]
        spread = everything.std() if everything.numel() > 1 else torch.ones(())
    else:
        spread = torch.ones(())
    if baseline is AdvantageBaseline.leave_one_out:
        # r_i - mean of the others = (r_i - mean) n / (n - 1)
        centred = centred * count / (count - 1).clamp(min=1)
    informative = valid & has_spread(rewards, valid)[:, None]
    # filter on the range, not the deviation: rounding leaves a constant group a tiny one
    return torch.where(informative, centred / torch.where(informative, spread, 1), 0)


def has_spread(rewards: Tensor, valid: Tensor) -> Tensor:
    """Whether the valid rewards of a group differ. (P, G) -> (P,)"""
    highest = torch.where(valid, rewards, -torch.inf).amax(dim=1)
    lowest = torch.where(valid, rewards, torch.inf).amin(dim=1)
    size = torch.where(valid, rewards.abs(), 0).amax(dim=1).clamp(min=1)
    return highest - lowest > ZERO_RANGE * size
