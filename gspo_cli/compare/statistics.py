"""Estimates, intervals and tests, by scipy. Pure: resampling uses a fixed seed.

Shapes: K outcomes or points of a curve, n runs (seeds) of one arm."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import optimize, special, stats

from gspo_cli.compare.result import Estimate

RESAMPLES = 2000  # of the bootstrap
PERMUTATIONS = 5000
SEED = 20250718  # of resampling only
TRIM = 0.25  # cut from each end for the interquartile mean
POWER = 0.8
MOST_SEEDS = 1000  # more are not feasible
NO_SPREAD = 1e-9  # relative to the values: the rounding error of subtracting equal numbers
ROUNDING_SD = math.sqrt(1 / 6)  # standard deviation of a difference of two values rounded to steps of 1


def interquartile_mean(values: np.ndarray, axis: int = -1) -> np.ndarray:
    """Mean of the middle half; under 4 values nothing is cut."""
    return stats.trim_mean(values, TRIM, axis=axis)


def estimates(
    values: np.ndarray | Sequence[Sequence[float | None]], level: float, resamples: int = RESAMPLES
) -> list[Estimate]:
    """Interquartile mean of each row with its percentile bootstrap interval. (K, n) -> K

    Values that are nan or None were not measured and are left out; one run has no interval."""
    table = np.asarray(values, dtype=float)
    measured = np.isfinite(table)
    found = [Estimate(None)] * len(table)
    for mask in np.unique(measured, axis=0):
        rows = np.flatnonzero((measured == mask).all(axis=1))
        if mask.any():
            complete = table[np.ix_(rows, mask)]
            for row, estimate in zip(rows, _complete(complete, level, resamples), strict=True):
                found[row] = estimate
    return found


def _complete(table: np.ndarray, level: float, resamples: int) -> list[Estimate]:
    """Estimates of rows without missing values."""
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
class DifferenceTest:
    """A difference of means, arm minus baseline, and the test that it is 0.

    `variance` and `freedom` are for planning: with n runs in each arm the standard error is sqrt(variance /
    n), with `freedom` * (n - 1) degrees of freedom. `error` and `df` are those of the present runs, None
    if they have no spread."""

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


@dataclass(frozen=True)
class SectionMean:
    """The mean effect over sections with its interval, p, and the prediction interval of a further section's
    effect; None where the effects are all the same."""

    mean: Estimate
    p: float | None
    further: Estimate | None


def mean_difference(
    arm: Mapping[int, float], baseline: Mapping[int, float], level: float, resolution: float = 0.0
) -> DifferenceTest | None:
    """Test of the difference between two arms, values by seed; None if one of them has no values.

    Paired over the shared seeds where `seeds_to_pair` finds some, else Welch's test on all runs. `resolution`
    is the step in which values are counted (0: continuous); the spread is taken to be at least that of
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
    """The shared seeds to pair by; none where the arms should not be paired.

    All seeds of the smaller arm must be shared, and at least two unless both arms have the same single seed:
    otherwise pairing would lose more runs than it gains."""
    here, there = set(arm), set(baseline)
    shared = here & there
    pairs = len(shared) == min(len(here), len(there)) and (len(shared) >= 2 or here == there)
    return sorted(shared) if pairs else []


def _paired(arm: np.ndarray, baseline: np.ndarray, level: float, resolution: float) -> DifferenceTest:
    """Student's t test on the differences per seed."""
    differences = arm - baseline
    n, mean = len(differences), float(differences.mean())
    if n < 2:
        return DifferenceTest(mean, None, None, None, (n, n), True)
    floor = ROUNDING_SD * resolution
    spread = float(differences.std(ddof=1))
    if spread <= max(floor, NO_SPREAD * _size(arm, baseline)):
        if abs(mean) <= NO_SPREAD * _size(arm, baseline):
            return DifferenceTest(0.0, 0.0, 0.0, 1.0, (n, n), True)
        if floor == 0:  # equal in all seeds: the sign test
            return DifferenceTest(mean, None, None, 2 * 0.5**n, (n, n), True)
        error = floor / math.sqrt(n)
        low, high, p = _student(mean, error, n - 1, level)
        return DifferenceTest(mean, low, high, p, (n, n), True, floor**2, 1.0, error, n - 1)
    error, p = spread / math.sqrt(n), float(stats.ttest_rel(arm, baseline).pvalue)
    low, high, _ = _student(mean, error, n - 1, level)
    return DifferenceTest(mean, low, high, p, (n, n), True, spread**2, 1.0, error, n - 1)


