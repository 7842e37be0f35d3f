"""What gspo-compare does not say: numbers that were not measured, verdicts that seeds do not support, runs
that tell nothing; and folders that hold more, or less, than runs."""

from __future__ import annotations

import io
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from gspo_cli.commands.compare_view import show
from gspo_cli.compare.comparison import compare
from gspo_cli.compare.content import reading
from gspo_cli.compare.contrasts import problem_tests
from gspo_cli.compare.outcomes import EVALUATIONS, PRIMARY, budget_of, evaluations_to
from gspo_cli.compare.report import markdown, page
from gspo_cli.compare.result import Estimate, Verdict
from gspo_cli.compare.runs import find_runs
from gspo_cli.compare.statistics import adjusted, mean_difference
from gspo_cli.compare.tables import not_measured, problem_table
from gspo_cli.config.compare_schema import CompareConfig
from gspo_cli.console.words import number
from gspo_cli.errors import UserError
from tests.support.stored_runs import changed, stored_run, write_run

LEVEL = 0.95
BETWEEN = ("score_at_tokens", "auc", "steps_to_threshold", "tokens_to_threshold")
EXACT = {"noise": 0.0, "seed_spread": 0.0, "jitter": 0.0}
IDLE = "No run learned: the comparison says nothing about the algorithms."


def runs_of(seeds=range(3), iterations=20, every=4, **finals):
    """Runs by algorithm; its value is the final score, or further fields of a Plan."""
    planned = {name: own if isinstance(own, dict) else {"final": own} for name, own in finals.items()}
    return [
        stored_run(name, seed, iterations, **{"every": every, **own})
        for name, own in planned.items()
        for seed in seeds
    ]


def found(runs, **settings):
    return compare(runs, [], CompareConfig(**settings))


def contrast_of(comparison, key):
    return next(contrast for contrast in comparison.contrasts if contrast.outcome == key)


def with_scores(run, *scores):
    """The run with these held-out scores, in the order of its evaluations."""
    evals = [record | {"score": score} for record, score in zip(run.evals, scores, strict=True)]
    return replace(run, evals=evals)


def test_what_lies_between_evaluations_is_not_measured_with_fewer_than_five():
    comparison = found(runs_of(every=10, gspo=0.9, grpo=0.5))
    why = "fewer than 5 evaluations; use a smaller evaluation.every"
    for key in BETWEEN:
        contrast = contrast_of(comparison, key)
        assert (contrast.arm, contrast.baseline, contrast.difference) == (Estimate(None),) * 3
        assert (contrast.verdict, contrast.p_adjusted) == (Verdict.void, None)
        assert contrast.sentence == f"not measured: {why}"
        assert [run.outcomes[key] for arm in comparison.arms for run in arm.runs] == [None] * 6
    names = [outcome.title for outcome in comparison.outcomes if outcome.key in BETWEEN]
    assert f"Not measured: {', '.join(names)} ({why})" in not_measured(comparison)
    assert contrast_of(comparison, PRIMARY).verdict is Verdict.higher
    often = found(runs_of(every=5, gspo=0.9, grpo=0.5))
    assert all(contrast_of(often, key).arm.value is not None for key in BETWEEN)


def test_one_run_with_few_evaluations_is_enough_for_the_others_not_to_be_read_between():
    runs = runs_of(gspo=0.9, grpo=0.5)
    runs[0] = replace(runs[0], evals=[runs[0].evals[0], *runs[0].evals[-3:]])
    assert contrast_of(found(runs), "auc").arm.value is None


def test_the_last_evaluation_of_a_run_that_ended_stands_for_those_after_it():
    collapsed = stored_run("grpo", 0, 40, every=10, status="collapsed", ends=12, collapses_at=11)
    assert len(collapsed.evals) < EVALUATIONS
    assert evaluations_to(collapsed, 40) == evaluations_to(stored_run("gspo", 0, 40, every=10), 40) == 5


def test_the_problem_test_names_runs_and_no_algorithm_as_the_winner():
    runs = runs_of(gspo={"final": 0.8, **EXACT}, grpo={"final": 0.6, **EXACT})
    (test,) = found(runs).problem_tests
    assert (test.p, test.p_adjusted) == (test.p, test.p)
    assert test.p < 0.01
    said = "the 3 runs of gspo solve more held-out problems than the 3 of grpo, by 0.2 ["
    assert test.sentence.startswith(said)
    assert test.sentence.endswith("other seeds may give another result, which the headline tests")
    (turned,) = found(runs, baseline="gspo").problem_tests
    assert turned.sentence.startswith(
        said.replace("gspo", "x").replace("grpo", "gspo").replace("x", "grpo").replace("more", "fewer")
    )
    (one,) = found([runs[0], runs[3]]).problem_tests
    assert one.sentence.startswith("one run of gspo solves more held-out problems than one of grpo, by 0.2")
    assert one.sentence.endswith("other seeds may give another result, and a single seed cannot tell")
    same = found(runs_of(gspo=EXACT, grpo=EXACT)).problem_tests[0].sentence
    assert same.startswith("not distinguishable on these problems: the 3 runs of gspo and the 3 of grpo")
    (void,) = found([changed(runs[0], rollout__temperature=0.5), *runs[1:]]).problem_tests
    assert void.sentence.startswith("inconclusive; ")
    methods = " ".join(found(runs).methods)
    assert "not which algorithm is better" in methods


