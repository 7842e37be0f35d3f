"""A summary in words: honest about what was reached, and commands that work when pasted."""

from __future__ import annotations

import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from gspo_cli.console.words import describe, duration, next_commands, number, quantity, why_zero


def evaluation(iteration, score, problems=200, **more):
    return {"iteration": iteration, "score": score, "num_problems": problems, **more}


def summary(**changes):
    return {
        "status": "completed",
        "algorithm": "gspo",
        "model": "tiny",
        "task": "arithmetic",
        "seed": 3,
        "reward_object": False,
        "iterations": 100,
        "total_iterations": 100,
        "initial_eval": evaluation(0, 0.11),
        "final_eval": evaluation(100, 0.45),
        "best_eval": evaluation(90, 0.47),
        "num_tokens": 1_234_567,
        "wall_seconds": 80.0,
        "run_folder": "outputs/run",
        "first_reward": 0.21,
        "last_reward": 0.53,
        **changes,
    }


def held_out(before, after, problems=200):
    """The sentence about a change of score."""
    first, last = evaluation(0, before, problems), evaluation(100, after, problems)
    best = max(first, last, key=lambda record: record["score"])
    return describe(summary(initial_eval=first, final_eval=last, best_eval=best))[1]


def test_a_good_run_in_full():
    assert describe(summary()) == [
        "Completed 100 of 100 iterations: gspo on arithmetic, model tiny, seed 3.",
        "Held-out score rose from 0.110 to 0.450 on 200 problems.",
        "The best evaluation was 0.470 at iteration 90.",
        "Training reward went from 0.210 to 0.530.",
        "1.2M tokens were sampled; the run took 1m 20s.",
    ]


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ("completed", "Completed"),
        ("interrupted", "Interrupted after"),
        ("stopped_early", "Stopped early after"),
        ("failed", "Failed after"),
    ],
)
def test_each_ending_has_its_words(status, words):
    sentence = f"{words} 40 of 100 iterations: gspo on arithmetic, model tiny, seed 3."
    assert describe(summary(status=status, iterations=40))[0] == sentence


def test_a_change_counts_from_two_binomial_standard_errors_on():
    # p = 0.5, n = 200: a standard error is sqrt(0.25 / 200) = 0.0354, that of a difference sqrt(2) as much,
    # 0.05; two are 0.1, and a little less where one p is 0.595
    span = "from 0.500 to 0.595 on 200 problems"
    noise = "within noise (two standard errors are 0.099)"
    assert held_out(0.5, 0.595) == f"Held-out score went {span}: {noise}."
    assert held_out(0.5, 0.6) == "Held-out score rose from 0.500 to 0.600 on 200 problems."
    assert "within noise" in held_out(0.5, 0.6, problems=50)
    assert "within noise" in held_out(0.5, 0.405)


def test_no_gain_and_a_loss_are_called_so():
    assert held_out(0.5, 0.5) == "Held-out score did not improve: 0.500 before and after, on 200 problems."
    assert held_out(0.5, 0.2) == "Held-out score fell from 0.500 to 0.200 on 200 problems: it got worse."
    worse = summary(
        initial_eval=evaluation(0, 0.5), final_eval=evaluation(100, 0.2), best_eval=evaluation(0, 0.5)
    )
    assert "No held-out score was above the one before training, 0.500." in describe(worse)


def test_without_two_evaluations_no_change_is_claimed():
    one = evaluation(0, 0.11)
    alone = (
        "One held-out evaluation, at iteration 0: 0.110 on 200 problems; there is no other evaluation "
        "to compare it with."
    )
    for last in (one, None, evaluation(100, None)):
        sentences = describe(summary(initial_eval=one, final_eval=last, best_eval=one))
        assert sentences[1] == alone
        assert not any("best" in sentence for sentence in sentences)
    nothing = summary(initial_eval=None, final_eval=None, best_eval=None, first_reward=None, last_reward=None)
    assert describe(nothing)[1:] == [
        "There was no held-out evaluation: performance on problems outside training is unknown.",
        "1.2M tokens were sampled; the run took 1m 20s.",
    ]


