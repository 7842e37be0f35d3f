"""The statistics of an iteration: accumulators over micro-batches and ranks, and the line of metrics.jsonl,
under the names that TRL and verl use."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch

from gspo_cli.algorithm.accumulators import Accumulator, maximum
from gspo_cli.algorithm.actor_critic import ValueStats
from gspo_cli.algorithm.advantages import ZERO_RANGE
from gspo_cli.algorithm.calibration import Candidates
from gspo_cli.algorithm.correction import EngineStats
from gspo_cli.algorithm.counterfactual import CounterfactualStats, LengthStats
from gspo_cli.algorithm.objective import LossStats
from gspo_cli.algorithm.preference import PreferenceStats
from gspo_cli.policy.routing import RoutingStats
from gspo_cli.training.batch import MiniBatch
from gspo_cli.types import FinishReason, Trajectory

GRAM = 4  # tokens: shorter ones repeat in any text


@dataclass
class Sums(Accumulator):
    """Sums over micro-batches. `last_routing` is `routing` of the last minibatch alone, `last_moved` and
    `last_tokens` what its `stats` have of these; `counterfactuals` are
    by name, `short` and `long` the halves of each minibatch's answers by length, `candidates` what a
    calibrated clip chooses its band from, a part for each micro-batch. `off_policy` counts the answers that
    `off_policy_mask` left out."""

    stats: LossStats = field(default_factory=LossStats)
    routing: RoutingStats = field(default_factory=RoutingStats)
    last_routing: RoutingStats = field(default_factory=RoutingStats)
    entropy_sum: float = 0.0
    entropy_tokens: int = 0
    logp_difference_sum: float = 0.0
    logp_difference_max: float = maximum(0.0)
    logp_difference_tokens: int = 0
    first_step_abs_err: float | None = maximum(None)
    engine: EngineStats = field(default_factory=EngineStats)
    off_policy: float = 0.0
    counterfactuals: dict[str, CounterfactualStats] = field(default_factory=dict)
    short: LengthStats = field(default_factory=LengthStats)
    long: LengthStats = field(default_factory=LengthStats)
    candidates: tuple[Candidates, ...] = ()
    value: ValueStats = field(default_factory=ValueStats)
    preference: PreferenceStats = field(default_factory=PreferenceStats)
    last_moved: float = 0.0
    last_tokens: float = 0.0

    @property
    def entropy(self) -> float | None:
        """Of the policy before the updates, in nats per trained token; None without one."""
        return self.entropy_sum / self.entropy_tokens if self.entropy_tokens else None


@dataclass
class UpdateReport:
    """Report of one iteration. Everything except `sums` is the same on every rank: `tokens` and `sequences`
    count the answers of all, `short_tokens` and `short_sequences` the shorter half of each minibatch's.
    `clip_range` holds the widths in force, None if unbounded. `oom_events` counts how often memory ran
    out, `tokens_per_microbatch` is the budget left."""

    sums: Sums = field(default_factory=Sums)
    tokens: int = 0
    sequences: int = 0
    short_tokens: int = 0
    short_sequences: int = 0
    clip_range: tuple[float | None, float | None] = (None, None)
    grad_norms: list[float] = field(default_factory=list)
    updates: int = 0
    skipped: int = 0
    learning_rate: float = 0.0
    entropy_coefficient: float | None = None
    value_rate: float = 0.0
    with_kl: bool = False
    with_off_policy_mask: bool = False
    in_pairs: bool = False
    passes: int = 1
    oom_events: int = 0
    tokens_per_microbatch: int = 0

    def count(self, minibatch: MiniBatch) -> None:
        """Add a minibatch that an update was made on."""
        self.tokens += minibatch.tokens
        self.sequences += minibatch.sequences
        self.short_tokens += minibatch.short_tokens
        self.short_sequences += minibatch.short_sequences


class Clock:
    """Where the time of an iteration goes, in seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._started = time.perf_counter()

    @property
    def total(self) -> float:
        """Seconds since the clock was made."""
        return time.perf_counter() - self._started

    @contextmanager
    def timing(self, stage: str) -> Iterator[None]:
        """Add the time of a block to `stage`."""
        start = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start


