"""The content of a report as data: sentences, tables of cells, figures and conversations, in their order.

Markdown, the HTML page and the terminal render this same data. All text here is plain: each of them escapes
it, as names come from users and conversations from models."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gspo_cli.compare.costs import CORES, GPUS, WALL
from gspo_cli.compare.result import Chart, Comparison, SideBySide, value_text
from gspo_cli.compare.tables import (
    ReportTable,
    arm_table,
    claim_table,
    cost_table,
    counterfactual_table,
    curve_table,
    difference_table,
    left_out_table,
    main_table,
    not_measured,
    outcome_table,
    problem_table,
    run_table,
)
from gspo_cli.console.words import clean, number

UNIFORM = "The arms differ only in their algorithm and seeds."
NO_HEADLINE = "Nothing was found."
READING = (  # how to read the tables of outcomes
    "Arms: interquartile means over seeds with bootstrap intervals. Differences: of means, with t intervals. "
    "In brackets after p: adjusted for the number of outcomes, that of the held-out score for the number of "
    'arms; intervals are not adjusted, so one may exclude 0 although the result is "not distinguishable".'
)
COSTS = (  # how to read the table of costs
    "Per point: mean cost by mean gain of held-out score in points (hundredths), with Fieller's interval; "
    "none where the gain is not significant, and too low on average where it barely is. Times are those of "
    "training, without evaluation. Shares of time: the rollout samples, scoring computes log-probabilities "
    "of the old policy and the reference."
)
UNITS = {
    CORES: "Core-seconds are seconds times threads times processes, busy or not.",
    GPUS: "GPU-seconds are seconds times GPUs, busy or not.",
    WALL: "Seconds per point are of the clock: how many cores or GPUs all runs had is not known, or not the "
    "same kind.",
}
JOINERS = "\n\t\u200d"  # allowed beside printable characters: lines, tabs and the joiner of emoji


@dataclass(frozen=True)
class ArmConversation:
    """The messages of one arm, as (role, text), after those that all arms share. `result` is its reward and
    how it ended."""

    arm_name: str
    result: str
    messages: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class ProblemConversations:
    """The conversations of all arms on one problem; `shared` are the messages that all begin with."""

    title: str
    shared: Sequence[tuple[str, str]]
    arms: Sequence[ArmConversation]


@dataclass(frozen=True)
class Section:
    """A titled part of the report. The page draws `charts` in place of the table; `note` is a paragraph,
    `sentences` are a list."""

    title: str
    table: ReportTable | None = None
    note: str = ""
    charts: Sequence[Chart] = ()
    sentences: Sequence[str] = ()
    definitions: Sequence[tuple[str, str]] = ()
    conversations: Sequence[ProblemConversations] = ()
    commands: Sequence[str] = ()

    @property
    def empty(self) -> bool:
        """Whether there is nothing to show."""
        lists = (self.charts, self.sentences, self.definitions, self.conversations, self.commands)
        return not (any(lists) or self.note or (self.table and self.table.rows))


@dataclass(frozen=True)
class ReportContent:
    """All of a report in its order: `headline` first, then why verdicts are inconclusive and caveats, the
    lead chart beside the main table, and the sections."""

    title: str
    subject: str
    headline: Sequence[str]
    inconclusive: Sequence[str]
    caveats: Sequence[str]
    lead: Chart | None
    main: ReportTable
    reading: str
    sections: Sequence[Section]
    arms: Sequence[str]
    runs: int


def content_of(comparison: Comparison) -> ReportContent:
    """The content of a comparison's report."""
    return ReportContent(
        title=comparison.title,
        subject=f"task {comparison.task}, model {comparison.model}, baseline {comparison.baseline}",
        headline=comparison.headline or [NO_HEADLINE],
        inconclusive=comparison.voided,
        caveats=comparison.cautions,
        lead=comparison.charts[0] if comparison.charts else None,
        main=main_table(comparison),
        reading=reading(comparison),
        sections=[section for section in sections(comparison) if not section.empty],
        arms=[arm.name for arm in comparison.arms],
        runs=sum(len(arm.runs) for arm in comparison.arms),
    )


