"""Pairs of answers: the advantages that make a minibatch's gradient that of a preference loss."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gspo_cli.algorithm.objective import token_log_ratio
from gspo_cli.algorithm.preference import PreferenceStats, pair_losses
from gspo_cli.config.choices import Aggregation
from gspo_cli.config.schema import AlgorithmConfig
from gspo_cli.training.batch import MicroBatch, MiniBatch
from gspo_cli.training.process_group import ProcessGroup


@torch.no_grad()
def weigh_pairs(
    minibatch: MiniBatch,
    score: Callable[[MicroBatch], Tensor],
    ranks: ProcessGroup,
    algorithm: AlgorithmConfig,
) -> PreferenceStats:
    """Set the advantages of a minibatch from its pairs at the present weights, under which `score` gives the
    log-probabilities (B, T) of a micro-batch. The two answers of a pair may lie on different ranks; the
    statistics are on the first one."""
    mine: list[tuple[int, float, float]] = []
    for micro in minibatch.micro_batches:
        gained = _gained(score(micro), micro, algorithm).tolist()
        rows = zip(micro.samples, gained, strict=False)
        mine += [(sample.pair, sample.advantages[0], value) for sample, value in rows]
    everyone = ranks.gather(mine)
    chosen = {pair: value for pair, sign, value in everyone if sign > 0}
    rejected = {pair: value for pair, sign, value in everyone if sign < 0}
    pairs = sorted(chosen)
    best, worst = (torch.tensor([of[p] for p in pairs], dtype=torch.float64) for of in (chosen, rejected))
    losses, slopes = pair_losses(best - worst, algorithm.preference, algorithm.beta)
    slope = dict(zip(pairs, slopes.tolist(), strict=True))
    for micro in minibatch.micro_batches:
        for row, sample in enumerate(micro.samples):
            # the step divides by answers, of which a pair has two
            micro.advantages[row] = -2 * slope[sample.pair] * sample.advantages[0]
    if not ranks.is_first:
        return PreferenceStats()
    correct = (best > worst).sum().item()
    gains = (algorithm.beta * best.sum().item(), algorithm.beta * worst.sum().item())
    return PreferenceStats(len(pairs), losses.sum().item(), correct, *gains)


def _gained(logprobs: Tensor, micro: MicroBatch, algorithm: AlgorithmConfig) -> Tensor:
    """How much more likely than under the reference each answer is, in nats. (B, T) -> (B,) in double"""
    assert micro.ref_logprobs is not None
    gained = token_log_ratio(logprobs.double(), micro.ref_logprobs, micro.action_mask).sum(dim=1)
    if algorithm.aggregation is Aggregation.sequence_mean:
        gained = gained / micro.action_mask.sum(dim=1).clamp(min=1)
    return gained
