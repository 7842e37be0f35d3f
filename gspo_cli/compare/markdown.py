"""The report as Markdown, and the words of its numbers and tables, which the page sets in its own way.

Tables hold plain text: whoever sets one escapes it. Model text is data, and never markup."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gspo_cli.compare.conversations import printable, shared_start
from gspo_cli.compare.figures import notes
from gspo_cli.compare.result import Comparison, Contrast, Estimate, Outcome, ProblemTest, Verdict
from gspo_cli.console.words import MISSING, clean, duration, number, share

MAIN = (  # outcomes on the first screen, beside the primary one
    "auc",
    "steps_to_threshold",
    "tokens_to_threshold",
    "final_reward",
    "collapses",
    "clip_token",
    "clip_sequence",
)
MAIN_ROWS = 8
UNMEASURED, NO_VERDICT = "not measured", "no verdict"
UNIFORM = "The arms differ in nothing but their algorithm and seeds."
READING = (  # of the numbers in the tables of outcomes
    "Arms: interquartile means over seeds with bootstrap intervals. Differences: of means, with t intervals. "
    "In brackets after p: adjusted for the number of outcomes; intervals are not, so that one may exclude 0 "
    'beside "not distinguishable".'
)
PLAIN = {"s", "share", "count"}  # units that the numbers themselves show


@dataclass(frozen=True)
class Table:
    """Rows of plain text. `kinds` has a letter per column: a arm, t text, n number, w many words, c code."""

    title: str
    head: Sequence[str]
    kinds: str
    rows: Sequence[Sequence[str]]


def value_words(value: float | None, unit: str = "") -> str:
    """A number as its unit is read: a share, a duration, or significant digits; – where there is none."""
    if value is None or not math.isfinite(value):
        return MISSING
    sign, size = "-" if value < 0 else "", abs(value)
    if unit == "s":
        return sign + (duration(size) if size >= 10 else f"{number(size)}s")
    return sign + (share(size) if unit == "share" else number(size))


def estimate_words(estimate: Estimate, unit: str = "") -> str:
    """0.81 [0.78, 0.85], or the value alone where it has no interval."""
    value = value_words(estimate.value, unit)
    if value == MISSING or estimate.low is None or estimate.high is None:
        return value
    return f"{value} [{value_words(estimate.low, unit)}, {value_words(estimate.high, unit)}]"


def verdict_words(outcome: Outcome, contrast: Contrast) -> str:
    """The verdict, and whether it is for the better."""
    sides = (contrast.arm, contrast.baseline)
    if any(side.of is not None for side in sides):
        return f"{NO_VERDICT}: {' and '.join(map(_reached, sides))} reached"
    if contrast.arm.value is None and contrast.baseline.value is None:
        return UNMEASURED
    if contrast.verdict is Verdict.void:
        return NO_VERDICT
    if contrast.verdict is Verdict.not_distinguishable or outcome.better == "none":
        return contrast.verdict.value
    good = contrast.verdict.value == outcome.better
    return f"{contrast.verdict.value}: {'better' if good else 'worse'}"


def _reached(side: Estimate) -> str:
    return f"{side.n} of {side.n if side.of is None else side.of}"


def p_words(tested: Contrast | ProblemTest) -> str:
    """p, and in brackets the adjusted one where it is another."""
    p, adjusted = (value_words(p) if p is None else number(p, 2) for p in (tested.p, tested.p_adjusted))
    return p if adjusted in (p, MISSING) else f"{p} ({adjusted})"


def title_words(outcome: Outcome) -> str:
    """The outcome with its unit, where its numbers do not show that."""
    shown = outcome.unit and outcome.unit not in PLAIN and outcome.unit not in outcome.title.lower()
    return f"{outcome.title} ({outcome.unit})" if shown else outcome.title


def paired_off(comparison: Comparison) -> list[tuple[Outcome, Contrast]]:
    """All contrasts with their outcomes, in the order of the outcomes."""
    by_key: dict[str, list[Contrast]] = {}
    for contrast in comparison.contrasts:
        by_key.setdefault(contrast.outcome, []).append(contrast)
    return [
        (outcome, contrast) for outcome in comparison.outcomes for contrast in by_key.get(outcome.key, [])
    ]


def reading(comparison: Comparison) -> str:
    """How the numbers in the tables of outcomes are to be read."""
    return f"{READING} Level of intervals: {number(100 * comparison.level)}%."


def main_pairs(comparison: Comparison) -> list[tuple[Outcome, Contrast]]:
    """The primary outcome and the most important others: as many as fit a screen, two at least."""
    pairs = paired_off(comparison)
    arms = {contrast.arm_name for _, contrast in pairs}
    measured = {outcome.key for outcome, contrast in pairs if _has_result(contrast)}
    primary = [outcome.key for outcome in comparison.outcomes[:1]]
    others = [key for key in MAIN if key in measured and key not in primary]
    chosen = [*primary, *others][: max(2, MAIN_ROWS // max(1, len(arms)))]
    return [(outcome, contrast) for key in chosen for outcome, contrast in pairs if outcome.key == key]


def _has_result(contrast: Contrast) -> bool:
    sides = (contrast.arm, contrast.baseline)
    return contrast.arm.value is not None or any(side.of is not None for side in sides)


def main_table(comparison: Comparison) -> Table:
    """What stands on the first screen."""
    pairs = main_pairs(comparison)
    arms = list(dict.fromkeys(contrast.arm_name for _, contrast in pairs))
    several = len(arms) > 1
    rows = [
        [
            *_contrast_cells(outcome, contrast, several),
            p_words(contrast),
            verdict_words(outcome, contrast),
        ]
        for outcome, contrast in pairs
    ]
    head = [*_contrast_head(comparison, arms), "p (adjusted)", "Verdict"]
    return Table("The most important outcomes", head, "t" + "a" * several + "nnnnt", rows)


def outcome_table(comparison: Comparison) -> Table:
    """Every outcome, with all that is known of its contrasts."""
    pairs = paired_off(comparison)
    arms = list(dict.fromkeys(contrast.arm_name for _, contrast in pairs))
    several = len(arms) > 1
    found = {outcome.key for outcome, _ in pairs}
    rows = [
        [
            *_contrast_cells(outcome, contrast, several),
            p_words(contrast),
            _seeds(contrast),
            value_words(contrast.detectable, outcome.unit),
            verdict_words(outcome, contrast),
            contrast.sentence,
        ]
        for outcome, contrast in pairs
    ]
    columns = 4 + several
    blank = [MISSING] * (columns + 2)
    rows += [[title_words(o), *blank, UNMEASURED, ""] for o in comparison.outcomes if o.key not in found]
    more = ["p (adjusted)", "Seeds (needed)", "Detectable", "Verdict", "In words"]
    kinds = "t" + "a" * several + "nnnnnntw"
    return Table("All outcomes", [*_contrast_head(comparison, arms), *more], kinds, rows)


def problem_table(comparison: Comparison) -> Table:
    """Held-out problems by who solves them."""
    rows = [
        [
            f"{test.arm_name} against {test.baseline_name}",
            *(
                value_words(v)
                for v in (test.problems, test.both, test.only_arm, test.only_baseline, test.neither)
            ),
            estimate_words(test.difference),
            p_words(test),
            test.sentence,
        ]
        for test in comparison.problem_tests
    ]
    head = ["Arms", "Problems", "Both", "Only arm", "Only baseline", "Neither", "Difference"]
    head += ["p (adjusted)", "In words"]
    return Table("Held-out problems", head, "tnnnnnnnw", rows)


def curve_table(comparison: Comparison) -> Table:
    """Where the curves of each chart begin and end."""
    rows = []
    for chart in comparison.charts:
        for series in chart.series:
            known = [i for i, v in enumerate(series.value) if v is not None and math.isfinite(v)]
            if known:
                first, last = known[0], known[-1]
                end = Estimate(series.value[last], series.low[last], series.high[last])
                span = f"{number(series.x[first])} to {number(series.x[last])} {chart.x_label}"
                cells = [value_words(series.value[first]), estimate_words(end), span]
                rows.append([chart.title, series.arm_name, *cells])
    return Table("Curves", ["Curve", "Arm", "First", "Last", "Over"], "tannt", rows)


def shadow_table(comparison: Comparison) -> Table:
    """What other objectives would have done on the same batches."""
    rows = [
        [
            shadow.arm_name,
            shadow.other,
            *(estimate_words(e, "share") for e in (shadow.clip_token_used, shadow.clip_token)),
            *(estimate_words(e, "share") for e in (shadow.clip_sequence_used, shadow.clip_sequence)),
            estimate_words(shadow.weight_correlation),
        ]
        for shadow in comparison.shadows
    ]
    head = ["Batches of", "Other objective", "Tokens clipped", "Tokens, by the other", "Answers clipped"]
    head += ["Answers, by the other", "Correlation of weights"]
    return Table("Shadow objectives", head, "atnnnnn", rows)


def claim_table(comparison: Comparison) -> Table:
    """The literature's numbers beside the measured ones."""
    rows = [[claim.claim, claim.paper, claim.source, claim.measured] for claim in comparison.claims]
    return Table("Claims", ["Claim", "Published", "Where", "Measured here"], "wwtw", rows)


