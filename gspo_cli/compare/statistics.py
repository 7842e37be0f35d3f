"""Estimates, intervals and tests, by scipy. Pure: equal numbers give equal results, whatever came before.

Shapes: K outcomes or points of a curve, n runs (seeds) of one arm."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special, stats

from gspo_cli.compare.result import Estimate

RESAMPLES = 2000  # of the bootstrap
PERMUTATIONS = 5000
SEED = 20250718  # of resampling alone
TRIM = 0.25  # cut from each end: what is left is the interquartile mean
POWER = 0.8
MOST_SEEDS = 1000  # a plan for more is none
NO_SPREAD = 1e-9  # of the values: what is left of equal numbers after subtraction
ROUNDING = math.sqrt(1 / 6)  # standard deviation of a difference of two values rounded to steps of 1


def interquartile_mean(values: np.ndarray, axis: int = -1) -> np.ndarray:
    """Mean of the middle half; under 4 values nothing is cut."""
    return stats.trim_mean(values, TRIM, axis=axis)


def estimates(values: ArrayLike, level: float, resamples: int = RESAMPLES) -> list[Estimate]:
    """Interquartile mean of each row with its percentile bootstrap interval. (K, n) -> K

    nan stands for what was not measured and is left out; one run has no interval."""
    table = np.asarray(values, dtype=float)
    measured = np.isfinite(table)
    found = [Estimate(None)] * len(table)
    for mask in np.unique(measured, axis=0):
        rows = np.flatnonzero((measured == mask).all(axis=1))
        if mask.any():
            for row, estimate in zip(rows, _whole(table[np.ix_(rows, mask)], level, resamples), strict=True):
                found[row] = estimate
    return found


def _whole(table: np.ndarray, level: float, resamples: int) -> list[Estimate]:
    """Estimates of rows of which nothing is missing."""
    n = table.shape[1]
    middle = interquartile_mean(table).tolist()
    if n == 1:
        return [Estimate(value, n=1) for value in middle]
    interval = stats.bootstrap(
        (table,),
        interquartile_mean,
        vectorized=True,
        axis=-1,
        confidence_level=level,
        n_resamples=resamples,
        method="percentile",
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    return [
        Estimate(value, low, high, n)
        for value, low, high in zip(middle, interval.low.tolist(), interval.high.tolist(), strict=True)
    ]


@dataclass(frozen=True)
class Tested:
    """A difference of means, arm minus baseline, and the test that it is 0.

    With n runs in each arm the standard error is sqrt(variance / n), with `freedom` * (n - 1) degrees of
    freedom: what planning needs. `error` and `df` are those of the present runs; None where there is no
    spread to judge by."""

    mean: float
    low: float | None
    high: float | None
    p: float | None
    runs: tuple[int, int]
    paired: bool
    variance: float = 0.0
    freedom: float = 1.0
    error: float | None = None
    df: float | None = None


def mean_difference(
    arm: Mapping[int, float], baseline: Mapping[int, float], level: float, resolution: float = 0.0
) -> Tested | None:
    """Test of the difference between two arms, values by seed; None where one of them has none.

    Paired by seed, over the shared ones, where `seeds_to_pair` finds some, else Welch's on all runs.
    `resolution` is the step in which values are counted (0: none): no spread is taken to be below that of
    rounding to it."""
    if not arm or not baseline:
        return None
    shared = seeds_to_pair(arm, baseline)
    if shared:
        return _paired(
            np.array([arm[seed] for seed in shared]), np.array([baseline[seed] for seed in shared]),
            level, resolution,
        )  # fmt: skip
    here, there = (np.array([side[seed] for seed in sorted(side)]) for side in (arm, baseline))
    return _welch(here, there, level, resolution)


def seeds_to_pair(arm: Iterable[int], baseline: Iterable[int]) -> list[int]:
    """The shared seeds where all of the smaller arm's are, two at least unless the arms have the same one:
    otherwise pairing would cost more runs than it gains. None where arms cannot be paired."""
    here, there = set(arm), set(baseline)
    shared = here & there
    pairs = len(shared) == min(len(here), len(there)) and (len(shared) >= 2 or here == there)
    return sorted(shared) if pairs else []


def _paired(arm: np.ndarray, baseline: np.ndarray, level: float, resolution: float) -> Tested:
    """Student's t on the differences of a seed."""
    differences = arm - baseline
    n, mean = len(differences), float(differences.mean())
    if n < 2:
        return Tested(mean, None, None, None, (n, n), True)
    floor = ROUNDING * resolution
    spread = float(differences.std(ddof=1))
    if spread <= max(floor, NO_SPREAD * _size(arm, baseline)):
        if abs(mean) <= NO_SPREAD * _size(arm, baseline):
            return Tested(0.0, 0.0, 0.0, 1.0, (n, n), True)
        if floor == 0:  # equal in all seeds: every sign could have been the other
            return Tested(mean, None, None, 2 * 0.5**n, (n, n), True)
        error = floor / math.sqrt(n)
        low, high, p = _student(mean, error, n - 1, level)
        return Tested(mean, low, high, p, (n, n), True, floor**2, 1.0, error, n - 1)
    error, p = spread / math.sqrt(n), float(stats.ttest_rel(arm, baseline).pvalue)
    low, high, _ = _student(mean, error, n - 1, level)
    return Tested(mean, low, high, p, (n, n), True, spread**2, 1.0, error, n - 1)


