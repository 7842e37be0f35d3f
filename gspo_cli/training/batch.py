"""Samples laid out for an update: minibatches, one optimizer step each, of padded micro-batches, one forward
pass each.

Shapes: B sequences of a micro-batch, T tokens, right-padded to its longest sequence; L layers with routers,
k experts of a token. Micro-batches are laid out once and serve every pass: numerical noise between two
layouts is as large as GSPO's clip band."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gspo_cli.algorithm.objective import loss_denominator
from gspo_cli.config.schema import RunConfig
from gspo_cli.training.process_group import ProcessGroup
from gspo_cli.types import Trajectory

# minimum ratio of a micro-batch's shortest to its longest sequence: padding costs as much as tokens
SIMILAR = 0.75


@dataclass
class Sample:
    """A sequence to train on: its tokens, which of them are trained, and one advantage, or one per token."""

    token_ids: Sequence[int]
    action_mask: Sequence[bool]
    advantages: list[float]
    trajectory: Trajectory

    @classmethod
    def of(cls, trajectory: Trajectory, advantages: Sequence[float] = (0.0,), trained: bool = True) -> Sample:
        """The sample of a trajectory; where it is not `trained`, no token is."""
        mask = trajectory.action_mask if trained else [False] * len(trajectory.token_ids)
        return cls(trajectory.token_ids, mask, list(advantages), trajectory)

    @property
    def length(self) -> int:
        """Number of tokens of the complete conversation."""
        return len(self.token_ids)

    @property
    def num_actions(self) -> int:
        """Number of trained tokens."""
        return sum(self.action_mask)

    @property
    def mean_advantage(self) -> float:
        """The advantage of the sample; the mean over the agent's turns if tokens have their own."""
        if len(self.advantages) == 1:
            return self.advantages[0]
        turns = self.trajectory.turn_ids
        by_turn = {turn: a for turn, a in zip(turns, self.advantages, strict=True) if turn >= 0}
        return sum(by_turn.values()) / max(1, len(by_turn))


