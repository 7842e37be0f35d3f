"""The queue of a sweep in the terminal: a live table where the output is a terminal, lines elsewhere."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from gspo_cli.console.live import SteadyLive
from gspo_cli.console.progress import Clock
from gspo_cli.console.words import MISSING, duration, fixed
from gspo_cli.launching.queue import Job, QueuedJob, QueueTable, Status

FRAME = 0.5  # seconds between frames
ROOM = ("header", "footer", "cursor")  # lines of a terminal that are not jobs
URGENCY = (
    Status.running,
    Status.failed,
    Status.interrupted,
    Status.waiting,
    Status.done,
    Status.not_started,
)
STYLES = {
    Status.running: "cyan",
    Status.done: "green",
    Status.failed: "bold red",
    Status.interrupted: "yellow",
    Status.waiting: "dim",
    Status.not_started: "dim",
}


def make_table(stays: bool = True) -> QueueTable:
    """The live table on a terminal, lines for a pipe or a log. `stays`: its last state stays on the screen,
    because no other summary follows."""
    console = Console()
    live = sys.stdout.isatty() and console.is_interactive
    return LiveTable(console, stays) if live else PlainTable(sys.stdout, stays)


class Tail:
    """The newest line of a growing file of JSON lines. Only what is new is read; a file that was replaced (a
    resumed run drops lines) is read from its start."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset, self._file = path, 0, -1
        self.last: Mapping[str, Any] = {}

    def look(self) -> Mapping[str, Any]:
        """The newest complete line; empty if there is none."""
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return self.last
        if found.st_ino != self._file or found.st_size < self._offset:
            self._offset, self._file, self.last = 0, found.st_ino, {}
        if found.st_size > self._offset:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                new = file.read()
            whole = new[: new.rfind(b"\n") + 1]
            self._offset += len(whole)
            if whole:
                with suppress(ValueError):  # a damaged line: keep the one before it
                    self.last = json.loads(whole.rstrip(b"\n").rpartition(b"\n")[2])
        return self.last


class Follower:
    """How far a job is, read from its run folder."""

    def __init__(self, job: Job) -> None:
        folder, self._total = job.folder, job.iterations
        logs = () if folder is None else (folder / "metrics.jsonl", folder / "evals.jsonl")
        self._tails = [Tail(log) for log in logs]
        self._marks: list[tuple[int, float]] = []  # first and newest iteration seen, with their times
        self.iteration = 0
        self.reward: float | None = None
        self.score: float | None = None

    def look(self, now: float) -> None:
        """Read what is new."""
        if not self._tails:
            return
        metrics, evaluation = (tail.look() for tail in self._tails)
        self.iteration, self.reward = metrics.get("iteration", 0), metrics.get("reward")
        self.score = evaluation.get("score")
        begun = bool(self._tails[1].last) or self.iteration > 0  # a cold start does not count for the pace
        if begun and (not self._marks or self.iteration != self._marks[-1][0]):
            self._marks = [*self._marks[:1], (self.iteration, now)]

    @property
    def count(self) -> str:
        """12/100."""
        return f"{self.iteration}/{self._total}" if self._total else MISSING

    def eta(self, now: float) -> str:
        """Time left at the pace since this table began."""
        if self._total is None or len(self._marks) < 2:
            return MISSING
        (first, began), (newest, reached) = self._marks
        if newest <= first:  # the run went back to a checkpoint
            return MISSING
        pace = (reached - began) / (newest - first)
        return duration(pace * (self._total - newest) - min(pace, now - reached))


class Board:
    """Jobs with what their run folders show."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._followers: dict[Path, Follower] = {}

    def row(self, queued: QueuedJob) -> list[str]:
        """Cells of a job: iteration, reward, held-out score, time it took, time left."""
        now, follower = self.clock(), self.follower(queued.job)
        follower.look(now)
        running = queued.status is Status.running
        seconds = now - queued.started if running else queued.seconds
        elapsed = MISSING if seconds is None else duration(seconds)
        left = follower.eta(now) if running else MISSING
        return [follower.count, fixed(follower.reward), fixed(follower.score), elapsed, left]

    def follower(self, job: Job) -> Follower:
        """What reads the run folder of a job."""
        return self._followers.setdefault(job.log, Follower(job))


def status_text(queued: QueuedJob) -> str:
    """A job's status, and where it runs."""
    if queued.status is Status.running and queued.slot is not None:
        return f"running on {queued.slot.name}"
    return queued.status.value


