"""The rules about the signal of a run: what carries its advantages, and how far they move the policy. Pure;
see `rules`."""

from __future__ import annotations

import math
import re

from gspo_cli.config.choices import AdvantageParts, AdvantageScale, Aggregation, RatioLevel
from gspo_cli.console.words import number
from gspo_cli.diagnosis.history import (
    WINDOW,
    Finding,
    History,
    Record,
    Severity,
    number_of,
    slower,
    widths,
)
from gspo_cli.diagnosis.rules import BOUND, EQUAL_GROUPS, SOLVED
from gspo_cli.run.summary import score_error

STILL = 0.01  # deviation of a token's log ratio; runs that learn have 0.02 and more
STILL_KL = 0.01  # nats per token from the model before training; runs that learn soon have more
STILL_GAIN = 0.05  # of reward or held-out score; a smaller rise in a few iterations is not learning
STILL_CLIPPED = 0.01  # share of tokens
LORA_FACTOR = 30  # LoRA takes 10 to 50 times the learning rate of full training
LORA_RATE = 1e-3  # the highest rate proposed for LoRA on that account
FASTER = 3  # without LoRA
SMALL_SHARE = 0.1  # of the groups whose rewards differ
DISPLACED = 0.1  # nats per token; the sampled answers of runs with more get worse
FLOOR = 0.05  # suggested; with one right answer in eight the deviation is 0.35
ONE_PART, OTHER_PARTS = 0.95, 0.5  # share of the spread: of the part in question, and of others at most
OUTCOME = 0.2  # share of the spread from which on the outcome is part of it
SPREAD = re.compile(r"rewards/(.+)/spread")


def policy_still(run: History) -> Finding | None:
    """The policy hardly moves and the reward stays where it is, although there is something to learn."""
    since = run.since(lambda record: _is_still(run, record), WINDOW)
    if since is None or _has_gained(run):
        return None
    kl, rate = _latest_kl(run), run.config.algorithm.learning_rate
    lora = run.config.model.use_lora
    wanted = min(LORA_FACTOR * rate, max(LORA_RATE, FASTER * rate)) if lora else FASTER * rate
    setting = f"algorithm.learning_rate={wanted:.3g}"
    moved = f" and the KL to the model before training is {number(kl)}" if kl is not None else ""
    why = ": LoRA takes 10 to 50 times the learning rate of full training" if lora else ""
    ratio = f"the ratio deviates by {number(run.last('ratio/std'))}"
    if run.config.algorithm.in_pairs:
        ratio = f"the margin of pairs is {number(run.last('preference/margin'))}"
    return Finding(
        "policy_still",
        Severity.warning,
        f"the policy does not move: {ratio}{moved}, and the reward does not rise",
        f"use {setting}{why}",
        since,
        (setting,),
    )


def _is_still(run: History, record: Record) -> bool:
    """Whether an iteration with something to learn, at a usual learning rate, hardly moved the policy."""
    algorithm, rate = run.config.algorithm, number_of(record, "learning_rate")
    spread, usual = _moved(run, record), algorithm.learning_rate
    if spread is None or not number_of(record, "grad_norm") or (rate is not None and rate < usual / 2):
        return False
    one_update = run.config.training.updates_per_iteration == 1 or number_of(record, "updates") == 1
    if one_update and not algorithm.in_pairs:
        return False  # the ratio is 1 whatever the policy does
    if (number_of(record, "frac_reward_zero_std") or 0.0) >= EQUAL_GROUPS - 1e-9:
        return False
    if (number_of(record, "solved") or 0.0) >= SOLVED:
        return False
    clipped = number_of(record, "clip_ratio/token") or 0.0
    # the band of GSPO is so narrow that a policy which is still under LoRA may be clipped
    return spread < STILL and (run.config.model.use_lora or clipped < STILL_CLIPPED)


