"""Typed configuration of the group `algorithm`: the objective, composed of few choices, and its clip band."""

from __future__ import annotations

import math
from dataclasses import dataclass

from omegaconf import MISSING

from gspo_cli.config.checks import require, require_not_negative, require_positive
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

CLIP_FRACTION = 0.15  # of tokens: GSPO's with its band of the paper (Fig. 2)


@dataclass
class AlgorithmConfig:
    """The objective, composed of advantage, ratio level, clip and aggregation. `clip_calibration=quantile`
    starts from the configured band and then chooses it so that the share `clip_fraction` of all trained
    tokens is clipped. `routing_replay` forces the experts of a Mixture-of-Experts model that the old policy
    chose."""

    name: str = MISSING
    ratio_level: RatioLevel = MISSING
    clip_mode: ClipMode = ClipMode.min
    clip_range_left: float | None = MISSING
    clip_range_right: float | None = MISSING
    clip_calibration: ClipCalibration = ClipCalibration.none
    clip_fraction: float = CLIP_FRACTION
    aggregation: Aggregation = Aggregation.sequence_mean
    advantage_baseline: AdvantageBaseline = AdvantageBaseline.group_mean
    advantage_scale: AdvantageScale = AdvantageScale.group_std
    credit: Credit = Credit.trajectory
    discount: float = 1.0
    beta: float = 0.0
    kl_estimator: KLEstimator = KLEstimator.k3
    learning_rate: float = MISSING
    truncated_completions: Truncated = Truncated.keep
    truncation_penalty: float = 0.5
    dynamic_sampling: bool = False
    dynamic_sampling_max_rounds: int = 3
    engine_correction: EngineCorrection = EngineCorrection.none
    engine_correction_max: float | None = None
    routing_replay: bool = False

    def __post_init__(self) -> None:
        for name in ("clip_range_left", "clip_range_right"):
            value = getattr(self, name)
            require(
                value is None or (math.isfinite(value) and value > 0),
                f"algorithm.{name}={value}: is a width around 1 and must be above 0; use null for no bound",
            )
        require_positive("algorithm", self, "learning_rate", "dynamic_sampling_max_rounds")
        require(
            self.engine_correction_max is None or self.engine_correction_max > 1,
            f"algorithm.engine_correction_max={self.engine_correction_max}: bounds a ratio from above and "
            "must be over 1; use null for the default",
        )
        require_not_negative("algorithm", self, "beta", "truncation_penalty")
        require(
            0 < self.discount <= 1,
            f"algorithm.discount={self.discount}: must be above 0 and at most 1 (no discount)",
        )
        require(
            self.credit is Credit.turn or self.discount == 1,
            f"algorithm.discount={self.discount}: is read with algorithm.credit=turn only; set that, or 1",
        )
        require(
            self.credit is Credit.trajectory or self.ratio_level is not RatioLevel.sequence,
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
            f"algorithm.clip_fraction={self.clip_fraction}: is a share of the trained tokens; must be "
            "above 0 and below 1",
        )
        require(
            self.is_calibrated or self.clip_fraction == CLIP_FRACTION,
            f"algorithm.clip_fraction={self.clip_fraction}: is read with algorithm.clip_calibration=quantile "
            "only; set that, or leave it out",
        )
        require(
            not self.is_calibrated or self.clip_range != (None, None),
            "algorithm.clip_calibration=quantile: there is no clip band to calibrate; use clip_mode=min with "
            "two widths, or clip_calibration=none",
        )

    @property
    def is_calibrated(self) -> bool:
        """Whether the band follows the ratios."""
        return self.clip_calibration is ClipCalibration.quantile

    @property
    def engine_weight_max(self) -> float:
        """The bound that `engine_correction` reads."""
        default = 1.05 if self.engine_correction is EngineCorrection.sequence_mask else 2.0
        return default if self.engine_correction_max is None else self.engine_correction_max

    @property
    def kl_in_loss(self) -> bool:
        """Whether a KL penalty is added to the loss (k2, k3), which needs reference log-probabilities."""
        return self.beta > 0 and self.kl_estimator is not KLEstimator.k1

    @property
    def kl_in_reward(self) -> bool:
        """Whether k1 is taken off the reward before advantages."""
        return self.beta > 0 and self.kl_estimator is KLEstimator.k1

    @property
    def band(self) -> tuple[float, float]:
        """[1 - left, 1 + right], unbounded on a side whose width is null."""
        left, right = self.clip_range
        return -math.inf if left is None else 1 - left, math.inf if right is None else 1 + right

    @property
    def clip_range(self) -> tuple[float | None, float | None]:
        """Widths of the band, None where a side has no bound."""
        if self.clip_mode is ClipMode.none:
            return None, None
        return self.clip_range_left, self.clip_range_right