def sections(comparison: Comparison) -> list[Section]:
    """All sections below the main table, in order, including empty ones."""
    meanings = [(outcome.title, outcome.what) for outcome in comparison.outcomes]
    differing = difference_table(comparison)
    return [
        Section("All outcomes", outcome_table(comparison), not_measured(comparison), definitions=meanings),
        Section("Held-out problems", problem_table(comparison)),
        Section("Curves", curve_table(comparison), charts=comparison.charts[1:]),
        Section(
            "Costs", cost_table(comparison), _costs_note(comparison), sentences=comparison.costs.sentences
        ),
        Section("Counterfactual objectives", counterfactual_table(comparison)),
        Section("Claims", claim_table(comparison)),
        Section("Arms", arm_table(comparison)),
        Section("Configuration differences", differing, "" if differing.rows else UNIFORM),
        Section("Runs", run_table(comparison)),
        Section("Left out", left_out_table(comparison)),
        Section("Conversations", conversations=[_conversations(each) for each in comparison.talks]),
        Section("Methods", sentences=comparison.methods),
        Section("Reproduce", commands=[printable(command) for command in comparison.reproduce]),
    ]


def _costs_note(comparison: Comparison) -> str:
    return f"{COSTS} {UNITS[comparison.costs.unit]}" if comparison.costs.arms else ""


def reading(comparison: Comparison) -> str:
    """How to read the numbers in the tables of outcomes."""
    return f"{READING} Level of intervals: {number(100 * comparison.level)}%."


def _conversations(found: SideBySide) -> ProblemConversations:
    messages = [
        [(each["role"], printable(each["content"])) for each in sample["messages"]]
        for sample in found.answers.values()
    ]
    start = shared_start(messages, examples=min(map(_examples, found.answers.values()), default=0))
    return ProblemConversations(
        title=f"Problem {found.problem_id}, seed {found.seed}",
        shared=messages[0][:start] if messages else [],
        arms=[
            ArmConversation(arm, score_text(sample), own[start:])
            for (arm, sample), own in zip(found.answers.items(), messages, strict=True)
        ],
    )


def score_text(sample: Mapping[str, Any]) -> str:
    """The reward of a conversation with its components, and how it ended, in a line."""
    parts = [f"reward {value_text(sample['reward'])}"]
    parts += [f"{name} {value_text(value)}" for name, value in sample["components"].items()]
    parts += [f"expected {sample['expected']}"] if sample["expected"] else []
    parts += ["cut at its length limit"] if sample["finish_reason"] == "length" else []
    return clean(", ".join([*parts, *([sample["excluded"]] if sample["excluded"] else [])]))


def printable(text: str) -> str:
    """Multi-line text without control characters and characters that UTF-8 cannot encode."""
    shown = text.replace("\r\n", "\n")
    return "".join(
        c if c.isprintable() or c in JOINERS else " " if unicodedata.category(c) == "Zs" else "�"
        for c in shown
    )


def _examples(sample: Mapping[str, Any]) -> int:
    """Answers in a conversation that belong to its prompt; runs before `turns` was logged have none."""
    said = sum(each["role"] == "assistant" for each in sample["messages"])
    return said - sample.get("turns", said)


def shared_start(conversations: Sequence[Sequence[tuple[str, str]]], examples: int = 0) -> int:
    """The number of initial messages that all conversations share, before the first model answer; the first
    `examples` answers are part of the prompt."""
    for place, messages in enumerate(zip(*conversations, strict=False)):
        answered = messages[0][0] == "assistant"
        if any(message != messages[0] for message in messages) or (answered and not examples):
            return place
        examples -= answered
    return min((len(messages) for messages in conversations), default=0)