def rollout_metrics(trajectories: Sequence[Trajectory], group_size: int) -> dict[str, Any]:
    """Metrics of sampling and scoring; excluded answers count in lengths, not in rewards. `reward_std` is the
    mean over groups; with groups of one answer that of all answers."""
    scored = [t for t in trajectories if t.reward is not None]
    lengths = [t.num_actions for t in trajectories]
    groups = [trajectories[i : i + group_size] for i in range(0, len(trajectories), group_size)]
    rewards = [torch.tensor([t.reward for t in group if t.reward is not None]) for group in groups]
    spreads = [r.std().item() for r in rewards if len(r) > 1]
    if (
        group_size == 1 and len(scored) > 1
    ):  # groups of one have no spread: that of the iteration stands for it
        spreads = [torch.cat(rewards).std().item()]
    spread = spread_metrics([g for g in groups if sum(t.reward is not None for t in g) > 1])
    parts = sorted({name for t in scored for name in t.components})
    counts = sorted({name for t in trajectories for name in t.outcome.counts})
    return {
        "reward": mean([t.reward for t in scored if t.reward is not None]),
        "reward_std": mean(spreads),
        "solved": mean([t.solved for t in scored]),
        **{
            f"rewards/{part}/mean": mean([t.components[part] for t in scored if part in t.components])
            for part in parts
        },
        **spread,
        "completions/mean_length": mean(lengths),
        "completions/min_length": min(lengths),
        "completions/max_length": max(lengths),
        "completions/clipped_ratio": mean([t.finish_reason is FinishReason.length for t in trajectories]),
        "completions/repetition": mean([repetition(t) for t in trajectories]),
        "num_turns": mean([t.num_turns for t in trajectories]),
        "turns_exhausted": mean([t.finish_reason is FinishReason.turns for t in trajectories]),
        **{
            f"environment/{name}": mean(
                [c[name] for c in (t.outcome.counts for t in trajectories) if name in c]
            )
            for name in counts
        },
        "excluded": sum(t.excluded is not None for t in trajectories),
    }


def spread_metrics(groups: Sequence[Sequence[Trajectory]]) -> dict[str, float]:
    """How much of the variance of rewards within groups each part of the reward explains by itself, and how
    much `solved` does: the squared correlation of distances from the group's mean, 0 to 1. Empty where all
    rewards of every group are equal. Parts that are correlated share what they explain."""
    scored = [[t for t in group if t.reward is not None] for group in groups]
    rewards = [_centered([t.reward or 0.0 for t in group]) for group in scored]
    if not any(_differs(group) for group in rewards):
        return {}
    parts = sorted({name for group in scored for t in group for name in t.components})
    solved = [_centered([float(t.solved) for t in group]) for group in scored]
    shares = {"solved_spread": _explained(rewards, solved)}
    for part in parts:
        values = [_centered([t.components.get(part, 0.0) for t in group]) for group in scored]
        shares[f"rewards/{part}/spread"] = _explained(rewards, values)
    return shares


def _explained(rewards: Sequence[Sequence[float]], values: Sequence[Sequence[float]]) -> float:
    """Squared correlation of centered `rewards` and `values`, over all groups; 0 for equal values."""
    if not any(_differs(group) for group in values):
        return 0.0
    pairs = list(zip(chain(*rewards), chain(*values), strict=True))
    product = math.fsum(x * y for x, y in pairs)
    squares = math.fsum(x * x for x, _ in pairs) * math.fsum(y * y for _, y in pairs)
    return min(1.0, product * product / squares)


def _differs(centered: Sequence[float]) -> bool:
    return max(map(abs, centered), default=0.0) > ZERO_RANGE


def _centered(values: Sequence[float]) -> list[float]:
    middle = math.fsum(values) / max(1, len(values))
    return [value - middle for value in values]


def repetition(trajectory: Trajectory) -> float:
    """Share of the 4-grams of sampled tokens that already occurred in the same conversation, 0 to 1. A 4-gram
    does not span other messages."""
    ids, mask = trajectory.token_ids, trajectory.action_mask
    grams = [tuple(ids[i : i + GRAM]) for i in range(len(ids) - GRAM + 1) if all(mask[i : i + GRAM])]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def update_metrics(report: UpdateReport) -> dict[str, Any]:
    """Metrics of the updates. Pairs have no ratio, and so no clip and no old policy to be far from."""
    sums, stats = report.sums, report.sums.stats
    metrics = {
        "loss": stats.loss / max(1, report.updates),
        "entropy": sums.entropy,
        "grad_norm": mean(report.grad_norms),
        "learning_rate": report.learning_rate,
        "updates": report.updates,
        "updates_skipped": report.skipped,
        "ratio/first_step_abs_err": sums.first_step_abs_err,
        "oom_events": report.oom_events,
        "tokens_per_microbatch": report.tokens_per_microbatch,
    }
    if sums.logp_difference_tokens:
        metrics |= {
            "sampling/logp_difference/mean": sums.logp_difference_sum / sums.logp_difference_tokens,
            "sampling/logp_difference/max": sums.logp_difference_max,
        }
    if sums.engine.counted:
        metrics |= {
            "sampling/dropped_fraction": sums.engine.dropped / sums.engine.counted,
            "sampling/engine_ratio_mean": sums.engine.ratio_sum / sums.engine.counted,
        }
    if sums.value.tokens:
        metrics |= {
            "value/loss": sums.value.squares / sums.value.tokens / 2,
            "value/clipped": sums.value.clipped / sums.value.tokens,
            "value/learning_rate": report.value_rate,
        }
    if report.entropy_coefficient is not None:
        metrics["entropy_coefficient"] = report.entropy_coefficient
    if report.with_off_policy_mask:
        metrics["off_policy/masked"] = sums.off_policy / max(1, report.sequences)
    if report.with_kl:
        metrics["kl"] = stats.kl_sum / max(1, report.tokens)
    metrics |= _preference_metrics(report) if report.in_pairs else _ratio_metrics(report)
    return metrics | _counterfactual_metrics(report) | _length_metrics(report) | _routing_metrics(sums)