def _welch(arm: np.ndarray, baseline: np.ndarray, level: float, resolution: float) -> DifferenceTest:
    """Welch's t test, for arms with different seeds and spreads."""
    runs, mean = (len(arm), len(baseline)), float(arm.mean() - baseline.mean())
    if min(runs) < 2:
        return DifferenceTest(mean, None, None, None, runs, False)
    size = _size(arm, baseline)
    floor = resolution * ROUNDING_SD / math.sqrt(2)
    spreads = [float(values.std(ddof=1)) for values in (arm, baseline)]
    if max(spreads) <= NO_SPREAD * size and (abs(mean) <= NO_SPREAD * size or floor == 0):
        if abs(mean) <= NO_SPREAD * size:
            return DifferenceTest(0.0, 0.0, 0.0, 1.0, runs, False)
        return DifferenceTest(mean, None, None, min(1.0, 2 / math.comb(sum(runs), runs[0])), runs, False)
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
    return DifferenceTest(mean, low, high, p, runs, False, sum(variances), freedom, error, df)


def _size(*values: np.ndarray) -> float:
    return max(float(np.abs(each).max()) for each in values)


def _student(mean: float, error: float, df: float, level: float) -> tuple[float, float, float]:
    """Interval and two-sided p of a mean, from its standard error."""
    width = float(special.stdtrit(df, (1 + level) / 2)) * error
    return mean - width, mean + width, float(2 * stats.t.sf(abs(mean) / error, df))


def mean_of_sections(effects: Sequence[float], level: float) -> SectionMean:
    """The mean of one effect per section with its t interval and p (scipy.stats.ttest_1samp), and where the
    effect of a further section would lie. (k,), k >= 2

    Sections count alike, whatever their seeds: weights from variances of 3 to 5 seeds would make the interval
    too narrow. Effects without any spread have no interval."""
    values = np.asarray(effects, dtype=float)
    k, mean, spread = len(values), float(values.mean()), float(values.std(ddof=1))
    if spread <= NO_SPREAD * _size(values):
        return SectionMean(Estimate(mean, n=k), None, None)
    tested = stats.ttest_1samp(values, 0.0)
    low, high = map(float, tested.confidence_interval(level))
    width = float(special.stdtrit(k - 1, (1 + level) / 2)) * spread * math.sqrt(1 + 1 / k)
    further = Estimate(mean, mean - width, mean + width, k)
    return SectionMean(Estimate(mean, low, high, k), float(tested.pvalue), further)


def sign_test(higher: int, lower: int) -> float:
    """Two-sided p of the exact sign test (scipy.stats.binomtest); 1 where nothing differs."""
    return float(stats.binomtest(higher, higher + lower).pvalue) if higher + lower else 1.0


def adjusted(p_values: Sequence[float]) -> list[float]:
    """p values adjusted over one family by Benjamini and Hochberg's method."""
    return stats.false_discovery_control(p_values, method="bh").tolist() if p_values else []


def power(effect: float, df: float, level: float) -> float:
    """The power of the two-sided t test at an effect of `effect` standard errors (noncentral t)."""
    bound = float(special.stdtrit(df, (1 + level) / 2))
    upper, lower = (float(special.nctdtr(df, effect, at)) for at in (bound, -bound))
    # far from the bound the probability of a miss underflows to nan
    return 1.0 if math.isnan(upper) else 1 - upper + (0.0 if math.isnan(lower) else lower)


def seeds_needed(tested: DifferenceTest, level: float) -> int | None:
    """The seeds per arm that detect a difference of this size and spread with POWER; None if that takes
    more than MOST_SEEDS, or there is no difference."""
    if tested.error is None or tested.mean == 0:
        return None

    def reached(n: int) -> float:
        effect = abs(tested.mean) / math.sqrt(tested.variance / n)
        return power(effect, tested.freedom * (n - 1), level)

    plans = range(2, MOST_SEEDS + 1)
    place = bisect_left(plans, POWER, key=reached)
    return plans[place] if place < len(plans) else None


def detectable(tested: DifferenceTest, level: float) -> float | None:
    """The smallest difference that the present runs detect with POWER; None without a spread."""
    if tested.error is None or tested.df is None:
        return None
    return tested.error * _detected_effect(round(tested.df, 6), level)


@lru_cache(maxsize=4096)
def _detected_effect(df: float, level: float) -> float:
    """The effect, in standard errors, that is detected with POWER."""
    high = 4.0
    while power(high, df, level) < POWER:
        high *= 2
    return float(optimize.brentq(lambda effect: power(effect, df, level) - POWER, 0.0, high))


def problems_differ(arm: np.ndarray, baseline: np.ndarray, level: float) -> tuple[Estimate, float]:
    """Mean difference over problems with its bootstrap interval, and p of the paired permutation test, which
    swaps the two shares of a problem at random. Both arguments are shares per problem, (problems,)."""
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
