"""What changes along a run: learning rate, answer length, order of problems; and the estimate of pass@k."""

from __future__ import annotations

from itertools import combinations
from math import cos, pi

import pytest

from gspo_cli.training.collecting import ProblemOrder
from gspo_cli.training.evaluation import pass_at_k
from gspo_cli.training.update import learning_rate
from gspo_cli.types import Problem

PEAK, ITERATIONS, UPDATES = 1e-3, 6, 2
STEPS = ITERATIONS * UPDATES
PROBLEMS = [Problem(str(i), ()) for i in range(7)]


@pytest.fixture
def rates(configure):
    """`rates("training.schedule=linear")`: the rate of every optimizer step of a run of 12."""

    def computed(*overrides: str) -> list[float]:
        config, _ = configure(
            f"algorithm.learning_rate={PEAK}",
            f"training.num_outer_iterations={ITERATIONS}",
            f"training.updates_per_rollout={UPDATES}",
            *overrides,
        )
        return [learning_rate(config, step, STEPS) for step in range(STEPS)]

    return computed


def test_the_rate_is_constant_unless_told_otherwise(rates):
    assert rates() == [PEAK] * STEPS


def test_linear_falls_by_equal_steps_that_would_reach_0_after_the_last(rates):
    expected = [PEAK * (STEPS - step) / STEPS for step in range(STEPS)]
    assert rates("training.schedule=linear") == pytest.approx(expected, rel=1e-12)


def test_cosine_is_half_a_wave_from_the_peak_to_0_after_the_last(rates):
    expected = [PEAK * (1 + cos(pi * step / STEPS)) / 2 for step in range(STEPS)]
    assert rates("training.schedule=cosine") == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_warm_up_rises_by_equal_steps_to_the_peak_then_the_schedule_takes_the_rest(rates, schedule):
    warmup = 2 * UPDATES
    found = rates(f"training.schedule={schedule}", "training.warmup_iterations=2")
    assert found[:warmup] == pytest.approx([PEAK * k / warmup for k in range(1, warmup + 1)], rel=1e-12)
    share = [k / (STEPS - warmup) for k in range(STEPS - warmup)]
    rest = {
        "constant": [1.0 for _ in share],
        "linear": [1 - x for x in share],
        "cosine": [(1 + cos(pi * x)) / 2 for x in share],
    }
    assert found[warmup:] == pytest.approx([PEAK * x for x in rest[schedule]], rel=1e-12)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0, 1, ITERATIONS - 1, ITERATIONS, 10 * ITERATIONS])
def test_no_step_is_wasted_on_a_rate_of_0_or_passes_the_peak(rates, schedule, warmup):
    found = rates(f"training.schedule={schedule}", f"training.warmup_iterations={warmup}")
    assert min(found) > 0
    assert max(found) <= PEAK


def test_without_a_curriculum_every_iteration_has_the_whole_length(configure):
    config, _ = configure("rollout.max_completion_length=48")
    assert {config.max_completion_length(i) for i in (0, 1, 50, 1000)} == {48}


def test_the_length_curriculum_rises_linearly_and_stays(configure):
    config, _ = configure(
        "rollout.max_completion_length=48",
        "training.length_curriculum_start=8",
        "training.length_curriculum_iterations=10",
    )
    found = [config.max_completion_length(i) for i in range(13)]
    assert found == [8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 48, 48]


@pytest.mark.parametrize("epoch", range(4))
def test_an_epoch_visits_every_problem_once(epoch):
    size = len(PROBLEMS)
    visited = ProblemOrder(PROBLEMS, seed=3).take(epoch * size, size)
    assert sorted(p.id for p in visited) == sorted(p.id for p in PROBLEMS)


def test_epochs_and_seeds_have_orders_of_their_own():
    size = len(PROBLEMS)
    orders = {
        tuple(p.id for p in ProblemOrder(PROBLEMS, seed).take(epoch * size, size))
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(orders) == 9  # of 7! = 5040


def test_the_cursor_alone_says_what_comes_next():
    walk = ProblemOrder(PROBLEMS, seed=0).take(0, 30)
    order = ProblemOrder(PROBLEMS, seed=0)
    for cursor in (23, 0, 6, 13, 1):  # back and forth, across epochs
        assert order.take(cursor, 5) == walk[cursor : cursor + 5]


def test_more_may_be_drawn_at_once_than_there_are_problems():
    drawn = ProblemOrder(PROBLEMS[:2], seed=0).take(0, 6)
    assert [drawn.count(problem) for problem in PROBLEMS[:2]] == [3, 3]


@pytest.mark.parametrize("samples", range(1, 8))
def test_pass_at_k_is_the_share_of_draws_that_hold_a_success(samples):
    for successes in range(samples + 1):
        answers = [i < successes for i in range(samples)]
        for k in range(1, samples + 1):
            draws = [any(draw) for draw in combinations(answers, k)]
            assert pass_at_k(samples, successes, k) == pytest.approx(sum(draws) / len(draws), abs=1e-12)
