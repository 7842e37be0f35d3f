"""What learning cost: tokens and machine time per point of held-out score, where the time of training
went, and the price of single settings. Pure.

A point is a hundredth of held-out score. Times are without evaluation, up to the common budget."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from statistics import fmean
from typing import Any

import numpy as np
from scipy import special

from gspo_cli.compare.arms import arm_settings
from gspo_cli.compare.comparability import differences
from gspo_cli.compare.outcomes import Budget, column, score_curve, seconds_at, tokens_at
from gspo_cli.compare.result import ArmCost, Costs, Estimate
from gspo_cli.compare.runs import StoredRun
from gspo_cli.compare.statistics import DifferenceTest, mean_difference
from gspo_cli.config.choices import Device, SharePrefixes
from gspo_cli.console.words import number

POINT = 0.01
STAGES = {
    "rollout": "time/rollout",
    "rewards": "time/reward",
    "scoring": "time/score",
    "updates": "time/update",
}
OTHER = "other"
MOST = 1_000_000  # threads, processes or runs of a machine that is believed
CORES, GPUS, WALL = "core-seconds", "GPU-seconds", "seconds"
PLACED = ("device", "threads", "processes", "nodes", "zero_stage")  # settings of hardware, likewise
MADE_WITH = {  # keys of summary.json in which runs are equal whose times compare
    "machine": "machines, numbers of threads or numbers of runs at once",
    "versions": "versions of packages",
    "git_commit": "states of the source",
}
# settings that have a price: what an arm with them is called, and whether a value is the one that is paid for
PRICED: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "routing_replay": ("with routing replay", lambda value: value is True),
    "beta": ("with KL to the reference", lambda value: value not in (None, 0)),
    "training.share_prefixes": ("without prefix sharing", lambda value: value == SharePrefixes.off.value),
}
Arms = Mapping[str, Sequence[StoredRun]]


def costs_of(arms: Arms, budget: Budget, level: float, step: float) -> Costs:
    """The costs of all arms and the prices of settings in which two of them differ. `step` is that in which
    the held-out score is counted."""
    runs = [run for own in arms.values() for run in own]
    unit = unit_of(runs)
    found, notes = [], []
    for name, own in arms.items():
        cost, why = arm_cost(name, own, budget, level, step, unit)
        found.append(cost)
        notes += [f"{name} has no cost per point: {why}."] if why else []
    other = differing_times(runs)
    if other:
        notes.append(f"Times do not compare: the runs were made with different {other}.")
    elif any("machine" not in run.summary for run in runs):
        notes.append("Times compare if all runs were made on one machine, which summary.json does not tell.")
    together = max(_recorded(run, "runs_at_once") for run in runs)
    if together > 1:
        notes.append(
            f"Up to {together} runs were trained at once: their times hold what they took from each other; "
            "those of runs alone need compare.parallel=1."
        )
    return Costs(unit, found, [*notes, *prices(arms, budget, level)])


def arm_cost(
    name: str, runs: Sequence[StoredRun], budget: Budget, level: float, step: float, unit: str
) -> tuple[ArmCost, str]:
    """The cost of one arm, and why it has none per point; empty if it has."""
    ends = {run.seed: score_curve(run, budget.iterations) for run in runs}
    ends = {seed: curve for seed, curve in ends.items() if curve[0][0] == 0 and len(curve[0]) > 1}
    gained = None
    if len(ends) == len(runs):
        first, last = ({seed: curve[1][end] for seed, curve in ends.items()} for end in (0, -1))
        gained = mean_difference(last, first, level, step)
    tokens = [tokens_at(run, budget.iterations) for run in runs]
    seconds = [seconds_at(run, budget.iterations) for run in runs]
    timed = [value for value in seconds if value is not None]
    per_token = per_second = Estimate(None)
    why = _no_gain(gained, level)
    if gained is not None and not why:
        gains = [ends[run.seed][1][-1] - ends[run.seed][1][0] for run in runs]
        per_token = _per_point(tokens, gains, gained, level)
        if len(timed) == len(runs):
            spent = [each * _width(run, unit) for each, run in zip(timed, runs, strict=True)]
            per_second = _per_point(spent, gains, gained, level)
    iterations = [min(budget.iterations, run.iterations) for run in runs]
    each = fmean(s / n for s, n in zip(timed, iterations, strict=True)) if len(timed) == len(runs) else None
    gain = Estimate(None) if gained is None else _in_points(gained)
    return ArmCost(name, gain, per_token, per_second, each, split(runs, budget)), why


def _no_gain(gained: DifferenceTest | None, level: float) -> str:
    """Why costs cannot be divided by a gain; empty if they can."""
    if gained is None:
        return "not all of its runs were evaluated before training and after"
    if min(gained.runs) < 2:
        return "with one seed the gain has no test"
    shown = f"{_in_points(gained)} points ({gained.runs[0]} seeds, p = {number(gained.p, 2)})"
    if gained.p is None or gained.p >= 1 - level:
        return f"its gain of held-out score is not significant, {shown}"
    return "" if gained.mean > 0 else f"its held-out score fell, by {shown}"


def _in_points(gained: DifferenceTest) -> Estimate:
    low, high = (None if each is None else each / POINT for each in (gained.low, gained.high))
    return Estimate(gained.mean / POINT, low, high, min(gained.runs))


def _per_point(
    spent: Sequence[float], gains: Sequence[float], gained: DifferenceTest, level: float
) -> Estimate:
    """Mean cost by mean gain, with Fieller's interval of a ratio of paired means: it exists where the gain is
    significant by the t test at `level`. A cost is not below 0, nor is its interval."""
    a, b, n = fmean(spent), gained.mean / POINT, len(spent)
    if gained.error is None or gained.df is None:  # all gains are equal
        return Estimate(a / b, n=n)
    error = gained.error / POINT
    variance, shared = np.cov(spent, np.divide(gains, POINT))[0] / n
    t = float(special.stdtrit(gained.df, (1 + level) / 2))
    g = (t * error / b) ** 2
    ratio = a / b
    inside = variance - 2 * ratio * shared + (ratio * error) ** 2 - g * (variance - (shared / error) ** 2)
    half = t / b * math.sqrt(max(0.0, inside))
    middle = ratio - g * shared / error**2
    return Estimate(ratio, max(0.0, (middle - half) / (1 - g)), (middle + half) / (1 - g), n)


def split(runs: Sequence[StoredRun], budget: Budget) -> dict[str, float | None]:
    """Shares of the time of training by stage, means over runs; None where no stage was timed."""
    shares = [each for run in runs if (each := _shares(run, budget))]
    return {stage: fmean(each[stage] for each in shares) if shares else None for stage in (*STAGES, OTHER)}


def _shares(run: StoredRun, budget: Budget) -> dict[str, float]:
    metrics, total = run.metrics[: budget.iterations], seconds_at(run, budget.iterations)
    columns = {stage: column(metrics, key) for stage, key in STAGES.items()}
    times = [each for values in columns.values() for each in values]
    if not total or not times or min(times) < 0:
        return {}
    parts = {stage: sum(values) / total for stage, values in columns.items()}  # a stage without time has none
    return {**parts, OTHER: 1 - sum(parts.values())}


def unit_of(runs: Sequence[StoredRun]) -> str:
    """What machine time is counted in: GPUs or cores times seconds where that is known of all runs and is the
    same, else seconds."""
    units = {unit for run in runs for unit in (CORES, GPUS) if _width(run, unit)}
    known = all(any(_width(run, unit) for unit in units) for run in runs)
    return units.pop() if len(units) == 1 and known else WALL


def _width(run: StoredRun, unit: str) -> float:
    """How many cores or GPUs a run had; 0 where it had none or the number is not known."""
    hardware = run.settings.hardware
    processes, threads = (_recorded(run, key) for key in ("processes", "threads"))
    if not processes:
        processes = hardware.processes * hardware.nodes if hardware.processes else not hardware.zero_stage
    if unit == WALL:
        return 1
    if unit == GPUS:
        return processes if hardware.device is Device.cuda else 0
    return 0 if hardware.device is Device.cuda else processes * (hardware.threads or threads)


def _recorded(run: StoredRun, name: str) -> int:
    """A count of summary.json's `machine`; 0 where there is none that can be one."""
    machine = run.summary.get("machine")
    count = machine.get(name) if isinstance(machine, Mapping) else None
    return count if type(count) is int and 0 < count <= MOST else 0


