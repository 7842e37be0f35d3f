"""The rules about value heads and preference pairs, on runs that have the problem and on written metrics."""

from __future__ import annotations

import json
import zlib

import pytest

from gspo_cli.diagnosis.diagnosis import diagnose
from gspo_cli.diagnosis.examination import examine
from gspo_cli.diagnosis.history import Severity
from gspo_cli.rewards.base import RewardFunction
from gspo_cli.types import RewardResult
from tests.support.diagnosed_runs import only, run_of, settings
from tests.support.whole_runs import EvenReward, dotted, run


class Chance(RewardFunction):
    """A reward that has nothing to do with what it is given for."""

    async def compute_reward(self, trajectory, turn, context):
        return RewardResult(float(zlib.crc32(repr(trajectory.token_ids).encode()) % 2))


class WithoutNines(RewardFunction):
    """1 for an answer without a 9."""

    async def compute_reward(self, trajectory, turn, context):
        return RewardResult(float("9" not in trajectory.answer))


def examined(configure, tmp_path, reporter, *overrides):
    """The doctor's report on a run that was made with these settings."""
    configured = configure("evaluation.samples=0", "evaluation.every=0", *overrides)
    return examine(run(configured, tmp_path, reporter)[1].path)


def named(report, rule):
    return only([finding for finding in report.findings if finding.rule == rule])


def test_a_head_whose_steps_are_too_large_is_far_off(configure, tmp_path, reporter):
    even, rate = dotted(EvenReward), "algorithm.value.learning_rate=1"
    report = examined(
        configure, tmp_path, reporter, "algorithm=ppo", even, rate, "training.num_outer_iterations=6"
    )
    found = named(report, "value_exploded")
    assert (found.severity, found.settings) == (Severity.warning, ("algorithm.value.learning_rate=0.1",))
    assert "where a constant has 0" in found.what
    # which the answer about instability proposes, and not the model's rate
    unstable = next(answer for answer in report.guide if answer.entry == "instability")
    assert unstable.settings[0] == found.settings[0]
    assert not unstable.ok


@pytest.mark.long
def test_a_head_that_has_nothing_to_learn_explains_nothing(configure, tmp_path, reporter):
    fast = "algorithm.value.learning_rate=0.03", "training.num_outer_iterations=22"
    report = examined(configure, tmp_path, reporter, "algorithm=ppo", dotted(Chance), *fast)
    found = named(report, "value_unexplained")
    assert (found.severity, found.since) == (Severity.warning, 3)
    assert found.settings == ("algorithm.value.learning_rate=0.003",)
    loss = next(answer for answer in report.guide if answer.entry == "loss not decreasing")
    assert "value_unexplained" in loss.what
    assert "values are about the mean of returns, and the value head's went from " in loss.what


def test_a_reward_of_chance_teaches_no_preference(configure, tmp_path, reporter):
    report = examined(
        configure, tmp_path, reporter, "algorithm=dpo", dotted(Chance), "training.num_outer_iterations=22"
    )
    found = named(report, "preference_chance")
    assert "pairs of 20 iterations, no more often than by chance" in found.what
    assert found.settings == ("training.num_generations=8",)
    loss = next(answer for answer in report.guide if answer.entry == "loss not decreasing")
    assert "where a policy that tells no answers apart has 0.693" in loss.what


