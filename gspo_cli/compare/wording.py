"""The headline and the methods of a comparison, in sentences. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gspo_cli.compare.outcomes import EVALUATIONS, FEW, PRIMARY, RISE, Budget
from gspo_cli.compare.result import Arm, Contrast, Estimate, Outcome, Verdict
from gspo_cli.compare.statistics import MOST_SEEDS, PERMUTATIONS, POWER, RESAMPLES
from gspo_cli.console.words import number, share
from gspo_cli.diagnosis.rules import SPIKE

FOUND = (Verdict.higher, Verdict.lower)
TRIMMED = 4  # runs from which on an interquartile mean is another one than the mean


def headline(
    arms: Sequence[Arm],
    contrasts: Sequence[Contrast],
    outcomes: Sequence[Outcome],
    budget: Budget,
    voided: Sequence[str],
    value: Callable[[str, str], Estimate],
    idle: str,
) -> list[str]:
    """The verdict in a sentence for each arm, `idle` (why runs tell nothing apart, if so), the numbers of the
    primary outcome, then the rest in a line, then clipping and collapses."""
    primary = [contrast for contrast in contrasts if contrast.outcome == PRIMARY]
    numbers = []
    for contrast in primary:
        trimmed = "interquartile means " * (max(contrast.arm.n, contrast.baseline.n) >= TRIMMED)
        numbers.append(
            f"Held-out score after {budget.iterations} iterations, {contrast.arm_name} against "
            f"{contrast.baseline_name} ({trimmed}{share(contrast.arm.value)} and "
            f"{share(contrast.baseline.value)}): {contrast.sentence}."
        )
    if voided:
        why = "the runs differ in more than algorithm and seed, or did not start alike"
        said = [f"No verdict: {why}.", *numbers, idle]
    else:
        said = [" ".join(_verdict(contrast, budget) for contrast in primary), idle, *numbers]
        said += [_rest(arm.name, contrasts, outcomes) for arm in arms[:-1]]
    clipped = [
        f"{arm.name} {number(value(arm.name, 'clip_token').value)}"
        for arm in arms
        if value(arm.name, "clip_token").value is not None
    ]
    if clipped:
        said.append(f"Share of trained tokens that were clipped: {', '.join(clipped)}.")
    collapses = {arm.name: sum(run.outcomes["collapses"] or 0 for run in arm.runs) for arm in arms}
    if any(collapses.values()):
        listed = ", ".join(f"{arm.name} {collapses[arm.name]:.0f} in {len(arm.runs)} runs" for arm in arms)
        said.append(f"Collapses: {listed}.")
    return [sentence for sentence in said if sentence]


def _verdict(contrast: Contrast, budget: Budget) -> str:
    """The primary outcome without a number."""
    arm, baseline = contrast.arm_name, contrast.baseline_name
    if contrast.verdict is Verdict.void:
        return f"No verdict on {arm} against {baseline}."
    if contrast.verdict is Verdict.not_distinguishable:
        return (
            f"{arm} and {baseline} are not distinguishable by held-out score after {budget.iterations} "
            "iterations."
        )
    return (
        f"{arm} has a {contrast.verdict.value} held-out score than {baseline} after {budget.iterations} "
        "iterations."
    )


def _rest(name: str, contrasts: Sequence[Contrast], outcomes: Sequence[Outcome]) -> str:
    """How the other outcomes that have a better direction came out for one arm."""
    directed = {o.key: o for o in outcomes if o.better != "none" and o.key != PRIMARY}
    own = [c for c in contrasts if c.arm_name == name and c.outcome in directed and c.verdict != Verdict.void]
    if not own:
        return ""
    found = [c for c in own if c.verdict in FOUND]
    if not found:
        return f"In none of {len(own)} further outcomes is {name} distinguishable."
    better = [directed[c.outcome].title for c in found if c.verdict.value == directed[c.outcome].better]
    worse = [directed[c.outcome].title for c in found if c.verdict.value != directed[c.outcome].better]
    parts = [
        f"{word} in {len(titles)} ({', '.join(titles)})"
        for word, titles in (("better", better), ("worse", worse))
        if titles
    ]
    parts.append(f"not distinguishable in {len(own) - len(found)}")
    return f"Of {len(own)} further outcomes {name} is {', '.join(parts)}."


def methods(budget: Budget, level: float, threshold: float | None) -> list[str]:
    """How each number is made; `threshold` is the one that was given."""
    return [
        f"All runs are compared at {budget.iterations} iterations, the fewest that one of them was given; at "
        f"equal tokens means at {budget.tokens:,.0f} sampled tokens.",
        "A run that collapsed or stopped early counts: its last held-out score is carried to the end of the "
        "budget; means over iterations are over those that it made.",
        _between(budget),
        _threshold(budget, threshold),
        f"Training reward at the end: mean of the last tenth of the iterations, {FEW} at least. Gradient "
        f"spikes: iterations whose norm is over {SPIKE:g} times the median before. Collapses: rollbacks, and "
        "whether gspo-doctor finds the policy lost at the end.",
        "Clip shares are of all trained tokens or answers, those with advantage 0 counted as not clipped; "
        "answers are short or long within their minibatch.",
        *_statistics(level),
    ]


def _between(budget: Budget) -> str:
    return (
        "The score at equal tokens, the mean score and where a threshold is reached are read off the lines "
        f"between evaluations, and not measured where a run has fewer than {EVALUATIONS} of those within the "
        f"budget; the fewest here are {budget.evaluations}."
    )


def _threshold(budget: Budget, given: float | None) -> str:
    if budget.threshold is None:
        return "There is no threshold to reach: the held-out score of the lowest arm did not rise."
    where = "was given"
    if given is None:
        where = f"is {RISE:.0%} of the way from the mean first to the lowest arm's mean final score"
    return (
        f"The threshold of {budget.threshold:.3f} {where}. An arm has a value only where all its runs "
        "reached it, and a contrast is made only where all runs of both arms did."
    )


def _statistics(level: float) -> list[str]:
    return [
        "The value of an arm is the interquartile mean over seeds (scipy.stats.trim_mean, a quarter cut from "
        "each end; under 4 seeds nothing is cut).",
        f"Its interval is the percentile bootstrap's at level {level:g}: seeds resampled within each arm, "
        f"{RESAMPLES} times, from a fixed seed. With few seeds such intervals are too narrow; the t "
        "intervals of differences are not.",
        "Differences are means of arm minus baseline with their t interval: where all seeds of the smaller "
        "arm, two at least, are the other's too, over shared seeds, paired (scipy.stats.ttest_rel); else of "
        "all runs, unpaired (Welch, scipy.stats.ttest_ind).",
        "Spread is not taken to be below that of rounding to the steps in which an outcome is counted (one "
        "problem, one event). A continuous outcome that differs by the same amount in all n seeds is judged "
        "by the sign test, p = 2 x 0.5^n.",
        "The primary outcome, the held-out score at the budget's end, is tested alone at "
        f"{1 - level:.2g} (adjusted over arms where there are several). The other outcomes of which one "
        "direction is better are adjusted together, and so are those that only describe (Benjamini and "
        "Hochberg, scipy.stats.false_discovery_control). Intervals are not adjusted, so that one may exclude "
        'a difference of 0 beside "not distinguishable".',
        "Seeds needed: how many each arm needs for a difference of the size and spread seen here to be found "
        f"with {POWER:.0%} power (noncentral t, at the adjusted level; none above {MOST_SEEDS}). It is "
        "itself an estimate from few seeds.",
        "Held-out problems: the share of shared seeds that solve each, and a paired permutation test over "
        f"problems (scipy.stats.permutation_test, {PERMUTATIONS} draws; p adjusted over arms). It says of "
        "these runs whether they would differ on other problems, and names no algorithm the better one: a "
        "run that ends high by the luck of its seed does so on all problems. The headline's test is about "
        "that.",
    ]
