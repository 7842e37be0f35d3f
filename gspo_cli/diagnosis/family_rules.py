"""The rules about value heads and preference pairs. Pure; see `rules`."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, median

from gspo_cli.console.words import number
from gspo_cli.diagnosis.history import (
    LASTING,
    Finding,
    History,
    Record,
    Severity,
    nearer,
    number_of,
    slower,
    slower_head,
)
from gspo_cli.diagnosis.rules import fall

LATE = 20  # iterations that are looked at, before which heads and preferences are learned
ERRATIC = -0.1  # explained variance of a value that moves too fast; of one that knows nothing it is near 0
WORSE = -1.0  # explained variance of a value whose errors are larger than the returns differ
EXPLAINED, ORDER = "value/explained_variance", "preference/accuracy"


def value_unexplained(run: History) -> Finding | None:
    """After many iterations the value head predicts returns no better than a constant."""
    found = run.values(EXPLAINED)
    if len(found) < LATE or median(found[-LATE:]) > 0 or value_exploded(run):
        return None
    usual, coefficient = median(found[-LATE:]), run.config.algorithm.value.coefficient
    [setting] = slower_head(run)
    if usual > ERRATIC and coefficient < 1:  # the head sees what the model tells apart
        setting = f"algorithm.value.coefficient={min(1.0, 10 * coefficient) or 0.1:g}"
    return Finding(
        "value_unexplained",
        Severity.note if run.reward_rises else Severity.warning,
        f"the value head explains none of the differences of returns (explained variance "
        f"{number(usual)}, the median of {LATE} iterations): it takes no noise out of advantages",
        f"use {setting}, or an algorithm without a value head (algorithm=gspo)",
        run.iteration - LATE + 1,
        (setting,),
    )


def value_exploded(run: History) -> Finding | None:
    """The value head's errors are far larger than the differences of the returns."""
    since = run.since(lambda record: (number_of(record, EXPLAINED) or 0.0) < WORSE)
    if since is None:
        return None
    value = run.config.algorithm.value
    settings = [*slower_head(run), *(["algorithm.value.clip=0.2"] if value.clip is None else [])]
    return Finding(
        "value_exploded",
        Severity.warning,
        f"the value head is far off: its loss is {number(run.last('value/loss'))} and its explained variance "
        f"{number(run.last(EXPLAINED))}, where a constant has 0",
        f"use {' and '.join(settings)}",
        since,
        tuple(settings),
    )


def preference_chance(run: History) -> Finding | None:
    """After many iterations the policy prefers the better answer of a pair no more often than the worse."""
    newest = [record for record in run.records if number_of(record, "preference/pairs")][-LATE:]
    if len(newest) < LATE or run.reward_rises:
        return None
    pairs = sum(number_of(record, "preference/pairs") or 0.0 for record in newest)
    share = sum(_correct(record) for record in newest) / pairs
    error = 0.5 / pairs**0.5
    if share > 0.5 + error:
        return None
    setting, how = f"training.num_generations={2 * run.config.training.num_generations}", "no more often than"
    fix = f"use {setting}, so that best and worst lie further apart, or a less noisy reward"
    if share < 0.5 - 3 * error:
        setting, how = slower(run), "less often than"
        fix = f"use {setting}: steps this large undo each other"
    elif run.config.algorithm.pairs is not None:
        setting, fix = "", "check that `chosen` is the better answer in algorithm.pairs"
    return Finding(
        "preference_chance",
        Severity.warning,
        f"the policy prefers the better answer in {share:.0%} of the {pairs:.0f} pairs of {LATE} iterations, "
        f"{how} by chance",
        fix,
        newest[0]["iteration"],
        (setting,) if setting else (),
    )


def _correct(record: Record) -> float:
    return (number_of(record, ORDER) or 0.0) * (number_of(record, "preference/pairs") or 0.0)


def preference_overfit(run: History) -> Finding | None:
    """Pairs are told further apart while the held-out score falls."""
    fallen, algorithm = fall(run), run.config.algorithm
    if fallen is None or not algorithm.in_pairs:
        return None
    best, last = fallen
    until = max(LASTING, best["iteration"])
    before = _margins([record for record in run.records if record["iteration"] <= until])
    after = _margins(run.records)
    if before is None or after is None or after <= before:
        return None
    setting = nearer(run.config)
    return Finding(
        "preference_overfit",
        Severity.warning,
        f"pairs are over-optimized: their margin grew from {number(before)} to {number(after)} while the "
        f"held-out score fell from {best['score']:.3f} at iteration {best['iteration']} to "
        f"{last['score']:.3f}",
        f"take the checkpoint `best`, and use {setting}, which keeps the policy nearer to the reference",
        last["iteration"],
        (setting,),
    )


def _margins(records: Sequence[Record]) -> float | None:
    """Mean margin of the newest records that have one."""
    found = [margin for record in records if (margin := number_of(record, "preference/margin")) is not None]
    return fmean(found[-LASTING:]) if found else None
