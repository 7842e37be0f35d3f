"""The sentences of a comparison: its headline, the published claims beside what was measured, its methods.
Pure.

The claims are those of the guide and of the GSPO paper (arXiv 2507.18071v2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

import numpy as np

from gspo_cli.compare.outcomes import EVALUATIONS, FEW, PRIMARY, RISE, TO_THRESHOLD, Budget, column
from gspo_cli.compare.result import Arm, Claim, Contrast, Estimate, OutcomeSpec, Verdict
from gspo_cli.compare.runs import StoredRun
from gspo_cli.compare.statistics import MOST_SEEDS, PERMUTATIONS, POWER, RESAMPLES, interquartile_mean
from gspo_cli.config.choices import OldLogprobs
from gspo_cli.console.words import counted, number, quantity, share
from gspo_cli.diagnosis.history import number_of
from gspo_cli.diagnosis.rules import SPIKE

FOUND = (Verdict.higher, Verdict.lower)
NOT_HERE = "not measured here"
NO_EXPERTS = f"{NOT_HERE}: the model has no experts; use model=tiny_moe"
PAPER = "GSPO paper, arXiv:2507.18071v2"
Estimates = Mapping[str, Mapping[str, Estimate]]  # arm -> outcome -> estimate


def headline(
    arms: Sequence[Arm],
    contrasts: Sequence[Contrast],
    outcomes: Sequence[OutcomeSpec],
    budget: Budget,
    voided: Sequence[str],
    estimates: Estimates,
    uninformative: str,
    settling: str = "",
) -> list[str]:
    """The verdict in a sentence for each arm, `uninformative` (why the runs cannot tell arms apart, if so),
    the numbers of the primary outcome and what would settle it, then the other outcomes in a line, then
    clipping and collapses."""
    primary = [contrast for contrast in contrasts if contrast.outcome == PRIMARY]
    numbers = []
    for contrast in primary:
        means = _means(contrast, arms)
        numbers.append(
            f"Held-out score after {counted(budget.iterations, 'iteration')}, {contrast.arm_name} against "
            f"{contrast.baseline_name}{means}: {contrast.sentence}."
        )
    if voided:
        why = "for the reason" if len(voided) == 1 else f"for {len(voided)} reasons"
        sentences = [f"Inconclusive, {why} listed below.", *numbers, uninformative]
    else:
        verdicts = " ".join(_verdict_sentence(contrast, budget) for contrast in primary)
        sentences = [verdicts, uninformative, *numbers, settling]
        sentences += [_other_outcomes(arm.name, contrasts, outcomes) for arm in arms[:-1]]
    clip_shares = {arm.name: estimates[arm.name]["clip_token"].value for arm in arms}
    clipped = [f"{name} {number(value)}" for name, value in clip_shares.items() if value is not None]
    if clipped:
        sentences.append(f"Share of trained tokens that were clipped: {', '.join(clipped)}.")
    collapses = {arm.name: sum(run.outcomes["collapses"] or 0 for run in arm.runs) for arm in arms}
    if any(collapses.values()):
        listed = ", ".join(f"{arm.name} {collapses[arm.name]:.0f} in {len(arm.runs)} runs" for arm in arms)
        sentences.append(f"Collapses: {listed}.")
    return [sentence for sentence in sentences if sentence]


def _means(contrast: Contrast, arms: Sequence[Arm]) -> str:
    """The means that a difference is of, in brackets: over shared seeds where it is paired. Empty where they
    are not known: it was settled with some of the seeds."""
    values = {arm.name: {run.seed: run.outcomes.get(contrast.outcome) for run in arm.runs} for arm in arms}
    sides = [values[name] for name in (contrast.arm_name, contrast.baseline_name)]
    shared = sides[0].keys() & sides[1].keys()
    if contrast.paired:
        sides = [{seed: side[seed] for seed in shared} for side in sides]
    known = [[value for value in side.values() if value is not None] for side in sides]
    if not all(known) or (contrast.paired and len(shared) != contrast.difference.n):
        return ""
    return f" (means {' and '.join(share(fmean(values)) for values in known)})"


def _verdict_sentence(contrast: Contrast, budget: Budget) -> str:
    """The primary outcome without numbers."""
    arm, baseline = contrast.arm_name, contrast.baseline_name
    when = f"after {counted(budget.iterations, 'iteration')}"
    if contrast.verdict is Verdict.void:
        return f"Inconclusive: {arm} against {baseline}."
    if contrast.verdict is Verdict.equivalent:
        return f"{arm} and {baseline} have an equivalent held-out score {when}."
    if contrast.verdict is Verdict.not_distinguishable:
        return f"{arm} and {baseline} are not distinguishable by held-out score {when}."
    return f"{arm} has a {contrast.verdict.value} held-out score than {baseline} {when}."


def _other_outcomes(name: str, contrasts: Sequence[Contrast], outcomes: Sequence[OutcomeSpec]) -> str:
    """The result of one arm in the other outcomes that have a better direction."""
    directed = {o.key: o for o in outcomes if o.is_directed and o.key != PRIMARY}
    own = [c for c in contrasts if c.arm_name == name and c.outcome in directed and c.verdict != Verdict.void]
    if not own:
        return ""
    found = [c for c in own if c.verdict in FOUND]
    if not found:
        return f"{name} is distinguishable in none of {_directed(len(own))}."
    better = [directed[c.outcome].title for c in found if c.verdict.value == directed[c.outcome].better]
    worse = [directed[c.outcome].title for c in found if c.verdict.value != directed[c.outcome].better]
    parts = [
        f"{word} in {len(titles)} ({', '.join(titles)})"
        for word, titles in (("better", better), ("worse", worse))
        if titles
    ]
    parts.append(f"not distinguishable in {len(own) - len(found)}")
    return f"Of {_directed(len(own))}, {name} is {', '.join(parts)}."


def _directed(count: int) -> str:
    return f"{counted(count, 'further outcome')} in which higher or lower is better"


def claims(
    arms: Sequence[Arm],
    runs: Mapping[str, Sequence[StoredRun]],
    budget: Budget,
    estimates: Estimates,
    contrasts: Sequence[Contrast],
) -> list[Claim]:
    """The six claims, each with the measured values in words."""
    names = [arm.name for arm in arms]
    return [
        Claim(
            "GSPO clips two orders of magnitude more tokens than GRPO",
            f"{PAPER}, Fig. 2",
            "clip fraction 0.15 (GSPO) and 0.0013 (GRPO)",
            _clipping(names, runs, estimates),
        ),
        Claim(
            "GSPO learns faster at equal compute",
            f"{PAPER}, Fig. 1",
            'curves without a number; the guide\'s "15-20%" is not in the paper',
            _speed(names, budget, estimates, contrasts),
        ),
        Claim(
            "On Mixture-of-Experts models GRPO needs routing replay, GSPO does not",
            f"{PAPER}, sec. 5.3",
            "no number; replay is critical for GRPO to converge",
            _replay(arms, runs, estimates),
        ),
        Claim(
            "About 10% of the experts of an answer change with an update",
            f"{PAPER}, sec. 5.3",
            "about 10% after one or more updates, at 48 layers",
            _experts(runs),
        ),
        Claim(
            "Training is stable on long answers",
            f"{PAPER}, sec. 5.1",
            "no number",
            _by_length(names, estimates),
        ),
        Claim(
            "A sequence ratio tolerates the engine's log-probabilities, so that none need recomputing",
            f"{PAPER}, sec. 5.4",
            "no number",
            _engine([run for each in runs.values() for run in each]),
        ),
    ]


def _each_arm(names: Sequence[str], outcome: str, estimates: Estimates) -> str:
    """`gspo 0.15 [0.14, 0.16]; grpo 0.0013 [...]`, or "not measured here"."""
    found = {name: estimates[name][outcome] for name in names}
    parts = [f"{name} {estimate}" for name, estimate in found.items() if estimate.value is not None]
    return "; ".join(parts) or NOT_HERE


def _clipping(names: Sequence[str], runs: Mapping[str, Sequence[StoredRun]], estimates: Estimates) -> str:
    shares = _each_arm(names, "clip_token", estimates)
    if any(run.settings.algorithm.is_calibrated for own in runs.values() for run in own):
        return f"{NOT_HERE}: algorithm.clip_calibration sets the shares ({shares})"
    return shares


def _speed(names: Sequence[str], budget: Budget, estimates: Estimates, contrasts: Sequence[Contrast]) -> str:
    over = counted(budget.iterations, "iteration")
    scores = f"mean held-out score over {over}: {_each_arm(names, 'auc', estimates)}"
    if budget.threshold is None:
        return f"{scores}; no threshold: the lowest arm's score did not rise"
    steps, short = [], []
    for name in names:
        iterations, tokens = (estimates[name][key] for key in TO_THRESHOLD)
        if iterations.value is not None:
            steps.append(
                f"{name} {number(iterations.value)} iterations and {quantity(tokens.value or 0)} tokens"
            )
        if iterations.of is not None:
            short.append(f"{name} reached by {iterations.n} of {iterations.of} runs")
    reached = f"to a held-out score of {budget.threshold:.3f}: {'; '.join([*steps, *short]) or NOT_HERE}"
    own = [c for c in contrasts if c.outcome == TO_THRESHOLD[0]]
    if len({c.sentence for c in own}) == 1:
        return "; ".join([scores, reached, own[0].sentence])
    sentences = [f"iterations, {c.arm_name} against {c.baseline_name}: {c.sentence}" for c in own]
    return "; ".join([scores, reached, *sentences])


def _replay(arms: Sequence[Arm], runs: Mapping[str, Sequence[StoredRun]], estimates: Estimates) -> str:
    moe = [arm for arm in arms if estimates[arm.name]["expert_change"].value is not None]
    if not moe:
        return NO_EXPERTS
    parts = []
    for arm in moe:
        replay = "with" if runs[arm.name][0].algorithm["routing_replay"] else "without"
        collapses = sum(run.outcomes["collapses"] or 0 for run in arm.runs)
        parts.append(
            f"{arm.name} ({replay} replay): held-out score {estimates[arm.name]['final_score']}, "
            f"{collapses:.0f} collapses in {len(arm.runs)} runs"
        )
    if not any(runs[arm.name][0].algorithm["routing_replay"] for arm in moe):
        parts.append('none with replay: add "grpo algorithm.routing_replay=true"')
    return "; ".join(parts)


def _experts(runs: Mapping[str, Sequence[StoredRun]]) -> str:
    parts = []
    for name, each_run in runs.items():
        found = [column(run.metrics, "moe/experts_replaced") for run in each_run]
        means = [sum(values) / len(values) for values in found if values]
        if means:
            model = each_run[0].settings.model
            where = f", at {model.shape.layers} layers" if model.is_embedded else ""
            middle = float(interquartile_mean(np.array(means)))
            parts.append(f"{name} {number(middle)} of the chosen experts since the rollout{where}")
    return "; ".join(parts) or NO_EXPERTS


def _by_length(names: Sequence[str], estimates: Estimates) -> str:
    parts = []
    for name in names:
        ratios, clips = (
            [estimates[name][f"{kind}_{half}"].value for half in ("short", "long")]
            for kind in ("ratio", "clip")
        )
        if None not in ratios:
            parts.append(
                f"{name}: spread of the ratio {number(ratios[1])} on the longer half of the answers and "
                f"{number(ratios[0])} on the shorter, clipped tokens {number(clips[1])} and "
                f"{number(clips[0])}"
            )
    return "; ".join(parts) or NOT_HERE


def _engine(runs: Sequence[StoredRun]) -> str:
    """Only runs that use the engine's log-probabilities as old log-probabilities are informative."""
    taken = [run for run in runs if run.settings.rollout.old_logprobs is OldLogprobs.engine]
    if not taken:
        return f"{NOT_HERE}: all runs recompute; use rollout.old_logprobs=engine"
    last = [number_of(run.evals[-1], "score") for run in taken]
    scores = [score for score in last if score is not None]
    mean = number(sum(scores) / len(scores)) if scores else "none"
    return f"{len(taken)} of {len(runs)} runs use the engine's; their mean final held-out score is {mean}"


