"""Rows of prefix trees, as a policy computes them: each token that sequences share is a single node.

Shapes: R rows, L nodes of the longest row; B sequences, T tokens; M trained tokens of all sequences, N of
them different: two that follow the same tokens and are equal are one node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gspo_cli.policy.prefix_tree import Ids, plant

LONGEST_ROW = 5792  # nodes of a tree with several sequences: its mask in fp32 takes 128 MiB


@dataclass(frozen=True)
class PackedRows:
    """token_ids, positions, ends (R, L), nodes in depth-first order: node i sees itself and the nodes j < i
    with i < ends[j], which are its ancestors. nodes (B, T) is where each token of a sequence is (its last one
    after the end), as a flat index into (R, L). predictors, targets (N,): the flat node that predicts a
    trained token, and its id; places (M,): which of them each trained token is, sequence by sequence."""

    token_ids: Tensor
    positions: Tensor
    ends: Tensor
    nodes: Tensor
    predictors: Tensor
    targets: Tensor
    places: Tensor

    def attention_bias(self, dtype: torch.dtype) -> Tensor:
        """What is added to attention scores: 0 where a node sees another, -inf elsewhere. -> (R, 1, L, L)

        In the dtype of the queries, or sdpa makes a copy in each layer, which autograd keeps."""
        order = torch.arange(self.ends.shape[1], device=self.ends.device)
        seen = (order <= order[:, None]) & (order[:, None] < self.ends[:, None, :])  # (R, L, L)
        bias = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
        return bias.masked_fill_(~seen, -torch.inf)[:, None]

    @classmethod
    def of(
        cls,
        rows: Sequence[Sequence[Ids]],
        masks: Sequence[NDArray[np.bool_]],
        width: int,
        pad_id: int,
        device: torch.device,
    ) -> PackedRows:
        """The trees of `rows` of sorted sequences, padded on the right with nodes that see themselves only.
        `masks` of trained tokens and the result's `nodes` are by sequence, row after row, `width` is T."""
        trees = [plant(row) for row in rows]
        size = max(len(tree.token_ids) for tree in trees)
        token_ids = np.full((len(trees), size), pad_id)
        positions = np.zeros((len(trees), size), dtype=np.int64)
        ends = np.tile(np.arange(1, size + 1), (len(trees), 1))
        nodes = np.zeros((len(masks), width), dtype=np.int64)
        before, after = [], []  # of each trained token: the node that predicts it, and its own
        sequences = iter(range(len(masks)))
        for row, tree in enumerate(trees):
            count = len(tree.token_ids)
            token_ids[row, :count], positions[row, :count] = tree.token_ids, tree.depths
            ends[row, :count] = tree.ends
            for path in tree.paths:
                sequence = next(sequences)
                flat = path + row * size
                nodes[sequence] = flat[-1]
                nodes[sequence, : len(path)] = flat
                trained = np.flatnonzero(masks[sequence][1:]) + 1  # nothing precedes the first token
                before.append(flat[trained - 1])
                after.append(flat[trained])
        own, first, places = np.unique(np.concatenate(after), return_index=True, return_inverse=True)
        arrays = (
            token_ids, positions, ends, nodes,
            np.concatenate(before)[first], token_ids.reshape(-1)[own], places,
        )  # fmt: skip
        return cls(*(torch.from_numpy(array).to(device) for array in arrays))
