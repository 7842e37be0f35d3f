"""Typed settings of gspo-compare, free of torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from gspo_cli.config.checks import require, require_not_negative, require_positive

# (learning rate, clip widths) as multiples of the preset's, in the order in which trials are spent
CANDIDATES = ((1, 1), (3, 1), (1 / 3, 1), (1, 3), (1, 1 / 3), (3, 3), (1 / 3, 1 / 3), (3, 1 / 3), (1 / 3, 3))


@dataclass
class TuneConfig:
    """Before the comparison each algorithm gets the same `trials`: learning rates and clip ranges around its
    preset, `iterations` (null: as many as the compared runs) each, with `seed`, which no compared run uses;
    the one with the highest training reward at its end is taken."""

    trials: int = 0
    iterations: int | None = None
    seed: int = 1000

    def __post_init__(self) -> None:
        require_not_negative("compare.tune", self, "trials", "seed")
        require(
            self.trials <= len(CANDIDATES),
            f"compare.tune.trials={self.trials}: there are {len(CANDIDATES)} candidates; use as many at most",
        )
        if self.iterations is not None:
            require_positive("compare.tune", self, "iterations")


@dataclass
class CompareConfig:
    """Which runs are compared, and how.

    Each of `algorithms` is an option of the group, followed by overrides where wanted: "grpo
    algorithm.routing_replay=true". `baseline` is what the others are held against (null: grpo where it is
    there, else the first). `threshold` is the held-out score of "steps to threshold" (null: 80% of the way
    from the first to the lowest arm's mean final score). `allow` lists settings beside algorithm and seed
    that may differ. `level` is the level of intervals, 1 - `level` the rate of false alarms. `parallel` is
    how many runs go at once (null: one for each visible GPU, or one). `folder` is where runs and report
    go."""

    algorithms: list[str] = field(default_factory=lambda: ["gspo", "grpo"])
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    baseline: str | None = None
    threshold: float | None = None
    allow: list[str] = field(default_factory=list)
    level: float = 0.95
    parallel: int | None = None
    folder: str | None = None
    tune: TuneConfig = field(default_factory=TuneConfig)

    def __post_init__(self) -> None:
        require(bool(self.seeds), "compare.seeds: is empty; give seeds, e.g. compare.seeds=[0,1,2]")
        require(
            len(set(self.seeds)) == len(self.seeds),
            f"compare.seeds={self.seeds}: has a seed twice; a run that is repeated is no second sample",
        )
        require(
            len(set(self.algorithms)) == len(self.algorithms) > 0,
            f"compare.algorithms={self.algorithms}: must be different ones, and at least one",
        )
        require(0.5 <= self.level < 1, f"compare.level={self.level}: must be 0.5 or more, and below 1")
        if self.threshold is not None:
            require(
                0 < self.threshold <= 1,  # nan is refused as well
                f"compare.threshold={self.threshold}: must be a held-out score above 0, and 1 at most",
            )
        if self.parallel is not None:
            require_positive("compare", self, "parallel")
        require(
            self.tune.trials == 0 or self.tune.seed not in self.seeds,
            f"compare.tune.seed={self.tune.seed}: is also compared; tune with a seed of its own",
        )