def test_the_problem_test_is_adjusted_over_arms():
    runs = runs_of(gspo=0.72, gspo_token=0.9, grpo=0.7)
    arms = {"gspo": runs[:3], "gspo_token": runs[3:6], "grpo": runs[6:]}
    tests = problem_tests(arms, "grpo", 20, LEVEL)
    assert [test.p_adjusted for test in tests] == adjusted([test.p for test in tests])
    assert tests[1].p_adjusted > tests[1].p
    assert "(adjusted p " in tests[1].sentence
    assert f"({number(tests[1].p_adjusted, 2)})" in str(problem_table(found(runs)).rows[1][7])


def excluding(run, count, problems=50):
    return replace(
        run, evals=[record | {"num_problems": problems, "excluded": count} for record in run.evals]
    )


@pytest.mark.parametrize(("count", "void"), [(0, False), (5, False), (6, True), (25, True)])
def test_scores_of_different_problems_because_some_were_excluded_are_said_or_void(count, void):
    runs = [excluding(run, count) for run in runs_of(gspo=0.8)] + [excluding(r, 0) for r in runs_of(grpo=0.6)]
    comparison = found(runs)
    said = [text for text in [*comparison.voided, *comparison.cautions] if "were excluded" in text]
    assert len(said) == (count > 0)
    assert [f"(gspo up to {2 * count}%, grpo up to 0%)" in text for text in said] == [True] * len(said)
    assert (contrast_of(comparison, PRIMARY).verdict is Verdict.void) == void


def test_a_run_without_a_score_within_the_budget_voids_the_comparison():
    long = [with_scores(run, None, *[0.9] * 5) for run in runs_of(gspo=0.9)]
    comparison = found([*long, *runs_of(iterations=3, grpo=0.6)])
    (reason,) = [text for text in comparison.voided if "gspo-s0" in text]
    assert reason == (
        "gspo-s0 has no held-out score within the common budget of 3 iterations; evaluate more often "
        "(evaluation.every)."
    )


def test_runs_that_did_not_learn_say_nothing_about_algorithms():
    never = {"final": 0.3, "noise": 0.01}
    comparison = found(runs_of(gspo=never, grpo=never))
    assert comparison.headline[1] == IDLE
    assert comparison.cautions[0].startswith("No held-out score rose by more than 2 standard errors")
    nothing = found(
        runs_of(gspo={"initial": 0.0, "final": 0.0, **EXACT}, grpo={"initial": 0.0, "final": 0.01, **EXACT})
    )
    assert nothing.headline[1] == IDLE
    void = found(
        [changed(run, rollout__temperature=run.seed + 0.1) for run in runs_of(gspo=never, grpo=never)]
    )
    assert void.headline[2] == IDLE
    one = found([*runs_of(gspo=never, grpo=never)[:-1], stored_run("grpo", 2, 20, every=4, final=0.5)])
    assert IDLE not in one.headline


def test_a_rise_is_more_than_two_standard_errors_of_both_scores():
    flat = [with_scores(run, *[0.5] * 6) for run in runs_of(gspo=0.5, grpo=0.5)]
    error = math.sqrt(2 * 0.25 / 200)  # of the difference of two scores near 0.5 of 200 problems
    for rise, learned in ((1.9 * error, False), (2.1 * error, True)):
        runs = [with_scores(flat[0], *[0.5] * 4, 0.5 + rise, 0.5), *flat[1:]]
        assert (IDLE not in found(runs).headline) == learned


def test_runs_that_all_end_at_the_ceiling_or_the_floor_are_said():
    full = found(runs_of(gspo={"final": 1.2, **EXACT}, grpo={"final": 1.1, **EXACT}))
    assert full.headline[1].startswith("All runs solve everything: ")
    assert full.cautions[0] == "All runs end at a held-out score of 1: use harder problems."
    assert IDLE not in full.headline
    lost = [with_scores(run, 0.3, 0.5, 0.6, 0.5, 0.0, 0.0) for run in runs_of(gspo=0.5, grpo=0.5)]
    assert found(lost).headline[1].startswith("All runs end at 0: ")


