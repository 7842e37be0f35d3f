"""Runs of several tasks and models: a section for each, and a summary that pools no scores."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import shlex
from dataclasses import asdict, replace

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console
from scipy import stats

from gspo_cli.commands.compare_view import show
from gspo_cli.compare.across import TUNED, compare_subjects
from gspo_cli.compare.across_content import caveats, result_table
from gspo_cli.compare.across_sentences import numbers_in_words
from gspo_cli.compare.comparison import compare
from gspo_cli.compare.csv_files import write_tables
from gspo_cli.compare.outcomes import PRIMARY
from gspo_cli.compare.pictures import write_figures
from gspo_cli.compare.report import markdown, page, write_report
from gspo_cli.compare.result import Across, Comparison, Verdict
from gspo_cli.compare.statistics import mean_of_sections, sign_test
from gspo_cli.config.compare_schema import CompareConfig
from gspo_cli.config.compose import build_config, composed
from gspo_cli.console.words import number
from gspo_cli.errors import UserError
from tests.support.html import Reading
from tests.support.stored_runs import changed, stored_run

SEEDS = range(3)
IDLE = {"initial": 0.3, "final": 0.3, "seed_spread": 0.0, "noise": 0.0, "jitter": 0.0}


def section(task, gspo=0.7, grpo=0.6, seeds=SEEDS, model="tiny", **settings):
    """Runs of both algorithms on a task; a final score, or further fields of a Plan, for each."""
    runs = []
    for name, own in (("gspo", gspo), ("grpo", grpo)):
        plan = own if isinstance(own, dict) else {"final": own}
        for seed in seeds:
            run = stored_run(name, seed, 20, **plan)
            run = changed(run, task__name=task, model__label=model, **settings)
            runs.append(replace(run, folder=f"{task}-{model}/{name}-s{seed}"))
    return runs


THREE = [*section("arithmetic"), *section("countdown", 0.6, 0.65), *section("shop", 0.9, 0.7)]


def across(runs, **settings) -> Across:
    found = compare_subjects(runs, [], CompareConfig(**settings))
    assert isinstance(found, Across)
    return found


def differences(found: Across) -> list[float]:
    primary = [next(c for c in each.contrasts if c.outcome == PRIMARY) for each in found.sections]
    return [contrast.difference.value for contrast in primary]


def terminal(found, width=80):
    out = io.StringIO()
    show(found, [], Console(file=out, width=width))
    return out.getvalue()


def test_a_section_whose_looks_were_taken_at_another_level_says_so():
    found = across(THREE)
    assert "Level of intervals: 95%." in markdown(found)
    other = replace(found, sections=[replace(found.sections[0], level=0.9), *found.sections[1:]])
    assert "Level of intervals: 95%, arithmetic, model tiny 90%." in markdown(other)


def test_equal_differences_are_said_once_and_without_a_section():
    runs = [*section("arithmetic"), *section("countdown")]
    twice = across(runs)
    twice = numbers_in_words(twice.summary.arms[0], {"a": 0.1, "b": 0.1}, 2)
    assert twice.startswith("the differences in held-out score are all 0.1;")


@pytest.mark.long
def test_each_section_is_the_comparison_that_its_runs_would_give_alone():
    settings = {"allow": ["rollout"], "baseline": "gspo", "threshold": 0.5, "level": 0.9}
    found = across(THREE, **settings)
    assert found.summary.sections == [f"{task}, model tiny" for task in ("arithmetic", "countdown", "shop")]
    for task, each in zip(("arithmetic", "countdown", "shop"), found.sections, strict=True):
        own = [run for run in THREE if run.subject[0] == task]
        assert asdict(each) == asdict(compare(own, [], CompareConfig(**settings)))
        assert each.baseline == "gspo"
    assert asdict(across(THREE[::-1], **settings)) == asdict(found)


def test_the_average_is_that_of_a_t_test_over_one_difference_a_section():
    found = across(THREE)
    (arm,), values = found.summary.arms, differences(found)
    tested = stats.ttest_1samp(values, 0.0)
    interval = tested.confidence_interval(0.95)
    assert (arm.mean.value, arm.mean.n) == (pytest.approx(sum(values) / 3, abs=1e-15), 3)
    assert (arm.mean.low, arm.mean.high) == (interval.low, interval.high)
    assert (arm.p, arm.p_adjusted) == (tested.pvalue, tested.pvalue)
    half = stats.t.ppf(0.975, 2) * math.sqrt(np.var(values, ddof=1) * (1 + 1 / 3))
    assert arm.further.high - arm.mean.value == pytest.approx(half, rel=1e-12)
    assert arm.mean.value - arm.further.low == pytest.approx(half, rel=1e-12)
    assert (arm.higher, arm.lower, arm.verdict) == (2, 1, Verdict.not_distinguishable)
    assert arm.p_sign == stats.binomtest(2, 3).pvalue == 1.0
    first, numbers, signs = found.summary.headline
    assert first == "gspo and grpo are not distinguishable by held-out score over 3 sections."
    assert f"the mean difference over 3 sections is {arm.mean} (p = " in numbers
    assert "(countdown, model tiny) to" in numbers
    assert "gspo is higher in 2 of 3 sections and lower in 1 (exact sign test, p = 1)" in numbers
    assert signs == "With fewer than 6 sections no sign test can be significant at 0.05."


@pytest.mark.long
def test_a_difference_that_all_sections_share_is_found():
    exact = {"seed_spread": 0.0, "noise": 0.001}
    runs = [
        run
        for place, task in enumerate("abcdef")
        for run in section(task, {"final": 0.75 + 0.01 * place, **exact}, {"final": 0.6, **exact})
    ]
    (arm,) = across(runs).summary.arms
    assert (arm.verdict, arm.higher, arm.p_sign) == (Verdict.higher, 6, 2 * 0.5**6)
    headline = across(runs).summary.headline
    assert headline[0] == "gspo has a higher held-out score than grpo on average over 6 sections."
    assert len(headline) == 2, "six sections can be significant"
    assert "with fewer than 7 sections" in across(runs, level=0.98).summary.headline[-1].lower()


def test_p_over_sections_is_adjusted_over_the_algorithms():
    exact = {"seed_spread": 0.0, "noise": 0.0, "jitter": 0.0}
    runs = []
    for place, task in enumerate("abc"):
        plans = {"final": 0.8 + 0.01 * place, **exact}, {"final": 0.6, **exact}
        own = section(task, *plans)
        runs += [
            *own,
            *(changed(run, algorithm__name="sapo") for run in section(task, 0.58 + 0.02 * place)[:3]),
        ]
    one, other = across(runs).summary.arms
    assert (one.p_adjusted, other.p_adjusted) == tuple(stats.false_discovery_control([one.p, other.p]))
    assert (one.p < one.p_adjusted < 0.05, one.verdict) == (True, Verdict.higher)
    assert f"(adjusted p = {number(one.p_adjusted, 2)})" in one.sentence


def test_two_sections_have_no_average():
    found = across([*section("a"), *section("a", model="tiny_moe")])
    (arm,) = found.summary.arms
    assert (arm.mean.value, arm.p, arm.further, arm.verdict) == (None, None, None, Verdict.void)
    assert found.summary.headline[0] == (
        "gspo against grpo: no average over sections; 2 sections can be counted, and it takes 3."
    )
    assert "gspo is higher in 2 of 2 sections (exact sign test, p = 0.5)" in found.summary.headline[1]
    assert found.summary.title == "gspo and grpo on 1 task and 2 models"


@pytest.mark.long
@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ([*section("bad")[:-1], changed(section("bad")[-1], rollout__temperature=0.7)],
         "void: rollout.temperature is not the same in all runs"),
        (section("bad", IDLE, IDLE), "No run learned: the comparison says nothing about the algorithms."),
        (section("bad", seeds=[0]), "inconclusive with one seed; the difference is"),
    ],
)  # fmt: skip
def test_a_section_without_a_verdict_is_listed_and_not_counted(bad, why):
    found = across([*THREE, *bad])
    (arm,), (alone,) = found.summary.arms, across(THREE).summary.arms
    assert arm == alone
    (out,) = [result for result in found.summary.results if result.section == "bad, model tiny"]
    assert out.excluded.startswith(why)
    assert caveats(found.summary)[0].startswith(
        f"Not counted across sections: gspo on bad, model tiny: {why}"
    )
    assert all(result.excluded == "" for result in found.summary.results if result is not out)


@pytest.mark.long
def test_algorithms_with_other_settings_are_not_averaged_unless_these_are_tuned():
    other = [
        changed(run, algorithm__beta=0.1) if run.algorithm["name"] == "gspo" else run
        for run in section("shop", 0.9, 0.7)
    ]
    (arm,) = across([*THREE[:12], *other]).summary.arms
    assert (arm.mean.value, arm.p_sign, arm.higher, arm.lower) == (None, None, 0, 0)
    values = "gspo algorithm.beta: 0.0 on arithmetic, model tiny, 0.0 on countdown, model tiny, 0.1 on shop, "
    assert arm.sentence == (
        f"settings of the algorithms are not the same in all sections ({values}model tiny); give the folders "
        "that belong together"
    )
    for key in TUNED:
        tuned = [changed(run, **{f"algorithm__{key}": 0.01}) for run in section("shop", 0.9, 0.7)]
        assert across([*THREE[:12], *tuned]).summary.arms[0].mean.value is not None


def against(name):
    """Runs of another algorithm and grpo, on a task of their own."""
    runs = section("bandit")
    return [changed(run, algorithm__name=name) if "gspo" in run.folder else run for run in runs]


def test_only_the_same_two_algorithms_are_counted_together():
    found = across([*THREE, *against("sapo")])
    assert [(arm.arm_name, len(arm.sections)) for arm in found.summary.arms] == [("gspo", 3)]
    assert found.summary.headline[-1] == "In one section only: sapo against grpo."
    other = across(THREE, baseline="gspo").summary
    assert [(arm.arm_name, arm.baseline_name) for arm in other.arms] == [("grpo", "gspo")]


def test_runs_of_one_algorithm_are_listed_with_what_to_type():
    alone = section("arithmetic", model="tiny_moe")[:3]
    found = across([*THREE, *alone])
    (skipped,) = found.summary.not_compared
    assert (skipped.section, skipped.runs) == ("arithmetic, model tiny_moe", 3)
    assert skipped.reason.startswith("all runs are of gspo: there is nothing to compare it with; run another")
    words = shlex.split(skipped.reason.partition("gspo-train ")[2])
    assert (words[0], words[-2:]) == ("-m", ["algorithm=grpo", "seed=0,1,2"])
    config = build_config(composed([*words[1:-1], "seed=0"]))
    assert (config.task.name, config.model.label, config.algorithm.name) == ("arithmetic", "tiny_moe", "grpo")
    assert config.training.num_outer_iterations == 20
    assert (
        "Not compared: arithmetic, model tiny_moe (3 runs): all runs are of gspo" in caveats(found.summary)[0]
    )


def test_one_task_that_can_be_compared_has_the_report_of_one():
    runs, alone = section("arithmetic"), section("countdown")[:1]
    found = compare_subjects([*runs, *alone], [], CompareConfig())
    assert isinstance(found, Comparison)
    (out,) = found.left_out
    assert out.folder == alone[0].folder
    assert out.reason.startswith("countdown, model tiny: all runs are of gspo: there is nothing to compare")
    assert asdict(replace(found, left_out=[])) == asdict(compare(runs, [], CompareConfig()))


def test_where_nothing_can_be_compared_the_most_frequent_says_why():
    runs = [*section("arithmetic")[:1], *section("countdown")[:3]]
    also = r"nor can the runs of arithmetic, model tiny \(1 run\) be compared$"
    with pytest.raises(UserError, match=rf"^countdown, model tiny: all runs are of gspo.*; {also}"):
        compare_subjects(runs, [], CompareConfig())


def test_models_with_one_label_are_told_apart_by_name():
    runs = [*section("a", model__name="one"), *section("a", model__name="two")]
    found = across(runs)
    assert found.summary.sections == ["a, model tiny one", "a, model tiny two"]
    assert [each.title for each in found.sections] == [
        f"gspo and grpo on {s}" for s in found.summary.sections
    ]


def simulated(rng, sections, seeds, varying, spread):
    """Differences per seed, (sections, seeds), that are 0 on average: `varying` is the standard deviation of
    the effects of sections, relative to that of seeds, which itself varies between sections by `spread`."""
    noise = np.exp(spread * rng.normal(size=(sections, 1))) * rng.normal(size=(sections, seeds))
    return 0.04 * (varying * rng.normal(size=(sections, 1)) + noise)


@pytest.mark.parametrize("sections", [3, 5])
@pytest.mark.parametrize(("varying", "spread"), [(0.0, 0.0), (0.5, 0.5), (2.0, 0.0)])
def test_false_verdicts_over_sections_stay_at_the_stated_rate_in_500_sets(sections, varying, spread):
    rng = np.random.default_rng(18)
    sets = [simulated(rng, sections, 3, varying, spread) for _ in range(500)]
    wrong = sum(mean_of_sections(each.mean(axis=1), 0.95).p < 0.05 for each in sets)
    assert wrong <= stats.binom.ppf(0.999, 500, 0.05)
    if spread == 0:  # exact where sections have equal noise, else conservative
        assert wrong >= stats.binom.ppf(0.001, 500, 0.05)
    if varying == 2:  # what pooling the seeds of all sections would give
        assert sum(stats.ttest_1samp(each.ravel(), 0).pvalue < 0.05 for each in sets) > 0.15 * 500


def test_one_more_section_lies_in_the_prediction_interval_as_often_as_stated():
    rng = np.random.default_rng(3)
    inside = 0
    for _ in range(500):
        *seen, new = simulated(rng, 5, 3, 1.0, 0.0).mean(axis=1)
        further = mean_of_sections(seen, 0.9).further
        inside += further.low <= new <= further.high
    assert stats.binom.ppf(0.001, 500, 0.9) <= inside <= stats.binom.ppf(0.999, 500, 0.9)


def test_sections_without_spread_have_no_interval():
    same = mean_of_sections([0.1, 0.1, 0.1], 0.95)
    assert (same.mean.value, same.mean.low, same.p, same.further) == (pytest.approx(0.1), None, None, None)
    assert sign_test(0, 0) == 1.0
    exact = {"seed_spread": 0.0, "noise": 0.0, "jitter": 0.0}
    runs = [run for task in "abc" for run in section(task, {"final": 0.8, **exact}, {"final": 0.6, **exact})]
    found = across(runs).summary
    assert found.arms[0].verdict is Verdict.void
    assert found.headline[0] == "gspo against grpo: the same difference in all 3 sections, so no verdict."


def test_the_files_hold_the_summary_and_every_section_as_it_is_alone(tmp_path):
    found = across([*THREE, *section("x", model="tiny_moe")[:2]])
    names = [path.name for path in write_report(found, tmp_path)]
    figures = [f"section-{place}-held_out.svg" for place in (1, 2, 3)]
    assert names == ["report.md", "report.html", "report.json", *figures]
    stored = json.loads((tmp_path / "report.json").read_text())
    assert sorted(stored) == ["sections", "summary"]
    for each, own in zip(found.sections, stored["sections"], strict=True):
        write_report(each, tmp_path / "alone")
        assert own == json.loads((tmp_path / "alone" / "report.json").read_text())
    assert stored["summary"]["arms"][0]["mean"]["value"] == found.summary.arms[0].mean.value
    text = (tmp_path / "report.md").read_text()
    assert re.findall("^#{1,2} .*", text, re.MULTILINE)[0] == "# gspo and grpo on 3 tasks and 1 model"
    for each, figure in zip(found.sections, figures, strict=True):
        assert f"\n## {each.title}\n" in text.replace("\\", "")
        assert f"]({figure})" in text
    write_report(found.sections[0], tmp_path)
    assert [path.name for path in tmp_path.glob("*.svg")] == ["held_out.svg"], "figures of earlier reports go"
    write_report(found, tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*.svg")) == figures


def test_the_page_leads_from_the_summary_to_every_section():
    found = across(THREE)
    text = page(found)
    reading = Reading(text)
    assert (reading.open, reading.wrong) == ([], [])
    ids = re.findall(r' id="([^"]*)"', text)
    assert len(ids) == len(set(ids))
    targets = re.findall(r'href="#([^"]*)"', text)
    assert set(targets) <= set(ids)
    assert targets[:3] == ["section-1-top", "section-2-top", "section-3-top"]
    assert (text.count("<h1"), text.count('class="part"'), text.count("<main>")) == (1, 3, 1)
    summary, *sections = text.split('class="part"')
    for place, each in enumerate(found.sections):
        assert each.headline[0] in sections[place]
    assert found.summary.headline[0] in summary


def test_an_algorithm_looks_the_same_in_all_sections():
    text = page(across([*THREE, *against("sapo")]))
    looks = [
        set(re.findall(rf'(<svg class="swatch"(?:(?!</svg>).)*</svg>){name}<', text))
        for name in ("gspo", "grpo", "sapo")
    ]
    assert [len(each) for each in looks] == [1, 1, 1]
    assert len(set.union(*looks)) == 3


def test_names_of_models_are_escaped_everywhere():
    runs = [*section("b", model__name="<b>|*x*\x1b[31m"), *section("b")]
    found = across([replace(run, folder=f"{place}-s{run.seed}") for place, run in enumerate(runs)])
    assert any("<b>|" in name for name in found.summary.sections)
    for text in (page(found), markdown(found), terminal(found)):
        assert "\x1b" not in text
    assert "<b>|" not in page(found)


def test_the_terminal_shows_the_summary_and_the_verdict_of_each_section():
    found = across([*THREE, *section("customer_service_" * 3, IDLE, IDLE)])
    lines = terminal(found).split("\n")
    assert max(map(cell_len, lines)) <= 80
    flat = " ".join(" ".join(lines).split())
    for sentence in found.summary.headline:
        assert " ".join(sentence.split()) in flat
    for name, each in zip(found.summary.sections[:3], found.sections[:3], strict=True):
        assert f"{name} {each.headline[0]}" in flat
        assert each.headline[-1] not in flat, "the rest is in the report"


@pytest.mark.long
def test_tables_and_figures_are_those_of_the_summary_and_of_each_section(tmp_path):
    pytest.importorskip("resvg_py", reason="needs the extra figures")
    found = across(THREE)
    tables_of, figures = write_tables(found, tmp_path), write_figures(found, tmp_path)
    names = ("results", "across", "not_compared", "left_out")
    assert {path.name for path in tables_of.glob("*.csv")} == {f"{name}.csv" for name in names}
    with (tables_of / "results.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["folder"] for row in rows] == ["section-1", "section-2", "section-3"]
    assert [float(row["difference_value"]) for row in rows] == differences(found)
    with (tables_of / "across.csv").open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    assert float(row["further_low"]) == found.summary.arms[0].further.low
    assert row["sections"] == "; ".join(found.summary.sections)
    for place, own in enumerate(found.sections, start=1):
        alone = write_tables(own, tmp_path / str(place))
        for path in alone.iterdir():
            assert (tables_of / f"section-{place}" / path.name).read_bytes() == path.read_bytes()
        charts = {f"{chart.key}.{kind}" for chart in own.charts for kind in ("svg", "png")}
        assert {path.name for path in (figures / f"section-{place}").iterdir()} == charts
    assert result_table(found).stacks
