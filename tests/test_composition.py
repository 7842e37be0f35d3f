"""A weighted reward is the bounded sum of its parts, whatever kind they are."""

from __future__ import annotations

import asyncio
import warnings

import pytest

from gspo_cli.config.choices import RewardErrors
from gspo_cli.errors import UserError
from gspo_cli.rewards.base import RewardError, RewardFunction
from gspo_cli.rewards.composition import WeightedReward
from gspo_cli.rewards.scoring import score, score_all, validate
from gspo_cli.rewards.verifiers import VerifierReward
from gspo_cli.types import FinishReason, Message, Problem, RewardResult, Trajectory


def conversation(turns=2):
    messages = [Message("user", "?"), Message("assistant", "yes")] * turns
    problem = Problem("p", (messages[0],), "yes")
    return Trajectory(problem, [], [], [], [], messages, FinishReason.stop, turn_rewards=[0.0] * turns)


class Plain(RewardFunction):
    def __init__(self, total, parts=None, turns=(), solved=None):
        self.result = RewardResult(total, parts or {}, {"seen": total}, turns, solved)

    def compute_reward(self, trajectory, turn, context):
        return self.result


class Awaited(Plain):
    seconds = 0.0

    async def compute_reward(self, trajectory, turn, context):
        await asyncio.sleep(self.seconds)
        return self.result


class Together(Plain):
    """Waits until all of its kind, `expected` in number, have been asked."""

    def __init__(self, asked, expected):
        super().__init__(1.0)
        self.asked, self.expected = asked, expected

    async def compute_reward(self, trajectory, turn, context):
        self.asked.append(trajectory)
        async with asyncio.timeout(10):
            while len(self.asked) < self.expected:
                await asyncio.sleep(0.001)
        return self.result


class Batched(RewardFunction):
    def __init__(self):
        self.sizes = []

    def compute_rewards(self, trajectories):
        self.sizes.append(len(trajectories))
        return [RewardResult(0.5) for _ in trajectories]


class Broken(RewardFunction):
    def compute_reward(self, trajectory, turn, context):
        raise KeyError("answer")


class AwaitedBroken(RewardFunction):
    async def compute_reward(self, trajectory, turn, context):
        raise KeyError("later")


def judged(reward, trajectory=None):
    trajectory = trajectory or conversation()
    return validate(reward, trajectory, *score(reward, [trajectory]))


@pytest.mark.parametrize("kind", [Plain, Awaited])
@pytest.mark.parametrize(
    ("totals", "bounds", "expected"),
    [
        ((1.0, 0.5), (0.0, 1.0), 0.7 * 1.0 - 0.2 * 0.5),
        ((0.0, 1.0), (0.0, 1.0), 0.0),  # -0.2, at the lower bound
        ((0.0, 1.0), (-1.0, 1.0), -0.2),
        ((9.0, 0.0), (0.0, 1.0), 1.0),
    ],
)
def test_the_total_is_the_weighted_sum_within_bounds(kind, totals, bounds, expected):
    parts = {"good": (0.7, Plain(totals[0])), "bad": (-0.2, kind(totals[1]))}
    assert judged(WeightedReward(parts, *bounds)).total_reward == pytest.approx(expected)


def test_every_part_is_logged_unweighted_under_its_name():
    inner = WeightedReward({"tone": (2.0, Plain(0.25, {"calm": 0.1}))})
    parts = {"answer": (0.5, VerifierReward("exact")), "manner": (0.5, inner)}
    result = judged(WeightedReward(parts))
    assert result.component_rewards == {
        "answer": 1.0,
        "answer/exact": 1.0,
        "manner": 0.5,
        "manner/tone": 0.25,
        "manner/tone/calm": 0.1,
    }
    assert result.total_reward == 0.75
    assert result.metadata == {"manner": {"tone": {"seen": 0.25}}}


def test_turn_rewards_are_weighted_sums_and_the_rest_belongs_to_the_last_turn():
    parts = {
        "early": (1.0, Plain(0.5, turns=(0.5,))),
        "both": (0.5, Awaited(0.4, turns=(0.1, 0.3))),
        "whole": (0.1, Plain(1.0)),
    }
    trajectory = conversation()
    score_all(WeightedReward(parts), [trajectory], RewardErrors.stop)
    assert trajectory.turn_rewards == pytest.approx([0.55, 0.25])
    assert trajectory.reward == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("says", "solved"),
    [((None, None), None), ((True, None), True), ((True, False), False), ((False, None), False)],
)
def test_it_is_solved_where_all_parts_that_decide_agree(says, solved):
    parts = {str(place): (1.0, Plain(0.0, solved=word)) for place, word in enumerate(says)}
    assert judged(WeightedReward(parts)).solved is solved


