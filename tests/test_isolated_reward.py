"""Rewards in a process of their own: the same numbers, and neither hanging nor dying ends the run."""

from __future__ import annotations

import os
import signal
import time

import pytest

from gspo_cli.config.choices import RewardErrors
from gspo_cli.errors import UserError
from gspo_cli.rewards.base import RewardError
from gspo_cli.rewards.isolated import IsolatedReward
from gspo_cli.rewards.scoring import score_all
from gspo_cli.types import FinishReason, Message, Problem, Trajectory
from tests.support.command_line import alive, gspo_train
from tests.support.isolated_rewards import Acts, Batches, Dies, Length, LengthLater, Refuses
from tests.support.whole_runs import SMALL, assert_same_run

pytestmark = pytest.mark.long


def conversation(text):
    problem = Problem("p", (Message("user", "Hi"),))
    messages = [*problem.messages, Message("assistant", text)]
    return Trajectory(problem, [1, 2], [False, True], [0.0] * 2, [-1, 0], messages, FinishReason.stop)


@pytest.fixture
def isolated():
    made = []

    def make(cls, timeout=2.0):
        made.append(IsolatedReward(cls, 4, timeout))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.mark.parametrize("cls", [Length, LengthLater, Batches])
def test_the_results_are_those_of_the_reward_itself(isolated, cls):
    here, there = [[conversation(text) for text in ("a", "bb", "ccc")] for _ in range(2)]
    score_all(cls(), here, RewardErrors.stop)
    score_all(isolated(cls), there, RewardErrors.stop)
    for one, other in zip(here, there, strict=True):
        assert (one.reward, one.components, one.solved) == (other.reward, other.components, other.solved)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hang", "Acts took longer than 2 s and was stopped"),
        ("die", "its process ended with exit code 3"),
        ("crash", "its process ended with exit code -11"),
        ("exit", "Acts raised RuntimeError: called sys.exit(0)"),
        ("interrupt", "Acts raised RuntimeError: raised KeyboardInterrupt"),
        ("odd", "its result cannot be sent to the run"),
        ("unreadable", "its result cannot be read by the run (TypeError"),
    ],
)
def test_what_goes_wrong_costs_only_its_own_conversation(isolated, text, said):
    reward = isolated(Acts)
    trajectories = [conversation(each) for each in ("fine", text, "fine")]
    score_all(reward, trajectories, RewardErrors.exclude)
    assert [t.reward for t in trajectories] == [1.0, None, 1.0]
    assert said in trajectories[1].excluded


def test_a_reward_that_cannot_be_built_is_one_sentence():
    with pytest.raises(UserError, match="needs a key"):
        IsolatedReward(Refuses, 1, 1.0)
    with pytest.raises(
        UserError, match=r"ended with exit code 7; try it with training\.isolate_reward=false"
    ):
        IsolatedReward(Dies, 1, 1.0)


def test_ctrl_c_is_left_to_the_run(isolated):
    reward = isolated(Length)
    os.kill(reward._process.pid, signal.SIGINT)
    time.sleep(0.2)
    assert alive(reward._process.pid)
    assert not isinstance(reward.compute_rewards([conversation("a")])[0], RewardError)


def test_a_run_with_it_is_the_same_run(tmp_path):
    small = [*SMALL, "training.num_outer_iterations=2"]
    for name, more in (("here", []), ("apart", ["training.isolate_reward=true"])):
        done = gspo_train(*small, *more, f"hydra.run.dir={tmp_path / name}")
        assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path / "here", tmp_path / "apart")
