"""What the doctor says of curricula: a level that does not rise, one that rose too early, and answers that
could have been short at first; and that a harder level is not taken for a fall."""

from __future__ import annotations

import pytest
import yaml
from omegaconf import OmegaConf

from gspo_cli.diagnosis.diagnosis import diagnose
from gspo_cli.diagnosis.guide import guide
from gspo_cli.diagnosis.history import History, Severity
from tests.support.diagnosed_runs import only, run_of, settings

ON = ("task.difficulty=2", "training.difficulty_curriculum_start=1")


def evaluated(*scores, level=1, first=0, every=5):
    """An evaluation every few iterations, with these scores at a level of two."""
    return [
        {
            "iteration": first + every * place, "score": 0.1, "num_problems": 100, "curriculum/score": score,
            "curriculum/level": level, "curriculum/target": 2,
        }
        for place, score in enumerate(scores)
    ]  # fmt: skip


def leveled(*lengths, rewards=(0.5, 0.1), slope=0.0):
    """Iterations at level 1, and then at level 2, each with its reward, which may rise."""
    lines, first = [], 1
    for level, (length, reward) in enumerate(zip(lengths, rewards, strict=False), 1):
        changed = {
            "curriculum__level": level,
            "reward": lambda i, reward=reward, first=first: reward + slope * (i - first),
        }
        lines += run_of(first + length - 1, first, **changed)[first - 1 :]
        first += length
    return lines


def test_a_level_whose_score_stands_still_below_the_threshold_is_stuck():
    stuck = evaluated(0.3, 0.5, 0.48, 0.51)
    found = only(diagnose(settings(*ON), leveled(15), stuck))
    assert (found.rule, found.severity, found.since) == ("curriculum_stuck", Severity.warning, 5)
    assert "stuck at level 1: in 4 evaluations its held-out score was at most 0.510" in found.what
    assert found.settings == ("training.difficulty_curriculum_raise_at=0.45",)
    assert diagnose(settings(*ON), leveled(15), stuck[:3]) == []
    assert diagnose(settings(*ON), leveled(15), evaluated(0.3, 0.5, 0.48, 0.6)) == []  # it still improves
    # at the last level there is nothing to rise to
    last = evaluated(0.3, 0.5, 0.48, 0.51, level=2)
    assert diagnose(settings(*ON), leveled(15), last) == []
    assert diagnose(settings(*ON), leveled(15), evaluated(0.7) + evaluated(0.3, 0.3, level=2, first=5)) == []


def test_a_level_that_is_not_learned_at_all_gets_other_advice():
    found = only(diagnose(settings(*ON), leveled(15), evaluated(0.01, 0.02, 0.0, 0.02)))
    assert found.rule == "curriculum_stuck"
    assert found.settings == ("training.num_generations=16", "model.cold_start.stop_score=0.4")


def test_a_level_that_rose_too_early_is_found_by_the_one_after_it():
    before = evaluated(0.4, 0.72)
    after = evaluated(0.05, 0.1, 0.06, level=2, first=10)
    found = diagnose(settings(*ON), leveled(5, 12), before + after)
    assert [f.rule for f in found] == ["curriculum_ahead"]
    assert found[0].since == 6
    assert (
        "12 iterations after it rose to level 2, the reward there does not rise (0.1 to 0.1)" in found[0].what
    )
    assert found[0].settings == ("training.difficulty_curriculum_raise_at=0.85",)
    assert diagnose(settings(*ON), leveled(5, 9), before + after) == []  # too soon to tell
    assert diagnose(settings(*ON), leveled(5, 12, slope=0.02), before + after) == []  # it is being learned
    learned = evaluated(0.05, 0.4, level=2, first=10)
    assert diagnose(settings(*ON), leveled(5, 12), before + learned) == []
    high = settings(*ON, "training.difficulty_curriculum_raise_at=0.95")
    assert diagnose(high, leveled(5, 12), before + after) == []


