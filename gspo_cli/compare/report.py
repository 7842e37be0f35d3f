"""Writes the report on a comparison, or on several with a summary across them: report.md, report.html,
report.json and the lead figures.

The Markdown and the page render the same content. The page needs no network and no script."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from enum import Enum
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from gspo_cli.compare.across_content import SECTION, comparisons, summary_content
from gspo_cli.compare.content import ProblemConversations, ReportContent, Section, content_of, printable
from gspo_cli.compare.figures import line_chart, notes, palette, swatch
from gspo_cli.compare.result import Across, Comparison
from gspo_cli.compare.tables import Cell, ColumnKind, ReportTable
from gspo_cli.console.words import clean
from gspo_cli.run.files import make_folder, write_atomically

FIGURE = "held_out.svg"
STYLE = Path(__file__).with_name("page.css")
ROLES = ("system", "user", "assistant", "tool")
LINKED = re.compile(r"https?://[^\s<>\"']*[^\s<>\"'.,;:)\]]|arXiv:\d{4}\.\d{4,5}")


def write_report(found: Comparison | Across, folder: Path) -> list[Path]:
    """Write all files of the report; all are rendered before the first is written. Raises UserError if one
    cannot be written."""
    texts = {
        "report.md": markdown(found),
        "report.html": page(found),
        "report.json": json_text(found),
    }
    for comparison, prefix in _prefixed(found):
        if comparison.charts:
            arms = [arm.name for arm in comparison.arms]
            texts[prefix + FIGURE] = line_chart(comparison.charts[0], arms, alone=True) + "\n"
    make_folder(folder, "compare.folder")
    for name, text in texts.items():
        write_atomically(folder / name, text)
    for path in [folder / FIGURE, *folder.glob(f"{SECTION}*-{FIGURE}")]:
        if path.name not in texts:
            path.unlink(missing_ok=True)  # one of an earlier report does not belong to this one
    return [folder / name for name in texts]


def _prefixed(found: Comparison | Across) -> list[tuple[Comparison, str]]:
    """Each comparison of a report with what the names of its anchors and figures begin with."""
    return [(each, name and f"{name}-") for each, name in comparisons(found)]


def json_text(found: Comparison | Across) -> str:
    """The result as JSON, keys sorted; numbers that are not finite become null."""
    return json.dumps(plain(found), indent=1, sort_keys=True, allow_nan=False) + "\n"


def plain(value: Any) -> Any:
    """Dataclasses, enums and collections as JSON values."""
    if is_dataclass(value):
        return {each.name: plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def markdown(found: Comparison | Across) -> str:
    """report.md. The lead chart of a comparison is the file held_out.svg beside it."""
    parts = [] if isinstance(found, Comparison) else [_document(summary_content(found), "", 1)]
    level = 1 + len(parts)  # of the title of a comparison
    return "\n".join([*parts, *(_document(content_of(each), p, level) for each, p in _prefixed(found))])


def _document(content: ReportContent, prefix: str, level: int) -> str:
    first, *others = content.headline
    parts = [f"{'#' * level} {_escaped(content.title)}", f"**{_escaped(first)}**", *map(_escaped, others)]
    for title, lines in (("Inconclusive", content.inconclusive), ("Caveats", content.caveats)):
        parts += [f"**{title}**\n\n{_list(lines)}"] if lines else []
    if content.lead:
        figure = f"![{_escaped(content.lead.title)}]({prefix}{FIGURE})"
        parts += [figure, *map(_escaped, notes(content.lead))]
    parts += [_table(content.main), content.reading, _escaped(content.subject)]
    parts += ["All figures, light and dark, are in [report.html](report.html)."] if content.lead else []
    for section in content.sections:
        parts += [f"{'#' * (level + 1)} {_escaped(section.title)}", *_section(section, level + 1)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _section(section: Section, level: int) -> list[str]:
    parts = [_table(section.table)] if section.table else []
    parts += [_escaped(section.note), _list([f"{term}: {meaning}" for term, meaning in section.definitions])]
    parts.append(_list(section.sentences))
    for problem in section.conversations:
        parts += _conversations(problem, "#" * (level + 1))
    return [*parts, _fenced("\n".join(section.commands), "sh") if section.commands else ""]


def _table(table: ReportTable) -> str:
    if not table.rows:
        return ""
    names = [_escaped(name) for name, _ in table.columns]
    rules = ["--:" if kind is ColumnKind.number else ":--" for _, kind in table.columns]
    rows = [names, rules, *([_escaped(str(cell)) for cell in row] for row in table.rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {_escaped(line)}" for line in lines)


def _conversations(problem: ProblemConversations, marks: str) -> list[str]:
    parts = [f"{marks} {_escaped(problem.title)}", *_messages(problem.shared)]
    for conversation in problem.arms:
        parts.append(f"{marks}# {_escaped(conversation.arm_name)}: {_escaped(conversation.result)}")
        parts += _messages(conversation.messages)
    return parts


def _messages(messages: Sequence[tuple[str, str]]) -> list[str]:
    return [f"**{_escaped(role)}**\n\n{_fenced(text)}" for role, text in messages]


def _fenced(text: str, language: str = "text") -> str:
    """A block whose fence is longer than any inside."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def _escaped(text: str) -> str:
    """One line that GitHub shows as it is, in a table too. Brackets that form no link stay readable."""
    shown = re.sub(r"[\\`*|~$]", r"\\\g<0>", clean(text))
    shown = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", shown)
    shown = re.sub(r"&(?=#|\w+;)", "&amp;", shown)
    shown = re.sub(r"<(?=[A-Za-z/!?])", "&lt;", shown)
    shown = re.sub(r"\](?=[(\[:])", r"\\]", shown)
    shown = re.sub(r"^([#+=>-]+)(?=\s|$)|^>", r"\\\g<0>", shown)
    return re.sub(r"^(\d+)([.)])(?=\s|$)", r"\1\\\2", shown)


