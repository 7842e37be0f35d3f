"""Samples laid out for an update: minibatches, one optimizer step each, of padded micro-batches, one forward
pass each.

Shapes: B sequences of a micro-batch, T tokens, right-padded to its longest sequence; L layers with routers,
k experts of a token. Micro-batches are laid out once and serve every pass: numerical noise between two
layouts is as large as GSPO's clip band. What is computed are the rows of `PackedRows`, in which sequences
share their common beginnings; what is scored stays one row per sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from gspo_cli.policy.packed import PackedRows
from gspo_cli.policy.prefix_tree import Ids
from gspo_cli.types import Trajectory

Item = TypeVar("Item")

# minimum ratio of a micro-batch's shortest to its longest sequence: padding costs as much as tokens
SIMILAR = 0.75


@dataclass
class Sample:
    """A sequence to train on, or an answer of several: its tokens, which of them are trained, and one
    advantage, or one per token. `span` is where it stands in its trajectory, and `weight` its share of the
    mean over sequences. With a critic, `values` before the updates and `returns`, one per token;
    `pair` numbers the two that are compared, of which one has advantage 1 and the other -1."""

    token_ids: Sequence[int]
    action_mask: Sequence[bool]
    advantages: list[float]
    trajectory: Trajectory
    span: slice = field(default_factory=lambda: slice(None))
    weight: float = 1.0
    values: list[float] | None = None
    returns: list[float] | None = None
    pair: int = -1

    @classmethod
    def of(cls, trajectory: Trajectory, advantages: Sequence[float] = (0.0,), trained: bool = True) -> Sample:
        """The sample of a trajectory; where it is not `trained`, no token is."""
        mask = trajectory.action_mask if trained else [False] * len(trajectory.token_ids)
        return cls(trajectory.token_ids, mask, list(advantages), trajectory)

    @property
    def sequences(self) -> list[Sample]:
        """The sequences of an answer: itself, or its segments with trained tokens, which share its weight.

        Each has a ratio of its own, and the answer's advantage."""
        spans = self.trajectory.spans
        if len(spans) == 1 or self.span != slice(None):
            return [self]
        trained = [span for span in spans if any(self.action_mask[span])]
        per_token = len(self.advantages) > 1
        return [
            replace(
                self,
                token_ids=self.token_ids[span],
                action_mask=self.action_mask[span],
                advantages=self.advantages[span] if per_token else self.advantages,
                span=span,
                weight=1 / len(trained),
            )
            for span in trained
        ]

    @property
    def sampling_logprobs(self) -> Sequence[float]:
        """The log-probabilities that its tokens were sampled with."""
        return self.trajectory.sampling_logprobs[self.span]

    @property
    def length(self) -> int:
        """Number of tokens of the complete conversation."""
        return len(self.token_ids)

    @property
    def num_actions(self) -> int:
        """Number of trained tokens."""
        return sum(self.action_mask)

    @property
    def prompt(self) -> tuple[int, ...]:
        """The tokens before the first that the policy sampled."""
        turns = self.trajectory.turn_ids[self.span]
        return tuple(self.token_ids[: next((i for i, turn in enumerate(turns) if turn >= 0), len(turns))])

    @cached_property
    def ids(self) -> Ids:
        """The tokens as an array."""
        return np.asarray(self.token_ids, dtype=np.int64)

    @property
    def mean_advantage(self) -> float:
        """The advantage of the sample; the mean over the agent's turns if tokens have their own, over its
        tokens with a critic."""
        if len(self.advantages) == 1:
            return self.advantages[0]
        if self.values is not None:  # an estimate for each token
            trained = [a for a, m in zip(self.advantages, self.action_mask, strict=True) if m]
            return sum(trained) / max(1, len(trained))
        turns = self.trajectory.turn_ids
        by_turn = {turn: a for turn, a in zip(turns, self.advantages, strict=True) if turn >= 0}
        return sum(by_turn.values()) / max(1, len(by_turn))


