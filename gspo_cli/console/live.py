"""The live view of a run on a terminal, and the choice between it and plain lines. Free of torch."""

from __future__ import annotations

import atexit
import io
import sys
import textwrap
import time
from collections.abc import Sequence

from rich.console import Console, ConsoleRenderable, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.rule import Rule
from rich.segment import ControlType, Segment, Segments
from rich.table import Table
from rich.text import Text

from gspo_cli.console.plain import PlainConsole
from gspo_cli.console.progress import Clock, Metrics, Progress
from gspo_cli.console.reporting import ShownSample
from gspo_cli.console.samples import samples_table
from gspo_cli.console.words import (
    MISSING,
    at_level,
    clean,
    describe,
    fixed,
    next_commands,
    number,
    sparkline,
    why_zero,
)
from gspo_cli.run.summary import RunStatus

PHASE_STYLES = {"rollout": "cyan", "reward": "yellow", "score": "blue", "update": "magenta", "eval": "green"}
STATUS_STYLES = {RunStatus.completed: "bold green", RunStatus.failed: "bold red"}
COLUMNS = (  # label and metric
    {
        "clip tokens": "clip_ratio/token",
        "clip answers": "clip_ratio/sequence",
        "ratio error": "ratio/first_step_abs_err",
        "zero-variance": "frac_reward_zero_std",
    },
    {
        "length mean": "completions/mean_length",
        "length max": "completions/max_length",
        "truncated": "completions/clipped_ratio",
        "entropy": "entropy",
    },
    {
        "grad norm": "grad_norm",
        "lr": "learning_rate",
        "tokens/s": "tokens_per_second",
        "memory GB": "memory/peak_gb",
    },
)

OF_PAIRS = {
    "pairs right": "preference/accuracy",
    "margin": "preference/margin",
    "chosen": "preference/chosen",
    "zero-variance": "frac_reward_zero_std",
}