def _ratio_metrics(report: UpdateReport) -> dict[str, Any]:
    """Of the ratio to the old policy. Clip shares are of all trained tokens and sequences; A = 0 counts as
    not clipped."""
    sums, stats = report.sums, report.sums.stats
    tokens, sequences, ratios = max(1, report.tokens), max(1, report.sequences), max(1.0, stats.ratios)
    deviation = stats.deviation_sum / ratios
    clipped = (stats.clipped_low + stats.clipped_high) / tokens
    metrics = {
        "clip_ratio/low_mean": stats.clipped_low / tokens,
        "clip_ratio/high_mean": stats.clipped_high / tokens,
        "clip_ratio/region_mean": clipped,
        "clip_ratio/token": clipped,
        "clip_ratio/sequence": stats.clipped_sequences / sequences,
        "clip_range/left": report.clip_range[0],
        "clip_range/right": report.clip_range[1],
        "approx_kl": stats.moved_sum / max(1.0, stats.tokens),
        "approx_kl_last": sums.last_moved / max(1.0, sums.last_tokens),
    }
    if stats.ratios:
        variance = max(0.0, stats.deviation_squares / ratios - deviation**2)
        metrics |= {
            "ratio/mean": 1 + deviation,
            "ratio/min": 1 + stats.deviation_min,
            "ratio/max": 1 + stats.deviation_max,
            "ratio/std": variance**0.5,
        }
    for name, half in (("short", sums.short), ("long", sums.long)):
        trained = report.short_tokens if name == "short" else report.tokens - report.short_tokens
        metrics[f"clip_ratio/{name}"] = half.clipped / trained if trained else None
        metrics[f"ratio/{name}_std"] = half.std
    return metrics


def _counterfactual_metrics(report: UpdateReport) -> dict[str, Any]:
    """Shares that another objective would have clipped, of what `clip_ratio` is of, and the correlation over
    sequences between its weights and the run's own."""
    metrics: dict[str, Any] = {}
    for name, stats in report.sums.counterfactuals.items():
        metrics[f"shadow/{name}/clip_token"] = stats.clipped_tokens / max(1, report.tokens)
        metrics[f"shadow/{name}/clip_sequence"] = stats.clipped_sequences / max(1, report.sequences)
        metrics[f"shadow/{name}/weight_correlation"] = stats.correlation
    return metrics


def _preference_metrics(report: UpdateReport) -> dict[str, Any]:
    """Means over pairs and passes, before each update; `chosen` and `rejected` are beta times what the
    log-probability of the better and the worse answer gained on the reference."""
    stats = report.sums.preference
    if not stats.pairs:
        return {"loss": None, "preference/pairs": 0}
    return {
        "loss": stats.loss / stats.pairs,
        "preference/pairs": round(stats.pairs / report.passes),
        "preference/accuracy": stats.correct / stats.pairs,
        "preference/margin": (stats.chosen - stats.rejected) / stats.pairs,
        "preference/chosen": stats.chosen / stats.pairs,
        "preference/rejected": stats.rejected / stats.pairs,
    }


def _length_metrics(report: UpdateReport) -> dict[str, Any]:
    """Mean lengths of the answers with at most and with more trained tokens than the median of their
    minibatch; None if a half is empty (answers of one length are all short)."""
    long = (report.tokens - report.short_tokens, report.sequences - report.short_sequences)
    halves = {"short": (report.short_tokens, report.short_sequences), "long": long}
    return {
        f"length/{name}_mean": tokens / count if count else None for name, (tokens, count) in halves.items()
    }


def _routing_metrics(sums: Sums) -> dict[str, Any]:
    """Of a Mixture-of-Experts model, over the minibatches after the first: share of pairs of a trained token
    and a layer whose set of experts is no longer the old policy's, and share of the chosen experts that were
    replaced (about 0.1 in the GSPO paper, section 5.3). The balance loss is over all minibatches."""
    routing, last = sums.routing, sums.last_routing
    metrics: dict[str, Any] = {}
    if routing.pairs:
        metrics["moe/expert_change"] = routing.changed_pairs / routing.pairs
        metrics["moe/experts_replaced"] = routing.replaced_choices / routing.choices
    if last.pairs:
        metrics["moe/expert_change_last"] = last.changed_pairs / last.pairs
    if routing.balance_loss_sequences:
        metrics["moe/aux_loss"] = routing.balance_loss_sum / routing.balance_loss_sequences
    return metrics


def peak_memory_gb() -> float:
    """Highest memory use so far: of the GPU where there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20  # bytes there, KiB elsewhere


def mean(values: Sequence[float]) -> float | None:
    """Mean; None if there are no values."""
    return sum(values) / len(values) if values else None
