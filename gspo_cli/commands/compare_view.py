"""What gspo-compare prints at its end: the verdict, the most important outcomes, where the report is.

Everything goes into rich's Text, free of markup; names of arms and folders are whatever a user typed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gspo_cli.compare.markdown import (
    estimate_words,
    main_pairs,
    p_words,
    reading,
    title_words,
    value_words,
    verdict_words,
)
from gspo_cli.compare.result import Comparison
from gspo_cli.console.words import clean

FEW = 3  # of the folders that were left out
SHORT = 11  # terminal cells of a name that heads a column of numbers


def show(comparison: Comparison, files: Sequence[Path], console: Console) -> None:
    """Print it. Lines of text are wrapped to the console; paths are not, for copying."""
    first, *further = comparison.headline or ["Nothing was found."]
    console.print(Text(clean(first), "bold"))
    for sentence in further:
        console.print(Text(clean(sentence)))
    for sentence in comparison.voided:
        console.print(Text.assemble(("void  ", "bold red"), clean(sentence)))
    for sentence in comparison.cautions:
        console.print(Text.assemble(("note  ", "yellow"), clean(sentence)))
    left_out = comparison.left_out
    for folder in left_out[:FEW]:
        said = clean(f"{folder.folder}: {folder.reason}")
        console.print(Text.assemble(("left out  ", "yellow"), said))
    if len(left_out) > FEW:
        console.print(Text.assemble(("left out  ", "yellow"), f"{len(left_out) - FEW} more: see the report"))
    for table in outcome_tables(comparison):
        console.print()
        console.print(table)
    console.print(Text(reading(comparison), "dim"))
    console.print("\nReport:" if files else "")
    for path in files:
        console.print(Text(f"  {clean(str(path))}", "cyan"), soft_wrap=True)


def outcome_tables(comparison: Comparison) -> list[Table]:
    """The outcomes of the report's first screen, a table for each arm that is held against the baseline."""
    pairs = main_pairs(comparison)
    tables = []
    for arm in dict.fromkeys(contrast.arm_name for _, contrast in pairs):
        title = Text(clean(f"{arm} against {comparison.baseline}"), "bold")
        table = Table(
            title=title,
            title_justify="left",
            box=None,
            pad_edge=False,
            padding=(0, 2, 0, 0),
            header_style="dim",
        )
        table.add_column(Text("outcome"), ratio=1)
        for name, short in ((arm, "arm"), (comparison.baseline, "baseline")):
            table.add_column(
                Text(clean(name) if cell_len(name) <= SHORT else short), justify="right", no_wrap=True
            )
        table.add_column(Text("difference"), justify="right", no_wrap=True)
        table.add_column(Text("p (adj.)"), justify="right", min_width=5)
        table.add_column(Text("verdict"), min_width=15)
        for outcome, contrast in pairs:
            if contrast.arm_name == arm:
                values = (value_words(each.value, outcome.unit) for each in (contrast.arm, contrast.baseline))
                difference = _below(estimate_words(contrast.difference, outcome.unit), " [")
                p, verdict = _below(p_words(contrast), " ("), _judged(verdict_words(outcome, contrast))
                table.add_row(Text(clean(title_words(outcome))), *map(Text, values), difference, p, verdict)
        tables.append(table)
    return tables


def _below(cell: str, mark: str) -> Text:
    """What is in brackets goes to a line of its own."""
    value, space, aside = cell.partition(mark)
    return Text.assemble(value, (f"\n{mark.strip()}{aside}" if space else "", "dim"))


def _judged(words: str) -> Text:
    style = "green" if words.endswith(": better") else "red" if words.endswith(": worse") else ""
    return Text(words, style)