def arm_table(comparison: Comparison) -> Table:
    """What the arms are."""
    rows = [
        [arm.name, arm.objective, " ".join(arm.overrides), ", ".join(map(str, arm.seeds))]
        for arm in comparison.arms
    ]
    return Table("Arms", ["Arm", "Objective", "Settings", "Seeds"], "awct", rows)


def difference_table(comparison: Comparison) -> Table:
    """Settings beside algorithm and seed in which runs differ."""
    arms = [arm.name for arm in comparison.arms]
    rows = [
        [
            row["key"],
            *(_values(row["values"].get(arm, [])) for arm in arms),
            "yes" if row["allowed"] else "no",
        ]
        for row in comparison.differences
    ]
    head = ["Setting", *arms, "Allowed by compare.allow"]
    return Table("Configuration differences", head, "c" * (1 + len(arms)) + "t", rows)


def run_table(comparison: Comparison) -> Table:
    """Every run that was compared, with its primary outcome."""
    primary = comparison.outcomes[0] if comparison.outcomes else None
    rows = [
        [
            arm.name,
            str(run.seed),
            run.status,
            str(run.iterations),
            value_words(run.num_tokens),
            value_words(run.wall_seconds, "s"),
            value_words(run.initial_score, "share"),
            value_words(run.first_reward),
            *([value_words(run.outcomes.get(primary.key), primary.unit)] if primary else []),
            run.folder,
        ]
        for arm in comparison.arms
        for run in arm.runs
    ]
    head = ["Arm", "Seed", "Status", "Iterations", "Tokens", "Time", "Score before", "First reward"]
    head += [primary.title] if primary else []
    return Table("Runs", [*head, "Folder"], "antnnnnn" + "n" * bool(primary) + "c", rows)


