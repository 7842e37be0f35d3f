"""From rewards to advantages, relative to the other answers to the same prompt.

Shapes: P prompts, G answers per prompt, K turns."""

from __future__ import annotations

import torch
from torch import Tensor

from gspo_cli.config.choices import AdvantageBaseline, AdvantageScale

ZERO_RANGE = 1e-6  # rewards of a group closer than this, relative to their size, are treated as equal
OUTLIER_SHARE = 0.05  # of a group's deviation
SMALL_SPREAD = 0.02  # standard deviation below which rewards in [0, 1] hardly differ


def group_advantages(
    rewards: Tensor,
    valid: Tensor,
    baseline: AdvantageBaseline = AdvantageBaseline.group_mean,
    scale: AdvantageScale = AdvantageScale.group_std,
    std_floor: float = 0.0,
) -> Tensor:
    """How much better each answer is than its group. rewards, valid (P, G) -> (P, G) in float64.

    `batch_mean` and `batch_std` are over all prompts, as in REINFORCE++ (arXiv 2501.03262): then a group of
    equal rewards has an advantage, too, unless all rewards are equal.

    GSPO paper, Eq. 6, with the sample standard deviation (n - 1), as in TRL and verl; the deviation that
    divides is at least `std_floor`, so that rewards which hardly differ make small advantages. Answers that
    are not `valid` are not part of the baseline and get 0, whatever their reward. A group with equal rewards,
    or with fewer than two valid answers, gets exactly 0.
    """
    rewards = rewards.double()
    count = valid.sum(dim=1, keepdim=True)  # (P, 1)
    centered = _centered(rewards, valid)
    if scale is AdvantageScale.group_std:
        spread = _deviations(centered, valid)[:, None]  # (P, 1)
    elif scale is AdvantageScale.batch_std:
        everything = rewards[valid]
        spread = everything.std() if everything.numel() > 1 else torch.ones(())
    else:
        spread = torch.ones(())
    if scale is not AdvantageScale.none:
        spread = spread.clamp(min=std_floor)
    if baseline is AdvantageBaseline.leave_one_out:
        # r_i - mean of the others = (r_i - mean) n / (n - 1)
        centered = centered * count / (count - 1).clamp(min=1)
    if baseline is AdvantageBaseline.batch_mean:
        return _against_batch(rewards, valid, spread)
    informative = valid & has_spread(rewards, valid)[:, None]
    # test the range, not the deviation: rounding gives a constant group a tiny deviation
    return torch.where(informative, centered / torch.where(informative, spread, 1), 0)


def _against_batch(rewards: Tensor, valid: Tensor, spread: Tensor) -> Tensor:
    """Distance of each valid reward from the mean of all, divided by `spread`. (P, G) -> (P, G)"""
    flat, counted = rewards.flatten()[None], valid.flatten()[None]  # one group
    informative = valid & has_spread(flat, counted)
    centered = _centered(flat, counted).reshape(rewards.shape)
    return torch.where(informative, centered / torch.where(informative, spread, 1), 0)


def part_advantages(parts: Tensor, valid: Tensor, std_floor: float = 0.0) -> Tensor:
    """Advantages of rewards of several parts, each of which is normalized within its group before they are
    added up, and their sum over all answers (GDPO, arXiv 2601.05242). parts (K, P, G) -> (P, G) in float64.

    A part whose spread is small then counts like the others; one that is equal in a group adds nothing."""
    by_part = [group_advantages(part, valid, std_floor=std_floor) for part in parts]
    total = torch.stack(by_part).sum(dim=0)
    return group_advantages(total, valid, AdvantageBaseline.batch_mean, AdvantageScale.batch_std)


def length_penalty(lengths: Tensor, limit: int, buffer: float) -> Tensor:
    """How far answers of `lengths` tokens are into the last `buffer` (a share) of `limit`: 0 before it, and
    linear up to 1 at the limit (DAPO, arXiv 2503.14476, Eq. 13, with the sign turned). -> the same shape in
    float64"""
    start = limit * (1 - buffer)
    return ((lengths.double() - start) / (limit - start)).clamp(min=0, max=1)


def deviations(rewards: Tensor, valid: Tensor) -> Tensor:
    """Sample standard deviation (n - 1) of the valid rewards of each group; 0 for fewer than two.
    rewards, valid (P, G) -> (P,) in float64."""
    return _deviations(_centered(rewards, valid), valid)


def flattened_by_one(rewards: Tensor, valid: Tensor) -> Tensor:
    """Whether one reward of a group is so far away that the differences between the others, which are there,
    vanish beside it: without it the deviation is below `OUTLIER_SHARE` of the whole. (P, G) -> (P,)"""
    away = _centered(rewards, valid).abs()
    others = valid & (torch.arange(rewards.shape[1]) != away.argmax(dim=1, keepdim=True))
    vanish = deviations(rewards, others) < OUTLIER_SHARE * deviations(rewards, valid)
    return vanish & has_spread(rewards, others)


def _deviations(centered: Tensor, valid: Tensor) -> Tensor:
    """`deviations` of rewards that are centered. (P, G) -> (P,)"""
    return (centered.square().sum(dim=1) / (valid.sum(dim=1) - 1).clamp(min=1)).sqrt()


def _centered(rewards: Tensor, valid: Tensor) -> Tensor:
    """Distance of each valid reward from its group's mean, else 0. (P, G) -> (P, G) in float64"""
    rewards = torch.where(valid, rewards, 0).double()
    count = valid.sum(dim=1, keepdim=True).clamp(min=1)
    return torch.where(valid, rewards - rewards.sum(dim=1, keepdim=True) / count, 0)


def rewards_to_go(turn_rewards: Tensor, discount: float) -> Tensor:
    """Discounted sums of rewards from each turn on: R_k = r_k + discount R_(k+1). (P, G, K) -> (P, G, K)"""
    to_go = turn_rewards.clone()
    for turn in range(turn_rewards.shape[2] - 2, -1, -1):
        to_go[:, :, turn] += discount * to_go[:, :, turn + 1]
    return to_go


def turn_advantages(
    to_go: Tensor,
    taken: Tensor,
    baseline: AdvantageBaseline,
    scale: AdvantageScale,
    std_floor: float = 0.0,
) -> Tensor:
    """How much better an answer did from a turn on than the others of its group that reached this turn.

    to_go, taken (P, G, K) -> (P, G, K) in float64. The answers' turns of the same number form a group: where
    only one answer reached it, or all earn the same, the advantage is exactly 0. With one turn this is
    `group_advantages`."""
    prompts, answers, turns = to_go.shape
    by_turn = group_advantages(
        to_go.transpose(1, 2).reshape(prompts * turns, answers),
        taken.transpose(1, 2).reshape(prompts * turns, answers),
        baseline,
        scale,
        std_floor,
    )
    return by_turn.reshape(prompts, turns, answers).transpose(1, 2)


def has_spread(rewards: Tensor, valid: Tensor) -> Tensor:
    """Whether the valid rewards of a group differ. (P, G) -> (P,)"""
    highest = torch.where(valid, rewards, -torch.inf).amax(dim=1)
    lowest = torch.where(valid, rewards, torch.inf).amin(dim=1)
    size = torch.where(valid, rewards.abs(), 0).amax(dim=1).clamp(min=1)
    return highest - lowest > ZERO_RANGE * size
