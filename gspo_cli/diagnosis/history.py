"""The metrics of a run, as the rules of a diagnosis read them. Free of torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from itertools import groupby
from statistics import fmean
from typing import Any

from gspo_cli.config.schema import RunSettings

Record = Mapping[str, Any]

LASTING = 3  # iterations in a row before a finding: one bad batch may be chance
WINDOW = 5  # iterations of a running mean, which halves the noise of one
CERTAIN = 2.0  # standard errors above which a difference is significant


class Severity(Enum):
    """`note` explains, `warning` asks for a change, `collapse` says that the policy is collapsing."""

    note = 0
    warning = 1
    collapse = 2


@dataclass(frozen=True)
class Finding:
    """What a rule found: the measured number, since which iteration, and what to change; `settings` is the
    change as overrides of gspo-train."""

    rule: str
    severity: Severity
    what: str
    fix: str
    since: int
    settings: tuple[str, ...] = ()


class History:
    """The iterations that led to the present weights, oldest first, under the resolved configuration.

    Iterations that a rollback undid are not included (see `lineage`)."""

    def __init__(self, config: RunSettings, metrics: Sequence[Record], evals: Sequence[Record] = ()) -> None:
        self.config, self.everything = config, metrics
        self.records = lineage(metrics)
        kept = {0, *(record["iteration"] for record in self.records)}
        self.evals = [record for record in evals if record["iteration"] in kept]

    def values(self, name: str) -> list[float]:
        """All finite values of a metric."""
        found = (number_of(record, name) for record in self.records)
        return [value for value in found if value is not None]

    def first(self, name: str) -> float | None:
        """The value in the first iteration: answers of the model as it was before training."""
        return number_of(self.records[0], name) if self.records else None

    def last(self, name: str) -> float | None:
        """The newest value."""
        return number_of(self.records[-1], name) if self.records else None

    def since(self, holds: Callable[[Record], bool], least: int = LASTING) -> int | None:
        """The iteration from which on `holds` is true of all records to the newest; None if these are
        fewer than `least`."""
        row = 0
        for record in reversed(self.records):
            if not holds(record):
                break
            row += 1
        return self.records[-row]["iteration"] if row >= least else None

    def above(self, name: str, bound: float, least: int = LASTING) -> int | None:
        """`since` for a metric over `bound`."""
        return self.since(lambda record: (number_of(record, name) or 0.0) > bound, least)

    @cached_property
    def rate(self) -> float:
        """The learning rate of the newest update, or the configured one if there was no update."""
        logged = self.last("learning_rate")
        return self.config.algorithm.learning_rate if logged is None else logged

    @property
    def iteration(self) -> int:
        """The newest iteration."""
        return self.records[-1]["iteration"] if self.records else 0

    def reward_error(self, records: Sequence[Record]) -> float:
        """Standard error of the mean reward of `records`: the spread between prompts, which is not logged, is
        taken to be the one between the answers to a prompt."""
        spreads = [number_of(record, "reward_std") or 0.0 for record in records]
        prompts = self.config.training.generations_per_iteration // self.config.training.num_generations
        return fmean(spreads) / math.sqrt(prompts * len(records))

    @cached_property
    def levels(self) -> list[list[Record]]:
        """The iterations by level of a difficulty curriculum, in order: rewards of two levels do not compare.
        Without a curriculum all are of one."""
        by_level = groupby(self.records, key=lambda record: record.get("curriculum/level"))
        return [list(records) for _, records in by_level]

    @property
    def level_records(self) -> list[Record]:
        """The iterations at the present level."""
        return self.levels[-1] if self.levels else []

    @cached_property
    def reward_gain(self) -> tuple[float, float, float] | None:
        """Mean reward of the first and of the newest iterations, and what their difference must exceed to be
        significant. None if the run is too short. At a new level of a curriculum, those of the level before
        count until there are enough."""
        enough = [records for records in self.levels if len(records) >= 2 * WINDOW] or self.levels[-1:]
        scored = [record for record in (enough or [[]])[-1] if number_of(record, "reward") is not None]
        size = min(WINDOW, len(scored) // 2)
        if size == 0:
            return None
        first, last = scored[:size], scored[-size:]
        error = math.hypot(self.reward_error(first), self.reward_error(last))
        return mean_of(first, "reward"), mean_of(last, "reward"), CERTAIN * error

    @property
    def reward_rises(self) -> bool:
        """Whether the newest rewards are significantly above the first ones."""
        if self.reward_gain is None:
            return False
        before, after, chance = self.reward_gain
        return after > before + chance


def number_of(record: Record, name: str) -> float | None:
    """A finite value of a record, or None."""
    value = record.get(name)
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def mean_of(records: Sequence[Record], name: str) -> float:
    """Mean of a metric over records that have it."""
    return fmean(value for record in records if (value := number_of(record, name)) is not None)


def lineage(metrics: Sequence[Record]) -> list[Record]:
    """The records of iterations that the present weights went through: a record with `rolled_back_to` takes
    back all later than that, itself included."""
    kept: list[Record] = []
    for record in metrics:
        kept.append(record)
        back = number_of(record, "rolled_back_to")
        while back is not None and kept and kept[-1]["iteration"] > back:
            kept.pop()  # iterations rise within what is kept
    return kept


def valid_states(metrics: Sequence[Record]) -> set[int]:
    """Iterations whose weights no rollback undid. After a rollback in iteration k the weights of k are those
    that it went back to."""
    valid = {0}
    for record in metrics:
        back = number_of(record, "rolled_back_to")
        if back is not None:
            valid = {iteration for iteration in valid if iteration <= back}
        valid.add(record["iteration"])
    return valid


def slower(run: History) -> str:
    """The override for smaller steps: the learning rate that suits model and ratio level where the run's is
    higher, else half of it."""
    rate, preset = run.config.algorithm.learning_rate, preset_rate(run)
    return f"algorithm.learning_rate={preset if rate > preset else rate / 2:.3g}"


def nearer(config: RunSettings) -> str:
    """The override that keeps the policy nearer to the model before training."""
    beta = config.algorithm.beta
    return f"algorithm.beta={2 * beta if config.algorithm.in_pairs else 10 * beta or 0.01:.3g}"


def slower_head(run: History) -> list[str]:
    """The override for smaller steps of the value head, where there is one."""
    rate = run.config.algorithm.value.learning_rate / 10
    return [f"algorithm.value.learning_rate={rate:.3g}"] if run.config.algorithm.has_critic else []


def preset_rate(run: History) -> float:
    """The learning rate that suits model and ratio level; pairs take a tenth of that of token ratios."""
    presets, algorithm = run.config.model.presets, run.config.algorithm
    rate = (presets.sequence if algorithm.compares_means else presets.token).learning_rate
    return rate / 10 if algorithm.in_pairs else rate


def widths(run: History) -> Sequence[float]:
    """Widths of the clip band in force on its bounded sides (a calibrated one moves; older runs log none);
    none where nothing clips."""
    newest = run.records[-1] if run.records else {}
    left, right = run.config.algorithm.clip_range
    sides = (newest.get("clip_range/left", left), newest.get("clip_range/right", right))
    bounded = run.config.algorithm.has_band
    return [width for width in sides if bounded and width is not None]
