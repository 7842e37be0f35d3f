"""The rules: each finds its fault in numbers that show it, and none speaks of a run that learns."""

from __future__ import annotations

import math
from copy import deepcopy
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from gspo_cli.config.choices import OnCollapse
from gspo_cli.config.stored import read_stored
from gspo_cli.diagnosis.diagnosis import CONSEQUENCES, RULES, diagnose
from gspo_cli.diagnosis.history import Severity
from gspo_cli.errors import UserError
from tests.support.diagnosed_runs import only, run_of, settings


@pytest.mark.parametrize("algorithm", ["gspo", "gspo_token", "grpo", "cispo", "dr_grpo"])
def test_nothing_is_said_of_a_run_that_learns_at_any_time(algorithm):
    lines, config = run_of(40), settings(f"algorithm={algorithm}")
    for seen in range(len(lines) + 1):
        assert diagnose(config, lines[:seen]) == []


EQUAL = {"frac_reward_zero_std": 0.95, "clip_ratio__sequence": 0.01, "clip_ratio__token": 0.01}


def test_a_run_that_ends_certain_short_and_solved_is_no_collapse():
    lines = run_of(40, 20, entropy=1e-4, completions__mean_length=5.0, reward=0.99, reward_std=0.01)
    assert diagnose(settings(), lines) == []
    everything_solved = {**EQUAL, "solved": 0.99, "reward": 0.99}
    note = only(diagnose(settings(), run_of(40, 30, **everything_solved)))
    assert (note.rule, note.severity, note.since) == ("equal_groups", Severity.note, 30)


LOST = {"reward": 0.02, "reward_std": 0.02}
# rule: (severity, first iteration of the fault, what changes there, overrides, a number in the sentence)
FAULTS = {
    "learning_rate_zero": ("warning", 10, {"learning_rate": 0.0}, ["training.schedule=linear"], "is 0"),
    "zero_reward": ("warning", 1, {"reward": 0.0, "reward_std": 0.0, "solved": 0.0}, [], "12 iterations"),
    "constant_reward": ("warning", 1, {"reward": 3.0, "reward_std": 0.0}, [], "reward 3"),
    "reward_scale": ("warning", 1, {"reward": 412.0}, ["algorithm.advantage_scale=none"], "412"),
    "reward_outliers": ("warning", 12, {"reward": 50.0}, [], "rewards of 1 of 12 iterations are extreme: 50"),
    "outlier_groups": ("warning", 8, {"frac_reward_outlier": 0.4}, [], "40%"),
    "equal_groups": ("warning", 8, {**EQUAL, "solved": 0.0}, [], "95%"),
    "reward_fell": ("collapse", 8, LOST, [], "to 0.02"),
    "entropy_gone": ("collapse", 9, {"entropy": 0.01}, [], "from 0.48 to 0.01"),
    "length_runaway": (
        "collapse", 9, {"completions__mean_length": 120.0, "completions__clipped_ratio": 0.7}, [], "120",
    ),
    "truncation": ("warning", 9, {"completions__clipped_ratio": 0.7}, [], "70%"),
    "repetition": ("collapse", 9, {"completions__repetition": 0.8}, [], "80%"),
    "kl_far": ("collapse", 9, {"kl": 1.5}, ["algorithm.beta=0.1"], "1.5"),
    "not_finite": ("collapse", 11, {"updates_skipped": 4, "grad_norm": None}, [], "8 updates"),
    "gradient_spike": ("warning", 9, {"grad_norm": 40.0}, [], "27 times"),
    "clip_saturation": ("warning", 8, {"clip_ratio__sequence": 0.55}, [], "92%"),
    "nothing_clips": ("note", 1, {"clip_ratio__token": 0.0, "clip_ratio__sequence": 0.0}, [], "nothing"),
    "policy_still": (
        "warning", 1, {"ratio__std": 5e-4, "clip_ratio__token": 0.1}, ["model.use_lora=true"], "5e-4",
    ),
    "small_spread": ("warning", 8, {"frac_reward_small_std": 0.4}, [], "40%"),
    "one_part": (
        "warning", 8, {"rewards__manner__spread": 1.0, "rewards__exact__spread": 0.0}, [], "from manner",
    ),
    "one_update": ("note", 1, {"updates": 1}, ["training.updates_per_rollout=1"], "=1"),
    "chosen_fell": (
        "warning", 9, {"preference__chosen": -0.06, "length__short_mean": 2.0}, ["algorithm=dpo"], "0.3 nats",
    ),
    "noise": ("warning", 10, {"ratio__first_step_abs_err": 2e-4}, [], "2.0e-04"),
    "excluded": ("warning", 10, {"excluded": 3}, [], "9 in 3 iterations"),
    "out_of_memory": ("warning", 12, {"oom_events": 2, "tokens_per_microbatch": 256}, [], "2 times"),
    "value_exploded": (
        "warning", 9, {"value__explained_variance": -3.0, "value__loss": 41.0}, ["algorithm=ppo"], "is 41 ",
    ),
    "rolled_back": ("warning", 12, {"rolled_back_to": 10}, [], "those of iteration 10"),
}  # fmt: skip


