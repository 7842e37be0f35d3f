"""Checks of the group `algorithm`: ranges, and combinations that have no meaning. Each raises UserError that
names the key and the fix."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gspo_cli.config.checks import (
    require,
    require_at_most,
    require_fraction,
    require_not_negative,
    require_path,
    require_positive,
)
from gspo_cli.config.choices import (
    AdvantageBaseline,
    AdvantageParts,
    AdvantageScale,
    Aggregation,
    ClipMode,
    Credit,
    EngineCorrection,
    KLEstimator,
    RatioLevel,
    Truncated,
)
from gspo_cli.config.value_schema import ValueConfig

if TYPE_CHECKING:
    from gspo_cli.config.algorithm_schema import AlgorithmConfig

WIDEST = 1e3  # of a clip band, and of a ratio's bound
CLIP_FRACTION = 0.15  # share of tokens: what GSPO clips with the paper's band (Fig. 2)
ENTROPY_STEP = 0.005  # of an adapted bonus, as published (Skywork-OR1)
OVERLONG_PENALTY = 1.0  # as published (DAPO)
TAU_POS, TAU_NEG = 1.0, 1.05  # of SAPO's gate, as published


def check_ranges(algorithm: AlgorithmConfig) -> None:
    """Each number within its range."""
    for name in ("clip_range_left", "clip_range_right"):
        value = getattr(algorithm, name)
        require(
            value is None or 0 < value <= WIDEST,
            f"algorithm.{name}={value}: is a width around 1 and must be above 0 and at most {WIDEST:g}; "
            "use null for no bound",
        )
    require_positive("algorithm", algorithm, "learning_rate", "dynamic_sampling_max_rounds")
    require_positive("algorithm", algorithm, "tau_pos", "tau_neg")
    require_at_most("algorithm", algorithm, learning_rate=1.0, beta=1e3, tau_pos=1e3, tau_neg=1e3)
    require(
        algorithm.engine_correction_max is None or 1 < algorithm.engine_correction_max <= WIDEST,
        f"algorithm.engine_correction_max={algorithm.engine_correction_max}: is an upper bound of a "
        "ratio and must be above 1 and at most 1000; use null for the default",
    )
    require(
        algorithm.clip_ratio_dual is None or 1 < algorithm.clip_ratio_dual <= WIDEST,
        f"algorithm.clip_ratio_dual={algorithm.clip_ratio_dual}: is an upper bound of a ratio and must be "
        "above 1 and at most 1000; give 3, or null for no bound",
    )
    require_not_negative("algorithm", algorithm, "beta", "truncation_penalty", "advantage_std_floor")
    refresh = algorithm.reference_refresh
    require(
        refresh is None or refresh > 0,
        f"algorithm.reference_refresh={refresh}: is a number of iterations and must be above 0; give 50, or "
        "null to keep the model before training",
    )
    require(
        refresh is None or algorithm.beta > 0,
        f"algorithm.reference_refresh={refresh}: only applies with a KL penalty; use algorithm.beta=0.01, or "
        "leave it out",
    )


def check_advantage(algorithm: AlgorithmConfig) -> None:
    """What concerns rewards and advantages."""
    require(
        algorithm.advantage_std_floor == 0 or algorithm.advantage_scale is not AdvantageScale.none,
        f"algorithm.advantage_std_floor={algorithm.advantage_std_floor}: only applies where "
        "something divides; set algorithm.advantage_scale=group_std or batch_std, or a floor of 0",
    )
    require(
        0 < algorithm.discount <= 1,
        f"algorithm.discount={algorithm.discount}: must be above 0 and at most 1; give 1 for no discount",
    )
    whole = algorithm.ratio_level.is_whole
    require(
        algorithm.credit is Credit.turn or algorithm.discount == 1 or algorithm.has_critic,
        f"algorithm.discount={algorithm.discount}: only applies to credit by turns; use "
        f"{'algorithm=gspo_token ' if whole else ''}algorithm.credit=turn, or algorithm.discount=1",
    )
    require(
        algorithm.credit is Credit.trajectory or not whole,
        "algorithm.credit=turn: a sequence ratio takes one advantage for the whole conversation; use "
        "algorithm=gspo_token or algorithm=grpo",
    )


def check_value(algorithm: AlgorithmConfig) -> None:
    """What an actor-critic needs, and its settings elsewhere."""
    if not algorithm.has_critic:
        require(
            algorithm.value == ValueConfig(),
            "algorithm.value: only applies to an actor-critic; use algorithm=ppo or algorithm=a2c, or leave "
            "it out",
        )
        return
    key = "algorithm.advantage_baseline=value"
    require(
        not algorithm.ratio_level.is_whole,
        f"{key}: gives each token an advantage, and a sequence ratio takes one for all; use "
        "algorithm.ratio_level=token or sequence_token",
    )
    require(
        algorithm.advantage_scale is not AdvantageScale.group_std,
        "algorithm.advantage_scale=group_std: a value head takes the place of the group; use "
        "algorithm.advantage_scale=batch_std or none",
    )
    require(
        not algorithm.dynamic_sampling,
        f"algorithm.dynamic_sampling=true: with {key} answers of equal reward teach, too; use "
        "algorithm.dynamic_sampling=false",
    )
    require(
        not algorithm.kl_in_reward,
        f"algorithm.kl_estimator=k1: {key} takes the KL penalty in the loss; use "
        "algorithm.kl_estimator=k2 or k3",
    )


def check_preference(algorithm: AlgorithmConfig) -> None:
    """What a comparison in pairs needs."""
    if not algorithm.in_pairs:
        return
    key = f"algorithm.preference={algorithm.preference.value}"
    require(algorithm.beta > 0, f"algorithm.beta=0: {key} needs its beta; give a value such as 0.1")
    fixed = {
        "ratio_level": (algorithm.ratio_level, RatioLevel.token),
        "clip_mode": (algorithm.clip_mode, ClipMode.none),
        "advantage_baseline": (algorithm.advantage_baseline, AdvantageBaseline.group_mean),
        "advantage_scale": (algorithm.advantage_scale, AdvantageScale.none),
        "credit": (algorithm.credit, Credit.trajectory),
        "engine_correction": (algorithm.engine_correction, EngineCorrection.none),
        "kl_estimator": (algorithm.kl_estimator, KLEstimator.k3),
    }
    for name, (value, needed) in fixed.items():
        require(
            value is needed,
            f"algorithm.{name}={value.value}: has no meaning for pairs; use algorithm.{name}={needed.value}, "
            "or algorithm.preference=none",
        )
    require(
        algorithm.aggregation in (Aggregation.sequence_sum, Aggregation.sequence_mean),
        f"algorithm.aggregation={algorithm.aggregation.value}: a pair compares whole answers; use "
        "sequence_sum, or sequence_mean for the mean over tokens",
    )
    require(
        not algorithm.routing_replay,
        f"algorithm.routing_replay=true: {key} has no old policy to replay; use false",
    )


def check_pairs(algorithm: AlgorithmConfig) -> None:
    """What training on a file of pairs goes with."""
    if algorithm.pairs is None:
        return
    require_path("algorithm.pairs", algorithm.pairs)
    require(
        algorithm.in_pairs,
        f"algorithm.pairs={algorithm.pairs}: is what algorithm=dpo trains on; use that, or "
        "algorithm.pairs=null",
    )
    others = {
        "algorithm.truncated_completions=keep": algorithm.truncated_completions is Truncated.keep,
        "algorithm.overlong_buffer=0": algorithm.overlong_buffer == 0,
        "algorithm.dynamic_sampling=false": not algorithm.dynamic_sampling,
    }
    for fix, holds in others.items():
        require(holds, f"algorithm.pairs={algorithm.pairs}: has answers that are not sampled; use {fix}")


def check_batch_baseline(algorithm: AlgorithmConfig) -> None:
    """What a baseline over the whole iteration goes with."""
    if algorithm.advantage_baseline is not AdvantageBaseline.batch_mean:
        return
    key = "algorithm.advantage_baseline=batch_mean"
    require(
        algorithm.advantage_scale is not AdvantageScale.group_std,
        f"{key}: a group's deviation is not that of the distances from another mean; use "
        "algorithm.advantage_scale=batch_std",
    )
    require(
        algorithm.credit is Credit.trajectory,
        f"{key}: compares whole answers; use algorithm.credit=trajectory, or "
        "algorithm.advantage_baseline=group_mean",
    )
    require(
        not algorithm.dynamic_sampling,
        f"{key}: groups of equal rewards teach, too; use algorithm.dynamic_sampling=false",
    )


def check_parts(algorithm: AlgorithmConfig) -> None:
    """What the normalization of each part of a reward goes with."""
    if algorithm.advantage_parts is not AdvantageParts.each:
        return
    others = {
        "algorithm.advantage_baseline=group_mean": algorithm.advantage_baseline
        is AdvantageBaseline.group_mean,
        "algorithm.advantage_scale=group_std": algorithm.advantage_scale is AdvantageScale.group_std,
        "algorithm.credit=trajectory": algorithm.credit is Credit.trajectory,
        "algorithm.preference=none": not algorithm.in_pairs,
        "algorithm.dynamic_sampling=false": not algorithm.dynamic_sampling,
        "algorithm.truncated_completions=keep": algorithm.truncated_completions is not Truncated.penalise,
        "algorithm.overlong_buffer=0": algorithm.overlong_buffer == 0,
        "algorithm.kl_estimator=k3": not algorithm.kl_in_reward,
    }
    for fix, holds in others.items():
        require(
            holds,
            f"algorithm.advantage_parts=each: normalizes the parts of the reward as they are; use {fix}",
        )


def check_length_penalty(algorithm: AlgorithmConfig) -> None:
    """The soft penalty of long answers."""
    require_fraction("algorithm", algorithm, "overlong_buffer")
    require_positive("algorithm", algorithm, "overlong_penalty")
    require(
        algorithm.overlong_buffer > 0 or algorithm.overlong_penalty == OVERLONG_PENALTY,
        f"algorithm.overlong_penalty={algorithm.overlong_penalty}: only applies with a buffer; use "
        "algorithm.overlong_buffer=0.2, or leave it out",
    )
    require(
        algorithm.overlong_buffer == 0 or algorithm.truncated_completions is not Truncated.penalise,
        "algorithm.truncated_completions=penalise: algorithm.overlong_buffer penalizes an answer that is cut "
        "already; use algorithm.truncated_completions=mask or keep",
    )
    require(
        algorithm.overlong_buffer == 0 or not algorithm.has_critic,
        f"algorithm.overlong_buffer={algorithm.overlong_buffer}: is not part of the rewards that an "
        "actor-critic estimates; use algorithm.overlong_buffer=0",
    )


def check_off_policy(algorithm: AlgorithmConfig) -> None:
    """The options for a policy that has moved from the old one."""
    require(
        algorithm.off_policy_mask is None or 0 < algorithm.off_policy_mask <= WIDEST,
        f"algorithm.off_policy_mask={algorithm.off_policy_mask}: is a threshold of a mean log ratio and must "
        f"be above 0 and at most {WIDEST:g}; give 0.1, or null to train on all",
    )
    require(
        algorithm.off_policy_mask is None or not algorithm.in_pairs,
        f"algorithm.off_policy_mask={algorithm.off_policy_mask}: a pair has no old policy; use "
        "algorithm.off_policy_mask=null, or algorithm.preference=none",
    )
    require(
        algorithm.off_policy_mask is None or not algorithm.has_critic,
        f"algorithm.off_policy_mask={algorithm.off_policy_mask}: leaves out answers of negative advantage, "
        "and a value head gives an answer both signs; use algorithm.off_policy_mask=null",
    )
    require(
        not algorithm.kl_bias_corrected
        or (algorithm.kl_in_loss and algorithm.kl_estimator is KLEstimator.k3),
        "algorithm.kl_bias_corrected=true: corrects k3 in the loss; use algorithm.beta=0.01 "
        "algorithm.kl_estimator=k3, or algorithm.kl_bias_corrected=false",
    )


def check_selection(algorithm: AlgorithmConfig) -> None:
    """Where a share of the tokens can be chosen."""
    share = algorithm.high_entropy_tokens
    require(
        0 < share <= 1,
        f"algorithm.high_entropy_tokens={share}: is a share of the tokens and must be above 0 and at most 1; "
        "give 0.2, or 1 for all",
    )
    require(
        share == 1 or not algorithm.ratio_level.is_whole,
        f"algorithm.high_entropy_tokens={share}: a ratio of whole answers has no term of a token; use "
        "algorithm=grpo or algorithm=gspo_token, or algorithm.high_entropy_tokens=1",
    )
    require(
        share == 1 or not algorithm.in_pairs,
        f"algorithm.high_entropy_tokens={share}: a pair compares whole answers; use "
        "algorithm.high_entropy_tokens=1",
    )


def check_entropy(algorithm: AlgorithmConfig) -> None:
    """The bonus for entropy and its floor."""
    require_not_negative("algorithm", algorithm, "entropy_coefficient")
    require_positive("algorithm", algorithm, "entropy_step")
    require_at_most("algorithm", algorithm, entropy_coefficient=10.0, entropy_step=1.0)
    floor = algorithm.entropy_floor
    require(
        floor is None or 0 < floor <= 20,
        f"algorithm.entropy_floor={floor}: is an entropy in nats per token and must be above 0 and at most "
        "20; give 0.2, or null for none",
    )
    require(
        floor is not None or algorithm.entropy_step == ENTROPY_STEP,
        f"algorithm.entropy_step={algorithm.entropy_step}: only applies with a floor; use "
        "algorithm.entropy_floor=0.2, or leave it out",
    )
    name, off = ("entropy_coefficient", "0") if floor is None else ("entropy_floor", "null")
    require(
        not (algorithm.pays_entropy and algorithm.in_pairs),
        f"algorithm.{name}: a pair is of chosen answers, not of what the policy samples; use "
        f"algorithm.{name}={off}, or algorithm.preference=none",
    )


def check_ratio(algorithm: AlgorithmConfig) -> None:
    """Which aggregations and clip modes a ratio level allows."""
    if algorithm.ratio_level is not RatioLevel.token:
        require(
            algorithm.aggregation in (Aggregation.sequence_mean, Aggregation.sequence_sum),
            f"algorithm.aggregation={algorithm.aggregation.value}: a sequence-level ratio needs "
            "sequence_mean or sequence_sum; other aggregations weight sequences by length",
        )
        require(
            algorithm.ratio_level is not RatioLevel.sequence_product
            or algorithm.aggregation is Aggregation.sequence_mean,
            "algorithm.aggregation=sequence_sum: would weight the one term of a product over tokens by its "
            "length; use algorithm.aggregation=sequence_mean",
        )
        require(
            algorithm.clip_mode is not ClipMode.stop_gradient,
            "algorithm.clip_mode=stop_gradient: is defined for token ratios (CISPO); "
            "set algorithm.ratio_level=token or algorithm.clip_mode=min",
        )
    require(
        algorithm.clip_mode is not ClipMode.token_log or algorithm.ratio_level is RatioLevel.sequence,
        "algorithm.clip_mode=token_log: clips the tokens of a geometric mean (GMPO); set "
        "algorithm.ratio_level=sequence or algorithm.clip_mode=min",
    )


def check_clip(algorithm: AlgorithmConfig) -> None:
    """What each clip mode needs, and settings of another mode."""
    mode = algorithm.clip_mode
    if mode in (ClipMode.min, ClipMode.token_log):
        require(
            algorithm.clip_range_left is not None and algorithm.clip_range_right is not None,
            f"algorithm.clip_range_left, clip_range_right: clip_mode={mode.value} needs both widths; give "
            "two numbers",
        )
    require(
        algorithm.clip_ratio_dual is None or mode is ClipMode.min,
        f"algorithm.clip_ratio_dual={algorithm.clip_ratio_dual}: bounds the term of clip_mode=min; set "
        "algorithm.clip_mode=min, or algorithm.clip_ratio_dual=null",
    )
    for name, default in (("tau_pos", TAU_POS), ("tau_neg", TAU_NEG)):
        value = getattr(algorithm, name)
        require(
            mode is ClipMode.soft_gate or value == default,
            f"algorithm.{name}={value}: only applies to the soft gate; use algorithm=sapo, or leave it out",
        )


def check_calibration(algorithm: AlgorithmConfig) -> None:
    """Where a clip band can be calibrated."""
    require(
        0 < algorithm.clip_fraction < 1,
        f"algorithm.clip_fraction={algorithm.clip_fraction}: must be above 0 and below 1; give a share of "
        f"the trained tokens such as {CLIP_FRACTION}",
    )
    require(
        algorithm.is_calibrated or algorithm.clip_fraction == CLIP_FRACTION,
        f"algorithm.clip_fraction={algorithm.clip_fraction}: only applies with algorithm.clip_calibration="
        + (
            "quantile; set that, or leave it out"
            if algorithm.clip_range != (None, None)
            else "quantile, and there is no clip band to calibrate; leave it out"
        ),
    )
    require(
        not algorithm.is_calibrated or algorithm.clip_range != (None, None),
        "algorithm.clip_calibration=quantile: there is no clip band to calibrate; use "
        "algorithm.clip_calibration=none"
        + ("" if algorithm.in_pairs else ", or algorithm.clip_mode=min with two widths"),
    )
