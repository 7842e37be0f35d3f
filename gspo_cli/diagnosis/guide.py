"""The three entries of the GSPO guide's troubleshooting list, answered from a run's metrics. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from gspo_cli.config.choices import Device, Optimizer, Preference
from gspo_cli.config.schema import RunSettings
from gspo_cli.console.words import counted, number
from gspo_cli.diagnosis.history import (
    WINDOW,
    Finding,
    History,
    Severity,
    mean_of,
    nearer,
    number_of,
    preset_rate,
    slower,
)
from gspo_cli.plain_files import is_bounded

NO_SIGNAL = {  # rules that say why a reward does not rise
    "learning_rate_zero", "zero_reward", "constant_reward", "reward_scale", "equal_groups", "clip_saturation",
    "nothing_clips", "policy_still", "small_spread", "one_part", "noise",
    "truncation", "excluded", "not_finite", "reward_fell", "curriculum_stuck", "curriculum_ahead",
    "value_unexplained", "preference_chance",
}  # fmt: skip
UNSTABLE = {
    "reward_fell", "entropy_gone", "length_runaway", "repetition", "kl_far", "not_finite", "gradient_spike",
    "rolled_back", "held_out_fell", "reward_scale", "reward_outliers", "outlier_groups", "chosen_fell",
    "value_exploded", "preference_overfit",
}  # fmt: skip
WORTH = 0.05  # share of the estimate; smaller savings are not worth a change


@dataclass(frozen=True)
class Answer:
    """An entry of the list, answered for this run; `ok` where there is nothing to do."""

    entry: str
    ok: bool
    what: str
    fix: str
    settings: tuple[str, ...] = ()


def guide(run: History, findings: Sequence[Finding], card: Mapping[str, Any] | None) -> list[Answer]:
    """The entries in the guide's order. `card` is what card.json holds, None if there is none."""
    return [loss(run, findings), memory(run, card), instability(run, findings)]


def loss(run: History, findings: Sequence[Finding]) -> Answer:
    """Loss not decreasing: it need not decrease, but the reward should rise. That of a file of pairs
    should."""
    if run.config.algorithm.pairs is not None:
        return _loss_of_pairs(run, findings)
    start = _loss_so_far(run)
    if run.reward_gain is None:
        return Answer("loss not decreasing", True, f"{start}the run is too short to tell", "train longer")
    before, after, chance = run.reward_gain
    span = f"from {number(before)} to {number(after)}"
    if run.reward_rises:
        return Answer(
            "loss not decreasing", True, f"{start}the reward is what matters, and it rose {span}", ""
        )
    what = f"{start}the reward is what matters, and it went {span}: no significant rise ({number(chance)})"
    return _explained(run, findings, what)


def _loss_so_far(run: History) -> str:
    """The mean loss and what it should be, to begin a sentence; empty where none was logged."""
    losses, algorithm = run.values("loss"), run.config.algorithm
    if not losses:
        return ""
    start = f"the loss is {number(fmean(losses))} on average"
    if algorithm.in_pairs:
        chance = math.log(2) if algorithm.preference is Preference.dpo else (1 / (2 * algorithm.beta)) ** 2
        return f"{start}, where a policy that tells no answers apart has {number(chance)}; "
    if not algorithm.has_critic:
        return f"{start}, which is expected: advantages are centered; "
    of_values = [f"{number(value)}" for value in run.values("value/loss")]
    head = f", and the value head's went from {of_values[0]} to {of_values[-1]}" if of_values else ""
    return f"{start}, which is expected: values are about the mean of returns{head}; "


