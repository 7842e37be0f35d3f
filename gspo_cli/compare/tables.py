"""The tables of a report as data: cells of plain text with their units, under typed columns.

All text here is unescaped: names come from users, and whatever renders a table escapes them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from gspo_cli.compare.result import (
    Comparison,
    Contrast,
    Estimate,
    OutcomeSpec,
    ProblemTest,
    Verdict,
    value_text,
)
from gspo_cli.console.words import MISSING, number

MAIN = (  # outcomes of the main table, beside the primary one
    "auc",
    "steps_to_threshold",
    "tokens_to_threshold",
    "final_reward",
    "collapses",
    "clip_token",
    "clip_sequence",
)
MAIN_ROWS = 8
UNMEASURED, NO_VERDICT = "not measured", "inconclusive"
SELF_EVIDENT = {"s", "share", "count"}  # units that the numbers show or that need no name


class ColumnKind(Enum):
    """What a column contains; renderers align and style it accordingly."""

    arm = "arm"
    text = "text"
    number = "number"
    prose = "prose"
    code = "code"
    verdict = "verdict"


ARM, TEXT, NUMBER, PROSE, CODE, VERDICT = ColumnKind


class Tone(Enum):
    """How a verdict is marked."""

    good = "good"
    bad = "bad"
    none = "none"


@dataclass(frozen=True)
class Cell:
    """One value as text with its unit; `aside` is an interval or another number in brackets beside it."""

    text: str
    aside: str = ""
    tone: Tone | None = None

    def __str__(self) -> str:
        return f"{self.text} {self.aside}".rstrip()


@dataclass(frozen=True)
class ReportTable:
    """Rows of cells under named columns. Where `grouped`, rows with the same first cell belong together."""

    title: str
    columns: Sequence[tuple[str, ColumnKind]]
    rows: Sequence[Sequence[Cell]]
    grouped: bool = False

    @property
    def stacks(self) -> bool:
        """Whether a narrow page shows each row as a block. Rows of numbers stay rows; they may scroll."""
        kinds = {kind for _, kind in self.columns}
        return NUMBER not in kinds or bool(kinds & {PROSE, VERDICT})


def main_table(comparison: Comparison) -> ReportTable:
    """The primary outcome and the most important others."""
    return _contrast_table("The most important outcomes", comparison, main_contrasts(comparison), full=False)


def main_contrasts(comparison: Comparison) -> list[tuple[OutcomeSpec, Contrast]]:
    """The contrasts of the main table: as many outcomes as fit a screen, two at least."""
    pairs = _by_outcome(comparison)
    arms = {contrast.arm_name for _, contrast in pairs}
    measured = {outcome.key for outcome, contrast in pairs if _has_result(contrast)}
    primary = [outcome.key for outcome in comparison.outcomes[:1]]
    others = [key for key in MAIN if key in measured and key not in primary]
    chosen = [*primary, *others][: max(2, MAIN_ROWS // max(1, len(arms)))]
    return [(outcome, contrast) for key in chosen for outcome, contrast in pairs if outcome.key == key]


def main_tables_by_arm(comparison: Comparison) -> dict[str, ReportTable]:
    """The main table split into one for each arm, for narrow screens."""
    pairs = main_contrasts(comparison)
    return {
        arm: _contrast_table(
            f"{arm} against {comparison.baseline}",
            comparison,
            [(outcome, contrast) for outcome, contrast in pairs if contrast.arm_name == arm],
            full=False,
        )
        for arm in dict.fromkeys(contrast.arm_name for _, contrast in pairs)
    }


def outcome_table(comparison: Comparison) -> ReportTable:
    """Every outcome that any run measured, with all results of its contrasts."""
    measured = _measured(comparison)
    pairs = [(outcome, contrast) for outcome, contrast in _by_outcome(comparison) if outcome.key in measured]
    return _contrast_table("All outcomes", comparison, pairs, full=True)


def not_measured(comparison: Comparison) -> str:
    """The outcomes that no run measured, with the reasons, in a sentence; empty if all were measured."""
    measured = _measured(comparison)
    reasons: dict[str, list[str]] = {}
    for outcome in comparison.outcomes:
        if outcome.key not in measured:
            reasons.setdefault(outcome.missing or outcome.if_missing, []).append(outcome.title)
    parts = [", ".join(titles) + (f" ({why})" if why else "") for why, titles in reasons.items()]
    return f"Not measured: {'; '.join(parts)}." if parts else ""


def _measured(comparison: Comparison) -> set[str]:
    """Keys of the outcomes that any run measured."""
    contrasts = comparison.contrasts
    return {each.outcome for each in contrasts if _has_result(each) or each.baseline.value is not None}


def _by_outcome(comparison: Comparison) -> list[tuple[OutcomeSpec, Contrast]]:
    """All contrasts with their outcomes, in the order of the outcomes."""
    return [
        (outcome, contrast)
        for outcome in comparison.outcomes
        for contrast in comparison.contrasts
        if contrast.outcome == outcome.key
    ]


def _has_result(contrast: Contrast) -> bool:
    sides = (contrast.arm, contrast.baseline)
    return contrast.arm.value is not None or any(side.of is not None for side in sides)


def _contrast_table(
    title: str, comparison: Comparison, pairs: Sequence[tuple[OutcomeSpec, Contrast]], full: bool
) -> ReportTable:
    """A row per contrast. A single arm heads its column; several have a column with their names. `full` adds
    seeds, the detectable difference and the sentence."""
    arms = list(dict.fromkeys(contrast.arm_name for _, contrast in pairs))
    several = len(arms) > 1
    names = [("Arm", ARM), ("Arm's value", NUMBER)] if several else [(_only(arms), NUMBER)]
    columns = [("Outcome", TEXT), *names, (comparison.baseline, NUMBER)]
    columns += [("Difference", NUMBER), ("p (adjusted)", NUMBER)]
    if full:
        columns += [("Seeds (needed)", NUMBER), ("Detectable", NUMBER)]
    columns += [("Verdict", VERDICT), *([("Summary", PROSE)] if full else [])]
    rows = []
    for outcome, contrast in pairs:
        values = (contrast.arm, contrast.baseline, contrast.difference)
        row = [Cell(_title(outcome)), *([Cell(contrast.arm_name)] if several else [])]
        row += [*(estimate_cell(value, outcome.unit) for value in values), p_cell(contrast)]
        if full:
            row += [_seeds_cell(contrast), Cell(value_text(contrast.detectable, outcome.unit))]
        rows.append([*row, verdict_cell(outcome, contrast), *([Cell(contrast.sentence)] if full else [])])
    return ReportTable(title, columns, rows, grouped=several)


def _only(arms: Sequence[str]) -> str:
    return arms[0] if arms else "Arm's value"


def _title(outcome: OutcomeSpec) -> str:
    """The outcome with its unit where the numbers do not show it."""
    shown = outcome.unit and outcome.unit not in SELF_EVIDENT and outcome.unit not in outcome.title.lower()
    return f"{outcome.title} ({outcome.unit})" if shown else outcome.title


def estimate_cell(estimate: Estimate, unit: str = "") -> Cell:
    """A value with its interval beside it."""
    return Cell(value_text(estimate.value, unit), estimate.interval_text(unit))


def p_cell(tested: Contrast | ProblemTest) -> Cell:
    """p, with the adjusted value beside it if it differs."""
    p, adjusted = (value_text(p) if p is None else number(p, 2) for p in (tested.p, tested.p_adjusted))
    return Cell(p, "" if adjusted in (p, MISSING) else f"({adjusted})")


def verdict_cell(outcome: OutcomeSpec, contrast: Contrast) -> Cell:
    """The verdict, and whether it is for the better."""
    sides, verdict = (contrast.arm, contrast.baseline), contrast.verdict
    if any(side.of is not None for side in sides):
        reached = " and ".join(f"{side.n} of {side.of or side.n}" for side in sides)
        return Cell(f"{NO_VERDICT}: {reached} reached", tone=Tone.none)
    if all(side.value is None for side in sides):
        return Cell(UNMEASURED, tone=Tone.none)
    if verdict is Verdict.void:
        return Cell(NO_VERDICT, tone=Tone.none)
    if verdict in (Verdict.not_distinguishable, Verdict.equivalent):
        return Cell(verdict.value, tone=Tone.none)
    if not outcome.is_directed:
        return Cell(verdict.value)
    better = verdict.value == outcome.better
    return Cell(f"{verdict.value}: {'better' if better else 'worse'}", tone=Tone.good if better else Tone.bad)


def _seeds_cell(contrast: Contrast) -> Cell:
    one, other = contrast.arm.n, contrast.baseline.n
    present = str(one) if one == other else f"{one} and {other}"
    return Cell(present, "" if contrast.seeds_needed is None else f"({contrast.seeds_needed})")


def problem_table(comparison: Comparison) -> ReportTable:
    """Held-out problems by who solves them."""
    rows = [
        [
            Cell(f"{test.arm_name} against {test.baseline_name}"),
            *_cells(
                value_text(count)
                for count in (test.problems, test.both, test.only_arm, test.only_baseline, test.neither)
            ),
            estimate_cell(test.difference),
            p_cell(test),
            Cell(test.sentence),
        ]
        for test in comparison.problem_tests
    ]
    counts = ("Problems", "Both", "Only arm", "Only baseline", "Neither", "Difference", "p (adjusted)")
    columns = {"Arms": TEXT} | dict.fromkeys(counts, NUMBER) | {"Summary": PROSE}
    return ReportTable("Held-out problems", list(columns.items()), rows)


def curve_table(comparison: Comparison) -> ReportTable:
    """Where the curves of each chart begin and end."""
    rows = []
    for chart in comparison.charts:
        for series in chart.series:
            known = [i for i, v in enumerate(series.value) if v is not None and math.isfinite(v)]
            if known:
                first, last = known[0], known[-1]
                end = Estimate(series.value[last], series.low[last], series.high[last])
                span = f"{number(series.x[first])} to {number(series.x[last])} {chart.x_label}"
                cells = [Cell(value_text(series.value[first])), estimate_cell(end), Cell(span)]
                rows.append([Cell(chart.title), Cell(series.arm_name), *cells])
    columns = {
        "Curve": TEXT,
        "Arm": ARM,
        "First": NUMBER,
        "Last": NUMBER,
    }
    return ReportTable("Curves", [*columns.items(), ("Over", TEXT)], rows, grouped=True)


def counterfactual_table(comparison: Comparison) -> ReportTable:
    """What other objectives would have clipped on the same batches."""
    rows = [
        [
            Cell(found.arm_name),
            Cell(found.other),
            *(estimate_cell(each, "share") for each in (found.clip_token_used, found.clip_token)),
            *(estimate_cell(each, "share") for each in (found.clip_sequence_used, found.clip_sequence)),
            estimate_cell(found.weight_correlation),
        ]
        for found in comparison.shadows
    ]
    numbers = ("Tokens clipped", "Tokens clipped by other", "Answers clipped", "Answers clipped by other")
    columns = {"Batches from": ARM, "Other objective": TEXT}
    columns |= dict.fromkeys((*numbers, "Correlation of weights"), NUMBER)
    return ReportTable("Counterfactual objectives", list(columns.items()), rows)


def cost_table(comparison: Comparison) -> ReportTable:
    """What learning cost in each arm, and where the time went."""
    unit = comparison.costs.unit
    rows = [
        [
            Cell(cost.arm_name),
            estimate_cell(cost.gain),
            *(estimate_cell(each) for each in (cost.tokens_per_point, cost.time_per_point)),
            Cell(value_text(cost.seconds_per_iteration, "s")),
            *_cells(value_text(part, "share") for part in cost.split.values()),
        ]
        for cost in comparison.costs.arms
    ]
    stages = [stage.capitalize() for cost in comparison.costs.arms[:1] for stage in cost.split]
    numbers = ["Gain (points)", "Tokens per point", f"{unit[:1].upper()}{unit[1:]} per point"]
    columns = {"Arm": ARM} | dict.fromkeys([*numbers, "Time per iteration", *stages], NUMBER)
    return ReportTable("Costs", list(columns.items()), rows)


def claim_table(comparison: Comparison) -> ReportTable:
    """Published claims and numbers beside the measured ones."""
    rows = [_cells([each.claim, each.paper, each.source, each.measured]) for each in comparison.claims]
    columns = {
        "Claim": PROSE,
        "Published": PROSE,
        "Where": TEXT,
        "Measured here": PROSE,
    }
    return ReportTable("Claims", list(columns.items()), rows)


def arm_table(comparison: Comparison) -> ReportTable:
    """The objective, settings and seeds of each arm."""
    rows = [
        _cells([arm.name, arm.objective, " ".join(arm.overrides), ", ".join(map(str, arm.seeds))])
        for arm in comparison.arms
    ]
    columns = {
        "Arm": ARM,
        "Objective": PROSE,
        "Settings": CODE,
        "Seeds": TEXT,
    }
    return ReportTable("Arms", list(columns.items()), rows)


def difference_table(comparison: Comparison) -> ReportTable:
    """Settings other than algorithm and seed that differ between runs."""
    arms = [arm.name for arm in comparison.arms]
    rows = [
        _cells([row["key"], *(_values(row["values"].get(arm, [])) for arm in arms), _yes(row["allowed"])])
        for row in comparison.differences
    ]
    columns = [("Setting", CODE), *((arm, CODE) for arm in arms)]
    return ReportTable("Configuration differences", [*columns, ("Allowed by compare.allow", TEXT)], rows)


def run_table(comparison: Comparison) -> ReportTable:
    """Every compared run, with its primary outcome."""
    primary = comparison.outcomes[:1]
    rows = [
        _cells(
            [
                arm.name,
                str(run.seed),
                run.status,
                str(run.iterations),
                value_text(run.num_tokens),
                value_text(run.wall_seconds, "s"),
                value_text(run.initial_score, "share"),
                value_text(run.first_reward),
                *(value_text(run.outcomes.get(outcome.key), outcome.unit) for outcome in primary),
                run.folder,
            ]
        )
        for arm in comparison.arms
        for run in arm.runs
    ]
    numbers = ["Iterations", "Tokens", "Time", "Score before", "First reward"]
    columns = [("Arm", ARM), ("Seed", NUMBER), ("Status", TEXT)]
    columns += [(name, NUMBER) for name in (*numbers, *(outcome.title for outcome in primary))]
    return ReportTable("Runs", [*columns, ("Folder", CODE)], rows)


def left_out_table(comparison: Comparison) -> ReportTable:
    """Given folders that are not compared."""
    rows = [_cells([each.folder, each.reason]) for each in comparison.left_out]
    return ReportTable("Left out", [("Folder", CODE), ("Why", PROSE)], rows)


def _cells(texts: Iterable[str]) -> list[Cell]:
    return [Cell(text) for text in texts]


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _values(values: Iterable[Any]) -> str:
    written = [json.dumps(value, ensure_ascii=False, default=str) for value in values]
    return " or ".join(written) or MISSING
