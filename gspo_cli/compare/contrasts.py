"""Every outcome of every arm against the baseline: tested, adjusted, and said in words. Pure.

Families: the primary outcome is tested alone (adjusted over arms); all other outcomes of which one direction
is better are adjusted together over outcomes and arms; so are those that only describe."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from gspo_cli.compare.outcomes import PRIMARY
from gspo_cli.compare.result import Contrast, Estimate, Outcome, ProblemTest, Verdict
from gspo_cli.compare.runs import StoredRun
from gspo_cli.compare.statistics import (
    MOST_SEEDS,
    RESAMPLES,
    Tested,
    adjusted,
    detectable,
    estimates,
    mean_difference,
    problems_differ,
    seeds_needed,
)
from gspo_cli.run.words import number

Table = Mapping[int, Mapping[str, float | None]]  # seed -> outcome -> value, of one arm
NOT_REACHED = ("steps_to_threshold", "tokens_to_threshold")


def arm_estimates(
    tables: Mapping[str, Table], outcomes: Sequence[Outcome], level: float, resamples: int = RESAMPLES
) -> dict[str, dict[str, Estimate]]:
    """arm -> outcome -> interquartile mean with its interval over seeds."""
    found = {}
    for name, table in tables.items():
        rows = [
            [math.nan if (value := table[seed][o.key]) is None else value for seed in sorted(table)]
            for o in outcomes
        ]
        found[name] = dict(zip((o.key for o in outcomes), estimates(rows, level, resamples), strict=True))
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
        tests[outcome.key, name] = mean_difference(*sides, level, resolution.get(outcome.key, 0.0))
    p_values = _adjusted_by_family(pairs, tests, tables, baseline)
    found = []
    for outcome, name in pairs:
        test, p = tests[outcome.key, name], p_values.get((outcome.key, name))
        short = _not_reached(outcome.key, {n: tables[n] for n in (name, baseline)})
        verdict = Verdict.void if voided or p is None else _verdict(test, p, level)
        strict = level if not p else 1 - (1 - level) * test.p / p  # the level that this p is held to
        needed = seeds_needed(test, strict) if verdict is Verdict.not_distinguishable else None
        found.append(
            Contrast(
                outcome.key, name, baseline, middle[name][outcome.key], middle[baseline][outcome.key],
                Estimate(None) if test is None else Estimate(test.mean, test.low, test.high, min(test.runs)),
                test is not None and test.paired, None if test is None else test.p, p, verdict,
                short or _sentence(name, test, p, verdict, needed, voided), needed,
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
    tables: Mapping[str, Table],
    baseline: str,
) -> dict[tuple[str, str], float]:
    """p of each contrast that has one, adjusted over its family; what was not reached by all is in none."""
    families: dict[str, list[tuple[str, str]]] = {}
    for outcome, name in pairs:
        test = tests[outcome.key, name]
        both = {n: tables[n] for n in (name, baseline)}
        if test is not None and test.p is not None and not _not_reached(outcome.key, both):
            family = PRIMARY if outcome.key == PRIMARY else f"describes: {outcome.better == 'none'}"
            families.setdefault(family, []).append((outcome.key, name))
    found = {}
    for members in families.values():
        found |= dict(zip(members, adjusted([tests[member].p for member in members]), strict=True))
    return found


def _not_reached(key: str, tables: Mapping[str, Table]) -> str:
    """Which runs did not reach the threshold, in words; nothing where all did, or none had one to reach."""
    if key not in NOT_REACHED:
        return ""
    missing = {name: len(table) - len(measured(table, key)) for name, table in tables.items()}
    if not any(missing.values()):
        return ""
    parts = [f"{count} of {len(tables[name])} {name} runs" for name, count in missing.items() if count]
    return f"no verdict: {' and '.join(parts)} did not reach the threshold"


def _verdict(test: Tested, p: float, level: float) -> Verdict:
    if p >= 1 - level:
        return Verdict.not_distinguishable
    return Verdict.higher if test.mean > 0 else Verdict.lower


def _sentence(
    name: str, test: Tested | None, p: float | None, verdict: Verdict, needed: int | None, voided: bool
) -> str:
    if test is None:
        return "not measured"
    difference = _difference(test)
    if min(test.runs) < 2:
        return f"one seed: no verdict; the difference is {difference}"
    seeds = f"{test.runs[0]} seeds"
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
    turned = absolute and test.mean < 0
    value = abs(test.mean) if absolute else test.mean
    if test.low is None or test.high is None:
        return number(value)
    low, high = (-test.high, -test.low) if turned else (test.low, test.high)
    return f"{number(value)} [{number(low)}, {number(high)}]"


def p_words(p: float | None) -> str:
    """p = 0.02, or p < 0.001."""
    if p is None:
        return "no p"
    return "p < 0.001" if p < 0.001 else f"p = {number(p, 2)}"


def problem_test(
    name: str, baseline: str, arm: Sequence[StoredRun], other: Sequence[StoredRun], end: int, level: float,
    voided: bool = False,
) -> ProblemTest | None:  # fmt: skip
    """Held-out problems by who solves them at the last evaluation to `end`, in numbers per seed, over the
    seeds that both arms have.

    None where runs wrote no heldout.jsonl, no seed is shared, or problems are not the same."""
    lines = [{run.seed: line for run in runs if (line := last_heldout(run, end))} for runs in (arm, other)]
    shared = sorted(set(lines[0]) & set(lines[1]))
    if not shared or len({tuple(side[seed]["problems"]) for side in lines for seed in shared}) > 1:
        return None
    # (seeds, problems); nan where a conversation was left out
    solved = [np.array([side[seed]["solved"] for seed in shared], dtype=float) for side in lines]
    known = np.isfinite(solved[0]) & np.isfinite(solved[1])
    judged = known.any(axis=0)
    if not judged.any():
        return None
    here, there = (np.where(known, side, 0.0)[:, judged] for side in solved)
    weight = known[:, judged].sum(axis=0)
    shares = here.sum(axis=0) / weight, there.sum(axis=0) / weight
    counts = [
        float((np.where(known[:, judged], cell, 0.0).sum(axis=0) / weight).sum())
        for cell in (here * there, here * (1 - there), (1 - here) * there, (1 - here) * (1 - there))
    ]
    difference, p = problems_differ(*shares, level)
    return ProblemTest(
        name, baseline, int(judged.sum()), *counts, difference, p,
        _problem_sentence(name, difference, p, len(shared), level, voided),
    )  # fmt: skip


def last_heldout(run: StoredRun, end: int) -> Mapping | None:
    """The newest line of heldout.jsonl at or before `end`."""
    inside = [line for line in run.heldout if line["iteration"] <= end]
    return inside[-1] if inside else None


def _problem_sentence(
    name: str, difference: Estimate, p: float, seeds: int, level: float, voided: bool
) -> str:
    about = f"This is about other problems for these {seeds} seeds" if seeds > 1 else "This is about one seed"
    value = f"{number(difference.value)} [{number(difference.low)}, {number(difference.high)}]"
    if voided:
        says = f"no verdict; the difference of the share of problems solved is {value} ({p_words(p)})"
    elif p >= 1 - level:
        says = (
            f"not distinguishable: the difference of the share of problems solved is {value} ({p_words(p)})"
        )
    else:
        direction = "more" if (difference.value or 0) > 0 else "fewer"
        says = f"{name} solves {direction}: the difference of the share is {value} ({p_words(p)})"
    return f"{says}. {about}, not about other seeds."
