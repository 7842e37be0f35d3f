"""The statistics of gspo-compare: planted differences are found, none is found where there is none, and every
number is what its definition says."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from gspo_cli.compare.comparison import compare
from gspo_cli.compare.contrasts import contrasts
from gspo_cli.compare.outcomes import PRIMARY, budget_of, crossing, measure, outcomes, resolutions, spikes
from gspo_cli.compare.result import OutcomeSpec, Verdict
from gspo_cli.compare.statistics import (
    adjusted,
    detectable,
    estimates,
    mean_difference,
    power,
    problems_differ,
    seeds_needed,
)
from gspo_cli.config.compare_schema import CompareConfig
from tests.support.growth import grows_linearly
from tests.support.stored_runs import changed, stored_run

FOUND = {Verdict.higher, Verdict.lower}
LEVEL = 0.95


def contrast_of(comparison, key):
    return next(contrast for contrast in comparison.contrasts if contrast.outcome == key)


def pair(seeds, iterations=20, gspo=None, grpo=None, every=4, **planned):
    return [
        stored_run(name, seed, iterations, every=every, **planned, **(own or {}))
        for name, own in (("gspo", gspo), ("grpo", grpo))
        for seed in range(seeds)
    ]


@pytest.mark.parametrize(("final", "verdict"), [(0.78, Verdict.higher), (0.62, Verdict.lower)])
def test_a_planted_difference_of_four_standard_deviations_is_found(final, verdict):
    found = compare(pair(5, gspo={"final": final}, grpo={"final": 0.7}, noise=0.02), [], CompareConfig())
    primary = contrast_of(found, PRIMARY)
    assert primary.verdict is verdict
    assert primary.difference.low < final - 0.7 < primary.difference.high
    assert primary.paired
    word = f"gspo is {verdict.value} by 0.0"
    assert primary.sentence.startswith(word)
    assert found.headline[0] == f"gspo has a {verdict.value} held-out score than grpo after 20 iterations."
    assert word in found.headline[1]
    assert contrast_of(found, "score_at_tokens").verdict is verdict
    assert contrast_of(found, "auc").verdict is verdict


def test_identical_runs_are_not_distinguishable_in_anything():
    runs = pair(5)
    grpo, gspo = runs[5].algorithm, runs[:5]
    copies = [
        replace(run, folder=f"copy-{run.seed}", config=run.config | {"algorithm": grpo}) for run in gspo
    ]
    found = compare(gspo + copies, [], CompareConfig())
    measured = [contrast for contrast in found.contrasts if contrast.arm.value is not None]
    assert len(measured) > 20
    assert {contrast.verdict for contrast in measured} == {Verdict.not_distinguishable}
    assert {(c.difference.value, c.difference.low, c.difference.high) for c in measured} == {(0, 0, 0)}
    assert {contrast.p for contrast in measured} == {1}
    assert measured[0].sentence == "not distinguishable: no difference (5 seeds)"
    test = found.problem_tests[0]
    assert (test.difference.value, test.p, test.only_arm, test.only_baseline) == (0, 1, 0, 0)


def null_comparison(number, seeds=5):
    """Contrasts of two arms whose runs come of one distribution."""
    tables = {
        name: [
            stored_run(name, 1000 * number + seed, 9, every=2, problems=25, samples=0, noise=0.03)
            for seed in range(seeds)
        ]
        for name in ("gspo", "gspo_token")
    }
    everything = [run for runs in tables.values() for run in runs]
    budget = budget_of(everything, 0.35)
    measured = {name: {run.seed: measure(run, budget) for run in runs} for name, runs in tables.items()}
    return contrasts(
        measured, "gspo_token", outcomes(budget), resolutions(everything, budget), LEVEL, resamples=2
    )


@pytest.mark.long
def test_false_alarms_stay_at_the_stated_level_over_200_comparisons():
    made = 200
    everything = [null_comparison(number) for number in range(made)]
    low, high = (stats.binom.ppf(q, made, 1 - LEVEL) for q in (0.005, 0.995))
    alarms = {"primary": 0, "directed": 0, "descriptive": 0}
    better = {o.key: o.better for o in outcomes(budget_of([stored_run()], None))}
    for found in everything:
        hits = {c.outcome for c in found if c.verdict in FOUND}
        alarms["primary"] += PRIMARY in hits
        alarms["directed"] += any(better[key] != "none" and key != PRIMARY for key in hits)
        alarms["descriptive"] += any(better[key] == "none" for key in hits)
    assert low <= alarms["primary"] <= high, alarms
    assert alarms["directed"] <= high, alarms
    assert alarms["descriptive"] <= high, alarms


@pytest.mark.parametrize("effect", [0.5, 0.7, 0.9])
def test_as_many_seeds_as_are_named_find_a_paired_difference_with_80_percent_power(effect):
    differences = np.array([-1.0, 0.0, 1.0]) + effect  # standard deviation 1
    test = mean_difference(dict(enumerate(differences)), dict.fromkeys(range(3), 0.0), LEVEL)
    n = seeds_needed(test, LEVEL)
    drawn = np.random.default_rng(1).normal(effect, 1, size=(4000, n))
    share = (stats.ttest_1samp(drawn, 0, axis=1).pvalue < 1 - LEVEL).mean()
    assert abs(share - 0.8) <= 0.06, (n, share)
    assert power(effect * math.sqrt(n - 1), n - 2, LEVEL) < 0.8 <= power(effect * math.sqrt(n), n - 1, LEVEL)


def test_as_many_seeds_as_are_named_find_an_unpaired_difference_with_80_percent_power():
    arm = dict(enumerate(np.array([-1.0, 0.0, 1.0]) + 0.9))
    baseline = dict(enumerate(2 * np.array([-1.0, 0.0, 1.0]), start=10))
    test = mean_difference(arm, baseline, LEVEL)
    assert not test.paired
    n = seeds_needed(test, LEVEL)
    rng = np.random.default_rng(2)
    one, other = rng.normal(0.9, 1, size=(4000, n)), rng.normal(0, 2, size=(4000, n))
    share = (stats.ttest_ind(one, other, axis=1, equal_var=False).pvalue < 1 - LEVEL).mean()
    assert abs(share - 0.8) <= 0.06, (n, share)


def test_power_is_that_of_the_noncentral_t():
    for df, effect in ((1, 3.0), (4, 2.5), (9.5, 2.8), (400, 3.0)):
        bound = stats.t.ppf(0.975, df)
        exact = stats.nct.sf(bound, df, effect) + stats.nct.cdf(-bound, df, effect)
        assert power(effect, df, LEVEL) == pytest.approx(exact, rel=1e-9)
    assert power(60.0, 900, LEVEL) == 1.0


def test_the_detectable_difference_is_found_with_80_percent_power():
    values = np.random.default_rng(3).normal(size=6)
    test = mean_difference(dict(enumerate(values)), dict.fromkeys(range(6), 0.0), LEVEL)
    found = detectable(test, LEVEL)
    assert power(found / (values.std(ddof=1) / math.sqrt(6)), 5, LEVEL) == pytest.approx(0.8, abs=1e-9)


def test_a_difference_that_no_number_of_seeds_would_settle_is_said():
    values = {0: 1.0, 1: -1.0, 2: 0.003}
    test = mean_difference(values, dict.fromkeys(range(3), 0.0), LEVEL)
    assert seeds_needed(test, LEVEL) is None
    found = compare(pair(3, final=0.7), [], CompareConfig())
    for contrast in found.contrasts:
        if contrast.verdict is Verdict.not_distinguishable and contrast.difference.value:
            needed = contrast.seeds_needed
            said = "more than 1000 seeds" if needed is None else f"about {needed} seeds"
            assert said in contrast.sentence
            assert needed is None or needed > 3


def test_pairs_are_tested_by_student_and_others_by_welch():
    rng = np.random.default_rng(4)
    arm, baseline = rng.normal(size=5), rng.normal(size=5)
    paired = mean_difference(dict(enumerate(arm)), dict(enumerate(baseline)), LEVEL)
    exact = stats.ttest_rel(arm, baseline)
    assert paired.p == exact.pvalue
    assert (paired.low, paired.high) == pytest.approx(tuple(exact.confidence_interval(LEVEL)))
    apart = mean_difference(dict(enumerate(arm)), dict(enumerate(baseline, start=5)), LEVEL)
    exact = stats.ttest_ind(arm, baseline, equal_var=False)
    assert apart.p == exact.pvalue
    assert (apart.low, apart.high) == pytest.approx(tuple(exact.confidence_interval(LEVEL)))
    two_of_three = mean_difference({0: 1.0, 1: 2.0, 2: 9.0}, {1: 1.5, 2: 8.0}, LEVEL)
    assert (two_of_three.paired, two_of_three.runs, two_of_three.mean) == (True, (2, 2), 0.75)
    not_all_shared = mean_difference({0: 1.0, 1: 2.0, 2: 9.0}, {1: 1.5, 2: 8.0, 3: 7.0}, LEVEL)
    assert (not_all_shared.paired, not_all_shared.runs, not_all_shared.mean) == (False, (3, 3), -1.5)
    one_shared = mean_difference({0: 1.0, 1: 2.0}, {1: 1.5, 2: 1.0}, LEVEL)
    assert (one_shared.paired, one_shared.runs) == (False, (2, 2))


def test_a_difference_without_spread_is_not_certain_beyond_what_was_counted():
    arm, baseline = dict.fromkeys(range(3), 0.55), dict.fromkeys(range(3), 0.5)
    counted = mean_difference(arm, baseline, LEVEL, resolution=1 / 20)
    floor = math.sqrt(1 / 6) / 20 / math.sqrt(3)
    assert counted.p == pytest.approx(2 * stats.t.sf(0.05 / floor, 2))
    assert counted.p > 0.05
    continuous = mean_difference(arm, baseline, LEVEL)
    assert (continuous.p, continuous.low) == (0.25, None)
    apart = mean_difference(arm, {9: 0.5, 8: 0.5, 7: 0.5}, LEVEL)
    assert apart.p == pytest.approx(2 / 20)


def test_outcomes_are_adjusted_within_their_family_and_the_primary_alone():
    found = compare(pair(5, gspo={"final": 0.73}), [], CompareConfig())
    better = {outcome.key: outcome.better for outcome in found.outcomes}
    primary = contrast_of(found, PRIMARY)
    assert primary.p_adjusted == primary.p
    for describes in (True, False):
        others = [c for c in found.contrasts if c.outcome != PRIMARY and c.p_adjusted is not None]
        tested = [c for c in others if (better[c.outcome] == "none") == describes]
        assert len(tested) >= 8
        assert [c.p_adjusted for c in tested] == adjusted([c.p for c in tested])


def contrasts_with_p(**wanted):
    """Contrasts of arms against a baseline of 0, over five seeds, each with the p that is wanted of it."""
    spread = np.array([-1.0, -0.5, 0.0, 0.5, 1.0])
    error = spread.std(ddof=1) / math.sqrt(5)
    tables = {
        name: {seed: {PRIMARY: value} for seed, value in enumerate(spread + stats.t.isf(p / 2, 4) * error)}
        for name, p in wanted.items()
    }
    tables["grpo"] = {seed: {PRIMARY: 0.0} for seed in range(5)}
    return contrasts(tables, "grpo", [OutcomeSpec(PRIMARY, "", "", "higher", "")], {}, LEVEL, resamples=2)


@pytest.mark.parametrize(("p", "verdict"), [(0.049, Verdict.higher), (0.051, Verdict.not_distinguishable)])
def test_a_verdict_is_given_below_the_stated_rate_of_false_alarms_and_not_above(p, verdict):
    (found,) = contrasts_with_p(gspo=p)
    assert found.p_adjusted == pytest.approx(p)
    assert found.verdict is verdict


def test_seeds_needed_are_those_of_the_level_that_an_adjusted_p_is_held_to():
    found, _ = contrasts_with_p(gspo=0.03, cispo=0.9)
    assert found.p_adjusted == pytest.approx(0.06)
    differences = np.array([-1.0, -0.5, 0.0, 0.5, 1.0]) + found.difference.value
    test = mean_difference(dict(enumerate(differences)), dict.fromkeys(range(5), 0.0), LEVEL)
    assert found.seeds_needed == seeds_needed(test, 0.975) > seeds_needed(test, LEVEL)
    assert found.detectable == pytest.approx(detectable(test, 0.975))
    assert "adjusted p = 0.06" in found.sentence


def test_with_several_arms_the_primary_outcome_is_adjusted_over_them():
    runs = [*pair(4, gspo={"final": 0.73}), *(stored_run("gspo_token", s, 20, final=0.72) for s in range(4))]
    found = compare(runs, [], CompareConfig())
    primary = [contrast for contrast in found.contrasts if contrast.outcome == PRIMARY]
    assert [contrast.arm_name for contrast in primary] == ["gspo", "gspo_token"]
    assert [c.p_adjusted for c in primary] == adjusted([c.p for c in primary])


def test_the_interval_of_an_arm_covers_its_mean_and_widens_with_the_level():
    rows = np.random.default_rng(5).normal(size=(3, 6))
    rows[1, 2] = math.nan
    narrow, wide = estimates(rows, 0.8), estimates(rows, 0.99)
    for row, small, large in zip(rows, narrow, wide, strict=True):
        values = row[np.isfinite(row)]
        assert small.value == pytest.approx(stats.trim_mean(values, 0.25))
        assert large.low <= small.low <= small.value <= small.high <= large.high
        assert small.n == len(values)
    assert estimates([[1.0, math.nan], [math.nan, math.nan]], 0.9)[0].low is None
    assert estimates([[math.nan, math.nan]], 0.9)[0].value is None


def test_the_problem_test_counts_problems_and_sees_a_difference():
    found = compare(pair(5, gspo={"final": 0.8}, grpo={"final": 0.7}), [], CompareConfig())
    test = found.problem_tests[0]
    assert test.both + test.only_arm + test.only_baseline + test.neither == pytest.approx(test.problems)
    assert (test.only_arm - test.only_baseline) / test.problems == pytest.approx(test.difference.value)
    assert test.p < 0.01
    assert test.sentence.startswith("the 5 runs of gspo solve more held-out problems than the 5 of grpo, by")
    assert test.sentence.endswith("other seeds may give another result, which the headline tests")
    alike = problems_differ(np.array([1.0, 0.0, 1.0, 0.0]), np.array([0.0, 1.0, 1.0, 0.0]), LEVEL)
    assert alike[1] == 1.0
    all_better = problems_differ(
        np.array([0.9, 0.6, 1.0, 0.4, 0.7]), np.array([0.8, 0.3, 0.5, 0.2, 0.1]), LEVEL
    )
    assert all_better[1] == pytest.approx(2 / 2**5)  # of all ways to swap a problem's two shares


def test_scores_are_compared_at_equal_updates_and_at_equal_tokens():
    run, scores = stored_run("gspo", 0, 20, every=5), (0.2, 0.3, 0.4, 0.6, 0.8)
    evals = [record | {"score": score} for record, score in zip(run.evals, scores, strict=True)]
    run, tokens = replace(run, evals=evals), run.metrics[19]["num_tokens"]
    half = replace(
        stored_run("grpo", 0, 20, every=5),
        metrics=[record | {"num_tokens": tokens * record["iteration"] // 40} for record in run.metrics],
    )
    budget = budget_of([run, half], None)
    assert budget.tokens == tokens // 2
    values = measure(run, budget)
    assert values[PRIMARY] == 0.8
    at = [0, *(run.metrics[place]["num_tokens"] for place in (4, 9, 14)), tokens]
    assert values["score_at_tokens"] == pytest.approx(np.interp(tokens // 2, at, scores))
    assert values["auc"] == pytest.approx((0.25 + 0.35 + 0.5 + 0.7) * 5 / 20)
    assert values["best_score"] == 0.8


def test_the_threshold_is_met_between_evaluations_or_not_at_all():
    places, scores = [0, 10, 20, 30], [0.2, 0.6, 0.5, 0.9]
    assert crossing(places, scores, 0.4) == pytest.approx(5.0)
    assert crossing(places, scores, 0.75) == pytest.approx(20 + 10 * 0.25 / 0.4)
    assert crossing(places, scores, 0.1) == 0
    assert crossing(places, scores, 0.95) is None
    assert crossing(places, [0.2, 0.9, 0.3, 0.4], 0.55) == pytest.approx(5.0)  # first, though lost later


def test_a_threshold_that_some_runs_miss_gets_no_verdict():
    found = compare(
        pair(3, gspo={"final": 0.9}, grpo={"final": 0.5}, noise=0.0), [], CompareConfig(threshold=0.8)
    )
    steps = contrast_of(found, "steps_to_threshold")
    assert steps.verdict is Verdict.void
    assert steps.sentence == "inconclusive: only 0 of 3 grpo runs reached the threshold"
    assert steps.p_adjusted is None
    assert steps.arm.n == 3


def test_spikes_are_counted_against_the_median_before():
    assert spikes([1.0] * 6 + [10.5, 1.0, 9.0, 30.0]) == 2
    assert spikes([1.0, 1.0, 50.0] + [1.0] * 8) == 0  # too early to know what is usual
    run = stored_run("gspo", 0, 40, spikes_at=(20, 30))
    assert measure(run, budget_of([run], None))["grad_spikes"] == 2


def test_worst_drop_collapse_and_lengths_are_what_was_planted():
    run = stored_run("grpo", 0, 40, collapses_at=30, clip=0.02)
    values = measure(run, budget_of([run], 0.5))
    scores = [record["score"] for record in run.evals]
    assert values["worst_drop"] == pytest.approx(max(scores) - 0.05)
    assert values["collapses"] == 1
    clips = [record["clip_ratio/token"] for record in run.metrics]
    assert values["clip_token"] == pytest.approx(np.mean(clips))
    lengths = [record["completions/mean_length"] for record in run.metrics]
    assert values["length_change"] == pytest.approx(np.mean(lengths[-4:]) - np.mean(lengths[:4]))
    healthy = stored_run("grpo", 0, 40)
    assert measure(healthy, budget_of([healthy], 0.5))["collapses"] == 0
    back = [*healthy.metrics[:34], healthy.metrics[34] | {"rolled_back_to": 30}, *healthy.metrics[35:]]
    assert measure(replace(healthy, metrics=back), budget_of([healthy], 0.5))["collapses"] == 1


def test_curves_hold_at_most_as_many_points_as_a_figure_shows():
    found = compare(pair(2, iterations=300, every=2, problems=20), [], CompareConfig())
    for chart in found.charts:
        for series in chart.series:
            assert 2 <= len(series.x) <= 60
            assert len(series.x) == len(series.value) == len(series.low) == len(series.high)
            assert max(series.x) <= 300 or chart.key not in ("held_out", "reward")
    held_out = found.charts[0].series[0]
    assert (held_out.x[0], held_out.x[-1]) == (0, 300)
    assert held_out.value[-1] == pytest.approx(found.contrasts[0].arm.value)


def test_shadows_stand_beside_what_was_clipped():
    found = compare(pair(3), [], CompareConfig())
    by_arm = {(shadow.arm_name, shadow.other): shadow for shadow in found.shadows}
    assert set(by_arm) == {("gspo", "grpo"), ("grpo", "gspo")}
    shadow = by_arm["grpo", "gspo"]
    assert shadow.clip_token_used.value == pytest.approx(contrast_of(found, "clip_token").baseline.value)
    assert shadow.clip_token.value == pytest.approx(shadow.clip_token_used.value * 0.15 / 0.0013)
    assert shadow.weight_correlation.value == pytest.approx(0.4)
    used = by_arm["gspo", "grpo"]
    assert used.clip_token_used == contrast_of(found, "clip_token").arm
    assert used.clip_sequence_used == contrast_of(found, "clip_sequence").arm


def test_another_learning_rate_makes_another_arm():
    runs = pair(2)
    fast = [changed(run, algorithm__learning_rate=3e-4) for run in runs[:2]]
    found = compare([*runs, *fast], [], CompareConfig())
    assert [arm.name for arm in found.arms] == ["gspo", "gspo learning_rate=0.0003", "grpo"]


def test_the_time_of_measuring_a_run_grows_as_the_run_does():
    runs = {iterations: stored_run(iterations=iterations) for iterations in (250, 2000)}
    budgets = {iterations: budget_of([run], None) for iterations, run in runs.items()}
    assert grows_linearly(lambda size: measure(runs[size], budgets[size]), 250)
