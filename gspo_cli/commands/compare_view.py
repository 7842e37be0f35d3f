"""What gspo-compare prints at the end: the verdict, the most important outcomes, and the path of the report.

All text is shown as rich's Text, without markup, since users choose the names of arms and folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from gspo_cli.compare.across_content import caveats, seeds_text
from gspo_cli.compare.content import NO_HEADLINE, reading
from gspo_cli.compare.result import Across, Comparison, LeftOut
from gspo_cli.compare.tables import (
    Cell,
    ReportTable,
    Tone,
    estimate_cell,
    main_tables_by_arm,
    not_measured,
    p_cell,
    verdict_cell,
)
from gspo_cli.console.words import clean

FEW = 3  # left-out folders that are listed
TABLES = 80  # terminal cells from which tables fit
SECTION = 17  # terminal cells of a task's name that is not broken
SHORT = 11  # terminal cells of a name that heads a column of numbers
STYLES = {Tone.good: "green", Tone.bad: "red", Tone.none: ""}


def show(found: Comparison | Across, files: Sequence[Path], console: Console) -> None:
    """Print the result. Text is wrapped to the console; paths are not, so that they can be copied."""
    if isinstance(found, Comparison):
        _show_comparison(found, console)
    else:
        _show_summary(found, console)
    console.print("\nReport:" if files else "")
    for path in files:
        console.print(Text(f"  {clean(str(path))}", "cyan"), soft_wrap=True)


def _show_comparison(comparison: Comparison, console: Console) -> None:
    _show_headline(comparison.headline or [NO_HEADLINE], console)
    for sentence in comparison.voided:
        console.print(Text.assemble(("inconclusive  ", "bold red"), clean(sentence)))
    for sentence in comparison.cautions:
        console.print(Text.assemble(("caveat  ", "yellow"), clean(sentence)))
    _show_left_out(comparison.left_out, console)
    for arm, content in main_tables_by_arm(comparison).items():
        console.print()
        if console.width < TABLES:
            _show_blocks(content, arm, comparison.baseline, console)
        else:
            console.print(terminal_table(content, arm, comparison.baseline))
    for sentence in (reading(comparison), not_measured(comparison)):
        console.print(Text(clean(sentence), "dim"), end="\n" if sentence else "")


def _show_summary(across: Across, console: Console) -> None:
    """The summary, then the verdict of each section alone."""
    summary = across.summary
    _show_headline(summary.headline, console)
    for sentence in caveats(summary):
        console.print(Text.assemble(("caveat  ", "yellow"), clean(sentence)))
    _show_left_out(summary.left_out, console)
    console.print()
    console.print(section_table(across))
    for name, comparison in zip(summary.sections, across.sections, strict=True):
        first = (comparison.headline or [NO_HEADLINE])[0]
        console.print(Text.assemble((f"\n{clean(name)}  ", "bold"), clean(first)))


def _show_blocks(content: ReportTable, arm: str, baseline: str, console: Console) -> None:
    """The main table of one arm on a narrow terminal: the verdict of each outcome, its numbers below."""
    console.print(Text(clean(content.title), "bold"))
    for outcome, value, other, difference, p, verdict in content.rows:
        style = STYLES[verdict.tone] if verdict.tone else ""
        console.print(Text.assemble(clean(outcome.text), ": ", (verdict.text, style)))
        numbers = f"{arm} {value.text}, {baseline} {other.text}, difference {difference}, p {p}"
        console.print(Padding(Text(clean(numbers), "dim"), (0, 0, 0, 2)))


def _show_headline(sentences: Sequence[str], console: Console) -> None:
    for place, sentence in enumerate(sentences):
        console.print(Text(clean(sentence), "" if place else "bold"))


def _show_left_out(folders: Sequence[LeftOut], console: Console) -> None:
    left_out = [f"{each.folder}: {each.reason}" for each in folders]
    more = [f"{len(left_out) - FEW} more: see the report"] if len(left_out) > FEW else []
    for line in [*left_out[:FEW], *more]:
        console.print(Text.assemble(("left out  ", "yellow"), clean(line)))


def section_table(across: Across) -> Table:
    """The primary outcome of every arm in every section, narrow enough for 80 columns."""
    primary = across.sections[0].outcomes[0]
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    baselines = {result.contrast.baseline_name for result in across.summary.results}
    shared = f"against {min(baselines)}" if len(baselines) == 1 else ""
    table.add_column(Text("section"), ratio=1, overflow="fold", min_width=SECTION)
    table.add_column(Text(clean(shared or "algorithms")), ratio=1, overflow="fold")
    for name in ("difference", "p (adj.)", "seeds"):
        table.add_column(Text(name), justify="right", no_wrap=True)
    table.add_column(Text("verdict"), min_width=15)
    section = ""
    for result in across.summary.results:
        contrast, verdict = result.contrast, verdict_cell(primary, result.contrast)
        style = STYLES[verdict.tone] if verdict.tone else ""
        table.add_row(
            Text(clean(result.section) if result.section != section else ""),
            Text(clean(contrast.arm_name + ("" if shared else f" against {contrast.baseline_name}"))),
            _two_lines(estimate_cell(contrast.difference, primary.unit)),
            _two_lines(p_cell(contrast)),
            Text(seeds_text(contrast)),
            Text(verdict.text, style),
        )
        section = result.section
    return table


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
