"""From ragged trajectories to padded tensors.

Shapes: B sequences, T tokens, right-padded to the longest sequence of the micro-batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gspo_cli.types import Trajectory

SIMILAR = 0.75  # a micro-batch's shortest sequence over its longest, at least: padding costs what tokens cost


@dataclass
class Sample:
    """A trajectory to train on. `advantages` has one number, or one per token."""

    trajectory: Trajectory
    advantages: list[float]

    @property
    def length(self) -> int:
        """Tokens in the whole conversation."""
        return len(self.trajectory.token_ids)

    @property
    def mean_advantage(self) -> float:
        """Mean over the agent's turns where each token has its own."""
        if len(self.advantages) == 1:
            return self.advantages[0]
        turns = self.trajectory.turn_ids
        by_turn = {turn: a for turn, a in zip(turns, self.advantages, strict=True) if turn >= 0}
        return sum(by_turn.values()) / max(1, len(by_turn))


@dataclass(frozen=True)
class Batch:
    """A micro-batch: token_ids, action_mask, sampling_logprobs (B, T); advantages (B, 1) or (B, T)."""

    token_ids: Tensor
    action_mask: Tensor
    sampling_logprobs: Tensor
    advantages: Tensor

    def rows(self, part: slice) -> Batch:
        """Some of its sequences, as wide as all."""
        return Batch(
            self.token_ids[part], self.action_mask[part], self.sampling_logprobs[part], self.advantages[part]
        )


def idle(pad_id: int, device: torch.device) -> Batch:
    """A batch of one sequence without a trained token: what a rank computes while others have work."""
    return Batch(
        token_ids=torch.full((1, 2), pad_id, device=device),
        action_mask=torch.zeros(1, 2, dtype=torch.bool, device=device),
        sampling_logprobs=torch.zeros(1, 2, device=device),
        advantages=torch.zeros(1, 1, device=device),
    )


def collate(samples: Sequence[Sample], pad_id: int, device: torch.device) -> Batch:
    """Pad on the right. Advantages get a token axis only where a sample brings one per token."""
    length = max(sample.length for sample in samples)
    trajectories = [sample.trajectory for sample in samples]
    per_token = any(len(sample.advantages) > 1 for sample in samples)
    advantages = [
        s.advantages * s.length if per_token and len(s.advantages) == 1 else s.advantages for s in samples
    ]
    width = length if per_token else 1
    return Batch(
        token_ids=_padded([t.token_ids for t in trajectories], length, pad_id, torch.long, device),
        action_mask=_padded([t.action_mask for t in trajectories], length, False, torch.bool, device),
        sampling_logprobs=_padded(
            [t.sampling_logprobs for t in trajectories], length, 0.0, torch.float32, device
        ),
        advantages=_padded(advantages, width, 0.0, torch.float32, device),
    )


def split_by_tokens(samples: Sequence[Sample], budget: int) -> list[list[Sample]]:
    """Micro-batches of similar length, longest first, each at most `budget` tokens with padding (or one
    sequence)."""
    batches: list[list[Sample]] = []
    for sample in sorted(samples, key=lambda s: -s.length):  # stable: equal lengths keep their order
        longest = batches[-1][0].length if batches else 0
        if not batches or longest * (len(batches[-1]) + 1) > budget or sample.length < SIMILAR * longest:
            batches.append([])
        batches[-1].append(sample)
    return batches


def _padded(
    rows: Sequence[Sequence[float]], width: int, filler: float, dtype: torch.dtype, device: torch.device
) -> Tensor:
    padded = [[*row, *[filler] * (width - len(row))] for row in rows]
    return torch.tensor(padded, dtype=dtype, device=device)
