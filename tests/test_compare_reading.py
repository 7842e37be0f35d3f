"""What a reader of gspo-compare is told: means that differ by the difference, the look that settled it,
reasons that are listed, commands for every configuration; also on narrow terminals."""

from __future__ import annotations

import io
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from gspo_cli.commands.compare import compare_settings
from gspo_cli.commands.compare_report import Extras, report
from gspo_cli.commands.compare_view import section_table, show
from gspo_cli.compare.across import compare_subjects
from gspo_cli.compare.comparison import compare
from gspo_cli.compare.outcomes import PRIMARY
from gspo_cli.compare.packing import PACKED, unpacked
from gspo_cli.compare.result import Verdict
from gspo_cli.compare.runs import find_runs
from gspo_cli.compare.sequential import Added
from gspo_cli.config.compare_schema import CompareConfig
from gspo_cli.errors import UserError
from tests.support.stored_runs import changed, stored_run, write_run

SKEWED = (0.2, 0.6, 0.62, 0.64, 0.66)  # their interquartile mean is not their mean


def ending(run, score):
    return replace(run, evals=[*run.evals[:-1], run.evals[-1] | {"score": score}])


def runs_of(scores, algorithm="gspo", **planned):
    return [ending(stored_run(algorithm, seed, 20, **planned), score) for seed, score in enumerate(scores)]


def found(*runs, added=None, **settings):
    return compare([run for each in runs for run in each], [], CompareConfig(**settings), added)


def primary_of(comparison, arm="gspo"):
    return next(c for c in comparison.contrasts if (c.outcome, c.arm_name) == (PRIMARY, arm))


def shown(comparison, width):
    console = Console(file=io.StringIO(), width=width)
    show(comparison, [], console)
    return console.file.getvalue()


def test_the_headline_has_the_means_that_differ_by_the_difference():
    comparison = found(runs_of(SKEWED), runs_of([*[0.5] * 5, 0.9, 0.9], "grpo"))
    here, there = map(float, re.search(r"\(means (\S+) and (\S+)\)", comparison.headline[1]).groups())
    assert (here, there) == (pytest.approx(np.mean(SKEWED), abs=5e-4), 0.5)
    assert here - there == pytest.approx(primary_of(comparison).difference.value, abs=1e-3)
    assert primary_of(comparison).arm.value != pytest.approx(here, abs=0.01), "an interquartile mean"


def test_reasons_are_counted_in_the_headline_and_all_settings_are_allowed_by_one_command():
    runs = [runs_of([0.6, 0.7]), runs_of([0.6, 0.7], "grpo")]
    runs[1] = [changed(run, rollout__temperature=0.7, training__max_grad_norm=3.0) for run in runs[1]]
    comparison = found(*runs)
    assert comparison.headline[0] == "Inconclusive, for 2 reasons listed below."
    both = "compare.allow=[rollout.temperature,training.max_grad_norm]"
    assert all(both in reason for reason in comparison.voided)
    assert found(*runs, allow=both[len("compare.allow=[") : -1].split(",")).voided == []


def test_excluded_conversations_before_training_do_not_blur_the_scores_after_it():
    def without_a_first_score(run):
        none = {"score": None, "excluded": run.evals[0]["num_problems"]}
        return replace(run, evals=[run.evals[0] | none, *run.evals[1:]])

    runs = [runs_of([0.8, 0.82, 0.84]), runs_of([0.6, 0.62, 0.65], "grpo")]
    whole, part = found(*runs), found(*([without_a_first_score(run) for run in own] for own in runs))
    assert primary_of(part).difference == primary_of(whole).difference
    assert primary_of(part).verdict is Verdict.higher


