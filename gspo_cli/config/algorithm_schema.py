"""Typed configuration of the group `algorithm`: the objective, composed of a few choices, and its clip
band."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

from gspo_cli.config.algorithm_checks import (
    CLIP_FRACTION,
    ENTROPY_STEP,
    OVERLONG_PENALTY,
    TAU_NEG,
    TAU_POS,
    WIDEST,
    check_advantage,
    check_batch_baseline,
    check_calibration,
    check_clip,
    check_entropy,
    check_length_penalty,
    check_off_policy,
    check_pairs,
    check_parts,
    check_preference,
    check_ranges,
    check_ratio,
    check_selection,
    check_value,
)
from gspo_cli.config.choices import (
    AdvantageBaseline,
    AdvantageParts,
    AdvantageScale,
    Aggregation,
    ClipCalibration,
    ClipMode,
    Credit,
    EngineCorrection,
    KLEstimator,
    Preference,
    RatioLevel,
    Truncated,
)
from gspo_cli.config.marks import PATH, PLAIN, Marks
from gspo_cli.config.missing import MISSING
from gspo_cli.config.value_schema import ValueConfig


@dataclass
class AlgorithmConfig:
    """The objective, composed of advantage, ratio level, clip and aggregation."""

    TRUST: ClassVar[Marks] = {"name": PLAIN, "pairs": PATH}

    name: str = MISSING
    """Name of the objective, in run folders and reports."""
    ratio_level: RatioLevel = MISSING
    """What the importance ratio is taken over."""
    clip_mode: ClipMode = ClipMode.min
    """What the clip does to a ratio outside the band."""
    clip_range_left: float | None = MISSING
    """Width of the clip band below 1, with clip_mode=token_log below 0 on the log ratio; above 0; null leaves
    that side unbounded."""
    clip_range_right: float | None = MISSING
    """Width of the clip band above 1, with clip_mode=token_log above 0 on the log ratio; above 0; null leaves
    that side unbounded."""
    clip_ratio_dual: float | None = None
    """Largest ratio that counts where the advantage is negative (dual-clip PPO), above 1; null sets no bound;
    used with clip_mode=min only."""
    tau_pos: float = TAU_POS
    """Temperature of the gate where the advantage is positive; above 0; used with clip_mode=soft_gate."""
    tau_neg: float = TAU_NEG
    """The same where the advantage is negative; above 0; a higher one fades faster."""
    clip_calibration: ClipCalibration = ClipCalibration.none
    """Where the clip band comes from."""
    clip_fraction: float = CLIP_FRACTION
    """Share of the trained tokens that a calibrated band should clip; above 0, and below 1; used with
    clip_calibration=quantile only."""
    aggregation: Aggregation = Aggregation.sequence_mean
    """How token terms become one loss; ratio levels other than `token` allow `sequence_mean` and
    `sequence_sum` only."""
    advantage_baseline: AdvantageBaseline = AdvantageBaseline.group_mean
    """What is subtracted from a reward."""
    advantage_scale: AdvantageScale = AdvantageScale.group_std
    """What the centered reward is divided by."""
    advantage_std_floor: float = 0.0
    """Least standard deviation to divide by; 0 or more; 0 divides by the deviation itself (GSPO paper,
    Eq. 6). TRL and verl add 1e-4 and 1e-6 to the deviation against division by 0; a floor of about 0.05
    keeps rewards that differ by noise alone from becoming full-size advantages."""
    advantage_parts: AdvantageParts = AdvantageParts.sum
    """What is normalized of a reward of several parts."""
    credit: Credit = Credit.trajectory
    """Which reward a turn of the agent gets credit for; `turn` needs a ratio level with a token axis."""
    discount: float = 1.0
    """Discount factor of later rewards per turn, used with credit=turn, or per step of the estimate with
    advantage_baseline=value; at most 1, and above 0."""
    beta: float = 0.0
    """Weight of the KL penalty against the model before training; 0 disables it; 0 or more."""
    reference_refresh: int | None = None
    """Number of iterations after which the reference becomes the present policy, again and again (TRL's
    ref_model_sync_steps, with nothing mixed in); above 0; null keeps the model before training."""
    kl_estimator: KLEstimator = KLEstimator.k3
    """How the KL divergence is estimated, and where it acts."""
    kl_bias_corrected: bool = False
    """Multiplies k3 by the token's importance ratio, without which its gradient is biased once the policy has
    moved (DeepSeek-V3.2)."""
    entropy_coefficient: float = 0.0
    """Weight of a bonus for the policy's entropy, the mean over the trained tokens of an update, in nats; 0
    or more; 0 is off. With an entropy floor it is where the adapted weight starts."""
    entropy_floor: float | None = None
    """Entropy below which the bonus is paid, in nats per token, its weight adapted from iteration to
    iteration (arXiv 2505.22312: 0.2); above 0; null pays the bonus always."""
    entropy_step: float = ENTROPY_STEP
    """How far the weight of the bonus rises after an iteration below the floor, and falls after one above it;
    above 0; used with entropy_floor only."""
    high_entropy_tokens: float = 1.0
    """Share of the trained tokens of an update that the policy gradient is taken on, those at which the old
    policy has the highest entropy (arXiv 2506.01939: 0.2); above 0, and at most 1."""
    learning_rate: float = MISSING
    """Learning rate after the warm-up; above 0."""
    truncated_completions: Truncated = Truncated.keep
    """What to do with an answer that hits the length limit or the turn limit."""
    truncation_penalty: float = 0.5
    """What `penalise` (or `penalize`) subtracts from the reward of such an answer; 0 or more."""
    overlong_buffer: float = 0.0
    """Share of the length limit, at its end, in which the reward of an answer falls linearly with its length
    (DAPO); between 0 and 1; 0 is off. Of several turns the longest counts."""
    overlong_penalty: float = OVERLONG_PENALTY
    """What is taken off the reward of an answer as long as the limit; above 0; used with overlong_buffer
    only."""
    dynamic_sampling: bool = False
    """Replaces problems whose answers all earn the same reward with new ones (DAPO)."""
    dynamic_sampling_max_rounds: int = 3
    """Maximum rounds of dynamic sampling per iteration, including the first; above 0."""
    engine_correction: EngineCorrection = EngineCorrection.none
    """Correction for an engine that samples from a slightly different distribution than the trainer
    computes."""
    engine_correction_max: float | None = None
    """Upper bound of the engine ratio, above 1; null means 2 for those of tokens and 1.05 for those of
    answers."""
    off_policy_mask: float | None = None
    """Answers of negative advantage are not trained on where the mean over their tokens of log(old / policy)
    is above it (DeepSeek-V3.2); above 0; null trains on all."""
    preference: Preference = Preference.none
    """Whether the best answer of a group is compared with its worst, by which loss; `beta` is the loss's."""
    pairs: str | None = None
    """File of preference pairs to train on in place of sampled answers, used with preference: JSON lines or a
    JSON array, also .gz; with the extra `data` also parquet, csv, arrow and .zst. Rows have `prompt` or
    `messages`, `chosen` and `rejected`. Null samples answers and compares these."""
    value: ValueConfig = field(default_factory=ValueConfig)
    routing_replay: bool = False
    """Replays the experts that the old policy chose in a Mixture-of-Experts model."""

    def __post_init__(self) -> None:
        check_ranges(self)
        check_advantage(self)
        check_value(self)
        check_preference(self)
        check_pairs(self)
        check_batch_baseline(self)
        check_parts(self)
        check_length_penalty(self)
        check_ratio(self)
        check_off_policy(self)
        check_selection(self)
        check_entropy(self)
        check_clip(self)
        check_calibration(self)

    @property
    def has_band(self) -> bool:
        """Whether the clip mode has a clip band, bounded or not."""
        return self.clip_mode not in (ClipMode.none, ClipMode.soft_gate)

    @property
    def clips_tokens(self) -> bool:
        """Whether what is clipped are the ratios of single tokens, not one ratio of an answer."""
        return self.ratio_level is RatioLevel.token or self.clip_mode is ClipMode.token_log

    @property
    def compares_means(self) -> bool:
        """Whether what is clipped is the geometric mean of an answer, whose band is narrow."""
        return not self.clips_tokens and self.ratio_level is not RatioLevel.sequence_product

    @property
    def widest_left(self) -> float:
        """The left width beyond which nothing can be clipped: no ratio is below 0, log ratios have no such
        bound."""
        return WIDEST if self.clip_mode is ClipMode.token_log else 1.0

    @property
    def in_pairs(self) -> bool:
        """Whether answers are compared in pairs, which have no ratio to an old policy."""
        return self.preference is not Preference.none

    @property
    def weighs_by_ratio(self) -> bool:
        """Whether what sets the algorithm apart from others is how it treats the ratio, so that with one
        update per rollout it is like them."""
        return not (self.in_pairs or self.has_critic)

    @property
    def has_critic(self) -> bool:
        """Whether a value head is the baseline, which makes an advantage of every answer by itself."""
        return self.advantage_baseline is AdvantageBaseline.value

    @property
    def pays_entropy(self) -> bool:
        """Whether the loss may have a bonus for entropy, which every trained answer counts in."""
        return self.entropy_coefficient > 0 or self.entropy_floor is not None

    @property
    def within_groups(self) -> bool:
        """Whether an answer is compared with the other answers to its prompt, so that a group in which all
        earn the same teaches nothing."""
        return self.advantage_baseline in (AdvantageBaseline.group_mean, AdvantageBaseline.leave_one_out)

    @property
    def is_calibrated(self) -> bool:
        """Whether the clip band follows the ratios."""
        return self.clip_calibration is ClipCalibration.quantile

    @property
    def engine_weight_max(self) -> float:
        """The bound of the engine ratio, with its default."""
        by_answer = (EngineCorrection.sequence_mask, EngineCorrection.sequence_truncate)
        default = 1.05 if self.engine_correction in by_answer else 2.0
        return default if self.engine_correction_max is None else self.engine_correction_max

    @property
    def kl_in_loss(self) -> bool:
        """Whether a KL penalty is added to the loss (k2, k3), which needs reference log-probabilities."""
        return self.beta > 0 and self.kl_estimator is not KLEstimator.k1 and not self.in_pairs

    @property
    def kl_in_reward(self) -> bool:
        """Whether k1 is subtracted from the reward before advantages."""
        return self.beta > 0 and self.kl_estimator is KLEstimator.k1 and not self.in_pairs

    @property
    def band(self) -> tuple[float, float]:
        """[1 - left, 1 + right], with clip_mode=token_log [exp(-left), exp(right)]; unbounded on a side whose
        width is null."""
        left, right = self.clip_range
        if self.clip_mode is ClipMode.token_log:
            return 0.0 if left is None else math.exp(-left), math.inf if right is None else math.exp(right)
        return -math.inf if left is None else 1 - left, math.inf if right is None else 1 + right

    @property
    def log_band(self) -> tuple[float, float]:
        """[-left, right], what log ratios are clipped to with clip_mode=token_log."""
        left, right = self.clip_range
        return -math.inf if left is None else -left, math.inf if right is None else right

    @property
    def clip_range(self) -> tuple[float | None, float | None]:
        """Widths of the band, None if a side has no bound."""
        if not self.has_band:
            return None, None
        return self.clip_range_left, self.clip_range_right