def _moved(run: History, record: Record) -> float | None:
    """How far the policy moved, per token: from the old policy, or, where answers are compared in pairs, from
    the reference."""
    algorithm, spread = run.config.algorithm, number_of(record, "ratio/std")
    adds_up = algorithm.ratio_level is RatioLevel.sequence_product
    averages = not adds_up and algorithm.ratio_level is not RatioLevel.token
    if algorithm.in_pairs:
        gained = [number_of(record, f"preference/{name}") for name in ("chosen", "rejected")]
        spread = max((abs(gain) / algorithm.beta for gain in gained if gain is not None), default=None)
        adds_up = algorithm.aggregation is Aggregation.sequence_sum
        averages = not adds_up
    length = math.sqrt(max(1.0, number_of(record, "completions/mean_length") or 1.0))
    if spread is None:
        return None
    # log ratios of tokens that were added up, or averaged
    return spread / length if adds_up else spread * length if averages else spread


def _has_gained(run: History) -> bool:
    """Whether reward or held-out score rose, or the policy is far from the model before training."""
    if run.reward_gain is None:
        return True
    before, after, chance = run.reward_gain
    if after - before >= max(chance, STILL_GAIN) or (_latest_kl(run) or 0.0) > STILL_KL:
        return True
    scored = [record for record in run.evals if number_of(record, "score") is not None]
    if len(scored) < 2:
        return False
    error = math.hypot(score_error(scored[0]), score_error(scored[-1]))
    return scored[-1]["score"] - scored[0]["score"] >= max(2 * error, STILL_GAIN)


def _latest_kl(run: History) -> float | None:
    """The newest KL to the model before training: the evaluation's, or the penalty's."""
    measured = [kl for record in run.evals if (kl := number_of(record, "kl")) is not None]
    return measured[-1] if measured and len(run.evals) > 1 else run.last("kl")


def nothing_clips(run: History) -> Finding | None:
    """Updates so small that nothing clips, and the reward does not rise."""
    bounded = run.config.algorithm.clip_range != (None, None)
    several = run.config.training.updates_per_iteration > 1
    clipped = run.values("clip_ratio/token")
    if not (bounded and several and len(clipped) >= WINDOW) or any(clipped) or run.reward_rises:
        return None
    if not any(run.values("grad_norm")) or policy_still(run):
        return None
    spread = run.last("ratio/std")
    rate = f"algorithm.learning_rate={run.rate * 3:.3g}"
    return Finding(
        "nothing_clips",
        Severity.note,
        f"nothing was ever clipped and the reward does not rise: the ratio's spread is "
        f"{number(spread)}, the band {number(min(widths(run), default=None))} wide",
        f"use {rate}",
        run.records[0]["iteration"],
        (rate,),
    )


def one_update(run: History) -> Finding | None:
    """Why nothing is ever clipped."""
    if run.config.training.updates_per_iteration > 1 or not run.config.algorithm.weighs_by_ratio:
        return None
    if not run.records:
        return None
    return Finding(
        "one_update",
        Severity.note,
        "training.updates_per_rollout=1: the ratio is always 1, so nothing can clip and the value of "
        "the loss is 0",
        "use training.updates_per_rollout=4, so that the clip has an effect",
        run.records[0]["iteration"],
        ("training.updates_per_rollout=4",),
    )


def small_spread(run: History) -> Finding | None:
    """Groups whose rewards hardly differ have advantages as large as others."""
    algorithm = run.config.algorithm
    if algorithm.advantage_scale is not AdvantageScale.group_std or algorithm.advantage_std_floor > 0:
        return None

    def share(record: Record) -> float:
        teaching = 1 - (number_of(record, "frac_reward_zero_std") or 0.0)
        return (number_of(record, "frac_reward_small_std") or 0.0) / teaching if teaching > 0 else 0.0

    found = [record for record in run.records if share(record) >= SMALL_SHARE]
    if not found:
        return None
    newest, setting = found[-1], f"algorithm.advantage_std_floor={FLOOR}"
    return Finding(
        "small_spread",
        Severity.warning,
        f"in {number_of(newest, 'frac_reward_small_std') or 0.0:.0%} of the groups of iteration "
        f"{newest['iteration']} rewards differ by a deviation below 0.02, which is divided up to full-size "
        "advantages",
        f"use {setting}, or a reward without small differences",
        found[0]["iteration"],
        (setting,),
    )