def _loss_of_pairs(run: History, findings: Sequence[Finding]) -> Answer:
    logged = [record for record in run.records if number_of(record, "loss") is not None]
    size = min(WINDOW, len(logged) // 2)
    if size == 0:
        return Answer("loss not decreasing", True, "the run is too short to tell", "train longer")
    before, after = mean_of(logged[:size], "loss"), mean_of(logged[-size:], "loss")
    right = f"the share of pairs in the right order is {number(run.last('preference/accuracy'))}"
    what = f"the loss went from {number(before)} to {number(after)}; {right}"
    if after < before:
        return Answer("loss not decreasing", True, what, "")
    return _explained(run, findings, what)


def _explained(run: History, findings: Sequence[Finding], what: str) -> Answer:
    """The answer to `what`, with the rules that explain it, or what to try."""
    causes = [f for f in findings if f.rule in NO_SIGNAL | UNSTABLE and f.severity is not Severity.note]
    causes = causes or [finding for finding in findings if finding.rule in NO_SIGNAL]
    if causes:
        named = ", ".join(finding.rule for finding in causes)
        return Answer("loss not decreasing", False, f"{what}; see {named}", causes[0].fix, causes[0].settings)
    longer = f"training.num_outer_iterations={2 * run.config.training.num_outer_iterations}"
    other = slower(run)
    if run.config.algorithm.learning_rate <= preset_rate(run):
        other = f"algorithm.learning_rate={3 * run.config.algorithm.learning_rate:.3g}"
    also = "; what sharpens the signal: " + ", ".join(sharper(run.config)) if sharper(run.config) else ""
    fix = f"no rule explains it: use {longer}, or {other}{also}"
    return Answer("loss not decreasing", False, what, fix, (longer,))


def sharper(config: RunSettings) -> list[str]:
    """Settings by which more is learned of an iteration; none where its answers are pairs of a file."""
    if config.algorithm.pairs is not None:
        return []
    return [_more_answers(config), *(f"{text} (wider)" for text in _band(config, 3.0))]


def _more_answers(config: RunSettings) -> str:
    """The override for more answers to compare: to each prompt, or, where none is compared with the others to
    its prompt, in all."""
    training = config.training
    if config.algorithm.within_groups and config.algorithm.pairs is None:
        return f"training.num_generations={2 * training.num_generations}"
    return f"training.generations_per_iteration={2 * training.generations_per_iteration}"


def steadier(config: RunSettings) -> list[str]:
    """Settings that make steps smaller or less noisy, of those that are not in use."""
    training, cap = config.training, config.rollout.max_completion_length
    found = [_more_answers(config)]
    found += [f"{text} (narrower)" for text in _band(config, 1 / 3)]
    if config.algorithm.pairs is None:
        found += [f"rollout.max_completion_length={max(1, cap // 2)}"]
        if training.length_curriculum_start is None:
            found.append(f"training.length_curriculum_start={max(1, cap // 4)}")
    return found if config.algorithm.beta and not config.algorithm.in_pairs else [*found, nearer(config)]


def _band(config: RunSettings, factor: float) -> list[str]:
    """The clip band `factor` times as wide, as overrides in one text; none where nothing clips."""
    if not config.algorithm.has_band:
        return []
    sides = zip(("left", "right"), config.algorithm.clip_range, strict=True)
    wide = [f"algorithm.clip_range_{name}={factor * side:.3g}" for name, side in sides if side is not None]
    return [" ".join(wide)] if wide else []


def memory(run: History, card: Mapping[str, Any] | None) -> Answer:
    """High memory: the measured peak, and what lowers it, in order of effect by the card's estimate."""
    peaks = run.values("memory/peak_gb")
    short = round(sum(number_of(record, "oom_events") or 0.0 for record in run.everything))
    measured = f"peak {number(max(peaks))} GiB" if peaks else "no peak was measured"
    what = (
        f"{measured}, memory ran out {counted(short, 'time')}"
        if short
        else f"{measured}, memory never ran out"
    )
    parts = {} if card is None else estimated_parts(card)
    if parts:
        largest = sorted(parts, key=parts.__getitem__, reverse=True)[:3]
        named = ", ".join(f"{part} {number(parts[part])}" for part in largest)
        what += f"; the card's estimate of its parts is {named} GiB"
    elif card is None:
        what += "; without card.json (an older run) the settings below are not ranked"
    savings = sorted(_levers(run.config, parts), key=lambda lever: -lever[1])
    least = WORTH * sum(parts.values())
    told = [
        f"{text} (about {number(saved)} GiB less)" if saved else text
        for text, saved in savings
        if saved > least or not parts
    ]
    fix = f"to lower it: {', '.join(told)}" if told else "no setting lowers it much"
    return Answer("high memory", not short, what, fix, (savings[0][0],) if short and told else ())


def estimated_parts(card: Mapping[str, Any]) -> dict[str, float]:
    """GiB by part of the largest phase, from card.json; parts under 1 MiB are left out, and what is not a
    number of bytes."""
    phases = _section(_section(card, "memory"), "phases")
    sizes = [
        {part: size for part, size in _section(phases, name).items() if is_bounded(size) and size > 0}
        for name in phases
    ]
    largest = max(sizes, key=lambda parts: sum(parts.values()), default={})
    return {part: size / 2**30 for part, size in largest.items() if size >= 2**20}


def _section(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = values.get(name)
    return found if isinstance(found, Mapping) else {}


def _levers(config: RunSettings, parts: dict[str, float]) -> list[tuple[str, float]]:
    """Unused settings that lower memory, and about how many GiB each saves."""

    def share(part: float, *names: str) -> float:
        return part * sum(parts.get(name, 0.0) for name in names)

    adapters, stage = config.model.use_lora, config.hardware.zero_stage
    quantized = config.model.use_4bit or config.model.use_8bit
    half_tokens = max(1, config.hardware.tokens_per_microbatch // 2)
    half_rows = max(1, config.rollout.batch_size // 2)
    levers = [
        (f"hardware.tokens_per_microbatch={half_tokens}", share(0.5, "activations"), True),
        (f"rollout.batch_size={half_rows}", share(0.5, "cache"), True),
        (
            "model.gradient_checkpointing=true",
            share(0.8, "activations"),
            not config.model.gradient_checkpointing,
        ),
        ("model.use_lora=true", share(0.95, "optimizer", "gradients", "temporary"), not adapters),
        ("model.use_4bit=true", share(0.7, "weights"), adapters and not quantized and stage < 3),
        (
            "training.optimizer=adamw_8bit",
            share(0.6, "optimizer"),
            stage == 0 and config.training.optimizer is Optimizer.adamw,
        ),
        (
            "hardware=zero2",  # on two GPUs it saves half of what it shards
            share(0.5, "optimizer", "gradients"),
            stage == 0 and config.hardware.device is Device.cuda,
        ),
        ("hardware=zero3", share(0.5, "weights"), stage in (1, 2) and not quantized),
    ]
    return [(text, saved) for text, saved, applies in levers if applies]


def instability(run: History, findings: Sequence[Finding]) -> Answer:
    """Instability: gradient norms, dropped updates, entropy and KL."""
    facts = []
    norms = run.values("grad_norm")
    if norms:
        facts.append(f"gradient norm {number(median(norms))} (median), at most {number(max(norms))}")
    skipped = round(sum(run.values("updates_skipped")))
    facts.append(f"{skipped or 'no'} updates dropped")
    for name, label in (("entropy", "entropy"), ("kl", "KL")):
        values = run.values(name)
        if values:
            facts.append(f"{label} {number(values[0])} to {number(values[-1])}")
    found = [finding for finding in findings if finding.rule in UNSTABLE]
    if not found:
        return Answer("instability", True, f"stable: {', '.join(facts)}", "")
    named = ", ".join(finding.rule for finding in found)
    first = [] if found[0].rule == "value_exploded" else [slower(run)]  # the head's rate is its own
    settings = tuple(dict.fromkeys([*first, *found[0].settings]))
    others = ", ".join(steadier(run.config))
    fix = (
        f"use {settings[0]}, and training.on_collapse=rollback to recover automatically; what else steadies "
        f"a run: {others}"
    )
    return Answer(
        "instability",
        False,
        f"{', '.join(facts)}; see {named}",
        fix,
        (settings[0], "training.on_collapse=rollback"),
    )