def differing_times(runs: Sequence[StoredRun]) -> str:
    """In what runs differ whose times do not compare, in words; empty if in nothing."""
    made = [_made_with(run) for run in runs]
    return " and ".join(words for key, words in MADE_WITH.items() if len({each[key] for each in made}) > 1)


def _made_with(run: StoredRun) -> dict[str, str]:
    """What MADE_WITH names, as text that compares; the machine with the settings of hardware."""
    found = {key: run.summary.get(key) for key in MADE_WITH}
    found["machine"] = [found["machine"], *(getattr(run.settings.hardware, name) for name in PLACED)]
    return {key: json.dumps(value, sort_keys=True, default=str) for key, value in found.items()}


def prices(arms: Arms, budget: Budget, level: float) -> list[str]:
    """The price of each setting of PRICED in which alone two arms and their runs differ, in a sentence."""
    found = []
    for (one, first), (other, second) in combinations(arms.items(), 2):
        mine, theirs = arm_settings(first[0]), arm_settings(second[0])
        differing = [key for key in mine.keys() | theirs.keys() if mine.get(key) != theirs.get(key)]
        key = next(iter(key for key in differing if key in PRICED), "")
        if not key or set(differing) - {key, "name"}:  # an option of its own has another name
            continue
        words, paid = PRICED[key]
        if paid(mine.get(key)) == paid(theirs.get(key)):
            continue
        if any(not each["allowed"] for each in differences({one: first, other: second}, (key,))):
            continue
        pair = (first, second) if paid(mine.get(key)) else (second, first)
        names = (one, other) if paid(mine.get(key)) else (other, one)
        found.append(_price(words, names, pair, budget, level))
    return found


