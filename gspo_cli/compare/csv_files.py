"""The tables of a report as CSV files, for pandas, R and spreadsheets: tables/<name>.csv; of several tasks
or models the summary there, and each one's own in tables/section-<number>/.

The columns are the fields of report.json, an estimate as <name>_value, _low, _high, _n and _of. Numbers have
all their digits; what was not measured is empty. No text can become a formula of a spreadsheet."""

from __future__ import annotations

import csv
import io
import json
import math
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import fields
from enum import Enum
from pathlib import Path
from typing import Any

from gspo_cli.compare.across_content import comparisons
from gspo_cli.compare.result import (
    Across,
    ArmAcross,
    Claim,
    Comparison,
    Contrast,
    CounterfactualClipping,
    Estimate,
    LeftOut,
    Look,
    NotCompared,
    ProblemTest,
    RunFacts,
)
from gspo_cli.console.words import clean
from gspo_cli.run.files import make_folder, write_atomically

FOLDER = "tables"
FORMULA = "=+-@"  # what a formula of a spreadsheet begins with
ESTIMATES = ("Estimate", "Estimate | None")  # types of fields
Row = dict[str, Any]


def write_tables(found: Comparison | Across, folder: Path) -> Path:
    """Write all tables, those without rows too; returns their folder. Raises UserError if one cannot be
    written."""
    parts = {section: tables(comparison) for comparison, section in comparisons(found)}
    if isinstance(found, Across):
        parts[""] = summary_tables(found)
    for section, own in parts.items():
        make_folder(folder / FOLDER / section, "compare.folder")
        for name, (columns, rows) in own.items():
            write_atomically(folder / FOLDER / section / f"{name}.csv", csv_text(columns, rows))
    return folder / FOLDER


def summary_tables(across: Across) -> dict[str, tuple[list[str], list[Row]]]:
    """The tables of a summary, as `tables` has them; each result has the folder of its section."""
    summary = across.summary
    folders = dict(zip(summary.sections, (section for _, section in comparisons(across)), strict=True))
    results = [
        {"section": each.section, "folder": folders[each.section], "excluded": each.excluded}
        | _row(each.contrast)
        for each in summary.results
    ]
    arms = [_row(each) | {"sections": "; ".join(each.sections)} for each in summary.arms]
    return {
        "results": (["section", "folder", "excluded", *_columns(Contrast)], results),
        "across": (_columns(ArmAcross), arms),
        "not_compared": (_columns(NotCompared), [_row(each) for each in summary.not_compared]),
        "left_out": (_columns(LeftOut), [_row(each) for each in summary.left_out]),
    }


def tables(comparison: Comparison) -> dict[str, tuple[list[str], list[Row]]]:
    """Names of columns, and rows, by the name of the table."""
    outcomes = {outcome.key: outcome for outcome in comparison.outcomes}
    about = ("title", "unit", "better")
    contrasts = [
        _row(contrast) | {name: getattr(outcomes[contrast.outcome], name) for name in about}
        for contrast in comparison.contrasts
    ]
    runs = [
        {"arm_name": arm.name} | _row(run) | {f"outcomes_{key}": value for key, value in run.outcomes.items()}
        for arm in comparison.arms
        for run in arm.runs
    ]
    arms = [
        {
            "name": arm.name,
            "objective": arm.objective,
            "overrides": " ".join(arm.overrides),
            "seeds": " ".join(map(str, arm.seeds)),
        }
        for arm in comparison.arms
    ]
    differences = [
        {"key": found["key"], "arm_name": name, "values": json.dumps(values), "allowed": found["allowed"]}
        for found in comparison.differences
        for name, values in found["values"].items()
    ]
    looks = [
        {"arm_name": name} | _row(each)
        for name, own in (comparison.design.looks if comparison.design else {}).items()
        for each in own
    ]
    measured = [name for name in _columns(RunFacts) if name != "outcomes"]
    return {
        "outcomes": ([*_columns(Contrast), *about], contrasts),
        "problems": (_columns(ProblemTest), [_row(test) for test in comparison.problem_tests]),
        "curves": (["chart", "x_label", "y_label", "arm_name", "x", "value", "low", "high"],
                   list(_points(comparison))),
        "counterfactuals": (_columns(CounterfactualClipping), [_row(found) for found in comparison.shadows]),
        "claims": (_columns(Claim), [_row(claim) for claim in comparison.claims]),
        "arms": (["name", "objective", "overrides", "seeds"], arms),
        "differences": (["key", "arm_name", "values", "allowed"], differences),
        "runs": (["arm_name", *measured, *(f"outcomes_{key}" for key in outcomes)], runs),
        "looks": (["arm_name", *_columns(Look)], looks),
        "left_out": (_columns(LeftOut), [_row(found) for found in comparison.left_out]),
    }  # fmt: skip


def csv_text(columns: Sequence[str], rows: Sequence[Row]) -> str:
    """A CSV file with a header, in UTF-8, with the quotes that RFC 4180 asks for."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(map(cell_text, columns))
    writer.writerows([cell_text(row.get(name)) for name in columns] for row in rows)
    return file.getvalue()


def cell_text(value: Any) -> str:
    """A value as pandas and R read it; a text that would be a formula gets an apostrophe before it."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, float):
        return repr(float(value))  # without the name of its type, which numpy's own would show
    if isinstance(value, int):
        return str(value)
    text = clean(value.value if isinstance(value, Enum) else value)
    # full-width signs begin a formula too, where a spreadsheet is set to some languages
    return f"'{text}" if unicodedata.normalize("NFKC", text[:1]) in tuple(FORMULA) else text


def _columns(kind: type) -> list[str]:
    """The fields of a dataclass, with estimates in columns of their own."""
    parts = [each.name for each in fields(Estimate)]
    return [
        name
        for each in fields(kind)
        for name in ([f"{each.name}_{part}" for part in parts] if each.type in ESTIMATES else [each.name])
    ]


def _row(item: Any) -> Row:
    """The values of a dataclass by the names of `_columns`."""
    found: Row = {}
    for each in fields(item):
        value = getattr(item, each.name)
        if isinstance(value, Estimate):
            found |= {f"{each.name}_{part.name}": getattr(value, part.name) for part in fields(value)}
        else:
            found[each.name] = value
    return found


def _points(comparison: Comparison) -> Iterator[Row]:
    """Every point of every curve."""
    for chart in comparison.charts:
        for series in chart.series:
            for x, value, low, high in zip(series.x, series.value, series.low, series.high, strict=True):
                yield {
                    "chart": chart.key, "x_label": chart.x_label, "y_label": chart.y_label,
                    "arm_name": series.arm_name, "x": x, "value": value, "low": low, "high": high,
                }  # fmt: skip
