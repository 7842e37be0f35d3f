"""What it would take to settle the primary outcome, and the sentences about seeds that were added. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

import numpy as np

from gspo_cli.compare.outcomes import PRIMARY
from gspo_cli.compare.result import Contrast, Design, MoreSeeds, Verdict
from gspo_cli.compare.runs import StoredRun
from gspo_cli.compare.sequential import HALF_SPENT, Added, more_seeds
from gspo_cli.compare.statistics import POWER
from gspo_cli.config.compare_schema import MOST_ADDED, CompareConfig
from gspo_cli.console.words import counted, duration, number
from gspo_cli.diagnosis.history import number_of

LISTED = 4  # looks that are listed


def more_of(
    contrasts: Sequence[Contrast],
    values: Mapping[str, Mapping[int, float]],
    runs: Sequence[StoredRun],
    settings: CompareConfig,
    added: Added | None,
    resolution: float,
) -> MoreSeeds | None:
    """What it would take to settle the arms that are not; None if all are, or their seeds are not paired.
    `values` are those of the primary outcome by arm and seed."""
    open_ = [c for c in contrasts if c.outcome == PRIMARY and c.verdict is Verdict.not_distinguishable]
    if added is None:
        shared = sorted(set.intersection(*(set(own) for own in values.values())))
        added = Added(shared, [len(shared)])
        if any(len(own) > len(shared) for own in values.values()):
            return None
    if not open_ or not added.looks or added.looks[-1] < 2:
        return None
    seeds, arms = added.seeds[: added.looks[-1]], len(values) - 1
    counts = []
    for each in open_:
        here, there = (np.array([values[n][s] for s in seeds]) for n in (each.arm_name, each.baseline_name))
        counts.append(more_seeds(here - there, added, settings.level, arms, settings.smallest, resolution))
    known = [count for count in counts if count is not None]
    count = max(known) if len(known) == len(counts) else None
    times = [time for run in runs if (time := number_of(run.summary, "wall_seconds")) is not None]
    parallel = settings.parallel or 1
    each_seed = fmean(times) * len(values) / parallel if times else None
    seconds = None if count is None or each_seed is None else count * each_seed
    return MoreSeeds(count, seconds, parallel, POWER)


def how_settled(design: Design | None, more: MoreSeeds | None, settings: CompareConfig) -> str:
    """The looks and what they cost, and what it would take to settle what is not; empty where the number of
    seeds was fixed and nothing is left to settle."""
    fixed = "compare.until=settled adds seeds until then"
    if design is None:
        return "" if more is None else f"{_it_would_take(more, settings, fixed)}."
    if not design.seeds:
        return "No look was taken: not all runs of the first seeds are complete; repeat the command."
    count = design.seeds[-1]
    looks = f"looks at {_listed(design.seeds)} seeds per arm"
    used = f"used {number(design.spent, 2)} of the error rate of {1 - settings.level:.2g}"
    if more is None:
        return f"Seeds were added until this was settled: {looks} {used}."
    budget = f"compare.max_seeds={count + more.seeds} allows them" if more.seeds is not None else ""
    if settings.max_hours is not None and budget:
        budget += " if compare.max_hours does"
    return f"Not settled: {looks} {used}. {_it_would_take(more, settings, budget)}."


def _it_would_take(more: MoreSeeds, settings: CompareConfig, how: str) -> str:
    """How many more seeds and hours, in a sentence without its period."""
    end = f"a difference, or that it is below {number(settings.smallest)}"
    if more.seeds is None:
        return f"To show {end}, would take more than {MOST_ADDED} seeds per arm"
    if more.seeds == 0:
        below = f"the difference is below {number(settings.smallest)}"  # the looks ask more of a difference
        return f"By the rule of compare.until=settled these seeds are enough to show that {below}"
    at_once = f", {more.parallel} runs at once" if more.parallel > 1 else ""
    time = "" if more.seconds is None else f" ({duration(more.seconds)} of runs{at_once})"
    return (
        f"About {counted(more.seeds, 'more seed')} per arm{time} would show {end}, with {more.power:.0%} "
        f"probability, if the differences keep their mean and spread; {how}"
    )


def _listed(seeds: Sequence[int]) -> str:
    if len(seeds) > LISTED:
        return f"{seeds[0]} to {seeds[-1]}"
    head = ", ".join(map(str, seeds[:-1]))
    return f"{head} and {seeds[-1]}" if head else str(seeds[-1])


def design_methods(design: Design | None, level: float) -> list[str]:
    """How the numbers of a comparison with added seeds are computed."""
    if design is None:
        return []
    return [
        "Seeds were added, for all arms together, until the difference in the primary outcome from the "
        "baseline was settled in every arm: its interval excludes 0, or lies within "
        f"{number(design.smallest)} of 0 (compare.smallest). The number of seeds was not fixed in advance, "
        "so the usual t interval and p do not hold. These do at all looks together: the critical values of t "
        f"are such that without a difference looks up to n seeds reach one with probability {1 - level:.2g} "
        f"x (n - 1) / (n + {HALF_SPENT - 1}), divided over the arms (docs/comparing.md).",
        "The p of another outcome is the lowest error rate at which the last look would settle it, and its "
        "interval uses the critical value of the last look: both hold whatever ended the looks. The test "
        "over problems and the intervals of arms and curves are as if the number of seeds had been fixed.",
    ]
