"""The content of a summary across tasks and models, in the form that all reports render."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gspo_cli.compare.across_sentences import counted
from gspo_cli.compare.content import ReportContent, Section, printable
from gspo_cli.compare.result import Across, Comparison, Contrast, OutcomeSpec, SectionResult, Summary, Verdict
from gspo_cli.compare.tables import (
    ARM,
    CODE,
    NO_VERDICT,
    NUMBER,
    PROSE,
    TEXT,
    VERDICT,
    Cell,
    ColumnKind,
    ReportTable,
    estimate_cell,
    p_cell,
    verdict_cell,
)
from gspo_cli.console.words import MISSING, number

SECTION = "section-"  # and its number: anchors, figures and folders of one of several comparisons
READING = (
    "Each row is the held-out score at the end of that section's own budget; p is adjusted over the "
    "algorithms of the section. Scores of different sections are not comparable: tasks and models differ."
)


def comparisons(found: Comparison | Across) -> list[tuple[Comparison, str]]:
    """Each comparison of a report, with the name of its section where there are several."""
    if isinstance(found, Comparison):
        return [(found, "")]
    return [(each, f"{SECTION}{place}") for place, each in enumerate(found.sections, start=1)]


def arms_across(found: Comparison | Across) -> list[str]:
    """The arms of all sections; each has one place, and so one color, in the whole report."""
    return list(dict.fromkeys(arm.name for section, _ in comparisons(found) for arm in section.arms))


def summary_content(across: Across) -> ReportContent:
    """The summary as the first part of a report."""
    summary = across.summary
    return ReportContent(
        title=summary.title,
        subject=f"sections: {'; '.join(summary.sections)}",
        headline=summary.headline,
        inconclusive=(),
        caveats=caveats(summary),
        lead=None,
        main=result_table(across),
        reading=f"{READING} Level of intervals: {_levels(across)}.",
        sections=[section for section in _sections(summary) if not section.empty],
        arms=arms_across(across),
        runs=sum(len(arm.runs) for section in across.sections for arm in section.arms),
    )


def _levels(across: Across) -> str:
    """The level of intervals, and of each section whose stored looks were taken at another."""
    summary = across.summary
    others = [
        f"{section} {number(100 * found.level)}%"
        for section, found in zip(summary.sections, across.sections, strict=True)
        if found.level != summary.level
    ]
    return ", ".join([f"{number(100 * summary.level)}%", *others])


def caveats(summary: Summary) -> list[str]:
    """What is not counted or not compared, and why, as sentences."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for result in summary.results:
        if result.excluded:
            reasons.setdefault((result.section, result.excluded), []).append(result.contrast.arm_name)
    found = [
        f"Not counted across sections: {', '.join(arms)} on {section}: {why}"
        for (section, why), arms in reasons.items()
    ]
    return found + [
        f"Not compared: {each.section} ({counted(each.runs, 'run')}): {each.reason}"
        for each in summary.not_compared
    ]


def result_table(across: Across) -> ReportTable:
    """The primary outcome of every arm in every section."""
    primary = across.sections[0].outcomes[0]
    several = len({result.contrast.arm_name for result in across.summary.results}) > 1
    rows = [_row(primary, result) for result in across.summary.results]
    names = [("Section", TEXT), ("Arm", ARM), ("Baseline", ARM), ("Arm's score", NUMBER)]
    names += [("Baseline's score", NUMBER), ("Difference", NUMBER), ("p (adjusted)", NUMBER)]
    columns = [*names, ("Seeds", NUMBER), ("Verdict", VERDICT), ("Counted", TEXT)]
    return ReportTable("Held-out score in each section", columns, rows, grouped=several)


def _row(primary: OutcomeSpec, result: SectionResult) -> list[Cell]:
    contrast = result.contrast
    sides = (contrast.arm, contrast.baseline, contrast.difference)
    return [
        Cell(result.section),
        Cell(contrast.arm_name),
        Cell(contrast.baseline_name),
        *(estimate_cell(value, primary.unit) for value in sides),
        p_cell(contrast),
        Cell(seeds_text(contrast)),
        verdict_cell(primary, contrast),
        Cell("no" if result.excluded else "yes"),
    ]


def seeds_text(contrast: Contrast) -> str:
    """The seeds of the arm, and of the baseline where they differ."""
    one, other = contrast.arm.n, contrast.baseline.n
    return str(one) if one == other else f"{one} and {other}"


def _sections(summary: Summary) -> list[Section]:
    return [
        Section("Across sections", _arm_table(summary)),
        Section("Not compared", _table("Not compared", [
            (each.section, str(each.runs), each.reason) for each in summary.not_compared
        ], {"Section": TEXT, "Runs": NUMBER, "Why": PROSE})),
        Section("Left out", _table("Left out", [
            (each.folder, each.reason) for each in summary.left_out
        ], {"Folder": CODE, "Why": PROSE})),
        Section("Methods", sentences=summary.methods),
        Section("Reproduce", commands=[printable(command) for command in summary.reproduce]),
    ]  # fmt: skip


def _arm_table(summary: Summary) -> ReportTable:
    """Each arm over the sections that count."""
    rows = [
        [
            Cell(each.arm_name),
            Cell(each.baseline_name),
            Cell(str(len(each.sections))),
            *(Cell(MISSING if each.p_sign is None else str(n)) for n in (each.higher, each.lower)),
            Cell(number(each.p_sign, 2)),
            estimate_cell(each.mean),
            Cell(number(each.p, 2), "" if each.p_adjusted == each.p else f"({number(each.p_adjusted, 2)})"),
            Cell("" if each.further is None else each.further.interval_text()),
            Cell(NO_VERDICT if each.verdict is Verdict.void else each.verdict.value),
        ]
        for each in summary.arms
    ]
    numbers = (
        "Sections",
        "Higher",
        "Lower",
        "p of signs",
        "Mean difference",
        "p (adjusted)",
        "One more section",
    )
    columns = [("Arm", ARM), ("Baseline", ARM), *((name, NUMBER) for name in numbers), ("Verdict", VERDICT)]
    return ReportTable("Across sections", columns, rows)


def _table(title: str, rows: Sequence[Sequence[str]], columns: Mapping[str, ColumnKind]) -> ReportTable:
    return ReportTable(title, list(columns.items()), [[Cell(text) for text in row] for row in rows])
