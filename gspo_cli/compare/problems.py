"""Held-out problems by who solves them, and the paired test over problems. Pure.

It is about these runs: how far the difference would hold on other problems, not with other seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from gspo_cli.compare.contrasts import interval_words, p_words
from gspo_cli.compare.result import ProblemTest
from gspo_cli.compare.runs import StoredRun
from gspo_cli.compare.statistics import adjusted, problems_differ
from gspo_cli.diagnosis.history import Record


def problem_tests(
    arms: Mapping[str, Sequence[StoredRun]], baseline: str, end: int, level: float, voided: bool = False
) -> list[ProblemTest]:
    """The test of every arm against the baseline that can be made, p adjusted over the arms."""
    named = [name for name in arms if name != baseline]
    made = [(name, _counted(name, baseline, arms[name], arms[baseline], end, level)) for name in named]
    found = [(test, seeds) for _, counted in made if counted is not None for test, seeds in [counted]]
    p_values = adjusted([test.p for test, _ in found])
    return [
        replace(test, p_adjusted=p, sentence=_sentence(test, p, seeds, level, voided))
        for (test, seeds), p in zip(found, p_values, strict=True)
    ]


def _counted(
    name: str, baseline: str, arm: Sequence[StoredRun], other: Sequence[StoredRun], end: int, level: float
) -> tuple[ProblemTest, int] | None:
    """Problems by who solves them at the last evaluation to `end`, in numbers per seed, over the seeds that
    both arms have, and how many those are.

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
    return ProblemTest(name, baseline, int(judged.sum()), *counts, difference, p, ""), len(shared)


def last_heldout(run: StoredRun, end: int) -> Record | None:
    """The newest line of heldout.jsonl at or before `end`."""
    inside = [line for line in run.heldout if line["iteration"] <= end]
    return inside[-1] if inside else None


def _sentence(test: ProblemTest, p: float, seeds: int, level: float, voided: bool) -> str:
    """Of these runs alone: p is small by the luck of a seed as well, so that no algorithm is named better."""
    several = seeds > 1
    sides = f"the {seeds} runs of {test.arm_name}" if several else f"one run of {test.arm_name}"
    others = f"the {seeds} of {test.baseline_name}" if several else f"one of {test.baseline_name}"
    shown = f"({'adjusted ' * (p != test.p)}{p_words(p)})"
    signed, size = (interval_words(test.difference, absolute) for absolute in (False, True))
    if voided:
        return f"no verdict; the difference of the share of held-out problems solved is {signed} {shown}"
    if p >= 1 - level:
        return (
            f"not distinguishable on these problems: {sides} and {others} differ in the share that they "
            f"solve by {signed} {shown}"
        )
    more = "more" if (test.difference.value or 0) > 0 else "fewer"
    beyond = "the headline's test is about that" if several else "one says nothing about that"
    return (
        f"{sides} {'solve' if several else 'solves'} {more} held-out problems than {others}, by {size} "
        f"{shown}; other seeds may turn it, {beyond}"
    )
