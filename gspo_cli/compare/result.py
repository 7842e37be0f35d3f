"""The result of a comparison as plain data, and how its numbers are written. report.json is exactly this
data; the other reports show nothing else.

An arm is one algorithm with its settings, run with one or more seeds. None means not measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from gspo_cli.console.words import MISSING, duration, number, share


class Verdict(Enum):
    """The result of a contrast. `equivalent`: the difference is smaller than is of interest. `void` means
    that it is inconclusive: there is only one seed, or the runs differ in more than algorithm and seed."""

    higher = "higher"
    lower = "lower"
    equivalent = "equivalent"
    not_distinguishable = "not distinguishable"
    void = "void"


@dataclass(frozen=True)
class Estimate:
    """A value with its interval at the comparison's level, from `n` runs. Where only `n` of an arm's `of`
    runs reached a threshold there is no value: the mean over those runs alone would be biased."""

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    of: int | None = None

    def __str__(self) -> str:
        """0.81 [0.78, 0.85], or the value alone where there is no interval."""
        return f"{value_text(self.value)} {self.interval_text()}".rstrip()

    def interval_text(self, unit: str = "") -> str:
        """[0.78, 0.85], or nothing."""
        if self.value is None or self.low is None or self.high is None or not math.isfinite(self.value):
            return ""
        return f"[{value_text(self.low, unit)}, {value_text(self.high, unit)}]"


def value_text(value: float | None, unit: str = "") -> str:
    """A number as its unit is read: a share, a duration, or significant digits; – where there is none."""
    if value is None or not math.isfinite(value):
        return MISSING
    sign, size = "-" if value < 0 else "", abs(value)
    if unit == "s":
        return sign + (duration(size) if size >= 10 else f"{number(size)}s")
    return sign + (share(size) if unit == "share" else number(size))


@dataclass(frozen=True)
class RunFacts:
    """One compared run. `outcomes` has its values by outcome key; `initial_score` and `first_reward` show
    whether the runs with the same seed started from the same state."""

    folder: str
    seed: int
    status: str
    iterations: int
    num_tokens: int
    wall_seconds: float | None
    initial_score: float | None
    first_reward: float | None
    outcomes: Mapping[str, float | None]


@dataclass(frozen=True)
class Arm:
    """An algorithm with its settings. `objective` describes it in one line; `overrides` are the arguments of
    gspo-train that reproduce it, apart from the seed."""

    name: str
    objective: str
    overrides: Sequence[str]
    runs: Sequence[RunFacts]

    @property
    def seeds(self) -> list[int]:
        """Seeds, ascending."""
        return sorted(run.seed for run in self.runs)


@dataclass(frozen=True)
class LeftOut:
    """A given folder that is not compared, and the reason in one sentence."""

    folder: str
    reason: str


@dataclass(frozen=True)
class OutcomeSpec:
    """A quantity that is measured once per run. `better` is the desired direction: higher, lower or none.
    `missing` is the reason where it could not be measured in any run; `if_missing` is the reason where no run
    happened to measure it."""

    key: str
    title: str
    unit: str
    better: str
    what: str
    missing: str = ""
    if_missing: str = ""

    @property
    def is_directed(self) -> bool:
        """Whether one direction is better than the other."""
        return self.better != "none"


@dataclass(frozen=True)
class Contrast:
    """One outcome of one arm against the baseline's.

    `arm` and `baseline` are interquartile means with bootstrap intervals over seeds; `difference` is the
    mean of arm minus baseline with the t interval that belongs to `p`. `p_adjusted` accounts for all
    contrasts of that outcome's family. `seeds_needed` is the number of seeds per arm that would detect a
    difference of this size with 80% power; None if no feasible number would, where the difference is
    already significant, or where seeds were added. `detectable` is the smallest difference
    that the present seeds detect with that power."""

    outcome: str
    arm_name: str
    baseline_name: str
    arm: Estimate
    baseline: Estimate
    difference: Estimate
    paired: bool
    p: float | None
    p_adjusted: float | None
    verdict: Verdict
    sentence: str
    seeds_needed: int | None = None
    detectable: float | None = None


@dataclass(frozen=True)
class ProblemTest:
    """Held-out problems solved by both, one or neither of two arms after training, averaged over the paired
    seeds, and the paired test of the share of seeds that solve each problem. `p_adjusted` accounts for the
    other arms."""

    arm_name: str
    baseline_name: str
    problems: int
    both: float
    only_arm: float
    only_baseline: float
    neither: float
    difference: Estimate
    p: float | None
    sentence: str
    p_adjusted: float | None = None


@dataclass(frozen=True)
class Series:
    """The curve of one arm: at each `x` the interquartile mean over seeds with its bootstrap interval."""

    arm_name: str
    x: Sequence[float]
    value: Sequence[float | None]
    low: Sequence[float | None]
    high: Sequence[float | None]


@dataclass(frozen=True)
class Chart:
    """Curves of one metric over one axis. `log_y` is for values that span decades."""

    key: str
    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    log_y: bool = False
    note: str = ""


@dataclass(frozen=True)
class CounterfactualClipping:
    """On the batches of one arm: what the objective `other` would have clipped, what was clipped, and how its
    weights per answer correlate with the weights used. Means over iterations, then over seeds."""

    arm_name: str
    other: str
    clip_token: Estimate
    clip_token_used: Estimate
    clip_sequence: Estimate
    clip_sequence_used: Estimate
    weight_correlation: Estimate


@dataclass(frozen=True)
class Claim:
    """A published claim, its source and value, and what was measured here."""

    claim: str
    source: str
    paper: str
    measured: str


@dataclass(frozen=True)
class ArmCost:
    """What training one arm cost, means over seeds up to the common budget. `gain` is the final minus the
    initial held-out score in points (hundredths); costs per point have no value where it is not significant.
    `split` has the share of training time by stage."""

    arm_name: str
    gain: Estimate
    tokens_per_point: Estimate
    time_per_point: Estimate
    seconds_per_iteration: float | None
    split: Mapping[str, float | None]


@dataclass(frozen=True)
class Costs:
    """The costs of all arms; `unit` is that of time per point. `sentences` say what has no value and why, and
    the price of settings in which alone two arms differ."""

    unit: str = ""
    arms: Sequence[ArmCost] = ()
    sentences: Sequence[str] = ()


@dataclass(frozen=True)
class SideBySide:
    """The conversations of all arms on one held-out problem after training, with one seed."""

    problem_id: str
    seed: int
    answers: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Look:
    """The primary outcome of an arm after `seeds` paired seeds. The interval of the difference holds at all
    looks together, divided over the arms; `p` is the lowest error rate at which this look settles it."""

    seeds: int
    difference: Estimate
    p: float
    verdict: Verdict


@dataclass(frozen=True)
class Design:
    """Seeds added until the primary outcome is settled: the numbers of seeds at which was looked, and what
    was found of each arm. Of the allowed error, 1 - level, `spent` is used. `interval_level` is that of the
    t intervals of the other outcomes, which as repeated intervals are at the comparison's level."""

    smallest: float
    spent: float
    interval_level: float
    seeds: Sequence[int]
    looks: Mapping[str, Sequence[Look]]