def left_out_table(comparison: Comparison) -> Table:
    """Folders that were given and not compared."""
    rows = [[folder.folder, folder.reason] for folder in comparison.left_out]
    return Table("Left out", ["Folder", "Why"], "cw", rows)


def judged(sample: Mapping[str, Any]) -> str:
    """How a conversation was judged, in a line."""
    parts = [f"reward {value_words(sample['reward'])}"]
    parts += [f"{name} {value_words(value)}" for name, value in sample["components"].items()]
    parts += [f"expected {sample['expected']}"] if sample["expected"] else []
    parts += ["cut at its length limit"] if sample["finish_reason"] == "length" else []
    return clean(", ".join([*parts, *([sample["excluded"]] if sample["excluded"] else [])]))


def text(comparison: Comparison) -> str:
    """report.md. The first chart stands beside it as held_out.svg."""
    first, *others = comparison.headline or ["Nothing was found."]
    parts = [f"# {_escaped(comparison.title)}", f"**{_escaped(first)}**", *map(_escaped, others)]
    parts += [_list("No verdict holds here", comparison.voided), _list("To know", comparison.cautions)]
    if comparison.charts:
        lead = comparison.charts[0]
        parts += [f"![{_escaped(lead.title)}](held_out.svg)", *map(_escaped, notes(lead))]
    about = f"task {comparison.task}, model {comparison.model}, baseline {comparison.baseline}"
    parts += [_table(main_table(comparison)), reading(comparison), _escaped(about)]
    parts += ["All figures, light and dark, are in [report.html](report.html)."]
    what = [f"{outcome.title}: {outcome.what}" for outcome in comparison.outcomes]
    parts += [_section(outcome_table(comparison)), _list("", what)]
    for table in (problem_table, curve_table, shadow_table, claim_table, arm_table):
        parts.append(_section(table(comparison)))
    parts += [
        _section(difference_table(comparison)) or f"## Configuration differences\n\n{_escaped(UNIFORM)}"
    ]
    parts += [_section(run_table(comparison)), _section(left_out_table(comparison)), _talks(comparison)]
    parts += [_list("## Methods", comparison.methods)]
    if comparison.reproduce:
        parts += ["## Reproduce", _fenced("\n".join(map(printable, comparison.reproduce)), "sh")]
    return "\n\n".join(part for part in parts if part) + "\n"