def test_an_arm_that_was_settled_before_others_is_told_as_it_was_settled():
    early = [0.9, 0.91, 0.9, 0.3, 0.1, 0.2, 0.1, 0.2]
    slow = [0.6, 0.4, 0.65, 0.45, 0.6, 0.4, 0.62, 0.42]
    arms = [
        runs_of(early),
        runs_of(slow, "gspo_token"),
        runs_of([0.5, 0.51, 0.5, 0.5, 0.5, 0.51, 0.5, 0.5], "grpo"),
    ]
    comparison = found(*arms, added=Added(range(8), range(3, 9)))
    contrast, looks = primary_of(comparison), comparison.design.looks["gspo"]
    assert looks[0].verdict is Verdict.higher
    assert looks[-1].difference.value < 0
    assert contrast.difference == looks[0].difference
    assert contrast.sentence.startswith("gspo is higher by 0.4 [")
    assert "(3 seeds, " in contrast.sentence
    assert contrast.sentence.endswith(f"; with all 8 seeds the difference is {looks[-1].difference}")


def test_where_seeds_were_added_no_outcome_says_how_many_a_fixed_number_would_need():
    arms = [runs_of([0.6, 0.7, 0.65, 0.6]), runs_of([0.6, 0.66, 0.68, 0.61], "grpo")]
    for added, needed in ((None, True), (Added(range(4), [3, 4]), False)):
        comparison = found(*arms, added=added)
        assert any("would be needed" in c.sentence for c in comparison.contrasts) == needed
        assert any(c.seeds_needed is not None for c in comparison.contrasts) == needed
    fixed, looked = (
        {c.outcome: c.detectable for c in found(*arms, added=added).contrasts if c.detectable}
        for added in (None, Added(range(4), [3, 4]))
    )
    assert all(looked[key] > fixed[key] for key in looked.keys() & fixed.keys() - {PRIMARY})


def test_a_share_that_calibration_sets_is_no_measurement():
    arms = [runs_of([0.6, 0.7]), runs_of([0.6, 0.7], "grpo")]
    for calibrated in (False, True):
        own = [[changed(run, algorithm__clip_calibration="quantile") for run in arm] for arm in arms]
        comparison = found(*(own if calibrated else arms))
        assert ("not measured here: " in comparison.claims[0].measured) == calibrated
        assert comparison.claims[0].measured.count("grpo 0.") == 1


def test_times_to_a_threshold_name_their_arms_where_there_are_several():
    arms = [runs_of([0.8, 0.7, 0.75], name, every=4) for name in ("gspo", "gspo_token", "grpo")]
    measured = found(*arms).claims[1].measured
    for name in ("gspo", "gspo_token"):
        assert measured.count(f"iterations, {name} against grpo: ") == 1
    few = [runs_of([0.8, 0.7, 0.75], name, every=10) for name in ("gspo", "gspo_token", "grpo")]
    assert found(*few).claims[1].measured.count("fewer than 5 evaluations") == 1


def test_every_configuration_of_an_arm_has_a_command_for_its_seeds():
    def long(runs):
        return [changed(run, training__num_outer_iterations=30) if run.seed == 2 else run for run in runs]

    comparison = found(long(runs_of([0.6] * 3)), long(runs_of([0.7] * 3, "grpo")))
    own = [line for line in comparison.reproduce if "algorithm=gspo" in line]
    assert [line.rpartition(" ")[2] for line in own] == ["seed=0,1", "seed=2"]
    assert ["num_outer_iterations=30" in line for line in own] == [False, True]


def test_a_collapsed_run_that_was_repeated_is_not_lost_in_silence(tmp_path):
    for name in ("gspo", "grpo"):
        write_run(tmp_path / f"{name}-s0", name, 0, 20)
    write_run(tmp_path / "again", "gspo", 0, 20, status="collapsed", ends=8, every=4)
    runs, out = find_runs([tmp_path])
    assert len(runs) == 2
    assert [each.reason.endswith("; this one collapsed, which is not counted") for each in out] == [True]
    assert out[0].folder.endswith("again")


def test_a_setting_that_no_run_has_cannot_be_allowed(tmp_path):
    for name in ("gspo", "grpo"):
        write_run(tmp_path / name, name, 0, 5)
    sentence = (
        r"compare\.allow: rolout\.temperature is not a setting of these runs; did you mean rollout\.temp"
    )
    with pytest.raises(UserError, match=sentence):
        find_runs([tmp_path], ["rolout.temperature"])
    for allowed in ("rollout", "rollout.temperature", "hardware.threads"):
        assert len(find_runs([tmp_path], [allowed])[0]) == 2