def page(found: Comparison | Across) -> str:
    """report.html. All texts are cleaned and escaped on output; only figures and styles are markup."""
    parts = [(content_of(_with_own_figures(each, prefix)), prefix) for each, prefix in _prefixed(found)]
    if isinstance(found, Across):
        parts = [(summary_content(found), ""), *parts]
    arms = list(parts[0][0].arms)
    return (
        _environment()
        .get_template("page.html.jinja")
        .render(
            parts=parts,
            style=Markup(STYLE.read_text(encoding="utf-8") + palette()),
            swatches=defaultdict(str, {arm: Markup(swatch(place)) for place, arm in enumerate(arms)}),
            draw=lambda chart: Markup(line_chart(chart, arms)),
            notes=notes,
            roles=ROLES,
        )
    )


def _with_own_figures(comparison: Comparison, prefix: str) -> Comparison:
    """The comparison with keys of charts, from which their ids on the page come, that no other one has."""
    return replace(comparison, charts=[replace(each, key=prefix + each.key) for each in comparison.charts])


@cache
def _environment() -> Environment:
    found = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=_cleaned,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    filters = (anchor, breakable, groups, linked, minus, verbatim)
    found.filters |= {each.__name__: each for each in filters}
    return found


def _cleaned(value: Any) -> Any:
    """A text of the template on one line, without control characters; jinja escapes it after this."""
    return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def verbatim(text: str) -> Markup:
    """Text of several lines, escaped."""
    return escape(printable(text))


def breakable(text: str) -> Markup:
    """A name whose line may break after each `=`."""
    return Markup("=<wbr>").join(clean(text).split("="))


def minus(text: str) -> str:
    """Numbers with a typographic minus."""
    return re.sub(r"-(?=\d)", "−", text)


def anchor(title: str) -> str:
    """The id of a section."""
    return title.lower().replace(" ", "-")


def linked(text: str) -> Markup:
    """Text whose addresses and arXiv numbers are links."""
    parts, end, line = [], 0, clean(text)
    for found in LINKED.finditer(line):
        address = found[0].replace("arXiv:", "https://arxiv.org/abs/")
        link = Markup('<a href="{}">{}</a>').format(address, found[0])
        parts += [escape(line[end : found.start()]), link]
        end = found.end()
    return Markup("").join([*parts, line[end:]])


def groups(table: ReportTable) -> list[tuple[str, list[Sequence[Cell]]]]:
    """Rows by their first cell where the table is grouped; else all rows under no heading."""
    if not table.grouped:
        return [("", list(table.rows))]
    return [(heading, list(rows)) for heading, rows in groupby(table.rows, key=lambda row: row[0].text)]
