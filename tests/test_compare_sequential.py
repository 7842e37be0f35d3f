"""Seeds added until a comparison is settled: the error rate holds over all looks together, and as many more
seeds as are promised settle it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from gspo_cli.compare.comparison import compare
from gspo_cli.compare.outcomes import PRIMARY
from gspo_cli.compare.report import json_text, markdown
from gspo_cli.compare.result import Verdict
from gspo_cli.compare.sequential import (
    Added,
    Boundary,
    boundary,
    critical_values,
    design_of,
    error_spent,
    more_seeds,
)
from gspo_cli.compare.until_settled import is_settled, look_text
from gspo_cli.config.compare_schema import CompareConfig
from tests.support.stored_runs import stored_run

ROOT = Path(__file__).resolve().parent.parent
LEVEL, RATE = 0.95, 0.05
FOUND = {Verdict.higher, Verdict.lower}
LOOKS = (3, 4, 5, 6, 8, 10)
MADE = 500  # simulated comparisons
PROBLEMS = 88


def t_path(drawn, looks):
    """|t| of the first n columns at each look, as a textbook has it."""
    return np.stack([np.abs(stats.ttest_1samp(drawn[:, :n], 0, axis=1).statistic) for n in looks], axis=1)


def test_one_look_is_the_t_test():
    for n in (2, 3, 8, 50):
        exact = stats.t.isf(RATE * error_spent(n) / 2, n - 1)
        assert critical_values((n,), (RATE,))[0, 0] == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize(("first", "n", "rate"), [(2, 3, 0.05), (3, 20, 0.05), (3, 20, 1e-3), (3, 100, 0.01)])
def test_a_look_after_one_that_spends_nothing_is_the_t_test(first, n, rate):
    found = boundary((first, n), np.array([[1e-12], [rate]]))[1, 0]
    assert found == pytest.approx(stats.t.isf(rate / 2, n - 1), rel=1e-3)


@pytest.mark.parametrize(
    ("spent", "published"),
    [
        # Lan and DeMets (1983), five looks at equal distances, two tails of 0.025 each
        (lambda share: 4 * stats.norm.sf(stats.norm.isf(0.0125) / np.sqrt(share)),
         (4.8769, 3.3569, 2.6803, 2.2898, 2.0310)),
        (lambda share: 0.05 * np.log1p((math.e - 1) * share), (2.4380, 2.4268, 2.4101, 2.3966, 2.3859)),
    ],
)  # fmt: skip
def test_with_many_seeds_the_boundaries_are_the_published_ones_of_the_normal_distribution(spent, published):
    looks = np.array([40, 80, 120, 160, 200])
    t = boundary(looks.tolist(), spent(looks / 200)[:, None])[:, 0]
    assert stats.norm.isf(stats.t.sf(t, looks - 1)) == pytest.approx(published, rel=3e-3)


@pytest.mark.parametrize("looks", [LOOKS, (2, 3, 6, 7, 12), (5, 9, 20)])
@pytest.mark.parametrize("rate", [0.05, 0.4])
def test_without_a_difference_as_many_paths_reach_the_boundary_as_the_error_spent(looks, rate):
    drawn = np.random.default_rng([7, *looks]).normal(size=(100_000, looks[-1]))
    reached = np.maximum.accumulate(t_path(drawn, looks) >= critical_values(looks, (rate,))[:, 0], axis=1)
    expected = rate * np.array([error_spent(n) for n in looks])
    errors = np.sqrt(expected * (1 - expected) / len(drawn))
    assert np.abs(reached.mean(axis=0) - expected).max() <= 4 * errors.max()
    assert (np.diff(expected) > 3 * errors[1:]).all()  # each look's share would be missed


def gaussian(rng):
    """Two arms of one distribution, by seed."""
    shared = rng.normal(0.7, 0.05, LOOKS[-1])
    return [dict(enumerate(shared + rng.normal(0, 0.03, LOOKS[-1]))) for _ in range(2)]


def counted(rng):
    """As many of 88 problems solved as each run's ability lets it; abilities spread over seeds."""
    shared = rng.normal(0.7, 0.05, LOOKS[-1])
    solved = [
        rng.binomial(PROBLEMS, np.clip(shared + rng.normal(0, 0.03, LOOKS[-1]), 0, 1)) for _ in range(2)
    ]
    return [dict(enumerate(own / PROBLEMS)) for own in solved]


def sequentially(pair, smallest=1e-6):
    """The verdict of looks that end when one settles the comparison; the number of seeds then."""
    values = dict(zip(("gspo", "grpo"), pair, strict=True))
    found = design_of(values, "grpo", Added(range(LOOKS[-1]), LOOKS), LEVEL, smallest, 1 / PROBLEMS)
    settled = [look for look in found.looks["gspo"] if look.verdict is not Verdict.not_distinguishable]
    return (settled[0].verdict, settled[0].seeds) if settled else (None, LOOKS[-1])


