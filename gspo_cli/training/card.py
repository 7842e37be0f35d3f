"""The objective card: what will be optimised and with how much, printed and saved before training starts."""

from __future__ import annotations

from gspo_cli.config.cautions import cautions
from gspo_cli.config.choices import (
    AdvantageBaseline,
    AdvantageScale,
    Aggregation,
    ClipMode,
    Credit,
    RatioLevel,
    Schedule,
    Truncated,
)
from gspo_cli.config.schema import AlgorithmConfig, RunConfig
from gspo_cli.console.words import number
from gspo_cli.policy.policy import Policy
from gspo_cli.training.memory_plan import memory_line

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
}
MEANS = {
    Aggregation.sequence_mean: "mean over answers of the mean over their trained tokens",
    Aggregation.token_mean: "mean over all trained tokens of the update",
    Aggregation.constant: "sum over trained tokens / (answers x max_completion_length)",
}
SCALES = {
    AdvantageScale.group_std: " / std of the group (n - 1)",
    AdvantageScale.batch_std: " / std of the batch (n - 1)",
    AdvantageScale.none: "",
}


def formula(algorithm: AlgorithmConfig) -> str:
    """The objective of one token term, with the effective clip band."""
    ratio = RATIOS[algorithm.ratio_level][0]
    low, high = algorithm.band
    if algorithm.clip_mode is ClipMode.none:
        term = f"{ratio} A"
    elif algorithm.clip_mode is ClipMode.stop_gradient:
        term = f"sg[clip({ratio}, {low:g}, {high:g})] A log pi(y_t)"
    else:
        term = f"min({ratio} A, clip({ratio}, {low:.6g}, {high:.6g}) A)"
    if algorithm.kl_in_loss:
        term += f" - {algorithm.beta:g} KL_{algorithm.kl_estimator.value}"
    return term


def advantage_formula(algorithm: AlgorithmConfig) -> str:
    """How a reward becomes an advantage."""
    others = algorithm.advantage_baseline is AdvantageBaseline.leave_one_out
    reward = "r"
    if algorithm.kl_in_reward:
        reward = f"r - {algorithm.beta:g} KL_k1"
    if algorithm.truncated_completions is Truncated.penalise:
        reward += f" - {algorithm.truncation_penalty:g} [cut]"
    baseline = "mean of the group's other answers" if others else "mean of the group"
    scale = SCALES[algorithm.advantage_scale]
    if algorithm.credit is Credit.turn:
        earned = f"R_k: reward from turn k on, discount {algorithm.discount:g}"
        return f"A_k = (R_k - {baseline} at turn k){scale}; {earned}, r = {reward}"
    return f"A = ({reward} - {baseline}){scale}"


def objective_card(
    config: RunConfig,
    policy: Policy,
    train_problems: int,
    heldout_problems: int,
    longest_prompt: int,
    noise: str,
    ranks: int = 1,
) -> str:
    """The card as text, one fact per line; `longest_prompt` in tokens, `noise` the line of what was measured
    before training."""
    algorithm, training, rollout = config.algorithm, config.training, config.rollout
    trained = sum(p.numel() for p in policy.trainable())
    total = sum(p.numel() for p in policy.model.parameters())
    answers = training.generations_per_iteration
    steps = training.num_outer_iterations * training.updates_per_rollout
    rate = f"{algorithm.learning_rate:g}"
    if training.schedule is not Schedule.constant or training.warmup_iterations:
        rate += f", {training.schedule.value} after {training.warmup_iterations} warm-up iterations"
    reference = "adapter off" if policy.has_adapter else "frozen copy"
    parameters = f"{trained:,} trained of {total:,}"
    facts = {
        "objective": f"{formula(algorithm)}   ({MEANS[algorithm.aggregation]})",
        "ratio": RATIOS[algorithm.ratio_level][1],
        **_band(algorithm),
        "advantage": advantage_formula(algorithm),
        "reference": reference if algorithm.beta > 0 else "not in the loss (beta = 0)",
        "iteration": f"{training.prompts_per_iteration} prompts x {training.num_generations} answers"
        f" = {answers} answers -> {training.updates_per_rollout} updates of "
        f"{training.answers_per_update} answers",
        "run": f"{training.num_outer_iterations} iterations"
        f" = {training.num_outer_iterations * answers:,} answers, {steps:,} updates;"
        f" about {_epochs(config, train_problems):.2g} epochs of {train_problems:,} problems",
        "micro-batch": f"up to {config.hardware.tokens_per_microbatch:,} tokens, padding included",
        "sampling": f"temperature {rollout.temperature:g}, top_p {rollout.top_p:g},"
        f" top_k {rollout.top_k or 'off'};"
        f" prompts to {rollout.max_prompt_length}, {_longest_answer(config)}",
        "learning": f"AdamW, rate {rate}; gradient norm to {training.max_grad_norm:g}",
        "parameters": f"{parameters} (LoRA r={config.model.lora_r})" if policy.has_adapter else parameters,
        "memory": memory_line(config, policy, longest_prompt, ranks),
        "noise": noise,
        "data": f"{config.task.source} (licence: {config.task.license})",
        "held-out": f"{heldout_problems} problems, greedy and {config.evaluation.samples} samples each",
    }
    title = f"{algorithm.name} on {config.task.name} with {config.model.label}, seed {config.seed}"
    lines = [title, *(f"  {name:<12}{text}" for name, text in facts.items())]
    return "\n".join([*lines, *(f"  note        {text}" for text in cautions(config))])


def _band(algorithm: AlgorithmConfig) -> dict[str, str]:
    """Where the band comes from, where it does not stay as the objective has it."""
    if not algorithm.is_calibrated:
        return {}
    left, right = map(number, algorithm.clip_range)
    share = f"{algorithm.clip_fraction * 100:.3g}%"
    return {"band": f"calibrated to clip {share} of tokens, from {left} / {right}"}


def _longest_answer(config: RunConfig) -> str:
    rollout = config.rollout
    if config.task.environment().single_turn:
        return f"answers to {rollout.max_completion_length} tokens"
    return f"up to {rollout.max_turns} turns of {rollout.max_completion_length} tokens"


def _epochs(config: RunConfig, train_problems: int) -> float:
    return config.training.num_outer_iterations * config.training.prompts_per_iteration / train_problems
