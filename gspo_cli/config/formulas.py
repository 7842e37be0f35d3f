"""The objective of an algorithm section as formulas: what start card, model card and comparison print.

A is an advantage, r a reward, V a value, H the policy's mean entropy; pi is the policy, pi_old the one that
sampled, ref the model before training."""

from __future__ import annotations

import math

from gspo_cli.config.algorithm_schema import AlgorithmConfig
from gspo_cli.config.choices import (
    AdvantageBaseline,
    AdvantageParts,
    AdvantageScale,
    Aggregation,
    ClipMode,
    Credit,
    Preference,
    RatioLevel,
    Truncated,
)

RATIOS = {
    RatioLevel.token: ("w_t", "w_t = pi(y_t) / pi_old(y_t), per token"),
    RatioLevel.sequence: (
        "s",
        "s = exp(mean_t log pi(y_t)/pi_old(y_t)), per answer [arXiv 2507.18071 Eq. 7]",
    ),
    RatioLevel.sequence_token: (
        "s_t",
        "s_t = sg[s] pi(y_t)/sg[pi(y_t)]: value per answer, gradient per token [Eq. 14]",
    ),
    RatioLevel.sequence_product: (
        "w",
        "w = pi(y)/pi_old(y), per answer: the product over its tokens [arXiv 2402.14740]",
    ),
}
MEANS = {
    Aggregation.sequence_mean: "mean over answers of the mean over their trained tokens",
    Aggregation.token_mean: "mean over all trained tokens of the update",
    Aggregation.sequence_sum: "mean over answers of the sum over their trained tokens",
    Aggregation.constant: "sum over trained tokens / (answers x max_completion_length)",
}
BASELINES = {
    AdvantageBaseline.group_mean: "mean of the group",
    AdvantageBaseline.leave_one_out: "mean of the group's other answers",
    AdvantageBaseline.batch_mean: "mean of the batch",
}
SCALES = {
    AdvantageScale.group_std: " / std of the group (n - 1)",
    AdvantageScale.batch_std: " / std of the batch (n - 1)",
    AdvantageScale.none: "",
}


def formula(algorithm: AlgorithmConfig) -> str:
    """What is maximized of one token, answer or pair, with the configured clip band."""
    if algorithm.in_pairs:
        return _pair_formula(algorithm)
    ratio = RATIOS[algorithm.ratio_level][0]
    if algorithm.clip_mode is ClipMode.none:
        term = f"{ratio} A"
    elif algorithm.clip_mode is ClipMode.stop_gradient:
        term = f"sg[{_clipped(ratio, algorithm.band)}] A log pi(y_t)"
    elif algorithm.clip_mode is ClipMode.soft_gate:
        tau = f"tau = {algorithm.tau_pos:g} for A > 0, {algorithm.tau_neg:g} for A < 0"
        term = f"4/tau sigmoid(tau ({ratio} - 1)) A, {tau}"
    elif algorithm.clip_mode is ClipMode.token_log:
        term = f"exp(mean_t {_clipped('log w_t', algorithm.log_band)}) A"
    else:
        term = f"min({ratio} A, {_clipped(ratio, algorithm.band)} A)"
    if algorithm.clip_ratio_dual is not None:
        term = f"{term}, at least {algorithm.clip_ratio_dual:g} A for A < 0"
    if algorithm.kl_in_loss:
        times = "w_t " if algorithm.kl_bias_corrected else ""
        term += f" - {algorithm.beta:g} {times}KL_{algorithm.kl_estimator.value}"
    if algorithm.high_entropy_tokens < 1:
        term += f"; of the {algorithm.high_entropy_tokens:g} of tokens with the highest entropy"
    if algorithm.entropy_floor is not None:
        start, step = algorithm.entropy_coefficient, algorithm.entropy_step
        term += f" + c H while H < {algorithm.entropy_floor:g}, c from {start:g} in steps of {step:g}"
    elif algorithm.entropy_coefficient:
        term += f" + {algorithm.entropy_coefficient:g} H"
    if algorithm.off_policy_mask is not None:
        term += f"; 0 for A < 0 where mean log(pi_old/pi) > {algorithm.off_policy_mask:g}"
    return term


