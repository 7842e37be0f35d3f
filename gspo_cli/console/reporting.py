"""What a run reports while it trains, free of torch: consoles show it, trackers mirror the numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from gspo_cli.types import Trajectory


@dataclass(frozen=True)
class ShownSample:
    """A conversation to show, with its reward and advantage; a line of samples.jsonl."""

    iteration: int
    problem_id: str
    messages: Sequence[Mapping[str, str]]
    expected: str
    reward: float | None
    components: Mapping[str, float] = field(default_factory=dict)
    finish_reason: str = "stop"
    advantage: float | None = None
    excluded: str | None = None
    turns: int | None = None  # of the agent; examples in the prompt are not its own

    @classmethod
    def of(cls, trajectory: Trajectory, iteration: int, advantage: float | None = None) -> ShownSample:
        """What is shown of `trajectory`."""
        return cls(
            iteration=iteration,
            problem_id=trajectory.problem.id,
            messages=[{"role": m.role, "content": m.content} for m in trajectory.messages],
            expected=trajectory.problem.answer,
            reward=trajectory.reward,
            components=dict(trajectory.components),
            finish_reason=trajectory.finish_reason.value,
            advantage=advantage,
            excluded=trajectory.excluded,
            turns=trajectory.num_turns,
        )


class Reporter(Protocol):
    """Receives the events of a run in order. Every number it shows is also in the run folder's files."""

    def begin(self, title: str, card: str, iterations: int, start: int) -> None:
        """The run starts (or resumes) at iteration `start`; `card` is the objective card as text."""

    def stage(self, name: str, done: int, total: int, note: str = "") -> None:
        """Progress inside something long: cold start, evaluation, loading."""

    def iteration(self, metrics: Mapping[str, Any]) -> None:
        """One line of metrics.jsonl."""

    def evaluation(self, record: Mapping[str, Any]) -> None:
        """One line of evals.jsonl."""

    def samples(self, samples: Sequence[ShownSample]) -> None:
        """Conversations of the iteration that just ended."""

    def warn(self, text: str) -> None:
        """A warning, in one sentence."""

    def end(self, summary: Mapping[str, Any]) -> None:
        """The run has ended; `summary` is what summary.json holds."""