def methods(budget: Budget, level: float, threshold: float | None) -> list[str]:
    """How each number is computed; `threshold` is the one from the settings."""
    return [
        f"All runs are compared at {counted(budget.iterations, 'iteration')}, the fewest planned for any of "
        f"them; at equal tokens means at {budget.tokens:,.0f} sampled tokens.",
        "A run that collapsed or stopped early counts: its last held-out score is carried to the end of the "
        "budget; means over iterations are over the iterations it completed.",
        _interpolation(budget),
        _threshold(budget, threshold),
        f"Training reward at the end: mean of the last tenth of the iterations, {FEW} at least. Gradient "
        f"spikes: iterations whose norm is over {SPIKE:g} times the median before. Collapses: rollbacks, "
        "plus one where gspo-doctor finds the policy collapsed at the end.",
        "Clip shares are of all trained tokens or answers, those with advantage 0 counted as not clipped; "
        "answers are short or long within their minibatch.",
        *_statistics(level),
    ]


def _interpolation(budget: Budget) -> str:
    return (
        "The score at equal tokens, the mean score and the point where a threshold is reached are "
        f"interpolated linearly between evaluations. They are not measured where a run has fewer than "
        f"{EVALUATIONS} evaluations within the budget; the fewest here are {budget.evaluations}."
    )


