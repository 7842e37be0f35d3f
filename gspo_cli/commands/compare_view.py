"""What gspo-compare prints at the end: the verdict, the most important outcomes, and the path of the report.

All text is shown as rich's Text, without markup, since users choose the names of arms and folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gspo_cli.compare.content import NO_HEADLINE, reading
from gspo_cli.compare.result import Comparison
from gspo_cli.compare.tables import Cell, ReportTable, Tone, main_tables_by_arm, not_measured
from gspo_cli.console.words import clean

FEW = 3  # left-out folders that are listed
SHORT = 11  # terminal cells of a name that heads a column of numbers
STYLES = {Tone.good: "green", Tone.bad: "red", Tone.none: ""}


def show(comparison: Comparison, files: Sequence[Path], console: Console) -> None:
    """Print the result. Text is wrapped to the console; paths are not, so that they can be copied."""
    first, *further = comparison.headline or [NO_HEADLINE]
    console.print(Text(clean(first), "bold"))
    for sentence in further:
        console.print(Text(clean(sentence)))
    for sentence in comparison.voided:
        console.print(Text.assemble(("inconclusive  ", "bold red"), clean(sentence)))
    for sentence in comparison.cautions:
        console.print(Text.assemble(("caveat  ", "yellow"), clean(sentence)))
    left_out = [f"{each.folder}: {each.reason}" for each in comparison.left_out]
    more = [f"{len(left_out) - FEW} more: see the report"] if len(left_out) > FEW else []
    for line in [*left_out[:FEW], *more]:
        console.print(Text.assemble(("left out  ", "yellow"), clean(line)))
    for arm, content in main_tables_by_arm(comparison).items():
        console.print()
        console.print(terminal_table(content, arm, comparison.baseline))
    for sentence in (reading(comparison), not_measured(comparison)):
        console.print(Text(clean(sentence), "dim"), end="\n" if sentence else "")
    console.print("\nReport:" if files else "")
    for path in files:
        console.print(Text(f"  {clean(str(path))}", "cyan"), soft_wrap=True)


def terminal_table(content: ReportTable, arm: str, baseline: str) -> Table:
    """The main table of one arm, narrow enough for 80 columns."""
    table = Table(
        title=Text(clean(content.title), "bold"),
        title_justify="left",
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
        header_style="dim",
    )
    table.add_column(Text("outcome"), ratio=1)
    for name, short in ((arm, "arm"), (baseline, "baseline")):
        heading = clean(name) if cell_len(name) <= SHORT else short
        table.add_column(Text(heading), justify="right", no_wrap=True)
    table.add_column(Text("difference"), justify="right", no_wrap=True)
    table.add_column(Text("p (adj.)"), justify="right", min_width=5)
    table.add_column(Text("verdict"), min_width=15)
    for outcome, value, other, difference, p, verdict in content.rows:
        plain = [Text(clean(cell.text)) for cell in (outcome, value, other)]
        style = STYLES[verdict.tone] if verdict.tone else ""
        table.add_row(*plain, _two_lines(difference), _two_lines(p), Text(verdict.text, style))
    return table


def _two_lines(cell: Cell) -> Text:
    """The text with its aside on a line of its own."""
    return Text.assemble(cell.text, (f"\n{cell.aside}" if cell.aside else "", "dim"))
