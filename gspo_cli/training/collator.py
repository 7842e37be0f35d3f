"""Laying out samples for the ranks of a run: minibatches, dealt to ranks, cut into micro-batches, in which
common beginnings are computed once."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from gspo_cli.algorithm.objective import loss_denominator
from gspo_cli.config.choices import MinibatchBy
from gspo_cli.config.schema import RunConfig
from gspo_cli.policy.packed import LONGEST_ROW, PackedRows
from gspo_cli.policy.prefix_tree import cut, unique_tokens
from gspo_cli.training.batch import MicroBatch, MiniBatch, Sample, collate, side_by_side, split_by_tokens
from gspo_cli.training.process_group import ProcessGroup
from gspo_cli.training.sharing import ALONE, Sharing


@dataclass
class Collator:
    """Lays out samples for the ranks of a run. A micro-batch computes at most `budget` tokens, padding
    included, or one sequence. `collective`: every rank takes part in each step, even without work. `sharing`:
    whether common beginnings are computed once."""

    config: RunConfig
    pad_id: int
    device: torch.device
    ranks: ProcessGroup
    collective: bool
    budget: int
    sharing: Sharing = ALONE

    def minibatches(self, samples: Sequence[Sample], order: np.random.Generator) -> list[MiniBatch]:
        """`updates_per_rollout` shuffled, equal parts: of whole groups, or by answer, where a group may be
        split: its advantages are ready."""
        training = self.config.training
        whole = training.minibatch_by is MinibatchBy.group or self.config.algorithm.in_pairs
        size = training.num_generations if whole else 1
        shuffled = order.permutation(len(samples) // size)
        parts = np.array_split(shuffled, training.updates_per_rollout)
        return [self.minibatch([samples[g * size + i] for g in part for i in range(size)]) for part in parts]

    def minibatch(self, samples: Sequence[Sample]) -> MiniBatch:
        """Count the denominator before anything is left out, then lay out the samples that need compute."""
        algorithm = self.config.algorithm
        counts = [sample.num_actions for sample in samples]
        denominator = loss_denominator(
            counts, algorithm.aggregation, self.config.rollout.max_completion_length
        )
        always = algorithm.kl_in_loss or algorithm.has_critic or algorithm.pays_entropy
        needed = [s for s, n in zip(samples, counts, strict=True) if n > 0 and (always or any(s.advantages))]
        trained = [n for n in counts if n > 0]
        lengths = [piece.num_actions for sample in samples for piece in sample.sequences]
        lengths = [n for n in lengths if n > 0]
        median = statistics.median(lengths) if lengths else 0.0
        short = [n for n in lengths if n <= median]
        return MiniBatch(
            self.micro_batches(needed),
            denominator,
            sum(trained),
            len(trained),
            len(needed),
            median,
            sum(short),
            len(short),
        )

    def micro_batches(self, samples: Sequence[Sample]) -> list[MicroBatch]:
        """This rank's micro-batches, of the answers' sequences. All ranks have the same number, some of them
        empty at the end, so that collective operations stay in step."""
        to_ranks = deal if self.sharing.on else _dealt_by_length
        dealt = to_ranks([piece for sample in samples for piece in sample.sequences], self.ranks.size)
        layouts = [self._layout(part) for part in dealt]
        count = max(int(self.collective), *(len(layout) for layout in layouts))
        mine = layouts[self.ranks.rank]
        mine += [[] for _ in range(count - len(mine))]
        return [self._collated(rows) for rows in mine]

    def halved(self, micro: MicroBatch) -> list[MicroBatch]:
        """A micro-batch, which its scores stay with, in parts that compute at most `budget` tokens each, or
        one sequence."""
        layout = micro.layout
        if micro.computed <= self.budget or len(micro.samples) < 2:
            return [micro]
        if len(layout) > 1:
            first, second = layout[: len(layout) // 2], layout[len(layout) // 2 :]
        else:
            first, second = [layout[0][: len(layout[0]) // 2]], [layout[0][len(layout[0]) // 2 :]]
        place = sum(map(len, first))
        parts = [micro.sequences(slice(place), first), micro.sequences(slice(place, None), second)]
        return [smaller for part in parts for smaller in self.halved(self._with_rows(part))]

    def _layout(self, samples: Sequence[Sample]) -> list[list[list[Sample]]]:
        """The rows of each micro-batch, and the samples of each row."""
        if not self.sharing.on:
            return [[[sample] for sample in part] for part in split_by_tokens(samples, self.budget)]
        ordered = _sorted(samples)
        longest = min(self.budget, LONGEST_ROW)
        trees = [ordered[part] for part in cut([s.ids for s in ordered], longest, self._cost)]
        # a single sequence may be longer: beside a tree its row would have a mask
        long = [tree for tree in trees if _computed(tree) > LONGEST_ROW]
        rest = [tree for tree in trees if _computed(tree) <= LONGEST_ROW]
        parts = ((part, [_computed(tree) for tree in part]) for part in (long, rest))
        return [micro for part, sizes in parts for micro in side_by_side(part, sizes, self.budget)]

    def _cost(self, tokens: int, alone: bool) -> float:
        """Relative time of a row: attention sees all tokens of its row, those before it if it is a
        sequence alone."""
        return tokens * (1 + self.sharing.attention_share * tokens * (0.5 if alone else 1))

    def _collated(self, rows: Sequence[Sequence[Sample]]) -> MicroBatch:
        micro = collate([sample for row in rows for sample in row], self.pad_id, self.device)
        micro.layout = [list(row) for row in rows]
        return self._with_rows(micro)

    def _with_rows(self, micro: MicroBatch) -> MicroBatch:
        """Packs sequences that share a tree."""
        if any(len(row) > 1 for row in micro.layout):
            ids = [[sample.ids for sample in row] for row in micro.layout]
            masks = [np.asarray(sample.action_mask) for sample in micro.samples]
            micro.rows = PackedRows.of(ids, masks, micro.token_ids.shape[1], self.pad_id, self.device)
        return micro


def deal(samples: Sequence[Sample], ranks: int) -> list[list[Sample]]:
    """Whole groups (samples of one prompt) to each of `ranks`, balanced by the tokens that are computed; a
    group is split only where there are fewer than ranks."""
    if ranks == 1:
        return [list(samples)]
    groups: dict[tuple[int, ...], list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.prompt, []).append(sample)
    pieces = [(_computed(_sorted(group)), group) for group in groups.values()]
    while pieces and len(pieces) < ranks:
        pieces.sort(key=lambda piece: -piece[0])
        _, largest = pieces[0]
        if len(largest) == 1:
            break
        ordered, middle = _sorted(largest), len(largest) // 2
        halves = (ordered[:middle], ordered[middle:])
        pieces[:1] = [(_computed(half), half) for half in halves]
    dealt: list[list[Sample]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for tokens, piece in sorted(pieces, key=lambda piece: -piece[0]):  # stable
        least = loads.index(min(loads))
        dealt[least] += piece
        loads[least] += tokens
    return dealt


def _dealt_by_length(samples: Sequence[Sample], ranks: int) -> list[list[Sample]]:
    """Equal numbers of tokens for each rank."""
    longest_first = sorted(samples, key=lambda s: -s.length)
    return [longest_first[rank::ranks] for rank in range(ranks)]


def _sorted(samples: Sequence[Sample]) -> list[Sample]:
    return sorted(samples, key=lambda sample: list(sample.token_ids))


def _computed(ordered: Sequence[Sample]) -> int:
    """Nodes of the tree of sorted samples."""
    return unique_tokens([sample.ids for sample in ordered])