SLOW = {"value_unexplained", "preference_chance", "preference_overfit"}  # see test_family_rules


def with_fault(rule: str, iterations: int = 12, start: int | None = None) -> list[dict]:
    """A run whose reward stands still, and that has the fault from iteration `start` on."""
    _, usual, changed, *_ = FAULTS[rule]
    still = {} if rule == "reward_fell" else {"reward": 0.2}
    start = start or usual
    return (
        run_of(iterations, 1, **still)[: start - 1]
        + run_of(iterations, start, **still | changed)[start - 1 :]
    )


@pytest.mark.parametrize("rule", FAULTS)
def test_each_fault_is_found_with_its_number_since_when_it_shows(rule):
    severity, start, _, overrides, told = FAULTS[rule]
    config, lines = settings(*overrides), with_fault(rule)
    found = only(diagnose(config, lines))
    assert (found.rule, found.severity.name, found.since) == (rule, severity, start)
    assert told in found.what
    assert found.fix
    assert diagnose(config, lines[: start - 1]) == []


def test_every_rule_has_a_fault_here_and_every_consequence_is_a_rule():
    names = {rule.__name__ for rule in RULES}
    of_curricula = {"curriculum_stuck", "curriculum_ahead", "long_start"}  # in test_curriculum_rules.py
    assert names == {*FAULTS, "held_out_fell", *of_curricula} | SLOW
    assert names > CONSEQUENCES


@pytest.mark.parametrize("rule", FAULTS)
def test_what_a_finding_says_to_type_is_taken_by_gspo_train(rule):
    overrides = FAULTS[rule][3]
    found = only(diagnose(settings(*overrides), with_fault(rule)))
    changed = OmegaConf.create(settings(*overrides, *found.settings).plain)
    for setting in found.settings:
        key, _, value = setting.partition("=")
        assert OmegaConf.select(changed, key) == yaml.safe_load(value.replace("e-", ".0e-"))
        assert setting in found.fix or rule in ("learning_rate_zero", "noise", "not_finite")


def test_collapse_is_measured_against_the_reward():
    """The same numbers while the reward rises: at most a warning."""
    for rule in ("entropy_gone", "length_runaway", "repetition", "kl_far"):
        _, start, changed, overrides, _ = FAULTS[rule]
        found = diagnose(settings(*overrides), run_of(12, start, **changed))
        assert all(finding.severity is not Severity.collapse for finding in found)


def test_what_a_collapse_brings_with_it_is_no_finding_of_its_own():
    gone = {**LOST, "frac_reward_zero_std": 1.0, "completions__clipped_ratio": 1.0, "solved": 0.0}
    assert only(diagnose(settings(), run_of(12, 8, **gone))).rule == "reward_fell"
    before = run_of(12, 4, completions__clipped_ratio=1.0)
    after = run_of(12, 8, **gone)
    # what was there before the collapse stays
    rules = [finding.rule for finding in diagnose(settings(), before[:7] + after[7:])]
    assert rules == ["reward_fell", "truncation"]


def test_a_fall_within_chance_is_no_collapse():
    # 32 prompts: the mean of 5 iterations is known to 0.3 / sqrt(160) = 0.024
    noisy = run_of(12, 8, reward=0.16, reward_std=0.3)
    assert diagnose(settings(), noisy) == []
    assert 0.16 > 0.34 / 2 - 0.024
    few = settings("training.generations_per_iteration=16", "training.updates_per_rollout=2")
    assert diagnose(few, run_of(12, 8, reward=0.1, reward_std=0.3)) == []
    assert only(diagnose(settings(), run_of(12, 8, reward=0.1, reward_std=0.3))).rule == "reward_fell"


def test_negative_rewards_fall_too():
    lines = run_of(12, 1, reward=-1.0)
    assert diagnose(settings(), lines) == []
    fallen = run_of(12, 8, reward=-2.0)
    assert only(diagnose(settings(), lines[:7] + fallen[7:])).rule == "reward_fell"


