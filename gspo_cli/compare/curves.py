"""The charts of a comparison: interquartile means over seeds with bootstrap intervals. Pure.

Shapes: P points of a curve, n runs of an arm. Curves have at most as many points as a figure can show."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import numpy as np

from gspo_cli.compare.outcomes import Budget, score_curve, seconds_at, tokens_at
from gspo_cli.compare.result import Chart, Series
from gspo_cli.compare.runs import StoredRun
from gspo_cli.compare.statistics import estimates
from gspo_cli.diagnosis.history import number_of

POINTS = 60
Arms = Mapping[str, Sequence[StoredRun]]
SHORTER = "A run that ended before the budget keeps its last score."

# key, title, label of the y axis, metric, whether values span decades
METRICS = (
    ("reward", "Training reward", "reward", "reward", False),
    ("clip_token", "Clipped tokens", "share of trained tokens", "clip_ratio/token", True),
    ("clip_sequence", "Clipped answers", "share of answers", "clip_ratio/sequence", True),
    ("ratio_std", "Spread of the ratio", "standard deviation", "ratio/std", True),
    ("grad_norm", "Gradient norm", "norm", "grad_norm", True),
    ("entropy", "Entropy", "nats per token", "entropy", False),
    ("length", "Answer length", "tokens", "completions/mean_length", False),
    ("expert_change", "Expert change", "share of token-layer pairs", "moe/expert_change", False),
    ("repetition", "Repetition", "share of 4-grams", "completions/repetition", False),
)


def charts(arms: Arms, budget: Budget, level: float) -> list[Chart]:
    """All charts for which there is data."""
    iterations, tokens = "iteration", "sampled tokens"
    kept = SHORTER if _some_ended(arms, budget) else ""
    found = [
        _held_out("held_out", "Held-out score", iterations, _over_iterations(arms, budget), level, kept),
        *(_metric_chart(arms, budget, level, *row) for row in METRICS),
        _held_out("held_out_tokens", "Held-out score over sampled tokens", tokens,
                  _over_tokens(arms, budget), level, kept),
        _held_out("held_out_time", "Held-out score over training time", "seconds",
                  _over_seconds(arms, budget), level, kept),
        _over_kl(arms, budget, level, kept),
    ]  # fmt: skip
    return [chart for chart in found if chart is not None]


Curves = Mapping[str, tuple[Sequence[float], np.ndarray]]  # arm -> x (P,), values (P, n)
Position = Callable[[StoredRun, int], float]  # (run, iteration) -> x


def _some_ended(arms: Arms, budget: Budget) -> bool:
    """Whether a run ended before the budget."""
    return any(run.iterations < budget.iterations for runs in arms.values() for run in runs)


def _held_out(
    key: str, title: str, x_label: str, curves: Curves | None, level: float, note: str
) -> Chart | None:
    if curves is None:
        return None
    series = [_series(name, x, values, level) for name, (x, values) in curves.items()]
    return Chart(key, title, x_label, "held-out score", series, note=note)


def _series(name: str, x: Sequence[float], values: np.ndarray, level: float) -> Series:
    points = estimates(values, level)
    return Series(
        name,
        list(map(float, x)),
        [p.value for p in points],
        [p.low for p in points],
        [p.high for p in points],
    )


def _grid(runs: Sequence[StoredRun], end: int) -> list[int]:
    """Iterations of the evaluations of any of the runs, thinned to POINTS, both ends included."""
    places = sorted({place for run in runs for place in score_curve(run, end)[0]})
    if places[-1] < end:
        places.append(end)
    if len(places) <= POINTS:
        return places
    return [places[round(i)] for i in np.linspace(0, len(places) - 1, POINTS)]


def _scores_at(runs: Sequence[StoredRun], end: int, grid: Sequence[float], position: Position) -> np.ndarray:
    """Scores of each run at `grid`, linear between evaluations at their `position`. (P, n)"""
    columns = []
    for run in runs:
        places, scores = score_curve(run, end)
        columns.append(np.interp(grid, [position(run, place) for place in places], scores))
    return np.stack(columns, axis=1)


def _iteration(run: StoredRun, iteration: int) -> float:
    return iteration


def _over_iterations(arms: Arms, budget: Budget) -> Curves:
    found = {}
    for name, runs in arms.items():
        grid = _grid(runs, budget.iterations)
        found[name] = grid, _scores_at(runs, budget.iterations, grid, _iteration)
    return found


def _over_tokens(arms: Arms, budget: Budget) -> Curves:
    return {name: _evenly(runs, budget, budget.tokens, tokens_at) for name, runs in arms.items()}


def _over_seconds(arms: Arms, budget: Budget) -> Curves | None:
    """Each arm up to the time at which its fastest run reached the budget; None if iterations were not
    timed."""
    everything = [run for runs in arms.values() for run in runs]
    if any(seconds_at(run, budget.iterations) is None for run in everything):
        return None
    clocks = {id(run): _clock(run, budget.iterations) for run in everything}

    def seconds(run: StoredRun, iteration: int) -> float:
        clock = clocks[id(run)]
        return clock[min(iteration, len(clock) - 1)]

    found = {}
    for name, runs in arms.items():
        whole = [run for run in runs if run.iterations >= budget.iterations] or runs
        end = min(clocks[id(run)][-1] for run in whole)
        found[name] = _evenly(runs, budget, end, seconds)
    return found


def _evenly(
    runs: Sequence[StoredRun], budget: Budget, end: float, position: Position
) -> tuple[list[float], np.ndarray]:
    """Evenly spaced x from 0 to `end`, as many as evaluations, and the scores there."""
    grid = np.linspace(0, end, max(2, len(_grid(runs, budget.iterations)))).tolist()
    return grid, _scores_at(runs, budget.iterations, grid, position)


def _clock(run: StoredRun, end: int) -> list[float]:
    """Seconds of training after each iteration, including the start."""
    times = [number_of(record, "time/iteration") or 0.0 for record in run.metrics[:end]]
    return [0.0, *np.cumsum(times).tolist()]


def _over_kl(arms: Arms, budget: Budget, level: float, kept: str) -> Chart | None:
    """The mean score against the mean KL of the same evaluation, in the order of training."""
    series = []
    for name, runs in arms.items():
        grid = _grid(runs, budget.iterations)
        kls = [kl for run in runs if (kl := _kl_curve(run, budget.iterations)) is not None]
        if len(kls) == len(runs):
            x = np.mean([np.interp(grid, places, values) for places, values in kls], axis=0)
            scores = _scores_at(runs, budget.iterations, grid, _iteration)
            series.append(_series(name, x.tolist(), scores, level))
    if not series:
        return None
    note = f"Mean KL over seeds at each evaluation, in the order of training. {kept}".strip()
    title, x_label = "Held-out score over KL to the initial policy", "nats per token"
    return Chart("held_out_kl", title, x_label, "held-out score", series, note=note)


def _kl_curve(run: StoredRun, end: int) -> tuple[list[int], list[float]] | None:
    """Iterations and KL of the evaluations that measured it; None of fewer than two."""
    known = [(r["iteration"], kl) for r in run.evals if (kl := number_of(r, "kl")) is not None]
    inside = [pair for pair in known if pair[0] <= end]
    return ([place for place, _ in inside], [kl for _, kl in inside]) if len(inside) >= 2 else None


def _metric_chart(
    arms: Arms, budget: Budget, level: float, key: str, title: str, y_label: str, metric: str, log_y: bool
) -> Chart | None:
    series = []
    size = max(1, math.ceil(budget.iterations / POINTS))
    edges = [*range(0, budget.iterations, size), budget.iterations]
    middles = [(start + 1 + stop) / 2 for start, stop in pairwise(edges)]
    for name, runs in arms.items():
        values = np.stack([_binned(run, metric, edges) for run in runs], axis=1)
        if np.isfinite(values).any():
            series.append(_series(name, middles, values, level))
    if not series:
        return None
    note = f"Means of {size} iterations. " if size > 1 else ""
    note += "Over the runs that were still training." if _some_ended(arms, budget) else ""
    return Chart(key, title, "iteration", y_label, series, log_y, note.strip())


def _binned(run: StoredRun, metric: str, edges: Sequence[int]) -> np.ndarray:
    """Mean of the finite values between edges; nan where there is none. (P,)"""
    found = []
    for start, stop in pairwise(edges):
        values = [v for record in run.metrics[start:stop] if (v := number_of(record, metric)) is not None]
        found.append(sum(values) / len(values) if values else math.nan)
    return np.array(found)
