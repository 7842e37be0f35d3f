"""State of a run that is needed to show its progress: pace, warnings, rewards, evaluations, time by phase."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Any

from gspo_cli.console.words import MISSING, duration

Metrics = Mapping[str, Any]
Clock = Callable[[], float]

PHASES = ("rollout", "reward", "score", "update", "eval")


class Progress:
    """What both consoles show of a run; all of it is in the run folder too."""

    def __init__(self, clock: Clock) -> None:
        self._clock, self._began = clock, clock()
        self._marks: deque[float] = deque(maxlen=21)  # ends of iterations: the pace includes evaluations
        self._warned: set[str] = set()
        self.title, self.iterations, self.done = "", 0, 0
        self.metrics: Metrics = {}
        self.rewards: list[float] = []
        self.evaluations: list[Metrics] = []
        # create all keys now: the view reads this from another thread
        self.seconds = Counter(dict.fromkeys(PHASES, 0.0))

    def begin(self, title: str, iterations: int, start: int) -> None:
        self.title, self.iterations, self.done = title, iterations, start
        self._marks.append(self._clock())

    def iteration(self, metrics: Metrics) -> None:
        self.metrics, self.done = metrics, metrics["iteration"]
        self._marks.append(self._clock())
        self._add_seconds(metrics)
        reward = metrics.get(self.measure)
        if reward is not None and math.isfinite(reward):
            self.rewards.append(reward)

    def evaluation(self, record: Metrics) -> None:
        if not self.metrics:  # the first iteration starts now
            self._marks = deque([self._clock()], maxlen=self._marks.maxlen)
        self._add_seconds(record)
        if record["score"] is not None and math.isfinite(record["score"]):
            self.evaluations.append(record)

    def is_news(self, warning: str) -> bool:
        """Whether this warning is new."""
        known = warning in self._warned
        self._warned.add(warning)
        return not known

    @property
    def measure(self) -> str:
        """The metric that training should raise: where no answer is scored, the share of pairs in the right
        order."""
        of_pairs = "preference/pairs" in self.metrics and "reward" not in self.metrics
        return "preference/accuracy" if of_pairs else "reward"

    @property
    def elapsed(self) -> str:
        return duration(self._clock() - self._began)

    @property
    def eta(self) -> str:
        """Time left at the pace of the last iterations."""
        if len(self._marks) < 2:
            return MISSING
        pace = (self._marks[-1] - self._marks[0]) / (len(self._marks) - 1)
        # an overdue iteration does not shorten the estimate of the next
        present = min(pace, self._clock() - self._marks[-1])
        return duration(pace * (self.iterations - self.done) - present)

    def _add_seconds(self, record: Metrics) -> None:
        self.seconds.update({phase: record[f"time/{phase}"] for phase in PHASES if f"time/{phase}" in record})