def _welch(arm: np.ndarray, baseline: np.ndarray, level: float, resolution: float) -> Tested:
    """Welch's t, for arms of different seeds and spreads."""
    runs, mean = (len(arm), len(baseline)), float(arm.mean() - baseline.mean())
    if min(runs) < 2:
        return Tested(mean, None, None, None, runs, False)
    size = _size(arm, baseline)
    floor = resolution * ROUNDING / math.sqrt(2)
    spreads = [float(values.std(ddof=1)) for values in (arm, baseline)]
    if max(spreads) <= NO_SPREAD * size and (abs(mean) <= NO_SPREAD * size or floor == 0):
        if abs(mean) <= NO_SPREAD * size:
            return Tested(0.0, 0.0, 0.0, 1.0, runs, False)
        return Tested(mean, None, None, min(1.0, 2 / math.comb(sum(runs), runs[0])), runs, False)
    if min(spreads) > max(floor, NO_SPREAD * size):
        result = stats.ttest_ind(arm, baseline, equal_var=False)
        p, df = float(result.pvalue), float(result.df)
        error = math.sqrt(sum(s**2 / n for s, n in zip(spreads, runs, strict=True)))
        low, high, _ = _student(mean, error, df, level)
    else:
        spreads = [max(spread, floor) for spread in spreads]
        parts = [s**2 / n for s, n in zip(spreads, runs, strict=True)]
        error = math.sqrt(sum(parts))
        df = sum(parts) ** 2 / sum(part**2 / (n - 1) for part, n in zip(parts, runs, strict=True))
        low, high, p = _student(mean, error, df, level)
    variances = [spread**2 for spread in spreads]
    freedom = sum(variances) ** 2 / sum(variance**2 for variance in variances)
    return Tested(mean, low, high, p, runs, False, sum(variances), freedom, error, df)


def _size(*values: np.ndarray) -> float:
    return max(float(np.abs(each).max()) for each in values)


def _student(mean: float, error: float, df: float, level: float) -> tuple[float, float, float]:
    """Interval and two-sided p of a mean with its standard error."""
    width = float(special.stdtrit(df, (1 + level) / 2)) * error
    return mean - width, mean + width, float(2 * stats.t.sf(abs(mean) / error, df))


def adjusted(p_values: Sequence[float]) -> list[float]:
    """Benjamini and Hochberg's adjustment over one family."""
    return stats.false_discovery_control(p_values, method="bh").tolist() if p_values else []


def power(effect: float, df: float, level: float) -> float:
    """Chance that the two-sided t test finds an effect of so many standard errors (noncentral t)."""
    bound = float(special.stdtrit(df, (1 + level) / 2))
    upper, lower = (float(special.nctdtr(df, effect, at)) for at in (bound, -bound))
    # far from the bound the chance of a miss underflows to nan
    return 1.0 if math.isnan(upper) else 1 - upper + (0.0 if math.isnan(lower) else lower)


def seeds_needed(tested: Tested, level: float) -> int | None:
    """Seeds of each arm with which a difference of this size and spread is found with POWER; None where more
    than MOST_SEEDS are, or there is no difference."""
    if tested.error is None or tested.mean == 0:
        return None

    def reached(n: int) -> float:
        effect = abs(tested.mean) / math.sqrt(tested.variance / n)
        return power(effect, tested.freedom * (n - 1), level)

    plans = range(2, MOST_SEEDS + 1)
    place = bisect_left(plans, POWER, key=reached)
    return plans[place] if place < len(plans) else None


def detectable(tested: Tested, level: float) -> float | None:
    """The smallest difference that the present runs would find with POWER; None without a spread."""
    if tested.error is None or tested.df is None:
        return None
    return tested.error * _effect_found(round(tested.df, 6), level)


@lru_cache(maxsize=4096)
def _effect_found(df: float, level: float) -> float:
    """Standard errors that an effect must have to be found with POWER."""
    high = 4.0
    while power(high, df, level) < POWER:
        high *= 2
    return float(optimize.brentq(lambda effect: power(effect, df, level) - POWER, 0.0, high))


def problems_differ(arm: np.ndarray, baseline: np.ndarray, level: float) -> tuple[Estimate, float]:
    """Mean difference over problems, its bootstrap interval, and p of the paired permutation test: each
    problem's two shares swapped at random. Shares per problem, (problems,) both."""
    difference = arm - baseline
    n = len(difference)
    if n < 2 or not difference.any():
        return Estimate(float(difference.mean()), 0.0, 0.0, n) if n > 1 else Estimate(None), 1.0
    interval = stats.bootstrap(
        (difference,), np.mean, confidence_level=level, n_resamples=RESAMPLES, method="percentile",
        rng=np.random.default_rng(SEED),
    ).confidence_interval  # fmt: skip
    p = stats.permutation_test(
        (arm, baseline), lambda x, y, axis: np.mean(x - y, axis=axis), permutation_type="samples",
        vectorized=True, n_resamples=PERMUTATIONS, rng=np.random.default_rng(SEED),
    ).pvalue  # fmt: skip
    return Estimate(float(difference.mean()), float(interval.low), float(interval.high), n), float(p)