def test_two_bad_iterations_are_not_yet_a_finding():
    for rule in ("reward_fell", "entropy_gone", "repetition", "truncation", "equal_groups"):
        assert diagnose(settings(), with_fault(rule, start=11)) == []
        assert diagnose(settings(), with_fault(rule, start=10)) != []


def test_a_sequence_ratio_counts_clipped_answers_and_a_token_ratio_tokens():
    high = {"reward": 0.2, "clip_ratio__sequence": 0.59}
    assert only(diagnose(settings(), run_of(12, 1, **high))).rule == "clip_saturation"
    # of long answers nearly all have a clipped token
    assert diagnose(settings("algorithm=grpo"), run_of(12, 1, **high)) == []
    high["clip_ratio__token"] = 0.55
    assert only(diagnose(settings("algorithm=grpo"), run_of(12, 1, **high))).rule == "clip_saturation"


def test_the_noise_is_held_against_the_narrower_side_of_the_band_and_no_band_has_none():
    noisy = run_of(4, 1, ratio__first_step_abs_err=2e-4)
    assert only(diagnose(settings(), noisy)).rule == "noise"
    assert (
        diagnose(settings("algorithm.clip_range_left=7e-4", "algorithm.clip_range_right=7e-4"), noisy) == []
    )
    assert diagnose(settings("algorithm=grpo"), noisy) == []
    assert diagnose(settings("algorithm.clip_mode=none"), noisy) == []
    calibrated = run_of(4, 1, ratio__first_step_abs_err=2e-4, clip_range__left=9e-4, clip_range__right=8e-4)
    assert diagnose(settings(), calibrated) == [], "the band in force counts"


def test_the_length_curriculum_is_not_taken_for_truncation():
    cut = run_of(12, 1, completions__clipped_ratio=0.9)
    growing = ["training.length_curriculum_start=8", "training.length_curriculum_iterations=12"]
    assert diagnose(settings(*growing), cut) == []
    assert (
        only(diagnose(settings(*growing), run_of(13, 1, completions__clipped_ratio=0.9))).rule == "truncation"
    )


def test_a_held_out_score_that_falls_by_more_than_chance_is_found():
    evals = [{"iteration": i, "score": s, "num_problems": 200} for i, s in ((0, 0.1), (10, 0.8), (20, 0.5))]
    found = only(diagnose(settings(), run_of(20), evals))
    assert (found.rule, found.since) == ("held_out_fell", 20)
    assert "from 0.800 at iteration 10 to 0.500" in found.what
    few = [{**record, "num_problems": 20} for record in evals]
    assert diagnose(settings(), run_of(20), few) == []
    unscored = [*evals[:2], {"iteration": 20, "score": None, "num_problems": 200}]
    assert diagnose(settings(), run_of(20), unscored) == []


def test_missing_and_infinite_numbers_are_no_findings_and_no_crash():
    bare = [{"iteration": i, "reward": None, "entropy": math.inf, "grad_norm": math.nan} for i in range(1, 9)]
    assert [f.rule for f in diagnose(settings(), bare)] == ["zero_reward"] or diagnose(settings(), bare) == []
    assert diagnose(settings(), [{"iteration": 1}]) == []
    assert diagnose(settings(), []) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\n", r"has no \w+ settings"),
        ("- 1\n", r"has no \w+ settings"),
        ("", r"has no \w+ settings"),
        ("a: [\n", "cannot be read as YAML"),
    ],
)
def test_a_file_that_is_no_configuration_is_said_in_one_sentence(tmp_path: Path, text, message):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_stored(path)
    assert "\n" not in str(caught.value) or text == "a: [\n"


def test_a_run_of_before_a_setting_was_there_takes_its_default(tmp_path: Path):
    old = deepcopy(settings().plain)
    del old["training"]["on_collapse"], old["hardware"]["zero_stage"]
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(old)))
    read = read_stored(tmp_path / "config.yaml")
    assert (read.training.on_collapse, read.hardware.zero_stage) == (OnCollapse.warn, 0)
    assert (read.plain["training"]["on_collapse"], read.plain["hardware"]["zero_stage"]) == ("warn", 0)
    assert read.plain["algorithm"] == old["algorithm"]


def test_reading_a_stored_run_does_not_import_its_task(tmp_path: Path):
    old = deepcopy(settings().plain)
    old["task"]["_target_"] = "a_module_that_is_not_here.Task"
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(old)))
    assert read_stored(tmp_path / "config.yaml").task == old["task"]
