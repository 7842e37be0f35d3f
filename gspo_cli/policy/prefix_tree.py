"""Prefix trees: sequences that begin alike are computed once up to where they part.

Answers of a group share system prompt, tools and question, often their first turns, and groups share the
system prompt. Sorted by their token ids, each sequence shares its longest known beginning with the one before
it, so that a tree is a run of neighbors, its nodes come in depth-first order, and a tree that is too large is
cut between neighbors. Pure functions; positions, masks and log-probabilities are those of the plain
sequences."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Tree:
    """Nodes in depth-first order: their token ids, depths, and `ends`, where the subtree of each ends (the
    first node after it). `paths` holds the nodes of each sequence, in its order."""

    token_ids: Ids
    depths: Ids
    ends: Ids
    paths: list[Ids]


def common_prefix(one: Ids, other: Ids) -> int:
    """Number of tokens with which both begin."""
    length = min(len(one), len(other))
    differs = np.flatnonzero(one[:length] != other[:length])
    return int(differs[0]) if len(differs) else length


def plant(sequences: Sequence[Ids]) -> Tree:
    """The tree of sorted `sequences`."""
    before: Ids = np.empty(0, dtype=np.int64)
    path = before
    parts, depths, paths = [], [], []
    closed: list[tuple[Ids, int]] = []  # nodes whose subtree ends, and where
    size = 0
    for sequence in sequences:
        shared = common_prefix(before, sequence)
        closed.append((path[shared:], size))
        added = len(sequence) - shared
        path = np.concatenate([path[:shared], np.arange(size, size + added)])
        parts.append(sequence[shared:])
        depths.append(np.arange(shared, len(sequence)))
        paths.append(path)
        before, size = sequence, size + added
    ends = np.full(size, size)
    for nodes, end in closed:
        ends[nodes] = end
    return Tree(np.concatenate(parts), np.concatenate(depths), ends, paths)


def cut(sequences: Sequence[Ids], budget: int, cost: Callable[[int, bool], float]) -> list[slice]:
    """Sorted `sequences` cut into trees of at most `budget` nodes (one sequence always fits), where the sum
    of their costs is least. `cost` is that of a number of nodes, and of whether they are a single
    sequence."""
    lengths = [len(sequence) for sequence in sequences]
    shared = [0, *(common_prefix(a, b) for a, b in pairwise(sequences))]
    best, start = [0.0] + [math.inf] * len(lengths), [0] * (len(lengths) + 1)
    for end in range(1, len(lengths) + 1):
        nodes = 0
        for first in reversed(range(end)):
            nodes += lengths[first] - (shared[first + 1] if first + 1 < end else 0)
            if nodes > budget and first + 1 < end:
                break
            found = best[first] + cost(nodes, first + 1 == end)
            if found < best[end]:
                best[end], start[end] = found, first
    cuts, end = [], len(lengths)
    while end:
        cuts.append(slice(start[end], end))
        end = start[end]
    return cuts[::-1]


def unique_tokens(sequences: Sequence[Ids]) -> int:
    """Nodes of the tree of sorted `sequences`."""
    shared = sum(common_prefix(a, b) for a, b in pairwise(sequences))
    return sum(map(len, sequences)) - shared