@dataclass(frozen=True)
class MoreSeeds:
    """The seeds per arm after which the primary outcome is settled with probability `power`, in addition to
    those that are there, and the seconds that they train, `parallel` runs at once. None: too many to tell."""

    seeds: int | None
    seconds: float | None
    parallel: int
    power: float


@dataclass(frozen=True)
class Comparison:
    """All of a report. `headline` is the verdict in sentences, the most important first. `voided` lists why
    verdicts are void and is empty otherwise; `cautions` are caveats about how the runs compare. `design` is
    None where the number of seeds was fixed, `more` where nothing is left to settle."""

    title: str
    task: str
    model: str
    baseline: str
    level: float
    headline: Sequence[str]
    voided: Sequence[str]
    cautions: Sequence[str]
    arms: Sequence[Arm]
    left_out: Sequence[LeftOut]
    outcomes: Sequence[OutcomeSpec]
    contrasts: Sequence[Contrast]
    problem_tests: Sequence[ProblemTest]
    charts: Sequence[Chart]
    shadows: Sequence[CounterfactualClipping]
    claims: Sequence[Claim]
    talks: Sequence[SideBySide]
    differences: Sequence[Mapping[str, Any]]
    reproduce: Sequence[str]
    methods: Sequence[str] = field(default_factory=tuple)
    costs: Costs = field(default_factory=Costs)
    design: Design | None = None
    more: MoreSeeds | None = None


@dataclass(frozen=True)
class SectionResult:
    """The primary outcome of one arm in one section. `excluded` is why it is not counted across sections;
    empty if it is."""

    section: str
    contrast: Contrast
    excluded: str


@dataclass(frozen=True)
class NotCompared:
    """A task and model whose runs cannot be compared, and the reason with what to type."""

    section: str
    runs: int
    reason: str


@dataclass(frozen=True)
class ArmAcross:
    """One arm against its baseline over the sections that count. `higher` and `lower` are the sections where
    it is above or below, `p_sign` is that of the sign test; where settings differ nothing is counted. `mean`
    has no value there, or where too few sections count. `further` is the prediction interval of the
    difference in one more section."""

    arm_name: str
    baseline_name: str
    sections: Sequence[str]
    higher: int
    lower: int
    p_sign: float | None
    mean: Estimate
    p: float | None
    p_adjusted: float | None
    further: Estimate | None
    verdict: Verdict
    sentence: str


@dataclass(frozen=True)
class Summary:
    """What holds across the sections, or does not."""

    title: str
    level: float
    sections: Sequence[str]
    headline: Sequence[str]
    arms: Sequence[ArmAcross]
    results: Sequence[SectionResult]
    not_compared: Sequence[NotCompared]
    left_out: Sequence[LeftOut]
    methods: Sequence[str]
    reproduce: Sequence[str] = field(default_factory=tuple)


@dataclass(frozen=True)
class Across:
    """All of a report on several tasks or models: the summary, and a whole comparison for each section, in
    the order of `summary.sections`."""

    summary: Summary
    sections: Sequence[Comparison]
