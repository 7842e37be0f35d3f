"""The report as one HTML page: no network, no script; everything in it that is not ours is escaped."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from gspo_cli.compare import markdown as words
from gspo_cli.compare.conversations import printable, shared_start
from gspo_cli.compare.figures import line_chart, notes, palette, swatch
from gspo_cli.compare.markdown import Table, judged
from gspo_cli.compare.result import Chart, Comparison, Talk
from gspo_cli.console.words import clean

STYLE = Path(__file__).with_name("page.css")
ROLES = ("system", "user", "assistant", "tool")
LINKED = re.compile(r"https?://[^\s<>\"']*[^\s<>\"'.,;:)\]]|arXiv:\d{4}\.\d{4,5}")
ASIDE = re.compile(r"(.*?\S) ([\[(].*[\])])")  # intervals and what is in brackets get a line of their own


def html(comparison: Comparison) -> str:
    """report.html."""
    body = [_head(comparison), _boxes(comparison), _first(comparison)]
    sections = [(title, content) for title, build in SECTIONS if (content := build(comparison))]
    body.append(_contents([title for title, _ in sections]))
    body += [
        f'<section><h2 id="{_anchor(title)}">{title}</h2>{content}</section>' for title, content in sections
    ]
    runs = sum(len(arm.runs) for arm in comparison.arms)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{_text(comparison.title)}</title>\n"
        f"<style>\n{STYLE.read_text(encoding='utf-8')}{palette()}\n</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in body if part)
        + f"\n</main>\n<footer>gspo-compare, from {runs} runs; all numbers are in report.json.</footer>\n"
        "</body>\n</html>\n"
    )


def _head(comparison: Comparison) -> str:
    first, *further = comparison.headline or ["Nothing was found."]
    about = f"task {comparison.task} · model {comparison.model} · baseline {comparison.baseline}"
    more = "".join(f'<p class="further">{_text(sentence)}</p>' for sentence in further)
    return (
        f'<header><h1>{_text(comparison.title)}</h1><p class="about">{_text(about)}</p>'
        f'<p class="verdict">{_text(first)}</p>{more}</header>'
    )


def _boxes(comparison: Comparison) -> str:
    voided = _box("No verdict holds here", comparison.voided, "box")
    return voided + _box("To know", comparison.cautions, "box note")


def _box(title: str, lines: Sequence[str], look: str) -> str:
    return f'<div class="{look}"><p><strong>{title}</strong></p>{_list(lines)}</div>' if lines else ""


def _first(comparison: Comparison) -> str:
    """The held-out curve and the main table, side by side where there is room."""
    chart = _figure(comparison.charts[0], comparison) if comparison.charts else ""
    table = _table(words.main_table(comparison), comparison, caption=True)
    look = "first" if chart else "first alone"
    read = f'<p class="reading">{_text(words.reading(comparison))}</p>' if table else ""
    return f'<div class="{look}">{chart}<div class="wide">{table}{read}</div></div>'


def _contents(titles: Sequence[str]) -> str:
    links = " ".join(f'<a href="#{_anchor(title)}">{title}</a>' for title in titles)
    return f'<nav aria-label="Sections">{links}</nav>' if titles else ""


def _outcomes(comparison: Comparison) -> str:
    terms = "".join(f"<dt>{_text(o.title)}</dt><dd>{_text(o.what)}</dd>" for o in comparison.outcomes)
    what = f"<details><summary>What each outcome is</summary><dl>{terms}</dl></details>" if terms else ""
    return _table(words.outcome_table(comparison), comparison) + what


def _charts(comparison: Comparison) -> str:
    figures = "".join(_figure(chart, comparison) for chart in comparison.charts[1:])
    return f'<div class="grid">{figures}</div>' if figures else ""


def _figure(chart: Chart, comparison: Comparison) -> str:
    told = "".join(f"<p>{_text(note)}</p>" for note in notes(chart))
    drawn = line_chart(chart, [arm.name for arm in comparison.arms])
    return f"<figure><figcaption>{_text(chart.title)}</figcaption>{drawn}{told}</figure>"


def _differences(comparison: Comparison) -> str:
    return _table(words.difference_table(comparison), comparison) or f"<p>{words.UNIFORM}</p>"


def _talks(comparison: Comparison) -> str:
    return "".join(_talk(talk, place == 0) for place, talk in enumerate(comparison.talks))


def _talk(talk: Talk, is_open: bool) -> str:
    """What was said to all arms once, then what each made of it, side by side."""
    shared = shared_start([sample["messages"] for sample in talk.answers.values()])
    samples = list(talk.answers.values())
    start = "".join(map(_message, samples[0]["messages"][:shared])) if samples else ""
    sides = "".join(_side(arm, sample, shared) for arm, sample in talk.answers.items())
    title = _text(f"Problem {talk.problem_id}, seed {talk.seed}")
    opened = " open" if is_open else ""
    return f'<details{opened}><summary>{title}</summary>{start}<div class="sides">{sides}</div></details>'


def _side(arm: str, sample: Mapping[str, Any], shared: int) -> str:
    said = "".join(map(_message, sample["messages"][shared:]))
    return (
        f'<div class="side"><h4>{_text(arm)}</h4><p class="judged">{_text(judged(sample))}</p>'
        f"{said or '<p>(said nothing)</p>'}</div>"
    )


def _message(message: Mapping[str, str]) -> str:
    role = message["role"] if message["role"] in ROLES else "system"
    content = escape(printable(message["content"]))
    return f'<div class="message {role}"><b>{_text(message["role"])}</b><div>{content}</div></div>'


def _methods(comparison: Comparison) -> str:
    return _list(comparison.methods)


def _reproduce(comparison: Comparison) -> str:
    return "".join(
        f'<pre tabindex="0">{escape(printable(command))}</pre>' for command in comparison.reproduce
    )


def _of(table: Callable[[Comparison], Table]) -> Callable[[Comparison], str]:
    """A section that is one table."""
    return lambda comparison: _table(table(comparison), comparison)


def _table(table: Table, comparison: Comparison, caption: bool = False) -> str:
    """A table in a box of its own that scrolls; nothing where it has no rows."""
    if not table.rows:
        return ""
    arms = {arm.name: swatch(place) for place, arm in enumerate(comparison.arms)}
    grouped = table.kinds[:2] == "ta"  # several arms per outcome: it heads its rows
    kinds, head, rows = table.kinds, table.head, [list(row) for row in table.rows]
    groups = [("", rows)]
    if grouped:
        groups = [(name, [row[1:] for row in each]) for name, each in groupby(rows, key=itemgetter(0))]
        kinds, head = kinds[1:], head[1:]
    headers = "".join(
        f'<th scope="col" class="{kind}">{arms.get(name, "")}{_text(name)}</th>'
        for kind, name in zip(kinds, head, strict=True)
    )
    bodies = "".join(
        f"<tbody>{_group(name, len(head)) if grouped else ''}"
        f"{''.join(f'<tr>{_cells(row, kinds, arms)}</tr>' for row in each)}</tbody>"
        for name, each in groups
    )
    title = f"<caption>{_text(table.title)}</caption>" if caption else ""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{_text(table.title)}"><table>{title}'
        f"<thead><tr>{headers}</tr></thead>{bodies}</table></div>"
    )


def _group(name: str, columns: int) -> str:
    return f'<tr class="group"><th colspan="{columns}" scope="rowgroup"><span>{_text(name)}</span></th></tr>'


def _cells(row: Sequence[str], kinds: str, arms: Mapping[str, str]) -> str:
    cells = [f'<th scope="row" class="{kinds[0]}">{_cell(row[0], kinds[0], arms)}</th>']
    for kind, cell in zip(kinds[1:], row[1:], strict=True):
        look = _look(cell) if kind == "t" else ""
        cells.append(f'<td class="{kind}{look}">{_cell(cell, kind, arms)}</td>')
    return "".join(cells)


def _cell(cell: str, kind: str, arms: Mapping[str, str]) -> str:
    if kind == "a":
        return arms.get(cell, "") + _text(cell).replace("=", "=<wbr>")
    if kind != "n":
        return _linked(cell)
    split = ASIDE.fullmatch(cell)
    return f"{_number(split[1])} <small>{_number(split[2])}</small>" if split else _number(cell)


def _look(cell: str) -> str:
    """Classes of a verdict."""
    if cell.endswith((": better", ": worse")):
        return " good" if cell.endswith("better") else " bad"
    none = (words.UNMEASURED, words.NO_VERDICT, "not distinguishable")
    return " none" if cell.startswith(none) else ""


def _number(cell: str) -> str:
    return _text(re.sub(r"-(?=\d)", "−", cell))


def _linked(cell: str) -> str:
    """Text whose addresses and arXiv numbers are links."""
    parts, end = [], 0
    line = clean(cell)
    for found in LINKED.finditer(line):
        shown = found[0]
        address = shown.replace("arXiv:", "https://arxiv.org/abs/")
        parts += [escape(line[end : found.start()]), f'<a href="{escape(address)}">{escape(shown)}</a>']
        end = found.end()
    return "".join([*parts, escape(line[end:])])


def _list(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{_text(line)}</li>' for line in lines)}</ul>" if lines else ""


def _text(line: str) -> str:
    return escape(clean(line))


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


SECTIONS: tuple[tuple[str, Callable[[Comparison], str]], ...] = (
    ("All outcomes", _outcomes),
    ("Held-out problems", _of(words.problem_table)),
    ("Curves", _charts),
    ("Shadow objectives", _of(words.shadow_table)),
    ("Claims", _of(words.claim_table)),
    ("Arms", _of(words.arm_table)),
    ("Configuration differences", _differences),
    ("Runs", _of(words.run_table)),
    ("Left out", _of(words.left_out_table)),
    ("Conversations", _talks),
    ("Methods", _methods),
    ("Reproduce", _reproduce),
)
