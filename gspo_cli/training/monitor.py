"""The collapse monitor: after each iteration the rules of `gspo_cli.diagnosis` look at the run so far."""

from __future__ import annotations

from collections.abc import Sequence

from gspo_cli.config.schema import RunSettings
from gspo_cli.diagnosis.diagnosis import diagnose
from gspo_cli.diagnosis.history import Finding, Record, Severity, lineage, number_of, valid_states
from gspo_cli.errors import UserError

MAX_SKIPPED = 8  # updates in a row with a gradient that is not finite, after which the run ends


class Monitor:
    """Keeps a run's lines of metrics.jsonl and evals.jsonl, and what was reported about them. A resumed run
    gives it the earlier lines, so that it decides as if the run had not stopped."""

    def __init__(self, config: RunSettings) -> None:
        self.config = config
        self.metrics: list[Record] = []
        self.evals: list[Record] = []
        self.found: list[Finding] = []
        self._reported: dict[str, Severity] = {}

    def look(self, record: Record) -> list[Finding]:
        """Add an iteration. Returns the findings that are new, or more severe than before; notes are left to
        `gspo-doctor`."""
        self.metrics.append(record)
        self.found = diagnose(self.config, self.metrics, self.evals)
        news = [f for f in self.found if f.severity.value > self._reported.get(f.rule, Severity.note).value]
        self._reported |= {finding.rule: finding.severity for finding in news}
        return news

    @property
    def collapse(self) -> Finding | None:
        """The earliest collapse among those that persist to the newest iteration."""
        return next((finding for finding in self.found if finding.severity is Severity.collapse), None)

    def choose(self, checkpoints: Sequence[int], began: int) -> int:
        """Which of the iterations of `checkpoints` to return to from a collapse that showed in iteration
        `began`: the newest before it, else the oldest there is.

        Iteration `began` sampled with the weights of the one before, which are already degraded."""
        valid = valid_states(self.metrics)
        usable = sorted(set(checkpoints) & valid) or sorted(checkpoints)
        healthy = [iteration for iteration in usable if iteration < began - 1]
        return healthy[-1] if healthy else usable[0]

    def rolled_back(self, iteration: int) -> None:
        """Forget all iterations after `iteration`, which are undone; a collapse may be reported again."""
        self.metrics[-1] = {**self.metrics[-1], "rolled_back_to": iteration}
        warned = [rule for rule, severity in self._reported.items() if severity is Severity.warning]
        self._reported = dict.fromkeys([*warned, "rolled_back"], Severity.warning)

    def check_updates(self) -> None:
        """Raise UserError if no update was finite for a long time."""
        skipped = 0
        for record in reversed(lineage(self.metrics)):
            dropped = round(number_of(record, "updates_skipped") or 0)
            skipped += dropped
            if dropped != record["updates"]:
                break
        if skipped >= MAX_SKIPPED:
            head = ", algorithm.value.learning_rate" if self.config.algorithm.has_critic else ""
            raise UserError(
                f"training: {skipped} updates in a row had a gradient that is not finite; lower algorithm."
                f"learning_rate{head} or use hardware.precision=fp32, then resume from the last checkpoint"
            )