def highest_expected(rate):
    """The share of false verdicts that a rate of RATE would hardly exceed in MADE comparisons."""
    return rate + 3 * math.sqrt(rate * (1 - rate) / MADE)


@pytest.mark.long
@pytest.mark.parametrize("drawn", [gaussian, counted])
def test_false_verdicts_stay_at_the_stated_level_over_500_comparisons(drawn):
    rng = np.random.default_rng(11)
    share = sum(sequentially(drawn(rng))[0] in FOUND for _ in range(MADE)) / MADE
    assert share <= highest_expected(RATE)
    spent = RATE * error_spent(LOOKS[-1])
    assert 2 * spent - highest_expected(spent) <= share <= highest_expected(spent)  # what is allowed is used


def test_repeating_a_t_test_would_fail_that_check():
    drawn = np.random.default_rng(11).normal(size=(MADE, LOOKS[-1]))
    bounds = [stats.t.isf(RATE / 2, n - 1) for n in LOOKS]
    assert (t_path(drawn, LOOKS) >= bounds).any(axis=1).mean() > highest_expected(RATE)


def test_a_difference_as_large_as_is_of_interest_is_seldom_called_equivalent():
    rng = np.random.default_rng(12)
    shifted = (
        [{s: v + 0.05 for s, v in arm.items()}, other] for arm, other in (gaussian(rng) for _ in range(200))
    )
    found = [sequentially(pair, smallest=0.05)[0] for pair in shifted]
    assert found.count(Verdict.equivalent) / len(found) <= RATE
    equal = [sequentially(gaussian(rng), smallest=0.1)[0] for _ in range(50)]
    assert equal.count(Verdict.equivalent) >= 25


@pytest.mark.parametrize(("effect", "first", "smallest"), [(1.5, 3, 0.02), (1.0, 4, 0.02), (0.1, 5, 1.2)])
def test_the_promised_number_of_more_seeds_settles_80_percent_of_comparisons(effect, first, smallest):
    """A difference of `effect` standard deviations is found, or none as large as `smallest` of them."""
    begun = np.resize([-1.0, 1.0, 0.0], first)
    begun = effect + (begun - begun.mean()) / begun.std(ddof=1)
    promised = more_seeds(begun, Added(range(first), [first]), LEVEL, 1, smallest, 0.0)
    seeds, rng, made = range(first + promised), np.random.default_rng(13), 400
    added, settled = Added(seeds, range(first, first + promised + 1)), np.zeros(promised + 1)
    for _ in range(made):
        values = dict(enumerate([*begun, *rng.normal(effect, 1, promised)]))
        found = design_of(
            {"gspo": values, "grpo": dict.fromkeys(seeds, 0.0)}, "grpo", added, LEVEL, smallest, 0
        )
        at_looks = [look.verdict is not Verdict.not_distinguishable for look in found.looks["gspo"]]
        settled += np.logical_or.accumulate(at_looks)
    error = 3 * math.sqrt(0.8 * 0.2 / made)
    assert settled[0] == 0
    assert settled[-2] / made - error < 0.8 < settled[-1] / made + error


def test_seeds_that_settle_it_as_they_are_need_no_more():
    seeds = np.array([0.004, -0.006, 0.002, 0.001, -0.003])
    assert more_seeds(seeds, Added(range(5), [5]), LEVEL, 1, 0.05, 0.0) == 0
    found = compare(runs_of(8, 0.7), [], CompareConfig(smallest=0.2))
    assert found.more.seeds == 0
    enough = "these seeds are enough to show that the difference is below 0.2."
    assert f"By the rule of compare.until=settled {enough}" in found.headline
    looked = compare(runs_of(8, 0.7), [], CompareConfig(smallest=0.2), Added(range(8), [8]))
    assert (primary_of(looked)[0].verdict, looked.more) == (Verdict.equivalent, None)


@pytest.mark.parametrize(("first", "wrong"), [(3, 0.067), (5, 0.061), (8, 0.056)])
def test_looks_after_a_test_of_a_fixed_number_are_wrong_as_often_as_the_docs_say(first, wrong):
    looks = tuple(range(first, 21))
    t = t_path(np.random.default_rng([14, first]).normal(size=(100_000, 20)), looks)
    fixed = t[:, 0] >= stats.t.isf(RATE / 2, first - 1)
    found = fixed | (t >= critical_values(looks, (RATE,))[:, 0]).any(axis=1)
    assert found.mean() == pytest.approx(wrong, abs=0.0015)
    assert f"{100 * wrong:.1f}%" in (ROOT / "docs" / "comparing.md").read_text(encoding="utf-8")


