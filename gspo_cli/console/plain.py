"""The progress of a run as lines, for a pipe or a log."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TextIO

from gspo_cli.console.progress import Clock, Metrics, Progress
from gspo_cli.console.reporting import ShownSample
from gspo_cli.console.words import at_level, clean, describe, fixed, next_commands, number, share, why_zero

SILENCE = 9.5  # seconds after which a stage that is a tenth further may print another line
LONG_SILENCE = 30.0  # seconds after which it does in any case


class PlainConsole:
    """One line per iteration and evaluation, and occasional lines inside long stages."""

    def __init__(self, file: TextIO, clock: Clock = time.monotonic) -> None:
        self._file, self._clock, self._progress = file, clock, Progress(clock)
        self._stages: dict[str, int] = {}  # tenths done at the last line of each stage
        self._note, self._spoke = "", clock()

    def begin(self, title: str, card: str, iterations: int, start: int) -> None:
        self._progress.begin(title, iterations, start)
        self._print(card)

    def stage(self, name: str, done: int, total: int, note: str = "") -> None:
        """Prints where the stage is new, or a tenth further and SILENCE has passed, or LONG_SILENCE."""
        reached = 10 * done // total if total else 0
        before, silent = self._stages.get(name), self._clock() - self._spoke
        if before is None or silent >= (SILENCE if reached != before else LONG_SILENCE):
            count = f"{done}/{total}" if total else ""
            self._print("  ".join(part for part in (f"{name:<10}", count, clean(note)) if part))
            self._stages[name] = reached

    def iteration(self, metrics: Metrics) -> None:
        self._progress.iteration(metrics)
        run, get = self._progress, metrics.get
        held_out = run.evaluations[-1]["score"] if run.evaluations else None
        count = f"{run.done:>{len(str(run.iterations))}}/{run.iterations}"
        clipped = f"clip tok {share(get('clip_ratio/token'))} seq {share(get('clip_ratio/sequence'))}"
        if "preference/pairs" in metrics:
            clipped = f"pairs {share(get('preference/accuracy'))} margin {number(get('preference/margin'))}"
        sampled = "reward" in metrics  # nothing is scored where pairs are of a file
        parts = (
            f"iteration  {count}",
            *([f"reward {fixed(get('reward'))} ±{fixed(get('reward_std'), 2)}"] * sampled),
            f"held-out {fixed(held_out)}",
            clipped,
            *([f"len {fixed(get('completions/mean_length'), 1)}"] * sampled),
            *([f"level {get('curriculum/level')}"] if get("curriculum/level") is not None else []),
            f"lr {number(get('learning_rate'))}",
            f"{number(get('tokens_per_second'))} tok/s",
            f"eta {run.eta}",
        )
        self._print("  ".join(parts))
        if why_zero(metrics) not in ("", self._note):
            self._print(f"note       {why_zero(metrics)}")
        self._note = why_zero(metrics)

    def evaluation(self, record: Metrics) -> None:
        self._progress.evaluation(record)
        shares = "".join(
            f"  {key} {fixed(value)}" for key, value in record.items() if key.startswith("pass@")
        )
        count = f"({record['num_problems']} problems)"
        end = "  ".join(part for part in (count, at_level(record)) if part)
        self._print(
            f"held-out   iteration {record['iteration']}  score {fixed(record['score'])}{shares}  {end}"
        )

    def samples(self, samples: Sequence[ShownSample]) -> None:
        """Does nothing: conversations are in samples.jsonl."""

    def warn(self, text: str) -> None:
        if self._progress.is_news(text):
            self._print(f"warning    {clean(text)}")

    def end(self, summary: Metrics) -> None:
        commands = next_commands(summary)
        self._print("\n".join(["", *describe(summary), *(["", "Next:"] if commands else [])]))
        for command, why in commands:
            self._print(f"  # {why}\n  {command}")

    def close(self) -> None:
        """Does nothing."""

    def _print(self, text: str) -> None:
        print(text, file=self._file, flush=True)
        self._spoke = self._clock()
