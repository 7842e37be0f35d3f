"""Credit: from the trajectories of groups to samples with advantages. Pure functions.

Shapes: P prompts, G answers per prompt, K turns of the longest conversation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from gspo_cli.algorithm.advantages import (
    SMALL_SPREAD,
    deviations,
    flattened_by_one,
    group_advantages,
    has_spread,
    length_penalty,
    part_advantages,
    rewards_to_go,
    turn_advantages,
)
from gspo_cli.algorithm.preference import best_and_worst
from gspo_cli.config.choices import AdvantageParts, Credit, Truncated
from gspo_cli.config.schema import AlgorithmConfig
from gspo_cli.errors import UserError
from gspo_cli.training.batch import Sample
from gspo_cli.types import FinishReason, Trajectory

Group = Sequence[Trajectory]


def trainable(groups: Sequence[Group], algorithm: AlgorithmConfig) -> list[Sample]:
    """A sample of every answer, group after group, with advantages of 0. No token is trained where the answer
    was excluded, or was cut and the setting masks it. Raises UserError where credit by turns meets several
    sequences."""
    several = next((t for group in groups for t in group if len(t.segments) > 1), None)
    unfit = {
        "credit=turn": (algorithm.credit is Credit.turn, "algorithm.credit=trajectory"),
        "advantage_baseline=value": (algorithm.has_critic, "algorithm=gspo"),
        f"preference={algorithm.preference.value}": (algorithm.in_pairs, "algorithm=gspo"),
    }
    what, instead = next(((key, fix) for key, (holds, fix) in unfit.items() if holds), ("", ""))
    if several is not None and what:
        raise UserError(
            f"algorithm.{what}: on problem {several.problem.id} the agent's conversation has "
            f"{len(several.segments)} sequences, which this has no rule for; use {instead}"
        )
    return [Sample.of(t, trained=_is_trained(t, algorithm)) for group in groups for t in group]


def _is_trained(trajectory: Trajectory, algorithm: AlgorithmConfig) -> bool:
    masks_cut = algorithm.truncated_completions is Truncated.mask
    cut = masks_cut and trajectory.finish_reason is not FinishReason.stop
    return trajectory.excluded is None and not cut


def compared(groups: Sequence[Group]) -> list[Sample]:
    """The samples of groups of two answers, the better one first, as pairs."""
    return [
        replace(Sample.of(trajectory), advantages=[sign], pair=place)
        for place, group in enumerate(groups)
        for trajectory, sign in zip(group, (1.0, -1.0), strict=True)
    ]


def with_advantages(
    samples: Sequence[Sample],
    groups: Sequence[Group],
    algorithm: AlgorithmConfig,
    limit: int,
    reward_kl: Sequence[float] | None = None,
) -> list[Sample]:
    """`samples`, those of `groups`, with their advantages: one each, or with credit by turn one per token.
    `limit` is the length limit of a turn, in tokens, and `reward_kl` the KL estimate of each sample that
    `algorithm.beta` takes off its reward. Raises UserError where parts are to be normalized and a reward has
    none."""
    rewards, valid = _rewards(groups, algorithm)  # (P, G)
    rewards = rewards - algorithm.overlong_penalty * overlong(groups, algorithm, limit)
    if algorithm.in_pairs:
        return _in_pairs(samples, rewards, valid)
    if algorithm.advantage_parts is AdvantageParts.each:
        by_part = part_advantages(_parts(groups), valid, algorithm.advantage_std_floor).flatten().tolist()
        return [replace(s, advantages=[value]) for s, value in zip(samples, by_part, strict=True)]
    if reward_kl is not None:
        rewards = rewards - algorithm.beta * torch.tensor(reward_kl).reshape(rewards.shape)
    normalization = (
        algorithm.advantage_baseline,
        algorithm.advantage_scale,
        algorithm.advantage_std_floor,
    )
    if algorithm.credit is not Credit.turn:
        values = group_advantages(rewards, valid, *normalization).flatten().tolist()
        return [replace(s, advantages=[value]) for s, value in zip(samples, values, strict=True)]
    to_go, taken = _turns(groups, rewards, algorithm.discount)
    by_turn = turn_advantages(to_go, taken & valid[:, :, None], *normalization).flatten(end_dim=1).tolist()
    return [
        # a turn in which an environment failed has no reward of its own
        replace(s, advantages=[turns[i] if 0 <= i < len(turns) else 0.0 for i in s.trajectory.turn_ids])
        for s, turns in zip(samples, by_turn, strict=True)
    ]


def rewards_in_turns(groups: Sequence[Group], algorithm: AlgorithmConfig) -> list[list[float]]:
    """What each turn of each answer earned, group after group; they add up to the reward used in training.
    An answer without a reward has no turns."""
    rewards, _ = _rewards(groups, algorithm)
    return [
        _earned(trajectory, float(rewards[p, g]))
        for p, group in enumerate(groups)
        for g, trajectory in enumerate(group)
    ]


def _in_pairs(samples: Sequence[Sample], rewards: Tensor, valid: Tensor) -> list[Sample]:
    """The best answer of each group with advantage 1, the worst with -1; the others are not trained. An
    answer without a token is neither. rewards, valid (P, G)"""
    spoken = torch.tensor([sample.num_actions > 0 for sample in samples]).reshape(valid.shape)
    signs = best_and_worst(rewards, valid & spoken).flatten().tolist()
    size = rewards.shape[1]
    return [
        replace(s, advantages=[sign], pair=place // size)
        if sign
        else replace(s, advantages=[0.0], action_mask=[False] * s.length)
        for place, (s, sign) in enumerate(zip(samples, signs, strict=True))
    ]


def overlong(groups: Sequence[Group], algorithm: AlgorithmConfig, limit: int) -> Tensor:
    """The share of `algorithm.overlong_penalty` that each answer pays, by its longest turn. -> (P, G)"""
    lengths = torch.tensor([[_longest_turn(t) for t in group] for group in groups])
    if algorithm.overlong_buffer == 0:
        return torch.zeros(lengths.shape, dtype=torch.float64)
    return length_penalty(lengths, limit, algorithm.overlong_buffer)


def _longest_turn(trajectory: Trajectory) -> int:
    """Tokens that the policy sampled in its longest turn."""
    turns = zip(trajectory.turn_ids, trajectory.action_mask, strict=True)
    return max(Counter(turn for turn, sampled in turns if sampled).values(), default=0)


def _parts(groups: Sequence[Group]) -> Tensor:
    """The parts of rewards, without those of parts. -> (K, P, G)"""
    names = sorted({name for group in groups for t in group for name in t.components if "/" not in name})
    if len(names) < 2:
        raise UserError(
            f"algorithm.advantage_parts=each: the reward has {len(names)} parts; use a reward of several, or "
            "algorithm.advantage_parts=sum"
        )
    values = [[[t.components.get(name, 0.0) for t in group] for group in groups] for name in names]
    return torch.tensor(values, dtype=torch.float64)


def informative(groups: Sequence[Group], algorithm: AlgorithmConfig) -> list[bool]:
    """Which groups are informative: their rewards differ, or their rewards to go at some turn. The penalty of
    long answers does not count: dynamic sampling is about what is right (DAPO, Eq. 11). Of answers that are
    compared in pairs, those without a trained token do not count either."""
    rewards, valid = _rewards(groups, algorithm)
    if algorithm.in_pairs:
        valid &= torch.tensor([[t.num_actions > 0 and _is_trained(t, algorithm) for t in g] for g in groups])
    spread = has_spread(rewards, valid)
    if algorithm.credit is Credit.turn:
        to_go, taken = _turns(groups, rewards, algorithm.discount)
        for turn in range(to_go.shape[2]):
            spread |= has_spread(to_go[:, :, turn], taken[:, :, turn] & valid)
    return spread.tolist()


def hardly_differ(groups: Sequence[Group], algorithm: AlgorithmConfig) -> list[bool]:
    """Which informative groups have rewards that deviate by less than `SMALL_SPREAD`, also from every turn
    on: dividing by such a deviation makes large advantages of small differences."""
    rewards, valid = _rewards(groups, algorithm)
    spread = deviations(rewards, valid)
    if algorithm.credit is Credit.turn:
        to_go, taken = _turns(groups, rewards, algorithm.discount)
        for turn in range(to_go.shape[2]):
            spread = torch.maximum(spread, deviations(to_go[:, :, turn], taken[:, :, turn] & valid))
    small = (spread < SMALL_SPREAD).tolist()
    return [a and b for a, b in zip(small, informative(groups, algorithm), strict=True)]


def outlier_groups(groups: Sequence[Group], algorithm: AlgorithmConfig) -> list[bool]:
    """Which groups have one reward beside which the differences between the others vanish."""
    return flattened_by_one(*_rewards(groups, algorithm)).tolist()


def _rewards(groups: Sequence[Group], algorithm: AlgorithmConfig) -> tuple[Tensor, Tensor]:
    """Rewards as used in training, and which of them count. -> two (P, G)"""
    penalizes = algorithm.truncated_completions is Truncated.penalise
    penalty = algorithm.truncation_penalty if penalizes else 0.0
    rewards = [
        [(t.reward or 0.0) - penalty * (t.finish_reason is not FinishReason.stop) for t in group]
        for group in groups
    ]
    valid = [[t.reward is not None for t in group] for group in groups]
    return torch.tensor(rewards, dtype=torch.float64), torch.tensor(valid)


def _turns(groups: Sequence[Group], rewards: Tensor, discount: float) -> tuple[Tensor, Tensor]:
    """Reward to go from each turn on, and which turns were taken. rewards (P, G) -> two (P, G, K).

    The difference between the reward used in training and the sum of the turns (a penalty, the KL term)
    belongs to the last turn."""
    longest = max(1, max(t.num_turns for group in groups for t in group))
    earned = torch.zeros(*rewards.shape, longest, dtype=torch.float64)
    taken = torch.zeros(*rewards.shape, longest, dtype=torch.bool)
    for p, group in enumerate(groups):
        for g, trajectory in enumerate(group):
            turns = _earned(trajectory, float(rewards[p, g]))
            earned[p, g, : len(turns)] = torch.tensor(turns, dtype=torch.float64)
            taken[p, g, : len(turns)] = True
    return rewards_to_go(earned, discount), taken


def _earned(trajectory: Trajectory, reward: float) -> list[float]:
    """The reward of each turn; what `reward` has more than their sum belongs to the last."""
    if trajectory.num_turns == 0 or trajectory.reward is None:
        return []
    *before, last = trajectory.turn_rewards
    return [*before, last + (reward - sum(trajectory.turn_rewards))]
