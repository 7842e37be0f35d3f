"""The queue of a sweep in the terminal: a live table where there is one to draw on, lines elsewhere."""

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
from gspo_cli.launching.queue import Place, QueueTable, Status

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
    """The live table on a terminal, lines for a pipe or a log. `stays`: its end is left there, for want of
    another summary."""
    console = Console()
    live = sys.stdout.isatty() and console.is_interactive
    return LiveTable(console, stays) if live else PlainTable(sys.stdout, stays)


class Tail:
    """The newest line of a file of JSON lines that grows. What was read is not read again; a file that was
    written anew (a run that continues drops lines) is."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset, self._file = path, 0, -1
        self.last: Mapping[str, Any] = {}

    def look(self) -> Mapping[str, Any]:
        """The newest whole line; empty where there is none."""
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
                with suppress(ValueError):  # of a damaged file the table shows what it can
                    self.last = json.loads(whole.rstrip(b"\n").rpartition(b"\n")[2])
        return self.last


class Follower:
    """How far the job of a place is, read from its run folder."""

    def __init__(self, place: Place) -> None:
        folder = place.job.folder
        logs = () if folder is None else ("metrics.jsonl", "evals.jsonl")
        self._tails = [Tail(folder / log) for log in logs]
        self._total = place.job.iterations
        self._marks: list[tuple[int, float]] = []  # first and newest iteration seen, with their times
        self.iteration, self.reward, self.score = 0, None, None

    def look(self, now: float) -> None:
        """Read what is new."""
        if not self._tails:
            return
        metrics, evaluation = (tail.look() for tail in self._tails)
        self.iteration, self.reward = metrics.get("iteration", 0), metrics.get("reward")
        self.score = evaluation.get("score")
        begun = bool(self._tails[1].last) or self.iteration > 0  # a cold start sets no pace
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
        if newest <= first:  # it went back to a checkpoint
            return MISSING
        pace = (reached - began) / (newest - first)
        return duration(pace * (self._total - newest) - min(pace, now - reached))


def elapsed(place: Place, now: float) -> str:
    """How long a job has run."""
    if place.began is None:
        return MISSING
    return duration(now - place.began if place.ended is None else place.ended.seconds)


def said(place: Place) -> str:
    """A job's status, and where it runs."""
    running = place.status is Status.running and place.slot is not None
    return f"running on {place.slot.name}" if running else place.status.value


class Board:
    """Places with what their run folders say."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._followers: dict[Path, Follower] = {}

    def row(self, place: Place) -> list[str]:
        """Cells of a job: iteration, reward, held-out score, time it took, time left."""
        now, follower = self.clock(), self.follower(place)
        follower.look(now)
        left = follower.eta(now) if place.status is Status.running else MISSING
        return [follower.count, fixed(follower.reward), fixed(follower.score), elapsed(place, now), left]

    def follower(self, place: Place) -> Follower:
        """What reads the run folder of a place's job."""
        return self._followers.setdefault(place.job.log, Follower(place))


def tally(places: Sequence[Place]) -> str:
    """How many jobs are in which status."""
    counts = Counter(place.status.value for place in places)
    return ", ".join(f"{count} {name}" for name, count in counts.items())


class LiveTable:
    """One row per job, redrawn in place."""

    def __init__(self, console: Console, stays: bool = True, clock: Clock = time.monotonic) -> None:
        self._console, self._stays, self._board = console, stays, Board(clock)
        self._drawn = float("-inf")
        # drawn from this thread alone: processes are forked from it
        self._live = SteadyLive(console=console, auto_refresh=False, transient=True)

    def show(self, places: Sequence[Place]) -> None:
        """Redraws twice a second."""
        if self._board.clock() - self._drawn >= FRAME:
            self._live.start()
            self._drawn = self._board.clock()
            self._live.update(self.frame(places, self._console.height), refresh=True)

    def close(self, places: Sequence[Place]) -> None:
        """Leaves the whole table on screen, or nothing."""
        self._live.stop()
        if self._stays:
            self._console.print(self.frame(places, 2 * len(places) + len(ROOM)))

    def frame(self, places: Sequence[Place], height: int) -> Group:
        """The table of `places`, and why some failed; where a terminal of `height` lines has no room for all,
        those that run or failed come first."""
        room = max(1, height - len(ROOM))
        failed = [place for place in places if place.status is Status.failed]
        whys = failed[-max(3, room - len(places)) :]
        room = max(1, room - len(whys))
        urgent = sorted(range(len(places)), key=lambda i: URGENCY.index(places[i].status))[:room]
        lines = [Text(tally(places), "dim")]
        for place in whys:
            lines.append(Text.assemble((place.job.name, "bold"), f": {place.ended.why}"))
        return Group(self._table([places[i] for i in sorted(urgent)]), *lines)

    def _table(self, places: Sequence[Place]) -> Table:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        table.add_column("run", no_wrap=True, overflow="ellipsis")
        table.add_column("status", no_wrap=True, min_width=14)
        for name in ("iteration", "reward", "held-out", "elapsed", "eta"):
            table.add_column(name, no_wrap=True, justify="right", min_width=max(6, len(name)))
        for place in places:
            status = Text(said(place), STYLES[place.status])
            table.add_row(Text(place.job.name), status, *map(Text, self._board.row(place)))
        return table


class PlainTable:
    """A line where a job's status changes, and one for each tenth of its iterations."""

    def __init__(self, file: TextIO, stays: bool = True, clock: Clock = time.monotonic) -> None:
        self._file, self._stays, self._board = file, stays, Board(clock)
        self._told: dict[Path, tuple[Status, int]] = {}

    def show(self, places: Sequence[Place]) -> None:
        """Prints what is new."""
        width = max(len(place.job.name) for place in places)
        for place in places:
            if place.status is Status.waiting:
                continue
            count, reward, score, spent, left = self._board.row(place)
            total, done = place.job.iterations, self._board.follower(place).iteration
            news = (place.status, 10 * done // total if total else 0)
            if self._told.get(place.job.log) != news:
                self._told[place.job.log] = news
                time_left = f"eta {left}" if place.status is Status.running else f"in {spent}"
                why = f": {place.ended.why}" if place.status is Status.failed else ""
                parts = (f"{said(place)}{why}", count, f"reward {reward}", f"held-out {score}", time_left)
                print(f"{place.job.name:<{width}}  {'  '.join(parts)}", file=self._file, flush=True)

    def close(self, places: Sequence[Place]) -> None:
        """Prints how many jobs ended in which way."""
        self.show(places)
        if self._stays:
            print(tally(places), file=self._file, flush=True)