def outlier_groups(run: History) -> Finding | None:
    """Groups in which one extreme reward leaves nearly equal advantages to all other answers."""
    found = [r for r in run.records if (number_of(r, "frac_reward_outlier") or 0.0) >= SMALL_SHARE]
    if not found or run.config.algorithm.in_pairs:  # only the order of rewards makes a pair
        return None
    newest, whole = found[-1], "algorithm.advantage_scale=batch_std"
    settings = () if run.config.algorithm.advantage_parts is AdvantageParts.each else (whole,)
    return Finding(
        "outlier_groups",
        Severity.warning,
        f"in {number_of(newest, 'frac_reward_outlier') or 0.0:.0%} of the groups of iteration "
        f"{newest['iteration']} one reward is so extreme that the others, which differ, get nearly equal "
        "advantages",
        f"bound the reward ({BOUND})" + (f", or use {whole}" if settings else ""),
        found[0]["iteration"],
        settings,
    )


def chosen_fell(run: History) -> Finding | None:
    """The better answers of pairs have become less likely than before training: the margin grows because the
    worse ones fall even more, and what both lose goes to answers that are in no pair."""
    since = run.since(lambda record: _gained(run, record) < -DISPLACED)
    if since is None:
        return None
    lost, beta = -_gained(run, run.records[-1]), f"algorithm.beta={5 * run.config.algorithm.beta:.3g}"
    return Finding(
        "chosen_fell",
        Severity.warning,
        f"the better answers of pairs are {number(lost)} nats per token less likely than before training: "
        "probability goes to answers that are in no pair",
        f"take the checkpoint `best`, and use {slower(run)}, or {beta}, in the next run",
        since,
        (slower(run),),
    )


def _gained(run: History, record: Record) -> float:
    """Nats per token by which the better answers of pairs are more likely than under the reference."""
    chosen, algorithm = number_of(record, "preference/chosen"), run.config.algorithm
    if chosen is None or algorithm.beta == 0:
        return 0.0
    halves = [number_of(record, f"length/{half}_mean") for half in ("short", "long")]
    lengths = [length for length in halves if length]
    if algorithm.aggregation is Aggregation.sequence_mean or not lengths:
        return chosen / algorithm.beta
    return chosen / algorithm.beta / (sum(lengths) / len(lengths))


def one_part(run: History) -> Finding | None:
    """All spread of the reward within groups comes from one part, which is not the outcome."""
    part = _only_part(run.records[-1]) if run.records else None
    since = None if part is None else run.since(lambda record: _only_part(record) == part)
    if since is None:
        return None
    share = run.last(f"rewards/{part}/spread") or 0.0
    divides = run.config.algorithm.advantage_scale is not AdvantageScale.none
    floor = f", use algorithm.advantage_std_floor={FLOOR}" if divides else ""
    return Finding(
        "one_part",
        Severity.warning,
        f"all spread comes from {part}: it explains {share:.0%} of the differences of rewards within groups, "
        "and the outcome none",
        f"lower the weight of {part} or multiply it by the outcome{floor}, or start from a model that "
        "sometimes succeeds",
        since,
    )


def _only_part(record: Record) -> str | None:
    """The part of the reward that explains nearly all of its spread while the others explain little; None if
    there is no such part, or it is (or contains) the outcome."""
    shares = {
        found.group(1): value
        for name in record
        if (found := SPREAD.fullmatch(name)) and (value := number_of(record, name)) is not None
    }
    if (number_of(record, "solved_spread") or 0.0) >= OUTCOME:
        return None
    if any(value >= OUTCOME for name, value in shares.items() if name.split("/")[-1] == "outcome"):
        return None
    for depth in range(2):
        level = {name: value for name, value in shares.items() if name.count("/") == depth}
        chosen = [name for name, value in level.items() if value >= ONE_PART]
        if len(chosen) == 1 and all(v < OTHER_PARTS for name, v in level.items() if name not in chosen):
            inner = [name for name in shares if name.startswith(f"{chosen[0]}/")]
            if len(level) > 1 and not any(name.endswith("/outcome") for name in inner):
                return chosen[0]
    return None
