"""Counterfactual objectives: what other objectives would have clipped, and how they would have weighted the
sequences, at the ratios of an update; and the run's own objective by length of answer.

Shapes: B sequences, T tokens, aligned as in `gspo_cli.types`. They need no extra forward pass and do not
influence training. Compared are the clips and the weight of a sequence: the mean over its trained tokens of
ratio x 1[not clipped] (of the capped ratio for clip_mode=stop_gradient, of ratio x the gate's slope for
soft_gate, and with the ratio of the clipped tokens for token_log). In the gradient it is the factor of the
sequence's advantage (GSPO paper, Eq. 10 and 12). The metrics are named `shadow/<objective>/...`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gspo_cli.algorithm.accumulators import Accumulator
from gspo_cli.algorithm.gates import clip_sides, clipped_mean, gate_fading, over_dual
from gspo_cli.algorithm.objective import (
    answers,
    level_log_ratio,
    token_log_ratio,
    trained_mean,
)
from gspo_cli.config.choices import ClipMode, Credit, RatioLevel
from gspo_cli.config.model_schema import LevelPreset, Presets
from gspo_cli.config.schema import AlgorithmConfig

ROUNDING = 1e-12  # a variance below this share of the sum of squares is rounding


@dataclass(frozen=True)
class Objective:
    """What determines the weight of a token: ratio level, clip mode, [lowest, highest] ratio (log ratio for
    token_log), the dual clip's bound, and the temperatures of the soft gate."""

    level: RatioLevel
    mode: ClipMode
    band: tuple[float, float]
    dual: float | None = None
    taus: tuple[float, float] | None = None

    @classmethod
    def of(cls, algorithm: AlgorithmConfig) -> Objective:
        """The objective of `algorithm`, with its current band."""
        mode = algorithm.clip_mode
        return cls(
            algorithm.ratio_level,
            mode,
            algorithm.log_band if mode is ClipMode.token_log else algorithm.band,
            algorithm.clip_ratio_dual,
            (algorithm.tau_pos, algorithm.tau_neg) if mode is ClipMode.soft_gate else None,
        )

    @classmethod
    def preset(cls, level: RatioLevel, preset: LevelPreset) -> Objective:
        """PPO-style clipping with the widths of a model's preset."""
        return cls(level, ClipMode.min, (1 - preset.clip_range_left, 1 + preset.clip_range_right))


def counterfactual_objectives(algorithm: AlgorithmConfig, presets: Presets) -> dict[str, Objective]:
    """gspo, gspo_token and grpo with the model's preset bands, without those that equal the run's own
    objective.

    A run whose own ratio is the geometric mean leaves out its own level. A token-level run leaves out grpo
    where clip mode and band are those of the preset (aggregation and advantages change no weight). gspo and
    gspo_token are equal where a sequence has one advantage: gspo_token is included with `credit=turn` only,
    and for a gspo_token run gspo is included as well."""
    if algorithm.in_pairs:
        return {}  # no ratio, no advantage
    gspo = Objective.preset(RatioLevel.sequence, presets.sequence)
    gspo_token = Objective.preset(RatioLevel.sequence_token, presets.sequence)
    grpo = Objective.preset(RatioLevel.token, presets.token)
    level, by_turn = algorithm.ratio_level, algorithm.credit is Credit.turn
    wanted = {
        "gspo": not algorithm.compares_means or (level is RatioLevel.sequence_token and by_turn),
        "gspo_token": level is RatioLevel.token and by_turn,
        "grpo": Objective.of(algorithm) != grpo,
    }
    return {
        name: objective
        for name, objective in (("gspo", gspo), ("gspo_token", gspo_token), ("grpo", grpo))
        if wanted[name]
    }


@dataclass(frozen=True)
class CounterfactualStats(Accumulator):
    """Sums of one counterfactual objective over micro-batches and ranks: trained tokens and sequences that it
    would clip, and, over the sequences whose weights are compared, the moments of x = the weight under the
    run's own objective - 1 and y = the weight under this one - 1."""

    clipped_tokens: float = 0.0
    clipped_sequences: float = 0.0
    compared: float = 0.0
    x: float = 0.0
    y: float = 0.0
    xx: float = 0.0
    yy: float = 0.0
    xy: float = 0.0

    @property
    def correlation(self) -> float | None:
        """Pearson correlation of the two weights over sequences; None with fewer than two, or no variance."""
        if self.compared < 2:
            return None
        variance_x, variance_y = self.xx - self.x**2 / self.compared, self.yy - self.y**2 / self.compared
        if not (variance_x > ROUNDING * self.xx and variance_y > ROUNDING * self.yy):
            return None  # also if ratios overflowed
        covariance = self.xy - self.x * self.y / self.compared
        return max(-1.0, min(1.0, covariance / math.sqrt(variance_x * variance_y)))


@dataclass(frozen=True)
class LengthStats(Accumulator):
    """Sums of the run's own objective over the shorter or the longer answers: clipped tokens, and ratio - 1
    at the algorithm's own level as in `LossStats`."""

    clipped: float = 0.0
    ratios: float = 0.0
    deviation_sum: float = 0.0
    deviation_squares: float = 0.0

    @property
    def std(self) -> float | None:
        """Standard deviation of the ratio; None without any ratio."""
        if not self.ratios:
            return None
        mean = self.deviation_sum / self.ratios
        return math.sqrt(max(0.0, self.deviation_squares / self.ratios - mean**2))


