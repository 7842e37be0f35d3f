"""Shadow objectives: what other objectives would make of the ratios that an update met, beside what its own
made of them; and its own by length of answer.

Shapes: B sequences, T tokens, aligned as in `gspo_cli.types`. A shadow needs no pass and leaves no trace in
training. Compared are the clips, and the weight of a sequence: the mean over its trained tokens of
ratio x 1[not clipped] (of the capped ratio for clip_mode=stop_gradient), by which the gradient takes its
advantage (GSPO paper, Eq. 10 and 12)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gspo_cli.algorithm.objective import clip_sides, sequence_log_ratio, token_log_ratio
from gspo_cli.config.choices import ClipMode, Credit, RatioLevel
from gspo_cli.config.model_schema import LevelPreset, Presets
from gspo_cli.config.schema import AlgorithmConfig

ROUNDING = 1e-12  # of a sum of squares: less than this share of it is no variance


@dataclass(frozen=True)
class Objective:
    """What decides the weight of a token: ratio level, clip mode and [lowest, highest] ratio."""

    level: RatioLevel
    mode: ClipMode
    band: tuple[float, float]

    @classmethod
    def of(cls, algorithm: AlgorithmConfig) -> Objective:
        """With the band that `algorithm` has."""
        return cls(algorithm.ratio_level, algorithm.clip_mode, algorithm.band)

    @classmethod
    def preset(cls, level: RatioLevel, preset: LevelPreset) -> Objective:
        """With the widths that suit a model."""
        return cls(level, ClipMode.min, (1 - preset.clip_range_left, 1 + preset.clip_range_right))


def shadow_objectives(algorithm: AlgorithmConfig, presets: Presets) -> dict[str, Objective]:
    """gspo, gspo_token and grpo with the model's preset bands, without those that tell nothing new.

    A sequence-level run leaves out its own level. A token-level run leaves out grpo where clip mode and band
    are those of the preset (aggregation and advantages change no weight). gspo and gspo_token are one where a
    sequence has one advantage, so that gspo_token is there with `credit=turn` only, and gspo is no shadow of
    gspo_token without."""
    gspo = Objective.preset(RatioLevel.sequence, presets.sequence)
    gspo_token = Objective.preset(RatioLevel.sequence_token, presets.sequence)
    grpo = Objective.preset(RatioLevel.token, presets.token)
    level, by_turn = algorithm.ratio_level, algorithm.credit is Credit.turn
    wanted = {
        "gspo": level is RatioLevel.token or (level is RatioLevel.sequence_token and by_turn),
        "gspo_token": level is RatioLevel.token and by_turn,
        "grpo": Objective.of(algorithm) != grpo,
    }
    return {
        name: objective
        for name, objective in (("gspo", gspo), ("gspo_token", gspo_token), ("grpo", grpo))
        if wanted[name]
    }


@dataclass(frozen=True)
class ShadowStats:
    """Sums of one shadow, to be added up over micro-batches and ranks: trained tokens and sequences that it
    would clip, and over the sequences whose weights are compared the moments of x = own weight - 1 and
    y = the shadow's weight - 1."""

    clipped_tokens: float = 0.0
    clipped_sequences: float = 0.0
    compared: float = 0.0
    x: float = 0.0
    y: float = 0.0
    xx: float = 0.0
    yy: float = 0.0
    xy: float = 0.0

    def __add__(self, other: ShadowStats) -> ShadowStats:
        return ShadowStats(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    @property
    def correlation(self) -> float | None:
        """Pearson's, of the two weights over sequences; None of fewer than two or where one does not vary."""
        if self.compared < 2:
            return None
        variance_x, variance_y = self.xx - self.x**2 / self.compared, self.yy - self.y**2 / self.compared
        if not (variance_x > ROUNDING * self.xx and variance_y > ROUNDING * self.yy):
            return None  # also of ratios that overflowed
        covariance = self.xy - self.x * self.y / self.compared
        return max(-1.0, min(1.0, covariance / math.sqrt(variance_x * variance_y)))


@dataclass(frozen=True)
class LengthStats:
    """Sums of the run's own objective over the shorter or the longer answers: clipped tokens, and ratio - 1
    at the algorithm's own level as in `LossStats`."""

    clipped: float = 0.0
    ratios: float = 0.0
    deviation_sum: float = 0.0
    deviation_squares: float = 0.0

    def __add__(self, other: LengthStats) -> LengthStats:
        return LengthStats(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    @property
    def std(self) -> float | None:
        """Standard deviation of the ratio; None of no ratio."""
        if not self.ratios:
            return None
        mean = self.deviation_sum / self.ratios
        return math.sqrt(max(0.0, self.deviation_squares / self.ratios - mean**2))


@dataclass(frozen=True)
class Observed:
    """What a micro-batch showed: each shadow by name, and its own objective on the answers of at most
    (`short`) and of more (`long`) trained tokens than the median."""

    shadows: dict[str, ShadowStats]
    short: LengthStats
    long: LengthStats


@torch.no_grad()
def observe(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    action_mask: Tensor,
    own: Objective,
    shadows: Mapping[str, Objective],
    median: float = math.inf,
    compare_weights: bool = True,
) -> Observed:
    """Three (B, T), advantages (B, 1) or (B, T) -> sums over this micro-batch.

    `median` is the one of the minibatch's answers, in trained tokens. Weights are compared over sequences
    with an advantage other than 0 on a trained token, where `compare_weights`: not in the first minibatch,
    where all ratios are 1."""
    log_ratio = token_log_ratio(logprobs.detach(), old_logprobs, action_mask)
    counts = action_mask.sum(dim=1)  # (B,)
    judged = ((advantages != 0) & action_mask).any(dim=1) & compare_weights
    mine, low, high, at_level = _applied(own, log_ratio, advantages, action_mask)
    short = counts <= median
    sums = _by_length(at_level, low | high, action_mask, short) + _by_length(
        at_level, low | high, action_mask, ~short
    )
    for objective in shadows.values():
        theirs, low, high, _ = _applied(objective, log_ratio, advantages, action_mask)
        clipped = low | high
        x, y = torch.where(judged, mine, 0), torch.where(judged, theirs, 0)
        sums += [clipped.sum(), clipped.any(dim=1).sum(), judged.sum(), x.sum(), y.sum()]
        sums += [(x * x).sum(), (y * y).sum(), (x * y).sum()]
    values = torch.stack([value.double() for value in sums]).tolist()  # one wait for a GPU
    stats = (ShadowStats(*values[i : i + 8]) for i in range(8, len(values), 8))
    return Observed(
        dict(zip(shadows, stats, strict=True)), LengthStats(*values[:4]), LengthStats(*values[4:8])
    )


def _applied(
    objective: Objective, log_ratio: Tensor, advantages: Tensor, action_mask: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weight - 1 per sequence (B,) in double, trained tokens clipped from below and from above (B, T), and
    log ratios at the objective's level, (B, T) or (B, 1)."""
    at_level = log_ratio
    if objective.level is not RatioLevel.token:
        at_level = sequence_log_ratio(log_ratio, action_mask)
    if objective.level is RatioLevel.sequence:
        advantages = _one_advantage(advantages, action_mask)
    low, high = clip_sides(at_level.exp(), advantages, objective.mode, objective.band)
    deviation = torch.expm1(at_level)  # exact near 0, where the GSPO band lies
    if objective.mode is ClipMode.stop_gradient:
        bottom, top = objective.band
        deviation = deviation.clamp(min=bottom - 1, max=top - 1)
    else:
        deviation = torch.where(low | high, -1, deviation)
    if deviation.shape[1] > 1:
        total = torch.where(action_mask, deviation, 0).sum(dim=1, dtype=torch.float64)
        weight = total / action_mask.sum(dim=1).clamp(min=1)
    else:
        weight = deviation[:, 0].double()
    return weight, low & action_mask, high & action_mask, at_level


def _one_advantage(advantages: Tensor, action_mask: Tensor) -> Tensor:
    """The mean over trained tokens, which is what a sequence ratio makes of an advantage per token. -> (B,
    1)"""
    if advantages.shape[1] == 1:
        return advantages
    total = torch.where(action_mask, advantages, 0).sum(dim=1, keepdim=True)
    return total / action_mask.sum(dim=1, keepdim=True).clamp(min=1)


def _by_length(at_level: Tensor, clipped: Tensor, action_mask: Tensor, rows: Tensor) -> list[Tensor]:
    """The fields of `LengthStats` over some rows, (B,) true."""
    trained = action_mask if at_level.shape == action_mask.shape else action_mask.any(dim=1, keepdim=True)
    counted = trained & rows[:, None]
    deviation = torch.where(counted, torch.expm1(at_level), 0).double()
    return [(clipped & rows[:, None]).sum(), counted.sum(), deviation.sum(), (deviation * deviation).sum()]