@pytest.mark.parametrize("text", ["compare.baseline=", "compare.level= "])
def test_a_setting_without_a_value_is_refused(text):
    with pytest.raises(UserError, match=rf"^{text}: has no value; type {text.split('=')[0]}=<value>"):
        compare_settings([text])


@pytest.mark.parametrize("width", [40, 60, 79])
def test_a_narrow_terminal_cuts_no_verdict_and_no_number(width):
    comparison = found(runs_of([0.8, 0.82, 0.84]), runs_of([0.6, 0.62, 0.65], "grpo"))
    text = shown(comparison, width)
    assert "…" not in text
    whole = " ".join(text.split())
    assert "held-out score: higher: better" in whole
    primary = primary_of(comparison)
    assert f"gspo {primary.arm.value:.3f}, grpo {primary.baseline.value:.3f}, difference 0.197 [" in whole
    assert all(len(line) <= width for line in text.splitlines())


def test_names_of_sections_are_not_broken_inside_a_word_at_80_columns():
    names = ("gspo", "gspo_token", "grpo")
    runs = [run for name in names for run in runs_of([0.6, 0.7, 0.65, 0.61], name)]
    shop = [
        replace(r, config={**r.config, "task": {**r.config["task"], "name": "customer_service"}})
        for r in runs
    ]
    across = compare_subjects([*runs, *shop], [], CompareConfig())
    assert section_table(across).columns[0].min_width == len("customer_service,")
    lines = shown(across, 80).splitlines()
    assert any(line.startswith("customer_service, ") for line in lines)
    assert all(len(line) <= 80 for line in lines)


def test_files_of_an_earlier_report_are_named(tmp_path, capsys):
    for name in ("gspo", "grpo"):
        for seed in range(3):
            write_run(tmp_path / "runs" / f"{name}-s{seed}", name, seed, 5)
    folder = tmp_path / "report"
    report([tmp_path / "runs"], CompareConfig(), folder, Extras(csv=True))
    report([tmp_path / "runs"], CompareConfig(), folder, Extras())
    assert capsys.readouterr().err == "", "they are of these runs"
    shutil.rmtree(tmp_path / "runs" / "gspo-s2")
    report([tmp_path / "runs"], CompareConfig(), folder, Extras())
    assert "note: of an earlier report, and not written again: " in capsys.readouterr().err
    (folder / "tables" / "results.csv").write_text("of a report on several tasks")
    report([tmp_path / "runs"], CompareConfig(level=0.9), folder, Extras(csv=True))
    said = capsys.readouterr().err
    assert said == f"note: of an earlier report, and not written again: {folder / 'tables' / 'results.csv'}\n"


def test_a_packed_comparison_is_not_taken_from_a_changed_copy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("gspo", "grpo"):
        for seed in range(2):
            write_run(tmp_path / "runs" / f"{name}-s{seed}", name, seed, 5)
    report([tmp_path / "runs"], CompareConfig(), tmp_path / "report", Extras(zip=True))
    copy = unpacked(tmp_path / "report" / PACKED)
    assert unpacked(tmp_path / "report" / PACKED) == copy
    report([copy], CompareConfig(), copy, Extras(csv=True))
    assert unpacked(tmp_path / "report" / PACKED) == copy, "a report may lie beside its runs"
    write_run(copy / "runs" / "gspo-s9", "gspo", 9, 5)
    with pytest.raises(UserError, match=f"was unpacked to {copy}, whose runs have been changed; remove"):
        unpacked(tmp_path / "report" / PACKED)
    shutil.rmtree(copy / "runs" / "gspo-s9")
    (copy / "runs" / "gspo-s1" / "evals.jsonl").unlink()
    with pytest.raises(UserError, match="whose runs have been changed"):
        unpacked(tmp_path / "report" / PACKED)


def test_a_folder_of_packed_comparisons_is_told_how_to_give_them(tmp_path):
    (tmp_path / "a b.ZIP").write_bytes(b"")
    with pytest.raises(
        UserError, match=r"packed comparisons; give their files: gspo-compare '\S+/a b\.ZIP'$"
    ):
        find_runs([tmp_path])