def test_pass_at_the_largest_k_that_both_evaluations_have():
    first = evaluation(0, 0.1, **{"pass@1": 0.1, "pass@4": 0.3, "pass@16": None})
    last = evaluation(100, 0.5, **{"pass@1": 0.4, "pass@4": 0.7, "pass@16": 0.9})
    sentences = describe(summary(initial_eval=first, final_eval=last, best_eval=last))
    assert sentences[2:4] == [
        "pass@4 went from 0.300 to 0.700.",
        "The last evaluation, at iteration 100, is the best.",
    ]


def test_the_commands_after_each_ending():
    def commands(**changes):
        return [command for command, _ in next_commands(summary(**changes))]

    evaluate, talk = "gspo-eval outputs/run", "gspo-chat outputs/run"
    resume = "gspo-train resume=outputs/run"
    partner = "gspo-compare task=arithmetic model=tiny 'compare.algorithms=[gspo,grpo]'"
    assert commands() == [evaluate, talk, f"{resume} training.num_outer_iterations=200", partner]
    assert commands(algorithm="grpo")[-1] == partner.replace("[gspo,grpo]", "[grpo,gspo]")
    assert commands(status="interrupted", iterations=40) == [evaluate, talk, resume]
    assert commands(status="failed", iterations=40) == [evaluate, talk, resume]
    assert commands(status="failed", iterations=0) == [resume]
    assert commands(status="stopped_early", iterations=40) == [
        evaluate,
        talk,
        f"{resume} evaluation.stop_at_score=null",
        partner,
    ]


def test_no_command_after_a_run_rewarded_by_a_script_needs_its_object():
    for status in ("completed", "interrupted", "stopped_early", "failed"):
        found = next_commands(summary(status=status, reward_object=True))
        commands = [command for command, _ in found]
        assert commands == ["gspo-eval outputs/run reward=null", "gspo-chat outputs/run"]
    assert next_commands(summary(status="failed", iterations=0, reward_object=True)) == []


def test_a_run_below_the_working_folder_is_named_from_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    inside, outside = str(tmp_path / "outputs" / "run"), str(tmp_path.parent / "run")
    assert next_commands(summary(run_folder=inside))[0][0] == "gspo-eval outputs/run"
    assert next_commands(summary(run_folder=outside))[0][0] == f"gspo-eval {outside}"


@pytest.mark.parametrize(
    "folder", ["runs/a=b,c", "my runs/é (1)", "runs/it's", 'runs/"q"', "runs/a#b$HOME", "r~1"]
)
def test_pasted_commands_name_any_folder(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    commands = [shlex.split(command) for command, _ in next_commands(summary(run_folder=folder))]
    assert commands[0] == ["gspo-eval", folder]
    override = OverridesParser.create().parse_override(commands[2][1])
    assert override.value() == folder


def test_numbers_are_short_and_say_their_size():
    assert [duration(s) for s in (-1, 0.4, 45, 80, 3599.6, 7500)] == [
        "0s",
        "0s",
        "45s",
        "1m 20s",
        "1h 00m",
        "2h 05m",
    ]
    assert [quantity(n) for n in (912, 8123, -8123, 2_300_000, 1.5e9)] == [
        "912",
        "8.1k",
        "-8.1k",
        "2.3M",
        "1.5B",
    ]
    numbers = (None, 0, 0.036, 12.34, 1e-4, 3.5e-4, 1.25e-7, 8123.0, -0.5)
    assert [number(n) for n in numbers] == [
        "–",
        "0",
        "0.036",
        "12.3",
        "1e-4",
        "3.5e-4",
        "1.25e-7",
        "8.1k",
        "-0.5",
    ]


@pytest.mark.parametrize("own", [{"value/loss": 0.1}, {"preference/pairs": 4}])
def test_one_update_explains_nothing_where_the_loss_is_not_that_of_a_ratio_alone(own):
    assert why_zero({"updates": 1})
    assert not why_zero({"updates": 1, **own})