@dataclass
class MicroBatch:
    """token_ids, action_mask, sampling_logprobs (B, T); advantages (B, 1) or (B, T); weights (B,) of the
    sequences in their mean (None: all 1); and what was scored (None: not needed): log-probabilities (B, T),
    and the experts that the old policy chose (B, T, L, k).
    `selected` (B, T) is where the policy gradient is taken, None for all trained tokens.
    `values` and `returns` (B, T) are a critic's. `probe` is a second scoring of the first minibatch: the
    difference between it and the update pass is noise. `rows` is what is computed, None for the plain
    sequences; `layout` holds the samples of each row, those of one tree."""

    layout: list[list[Sample]]
    token_ids: Tensor
    action_mask: Tensor
    sampling_logprobs: Tensor
    advantages: Tensor
    weights: Tensor | None = None
    rows: PackedRows | None = None
    old_logprobs: Tensor | None = None
    ref_logprobs: Tensor | None = None
    probe: Tensor | None = None
    selected: Tensor | None = None
    experts: Tensor | None = None
    values: Tensor | None = None
    returns: Tensor | None = None

    @property
    def samples(self) -> list[Sample]:
        """The samples, sequence by sequence."""
        return [sample for row in self.layout for sample in row]

    @property
    def computed(self) -> int:
        """Tokens that a pass computes, padding included."""
        return (self.token_ids if self.rows is None else self.rows.token_ids).numel()

    def sequences(self, chosen: slice, layout: list[list[Sample]]) -> MicroBatch:
        """The chosen sequences, whose `layout` is given, in the width that all had, as plain rows."""
        parts: dict[str, Any] = {}
        for name in BY_SEQUENCE:
            tensor = getattr(self, name)
            parts[name] = None if tensor is None else tensor[chosen]
        return replace(self, layout=layout, rows=None, **parts)


BY_SEQUENCE = tuple(each.name for each in fields(MicroBatch) if each.name not in ("layout", "rows"))


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


def split_by_tokens(samples: Sequence[Sample], budget: int) -> list[list[Sample]]:
    """Parts of similar length, longest first, each at most `budget` tokens with padding (or one sequence)."""
    return side_by_side(samples, [sample.length for sample in samples], budget)


def side_by_side(items: Sequence[Item], sizes: Sequence[int], budget: int) -> list[list[Item]]:
    """Parts of similar size, largest first, that take at most `budget` when all are as large as the largest
    of their part (or a single item)."""
    parts: list[list[Item]] = []
    largest = 0
    for size, place in sorted((-size, place) for place, size in enumerate(sizes)):  # equal ones keep order
        if not parts or largest * (len(parts[-1]) + 1) > budget or -size < SIMILAR * largest:
            parts.append([])
            largest = -size
        parts[-1].append(items[place])
    return parts


def collate(
    samples: Sequence[Sample], pad_id: int, device: torch.device, width: int | None = None
) -> MicroBatch:
    """Pad on the right, to `width` or the longest sequence. Advantages get a token axis only where a sample
    brings one per token. Without samples, one sequence without a trained token, for a rank to compute while
    others have work."""
    if not samples:
        return MicroBatch(
            layout=[],
            token_ids=torch.full((1, 2), pad_id, device=device),
            action_mask=torch.zeros(1, 2, dtype=torch.bool, device=device),
            sampling_logprobs=torch.zeros(1, 2, device=device),
            advantages=torch.zeros(1, 1, device=device),
            values=torch.zeros(1, 2, device=device),
            returns=torch.zeros(1, 2, device=device),
        )
    length = width or max(sample.length for sample in samples)
    per_token = any(len(sample.advantages) > 1 for sample in samples)
    advantages = [
        s.advantages * s.length if per_token and len(s.advantages) == 1 else s.advantages for s in samples
    ]
    sampled = [sample.sampling_logprobs for sample in samples]
    weights = [sample.weight for sample in samples]

    def per_position(rows: list[list[float] | None]) -> Tensor | None:
        known = [row for row in rows if row is not None]
        return padded(known, length, 0.0, torch.float32, device) if len(known) == len(rows) else None

    return MicroBatch(
        layout=[[sample] for sample in samples],
        token_ids=padded([s.token_ids for s in samples], length, pad_id, torch.long, device),
        action_mask=padded([s.action_mask for s in samples], length, False, torch.bool, device),
        sampling_logprobs=padded(sampled, length, 0.0, torch.float32, device),
        advantages=padded(advantages, length if per_token else 1, 0.0, torch.float32, device),
        weights=None if set(weights) == {1.0} else torch.tensor(weights, device=device),
        values=per_position([s.values for s in samples]),
        returns=per_position([s.returns for s in samples]),
    )


def padded(
    rows: Sequence[Sequence[float]], width: int, filler: float, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Rows of uneven length, filled up on the right. -> (rows, width)"""
    filled = [[*row, *[filler] * (width - len(row))] for row in rows]
    return torch.tensor(filled, dtype=dtype, device=device)