def test_the_threshold_is_on_the_way_of_the_lowest_arm_so_that_strong_and_weak_arms_reach_it():
    exact = runs_of(range(5), 40, gspo={"final": 0.8, **EXACT}, grpo={"final": 0.5, **EXACT})
    assert budget_of(exact, None).threshold == pytest.approx(0.3 + 0.8 * (0.5 - 0.3))
    runs = runs_of(range(5), 40, gspo=0.8, grpo=0.5)
    steps = contrast_of(found(runs), "steps_to_threshold")
    assert (steps.arm.n, steps.baseline.n, steps.verdict) == (5, 5, Verdict.lower)
    assert any("80% of the way from the mean first to the lowest arm's" in m for m in found(runs).methods)


def test_an_arm_of_which_not_all_runs_reached_the_threshold_has_no_value():
    runs = runs_of(range(5), gspo={"final": 0.8, **EXACT}, grpo={"final": 0.6, **EXACT})
    runs[5] = stored_run("grpo", 0, 20, every=4, final=0.8, **EXACT)
    comparison = found(runs, threshold=0.75)
    steps = contrast_of(comparison, "steps_to_threshold")
    assert (steps.arm.n, steps.arm.of, steps.arm.value is None) == (5, None, False)
    assert steps.baseline == Estimate(None, n=1, of=5)
    assert (steps.difference, steps.verdict) == (Estimate(None), Verdict.void)
    assert steps.sentence == "inconclusive: only 1 of 5 grpo runs reached the threshold"
    console = Console(width=80, file=io.StringIO())
    show(comparison, [], console)
    assert "grpo reached by 1 of 5 runs" in comparison.claims[1].measured
    shown = console.file.getvalue()
    assert "…" not in shown
    assert all(part in shown for part in ("inconclusive: 5 of", "5 and 1 of 5"))
    for text in (markdown(comparison), page(comparison)):
        assert "inconclusive: 5 of 5 and 1 of 5 reached" in text


def test_there_is_no_threshold_where_the_lowest_arm_does_not_rise():
    comparison = found(runs_of(gspo={"final": 0.8, **EXACT}, grpo={"final": 0.3, **EXACT}))
    steps = contrast_of(comparison, "steps_to_threshold")
    why = "no threshold, because the lowest arm's held-out score did not rise; set compare.threshold"
    assert steps.sentence == f"not measured: {why}"
    assert steps.arm.value is None
    assert contrast_of(comparison, "auc").arm.value is not None
    assert any(method.startswith("There is no threshold:") for method in comparison.methods)


@pytest.mark.parametrize(
    ("gspo", "grpo", "paired"),
    [
        ((1, 2, 3), (0, 2, 3), ()),
        ((0, 1, 2, 3, 4), (3, 4, 9), ()),
        ((0, 1, 2, 3, 4), (3, 4), (3, 4)),
        ((0, 1, 2), (2,), ()),
        ((0, 1), (0, 1), (0, 1)),
    ],
)
def test_arms_are_paired_only_where_no_run_of_the_smaller_one_is_lost(gspo, grpo, paired):
    rng = np.random.default_rng(6)
    arm, baseline = (dict(zip(seeds, rng.normal(size=len(seeds)), strict=True)) for seeds in (gspo, grpo))
    test = mean_difference(arm, baseline, LEVEL)
    assert test.paired == bool(paired)
    assert test.runs == ((len(paired),) * 2 if paired else (len(gspo), len(grpo)))
    kept = [paired, paired] if paired else [gspo, grpo]
    means = [np.mean([side[s] for s in seeds]) for side, seeds in zip((arm, baseline), kept, strict=True)]
    assert test.mean == pytest.approx(means[0] - means[1])


def test_over_which_seeds_a_difference_is_stands_beside_it():
    apart = found([*runs_of((1, 2, 3), gspo=0.9), *runs_of((0, 2, 3), grpo=0.7)])
    assert any("differences between gspo and grpo are of all runs, unpaired" in c for c in apart.cautions)
    assert "(3 seeds, " in contrast_of(apart, PRIMARY).sentence
    part = found([*runs_of(range(5), gspo=0.9), *runs_of((3, 4), grpo=0.7)])
    assert any("are over the shared seeds 3, 4." in caution for caution in part.cautions)
    assert "(2 shared seeds, " in contrast_of(part, PRIMARY).sentence
    for comparison in (apart, part):
        (how,) = [method for method in comparison.methods if method.startswith("Differences")]
        assert "over shared seeds, paired" in how
        assert "else of all runs, unpaired" in how