@dataclass
class MicroBatch:
    """token_ids, action_mask, sampling_logprobs (B, T); advantages (B, 1) or (B, T); and what was scored
    (None: not needed): log-probabilities (B, T), and the experts that the old policy chose (B, T, L, k).
    `probe` is a second scoring of the first minibatch: the difference between it and the update pass is
    noise."""

    token_ids: Tensor
    action_mask: Tensor
    sampling_logprobs: Tensor
    advantages: Tensor
    old_logprobs: Tensor | None = None
    ref_logprobs: Tensor | None = None
    probe: Tensor | None = None
    experts: Tensor | None = None

    def split(self, budget: int) -> list[MicroBatch]:
        """The micro-batch split in halves until each part has at most `budget` tokens or one sequence. All
        parts keep the original width, so that the scores stay valid."""
        rows = len(self.token_ids)
        if self.token_ids.numel() <= budget or rows == 1:
            return [self]
        halves = (self._rows(slice(rows // 2)), self._rows(slice(rows // 2, None)))
        return [part for half in halves for part in half.split(budget)]

    def _rows(self, part: slice) -> MicroBatch:
        tensors: dict[str, Any] = {}
        for field in fields(self):
            tensor = getattr(self, field.name)
            tensors[field.name] = None if tensor is None else tensor[part]
        return MicroBatch(**tensors)


@dataclass
class MiniBatch:
    """The data of one optimizer step: this rank's micro-batches, the same number on every rank.
    `denominator`, `tokens` and `sequences` count the trained answers of all ranks, including those that need
    no compute because their advantage is 0; so do `median`, of their trained tokens, and `short_tokens` and
    `short_sequences`, of those that are at most as long. `computed` counts those that need compute."""

    micro_batches: list[MicroBatch]
    denominator: float
    tokens: int
    sequences: int
    computed: int
    median: float
    short_tokens: int
    short_sequences: int


@dataclass
class Collator:
    """Lays out samples for the ranks of a run. A micro-batch holds at most `budget` tokens, padding included,
    or one sequence. `collective`: every rank takes part in each step, even without work."""

    config: RunConfig
    pad_id: int
    device: torch.device
    ranks: ProcessGroup
    collective: bool
    budget: int

    def minibatches(self, samples: Sequence[Sample], order: np.random.Generator) -> list[MiniBatch]:
        """`updates_per_rollout` shuffled, equal parts. A group may be split: its advantages are ready."""
        shuffled = [samples[i] for i in order.permutation(len(samples))]
        parts = np.array_split(np.arange(len(shuffled)), self.config.training.updates_per_rollout)
        return [self.minibatch([shuffled[i] for i in part]) for part in parts]

    def minibatch(self, samples: Sequence[Sample]) -> MiniBatch:
        """Count the denominator before anything is left out, then lay out the samples that need compute."""
        algorithm = self.config.algorithm
        counts = [sample.num_actions for sample in samples]
        denominator = loss_denominator(
            counts, algorithm.aggregation, self.config.rollout.max_completion_length
        )
        needed = [
            s
            for s, n in zip(samples, counts, strict=True)
            if n > 0 and (algorithm.kl_in_loss or any(s.advantages))
        ]
        trained = [n for n in counts if n > 0]
        median = statistics.median(trained) if trained else 0.0
        short = [n for n in trained if n <= median]
        return MiniBatch(
            [micro_batch for _, micro_batch in self.micro_batches(needed)],
            denominator,
            sum(trained),
            len(trained),
            len(needed),
            median,
            sum(short),
            len(short),
        )

    def micro_batches(self, samples: Sequence[Sample]) -> list[tuple[list[Sample], MicroBatch]]:
        """This rank's micro-batches with their samples. All ranks have the same number, some of them empty at
        the end, so that collective operations stay in step."""
        longest_first = sorted(samples, key=lambda s: -s.length)  # so that ranks get equal numbers of tokens
        size = self.ranks.size
        layouts = [split_by_tokens(longest_first[rank::size], self.budget) for rank in range(size)]
        count = max(int(self.collective), *(len(layout) for layout in layouts))
        mine = layouts[self.ranks.rank]
        mine += [[] for _ in range(count - len(mine))]
        return [(part, collate(part, self.pad_id, self.device)) for part in mine]


def split_by_tokens(samples: Sequence[Sample], budget: int) -> list[list[Sample]]:
    """Parts of similar length, longest first, each at most `budget` tokens with padding (or one sequence)."""
    parts: list[list[Sample]] = []
    for sample in sorted(samples, key=lambda s: -s.length):  # stable: equal lengths keep their order
        longest = parts[-1][0].length if parts else 0
        if not parts or longest * (len(parts[-1]) + 1) > budget or sample.length < SIMILAR * longest:
            parts.append([])
        parts[-1].append(sample)
    return parts


def collate(samples: Sequence[Sample], pad_id: int, device: torch.device) -> MicroBatch:
    """Pad on the right. Advantages get a token axis only where a sample brings one per token. Without
    samples, one sequence without a trained token, for a rank to compute while others have work."""
    if not samples:
        return MicroBatch(
            token_ids=torch.full((1, 2), pad_id, device=device),
            action_mask=torch.zeros(1, 2, dtype=torch.bool, device=device),
            sampling_logprobs=torch.zeros(1, 2, device=device),
            advantages=torch.zeros(1, 1, device=device),
        )
    length = max(sample.length for sample in samples)
    per_token = any(len(sample.advantages) > 1 for sample in samples)
    advantages = [
        s.advantages * s.length if per_token and len(s.advantages) == 1 else s.advantages for s in samples
    ]
    sampled = [sample.trajectory.sampling_logprobs for sample in samples]
    return MicroBatch(
        token_ids=_padded([s.token_ids for s in samples], length, pad_id, torch.long, device),
        action_mask=_padded([s.action_mask for s in samples], length, False, torch.bool, device),
        sampling_logprobs=_padded(sampled, length, 0.0, torch.float32, device),
        advantages=_padded(advantages, length if per_token else 1, 0.0, torch.float32, device),
    )


def _padded(
    rows: Sequence[Sequence[float]], width: int, filler: float, dtype: torch.dtype, device: torch.device
) -> Tensor:
    padded = [[*row, *[filler] * (width - len(row))] for row in rows]
    return torch.tensor(padded, dtype=dtype, device=device)
