"""The rules about rewards and updates: each looks for one problem in a run's metrics. Pure; a rule returns
its finding or None. `signal_rules` has those about what carries the advantages and how far the policy moves,
`answer_rules` those about answers."""

from __future__ import annotations

import math
from bisect import insort
from statistics import median

from gspo_cli.config.choices import AdvantageParts, AdvantageScale, OldLogprobs
from gspo_cli.console.words import counted, number
from gspo_cli.diagnosis.history import (
    LASTING,
    WINDOW,
    Finding,
    History,
    Record,
    Severity,
    mean_of,
    number_of,
    slower,
    slower_head,
    widths,
)
from gspo_cli.run.summary import score_error

RANDOM_SHARE = 1 / 3  # share of the band's narrower side: with more noise than this, clipping is random
EQUAL_GROUPS = 0.9  # share of zero-variance groups: a tenth of the batch is left to learn from
SOLVED = 0.9  # share of solved answers, where groups have no variance because little is left to learn
SATURATED = 0.8  # of the answers that could clip; runs that learn well have 0.3 to 0.75
SPIKE = 10.0  # times the median gradient norm before
FALL = 0.5  # of the best running mean of the reward
FALL_ERRORS = 4.0  # standard errors: the best of many means is partly luck
MANY_DROPPED = 4  # updates in a row: more than one bad batch
LARGE_REWARD = 100.0  # thresholds, penalties and learning rates are made for rewards around 1
OUTLYING = 20.0  # times the upper quartile
BOUND = "reward=<module.Name> that clamps, or takes a logarithm"


def learning_rate_zero(run: History) -> Finding | None:
    """Nothing is learned."""
    since = run.since(lambda record: number_of(record, "learning_rate") == 0, 1)
    if since is None:
        return None
    return Finding(
        "learning_rate_zero",
        Severity.warning,
        "the learning rate is 0: updates do not change any weight",
        "use training.schedule=constant, or more training.num_outer_iterations for the schedule to end later",
        since,
        ("training.schedule=constant",),
    )


def zero_reward(run: History) -> Finding | None:
    """All rewards are 0, so no answer is better than another."""
    rewards = run.values("reward")  # none where pairs are of a file
    if not rewards or len(run.records) < LASTING or any(rewards) or any(run.values("reward_std")):
        return None
    return Finding(
        "zero_reward",
        Severity.warning,
        f"all rewards of {len(run.records)} iterations are 0: no answer is better than another",
        "start from a model that sometimes succeeds (a cold start with model.cold_start.demonstrations and "
        "more model.cold_start.steps), use an easier task, or fix the reward",
        run.records[0]["iteration"],
    )


def constant_reward(run: History) -> Finding | None:
    """A reward that does not depend on the answer."""
    rewards = run.values("reward")
    if len(rewards) < LASTING or any(run.values("reward_std")) or len(set(rewards)) > 1 or rewards[0] == 0:
        return None
    return Finding(
        "constant_reward",
        Severity.warning,
        f"every answer of {len(rewards)} iterations has reward {number(rewards[0])}: there is nothing "
        "to compare",
        "use a reward that distinguishes answers (reward=<module.Name>)",
        run.records[0]["iteration"],
    )


def reward_scale(run: History) -> Finding | None:
    """Mean rewards in the hundreds, always or now and then."""
    sizes = [(record, abs(value)) for record in run.records if (value := number_of(record, "reward"))]
    large = [(record, size) for record, size in sizes if size > LARGE_REWARD]
    if not large:
        return None
    algorithm = run.config.algorithm
    undivided = algorithm.advantage_scale is AdvantageScale.none and not algorithm.in_pairs
    effect = "advantages are just as large" if undivided else "penalties and what counts as solved are not"
    often = len(large) > len(sizes) / 2
    what = (
        f"the mean reward is {number(number_of(large[-1][0], 'reward'))}"
        if often
        else f"the mean reward was over {LARGE_REWARD:.0f} in {len(large)} of {len(sizes)} iterations, at "
        f"most {number(max(size for _, size in large))}, and usually {number(median(s for _, s in sizes))}"
    )
    divide = f"algorithm.advantage_scale={'group_std' if algorithm.within_groups else 'batch_std'}"
    return Finding(
        "reward_scale",
        Severity.warning,
        f"{what}: {effect}",
        f"{f'use {divide}, or ' if undivided else ''}bring the reward to [0, 1] ({BOUND})",
        large[0][0]["iteration"],
        (divide,) if undivided else (),
    )


