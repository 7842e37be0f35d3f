"""Typed configuration of the group `algorithm`: the objective, composed of a few choices, and its clip
band."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from gspo_cli.config.checks import require, require_at_most, require_not_negative, require_positive
from gspo_cli.config.choices import (
    AdvantageBaseline,
    AdvantageScale,
    Aggregation,
    ClipCalibration,
    ClipMode,
    Credit,
    EngineCorrection,
    KLEstimator,
    RatioLevel,
    Truncated,
)
from gspo_cli.config.marks import PLAIN, Marks
from gspo_cli.config.missing import MISSING

WIDEST = 1e3  # of a clip band, and of a ratio's bound
CLIP_FRACTION = 0.15  # share of tokens: what GSPO clips with the paper's band (Fig. 2)


@dataclass
class AlgorithmConfig:
    """The objective, composed of advantage, ratio level, clip and aggregation."""

    TRUST: ClassVar[Marks] = {"name": PLAIN}

    name: str = MISSING
    """Name of the objective, in run folders and reports."""
    ratio_level: RatioLevel = MISSING
    """What the importance ratio is taken over."""
    clip_mode: ClipMode = ClipMode.min
    """What the clip does to a ratio outside the band."""
    clip_range_left: float | None = MISSING
    """Width of the clip band below 1; above 0; null leaves that side unbounded."""
    clip_range_right: float | None = MISSING
    """Width of the clip band above 1; above 0; null leaves that side unbounded."""
    clip_calibration: ClipCalibration = ClipCalibration.none
    """Where the clip band comes from."""
    clip_fraction: float = CLIP_FRACTION
    """Share of the trained tokens that a calibrated band should clip; above 0, and below 1; used with
    clip_calibration=quantile only."""
    aggregation: Aggregation = Aggregation.sequence_mean
    """How token terms become one loss; ratio levels other than `token` allow `sequence_mean` only."""
    advantage_baseline: AdvantageBaseline = AdvantageBaseline.group_mean
    """What is subtracted from a reward."""
    advantage_scale: AdvantageScale = AdvantageScale.group_std
    """What the centered reward is divided by."""
    advantage_std_floor: float = 0.0
    """Least standard deviation to divide by; 0 or more; 0 divides by the deviation itself (GSPO paper,
    Eq. 6). TRL and verl add 1e-4 and 1e-6 to the deviation against division by 0; a floor of about 0.05
    keeps rewards that differ by noise alone from becoming full-size advantages."""
    credit: Credit = Credit.trajectory
    """Which reward a turn of the agent gets credit for; `turn` needs a ratio level with a token axis."""
    discount: float = 1.0
    """Discount factor of later rewards per turn, used with credit=turn only; at most 1, and above 0."""
    beta: float = 0.0
    """Weight of the KL penalty against the model before training; 0 disables it; 0 or more."""
    kl_estimator: KLEstimator = KLEstimator.k3
    """How the KL divergence is estimated, and where it acts."""
    learning_rate: float = MISSING
    """Learning rate after the warm-up; above 0."""
    truncated_completions: Truncated = Truncated.keep
    """What to do with an answer that hits the length limit or the turn limit."""
    truncation_penalty: float = 0.5
    """What `penalise` (or `penalize`) subtracts from the reward of such an answer; 0 or more."""
    dynamic_sampling: bool = False
    """Replaces problems whose answers all earn the same reward with new ones (DAPO)."""
    dynamic_sampling_max_rounds: int = 3
    """Maximum rounds of dynamic sampling per iteration, including the first; above 0."""
    engine_correction: EngineCorrection = EngineCorrection.none
    """Correction for an engine that samples from a slightly different distribution than the trainer
    computes."""
    engine_correction_max: float | None = None
    """Upper bound of the engine ratio, above 1; null means 2 for token_truncate and 1.05 for
    sequence_mask."""
    routing_replay: bool = False
    """Replays the experts that the old policy chose in a Mixture-of-Experts model."""

    def __post_init__(self) -> None:
        for name in ("clip_range_left", "clip_range_right"):
            value = getattr(self, name)
            require(
                value is None or 0 < value <= WIDEST,
                f"algorithm.{name}={value}: is a width around 1 and must be above 0 and at most {WIDEST:g}; "
                "use null for no bound",
            )
        require_positive("algorithm", self, "learning_rate", "dynamic_sampling_max_rounds")
        require_at_most("algorithm", self, learning_rate=1.0, beta=1e3)
        require(
            self.engine_correction_max is None or 1 < self.engine_correction_max <= WIDEST,
            f"algorithm.engine_correction_max={self.engine_correction_max}: is an upper bound of a "
            "ratio and must be above 1 and at most 1000; use null for the default",
        )
        require_not_negative("algorithm", self, "beta", "truncation_penalty", "advantage_std_floor")
        require(
            self.advantage_std_floor == 0 or self.advantage_scale is not AdvantageScale.none,
            f"algorithm.advantage_std_floor={self.advantage_std_floor}: only applies where "
            "something divides; set algorithm.advantage_scale=group_std or batch_std, or a floor of 0",
        )
        require(
            0 < self.discount <= 1,
            f"algorithm.discount={self.discount}: must be above 0 and at most 1; give 1 for no discount",
        )
        whole = self.ratio_level is RatioLevel.sequence
        require(
            self.credit is Credit.turn or self.discount == 1,
            f"algorithm.discount={self.discount}: only applies to credit by turns; use "
            f"{'algorithm=gspo_token ' if whole else ''}algorithm.credit=turn, or algorithm.discount=1",
        )
        require(
            self.credit is Credit.trajectory or not whole,
            "algorithm.credit=turn: a sequence ratio takes one advantage for the whole conversation; use "
            "algorithm=gspo_token or algorithm=grpo",
        )
        if self.ratio_level is not RatioLevel.token:
            require(
                self.aggregation is Aggregation.sequence_mean,
                f"algorithm.aggregation={self.aggregation.value}: a sequence-level ratio needs "
                "sequence_mean; "
                "other aggregations weight sequences by length",
            )
            require(
                self.clip_mode is not ClipMode.stop_gradient,
                "algorithm.clip_mode=stop_gradient: is defined for token ratios (CISPO); "
                "set algorithm.ratio_level=token or algorithm.clip_mode=min",
            )
        if self.clip_mode is ClipMode.min:
            require(
                self.clip_range_left is not None and self.clip_range_right is not None,
                "algorithm.clip_range_left, clip_range_right: clip_mode=min needs both widths; give two "
                "numbers",
            )

        self._check_calibration()

    def _check_calibration(self) -> None:
        require(
            0 < self.clip_fraction < 1,
            f"algorithm.clip_fraction={self.clip_fraction}: must be above 0 and below 1; give a share of the "
            f"trained tokens such as {CLIP_FRACTION}",
        )
        require(
            self.is_calibrated or self.clip_fraction == CLIP_FRACTION,
            f"algorithm.clip_fraction={self.clip_fraction}: only applies with algorithm.clip_calibration="
            + (
                "quantile; set that, or leave it out"
                if self.clip_range != (None, None)
                else "quantile, and there is no clip band to calibrate; leave it out"
            ),
        )
        require(
            not self.is_calibrated or self.clip_range != (None, None),
            "algorithm.clip_calibration=quantile: there is no clip band to calibrate; use clip_mode=min with "
            "two widths, or clip_calibration=none",
        )

    @property
    def is_calibrated(self) -> bool:
        """Whether the clip band follows the ratios."""
        return self.clip_calibration is ClipCalibration.quantile

    @property
    def engine_weight_max(self) -> float:
        """The bound of the engine ratio, with its default."""
        default = 1.05 if self.engine_correction is EngineCorrection.sequence_mask else 2.0
        return default if self.engine_correction_max is None else self.engine_correction_max

    @property
    def kl_in_loss(self) -> bool:
        """Whether a KL penalty is added to the loss (k2, k3), which needs reference log-probabilities."""
        return self.beta > 0 and self.kl_estimator is not KLEstimator.k1

    @property
    def kl_in_reward(self) -> bool:
        """Whether k1 is subtracted from the reward before advantages."""
        return self.beta > 0 and self.kl_estimator is KLEstimator.k1

    @property
    def band(self) -> tuple[float, float]:
        """[1 - left, 1 + right], unbounded on a side whose width is null."""
        left, right = self.clip_range
        return -math.inf if left is None else 1 - left, math.inf if right is None else 1 + right

    @property
    def clip_range(self) -> tuple[float | None, float | None]:
        """Widths of the band, None if a side has no bound."""
        if self.clip_mode is ClipMode.none:
            return None, None
        return self.clip_range_left, self.clip_range_right