@dataclass(frozen=True)
class Observed:
    """Statistics of a micro-batch: each counterfactual objective by name, and the run's own objective on
    answers of at most (`short`) and of more (`long`) trained tokens than the median."""

    counterfactuals: dict[str, CounterfactualStats]
    short: LengthStats
    long: LengthStats


@torch.no_grad()
def observe(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    action_mask: Tensor,
    own: Objective,
    others: Mapping[str, Objective],
    median: float = math.inf,
    compare_weights: bool = True,
    weights: Tensor | None = None,
) -> Observed:
    """Sums over this micro-batch, of the objectives `own` and `others`.

    logprobs, old_logprobs, action_mask (B, T); advantages (B, 1) or (B, T). `median` is the median length of
    the minibatch's sequences, in trained tokens; `weights` (B,) are those of sequences in their mean. With
    `compare_weights` the objectives' weights are compared over the sequences that have an advantage other
    than 0 on a trained token; leave it off in the first minibatch, where all ratios are 1."""
    log_ratio = token_log_ratio(logprobs.detach(), old_logprobs, action_mask)
    counts = action_mask.sum(dim=1)  # (B,)
    compared = ((advantages != 0) & action_mask).any(dim=1) & compare_weights
    mine, low, high, at_level = _applied(own, log_ratio, advantages, action_mask)
    short = counts <= median
    sums = _by_length(at_level, low | high, action_mask, short) + _by_length(
        at_level, low | high, action_mask, ~short
    )
    for objective in others.values():
        theirs, low, high, _ = _applied(objective, log_ratio, advantages, action_mask)
        clipped = low | high
        x, y = torch.where(compared, mine, 0), torch.where(compared, theirs, 0)
        sums += [clipped.sum(), answers(clipped.any(dim=1), weights), compared.sum(), x.sum(), y.sum()]
        sums += [(x * x).sum(), (y * y).sum(), (x * y).sum()]
    values = torch.stack([value.double() for value in sums]).tolist()  # a single synchronization with the GPU
    stats = (CounterfactualStats(*values[i : i + 8]) for i in range(8, len(values), 8))
    return Observed(
        dict(zip(others, stats, strict=True)), LengthStats(*values[:4]), LengthStats(*values[4:8])
    )


def _applied(
    objective: Objective, log_ratio: Tensor, advantages: Tensor, action_mask: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weight - 1 per sequence (B,) in double, trained tokens clipped from below and from above (B, T), and
    log ratios at the objective's level, (B, T) or (B, 1)."""
    at_level = level_log_ratio(log_ratio, action_mask, objective.level)
    if objective.level.is_whole:
        # one term per sequence, in which advantages per token count as their mean
        advantages = advantages if advantages.shape[1] == 1 else trained_mean(advantages, action_mask)
    if objective.mode is ClipMode.token_log:
        log_s, low, high = clipped_mean(log_ratio, advantages, action_mask, objective.band)
        deviation = torch.where(low | high, -1, torch.expm1(log_s))
    else:
        low, high = clip_sides(at_level.exp(), advantages, objective.mode, objective.band)
        if objective.dual is not None:
            high = high | over_dual(at_level.exp(), advantages, objective.dual)
        deviation = _token_weight(objective, at_level, advantages, low | high)
    if deviation.shape[1] > 1:
        total = torch.where(action_mask, deviation, 0).sum(dim=1, dtype=torch.float64)
        weight = total / action_mask.sum(dim=1).clamp(min=1)
    else:
        weight = deviation[:, 0].double()
    return weight, low & action_mask, high & action_mask, at_level


def _token_weight(objective: Objective, at_level: Tensor, advantages: Tensor, clipped: Tensor) -> Tensor:
    """Weight - 1 of each ratio. (B, T) or (B, 1) -> of the same shape"""
    deviation = torch.expm1(at_level)  # exact near 0, where the GSPO band lies
    if objective.mode is ClipMode.stop_gradient:
        bottom, top = objective.band
        return deviation.clamp(min=bottom - 1, max=top - 1)
    if objective.taus is not None:
        fading = gate_fading(deviation, advantages, *objective.taus)
        return torch.where(fading < 1, deviation * (1 - fading) - fading, -1)  # an overflowed ratio has none
    return torch.where(clipped, -1, deviation)


def _by_length(at_level: Tensor, clipped: Tensor, action_mask: Tensor, rows: Tensor) -> list[Tensor]:
    """The fields of `LengthStats` over the rows where `rows` (B,) is true."""
    trained = action_mask if at_level.shape == action_mask.shape else action_mask.any(dim=1, keepdim=True)
    counted = trained & rows[:, None]
    deviation = torch.where(counted, torch.expm1(at_level), 0).double()
    return [(clipped & rows[:, None]).sum(), counted.sum(), deviation.sum(), (deviation * deviation).sum()]
