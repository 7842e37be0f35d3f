"""Every warning of docs/troubleshooting.md, and the three entries of the guide's list, on a run that has the
problem. Those about value heads and pairs are in test_family_rules and test_stored_pairs_in_runs, those about
curricula, on records, in test_curriculum_rules."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest

from gspo_cli.diagnosis.examination import examine
from gspo_cli.rewards.base import RewardFunction
from gspo_cli.run.folder import RunFolder
from gspo_cli.training.session import build_parts
from gspo_cli.training.trainer import Trainer
from gspo_cli.types import RewardResult
from tests.support.batches import Small
from tests.support.whole_runs import EvenReward, dotted, run

pytestmark = pytest.mark.long

SHORT = ("evaluation.samples=0", "evaluation.every=0", "training.num_outer_iterations=6")


def share_of_even(trajectory):
    ids = [t for t, spoken in zip(trajectory.token_ids, trajectory.action_mask, strict=True) if spoken]
    return sum(t % 2 == 0 for t in ids) / len(ids)


class Chance(RewardFunction):
    """0 or 1, as the answer's checksum has it."""

    async def compute_reward(self, trajectory, turn, context):
        return RewardResult(float(zlib.crc32(repr(trajectory.token_ids).encode()) % 2))


class Nothing(RewardFunction):
    """0 for every answer."""

    async def compute_reward(self, trajectory, turn, context):
        return RewardResult(0.0)


class Form(RewardFunction):
    """An outcome that is never reached beside a form that differs."""

    async def compute_reward(self, trajectory, turn, context):
        form = share_of_even(trajectory)
        return RewardResult(0.1 * form, {"exact": 0.0, "form": form})


class Millions(RewardFunction):
    """In the millions."""

    async def compute_reward(self, trajectory, turn, context):
        return RewardResult(6e6 * share_of_even(trajectory))


class Bursts(RewardFunction):
    """Eighty times as much in the ninth and the tenth iteration; four answers are evaluated before."""

    def __init__(self):
        self.scored = 0

    async def compute_reward(self, trajectory, turn, context):
        self.scored += 1
        return RewardResult(share_of_even(trajectory) * (80 if 8 * 16 < self.scored - 4 <= 10 * 16 else 1))


class Jackpot(RewardFunction):
    """A million for one answer of each group of four, as it comes."""

    def __init__(self):
        self.scored = 0

    async def compute_reward(self, trajectory, turn, context):
        self.scored += 1
        return RewardResult(share_of_even(trajectory) + 1e6 * (self.scored % 4 == 0))


class Alike(RewardFunction):
    """Hardly different for any two answers."""

    async def compute_reward(self, trajectory, turn, context):
        return RewardResult(0.5 + 0.01 * share_of_even(trajectory))


# warning of the page: rule, settings of a run that has the problem, what is proposed
WARNINGS = {
    "the policy does not move": (
        "policy_still",
        [dotted(EvenReward), "algorithm.learning_rate=1e-8", "model.use_lora=true"],
        ("algorithm.learning_rate=3e-07",),
    ),
    "all spread comes from": ("one_part", [dotted(Form)], ()),
    "the mean reward is": ("reward_scale", [dotted(Millions)], ()),
    "are extreme": ("reward_outliers", [dotted(Bursts), "training.num_outer_iterations=12"], ()),
    "get nearly equal advantages": (
        "outlier_groups",
        [dotted(Jackpot)],
        ("algorithm.advantage_scale=batch_std",),
    ),
    "rewards differ by a deviation below 0.02": (
        "small_spread",
        [dotted(Alike)],
        ("algorithm.advantage_std_floor=0.05",),
    ),
}
ELSEWHERE = {
    "the value head", "the policy prefers the better answer", "pairs are over-optimized",
    "the better answers of pairs", "the curriculum", "most of the sampling",
}  # fmt: skip


@pytest.mark.parametrize("warning", WARNINGS)
def test_a_run_with_the_problem_is_warned_of_it(configure, tmp_path, reporter, warning):
    rule, overrides, proposed = WARNINGS[warning]
    report = examine(run(configure(*SHORT, *overrides), tmp_path, reporter)[1].path)
    [found] = [finding for finding in report.findings if finding.rule == rule]
    assert warning in found.what
    assert found.settings == proposed


def test_every_warning_of_the_page_has_such_a_run():
    page = (Path(__file__).parent.parent / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    table = page[: page.index("`training.on_collapse`")]
    rows = [line.split(" | ")[0] for line in table.splitlines() if line.startswith("| `")]
    told = {each for each in (*WARNINGS, *ELSEWHERE) for row in rows if each in row}
    assert told == {*WARNINGS, *ELSEWHERE}
    assert [row for row in rows if not any(each in row for each in told)] == []


# ---- the guide's list


def answer(report, entry):
    return next(each for each in report.guide if each.entry == entry)


def test_a_loss_that_does_not_decrease_is_explained_by_what_the_run_lacks(configure, tmp_path, reporter):
    report = examine(run(configure(*SHORT, dotted(Nothing)), tmp_path, reporter)[1].path)
    found = answer(report, "loss not decreasing")
    assert not found.ok
    assert "the reward is what matters, and it went from 0 to 0: no significant rise" in found.what
    assert "see zero_reward" in found.what
    assert found.fix.startswith("start from a model that sometimes succeeds")


def test_instability_is_answered_with_the_rate_that_suits_the_model(configure, tmp_path, reporter):
    wild = "algorithm=grpo", "algorithm.learning_rate=0.3", dotted(Chance)
    report = examine(run(configure(*SHORT, *wild), tmp_path, reporter)[1].path)
    found = answer(report, "instability")
    assert not found.ok
    assert "see repetition" in found.what
    assert found.settings == ("algorithm.learning_rate=0.0001", "training.on_collapse=rollback")


def test_high_memory_is_answered_with_what_lowers_it(configure, tmp_path, reporter):
    config, text = configure(*SHORT, dotted(EvenReward), "hardware.tokens_per_microbatch=80")
    folder = RunFolder(tmp_path / "run")
    folder.create(text)
    parts = build_parts(config, folder, reporter)
    Small(parts.policy, tokens=20)
    Trainer(config, parts, folder, reporter).train()
    report = examine(folder.path)
    found = answer(report, "high memory")
    assert not found.ok
    assert "memory ran out 1 time;" in found.what
    assert found.settings == ("hardware.tokens_per_microbatch=40",)
    [rule] = [each for each in report.findings if each.rule == "out_of_memory"]
    left = folder.read("metrics.jsonl")[-1]["tokens_per_microbatch"]
    assert rule.settings == (f"hardware.tokens_per_microbatch={left}",)
