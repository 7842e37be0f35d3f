"""The report of a comparison: what a reader finds in its files and on the terminal, on hand-made ones."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import re
from itertools import pairwise

import pytest
from rich.cells import cell_len
from rich.console import Console

from gspo_cli.commands.compare_view import show
from gspo_cli.compare import figures
from gspo_cli.compare.axes import log_ticks, nice_ticks, tick_labels
from gspo_cli.compare.content import sections, shared_start
from gspo_cli.compare.figures import label_lines, line_chart, notes, spread
from gspo_cli.compare.report import STYLE, markdown, page, write_report
from gspo_cli.compare.result import Chart, Estimate, Series, SideBySide, value_text
from gspo_cli.compare.tables import estimate_cell, main_contrasts
from gspo_cli.console.words import number
from tests.support.comparisons import (
    BASELINE,
    CLAIMS,
    LONG,
    NASTY,
    charts,
    comparison,
    conversation,
    series,
)
from tests.support.html import Reading

FOUR = ("gspo", "gspo_token", BASELINE, LONG)
EMPTY = ("charts", "talks", "shadows", "claims", "problem_tests", "left_out", "methods", "reproduce")
BARE = dict.fromkeys(EMPTY, ())
SHAPES = [
    comparison(),
    comparison(FOUR),
    comparison(("gspo", BASELINE), 1, voided=["Void."], **BARE),
    comparison(("gspo", BASELINE), outcomes=(), contrasts=(), headline=()),
]


def drawn(svg):
    """(x, y) of all absolute points of paths, and of texts."""
    numbers = re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", svg)
    texts = re.findall(r'<text x="(-?[\d.]+)" y="(-?[\d.]+)"', svg)
    return [(float(x), float(y)) for x, y in numbers + texts]


def size(svg):
    return [float(v) for v in re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg).groups()]


def contrast_numbers(found):
    """Every number that a contrast holds, as it is written."""
    for contrast, outcome in ((c, o) for c in found.contrasts for o in found.outcomes if o.key == c.outcome):
        for each in (contrast.arm, contrast.baseline, contrast.difference):
            for value in (each.value, each.low, each.high):
                yield value, value_text(value, outcome.unit)
        for value in (contrast.p, contrast.p_adjusted):
            yield value, number(value, 2)
        yield contrast.seeds_needed, value_text(contrast.seeds_needed)
        yield contrast.detectable, value_text(contrast.detectable, outcome.unit)


@pytest.mark.parametrize("found", SHAPES)
def test_the_page_closes_what_it_opens_and_heads_its_columns(found):
    text = page(found)
    reading = Reading(text)
    assert (reading.open, reading.wrong) == ([], [])
    for row in re.findall(r"<th [^>]*>", text):
        assert 'scope="' in row
    for identity in (ids := re.findall(r' id="([^"]*)"', text)):
        assert ids.count(identity) == 1
    targets = (
        re.findall(r'href="#([^"]*)"', text)
        + " ".join(re.findall(r'aria-labelledby="([^"]*)"', text)).split()
    )
    assert set(targets) <= set(ids)


@pytest.mark.parametrize("found", SHAPES)
def test_the_page_loads_nothing_and_links_citations_only(found):
    text = page(found)
    reading = Reading(text)
    loading = {"src", "srcset", "data", "action", "poster", "background", "xlink:href"}
    assert not [a for a in reading.attributes if a[1] in loading or a[1].startswith("on")]
    links = [(tag, value) for tag, name, value in reading.attributes if name == "href"]
    assert {tag for tag, _ in links} <= {"a"}
    outside = [value for _, value in links if not value.startswith("#")]
    assert outside == ["https://arxiv.org/abs/2507.18071"] * bool(found.claims)
    assert not re.search(r"@import|url\(|<script|<link|<iframe|<img", text)


def test_every_number_of_a_contrast_is_in_all_three_files(tmp_path):
    found = comparison(FOUR)
    md, html, data, _ = [path.read_text(encoding="utf-8") for path in write_report(found, tmp_path)]
    stored = json.loads(data)
    values = list(contrast_numbers(found))
    assert len(values) == len(found.contrasts) * 13
    for value, words in values:
        assert words in md
        assert words.replace("-", "−") in html.replace("e-", "e−")
        assert value is None or json.dumps(value) in data
    for contrast, written in zip(found.contrasts, stored["contrasts"], strict=True):
        assert written["difference"]["value"] == contrast.difference.value
        assert written["verdict"] == contrast.verdict.value


def test_the_page_shows_numbers_in_the_rows_they_belong_to():
    rows = re.findall(r"<tr>(.*?)</tr>", page(comparison()))
    row = next(re.sub(r"<svg.*?</svg>", "", row) for row in rows if "Final held-out score" in row)
    cells = [re.sub(r"<[^>]*>", "", cell) for cell in re.findall(r"<t[hd].*?</t[hd]>", row)]
    assert cells == [
        "Final held-out score",
        "0.812 [0.779, 0.849]",
        "0.741 [0.711, 0.774]",
        "0.0713 [0.0278, 0.119]",
        "0.012 (0.027)",
        "higher: better",
    ]


def test_json_is_the_dataclasses_and_nothing_else(tmp_path):
    found = comparison(headline=["\ud800"])
    write_report(found, tmp_path)
    stored = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    expected = json.loads(json.dumps(dataclasses.asdict(found), default=lambda enum: enum.value))
    assert stored == expected
    assert list(stored) == sorted(stored)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none_become_null_and_a_dash(tmp_path, bad):
    found = comparison()
    broken = dataclasses.replace(found.contrasts[0], detectable=bad, difference=Estimate(bad, bad, bad, 5))
    curve = Series("gspo", [0, 1, 2], [0.1, bad, 0.3], [None] * 3, [None] * 3)
    lead = Chart("held_out", "Held-out", "iterations", "score", [curve])
    found = dataclasses.replace(found, contrasts=[broken], charts=[lead])
    for path in write_report(found, tmp_path):
        shown = path.read_text(encoding="utf-8").lower()
        assert not re.search(r"\bnan\b|\binf(inity)?\b", shown)
    assert json.loads((tmp_path / "report.json").read_text())["contrasts"][0]["detectable"] is None


def test_what_a_model_wrote_is_shown_and_never_obeyed(tmp_path):
    talk = SideBySide(
        "a|b`c<i>", 0, {"gspo": conversation(NASTY, 0.5), BASELINE: conversation("```\n````", 0.1)}
    )
    found = comparison(title=NASTY, headline=[NASTY], methods=[NASTY], talks=[talk], reproduce=[NASTY])
    md, html, *_ = [path.read_text(encoding="utf-8") for path in write_report(found, tmp_path)]
    reading = Reading(html)
    assert (reading.open, reading.wrong) == ([], [])
    assert "<script" not in html
    assert NASTY.replace("\x1b", "�").replace("\u202e", "�").replace("\ud800", "�") in reading.texts
    for text in (md, html):
        assert not set(text) & set("\x1b\u202e\ud800")
    lines = md.split("\n")
    outside = re.sub(r"^(`{3,})\w*\n.*?\n\1$", "", md, flags=re.M | re.S)
    assert "<script" not in outside
    assert "<script" in md
    assert "`````text" in lines
    inside = lines.index(
        "`````text", lines.index("#### grpo: reward 0.1, solved 1, manner 0.42, expected refund(4711)")
    )
    assert lines[inside + 1 : inside + 4] == ["```", "````", "`````"]


def test_a_cell_of_a_markdown_table_stays_one_cell():
    claim = dataclasses.replace(CLAIMS[0], claim=NASTY, measured="one\ntwo | three")
    text = markdown(comparison(claims=[claim]))
    row = next(line for line in text.split("\n") if "two" in line)
    assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) == 5
    assert "`b`" not in row.replace("\\`", "")
    assert "<script" not in row


@pytest.mark.parametrize("found", SHAPES)
def test_the_same_comparison_gives_the_same_bytes(found, tmp_path):
    first = [path.read_bytes() for path in write_report(found, tmp_path / "one")]
    assert first == [path.read_bytes() for path in write_report(found, tmp_path / "two")]


def test_a_report_leaves_no_figure_of_an_earlier_one(tmp_path):
    names = [path.name for path in write_report(comparison(), tmp_path)]
    assert names == ["report.md", "report.html", "report.json", "held_out.svg"]
    names = [path.name for path in write_report(comparison(charts=()), tmp_path)]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names) == sorted(names[:3])


def test_markdown_opens_with_the_verdict_and_names_what_stands_beside_it():
    found = comparison()
    lines = markdown(found).split("\n")
    assert lines[2] == f"**{found.headline[0]}**"
    assert "![Held-out score](held_out.svg)" in lines
    assert any("(report.html)" in line for line in lines)


def test_both_pages_have_their_sections_in_one_order():
    found = comparison(FOUR)
    html = re.findall(r"<h2[^>]*>(.*?)</h2>", page(found))
    assert html == re.findall(r"^## (.*)$", markdown(found), re.M)
    assert html == [section.title for section in sections(found)]


def test_what_voids_a_verdict_stands_above_the_tables():
    found = comparison(voided=["Learning rates differ."], cautions=["One run collapsed."])
    for text in (page(found), markdown(found)):
        assert found.headline[1] in text
        places = [
            text.index(part) for part in (found.headline[1], *found.voided, *found.cautions, "Difference")
        ]
        assert places == sorted(places)


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("found", SHAPES[:2])
def test_figures_stay_inside_their_box(found, alone):
    for chart in found.charts:
        svg = line_chart(chart, [arm.name for arm in found.arms], alone)
        width, height = size(svg)
        assert drawn(svg)
        assert all(0 <= x <= width and 0 <= y <= height for x, y in drawn(svg))
        assert ("<style>" in svg) == alone


@pytest.mark.parametrize("count", [2, 4, 9])
def test_labels_of_arms_do_not_overlap(count):
    arms = [f"gspo clip_range_left={i} clip_range_right=0.{i}" for i in range(count)]
    flat = [Series(arm, [0, 10], [0.5, 0.5], [None] * 2, [None] * 2) for arm in arms]
    svg = line_chart(Chart("k", "T", "x", "y", flat), arms)
    width, height = size(svg)
    names = {line for arm in arms for line in label_lines(arm)}
    found = re.findall(r'<text x="([\d.]+)" y="([\d.]+)" text-anchor="start">([^<]*)<', svg)
    labels = [(float(x), float(y), text) for x, y, text in found if text in names]
    assert len(labels) == sum(len(label_lines(arm)) for arm in arms)
    heights = sorted(y for _, y, _ in labels)
    assert all(after - before >= 12.5 for before, after in pairwise(heights))
    assert heights[0] >= figures.TOP
    assert heights[-1] <= height
    assert all(x + 7 * len(text) <= width for x, _, text in labels)


def test_boxes_are_pushed_apart_no_further_than_needed():
    assert spread([50, 20], [10, 10], 0, 100) == [50, 20]
    assert spread([50, 50], [10, 10], 0, 100) == [50, 60]
    assert spread([98, 97, 2], [10, 10, 10], 0, 100) == [95, 85, 5]


@pytest.mark.parametrize("low", [-3e4, -0.017, 0.0, 0.1234, 17.0, 9.9e4])
@pytest.mark.parametrize("span", [3e-4, 0.07, 1.0, 2.5, 499.0, 1e7])
@pytest.mark.parametrize("most", [5, 6])
def test_ticks_are_round_even_and_within(low, span, most):
    high = low + span
    ticks = nice_ticks(low, high, most)
    assert 2 <= len(ticks) <= most
    assert low - 1e-6 * span <= ticks[0]
    assert ticks[-1] <= high + 1e-6 * span
    step = ticks[1] - ticks[0]
    assert f"{step:.0e}"[0] in "125"
    assert all(after - before == pytest.approx(step, rel=1e-5) for before, after in pairwise(ticks))
    assert ticks[0] - step < low + 1e-6 * span
    assert ticks[-1] + step > high - 1e-6 * span
    assert len(set(tick_labels(ticks))) == len(ticks)


def test_logarithmic_ticks_are_powers_of_ten_or_finer_where_there_is_room():
    assert log_ticks(1e-4, 0.3) == [1e-4, 1e-3, 1e-2, 1e-1]
    assert log_ticks(0.1, 1) == [0.1, 0.2, 0.5, 1]
    assert len(log_ticks(1e-12, 1e12)) <= 6


def test_zero_on_a_logarithmic_axis_is_left_out_and_said():
    curve = Series("gspo", [0, 1, 2], [0.0, 0.1, 0.2], [0.0, 0.0, 0.1], [0.1, 0.2, 0.3])
    chart = Chart("clip", "Clip", "iterations", "share", [curve], log_y=True)
    assert notes(chart) == [
        "Values of 0 cannot be shown on the logarithmic axis and are left out.",
        "Intervals that reach 0 extend to the bottom of the axis.",
    ]
    assert "gspo: 0.1 at 1, 0.2 [0.1, 0.3] at 2." in line_chart(chart, ["gspo"])
    assert notes(dataclasses.replace(chart, log_y=False)) == []


def test_an_arm_without_values_is_named_and_not_drawn():
    one, none = series("gspo", 0, 5, 0.1, 0.5), Series(LONG, [0, 1], [None] * 2, [None] * 2, [None] * 2)
    chart = Chart("k", "T", "x", "y", [one, none])
    assert notes(chart) == [f"{LONG}: not measured."]
    assert "routing" not in line_chart(chart, ["gspo", LONG])
    assert "not measured" in line_chart(dataclasses.replace(chart, series=[none]), [LONG])


def test_a_gap_in_a_curve_stays_a_gap():
    value = [0.1, 0.2, None, 0.4, 0.5]
    chart = Chart("k", "T", "x", "y", [Series("gspo", [0, 1, 2, 3, 4], value, [None] * 5, [None] * 5)])
    curve = re.search(r'<path d="([^"]*)" fill="none" stroke="var', line_chart(chart, ["gspo"]))
    assert curve[1].count("M") == 2


def test_arms_keep_their_looks_in_every_figure():
    alone = Chart("k", "T", "x", "y", [series(BASELINE, 0, 5, 0.1, 0.5)])
    assert set(re.findall(r"var\(--arm-(\d)\)", line_chart(alone, FOUR))) == {str(FOUR.index(BASELINE))}


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
    return sum(weight * v for weight, v in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def ratio(one, other):
    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def test_text_and_lines_stand_out_from_their_ground():
    themes = re.findall(r":root \{(.*?)\}", STYLE.read_text(encoding="utf-8"), re.S)
    assert len(themes) == 2
    grounds = (figures.GROUND, figures.GROUND_DARK)
    for theme, lines, alone in zip(themes, (figures.LIGHT, figures.DARK), grounds, strict=True):
        colour = dict(re.findall(r"--([\w-]+): (#\w{6})", theme))
        assert (colour["ground"], colour["text"]) == alone
        for ground in ("ground", "raised", "warn-ground"):
            assert ratio(colour["text"], colour[ground]) >= 4.5
        for text in ("soft", "link", "good", "bad", "system", "user", "assistant", "tool"):
            assert min(ratio(colour[text], colour[on]) for on in ("ground", "raised")) >= 4.5, text
        assert all(ratio(line, colour["ground"]) >= 3 for line in lines)


def terminal(found, width=80):
    console = Console(width=width, file=io.StringIO())
    show(found, ["outputs/report.html"], console)
    return console.file.getvalue()


@pytest.mark.parametrize("found", SHAPES)
def test_the_terminal_shows_the_verdict_and_whole_cells_in_80_columns(found):
    shown = terminal(found)
    assert all(cell_len(line) <= 80 for line in shown.splitlines())
    assert "…" not in shown
    assert "outputs/report.html" in shown
    joined = " ".join(shown.split())
    for sentence in (*found.headline, *found.voided):
        assert sentence in joined
    for outcome, contrast in main_contrasts(found):
        cell = estimate_cell(contrast.difference, outcome.unit)
        assert cell.text in shown
        assert cell.aside in shown


def test_the_terminal_obeys_no_markup():
    shown = terminal(comparison(headline=["[red]x[/red] [/] \x1b[2J"], title="[b]"))
    assert shown.startswith("[red]x[/red] [/] �[2J")


def test_an_outcome_that_nothing_measured_says_so():
    found = comparison()
    without = [contrast for contrast in found.contrasts if contrast.outcome != "expert_change"]
    reached = Estimate(None, n=2, of=5)
    few = dataclasses.replace(
        found.contrasts[0], outcome="expert_change", arm=Estimate(None), baseline=reached
    )
    for contrasts, rows in ((found.contrasts, 0), (without, 0), ([*without, few], 1)):
        shown = comparison(contrasts=contrasts)
        sentence = "Not measured: Expert change (no run has experts)."
        for text in (page(shown), markdown(shown), " ".join(terminal(shown).split())):
            assert text.count(sentence) == 1 - rows
        assert len(re.findall(r"^\| Expert change", markdown(shown), re.M)) == rows
        assert page(shown).count(">Expert change</th>") == rows


def test_what_all_arms_were_told_is_shown_once_and_their_answers_each():
    same = {arm: conversation("Yes.", 1.0) for arm in FOUR}
    text = page(comparison(talks=[SideBySide("a", 0, same)]))
    assert (text.count("my order 4711 came broken"), text.count("Yes.")) == (1, 4)


def test_the_lead_figure_is_on_the_first_screen_only_once():
    svg = line_chart(charts(FOUR)[0], FOUR)
    text = page(comparison(FOUR))
    assert text.count(svg) == 1
    assert text.index(svg) < text.index("<h2")


def test_solved_examples_of_a_prompt_stand_in_the_shared_part_of_a_conversation():
    prompt = [("user", "1+1"), ("assistant", "2"), ("user", "2+2")]
    answers = [[*prompt, ("assistant", said)] for said in ("4", "4")]
    assert shared_start(answers, examples=1) == 3
    assert shared_start(answers) == 1
