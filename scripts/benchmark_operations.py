"""The useful operations of scoring and of an update, and the rate at which this machine multiplies matrices.

Operations are useful if no layout of the sequences can do without them: a token that sequences share counts
once, padding and masked pairs of tokens do not count. A multiplication and an addition are two operations.

For U unique tokens, A pairs of a token and what it attends to (itself and each of its ancestors), and N
predictors (tokens after which a trained one follows):

    forward          2 M U  +  4 L Q A  +  2 V H N
    backward         4 M U  +  8 L Q A  +  4 V H N     all weights trained
    backward, LoRA   2 M U  +  8 L Q A  +  2 V H N  +  2 R U

M parameters in the matrix products of a token (its active experts and adapters included, embeddings not), R
those of them in adapters, L layers, Q = heads x head_dim, V vocabulary, H hidden size. Backward needs the
gradient of each product's inputs and, where it is trained, of its weight; a frozen weight has none.

Left out: norms, activations, softmax, rotary positions, and all that is computed again in backward (logits,
attention scores, gradient checkpointing). The gradient of the first layer's inputs is counted under LoRA too,
where nothing needs it. Adapters on experts are not supported."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from gspo_cli.policy.dimensions import Dimensions
from gspo_cli.policy.prefix_tree import plant

SIZE = 2048  # rows and columns of the matrices that are multiplied: 16 MiB each, beyond a core's cache

TokensAndMask = tuple[Sequence[int], Sequence[bool]]  # token ids, and which of them are trained


@dataclass(frozen=True)
class Work:
    """What is asked of a pass: unique tokens, pairs of a token and what it attends to, and predictors."""

    tokens: int
    pairs: int
    predictors: int

    @classmethod
    def of(cls, sequences: Sequence[TokensAndMask]) -> Work:
        """The work of sequences that are computed together, each given as token ids and action mask."""
        ordered = sorted(sequences, key=lambda sequence: list(sequence[0]))
        tree = plant([np.asarray(ids, dtype=np.int64) for ids, _ in ordered])
        trained = [np.flatnonzero(np.asarray(mask)[1:]) for _, mask in ordered]
        predictors = [path[before] for path, before in zip(tree.paths, trained, strict=True)]
        return cls(
            tokens=len(tree.token_ids),
            pairs=int((tree.depths + 1).sum()),
            predictors=len(np.unique(np.concatenate(predictors))),
        )


def forward_operations(model: Dimensions, work: Work) -> int:
    """Useful operations of a forward pass, as in scoring."""
    products, attention, head = _forward(model, work)
    return products + attention + head


def update_operations(model: Dimensions, work: Work) -> int:
    """Useful operations of forward and backward."""
    products, attention, head = _forward(model, work)
    if not _has_adapter(model):
        return 3 * (products + attention + head)
    return 2 * products + 3 * attention + 2 * head + 2 * model.trained * work.tokens


def operations_of_iteration(
    model: Dimensions, groups: Sequence[Sequence[TokensAndMask]], updates: int
) -> dict[str, float]:
    """Useful operations by stage of an iteration with `updates` minibatches of whole groups. Scoring leaves
    out the first minibatch, whose own log-probabilities are the old ones."""
    work = [Work.of(group) for group in groups]
    scored = (updates - 1) / updates
    return {
        "score_operations": scored * sum(forward_operations(model, part) for part in work),
        "update_operations": float(sum(update_operations(model, part) for part in work)),
    }


def matrix_rate(size: int = SIZE, repeats: int = 5) -> float:
    """Operations per second in the product of two square fp32 matrices, with as many threads as torch has:
    the median of `repeats`."""
    one, other = torch.rand(2, size, size)
    result = one @ other
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        torch.mm(one, other, out=result)
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / statistics.median(seconds)


def _forward(model: Dimensions, work: Work) -> tuple[int, int, int]:
    """Operations of layers' matrix products, of attention, and of the output layer."""
    attention = 2 * model.hidden * (model.queries + model.keys)  # queries and output, keys and values
    feed_forward = (2 + model.gated) * model.hidden * model.inner
    if model.experts:
        feed_forward = model.active * feed_forward + model.hidden * model.experts  # the router
    parameters = model.layers * (attention + feed_forward) + _has_adapter(model) * model.trained
    return (
        2 * parameters * work.tokens,
        4 * model.layers * model.queries * work.pairs,
        2 * model.vocabulary * model.hidden * work.predictors,
    )


def _has_adapter(model: Dimensions) -> bool:
    return model.adapter_ranks > 0
