"""Code of others, in rewards and at import: whatever it raises or returns is a sentence, never the end."""

from __future__ import annotations

import asyncio
import sys

import numpy as np
import pytest
import torch

from gspo_cli.rewards.base import RewardFunction
from gspo_cli.types import RewardResult, as_number, as_truth
from tests.support.command_line import gspo_train
from tests.support.whole_runs import SMALL, dotted

QUICK = [*SMALL, "training.num_outer_iterations=2"]


class Exits(RewardFunction):
    def compute_reward(self, trajectory, turn, context):
        sys.exit(0)


class ExitsLater(RewardFunction):
    async def compute_reward(self, trajectory, turn, context):
        sys.exit(0)


class Deep(RewardFunction):
    def compute_reward(self, trajectory, turn, context):
        return self.compute_reward(trajectory, turn, context)


class Says(RewardFunction):
    def compute_reward(self, trajectory, turn, context):
        return RewardResult(1.0, solved="no")


class Huge(RewardFunction):
    def compute_reward(self, trajectory, turn, context):
        return RewardResult(10**400)


class Cancels(RewardFunction):
    def compute_reward(self, trajectory, turn, context):
        raise asyncio.CancelledError


class Divides(RewardFunction):
    def compute_reward(self, trajectory, turn, context):
        class Odd:
            def __float__(self):
                return 1 / 0

        return RewardResult(Odd())


class Nameless(RewardFunction):
    def compute_reward(self, trajectory, turn, context):
        return RewardResult(1.0, {None: 1.0, "a": 1.0})


class Surrogate(RewardFunction):
    def compute_reward(self, trajectory, turn, context):
        return RewardResult(1.0, {"\ud800": 1.0})


class Paints(RewardFunction):
    def compute_reward(self, trajectory, turn, context):
        raise ValueError("one\ntwo \x1b[31mred")


class Text(RewardFunction):
    def compute_reward(self, trajectory, turn, context):
        return RewardResult("0.5")


@pytest.mark.long
@pytest.mark.parametrize(
    ("reward", "said"),
    [
        (Exits, r"Exits raised RuntimeError: called sys.exit(0)"),
        (ExitsLater, "ExitsLater raised RuntimeError: raised SystemExit"),
        (Deep, "Deep raised RecursionError"),
        (Says, "Says returned a solved that is neither true nor false: 'no'"),
        (Huge, "Huge returned a reward that is not a number: it is too large"),
        (Cancels, "Cancels raised RuntimeError: raised CancelledError"),
        (Divides, "Divides returned a reward that is not a number: "),
        (Nameless, "Nameless returned a component called None; give it a printable name"),
        (Surrogate, "Surrogate returned a component called "),
        (Paints, "Paints raised ValueError: one two \N{REPLACEMENT CHARACTER}[31mred"),
        (Text, "Text returned a reward that is not a number: '0.5' is text"),
    ],
)
def test_a_reward_never_ends_the_program(tmp_path, reward, said):
    done = gspo_train(*QUICK, dotted(reward), f"hydra.run.dir={tmp_path / 'run'}")
    assert done.returncode == 2
    assert done.stderr.startswith(f"gspo-train: reward: {said}")


MODULES = {"exits": "raise SystemExit(0)", "broken": "def (", "fails": "1 / 0"}


@pytest.mark.parametrize("name", MODULES)
def test_a_module_that_fails_while_it_is_imported_is_one_sentence(tmp_path, name):
    (tmp_path / f"{name}_reward.py").write_text(MODULES[name])
    done = gspo_train(*QUICK, f"reward={name}_reward.X", "hydra.run.dir=run", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"gspo-train: reward={name}_reward.X: fails while it is imported (")
    assert done.stderr.count("\n") == 1


def test_numbers_and_truths_of_other_libraries_are_taken():
    assert [as_number(n) for n in (1, True, np.float32(0.5), torch.tensor(2.0))] == [1.0, 1.0, 0.5, 2.0]
    assert [as_truth(t) for t in (True, np.bool_(False), torch.tensor(True))] == [True, False, True]
    for wrong in (1, "yes", None, 0.0, [True]):
        with pytest.raises(TypeError):
            as_truth(wrong)