def _price(
    words: str,
    names: tuple[str, str],
    pair: tuple[Sequence[StoredRun], Sequence[StoredRun]],
    budget: Budget,
    level: float,
) -> str:
    what = f"{words[0].upper()}{words[1:]}, {names[0]} against {names[1]}: "
    differing = differing_times([run for runs in pair for run in runs])
    if differing:
        return f"{what}no price, as the runs were made with different {differing}."
    speeds = [{run.seed: each for run in runs if (each := _speeds(run, budget))} for runs in pair]
    seeds = sorted(speeds[0].keys() & speeds[1].keys())
    if not seeds:
        return f"{what}no price, as there are no timed runs with the same seed."
    tokens, seconds = (
        paired_ratio([speeds[0][seed][kind] / speeds[1][seed][kind] for seed in seeds], level)
        for kind in (0, 1)
    )
    over = f"{len(seeds)} shared seeds" if len(seeds) > 1 else "one shared seed, which gives no interval"
    return f"{what}{tokens} times the tokens per second, {seconds} times the time per iteration ({over})."


def _speeds(run: StoredRun, budget: Budget) -> tuple[float, float] | None:
    """Tokens per second, and seconds per iteration; None where the run was not timed."""
    seconds, tokens = seconds_at(run, budget.iterations), tokens_at(run, budget.iterations)
    if not seconds or tokens <= 0:
        return None
    return tokens / seconds, seconds / min(budget.iterations, run.iterations)


def paired_ratio(ratios: Sequence[float], level: float) -> Estimate:
    """Geometric mean of ratios, one for each shared seed, with the t interval of their logarithms."""
    logs = np.log(ratios)
    middle, n = float(logs.mean()), len(logs)
    if n < 2:
        return Estimate(math.exp(middle), n=n)
    half = float(special.stdtrit(n - 1, (1 + level) / 2) * logs.std(ddof=1) / math.sqrt(n))
    return Estimate(math.exp(middle), math.exp(middle - half), math.exp(middle + half), n)
