"""What a comparison found, as plain data: report.json is exactly this, and the pages show nothing else.

An arm is one algorithm with its settings, run with some seeds. None stands for what was not measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Verdict(Enum):
    """What a contrast says. `void` where a verdict is not allowed: one seed, or runs that differ in more than
    algorithm and seed."""

    higher = "higher"
    lower = "lower"
    not_distinguishable = "not distinguishable"
    void = "void"


@dataclass(frozen=True)
class Estimate:
    """A value with its interval at the comparison's level. `n` is how many runs it rests on. Where only `n`
    of an arm's `of` runs reached a threshold there is no value: that of those alone would flatter."""

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    of: int | None = None


@dataclass(frozen=True)
class RunFacts:
    """One run that was compared. `outcomes` holds its numbers by outcome key; `initial_score` and
    `first_reward` show whether runs of one seed began alike."""

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
    """`overrides` is what gspo-train is given to get it, seed aside; `objective` says it in one line."""

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
    """A folder that was given and is not compared, and why, in one sentence."""

    folder: str
    reason: str


@dataclass(frozen=True)
class Outcome:
    """What is measured of each run, in one number. `better` is higher, lower, or none where neither is.
    `missing` says why no run has it, nothing where runs may."""

    key: str
    title: str
    unit: str
    better: str
    what: str
    missing: str = ""


@dataclass(frozen=True)
class Contrast:
    """One outcome of one arm against the baseline's.

    `arm` and `baseline` are interquartile means with bootstrap intervals over seeds; `difference` is the
    mean of arm minus baseline with the t interval that belongs to `p`. `p_adjusted` accounts for all
    contrasts of that outcome's family. `seeds_needed` is how many seeds each arm would need for a difference
    like this one to be found with 80% power, None where no number would do or the verdict is settled;
    `detectable` the smallest difference that the present seeds would find so often."""

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
    """Held-out problems solved by both, one or none of two arms after training, over all paired seeds, and
    the paired test on the difference of the share of seeds that solve each problem. `p_adjusted` accounts for
    the other arms."""

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
    """One arm's curve: interquartile mean over seeds with a bootstrap interval, at each `x`."""

    arm_name: str
    x: Sequence[float]
    value: Sequence[float | None]
    low: Sequence[float | None]
    high: Sequence[float | None]


@dataclass(frozen=True)
class Chart:
    """Curves of one metric over one axis. `log_y` where values span decades."""

    key: str
    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    log_y: bool = False
    note: str = ""


@dataclass(frozen=True)
class Shadow:
    """On the batches of one arm: what the objective `other` would have clipped beside what was clipped, and
    how its weights per answer correlate with those that were used. Means over iterations, then over seeds."""

    arm_name: str
    other: str
    clip_token: Estimate
    clip_token_used: Estimate
    clip_sequence: Estimate
    clip_sequence_used: Estimate
    weight_correlation: Estimate


@dataclass(frozen=True)
class Claim:
    """What the guide or the paper says, where, and what was measured here."""

    claim: str
    source: str
    paper: str
    measured: str


@dataclass(frozen=True)
class Talk:
    """One held-out problem after training, as each arm answered it (same seed)."""

    problem_id: str
    seed: int
    answers: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Comparison:
    """All of a report. `headline` is the verdict in sentences, the first the most important; `voided` says
    why verdicts are void, nothing where they hold; `cautions` are what a reader must know of how the runs
    compare."""

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
    outcomes: Sequence[Outcome]
    contrasts: Sequence[Contrast]
    problem_tests: Sequence[ProblemTest]
    charts: Sequence[Chart]
    shadows: Sequence[Shadow]
    claims: Sequence[Claim]
    talks: Sequence[Talk]
    differences: Sequence[Mapping[str, Any]]
    reproduce: Sequence[str]
    methods: Sequence[str] = field(default_factory=tuple)
