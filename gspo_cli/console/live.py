"""The terminal during a run: a live view where there is one to draw on, lines elsewhere. Free of torch.

What a model wrote is shown, never obeyed: it goes through `clean` and into rich's Text, free of markup."""

from __future__ import annotations

import atexit
import io
import math
import sys
import textwrap
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO

from rich.console import Console, ConsoleRenderable, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.rule import Rule
from rich.segment import ControlType, Segment, Segments
from rich.table import Table
from rich.text import Text

from gspo_cli.console.reporting import Sample
from gspo_cli.console.words import (
    MISSING,
    clean,
    describe,
    duration,
    fixed,
    next_commands,
    number,
    share,
    sparkline,
    tail,
    why_zero,
)
from gspo_cli.run.summary import RunStatus

Metrics = Mapping[str, Any]
Clock = Callable[[], float]
LONGEST = 1000  # characters of a text that are looked at: a frame is drawn twice a second
SILENCE = 5.0  # seconds after which a stage that goes on may take another line
PHASES = {"rollout": "cyan", "reward": "yellow", "score": "blue", "update": "magenta", "eval": "green"}
STYLES = {RunStatus.completed: "bold green", RunStatus.failed: "bold red"}
COLUMNS = (  # label and metric
    {
        "clip tokens": "clip_ratio/token",
        "clip answers": "clip_ratio/sequence",
        "ratio error": "ratio/first_step_abs_err",
        "equal groups": "frac_reward_zero_std",
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


def make_console() -> LiveConsole | PlainConsole:
    """The live view on a terminal, lines for a pipe or a log."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a run does not die of a character its terminal lacks
    console = Console()
    # isatty too: FORCE_COLOR, common where logs are collected, makes rich take a pipe for a terminal
    live = sys.stdout.isatty() and console.is_interactive
    return LiveConsole(console) if live else PlainConsole(sys.stdout)


def exchange(messages: Sequence[Mapping[str, str]]) -> tuple[str, str]:
    """What the agent last answered to, and its answer; both may be empty."""
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    last = turns[-1] if turns else len(messages)
    prompt = messages[last - 1]["content"] if last > 0 else ""
    return prompt, messages[last]["content"] if turns else ""


class Progress:
    """What both consoles remember of a run; all of it is in the run folder too."""

    def __init__(self, clock: Clock) -> None:
        self._clock, self._began = clock, clock()
        self._marks: deque[float] = deque(maxlen=21)  # ends of iterations, so that a pace holds evaluations
        self._warned: set[str] = set()
        self.title, self.iterations, self.done = "", 0, 0
        self.metrics: Metrics = {}
        self.rewards: list[float] = []
        self.evaluations: list[Metrics] = []
        self.seconds = Counter(dict.fromkeys(PHASES, 0.0))  # all keys now: the view reads it from its thread

    def begin(self, title: str, iterations: int, start: int) -> None:
        self.title, self.iterations, self.done = title, iterations, start
        self._marks.append(self._clock())

    def iteration(self, metrics: Metrics) -> None:
        self.metrics, self.done = metrics, metrics["iteration"]
        self._marks.append(self._clock())
        self._add_seconds(metrics)
        reward = metrics.get("reward")
        if reward is not None and math.isfinite(reward):
            self.rewards.append(reward)

    def evaluation(self, record: Metrics) -> None:
        if not self.metrics:  # the first iteration starts now
            self._marks = deque([self._clock()], maxlen=self._marks.maxlen)
        self._add_seconds(record)
        if record["score"] is not None and math.isfinite(record["score"]):
            self.evaluations.append(record)

    def is_news(self, warning: str) -> bool:
        """Whether this is the first time."""
        known = warning in self._warned
        self._warned.add(warning)
        return not known

    @property
    def elapsed(self) -> str:
        return duration(self._clock() - self._began)

    @property
    def eta(self) -> str:
        """Time left at the pace of the last iterations."""
        if len(self._marks) < 2:
            return MISSING
        pace = (self._marks[-1] - self._marks[0]) / (len(self._marks) - 1)
        present = min(pace, self._clock() - self._marks[-1])  # a late iteration shortens none of the next
        return duration(pace * (self.iterations - self.done) - present)

    def _add_seconds(self, record: Metrics) -> None:
        self.seconds.update({phase: record[f"time/{phase}"] for phase in PHASES if f"time/{phase}" in record})


class PlainConsole:
    """One line per iteration and evaluation, and a line now and then inside long stages."""

    def __init__(self, file: TextIO, clock: Clock = time.monotonic) -> None:
        self._file, self._clock, self._progress = file, clock, Progress(clock)
        self._stage = ("", 0)  # name and tenths done of the last stage line
        self._note, self._spoke = "", clock()

    def begin(self, title: str, card: str, iterations: int, start: int) -> None:
        self._progress.begin(title, iterations, start)
        self._print(card)

    def stage(self, name: str, done: int, total: int, note: str = "") -> None:
        """Prints where the stage is new, or a tenth further after some silence."""
        reached = (name, 10 * done // total if total else 0)
        silent = self._clock() - self._spoke >= SILENCE
        if name != self._stage[0] or (reached != self._stage and silent):
            count = f"{done}/{total}" if total else ""
            self._print("  ".join(part for part in (f"{name:<10}", count, clean(note)) if part))
            self._stage = reached

    def iteration(self, metrics: Metrics) -> None:
        self._progress.iteration(metrics)
        run, get = self._progress, metrics.get
        held_out = run.evaluations[-1]["score"] if run.evaluations else None
        count = f"{run.done:>{len(str(run.iterations))}}/{run.iterations}"
        parts = (
            f"iteration  {count}",
            f"reward {fixed(get('reward'))} ±{fixed(get('reward_std'), 2)}",
            f"held-out {fixed(held_out)}",
            f"clip tok {share(get('clip_ratio/token'))} seq {share(get('clip_ratio/sequence'))}",
            f"len {fixed(get('completions/mean_length'), 1)}",
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
        self._print(
            f"held-out   iteration {record['iteration']}  score {fixed(record['score'])}{shares}  {count}"
        )

    def samples(self, samples: Sequence[Sample]) -> None:
        """Nothing: conversations are in samples.jsonl."""

    def warn(self, text: str) -> None:
        if self._progress.is_news(text):
            self._print(f"warning    {clean(text)}")

    def end(self, summary: Metrics) -> None:
        commands = next_commands(summary)
        self._print("\n".join(["", *describe(summary), *(["", "Next:"] if commands else [])]))
        for command, why in commands:
            self._print(f"  # {why}\n  {command}")

    def close(self) -> None:
        """Nothing: lines leave nothing open."""

    def _print(self, text: str) -> None:
        print(text, file=self._file, flush=True)
        self._spoke = self._clock()


class SteadyLive(Live):
    """Draws inside a synchronized update: terminals that know it never show half a frame, others skip it."""

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        # with any control code rich counts no cells; this one acts on old Windows consoles only
        control = [(ControlType.CARRIAGE_RETURN,)]
        begin, end = (Segments([Segment(f"\x1b[?2026{mode}", None, control)]) for mode in "hl")
        return [begin, *super().process_renderables(renderables), end]


class LiveConsole:
    """A view that is redrawn in place, a few times a second; the last one stays on screen."""

    def __init__(self, console: Console, clock: Clock = time.monotonic) -> None:
        self._console, self._progress = console, Progress(clock)
        self._live: Live | None = None
        self._stage: tuple[str, int, int, str] | None = None
        self._samples: Sequence[Sample] = ()
        atexit.register(self.close)  # a run that ends in an error leaves a terminal with its cursor

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

    def samples(self, samples: Sequence[Sample]) -> None:
        self._samples = samples[:3]

    def warn(self, text: str) -> None:
        if self._progress.is_news(text):
            self._console.print(Text.assemble(("warning  ", "yellow"), clean(text)))

    def end(self, summary: Metrics) -> None:
        self.close()
        first, *rest = describe(summary)
        style = STYLES.get(summary["status"], "bold yellow")
        commands = next_commands(summary)
        closing = [Text("\nNext:")] if commands else []
        self._console.print(Text("\n" + first, style), *map(Text, rest), *closing, sep="\n")
        for command, why in commands:
            self._console.print(Text(f"  # {why}", "dim"))
            self._console.print(Text(f"  {command}", "cyan"), soft_wrap=True)  # whole, for copying

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
        """Take the live view off the terminal; a run that fails early does not."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _bars(self) -> Table:
        """The run's progress, and below it that of a stage; its line is kept free so that nothing jumps."""
        run, table = self._progress, Table.grid(padding=(0, 1), expand=True)
        table.add_column(min_width=10, no_wrap=True)
        table.add_column(min_width=9, no_wrap=True)
        table.add_column(ratio=1)
        table.add_column(width=28, no_wrap=True, justify="right")
        if run.iterations:
            done, bar = f"{run.done}/{run.iterations}", _bar(run.iterations, run.done)
            table.add_row(Text("iteration"), Text(done), bar, Text(f"elapsed {run.elapsed}  eta {run.eta}"))
        stage = self._stage  # once: it may end while this runs
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
        reward = Text.assemble((fixed(run.metrics.get("reward")), "bold"))
        if run.metrics:
            reward.append(f" ±{fixed(run.metrics.get('reward_std'), 2)}", "dim")
        table.add_row(Text("reward", "dim"), reward, Text(sparkline(run.rewards, room), "cyan"))
        history = run.evaluations
        held_out = Text.assemble((fixed(history[-1]["score"]) if history else MISSING, "bold"))
        if history:
            best = max(history, key=lambda record: record["score"])
            for name, record in (("best", best), ("first", history[0])):
                held_out.append(f"  {name} {fixed(record['score'])} @{record['iteration']}", "dim")
        scores = [record["score"] for record in history]
        table.add_row(Text("held-out", "dim"), held_out, Text(sparkline(scores, room), "green"))
        return table

    def _cells(self) -> Table:
        metrics, table = self._progress.metrics, Table.grid(padding=(0, 1), expand=True)
        for _ in COLUMNS:
            table.add_column(width=13, style="dim", no_wrap=True)
            table.add_column(ratio=1, no_wrap=True)
        rows = list(zip(*(column.items() for column in COLUMNS), strict=True))
        for row in [*rows, [("kl", "kl")]] if "kl" in metrics else rows:
            table.add_row(*(Text(part) for label, key in row for part in (label, number(metrics.get(key)))))
        return table

    def _times(self) -> Text:
        """Where the time went so far: a bar of shares with its legend."""
        seconds = self._progress.seconds
        room = max(8, min(40, self._console.width - 70))
        total, line, legend = seconds.total(), Text(no_wrap=True).append("time  ", "dim"), Text()
        for phase, style in PHASES.items():
            part = seconds[phase] / total if total else 0.0
            line.append("━" * round(part * room), style)
            legend.append(f"  {phase} ", "dim").append(f"{part:.0%}" if total else MISSING, style)
        return line.append(legend)

    def _conversations(self) -> list[RenderableType]:
        if not self._samples:
            return []
        title = Text(f"conversations of iteration {self._samples[0].iteration}", "dim")
        return [Rule(title, align="left", style="dim"), samples_table(self._samples, self._console.width)]


def samples_table(samples: Sequence[Sample], width: int) -> Table:
    """Conversations in two lines each, `width` terminal cells wide."""
    judged = max(24, width // 4)
    said = (width - judged - 4) // 2
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name, cells in (("prompt", said), ("answer", said), ("reward", judged)):
        table.add_column(name, width=cells, no_wrap=True, overflow="ellipsis")
    for sample in samples:
        table.add_row(*_row(sample, said))
    return table


def _bar(total: int, done: int) -> ProgressBar:
    """Moves to and fro where the total is not known."""
    return ProgressBar(total or None, done, pulse=not total, complete_style="cyan", finished_style="green")


def _row(sample: Sample, width: int) -> tuple[Text, Text, Text]:
    """Prompt, answer and reward; below them which problem it is, what was expected, and the parts."""
    prompt, answer = exchange(sample.messages)
    turns = sum(message["role"] == "assistant" for message in sample.messages)
    about = [
        sample.problem_id,
        f"{turns} turns" * (turns > 1),
        "truncated" * (sample.finish_reason == "length"),
    ]
    parts = ", ".join(f"{name} {number(value)}" for name, value in sample.components.items())
    advantage = sample.advantage or 0.0  # an evaluation has none
    style = "green" if advantage > 0 else "yellow" if advantage < 0 else ""
    compared = "" if sample.advantage is None else f"  advantage {advantage:+.2f}"
    cells = (
        (tail(clean(prompt[-LONGEST:]), width), "", " · ".join(filter(None, about))),
        (clean(answer[:LONGEST]), "", f"expected {sample.expected}"),
        (fixed(sample.reward) + compared, style, sample.excluded or parts),
    )
    return tuple(
        Text.assemble((top, style), "\n", (clean(below[:LONGEST]), "dim")) for top, style, below in cells
    )