def test_that_intervals_are_not_adjusted_is_said_where_they_stand():
    comparison = found(runs_of(gspo=0.7, grpo=0.7))
    assert 'one may exclude 0 although the result is "not distinguishable"' in reading(comparison)
    assert any("Intervals are not adjusted" in method for method in comparison.methods)


@pytest.fixture
def sweep(tmp_path):
    for algorithm in ("gspo", "grpo"):
        for seed in range(2):
            write_run(tmp_path / "sweep" / f"{algorithm}-s{seed}", algorithm, seed, 5)
    return tmp_path / "sweep"


def names(runs):
    return [run.folder.rpartition("/")[2] for run in runs]


def test_links_to_runs_are_followed_and_each_run_counts_once(sweep, tmp_path):
    links = tmp_path / "links"
    links.mkdir()
    for run in sorted(sweep.iterdir()):
        (links / run.name).symlink_to(run)
    (links / "again").symlink_to(links)
    (links / "all").symlink_to(sweep)
    runs, out = find_runs([links])
    assert (len(runs), out) == (4, [])
    both = find_runs([links, sweep])
    assert (len(both[0]), both) == (4, find_runs([sweep, links]))


@pytest.mark.parametrize("stray", ["summary.json", "config.yaml", "metrics.jsonl"])
def test_a_stray_file_beside_runs_hides_none_of_them(sweep, stray):
    (sweep / stray).write_text("{}")
    runs, out = find_runs([sweep])
    assert (len(runs), out) == (4, [])


def test_a_run_that_was_prepared_and_never_started_is_left_out_and_said(sweep):
    (sweep / "next").mkdir()
    shutil.copy(sweep / "grpo-s0" / "config.yaml", sweep / "next")
    runs, (out,) = find_runs([sweep])
    assert len(runs) == 4
    assert out.reason == (f"was prepared but never started; start it with gspo-train resume={sweep / 'next'}")


def test_tuning_trials_beside_runs_are_compared_only_where_they_are_given(sweep, tmp_path):
    sweep.rename(tmp_path / "runs")
    write_run(tmp_path / "trials" / "gspo-s1000", "gspo", 1000, 5)
    assert names(find_runs([tmp_path])[0]) == ["grpo-s0", "grpo-s1", "gspo-s0", "gspo-s1"]
    assert names(find_runs([tmp_path / "trials"])[0]) == ["gspo-s1000"]
    (tmp_path / "runs").rename(tmp_path / "others")
    assert "gspo-s1000" in names(find_runs([tmp_path])[0])


@pytest.mark.parametrize("threshold", [math.nan, math.inf, 7.0, 0.0, -0.2])
def test_a_threshold_that_no_score_can_have_is_refused(threshold):
    with pytest.raises(UserError, match=rf"compare\.threshold={threshold}: must be a held-out score above 0"):
        CompareConfig(threshold=threshold)
    assert CompareConfig(threshold=1.0).threshold == 1


def test_pass_at_k_is_of_as_many_samples_as_all_runs_drew():
    def sampled(run, **shares):
        own = [{k: v for k, v in record.items() if not k.startswith("pass@")} for record in run.evals]
        return replace(
            run, evals=[record | {f"pass@{k[1:]}": v for k, v in shares.items()} for record in own]
        )

    few = runs_of(grpo={"final": 0.7, "samples": 4})
    many = runs_of(gspo={"final": 0.7, "samples": 8})
    allowed = {"allow": ["evaluation.samples"]}
    comparison = found(
        [*(sampled(run, k8=0.9) for run in many), *(sampled(run, k4=0.8) for run in few)], **allowed
    )
    contrast = contrast_of(comparison, "pass_at_k")
    assert (contrast.arm.value, contrast.baseline.value) == (None, pytest.approx(0.8))
    assert (contrast.difference.value, contrast.sentence) == (None, "not measured")
    both = found([*(sampled(run, k4=0.7, k8=0.9) for run in many), *few], **allowed)
    assert contrast_of(both, "pass_at_k").arm.value == pytest.approx(0.7)
    assert [o.title for o in both.outcomes if o.key == "pass_at_k"] == ["pass@4"]
    none = found([*runs_of(gspo={"samples": 0}), *few], **allowed)
    assert "pass_at_k" not in {o.key for o in none.outcomes} | {c.outcome for c in none.contrasts}


def test_that_a_score_is_carried_on_is_said_only_where_one_is():
    carried = "A run that ended before the budget keeps its last score."
    whole, ended = (
        runs_of(gspo=0.7, grpo=0.7),
        runs_of(gspo=0.7, grpo={"status": "stopped_early", "ends": 12}),
    )
    for runs, said in ((whole, False), (ended, True)):
        notes = {chart.key: chart.note for chart in found(runs).charts if chart.key.startswith("held_out")}
        assert len(notes) == 4
        assert {carried in note for note in notes.values()} == {said}
