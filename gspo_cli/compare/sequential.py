"""Seeds added until a difference is settled: critical values of Student's t for looks at a growing number of
paired seeds, what each look finds, and how many more seeds it would take. Pure; docs/comparing.md derives it.

Shapes: K looks, A error rates, N paired seeds. In `_one_more`: H angles from 0 to pi/2, R nodes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import special, stats

from gspo_cli.compare.result import Design, Estimate, Look, Verdict
from gspo_cli.compare.statistics import POWER, ROUNDING_SD, SEED, DifferenceTest, mean_difference
from gspo_cli.config.compare_schema import MOST_ADDED

SETTLED = (Verdict.higher, Verdict.lower, Verdict.equivalent)
HALF_SPENT = 10  # degrees of freedom at which half of the error is spent
ERROR_RATES = tuple(float(rate) for rate in np.geomspace(1e-6, 1, 25))  # at which p is interpolated
FIRST_TRIED = 25  # seeds
PATHS = 2000  # simulated continuations of a comparison
ANGLES = np.linspace(0, np.pi / 2, 151)  # (H,)
NODES, WEIGHTS = (np.pi / 2 * each for each in np.polynomial.legendre.leggauss(128))  # (R,), of -pi/2 to pi/2


@dataclass(frozen=True)
class Added:
    """Seeds in the order in which they were added, the numbers of them at which the primary outcome was
    looked at, and how many come before the next look."""

    seeds: Sequence[int]
    looks: Sequence[int]
    step: int = 1

    def continued(self, most: int) -> tuple[int, ...]:
        """The looks so far and those that would follow up to `most` seeds."""
        return (*self.looks, *range(self.looks[-1] + self.step, most + 1, self.step))


def error_spent(seeds: int) -> float:
    """The share of the allowed error that looks up to this number of seeds may use."""
    return (seeds - 1) / (seeds - 1 + HALF_SPENT)


@lru_cache(maxsize=256)
def critical_values(looks: tuple[int, ...], rates: tuple[float, ...]) -> np.ndarray:
    """|t| that settles a difference at each look, such that without one the probability of reaching it at a
    look up to n is `error_spent(n)` of the rate. (K, A)"""
    return boundary(looks, np.outer([error_spent(seeds) for seeds in looks], rates))


def boundary(looks: Sequence[int], spent: np.ndarray) -> np.ndarray:
    """|t| at each look such that without a difference the probability of reaching it at that look or an
    earlier one is `spent`. (K, A) -> (K, A)"""
    cuts = np.diff(spent, axis=0, prepend=0) / 2  # of each tail
    n, rates = looks[0], spent.shape[1]
    found = [stats.t.isf(cuts[0], n - 1)]
    # P(no look so far has settled it, angle > each of ANGLES); (H, A)
    tails = np.repeat(special.stdtr(n - 1, -np.sqrt(n - 1) * np.tan(ANGLES))[:, None], rates, axis=1)
    for place in range(1, len(looks)):
        tails = np.maximum(tails - cuts[place - 1], 0)
        while n < looks[place]:
            tails = _one_more(n) @ np.concatenate([2 * tails[0] - tails[:0:-1], tails])
            n += 1
        found.append(_reached(tails[1:-1], cuts[place], n))
    return np.array(found)


def _one_more(n: int) -> np.ndarray:
    """The matrix that takes the tails of n seeds, at angles from -pi/2 to pi/2, to those of n + 1, by cubics
    between four angles. (H, 2H - 1)"""
    high = len(ANGLES) - 1
    weights = WEIGHTS * np.cos(NODES) ** (n - 1)
    before = np.sin(ANGLES)[:, None] * np.sqrt((n + 1) / n) - np.sin(NODES) / np.sqrt(n)
    place = (np.arcsin(np.clip(before / np.cos(NODES), -1, 1)) * 2 / np.pi + 1) * high  # (H, R)
    first = np.clip(place.astype(int) - 1, 0, 2 * high - 3)
    x = place - first
    cubics = (
        (1 - x) * (x - 2) * (x - 3) / 6, x * (x - 2) * (x - 3) / 2,
        x * (1 - x) * (x - 3) / 2, x * (x - 1) * (x - 2) / 6,
    )  # fmt: skip
    cells = first + (2 * high + 1) * np.arange(high + 1)[:, None]
    parts = (
        np.bincount(
            (cells + i).ravel(), (cubic * weights / weights.sum()).ravel(), (high + 1) * (2 * high + 1)
        )
        for i, cubic in enumerate(cubics)
    )
    return sum(parts, np.zeros(1)).reshape(high + 1, -1)


def _reached(tails: np.ndarray, cuts: np.ndarray, n: int) -> np.ndarray:
    """t at which each tail is `cuts`; beyond the last angle it falls as a power of t.
    (H - 2, A), (A,) -> (A,)"""
    logs, values = np.log(np.sqrt(n - 1) * np.tan(ANGLES[1:-1])), np.log(np.maximum(tails, 1e-300))
    found = [
        np.interp(-np.log(cut), -value, logs) + max(0.0, value[-1] - np.log(cut)) / (n - 1)
        for cut, value in zip(cuts, values.T, strict=True)
    ]
    return np.exp(found)


@dataclass(frozen=True)
class Boundary:
    """The critical values of given looks for comparisons at `level`, with the error divided over `arms`."""

    looks: tuple[int, ...]
    level: float
    arms: int = 1

    @property
    def rates(self) -> tuple[float, ...]:
        """Error rates, ascending."""
        return tuple(sorted({*ERROR_RATES, 1 - self.level, self.rate}))

    @property
    def rate(self) -> float:
        """The error rate of one arm."""
        return (1 - self.level) / self.arms

    @lru_cache(maxsize=256)  # noqa: B019 (boundaries are values)
    def nominal(self, place: int) -> np.ndarray:
        """p of a t test with a fixed number of seeds that reaches the critical value at a look. (A,)"""
        return 2 * stats.t.sf(critical_values(self.looks, self.rates)[place], self.looks[place] - 1)

    def interval_level(self, place: int) -> float:
        """The level of a t interval that is the repeated interval at a look, where one arm has all error."""
        return 1 - float(self.nominal(place)[self.rates.index(1 - self.level)])

    def repeated(self, place: int, p: float) -> float:
        """The lowest error rate at which a look with this p of a t test settles a difference."""
        nominal = self.nominal(place)
        if p > nominal[-1]:
            return 1.0
        return float(np.exp(np.interp(np.log(max(p, 1e-300)), np.log(nominal), np.log(self.rates))))


def design_of(
    values: Mapping[str, Mapping[int, float]],
    baseline: str,
    added: Added,
    level: float,
    smallest: float,
    resolution: float,
) -> Design:
    """What each look finds in each arm's values by seed, against those of the baseline. A look at which runs
    are missing is not taken, nor are those after it."""
    arms = [name for name in values if name != baseline]
    looks = tuple(n for n in added.looks if all(set(added.seeds[:n]) <= set(own) for own in values.values()))
    limits = Boundary(looks, level, len(arms))
    found: dict[str, list[Look]] = {name: [] for name in arms}
    for place, seeds in enumerate(looks):
        bound = float(critical_values(looks, (limits.rate,))[place, 0])
        for name in arms:
            here, there = ({s: values[each][s] for s in added.seeds[:seeds]} for each in (name, baseline))
            test = mean_difference(here, there, level, resolution)
            assert test is not None  # both sides have values
            p = 1.0 if test.p is None else limits.repeated(place, test.p)
            interval = _interval(test, bound, resolution)
            found[name].append(Look(seeds, interval, p, _result(interval, smallest)))
    spent = error_spent(looks[-1]) if looks else 0.0
    further = limits.interval_level(len(looks) - 1) if looks else level
    return Design(smallest, spent * (1 - level), further, list(looks), found)


def _interval(test: DifferenceTest, bound: float, resolution: float) -> Estimate:
    """The repeated interval. Equal values are only as certain as what was counted."""
    error = test.error if test.error is not None else ROUNDING_SD * resolution / math.sqrt(test.runs[0])
    if error == 0:
        return Estimate(test.mean, n=test.runs[0])
    return Estimate(test.mean, test.mean - bound * error, test.mean + bound * error, test.runs[0])


def _result(interval: Estimate, smallest: float) -> Verdict:
    """What a repeated interval settles."""
    low, high = interval.low, interval.high
    if low is None or high is None:
        return Verdict.not_distinguishable
    if low > 0 or high < 0:
        return Verdict.higher if low > 0 else Verdict.lower
    return Verdict.equivalent if -smallest < low and high < smallest else Verdict.not_distinguishable


def more_seeds(
    differences: np.ndarray, added: Added, level: float, arms: int, smallest: float, resolution: float
) -> int | None:
    """The seeds after which POWER of the continuations are settled, if mean and spread of the paired
    differences are as they are now: 0 where a look at those that are there settles them; None if it takes
    more than MOST_ADDED in all. (N,)"""
    n, rate, least = len(differences), (1 - level) / arms, ROUNDING_SD * resolution
    spread = max(float(differences.std(ddof=1)), least)
    for most in (FIRST_TRIED, MOST_ADDED):  # fewer looks are computed sooner
        looks = added.continued(most)
        drawn = np.random.default_rng(SEED).normal(differences.mean(), spread, (PATHS, looks[-1] - n))
        every = np.concatenate([np.tile(differences, (PATHS, 1)), drawn], axis=1)
        settled = np.zeros(PATHS, dtype=bool)
        for bound, seeds in zip(critical_values(looks, (rate,))[:, 0], looks, strict=True):
            if seeds >= n:
                means, spreads = every[:, :seeds].mean(axis=1), every[:, :seeds].std(axis=1, ddof=1)
                half = bound * np.maximum(spreads, least) / np.sqrt(seeds)
                settled |= (np.abs(means) > half) | (np.abs(means) + half < smallest)
                if settled.mean() >= POWER:
                    return seeds - n
    return None