def test_no_number_of_seeds_is_promised_where_too_many_would_be_needed():
    assert more_seeds(np.array([-1.0, 0.0, 1.1]), Added(range(3), [3]), LEVEL, 1, 0.02, 0.0) is None


def test_an_interval_is_the_difference_and_as_many_standard_errors_as_its_look_takes():
    values = np.array([0.02, 0.05, 0.04, 0.01, 0.06])
    arms = {
        "gspo": dict(enumerate(values)),
        "cispo": dict(enumerate(2 * values)),
        "grpo": dict.fromkeys(range(5), 0.0),
    }
    found = design_of(arms, "grpo", Added(range(5), [3, 5]), LEVEL, 0.05, 0.0)
    critical = critical_values((3, 5), (RATE / 2,))[:, 0]  # divided over two arms
    for name, factor in (("gspo", 1), ("cispo", 2)):
        for look, n, bound in zip(found.looks[name], (3, 5), critical, strict=True):
            own = factor * values[:n]
            half = bound * own.std(ddof=1) / math.sqrt(n)
            interval = (look.difference.value, look.difference.low, look.difference.high)
            assert interval == pytest.approx((own.mean(), own.mean() - half, own.mean() + half), rel=1e-6)
    assert found.spent == pytest.approx(RATE * 4 / 14)


def test_equal_scores_are_only_as_certain_as_what_was_counted():
    values = dict.fromkeys(range(9), 0.5)
    found = design_of({"gspo": values, "grpo": values}, "grpo", Added(range(9), [2, 9]), LEVEL, 0.05, 0.05)
    half = [
        c / math.sqrt(6 * n) * 0.05
        for c, n in zip(critical_values((2, 9), (RATE,))[:, 0], (2, 9), strict=True)
    ]
    assert [look.difference.high for look in found.looks["gspo"]] == pytest.approx(half)
    assert half[1] < 0.05 < half[0]
    assert [look.verdict for look in found.looks["gspo"]] == [Verdict.not_distinguishable, Verdict.equivalent]


def test_p_is_the_lowest_error_rate_at_which_the_look_settles_it():
    limits = Boundary(LOOKS, LEVEL, arms=3)
    for place, n in enumerate(LOOKS):
        for rate in (0.001, RATE / 3, 0.2):
            at = 2 * stats.t.sf(critical_values(LOOKS, (rate,))[place, 0], n - 1)
            assert limits.repeated(place, at) == pytest.approx(rate, rel=0.02)
        assert (np.diff(limits.nominal(place)) > 0).all()
        assert limits.repeated(place, limits.nominal(place)[-1] + 1e-9) == 1


def test_a_look_at_runs_that_are_missing_is_not_taken():
    values = {"gspo": dict.fromkeys(range(4), 0.5), "grpo": dict.fromkeys((0, 1, 2, 4), 0.5)}
    found = design_of(values, "grpo", Added(range(5), [3, 4, 5]), LEVEL, 0.05, 1 / PROBLEMS)
    assert (found.seeds, [look.seeds for look in found.looks["gspo"]]) == ([3], [3])


def test_a_look_in_a_line_has_all_arms():
    values = {"gspo": [0.9, 0.91, 0.9, 0.92], "cispo": [0.6, 0.7, 0.8, 0.9], "grpo": [0.7, 0.7, 0.71, 0.7]}
    arms = {name: dict(enumerate(own)) for name, own in values.items()}
    found = design_of(arms, "grpo", Added(range(4), [3, 4]), LEVEL, 0.05, 0.001)
    gspo, cispo = look_text(found, "grpo").split("; ")
    assert gspo == f"gspo - grpo = {found.looks['gspo'][1].difference}: higher"
    assert cispo.endswith("]: not settled")
    assert not is_settled(found)


def test_where_runs_of_the_first_seeds_are_missing_there_is_no_verdict():
    runs = [run for run in runs_of(3, 0.9) if run.folder != "grpo-s2"]
    found = compared(runs, [3])
    (primary,) = primary_of(found)
    assert (primary.verdict, found.design.seeds) == (Verdict.void, [])
    assert primary.sentence == "inconclusive: not all runs of the first seeds are complete"
    assert (
        "No look was taken: not all runs of the first seeds are complete; repeat the command."
        in found.headline
    )


def runs_of(seeds, gspo, grpo=0.7, **more):
    finals = {"gspo": gspo, "grpo": grpo, **more}
    return [
        stored_run(name, s, 20, every=4, final=final) for name, final in finals.items() for s in range(seeds)
    ]


def compared(runs, looks, **settings):
    return compare(runs, [], CompareConfig(**settings), Added(range(looks[-1]), looks))


def primary_of(comparison):
    return [contrast for contrast in comparison.contrasts if contrast.outcome == PRIMARY]