def _contrast_head(comparison: Comparison, arms: Sequence[str]) -> list[str]:
    who = ["Arm", "Arm's value"] if len(arms) > 1 else list(arms) or ["Arm's value"]
    return ["Outcome", *who, comparison.baseline, "Difference"]


def _contrast_cells(outcome: Outcome, contrast: Contrast, several: bool) -> list[str]:
    values = (contrast.arm, contrast.baseline, contrast.difference)
    who = [contrast.arm_name] if several else []
    return [title_words(outcome), *who, *(estimate_words(value, outcome.unit) for value in values)]


def _seeds(contrast: Contrast) -> str:
    one, other = contrast.arm.n, contrast.baseline.n
    have = str(one) if one == other else f"{one} and {other}"
    return have if contrast.seeds_needed is None else f"{have} ({contrast.seeds_needed})"


def _values(values: Iterable[Any]) -> str:
    written = [json.dumps(value, ensure_ascii=False, default=str) for value in values]
    return " or ".join(written) or MISSING


def _section(table: Table) -> str:
    return f"## {_escaped(table.title)}\n\n{_table(table)}" if table.rows else ""


def _table(table: Table) -> str:
    if not table.rows:
        return ""
    rules = [":--" if kind != "n" else "--:" for kind in table.kinds]
    rows = [map(_escaped, table.head), rules, *(map(_escaped, row) for row in table.rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def _list(title: str, lines: Sequence[str]) -> str:
    if not lines:
        return ""
    head = title if title.startswith("#") else f"**{title}**" if title else ""
    return f"{head}\n\n{''.join(f'- {_escaped(line)}{chr(10)}' for line in lines)}".strip()


def _talks(comparison: Comparison) -> str:
    parts = ["## Conversations"] if comparison.talks else []
    for talk in comparison.talks:
        parts.append(_escaped(f"Problem {talk.problem_id}, seed {talk.seed}"))
        parts[-1] = f"### {parts[-1]}"
        shared = shared_start([sample["messages"] for sample in talk.answers.values()])
        for place, (arm, sample) in enumerate(talk.answers.items()):
            if place == 0:
                parts += map(_message, sample["messages"][:shared])
            parts.append(f"#### {_escaped(arm)}: {_escaped(judged(sample))}")
            parts += map(_message, sample["messages"][shared:])
    return "\n\n".join(parts)


def _message(message: Mapping[str, str]) -> str:
    return f"**{_escaped(message['role'])}**\n\n{_fenced(printable(message['content']))}"


def _fenced(content: str, language: str = "text") -> str:
    """A block whose fence is longer than any inside."""
    longest = max(map(len, re.findall("`+", content)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{content}\n{fence}"


def _escaped(content: str) -> str:
    """One line that GitHub shows as it is, in a table too. Brackets stay readable where they are no link."""
    shown = re.sub(r"[\\`*|~$]", r"\\\g<0>", clean(content))
    shown = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", shown)
    shown = re.sub(r"&(?=#|\w+;)", "&amp;", shown)
    shown = re.sub(r"<(?=[A-Za-z/!?])", "&lt;", shown)
    shown = re.sub(r"\](?=[(\[:])", r"\\]", shown)
    shown = re.sub(r"^([#+=>-]+)(?=\s|$)|^>", r"\\\g<0>", shown)
    return re.sub(r"^(\d+)([.)])(?=\s|$)", r"\1\\\2", shown)