def test_pairs_that_are_told_apart_at_the_cost_of_the_score(configure, tmp_path, reporter):
    rows = [
        {"prompt": f"{a}+{b}=", "chosen": f"9{a}9", "rejected": f"{a}{b}"}
        for a in range(10)
        for b in range(10)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = examined(
        configure, tmp_path, reporter, "algorithm=dpo", f"algorithm.pairs={tmp_path}/pairs.jsonl",
        "training.num_generations=2", "algorithm.learning_rate=0.003", "training.num_outer_iterations=6",
        dotted(WithoutNines), "evaluation.every=1", "evaluation.problems=20",
    )  # fmt: skip
    found = named(report, "preference_overfit")
    assert "while the held-out score fell from 1.000 at iteration 0 to 0.0" in found.what
    assert found.settings == ("algorithm.beta=0.2",)
    assert "take the checkpoint `best`" in found.fix


# ---- thresholds, on written metrics


def valued(variance, iterations=24, **changed):
    changed = {"reward": 0.2} | changed
    return run_of(iterations, value__explained_variance=variance, value__loss=0.1, **changed)


@pytest.mark.parametrize(
    ("variance", "coefficient", "setting"),
    [
        (-0.02, 0.1, "algorithm.value.coefficient=1"),
        (-0.02, 0, "algorithm.value.coefficient=0.1"),
        (-0.02, 1, "algorithm.value.learning_rate=0.0001"),
        (-0.4, 0.1, "algorithm.value.learning_rate=0.0001"),
    ],
)
def test_what_helps_a_head_depends_on_how_wrong_it_is(variance, coefficient, setting):
    config = settings("algorithm=ppo", f"algorithm.value.coefficient={coefficient}")
    found = only(diagnose(config, valued(variance)))
    assert (found.rule, found.severity, found.settings) == ("value_unexplained", Severity.warning, (setting,))


def test_a_head_is_given_time_and_may_be_of_no_use_to_a_run_that_learns():
    config = settings("algorithm=ppo")
    assert diagnose(config, valued(-0.02, iterations=19)) == []
    assert diagnose(config, valued(0.02)) == []
    assert diagnose(config, valued(None)) == []  # all returns equal
    late = valued(lambda i: -0.5 if i < 12 else 0.4)
    assert diagnose(config, late) == []
    noted = only(diagnose(config, valued(-0.02, reward=lambda i: min(0.9, 0.2 + 0.02 * i))))
    assert (noted.rule, noted.severity) == ("value_unexplained", Severity.note)


def test_a_head_without_a_clip_gets_one_when_it_is_far_off():
    found = only(diagnose(settings("algorithm=a2c"), valued(-1.5)))
    assert found.rule == "value_exploded"
    assert found.settings == ("algorithm.value.learning_rate=0.0001", "algorithm.value.clip=0.2")
    assert diagnose(settings("algorithm=ppo"), valued(lambda i: -1.5 if i in (8, 9, 11, 12) else 0.3)) == []


def compared(accuracy, iterations=24, pairs=30, **changed):
    """Lines of a run of dpo, which has no ratio."""
    lines = run_of(
        iterations, preference__accuracy=accuracy, preference__pairs=pairs, **{"reward": 0.2} | changed
    )
    return [{k: v for k, v in line.items() if not k.startswith(("clip_", "ratio/"))} for line in lines]


def test_preferences_near_chance_are_found_and_others_are_not():
    config = settings("algorithm=dpo")
    # 600 pairs: a standard error of 0.02
    assert [found.rule for found in diagnose(config, compared(0.51))] == ["preference_chance"]
    assert diagnose(config, compared(0.53)) == []
    assert diagnose(config, compared(0.51, iterations=19)) == []
    assert diagnose(config, compared(0.51, reward=lambda i: 0.2 + 0.02 * i)) == []
    inverted = only(diagnose(settings("algorithm=dpo", "algorithm.learning_rate=1e-3"), compared(0.3)))
    assert "less often than by chance" in inverted.what
    assert inverted.settings == ("algorithm.learning_rate=1e-05",)


def scored(*scores):
    return [{"iteration": 4 * i, "score": score, "num_problems": 200} for i, score in enumerate(scores)]


def test_a_falling_score_is_over_optimization_where_the_margin_grows():
    config = settings("algorithm=dpo")
    growing = compared(0.9, 12, preference__margin=lambda i: 0.1 * i)
    rules = [found.rule for found in diagnose(config, growing, scored(0.3, 0.8, 0.5, 0.4))]
    assert rules == ["held_out_fell", "preference_overfit"]
    shrinking = compared(0.9, 12, preference__margin=lambda i: -0.1 * i)
    assert [f.rule for f in diagnose(config, shrinking, scored(0.3, 0.8, 0.5, 0.4))] == ["held_out_fell"]
    assert diagnose(config, growing, scored(0.3, 0.8, 0.78, 0.76)) == []


def test_pairs_that_hardly_move_the_policy_are_a_policy_that_does_not_move():
    config = settings("algorithm=dpo", "training.updates_per_rollout=1")
    # 50 tokens: a deviation of 0.01 a token is 0.07 an answer, times beta
    still = {"preference__chosen": 0.006, "preference__rejected": -0.005, "preference__margin": 0.011}
    found = only(diagnose(config, compared(0.7, 8, **still)))
    assert (found.rule, found.settings) == ("policy_still", ("algorithm.learning_rate=3e-05",))
    assert "the margin of pairs is 0.011" in found.what
    assert diagnose(config, compared(0.7, 8, **still | {"preference__rejected": -0.008})) == []
    of_means = settings("algorithm=dpo", "algorithm.aggregation=sequence_mean")
    assert diagnose(of_means, compared(0.7, 8, **still)) == []  # 0.06 is the mean over tokens
