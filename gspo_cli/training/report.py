"""What the updates of an iteration came to, added up over micro-batches and ranks."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from gspo_cli.algorithm.calibration import Candidates
from gspo_cli.algorithm.correction import EngineStats
from gspo_cli.algorithm.objective import LossStats
from gspo_cli.algorithm.shadow import LengthStats, ShadowStats
from gspo_cli.policy.routing import RoutingStats


@dataclass
class Sums:
    """Of some micro-batches: sums, but for `logp_difference_max` and `first_step_abs_err`, which are
    maxima. `last_routing` is `routing` of the last minibatch alone; `shadows` are by name, `short` and
    `long` the halves of each minibatch's answers by length, `candidates` what a calibrated clip chooses its
    band from, a part for each micro-batch."""

    stats: LossStats = field(default_factory=LossStats)
    routing: RoutingStats = field(default_factory=RoutingStats)
    last_routing: RoutingStats = field(default_factory=RoutingStats)
    entropy_sum: float = 0.0
    entropy_tokens: int = 0
    logp_difference_sum: float = 0.0
    logp_difference_max: float = 0.0
    logp_difference_tokens: int = 0
    first_step_abs_err: float | None = None
    engine: EngineStats = field(default_factory=EngineStats)
    shadows: dict[str, ShadowStats] = field(default_factory=dict)
    short: LengthStats = field(default_factory=LengthStats)
    long: LengthStats = field(default_factory=LengthStats)
    candidates: tuple[Candidates, ...] = ()

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            **{f.name: _joined(f.name, vars(self)[f.name], vars(other)[f.name]) for f in fields(self)}
        )


@dataclass
class UpdateReport:
    """Of one iteration. All but `sums` is the same on every rank: `tokens` and `sequences` count the answers
    of all, `short_tokens` and `short_sequences` the shorter half of each minibatch's. `clip_range` holds the
    widths in force, None where unbounded. `oom_events` counts how often memory ran out,
    `tokens_per_microbatch` is the budget left."""

    sums: Sums = field(default_factory=Sums)
    tokens: int = 0
    sequences: int = 0
    short_tokens: int = 0
    short_sequences: int = 0
    clip_range: tuple[float | None, float | None] = (None, None)
    grad_norms: list[float] = field(default_factory=list)
    updates: int = 0
    skipped: int = 0
    learning_rate: float = 0.0
    with_kl: bool = False
    oom_events: int = 0
    tokens_per_microbatch: int = 0


Shadows = dict[str, ShadowStats]
Parts = tuple[Candidates, ...]
Added = float | LossStats | RoutingStats | EngineStats | LengthStats | Shadows | Parts | None
MAXIMA = ("logp_difference_max", "first_step_abs_err")


def _joined(name: str, one: Added, other: Added) -> Added:
    if one is None or other is None:
        return other if one is None else one
    if isinstance(one, dict):
        names = [*one, *(shadow for shadow in other if shadow not in one)]
        return {shadow: one.get(shadow, ShadowStats()) + other.get(shadow, ShadowStats()) for shadow in names}
    return max(one, other) if name in MAXIMA else one + other
