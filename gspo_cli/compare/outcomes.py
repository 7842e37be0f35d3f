"""Measures the outcomes of each run, one number per outcome. Pure.

Scores are per held-out problem, lengths per answer, clip shares per trained token or answer. A run that
stopped early or collapsed keeps its last score to the end of the budget."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np

from gspo_cli.compare.result import CounterfactualClipping, OutcomeSpec
from gspo_cli.compare.runs import StoredRun
from gspo_cli.compare.statistics import estimates
from gspo_cli.diagnosis.diagnosis import diagnose
from gspo_cli.diagnosis.history import WINDOW, Record, Severity, number_of
from gspo_cli.diagnosis.rules import SPIKE
from gspo_cli.run.summary import RunStatus, scored_problems

PRIMARY = "final_score"
END = 0.1  # share of the iterations that count as the end of a run
FEW = 3  # iterations that count as the end of a run, at least
RISE = 0.8  # default threshold: this share of the way from the first score to the lowest arm's final one
EVALUATIONS = 5  # per run, for interpolation: with fewer the line between them says little about the run
TO_THRESHOLD = ("steps_to_threshold", "tokens_to_threshold")
BETWEEN = ("score_at_tokens", "auc", *TO_THRESHOLD)  # outcomes interpolated between evaluations

# outcome -> the metric of which it is the mean over iterations
MEANS = {
    "clip_token": "clip_ratio/token",
    "clip_sequence": "clip_ratio/sequence",
    "ratio_std": "ratio/std",
    "clip_short": "clip_ratio/short",
    "clip_long": "clip_ratio/long",
    "ratio_short": "ratio/short_std",
    "ratio_long": "ratio/long_std",
    "expert_change": "moe/expert_change",
}

# outcome -> the logged number without which a run does not measure it
LOGGED = MEANS | {
    "final_reward": "reward",
    "length_final": "completions/mean_length",
    "length_change": "completions/mean_length",
    "kl_final": "kl",
    "tokens_per_second": "time/iteration",
    "wall_seconds": "time/iteration",
    "expert_change": "moe/expert_change, which only Mixture-of-Experts models do",
}


@dataclass(frozen=True)
class Budget:
    """Where all runs are compared: at `iterations` (the fewest planned for any run) and at `tokens` sampled
    (the fewest of any run that reached those iterations). `threshold` is a held-out score, None if not
    every arm improved. `evaluations` and `samples` (the k of pass@k) are the fewest of any run."""

    iterations: int
    tokens: float
    threshold: float | None
    evaluations: int
    samples: int


def outcomes(budget: Budget) -> list[OutcomeSpec]:
    """All outcomes, the primary one first; without pass@k where a run drew no samples."""
    end, half = f"iteration {budget.iterations}", "by trained tokens, within each minibatch"
    known = budget.threshold is not None
    threshold = f"{budget.threshold:.3f}, where all runs of an arm reach it" if known else "score"
    rows = [
        (PRIMARY, "held-out score", "share", "higher", f"problems solved greedily, at {end}"),
        ("score_at_tokens", "held-out score at equal tokens", "share", "higher",
         f"at {budget.tokens:,.0f} sampled tokens, linear between evaluations"),
        ("auc", "mean held-out score", "share", "higher", f"over iterations 0 to {budget.iterations}"),
        ("best_score", "best held-out score", "share", "higher", "of all evaluations"),
        ("final_reward", "training reward at the end", "reward", "higher", "last tenth of the iterations"),
        ("pass_at_k", f"pass@{budget.samples}", "share", "higher", f"held-out, sampled answers, at {end}"),
        ("steps_to_threshold", "iterations to threshold", "iterations", "lower", f"held-out {threshold}"),
        ("tokens_to_threshold", "tokens to threshold", "tokens", "lower", f"held-out {threshold}"),
        ("worst_drop", "worst drop", "share", "lower", "of the held-out score below its best before"),
        ("collapses", "collapses", "count", "lower", "rollbacks, and whether the run ended collapsed"),
        ("grad_spikes", "gradient spikes", "count", "lower", f"iterations over {SPIKE:g} times the median"),
        ("clip_token", "clipped tokens", "share", "none", "of trained tokens, mean over iterations"),
        ("clip_sequence", "clipped answers", "share", "none", "of answers, mean over iterations"),
        ("ratio_std", "spread of the ratio", "", "none", "standard deviation at the algorithm's own level"),
        ("clip_short", "clipped tokens, short answers", "share", "none", f"shorter half {half}"),
        ("clip_long", "clipped tokens, long answers", "share", "none", f"longer half {half}"),
        ("ratio_short", "spread of the ratio, short answers", "", "none", f"shorter half {half}"),
        ("ratio_long", "spread of the ratio, long answers", "", "none", f"longer half {half}"),
        ("expert_change", "expert change", "share", "none",
         "token-layer pairs whose experts changed since the rollout"),
        ("length_final", "answer length at the end", "tokens", "none", "sampled tokens per conversation"),
        ("length_change", "change of answer length", "tokens", "none", "last tenth minus first tenth"),
        ("kl_final", "KL to the initial policy", "nats/token", "none", f"held-out answers, at {end}"),
        ("tokens_per_second", "sampling and training speed", "tokens/s", "none", "without evaluation"),
        ("wall_seconds", "training time", "s", "none", "without evaluation"),
        ("num_tokens", "sampled tokens", "tokens", "none", f"up to {end}"),
    ]  # fmt: skip
    drawn = [OutcomeSpec(*row) for row in rows if budget.samples or row[0] != "pass_at_k"]
    missing, logged = unmeasured(budget), LOGGED | {"pass_at_k": f"pass@{budget.samples}"}
    return [
        replace(
            o,
            missing=missing.get(o.key, ""),
            if_missing=f"no run logged {logged[o.key]}" if o.key in logged else "",
        )
        for o in drawn
    ]


def unmeasured(budget: Budget) -> dict[str, str]:
    """Outcomes that cannot be measured with this budget, each with the reason."""
    none: dict[str, str] = {}
    if budget.threshold is None:
        why = "no threshold, because the lowest arm's held-out score did not rise; set compare.threshold"
        none |= dict.fromkeys(TO_THRESHOLD, why)
    if budget.evaluations < EVALUATIONS:
        why = f"fewer than {EVALUATIONS} evaluations; use a smaller evaluation.every"
        none |= dict.fromkeys(BETWEEN, why)
    return none


def resolutions(runs: Sequence[StoredRun], budget: Budget) -> dict[str, float]:
    """The step in which an outcome is counted, at the end of the budget; outcomes without one are
    continuous."""
    problems = max(scored_problems(last_evaluation(run, budget.iterations)) for run in runs)
    scores = (PRIMARY, "score_at_tokens", "auc", "best_score", "worst_drop", "pass_at_k")
    steps = ("collapses", "grad_spikes", "num_tokens")
    return dict.fromkeys(scores, 1 / problems) | dict.fromkeys(steps, 1.0)


def budget_of(runs: Sequence[StoredRun], threshold: float | None) -> Budget:
    """The common budget. A `threshold` of None becomes RISE of the way from the mean first score to the mean
    final score of the lowest arm, so that every arm can reach it."""
    iterations = min(run.planned for run in runs)
    whole = [run for run in runs if run.iterations >= iterations] or list(runs)
    tokens = min(tokens_at(run, iterations) for run in whole)
    if threshold is None:
        ends: dict[str, list[float]] = {}
        for run in runs:
            ends.setdefault(run.arm_key, []).append(score_curve(run, iterations)[1][-1])
        first = fmean(score_curve(run, iterations)[1][0] for run in runs)
        last = min(map(fmean, ends.values()))
        threshold = first + RISE * (last - first) if last > first else None
    evaluations = min(evaluations_to(run, iterations) for run in runs)
    samples = min(run.config["evaluation"]["samples"] for run in runs)
    return Budget(iterations, tokens, threshold, evaluations, samples)


def evaluations_to(run: StoredRun, until: int) -> int:
    """The number of evaluations with a score up to `until`. Those that a run would have had after its end are
    counted, as its last score stands for them."""
    every = run.config["evaluation"]["every"]
    carried = until // every - min(run.iterations, until) // every if every else 0
    return len(score_curve(run, until)[0]) + carried


def score_curve(run: StoredRun, until: int) -> tuple[list[int], list[float]]:
    """Iterations and scores of the evaluations that gave a score; at least the first one, even where it came
    after `until`."""
    scored = [(r["iteration"], s) for r in run.evals if (s := number_of(r, "score")) is not None]
    inside = [pair for pair in scored if pair[0] <= until] or scored[:1]
    return [place for place, _ in inside], [score for _, score in inside]


def last_evaluation(run: StoredRun, until: int) -> Record:
    """The newest evaluation with a score at or before `until`."""
    place = score_curve(run, until)[0][-1]
    return next(record for record in run.evals if record["iteration"] == place)


def tokens_at(run: StoredRun, iteration: int) -> float:
    """Tokens sampled up to `iteration`, or up to the end of a shorter run."""
    if iteration == 0:
        return 0.0
    return number_of(run.metrics[min(iteration, run.iterations) - 1], "num_tokens") or 0.0


def seconds_at(run: StoredRun, iteration: int) -> float | None:
    """Seconds of training up to `iteration`; None if iterations were not timed, or not by a clock that
    runs forward."""
    records = run.metrics[:iteration]
    times = column(records, "time/iteration")
    return sum(times) if len(times) == len(records) and min(times, default=0) >= 0 else None


def measure(run: StoredRun, budget: Budget) -> dict[str, float | None]:
    """Every outcome of one run; None if it was not measured or not reached."""
    metrics = run.metrics[: budget.iterations]
    places, scores = score_curve(run, budget.iterations)
    last = last_evaluation(run, budget.iterations)
    lengths = column(metrics, "completions/mean_length")
    tokens, seconds = tokens_at(run, budget.iterations), seconds_at(run, budget.iterations)
    values = {
        PRIMARY: scores[-1],
        "score_at_tokens": float(np.interp(budget.tokens, [tokens_at(run, p) for p in places], scores)),
        "auc": _mean_over(places, scores, budget.iterations),
        "best_score": max(scores),
        "final_reward": mean_or_none(column(metrics, "reward")[-_few(metrics) :]),
        "pass_at_k": number_of(last, f"pass@{budget.samples}"),
        **_to_threshold(run, budget, places, scores),
        "worst_drop": max(max(scores[: i + 1]) - score for i, score in enumerate(scores)),
        "collapses": float(collapses(run, budget)),
        "grad_spikes": float(spikes(column(metrics, "grad_norm"))),
        **{key: mean_or_none(column(metrics, metric)) for key, metric in MEANS.items()},
        "length_final": mean_or_none(lengths[-_few(metrics) :]),
        "length_change": fmean(lengths[-_few(metrics) :]) - fmean(lengths[: _few(metrics)])
        if lengths
        else None,
        "kl_final": number_of(last, "kl"),
        "tokens_per_second": tokens / seconds if seconds else None,
        "wall_seconds": seconds,
        "num_tokens": tokens,
    }
    return values | dict.fromkeys(unmeasured(budget))


def column(metrics: Sequence[Record], name: str) -> list[float]:
    """The finite values of a metric, in order."""
    return [value for record in metrics if (value := number_of(record, name)) is not None]


def collapses(run: StoredRun, budget: Budget) -> int:
    """The number of rollbacks within the budget, plus one where the run ended collapsed."""
    metrics = run.metrics[: budget.iterations]
    back = len(column(metrics, "rolled_back_to"))
    evals = [record for record in run.evals if record["iteration"] <= budget.iterations]
    found = diagnose(run.settings, metrics, evals)
    stopped = run.status is RunStatus.collapsed and run.iterations <= budget.iterations
    return back + (stopped or any(finding.severity is Severity.collapse for finding in found))


def spikes(norms: Sequence[float]) -> int:
    """Gradient norms over SPIKE times the median of those before, from the WINDOW-th on."""
    before: list[float] = []
    count = 0
    for norm in norms:
        size = len(before)
        if size >= WINDOW:
            usual = (before[(size - 1) // 2] + before[size // 2]) / 2
            count += norm > SPIKE * usual > 0
        insort(before, norm)
    return count


def _few(metrics: Sequence[Record]) -> int:
    return max(FEW, round(END * len(metrics)))


def mean_or_none(values: Sequence[float]) -> float | None:
    """The mean; None of no values."""
    return fmean(values) if values else None


def _mean_over(places: Sequence[int], scores: Sequence[float], end: int) -> float:
    """Trapezoid rule from the first evaluation to `end`, divided by its width."""
    if places[-1] < end:
        places, scores = [*places, end], [*scores, scores[-1]]
    width = places[-1] - places[0]
    return float(np.trapezoid(scores, places)) / width if width else scores[-1]


def _to_threshold(
    run: StoredRun, budget: Budget, places: Sequence[int], scores: Sequence[float]
) -> Mapping[str, float | None]:
    if budget.threshold is None:
        return dict.fromkeys(TO_THRESHOLD)
    return {
        key: crossing(xs, scores, budget.threshold)
        for key, xs in zip(TO_THRESHOLD, (places, [tokens_at(run, place) for place in places]), strict=True)
    }


def crossing(xs: Sequence[float], scores: Sequence[float], threshold: float) -> float | None:
    """Where the score first reaches `threshold`, linear between evaluations; None if it never does."""
    best = np.maximum.accumulate(scores).tolist()
    place = bisect_left(best, threshold)
    if place == len(best):
        return None
    if place == 0:
        return float(xs[0])
    before, after = scores[place - 1], scores[place]
    return xs[place - 1] + (xs[place] - xs[place - 1]) * (threshold - before) / (after - before)


def counterfactuals(
    arms: Mapping[str, Sequence[StoredRun]], budget: Budget, level: float
) -> list[CounterfactualClipping]:
    """What other objectives would have clipped on the batches of each arm, where its runs measured that."""
    found = []
    for name, runs in arms.items():
        logged = {key for run in runs for record in run.metrics[:1] for key in record}
        others = sorted({key.split("/")[1] for key in logged if key.startswith("shadow/")})
        for other in others:
            metrics = (
                f"shadow/{other}/clip_token", "clip_ratio/token", f"shadow/{other}/clip_sequence",
                "clip_ratio/sequence", f"shadow/{other}/weight_correlation",
            )  # fmt: skip
            means = [
                [mean_or_none(column(run.metrics[: budget.iterations], key)) for run in runs]
                for key in metrics
            ]
            found.append(CounterfactualClipping(name, other, *estimates(means, level)))
    return found
