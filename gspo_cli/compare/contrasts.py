"""Every outcome of every arm against the baseline: tested, adjusted, and said in words. Pure.

Families: the primary outcome is tested alone (adjusted over arms); all other outcomes of which one direction
is better are adjusted together over outcomes and arms; so are those that only describe."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from gspo_cli.compare.outcomes import PRIMARY, TO_THRESHOLD
from gspo_cli.compare.result import Contrast, Estimate, Outcome, Verdict
from gspo_cli.compare.statistics import (
    MOST_SEEDS,
    RESAMPLES,
    Tested,
    adjusted,
    detectable,
    estimates,
    mean_difference,
    seeds_needed,
)
from gspo_cli.console.words import number

Table = Mapping[int, Mapping[str, float | None]]  # seed -> outcome -> value, of one arm


def arm_estimates(
    tables: Mapping[str, Table], outcomes: Sequence[Outcome], level: float, resamples: int = RESAMPLES
) -> dict[str, dict[str, Estimate]]:
    """arm -> outcome -> interquartile mean with its interval over seeds; none of a threshold that not all
    runs of the arm reached."""
    found = {}
    for name, table in tables.items():
        rows = [
            [math.nan if (value := table[seed][o.key]) is None else value for seed in sorted(table)]
            for o in outcomes
        ]
        found[name] = dict(zip((o.key for o in outcomes), estimates(rows, level, resamples), strict=True))
        short = {o.key: measured(table, o.key) for o in outcomes if _not_reached(o, {name: table})}
        found[name] |= {key: Estimate(None, n=len(own), of=len(table)) for key, own in short.items()}
    return found


def contrasts(
    tables: Mapping[str, Table],
    baseline: str,
    outcomes: Sequence[Outcome],
    resolution: Mapping[str, float],
    level: float,
    voided: bool = False,
    resamples: int = RESAMPLES,
) -> list[Contrast]:
    """All contrasts, by outcome, then by arm. `resolution` is the step in which an outcome is counted; with
    `voided` nothing gets a verdict."""
    middle = arm_estimates(tables, outcomes, level, resamples)
    pairs = [(outcome, name) for outcome in outcomes for name in tables if name != baseline]
    tests: dict[tuple[str, str], Tested | None] = {}
    for outcome, name in pairs:
        sides = (measured(tables[name], outcome.key), measured(tables[baseline], outcome.key))
        short = _not_reached(outcome, {n: tables[n] for n in (name, baseline)})
        step = resolution.get(outcome.key, 0.0)
        tests[outcome.key, name] = None if short else mean_difference(*sides, level, step)
    p_values = _adjusted_by_family(pairs, tests)
    found = []
    for outcome, name in pairs:
        test, p = tests[outcome.key, name], p_values.get((outcome.key, name))
        short = _not_reached(outcome, {n: tables[n] for n in (name, baseline)})
        verdict = Verdict.void if voided or p is None else _verdict(test, p, level)
        runs = max(middle[side][outcome.key].n for side in (name, baseline))
        strict = level if not p else 1 - (1 - level) * test.p / p  # the level that this p is held to
        needed = seeds_needed(test, strict) if verdict is Verdict.not_distinguishable else None
        found.append(
            Contrast(
                outcome.key, name, baseline, middle[name][outcome.key], middle[baseline][outcome.key],
                Estimate(None) if test is None else Estimate(test.mean, test.low, test.high, min(test.runs)),
                test is not None and test.paired, None if test is None else test.p, p, verdict,
                short or _unmeasured(outcome, test)
                or _sentence(name, test, runs, p, verdict, needed, voided),
                needed,
                None if test is None else detectable(test, strict),
            )
        )  # fmt: skip
    return found


def measured(table: Table, key: str) -> dict[int, float]:
    """Values of one outcome by seed, without those that are missing."""
    return {seed: value for seed, values in table.items() if (value := values[key]) is not None}


def _adjusted_by_family(
    pairs: Sequence[tuple[Outcome, str]],
    tests: Mapping[tuple[str, str], Tested | None],
) -> dict[tuple[str, str], float]:
    """p of each contrast that has one, adjusted over its family."""
    families: dict[str, list[tuple[str, str]]] = {}
    for outcome, name in pairs:
        test = tests[outcome.key, name]
        if test is not None and test.p is not None:
            family = PRIMARY if outcome.key == PRIMARY else f"describes: {outcome.better == 'none'}"
            families.setdefault(family, []).append((outcome.key, name))
    found = {}
    for members in families.values():
        found |= dict(zip(members, adjusted([tests[member].p for member in members]), strict=True))
    return found


def _not_reached(outcome: Outcome, tables: Mapping[str, Table]) -> str:
    """How many runs reached the threshold, in words; nothing where all did, or none had one to reach."""
    if outcome.key not in TO_THRESHOLD or outcome.missing:
        return ""
    reached = {name: len(measured(table, outcome.key)) for name, table in tables.items()}
    parts = [
        f"{count} of {len(tables[name])} {name} runs"
        for name, count in reached.items()
        if count < len(tables[name])
    ]
    return f"no verdict: only {' and '.join(parts)} reached the threshold" if parts else ""


def _unmeasured(outcome: Outcome, test: Tested | None) -> str:
    if test is not None:
        return ""
    return f"not measured: {outcome.missing}" if outcome.missing else "not measured"


def _verdict(test: Tested, p: float, level: float) -> Verdict:
    if p >= 1 - level:
        return Verdict.not_distinguishable
    return Verdict.higher if test.mean > 0 else Verdict.lower


def _sentence(
    name: str, test: Tested, runs: int, p: float | None, verdict: Verdict, needed: int | None, voided: bool
) -> str:
    difference = _difference(test)
    if min(test.runs) < 2:
        return f"one seed: no verdict; the difference is {difference}"
    seeds = f"{test.runs[0]} {'shared ' * (test.paired and test.runs[0] < runs)}seeds"
    if test.runs[0] != test.runs[1]:
        seeds = f"{test.runs[0]} and {test.runs[1]} seeds"
    shown = f"({seeds}, {'adjusted ' * (p != test.p)}{p_words(p)})"
    if voided:
        return f"no verdict: the comparison is void; the difference is {difference} {shown}"
    if verdict is not Verdict.not_distinguishable:
        return f"{name} is {verdict.value} by {_difference(test, absolute=True)} {shown}"
    if test.mean == 0:
        return f"not distinguishable: no difference ({seeds})"
    text = f"not distinguishable: the difference is {difference} {shown}"
    if test.error is None:
        return text
    if needed is None:
        return f"{text}; more than {MOST_SEEDS} seeds each would be needed to settle one of this size"
    return f"{text}; about {needed} seeds each would settle one of this size"


def _difference(test: Tested, absolute: bool = False) -> str:
    """0.05 [0.01, 0.09], with the signs turned where a verdict says the direction."""
    return interval_words(Estimate(test.mean, test.low, test.high), absolute)


def interval_words(estimate: Estimate, absolute: bool = False) -> str:
    """A difference with its interval, where `absolute` with the signs turned so that it is positive."""
    mean = estimate.value or 0.0
    turned = absolute and mean < 0
    value = abs(mean) if absolute else mean
    if estimate.low is None or estimate.high is None:
        return number(value)
    low, high = (-estimate.high, -estimate.low) if turned else (estimate.low, estimate.high)
    return f"{number(value)} [{number(low)}, {number(high)}]"


def p_words(p: float | None) -> str:
    """p = 0.02, or p < 0.001."""
    if p is None:
        return "no p"
    return "p < 0.001" if p < 0.001 else f"p = {number(p, 2)}"