def reward_outliers(run: History) -> Finding | None:
    """Iterations whose rewards are far larger than in nearly all others."""
    if len(run.records) < 2 * WINDOW or reward_scale(run) or reward_fell(run):
        return None
    sizes = [
        (r, max(abs(number_of(r, name) or 0.0) for name in ("reward", "reward_std"))) for r in run.records
    ]
    usual = sorted(size for _, size in sizes)[len(sizes) * 3 // 4]
    far = [(record, size) for record, size in sizes if usual > 0 and size > OUTLYING * usual]
    if not far:
        return None
    return Finding(
        "reward_outliers",
        Severity.warning,
        f"rewards of {len(far)} of {len(sizes)} iterations are extreme: {number(max(s for _, s in far))}, "
        f"where three quarters of the iterations are at most {number(usual)}",
        f"bound the reward ({BOUND})",
        far[0][0]["iteration"],
    )


def equal_groups(run: History) -> Finding | None:
    """Nearly all groups have zero variance and therefore no advantage."""
    since, algorithm = run.above("frac_reward_zero_std", EQUAL_GROUPS - 1e-9), run.config.algorithm
    if since is None or not algorithm.within_groups or zero_reward(run) or constant_reward(run):
        return None
    share, solved = run.last("frac_reward_zero_std") or 0.0, run.last("solved") or 0.0
    if solved >= SOLVED:
        return Finding(
            "equal_groups",
            Severity.note,
            f"{share:.0%} of groups have zero variance and {solved:.0%} of answers are solved: little is "
            "left to learn",
            "use harder problems, or stop here: evaluation.stop_at_score=0.95",
            since,
            ("evaluation.stop_at_score=0.95",),
        )
    answers = run.config.training.num_generations
    generated = run.config.training.generations_per_iteration
    more = [f"training.num_generations={2 * answers}"]
    if generated % (2 * answers):
        more.append(f"training.generations_per_iteration={2 * generated}")
    wide = run.config.rollout.temperature >= 1
    others = ["algorithm.dynamic_sampling=true"] if algorithm.advantage_parts is AdvantageParts.sum else []
    settings = (*others, *more, *([] if wide else ["rollout.temperature=1.0"]))
    return Finding(
        "equal_groups",
        Severity.warning,
        f"{share:.0%} of groups have zero variance (all answers scored equal): there is nothing to "
        "learn from them",
        f"use {', '.join(settings)}, or problems that are sometimes solved",
        since,
        settings,
    )


def reward_fell(run: History) -> Finding | None:
    """The reward is less than half of its best running mean, and the drop is significant. A harder level of a
    curriculum is no drop."""
    scored = [record for record in run.level_records if number_of(record, "reward") is not None]
    windows = [scored[max(0, end - WINDOW) : end] for end in range(1, len(scored) - LASTING + 1)]
    if not windows:
        return None
    best = max(windows, key=lambda window: mean_of(window, "reward"))
    after = [record for record in scored if record["iteration"] > best[-1]["iteration"]]
    newest = after[-WINDOW:]
    high, low = mean_of(best, "reward"), mean_of(newest, "reward")
    chance = FALL_ERRORS * math.hypot(run.reward_error(best), run.reward_error(newest))
    lost = max(FALL * abs(high), chance)
    since = run.since(lambda record: (number_of(record, "reward") or 0.0) < high - lost)
    if since is None or low >= high - lost:
        return None
    place = best[-1]["iteration"]
    return Finding(
        "reward_fell",
        Severity.collapse,
        f"the reward fell from {number(high)} (mean to iteration {place}) to {number(low)}",
        f"use {slower(run)}",
        since,
        (slower(run),),
    )


def clip_saturation(run: History) -> Finding | None:
    """Most answers that an update after the first could learn from are clipped away.

    A sequence ratio clips answers, a token ratio tokens; the first update of a batch has ratio 1."""
    per_token = run.config.algorithm.clips_tokens
    what, metric = ("tokens", "clip_ratio/token") if per_token else ("answers", "clip_ratio/sequence")

    def possible(record: Record) -> float:
        updates = number_of(record, "updates") or run.config.training.updates_per_iteration
        return (1 - 1 / updates) * (1 - (number_of(record, "frac_reward_zero_std") or 0.0))

    def clipped(record: Record) -> float:
        return (number_of(record, metric) or 0.0) / possible(record) if possible(record) > 0 else 0.0

    since = run.since(lambda record: clipped(record) > SATURATED, WINDOW)
    if since is None or run.reward_rises:
        return None
    return Finding(
        "clip_saturation",
        Severity.warning,
        f"{clipped(run.records[-1]):.0%} of the {what} that could clip are clipped and the reward "
        "does not rise: later updates of a batch learn little",
        f"use {slower(run)}, or a wider algorithm.clip_range_left and clip_range_right",
        since,
        (slower(run),),
    )


def noise(run: History) -> Finding | None:
    """Log-probabilities differ by a large part of the clip band before the first step."""
    bound = RANDOM_SHARE * min(widths(run), default=math.inf)
    noisy = [record for record in run.records if (number_of(record, "ratio/first_step_abs_err") or 0) > bound]
    if not noisy:
        return None
    most = max(number_of(record, "ratio/first_step_abs_err") or 0.0 for record in noisy)
    if run.config.rollout.old_logprobs is OldLogprobs.engine:
        return Finding(
            "noise",
            Severity.warning,
            f"the engine's log-probabilities put {most:.1e} into the ratio, over a third of the clip width "
            f"{min(widths(run)):.1e}: answers are clipped at random",
            "use rollout.old_logprobs=recompute or a wider algorithm.clip_range",
            noisy[0]["iteration"],
            ("rollout.old_logprobs=recompute",),
        )
    return Finding(
        "noise",
        Severity.warning,
        f"numerical noise of the ratio is {most:.1e}, over a third of the clip width "
        f"{min(widths(run)):.1e}: answers are clipped at random",
        "use hardware.precision=fp32 or a wider algorithm.clip_range",
        noisy[0]["iteration"],
        ("hardware.precision=fp32",),
    )


def not_finite(run: History) -> Finding | None:
    """Updates that were skipped because their gradient was not finite."""
    dropped = [record for record in run.records if number_of(record, "updates_skipped")]
    if not dropped:
        return None
    count = round(sum(number_of(record, "updates_skipped") or 0.0 for record in dropped))
    all_dropped = run.since(
        lambda record: 0 < (number_of(record, "updates") or 0) == number_of(record, "updates_skipped"), 1
    )
    if all_dropped is not None:
        in_a_row = [record for record in dropped if record["iteration"] >= all_dropped]
        if sum(number_of(record, "updates_skipped") or 0 for record in in_a_row) < MANY_DROPPED:
            all_dropped = None
    settings = [slower(run), *slower_head(run), "hardware.precision=fp32"]
    return Finding(
        "not_finite",
        Severity.warning if all_dropped is None else Severity.collapse,
        f"a gradient was not finite in {count} updates: these updates were skipped",
        f"use {' and '.join(settings)}",
        dropped[0]["iteration"] if all_dropped is None else all_dropped,
        tuple(settings),
    )


def gradient_spike(run: History) -> Finding | None:
    """A gradient norm far above its earlier values, for several iterations."""
    norms = [(r["iteration"], n) for r in run.records if (n := number_of(r, "grad_norm")) is not None]
    before = sorted(norm for _, norm in norms[: WINDOW - 1])
    for place in range(WINDOW, len(norms) - LASTING + 1):
        insort(before, norms[place - 1][1])
        usual = (before[place // 2] + before[(place - 1) // 2]) / 2  # the median, kept sorted: runs are long
        row = [norm for _, norm in norms[place : place + LASTING]]
        if 0 < SPIKE * usual < min(row):
            return Finding(
                "gradient_spike",
                Severity.warning,
                f"the gradient norm was {number(max(row))}, {max(row) / usual:.0f} times its median of "
                f"{number(usual)} before",
                f"use {slower(run)}, or a lower training.max_grad_norm",
                norms[place][0],
                (slower(run),),
            )
    return None


def fall(run: History) -> tuple[Record, Record] | None:
    """The best and the last evaluation, where the held-out score of the last is significantly lower."""
    scored = [record for record in run.evals if number_of(record, "score") is not None]
    if len(scored) < 2:
        return None
    best, last = max(scored, key=lambda record: record["score"]), scored[-1]
    error = math.hypot(*(score_error(record) for record in (best, last)))
    return (best, last) if best["score"] - last["score"] > FALL_ERRORS * error else None


def held_out_fell(run: History) -> Finding | None:
    """The held-out score is significantly below an earlier one."""
    fallen = fall(run)
    if fallen is None:
        return None
    best, last = fallen
    return Finding(
        "held_out_fell",
        Severity.warning,
        f"the held-out score fell from {best['score']:.3f} at iteration {best['iteration']} to "
        f"{last['score']:.3f}",
        f"take the checkpoint `best`, and use {slower(run)} in the next run",
        last["iteration"],
        (slower(run),),
    )


def rolled_back(run: History) -> Finding | None:
    """Weights were rolled back during training."""
    back = [record for record in run.everything if number_of(record, "rolled_back_to") is not None]
    if not back:
        return None
    times, last = len(back), back[-1]
    return Finding(
        "rolled_back",
        Severity.warning,
        f"weights were rolled back {counted(times, 'time')}, at iteration {last['iteration']} to "
        f"those of iteration {last['rolled_back_to']}",
        f"use {slower(run)} from the start",
        last["iteration"],
        (slower(run),),
    )