def _clipped(name: str, band: tuple[float, float]) -> str:
    """`name` within the bounded sides of a band."""
    low, high = band
    if math.isinf(low) and math.isinf(high):
        return name
    if math.isinf(low):
        return f"min({name}, {high:.6g})"
    return f"max({name}, {low:.6g})" if math.isinf(high) else f"clip({name}, {low:.6g}, {high:.6g})"


def mean_formula(algorithm: AlgorithmConfig) -> str:
    """What the mean of these terms is over."""
    if algorithm.in_pairs:
        return "mean over pairs"
    # the product has one term an answer, whatever its length
    whole = algorithm.ratio_level is RatioLevel.sequence_product
    return "mean over answers" if whole else MEANS[algorithm.aggregation]


def ratio_formula(algorithm: AlgorithmConfig) -> str:
    """The ratio in `formula`; empty for pairs, which have none."""
    if algorithm.in_pairs:
        return ""
    return RATIOS[RatioLevel.token if algorithm.clips_tokens else algorithm.ratio_level][1]


def value_formula(algorithm: AlgorithmConfig) -> str:
    """The loss of the value head and how it is trained; empty without one."""
    if not algorithm.has_critic:
        return ""
    value = algorithm.value
    loss = "(V - return)^2 / 2"
    if value.clip is not None:
        loss += f", at least that of V within {value.clip:g} of its old value"
    share = f"{value.coefficient:g}" if value.coefficient else "none"
    return f"{loss}; a head trained at {value.learning_rate:g}, {share} of its gradient goes into the model"


def _pair_formula(algorithm: AlgorithmConfig) -> str:
    over = "mean" if algorithm.aggregation is Aggregation.sequence_mean else "sum"
    if algorithm.preference is Preference.ipo:
        loss = f"-(h - {1 / (2 * algorithm.beta):g})^2"
    else:
        loss = f"log sigmoid({algorithm.beta:g} h)"
    answers = "best minus worst" if algorithm.pairs is None else "chosen minus rejected"
    return f"{loss}, h = {over} of log(p/ref), {answers} answer"


def advantage_formula(algorithm: AlgorithmConfig) -> str:
    """How a reward becomes an advantage."""
    reward = "r"
    if algorithm.kl_in_reward:
        reward = f"r - {algorithm.beta:g} KL_k1"
    if algorithm.truncated_completions is Truncated.penalise:
        reward += f" - {algorithm.truncation_penalty:g} [cut]"
    if algorithm.overlong_buffer:
        share = f"{algorithm.overlong_buffer:g} of the length"
        reward += f" - {algorithm.overlong_penalty:g} [0 to 1 over the last {share}]"
    if algorithm.pairs is not None:
        return "none: pairs are as they are in the file"
    if algorithm.in_pairs:
        return f"the best and the worst of a group by {reward}; the others are not trained"
    if algorithm.has_critic:
        return _critic_formula(algorithm, reward)
    if algorithm.advantage_parts is AdvantageParts.each:
        return (
            "A = (sum of A_k - mean of the batch) / std of the batch; A_k = (r_k - mean) / std of the group"
        )
    baseline = BASELINES[algorithm.advantage_baseline]
    scale = SCALES[algorithm.advantage_scale]
    if algorithm.advantage_std_floor:
        scale += f", at least {algorithm.advantage_std_floor:g}"
    if algorithm.credit is Credit.turn:
        earned = f"R_k: reward from turn k on, discount {algorithm.discount:g}"
        return f"A_k = (R_k - {baseline} at turn k){scale}; {earned}, r = {reward}"
    return f"A = ({reward} - {baseline}){scale}"


def _critic_formula(algorithm: AlgorithmConfig, reward: str) -> str:
    value, where = algorithm.value, "each turn's" if algorithm.credit is Credit.turn else "the conversation's"
    white = ", whitened" if algorithm.advantage_scale is AdvantageScale.batch_std else ""
    return (
        f"A = GAE over {value.gae_steps.value}s{white}: lambda {value.gae_lambda:g}, discount "
        f"{algorithm.discount:g}; {reward} at {where} end"
    )