def test_the_report_states_the_looks_and_its_verdict_is_theirs():
    found = compared(runs_of(6, 0.78), [3, 4, 5, 6])
    (primary,) = primary_of(found)
    looks = found.design.looks["gspo"]
    assert [look.verdict for look in looks] == [Verdict.not_distinguishable, *[Verdict.higher] * 3]
    assert (primary.verdict, primary.difference) == (Verdict.higher, looks[1].difference)
    assert primary.p == primary.p_adjusted == looks[1].p < RATE
    assert found.headline[0] == "gspo has a higher held-out score than grpo after 20 iterations."
    assert f"over all looks); with all 6 seeds the difference is {looks[-1].difference}." in found.headline[1]
    assert "(4 seeds, p = " in found.headline[1]
    assert " (means " not in found.headline[1], "those of all seeds have another difference"
    assert found.headline[2] == (
        "Seeds were added until this was settled: looks at 3, 4, 5 and 6 seeds per arm used 0.017 of the "
        "error rate of 0.05."
    )
    stored = json.loads(json_text(found))["design"]
    assert stored["seeds"] == [3, 4, 5, 6]
    assert stored["looks"]["gspo"][1]["difference"]["low"] == primary.difference.low
    assert "Seeds were added, for all arms together" in markdown(found)


def test_what_a_test_of_fixed_size_finds_is_not_a_verdict_where_seeds_were_added():
    runs = runs_of(5, 0.735)
    usual, design = compare(runs, [], CompareConfig()), compared(runs, [3, 4, 5])
    (fixed,), (added,) = primary_of(usual), primary_of(design)
    assert (fixed.verdict, added.verdict) == (Verdict.higher, Verdict.not_distinguishable)
    assert added.difference.low < fixed.difference.low < fixed.difference.high < added.difference.high
    pairs = zip(usual.contrasts[1:], design.contrasts[1:], strict=True)
    others = [(a.p, b.p) for a, b in pairs if a.p is not None]
    assert len(others) > 15
    assert all(a <= b for a, b in others)
    assert sum(a < b for a, b in others) > 10


def test_arms_without_a_difference_of_interest_are_equivalent():
    found = compared(runs_of(8, 0.7), [3, 8])
    (primary,) = primary_of(found)
    assert primary.verdict is Verdict.equivalent
    assert found.headline[0] == "gspo and grpo have an equivalent held-out score after 20 iterations."
    assert "no difference of 0.05 or more: it is " in primary.sentence
    assert "| equivalent |" in markdown(found)
    assert (
        primary_of(compared(runs_of(8, 0.7), [3, 8], smallest=0.01))[0].verdict is Verdict.not_distinguishable
    )


def test_with_several_arms_each_has_a_share_of_the_level_and_all_must_be_settled():
    found = compared(runs_of(6, 0.8, gspo_token=0.715), [3, 4, 5, 6], smallest=0.01)
    assert [c.verdict for c in primary_of(found)] == [Verdict.higher, Verdict.not_distinguishable]
    for contrast in primary_of(found):
        assert contrast.p_adjusted == min(1, 2 * contrast.p)
        assert (contrast.verdict in FOUND) == (contrast.p_adjusted < RATE)
    assert found.headline[3].startswith("Not settled: looks at 3, 4, 5 and 6 seeds per arm used 0.017 of")


@pytest.mark.parametrize("looks", [None, [3, 4]])
def test_how_many_more_seeds_and_hours_would_settle_it_is_said(looks):
    runs = [replace(run, summary={**run.summary, "wall_seconds": 900.0}) for run in runs_of(4, 0.71)]
    settings = CompareConfig(parallel=2)
    found = compare(runs, [], settings, looks and Added(range(4), looks))
    more = found.more
    assert more.seconds == more.seeds * 2 * 900 / 2
    said = next(sentence for sentence in found.headline if "more seed" in sentence)
    assert f"About {more.seeds} more seeds per arm (1h" in said
    assert "of runs, 2 runs at once) would show a difference, or that it is below 0.05, with 80%" in said
    end = (
        f"compare.max_seeds={4 + more.seeds} allows them."
        if looks
        else "compare.until=settled adds seeds until then."
    )
    assert said.endswith(end)
    assert compare(runs_of(4, 0.9), [], CompareConfig()).more is None


def test_a_comparison_that_is_void_promises_nothing():
    runs = [*runs_of(4, 0.7)]
    runs[0] = replace(
        runs[0], heldout=[line | {"problems": ["x", *line["problems"][1:]]} for line in runs[0].heldout]
    )
    found = compared(runs, [3, 4])
    assert (primary_of(found)[0].verdict, found.more) == (Verdict.void, None)
    assert not any("settle" in sentence for sentence in found.headline)
