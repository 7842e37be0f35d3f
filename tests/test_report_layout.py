"""The report on a narrow screen and on paper, as far as it holds without a browser; and no empty rows."""

from __future__ import annotations

import dataclasses
import re

import pytest

from gspo_cli.compare.figures import line_chart, palette
from gspo_cli.compare.report import STYLE, page
from gspo_cli.compare.result import Estimate
from gspo_cli.compare.tables import not_measured
from tests.support.comparisons import BASELINE, LONG, OUTCOMES, comparison
from tests.support.html import Reading

ARMS = [("gspo", BASELINE), ("gspo", BASELINE, LONG)]


def tables(text):
    """By title: the class of each table, its column names, and (class, label) of each cell of its rows."""
    found = {}
    for title, body in re.findall(r'aria-label="([^"]*)"><table(.*?)</table>', text, re.S):
        look = re.match(r'(?: class="(\w+)")?>', body)[1]
        head, rows = body.split("</thead>")
        names = [re.sub(r"<[^>]*>", "", name) for name in re.findall(r"<th .*?</th>", head)]
        cells = [
            re.findall(r'<t[hd] (?:scope="row" )?class="([^"]*)"(?: data-label="([^"]*)")?>', row)
            for row in re.findall(r"<tr>(.*?)</tr>", rows, re.S)
        ]
        found[title] = (look, names, cells)
    return found


def block(condition):
    """The rules of an at-rule of the page's style, by selector."""
    body = re.search(rf"@media {re.escape(condition)} \{{[^\n]*\n(.*?)\n\}}", STYLE.read_text(), re.S)[1]
    rules = {}
    for selectors, rule in re.findall(r"([^{}]+)\{([^{}]*)\}", body):
        for selector in selectors.split(","):
            rules.setdefault(selector.strip(), {}).update(
                {
                    name.strip(): value.strip()
                    for name, _, value in (d.partition(":") for d in rule.split(";"))
                }
            )
    return rules


@pytest.mark.parametrize("arms", ARMS)
def test_rows_with_a_verdict_become_blocks_in_which_each_value_has_the_name_of_its_column(arms):
    found = tables(page(comparison(arms)))
    for title in ("The most important outcomes", "All outcomes", "Held-out problems", "Claims", "Arms"):
        look, names, rows = found[title]
        assert look == "stack"
        assert rows
        for row in rows:
            for name, (kind, label) in zip(names[1:], row[1:], strict=True):
                assert label == ("" if kind.split()[0] == "verdict" else name)
    for title in ("The most important outcomes", "All outcomes"):
        assert all(sum(kind.split()[0] == "verdict" for kind, _ in row) == 1 for row in found[title][2])
    assert found["Runs"][0] is None  # rows of numbers scroll within their own box


def test_a_narrow_screen_shows_blocks_without_their_heads_and_verdicts_first():
    rules = block("screen and (max-width: 1000px)")
    assert rules[".stack thead"] == {"display": "none", "": ""}
    assert (rules[".stack tr"]["display"], rules[".stack tr"]["flex-wrap"]) == ("flex", "wrap")
    assert rules[".stack [data-label]::before"]["content"] == "attr(data-label)"
    assert int(rules[".stack th"]["order"]) < int(rules[".stack .verdict"]["order"]) < 0
    for cell in (".stack th", ".stack td"):  # nothing keeps a block wider than the screen
        assert (rules[cell]["min-width"], rules[cell]["white-space"]) == ("0", "normal")
        assert rules[cell]["overflow-wrap"] == "anywhere"
    assert block("(max-width: 560px)")["pre"]["white-space"] == "pre-wrap"


def test_paper_has_light_colors_whole_rows_and_nothing_closed_or_cut():
    text = page(comparison())
    dark = re.findall(r"@media ([^{]*prefers-color-scheme[^{]*)\{", STYLE.read_text() + palette())
    assert set(map(str.strip, dark)) == {"screen and (prefers-color-scheme: dark)",
                                         "screen and (prefers-color-scheme:dark)"}  # fmt: skip
    assert re.findall(r"[^-]color-scheme: light dark", text) == [" color-scheme: light dark"]
    assert "@media screen { html { color-scheme: light dark; } }" in text
    rules = block("print")
    assert {rules[each]["break-inside"] for each in ("figure", "tr")} == {"avoid"}
    assert {rules[each]["overflow"] for each in (".scroll", "pre")} == {"visible"}
    assert rules["details::details-content"]["content-visibility"] == "visible"


def test_outcomes_are_not_measured_for_one_reason_in_one_bracket():
    why = {"missing": "too few evaluations"}
    outcomes = [dataclasses.replace(each, **why) if each.key == "auc" else each for each in OUTCOMES]
    outcomes[10] = dataclasses.replace(outcomes[10], **why)
    plain = dataclasses.replace(outcomes[11], key="unknown", title="More")
    known = [each for each in comparison().contrasts if each.outcome != "auc"]
    found = not_measured(comparison(outcomes=[*outcomes, plain], contrasts=known))
    assert found == "Not measured: Mean held-out score, Expert change (too few evaluations); More."
    assert not_measured(comparison(outcomes=OUTCOMES[:10])) == ""
    of_baseline = [dataclasses.replace(each, arm=Estimate(None)) for each in comparison().contrasts]
    assert not_measured(comparison(outcomes=OUTCOMES[:10], contrasts=of_baseline)) == ""


@pytest.mark.parametrize("arms", ARMS)
def test_the_page_is_whole_and_its_figures_follow_the_theme_on_screens_only(arms):
    found = comparison(arms)
    assert Reading(page(found)).wrong == []
    alone = line_chart(found.charts[0], list(arms), alone=True)
    assert alone.count("@media") == alone.count("@media screen and (prefers-color-scheme:dark)") == 2
