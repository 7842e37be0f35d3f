"""Typed settings of gspo-compare, free of torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from gspo_cli.config.checks import require, require_not_negative, require_positive
from gspo_cli.config.choices import Until
from gspo_cli.plain_files import LARGEST_WHOLE

MOST_ADDED = 100  # seeds per algorithm that are added up to
# (learning rate, clip widths) as multiples of the preset's, in the order in which they are tried
CANDIDATES = ((1, 1), (3, 1), (1 / 3, 1), (1, 3), (1, 1 / 3), (3, 3), (1 / 3, 1 / 3), (3, 1 / 3), (1 / 3, 3))


@dataclass
class TuneConfig:
    """Tuning trials before the comparison, the same number for each algorithm: learning rates and clip ranges
    around its preset. The trial with the highest final training reward is chosen."""

    trials: int = 0
    """Number of settings around its preset that each algorithm is tuned over before the comparison; 0 skips
    tuning; 0 or more."""
    iterations: int | None = None
    """Iterations of a trial; null uses the number of iterations of the compared runs; above 0."""
    seed: int = 1000
    """Seed of the trials; must not be one of the compared seeds; 0 or more."""

    def __post_init__(self) -> None:
        require_not_negative("compare.tune", self, "trials", "seed")
        require(
            self.trials <= len(CANDIDATES),
            f"compare.tune.trials={self.trials}: there are only {len(CANDIDATES)} candidates; use "
            f"{len(CANDIDATES)} at most",
        )
        if self.iterations is not None:
            require_positive("compare.tune", self, "iterations")


@dataclass
class CompareConfig:
    """Which runs are compared, and how."""

    algorithms: list[str] = field(default_factory=lambda: ["gspo", "grpo"])
    """Options of the group `algorithm`, each with optional overrides, as in "grpo
    algorithm.routing_replay=true"."""
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    """Seeds that every algorithm runs with, or begins with where seeds are added; without duplicates."""
    until: Until = Until.none
    """Whether seeds are added, the next whole numbers, until the held-out score at the end is settled: the
    algorithms differ, or by less than `smallest`."""
    smallest: float = 0.05
    """The smallest difference of the held-out score that is of interest; above 0 and at most 1."""
    max_seeds: int = 20
    """Seeds per algorithm at which adding ends without a result; at least 2 and at most 100."""
    max_hours: float | None = None
    """Hours of training, `parallel` runs at once and finished ones included, beyond which no seeds are added;
    null sets no limit; above 0."""
    baseline: str | None = None
    """The algorithm that the others are compared with; null takes grpo if present, else the first."""
    threshold: float | None = None
    """Held-out score of "steps to threshold", above 0 and at most 1; null takes 80% of the way from the first
    to the lowest arm's mean final score."""
    allow: list[str] = field(default_factory=list)
    """Settings besides algorithm and seed that may differ between runs. Where runs of one algorithm and seed
    do, they are different arms."""
    level: float = 0.95
    """Confidence level of the intervals (1 - false positive rate); at least 0.5, and below 1."""
    parallel: int | None = None
    """Number of runs at once; null means one per visible GPU, or one without GPUs; above 0."""
    folder: str | None = None
    """Where runs and the report are written."""
    tune: TuneConfig = field(default_factory=TuneConfig)

    def __post_init__(self) -> None:
        require(bool(self.seeds), "compare.seeds: is empty; give seeds, e.g. compare.seeds=[0,1,2]")
        require(
            max(map(abs, self.seeds)) < LARGEST_WHOLE,  # files keep larger ones as floats
            f"compare.seeds={self.seeds}: has a seed that is far too large; give compare.seeds=[0,1,2]",
        )
        require(
            len(set(self.seeds)) == len(self.seeds),
            f"compare.seeds={self.seeds}: has a duplicate seed; repeating a run adds no sample",
        )
        require(
            len(set(self.algorithms)) == len(self.algorithms) > 0,
            f"compare.algorithms={self.algorithms}: must be distinct, and at least one",
        )
        require(0.5 <= self.level < 1, f"compare.level={self.level}: must be 0.5 or more, and below 1")
        if self.threshold is not None:
            require(
                0 < self.threshold <= 1,  # also rejects nan
                f"compare.threshold={self.threshold}: must be a held-out score above 0, and 1 at most",
            )
        require(
            0 < self.smallest <= 1,
            f"compare.smallest={self.smallest}: must be a difference of the held-out score above 0, and 1 at "
            "most; give 0.05",
        )
        require(
            2 <= self.max_seeds <= MOST_ADDED,
            f"compare.max_seeds={self.max_seeds}: must be from 2 to {MOST_ADDED}; give 20",
        )
        require_positive(
            "compare", self, *(n for n in ("max_hours", "parallel") if getattr(self, n) is not None)
        )
        if self.until is Until.settled:
            require(
                2 <= len(self.seeds) <= self.max_seeds,
                f"compare.seeds={self.seeds}: compare.until=settled begins with 2 seeds at least, and "
                f"compare.max_seeds={self.max_seeds} at most; give compare.seeds=[0,1,2]",
            )
        require(
            self.tune.trials == 0 or self.tune.seed not in self.seeds,
            f"compare.tune.seed={self.tune.seed}: is also a compared seed; tune with a different one",
        )

    def is_given(self, name: str) -> bool:
        """Whether a setting was chosen rather than left to its default."""
        return bool(getattr(self, name) != getattr(CompareConfig, name))


@dataclass
class TypedCompareConfig(CompareConfig):
    """Settings of a command line. `typed` has the names of those that it gives, be it their defaults."""

    typed: list[str] = field(default_factory=list)

    def is_given(self, name: str) -> bool:
        """Whether a setting was chosen: typed, or not its default."""
        return name in self.typed or super().is_given(name)
