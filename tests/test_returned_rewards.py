"""What an agent returns as its reward, alone and beside other rewards."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gspo_cli.rewards.base import RewardError, RewardFunction
from gspo_cli.rewards.returned import RETURNED, ReturnedReward
from gspo_cli.types import FinishReason, Message, Outcome, Problem, RewardResult, Trajectory
from tests.test_task_agent import task_of


def scored(reward, returned, answer="7"):
    trajectory = Trajectory(
        Problem("p", (Message("user", "x"),), answer), [1, 2], [False, True], [0.0, -1.0], [-1, 0],
        [Message("user", "x"), Message("assistant", "7")], FinishReason.stop, [0.0], [{}],
        Outcome(details={RETURNED: returned}),
    )  # fmt: skip
    [found] = reward.compute_rewards([trajectory])
    if isinstance(found, Exception):
        raise found
    return found


@pytest.mark.parametrize(
    ("returned", "total"),
    [(1, 1.0), (0.25, 0.25), (True, 1.0), (RewardResult(0.5, {"a": 1}), 0.5), ({"reward": 0.75}, 0.75)],
)
def test_what_an_agent_returns_is_its_reward(returned, total):
    assert scored(ReturnedReward(), returned).total_reward == total


def test_a_program_can_say_more_than_a_number():
    found = scored(ReturnedReward(), {"reward": 1.5, "components": {"tone": 0.5}, "solved": False})
    assert (found.total_reward, found.component_rewards, found.solved) == (1.5, {"tone": 0.5}, False)


@pytest.mark.parametrize(
    ("returned", "sentence"),
    [
        (None, "returned no reward; return a number"),
        ("1", "returned '1', which is no number"),
        ([1], "which is no number"),
        ({"total": 1}, "returned a mapping with total; give reward, components, solved"),
        ({}, "returned a mapping with nothing"),
        ({"reward": 1, "components": [1]}, "returned components"),
        ({"reward": 1, "solved": "yes"}, "returned solved 'yes'"),
    ],
)
def test_what_is_no_reward_is_an_error_that_says_so(returned, sentence):
    with pytest.raises(RewardError, match=sentence):
        scored(ReturnedReward(), returned)


class Half(RewardFunction):
    def compute_reward(self, trajectory, turn, context):
        return RewardResult(-3.0)


def test_rewards_are_the_agents_the_runs_or_both(tmp_path):
    rows = ({"prompt": "a", "answer": "7"}, {"prompt": "b", "answer": "7"})
    verified = task_of(tmp_path, rows, verifier="numeric")
    assert scored(task_of(tmp_path).scored_by(None), 0.25).total_reward == 0.25
    assert scored(task_of(tmp_path).scored_by(Half()), 0.25).total_reward == -3.0
    assert scored(verified.scored_by(None), None).total_reward == 1.0
    assert scored(replace(verified, return_share=0.25).scored_by(None), 0.0).total_reward == 0.75
    both = scored(task_of(tmp_path, return_share=0.5).scored_by(Half()), 2.0)
    assert both.total_reward == -0.5, "not clamped: the scales are the user's"
    assert both.component_rewards == {"agent": 2.0, "scored": -3.0}
    assert scored(task_of(tmp_path, return_share=1).scored_by(Half()), 2.0).total_reward == 2.0
