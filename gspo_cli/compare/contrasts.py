"""Tests every outcome of every arm, and the held-out problems, against the baseline. Pure.

Families of outcomes: the primary outcome is tested alone (adjusted over arms); all other outcomes with a
better direction are adjusted together over outcomes and arms; so are the descriptive ones. The test over
problems is about these runs: how far the difference would hold on other problems, not with other seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from gspo_cli.compare.outcomes import PRIMARY, TO_THRESHOLD
from gspo_cli.compare.result import Contrast, Design, Estimate, OutcomeSpec, ProblemTest, Verdict
from gspo_cli.compare.runs import StoredRun
from gspo_cli.compare.sequential import SETTLED, Boundary
from gspo_cli.compare.statistics import (
    MOST_SEEDS,
    RESAMPLES,
    DifferenceTest,
    adjusted,
    detectable,
    estimates,
    mean_difference,
    problems_differ,
    seeds_needed,
)
from gspo_cli.console.words import number

Measurements = Mapping[int, Mapping[str, float | None]]  # seed -> outcome -> value, of one arm


def arm_estimates(
    tables: Mapping[str, Measurements],
    outcomes: Sequence[OutcomeSpec],
    level: float,
    resamples: int = RESAMPLES,
) -> dict[str, dict[str, Estimate]]:
    """arm -> outcome -> interquartile mean with its interval over seeds; without a value where not all runs
    of the arm reached the threshold."""
    found = {}
    for name, table in tables.items():
        rows = [[table[seed][o.key] for seed in sorted(table)] for o in outcomes]
        found[name] = dict(zip((o.key for o in outcomes), estimates(rows, level, resamples), strict=True))
        short = {o.key: measured(table, o.key) for o in outcomes if _not_reached(o, {name: table})}
        found[name] |= {key: Estimate(None, n=len(own), of=len(table)) for key, own in short.items()}
    return found


def contrasts(
    tables: Mapping[str, Measurements],
    baseline: str,
    outcomes: Sequence[OutcomeSpec],
    resolution: Mapping[str, float],
    level: float,
    voided: bool = False,
    resamples: int = RESAMPLES,
    design: Design | None = None,
) -> list[Contrast]:
    """All contrasts, by outcome, then by arm. `resolution` is the step in which an outcome is counted; with
    `voided` every contrast is inconclusive. Where seeds were added, the primary outcome's are those of
    `design`, and the p and intervals of the others account for its looks."""
    middle = arm_estimates(tables, outcomes, level, resamples)
    pairs = [(outcome, name) for outcome in outcomes for name in tables if name != baseline]
    missing: dict[tuple[str, str], str] = {}
    tests: dict[tuple[str, str], DifferenceTest] = {}
    for outcome, name in pairs:
        missing[outcome.key, name] = _not_reached(outcome, {n: tables[n] for n in (name, baseline)})
        if not missing[outcome.key, name]:
            sides = (measured(tables[name], outcome.key), measured(tables[baseline], outcome.key))
            test = mean_difference(
                *sides, design.interval_level if design else level, resolution.get(outcome.key, 0.0)
            )
            if test is None:
                missing[outcome.key, name] = f"not measured{outcome.missing and f': {outcome.missing}'}"
            else:
                tests[outcome.key, name] = repeated(test, design, level)
    p_values = _adjusted_by_family(outcomes, tests)
    found = []
    for key, name in ((outcome.key, name) for outcome, name in pairs):
        unknown = Contrast(
            key, name, baseline, middle[name][key], middle[baseline][key], Estimate(None), False, None, None,
            Verdict.void, missing[key, name],
        )  # fmt: skip
        if design is not None and key == PRIMARY and not missing[key, name]:
            found.append(_sequential(unknown, design, voided))
        elif (key, name) in tests:
            p = p_values.get((key, name))
            found.append(_tested(unknown, tests[key, name], p, level, voided, design))
        else:
            found.append(unknown)
    return found


def repeated(test: DifferenceTest, design: Design | None, level: float) -> DifferenceTest:
    """The test with its p at the last look of a design, whatever it was that ended the looks."""
    if design is None or not design.seeds or test.p is None:
        return test
    return replace(test, p=Boundary(tuple(design.seeds), level).repeated(len(design.seeds) - 1, test.p))


def _sequential(contrast: Contrast, design: Design, voided: bool) -> Contrast:
    """The contrast of the primary outcome with what the first look that settled it found, else the last.
    What later looks found, which other arms needed, is told beside it."""
    looks = design.looks[contrast.arm_name]
    if not looks:
        return replace(contrast, sentence="inconclusive: not all runs of the first seeds are complete")
    place = next((i for i, look in enumerate(looks) if look.verdict in SETTLED), len(looks) - 1)
    told, p = looks[place], min(look.p for look in looks[: place + 1])
    p_adjusted, difference = min(1.0, p * len(design.looks)), told.difference
    shown = f"({told.seeds} seeds, {'adjusted ' * (p_adjusted != p)}{p_phrase(p_adjusted)} over all looks)"
    text = f"not settled: the difference is {difference} {shown}"
    verdict = told.verdict if told.verdict in SETTLED else Verdict.not_distinguishable
    if voided:
        text = f"inconclusive: the comparison is void; the difference is {difference} {shown}"
    elif verdict is Verdict.equivalent:
        text = f"no difference of {number(design.smallest)} or more: it is {difference} {shown}"
    elif verdict in SETTLED:
        text = f"{contrast.arm_name} is {verdict.value} by {_magnitude(difference)} {shown}"
    if told is not looks[-1]:
        text += f"; with all {looks[-1].seeds} seeds the difference is {looks[-1].difference}"
    return replace(
        contrast,
        difference=difference,
        paired=True,
        p=p,
        p_adjusted=p_adjusted,
        verdict=Verdict.void if voided else verdict,
        sentence=text,
    )


def measured(table: Measurements, key: str) -> dict[int, float]:
    """Values of one outcome by seed, without those that are missing."""
    return {seed: value for seed, values in table.items() if (value := values[key]) is not None}


def _adjusted_by_family(
    outcomes: Sequence[OutcomeSpec], tests: Mapping[tuple[str, str], DifferenceTest]
) -> dict[tuple[str, str], float]:
    """p of each test that has one, adjusted over its family."""
    directed = {outcome.key for outcome in outcomes if outcome.is_directed}
    families: dict[str, dict[tuple[str, str], float]] = {}
    for (key, name), test in tests.items():
        if test.p is not None:
            family = PRIMARY if key == PRIMARY else f"directed: {key in directed}"
            families.setdefault(family, {})[key, name] = test.p
    found: dict[tuple[str, str], float] = {}
    for members in families.values():
        found |= dict(zip(members, adjusted(list(members.values())), strict=True))
    return found


def _not_reached(outcome: OutcomeSpec, tables: Mapping[str, Measurements]) -> str:
    """How many runs reached the threshold, as text; empty if all did, or if there is no threshold."""
    if outcome.key not in TO_THRESHOLD or outcome.missing:
        return ""
    reached = {name: len(measured(table, outcome.key)) for name, table in tables.items()}
    parts = [
        f"{count} of {len(tables[name])} {name} runs"
        for name, count in reached.items()
        if count < len(tables[name])
    ]
    return f"inconclusive: only {' and '.join(parts)} reached the threshold" if parts else ""


def _tested(
    contrast: Contrast,
    test: DifferenceTest,
    p: float | None,
    level: float,
    voided: bool,
    design: Design | None,
) -> Contrast:
    """The contrast with the result of its test; `p` is the adjusted value."""
    verdict = Verdict.void
    if p is not None and not voided:
        verdict = Verdict.higher if test.mean > 0 else Verdict.lower
        verdict = Verdict.not_distinguishable if p >= 1 - level else verdict
    strict = design.interval_level if design else level
    strict = 1 - (1 - strict) * test.p / p if p and test.p is not None else strict  # which this p must meet
    fixed = design is None  # else the looks to come tell, which are of the primary outcome
    needed = seeds_needed(test, strict) if fixed and verdict is Verdict.not_distinguishable else None
    found = replace(
        contrast,
        difference=Estimate(test.mean, test.low, test.high, min(test.runs)),
        paired=test.paired,
        p=test.p,
        p_adjusted=p,
        verdict=verdict,
        seeds_needed=needed,
        detectable=detectable(test, strict),
    )
    return replace(found, sentence=_sentence(found, test, voided, fixed))


def _sentence(contrast: Contrast, test: DifferenceTest, voided: bool, fixed: bool) -> str:
    name, p, verdict = contrast.arm_name, contrast.p_adjusted, contrast.verdict
    if min(test.runs) < 2:
        return f"inconclusive with one seed; the difference is {contrast.difference}"
    shared = "shared " if test.paired and test.runs[0] < max(contrast.arm.n, contrast.baseline.n) else ""
    seeds = f"{test.runs[0]} {shared}seeds"
    if test.runs[0] != test.runs[1]:
        seeds = f"{test.runs[0]} and {test.runs[1]} seeds"
    shown = f"({seeds}, {'adjusted ' * (p != test.p)}{p_phrase(p)})"
    if voided:
        return f"inconclusive: the comparison is void; the difference is {contrast.difference} {shown}"
    if verdict is not Verdict.not_distinguishable:
        return f"{name} is {verdict.value} by {_magnitude(contrast.difference)} {shown}"
    if test.mean == 0:
        return f"not distinguishable: no difference ({seeds})"
    text = f"not distinguishable: the difference is {contrast.difference} {shown}"
    if test.error is None or not fixed:
        return text
    needed = contrast.seeds_needed
    many = f"more than {MOST_SEEDS}" if needed is None else f"about {needed}"
    return (
        f"{text}; {many} seeds per arm, fixed in advance, would be needed to detect a difference of this size"
    )


def _magnitude(difference: Estimate) -> Estimate:
    """The size of a difference: value and interval with their signs flipped if the value is negative."""
    value, low, high = difference.value or 0.0, difference.low, difference.high
    if value >= 0 or low is None or high is None:
        return replace(difference, value=abs(value))
    return replace(difference, value=-value, low=-high, high=-low)


def p_phrase(p: float | None) -> str:
    """p = 0.02, or p < 0.001."""
    if p is None:
        return "no p"
    return "p < 0.001" if p < 0.001 else f"p = {number(p, 2)}"


def problem_tests(
    arms: Mapping[str, Sequence[StoredRun]], baseline: str, end: int, level: float, voided: bool = False
) -> list[ProblemTest]:
    """The test over held-out problems of every arm that allows one, with p adjusted over the arms."""
    named = [name for name in arms if name != baseline]
    made = [_problem_test(name, baseline, arms[name], arms[baseline], end, level) for name in named]
    found = [each for each in made if each is not None]
    p_values = adjusted([p for _, p, _ in found])
    return [
        replace(test, p_adjusted=p, sentence=_problem_sentence(test, p, seeds, level, voided))
        for (test, _, seeds), p in zip(found, p_values, strict=True)
    ]


def _problem_test(
    name: str, baseline: str, arm: Sequence[StoredRun], other: Sequence[StoredRun], end: int, level: float
) -> tuple[ProblemTest, float, int] | None:
    """Problems by who solves them at the last evaluation to `end`, averaged over the seeds that both arms
    have; p, and the number of those seeds.

    None if runs wrote no heldout.jsonl, no seed is shared, or the problems differ."""
    lines = [{run.seed: line for run in runs if (line := run.last_heldout(end))} for runs in (arm, other)]
    shared = sorted(set(lines[0]) & set(lines[1]))
    if not shared or len({tuple(side[seed]["problems"]) for side in lines for seed in shared}) > 1:
        return None
    # (seeds, problems); nan where a conversation was left out
    solved = [np.array([side[seed]["solved"] for seed in shared], dtype=float) for side in lines]
    known = np.isfinite(solved[0]) & np.isfinite(solved[1])
    scored = known.any(axis=0)
    if not scored.any():
        return None
    here, there = (np.where(known, side, 0.0)[:, scored] for side in solved)
    weight = known[:, scored].sum(axis=0)
    shares = here.sum(axis=0) / weight, there.sum(axis=0) / weight
    both, only_arm, only_baseline, neither = (
        float((np.where(known[:, scored], cell, 0.0).sum(axis=0) / weight).sum())
        for cell in (here * there, here * (1 - there), (1 - here) * there, (1 - here) * (1 - there))
    )
    difference, p = problems_differ(*shares, level)
    test = ProblemTest(
        name, baseline, int(scored.sum()), both, only_arm, only_baseline, neither, difference, p, ""
    )
    return test, p, len(shared)


def _problem_sentence(test: ProblemTest, p: float, seeds: int, level: float, voided: bool) -> str:
    """About these runs only: a lucky seed can also make p small, so no algorithm is called better."""
    several = seeds > 1
    sides = f"the {seeds} runs of {test.arm_name}" if several else f"one run of {test.arm_name}"
    others = f"the {seeds} of {test.baseline_name}" if several else f"one of {test.baseline_name}"
    shown = f"({'adjusted ' * (p != test.p)}{p_phrase(p)})"
    signed = str(replace(test.difference, value=test.difference.value or 0.0))
    if voided:
        return f"inconclusive; the difference in the share of held-out problems solved is {signed} {shown}"
    if p >= 1 - level:
        return (
            f"not distinguishable on these problems: {sides} and {others} differ by {signed} in the "
            f"share that they solve {shown}"
        )
    more = "more" if (test.difference.value or 0) > 0 else "fewer"
    beyond = "which the headline tests" if several else "and a single seed cannot tell"
    return (
        f"{sides} {'solve' if several else 'solves'} {more} held-out problems than {others}, by "
        f"{_magnitude(test.difference)} {shown}; other seeds may give another result, {beyond}"
    )