def _threshold(budget: Budget, given: float | None) -> str:
    if budget.threshold is None:
        return "There is no threshold: the held-out score of the lowest arm did not rise."
    where = "was set by compare.threshold"
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
        "Differences are means of arm minus baseline with their t interval. Where both arms have all seeds "
        "of the smaller one, two at least, the differences are over shared seeds, paired "
        "(scipy.stats.ttest_rel); else of all runs, unpaired (Welch, scipy.stats.ttest_ind).",
        "The spread is taken to be at least that of rounding to the steps in which an outcome is counted "
        "(one problem, one event). A continuous outcome that differs by the same amount in all n seeds is "
        "tested by the sign test, p = 2 x 0.5^n.",
        "The primary outcome, the held-out score at the budget's end, is tested alone at "
        f"{1 - level:.2g} (adjusted over arms if there are several). The other outcomes with a "
        "better direction are adjusted together, and so are the descriptive ones (Benjamini and "
        "Hochberg, scipy.stats.false_discovery_control). Intervals are not adjusted, so one may "
        'exclude a difference of 0 although the result is "not distinguishable".',
        "Seeds needed: how many seeds per arm detect a difference of the size and spread seen here with "
        f"{POWER:.0%} power (noncentral t, at the adjusted level; not given above {MOST_SEEDS}). This "
        "number is itself an estimate from few seeds.",
        "Held-out problems: the share of shared seeds that solve each, and a paired permutation test over "
        f"problems (scipy.stats.permutation_test, {PERMUTATIONS} draws; p adjusted over arms). It "
        "tests whether these runs would differ on other problems, not which algorithm is better: a "
        "run with a lucky seed scores high on all problems. The headline's test accounts for seeds.",
    ]