def make_console() -> LiveConsole | PlainConsole:
    """The live view on a terminal, lines for a pipe or a log."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # a character that the terminal cannot show must not end the run
        sys.stdout.reconfigure(errors="replace")
    console = Console()
    # isatty too: with FORCE_COLOR, common where logs are collected, rich takes a pipe for a terminal
    live = sys.stdout.isatty() and console.is_interactive
    return LiveConsole(console) if live else PlainConsole(sys.stdout)


class SteadyLive(Live):
    """Draws inside a synchronized update: terminals that support it never show half a frame."""

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        # rich gives text with any control code a width of zero; this one only affects old Windows consoles
        control = [(ControlType.CARRIAGE_RETURN,)]
        begin, end = (Segments([Segment(f"\x1b[?2026{mode}", None, control)]) for mode in "hl")
        return [begin, *super().process_renderables(renderables), end]


class LiveConsole:
    """A view that is redrawn in place twice a second; the last one stays on screen."""

    def __init__(self, console: Console, clock: Clock = time.monotonic) -> None:
        self._console, self._progress = console, Progress(clock)
        self._live: Live | None = None
        self._stage: tuple[str, int, int, str] | None = None
        self._samples: Sequence[ShownSample] = ()
        atexit.register(self.close)  # restores the cursor also where a run ends in an error

    def begin(self, title: str, card: str, iterations: int, start: int) -> None:
        self.close()
        under_facts = " " * 14
        for line in card.splitlines():
            self._console.print(Text(textwrap.fill(line, self._console.width, subsequent_indent=under_facts)))
        self._progress.begin(title, iterations, start)
        self._start()

    def stage(self, name: str, done: int, total: int, note: str = "") -> None:
        """A bar; before the run begins, a full one is left on screen and the view closed."""
        self._stage = (name, done, total, note)
        self._start()
        if total and done >= total:
            if not self._progress.iterations:
                self.close()
            self._stage = None

    def iteration(self, metrics: Metrics) -> None:
        self._progress.iteration(metrics)

    def evaluation(self, record: Metrics) -> None:
        self._progress.evaluation(record)

    def samples(self, samples: Sequence[ShownSample]) -> None:
        self._samples = samples[:3]

    def warn(self, text: str) -> None:
        if self._progress.is_news(text):
            self._console.print(Text.assemble(("warning  ", "yellow"), clean(text)))

    def end(self, summary: Metrics) -> None:
        self.close()
        first, *rest = describe(summary)
        style = STATUS_STYLES.get(summary["status"], "bold yellow")
        commands = next_commands(summary)
        closing = [Text("\nNext:")] if commands else []
        self._console.print(Text("\n" + first, style), *map(Text, rest), *closing, sep="\n")
        for command, why in commands:
            self._console.print(Text(f"  # {why}", "dim"))
            self._console.print(Text(f"  {command}", "cyan"), soft_wrap=True)  # on one line, for copying

    def frame(self) -> RenderableType:
        """The view as it is now."""
        if not self._progress.iterations:
            return self._bars()
        title = Rule(Text(clean(self._progress.title), "bold"), align="left", style="dim")
        why = Text(why_zero(self._progress.metrics), "yellow", no_wrap=True, overflow="ellipsis")
        numbers = Group(self._scores(), Text(), self._cells(), self._times(), why)
        return Group(title, self._bars(), Panel(numbers, border_style="dim"), *self._conversations())

    def _start(self) -> None:
        if self._live is None:
            self._live = SteadyLive(get_renderable=self.frame, console=self._console, refresh_per_second=2)
            self._live.start()

    def close(self) -> None:
        """Stop the live view; needed where a run fails before its end is reported."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _bars(self) -> Table:
        """The run's progress, and below it that of a stage; its line is always reserved, so that the layout
        does not jump."""
        run, table = self._progress, Table.grid(padding=(0, 1), expand=True)
        table.add_column(min_width=10, no_wrap=True)
        table.add_column(min_width=9, no_wrap=True)
        table.add_column(ratio=1)
        table.add_column(width=28, no_wrap=True, justify="right")
        if run.iterations:
            reached, times = f"{run.done}/{run.iterations}", f"elapsed {run.elapsed}  eta {run.eta}"
            bar = _bar(run.iterations, run.done)
            table.add_row(Text("iteration"), Text(reached), bar, Text(times))
        stage = self._stage  # read once: another thread may reset it
        if stage:
            name, done, total, note = stage
            bar = _bar(total, done)
            count = f"{done}/{total}" if total else ""
            table.add_row(Text(name, "cyan"), Text(count), bar, Text(clean(note), "dim"))
        elif run.iterations:
            table.add_row(Text())
        return table

    def _scores(self) -> Table:
        run, table = self._progress, Table.grid(padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True)
        table.add_column(width=39, no_wrap=True)
        table.add_column(no_wrap=True)
        room = max(8, self._console.width - 55)
        reward = Text.assemble((fixed(run.metrics.get(run.measure)), "bold"))
        if "reward" in run.metrics:
            reward.append(f" ±{fixed(run.metrics.get('reward_std'), 2)}", "dim")
        table.add_row(
            Text(run.measure.rpartition("/")[2], "dim"), reward, Text(sparkline(run.rewards, room), "cyan")
        )
        history = run.evaluations
        held_out = Text.assemble((fixed(history[-1]["score"]) if history else MISSING, "bold"))
        if history:
            best = max(history, key=lambda record: record["score"])
            for name, record in (("best", best), ("first", history[0])):
                held_out.append(f"  {name} {fixed(record['score'])} @{record['iteration']}", "dim")
        scores = [record["score"] for record in history]
        table.add_row(Text("held-out", "dim"), held_out, Text(sparkline(scores, room), "green"))
        if history and at_level(history[-1]):
            table.add_row(Text("curriculum", "dim"), Text(at_level(history[-1])))
        return table

    def _cells(self) -> Table:
        metrics, table = self._progress.metrics, Table.grid(padding=(0, 1), expand=True)
        columns = (OF_PAIRS, *COLUMNS[1:]) if "preference/pairs" in metrics else COLUMNS
        for _ in columns:
            table.add_column(width=13, style="dim", no_wrap=True)
            table.add_column(ratio=1, no_wrap=True)
        rows = list(zip(*(column.items() for column in columns), strict=True))
        for row in [*rows, [("kl", "kl")]] if "kl" in metrics else rows:
            table.add_row(*(Text(part) for label, key in row for part in (label, number(metrics.get(key)))))
        return table

    def _times(self) -> Text:
        """Where the time went so far: a bar of shares with its legend."""
        seconds = self._progress.seconds
        room = max(8, min(40, self._console.width - 70))
        total, line, legend = seconds.total(), Text(no_wrap=True).append("time  ", "dim"), Text()
        for phase, style in PHASE_STYLES.items():
            part = seconds[phase] / total if total else 0.0
            line.append("━" * round(part * room), style)
            legend.append(f"  {phase} ", "dim").append(f"{part:.0%}" if total else MISSING, style)
        return line.append(legend)

    def _conversations(self) -> list[RenderableType]:
        if not self._samples:
            return []
        title = Text(f"conversations of iteration {self._samples[0].iteration}", "dim")
        return [Rule(title, align="left", style="dim"), samples_table(self._samples, self._console.width)]


def _bar(total: int, done: int) -> ProgressBar:
    """Moves back and forth if the total is unknown."""
    return ProgressBar(total or None, done, pulse=not total, complete_style="cyan", finished_style="green")
