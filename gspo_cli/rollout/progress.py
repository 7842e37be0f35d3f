"""Progress inside a rollout that takes longer than a few seconds. Free of torch; no thread reports it: the
rollout calls it where it is anyway between two steps."""

from __future__ import annotations

import time
from collections.abc import Callable

AFTER = 3.0  # seconds: a shorter rollout reports nothing
EVERY = 0.5  # seconds between two reports

# finished conversations, all conversations, sampled tokens per second
Report = Callable[[int, int, float], None]


class RolloutProgress:
    """Passes the progress of one rollout on to `report`, at most once in `every` seconds and not before
    `after`. Where it reported anything, the end is reported, too."""

    def __init__(
        self,
        report: Report,
        after: float = AFTER,
        every: float = EVERY,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._report, self._every, self._clock = report, every, clock
        self._began = clock()
        self._due = self._began + after
        self._total, self._reported = 0, False

    def start(self, total: int) -> None:
        """The rollout has `total` conversations."""
        self._total = total

    def update(self, finished: int, tokens: int) -> None:
        """So many conversations are finished, and so many tokens were sampled in all."""
        now = self._clock()
        if now >= self._due:
            self._due, self._reported = now + self._every, True
            self._report(finished, self._total, tokens / max(1e-9, now - self._began))

    def end(self, tokens: int) -> None:
        """All conversations are finished."""
        if self._reported:
            rate = tokens / max(1e-9, self._clock() - self._began)
            self._report(self._total, self._total, rate)