def tally(jobs: Sequence[QueuedJob]) -> str:
    """How many jobs are in which status."""
    counts = Counter(each.status.value for each in jobs)
    return ", ".join(f"{count} {name}" for name, count in counts.items())


class LiveTable:
    """One row per job, redrawn in place."""

    def __init__(self, console: Console, stays: bool = True, clock: Clock = time.monotonic) -> None:
        self._console, self._stays, self._board = console, stays, Board(clock)
        self._drawn = float("-inf")
        # drawn by this thread only, because processes are forked from it
        self._live = SteadyLive(console=console, auto_refresh=False, transient=True)

    def show(self, jobs: Sequence[QueuedJob]) -> None:
        """Redraws twice a second."""
        if self._board.clock() - self._drawn >= FRAME:
            self._live.start()
            self._drawn = self._board.clock()
            self._live.update(self.frame(jobs, self._console.height), refresh=True)

    def close(self, jobs: Sequence[QueuedJob]) -> None:
        """Leaves the complete table on the screen, or nothing."""
        self._live.stop()
        if self._stays:
            self._console.print(self.frame(jobs, 2 * len(jobs) + len(ROOM)))

    def frame(self, jobs: Sequence[QueuedJob], height: int) -> Group:
        """The table of `jobs`, and why some failed. If they do not fit a terminal of `height` lines, running
        and failed jobs come first."""
        room = max(1, height - len(ROOM))
        failed = [each for each in jobs if each.status is Status.failed]
        reasons = failed[-max(3, room - len(jobs)) :]
        room = max(1, room - len(reasons))
        urgent = sorted(range(len(jobs)), key=lambda i: URGENCY.index(jobs[i].status))[:room]
        lines = [Text(tally(jobs), "dim")]
        for each in reasons:
            lines.append(Text.assemble((each.job.name, "bold"), f": {each.why}"))
        return Group(self._table([jobs[i] for i in sorted(urgent)]), *lines)

    def _table(self, jobs: Sequence[QueuedJob]) -> Table:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        table.add_column("run", no_wrap=True, overflow="ellipsis")
        table.add_column("status", no_wrap=True, min_width=14)
        for name in ("iteration", "reward", "held-out", "elapsed", "eta"):
            table.add_column(name, no_wrap=True, justify="right", min_width=max(6, len(name)))
        for each in jobs:
            status = Text(status_text(each), STYLES[each.status])
            table.add_row(Text(each.job.name), status, *map(Text, self._board.row(each)))
        return table


class PlainTable:
    """A line where a job's status changes, and one for each tenth of its iterations."""

    def __init__(self, file: TextIO, stays: bool = True, clock: Clock = time.monotonic) -> None:
        self._file, self._stays, self._board = file, stays, Board(clock)
        self._printed: dict[Path, tuple[Status, int]] = {}

    def show(self, jobs: Sequence[QueuedJob]) -> None:
        """Prints what is new."""
        width = max(len(each.job.name) for each in jobs)
        for each in jobs:
            if each.status is Status.waiting:
                continue
            count, reward, score, elapsed, left = self._board.row(each)
            total, done = each.job.iterations, self._board.follower(each.job).iteration
            news = (each.status, 10 * done // total if total else 0)
            if self._printed.get(each.job.log) != news:
                self._printed[each.job.log] = news
                time_left = f"eta {left}" if each.status is Status.running else f"in {elapsed}"
                why = f": {each.why}" if each.status is Status.failed else ""
                status = f"{status_text(each)}{why}"
                parts = (status, count, f"reward {reward}", f"held-out {score}", time_left)
                print(f"{each.job.name:<{width}}  {'  '.join(parts)}", file=self._file, flush=True)

    def close(self, jobs: Sequence[QueuedJob]) -> None:
        """Prints how many jobs ended in which way."""
        self.show(jobs)
        if self._stays:
            print(tally(jobs), file=self._file, flush=True)