def test_awaited_parts_run_side_by_side():
    asked = []  # two parts of four trajectories: one after the other the first would wait forever
    parts = {"a": (0.5, Together(asked, 8)), "b": (0.5, Together(asked, 8)), "c": (1.0, Plain(0.0))}
    trajectories = [conversation() for _ in range(4)]
    score_all(WeightedReward(parts), trajectories, RewardErrors.stop)
    assert [t.reward for t in trajectories] == [1.0] * 4


def test_a_part_that_works_in_batches_gets_all_conversations_at_once():
    batched = Batched()
    inner = WeightedReward({"model": (1.0, batched)})
    reward = WeightedReward({"inner": (1.0, inner), "plain": (0.25, Awaited(1.0))})
    trajectories = [conversation() for _ in range(5)]
    score_all(reward, trajectories, RewardErrors.stop)
    assert batched.sizes == [5]
    assert [t.reward for t in trajectories] == [0.75] * 5


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (Broken(), "Broken raised KeyError: 'answer'"),
        (AwaitedBroken(), "AwaitedBroken raised KeyError: 'later'"),
    ],
)
def test_a_part_that_fails_fails_the_whole_with_its_own_reason(broken, reason):
    reward = WeightedReward({"fine": (0.5, Awaited(1.0)), "broken": (0.5, broken)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of coroutines never awaited
        trajectory = conversation()
        score_all(reward, [trajectory], RewardErrors.exclude)
        assert (trajectory.excluded, trajectory.reward) == (reason, None)
        with pytest.raises(RewardError, match=reason):
            judged(reward)


def test_a_part_with_too_many_turns_is_named():
    reward = WeightedReward({"part": (1.0, Plain(1.0, turns=(0.1, 0.1, 0.1)))})
    with pytest.raises(RewardError, match="Plain returned 3 turn_rewards for 2 turns"):
        judged(reward)


@pytest.mark.parametrize(
    ("parts", "bounds", "sentence"),
    [
        ({}, (0.0, 1.0), "parts: is empty"),
        ({"a": (float("nan"), Plain(1.0))}, (0.0, 1.0), r"parts\.a: has weight nan"),
        ({"a": (float("inf"), Plain(1.0))}, (0.0, 1.0), r"parts\.a: has weight inf"),
        ({"a": (1.0, Plain)}, (0.0, 1.0), r"parts\.a: is not a RewardFunction"),
        ({"a": (1.0, Plain(1.0))}, (1.0, 1.0), r"minimum=1\.0: must be below maximum=1\.0"),
    ],
)
def test_settings_that_make_no_sum_are_refused(parts, bounds, sentence):
    with pytest.raises(UserError, match=sentence):
        WeightedReward(parts, *bounds)


def test_a_turn_after_damage_is_not_paid_what_the_lower_bound_forgives():
    earned = {"damage": [-0.85, 0.0, 0.0], "harmless": [0.0, 0.0, 0.0], "perfect": [0.0, 0.6, 0.4]}
    found = {}
    for name, turns in earned.items():
        part = Plain(sum(turns), turns=turns)
        found[name] = judged(WeightedReward({"part": (1.0, part)}), conversation(turns=3))
    assert [list(result.turn_rewards) for result in found.values()] == [[0, 0, 0], [0, 0, 0], [0, 0.6, 0.4]]
    # damage undone within the bounds is paid as far as it lifts the whole
    back = Plain(0.2, turns=[0.5, -0.8, 0.5])
    result = judged(WeightedReward({"part": (1.0, back)}), conversation(turns=3))
    assert list(result.turn_rewards) == pytest.approx([0.5, -0.5, 0.2])


def test_a_part_that_failed_keeps_the_others_from_asking():
    asked = []

    class Asking(RewardFunction):
        async def compute_reward(self, trajectory, turn, context):
            asked.append(trajectory)
            return RewardResult(1.0)

    reward = WeightedReward({"broken": (1.0, Broken()), "asking": (1.0, Asking())})
    [found] = reward.compute_rewards([conversation()])
    assert isinstance(found, RewardError)
    assert asked == []