def test_the_reward_of_a_harder_level_is_no_collapse_and_a_fall_within_it_is():
    lines = leveled(8, 6, rewards=(0.8, 0.1))
    assert diagnose(settings(*ON), lines) == []
    plain = [{key: value for key, value in line.items() if key != "curriculum/level"} for line in lines]
    assert only(diagnose(settings(*ON), plain)).rule == "reward_fell"
    fallen = leveled(8, 6, rewards=(0.2, 0.8)) + run_of(20, 15, curriculum__level=2, reward=0.02)[14:]
    assert [f.rule for f in diagnose(settings(*ON), fallen)] == ["reward_fell"]


def test_a_policy_that_has_become_certain_at_one_level_is_no_collapse_at_the_next():
    learned = leveled(12, 4, rewards=(0.2, 0.1), slope=0.05)
    for line in learned:
        line["entropy"] = 0.5 if line["iteration"] < 9 else 0.01
    assert diagnose(settings(*ON), learned) == []
    still = leveled(12, 12, rewards=(0.2, 0.1))
    for line in still:
        line["entropy"] = 0.5 if line["iteration"] < 9 else 0.01
    assert only(diagnose(settings(*ON), still)).rule == "entropy_gone"


LONG = ("rollout.max_completion_length=512",)


def test_answers_that_were_long_only_at_first_are_worth_a_note():
    rambled = run_of(30, 1, completions__clipped_ratio=0.8, completions__mean_length=450.0)[:8]
    lines = rambled + run_of(30, 9, completions__mean_length=90.0)[8:]
    found = only(diagnose(settings(*LONG), lines))
    assert (found.rule, found.severity, found.since) == ("long_start", Severity.note, 1)
    assert found.settings == (
        "training.length_curriculum_start=180", "training.length_curriculum_iterations=15",
    )  # fmt: skip
    assert diagnose(settings(*LONG, "training.length_curriculum_start=100"), lines) == []
    assert diagnose(settings("rollout.max_completion_length=255"), lines) == []
    assert diagnose(settings(*LONG), run_of(30, completions__mean_length=90.0)) == []
    still_long = rambled + run_of(30, 9, completions__mean_length=300.0)[8:]
    assert diagnose(settings(*LONG), still_long) == []
    unlearned = [line | {"reward": 0.2, "entropy": 0.5} for line in lines]
    assert diagnose(settings(*LONG), unlearned) == []


def test_truncation_from_the_start_at_a_high_limit_names_the_length_curriculum():
    cut = run_of(12, 1, completions__clipped_ratio=0.8)
    offer = "training.length_curriculum_start=128 makes the first iterations cheaper"
    assert offer in only(diagnose(settings(*LONG), cut)).fix
    late = only(diagnose(settings(*LONG), run_of(12, 9, completions__clipped_ratio=0.8)))
    short = only(diagnose(settings(), cut))
    assert {found.rule for found in (late, short)} == {"truncation"}
    assert "curriculum" not in late.fix + short.fix


CASES = {
    "stuck": (ON, leveled(15), evaluated(0.3, 0.5, 0.48, 0.51)),
    "not learned": (ON, leveled(15), evaluated(0.01, 0.02, 0.0, 0.02)),
    "ahead": (ON, leveled(5, 12), evaluated(0.05, 0.1, 0.06, level=2, first=10)),
    "long": (LONG, run_of(30, 1, completions__clipped_ratio=0.8, completions__mean_length=450.0)[:8]
             + run_of(30, 9, completions__mean_length=90.0)[8:], []),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_a_finding_says_to_type_is_taken(case):
    overrides, lines, evals = CASES[case]
    found = only(diagnose(settings(*overrides), lines, evals))
    changed = OmegaConf.create(settings(*overrides, *found.settings).plain)
    for setting in found.settings:
        key, _, value = setting.partition("=")
        assert OmegaConf.select(changed, key) == yaml.safe_load(value)
        assert setting in found.fix


def test_the_guides_first_entry_names_a_curriculum_that_does_not_help():
    overrides, lines, evals = CASES["ahead"]
    config = settings(*overrides)
    answer = guide(History(config, lines, evals), diagnose(config, lines, evals), None)[0]
    assert "see curriculum_ahead" in answer.what
    assert answer.settings == ("training.difficulty_curriculum_raise_at=0.85",)
