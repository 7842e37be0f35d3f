"""Whole runs of actor-critics: resumed ones, conversations of several turns, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from statistics import stdev

import numpy as np
import pytest
import torch

from gspo_cli.errors import UserError
from gspo_cli.run.folder import RunFolder
from gspo_cli.training.metrics import rollout_metrics
from tests.support.command_line import gspo_train
from tests.support.configs import assert_refused
from tests.support.whole_runs import SMALL
from tests.test_actor_critic import TRAJECTORY

pytestmark = pytest.mark.long


@pytest.mark.parametrize(
    "overrides",
    [
        ("algorithm=ppo", "training.num_generations=1", "algorithm.entropy_floor=20"),
        ("algorithm=a2c", "model.use_lora=true", "training.updates_per_rollout=1"),
    ],
)
def test_a_run_that_goes_on_is_the_run_that_did_not_stop(tmp_path, overrides):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    for folder, iterations in ((whole, 4), (stopped, 2)):
        total = f"training.num_outer_iterations={iterations}"
        done = gspo_train(*SMALL, *overrides, total, f"hydra.run.dir={folder}")
        assert done.returncode == 0, done.stderr
    done = gspo_train(f"resume={stopped}", "training.num_outer_iterations=4")
    assert done.returncode == 0, done.stderr
    one, other = (RunFolder(folder).read("metrics.jsonl") for folder in (whole, stopped))
    timeless = [[{k: v for k, v in line.items() if not is_time(k)} for line in run] for run in (one, other)]
    assert timeless[0] == timeless[1]
    assert all(np.isfinite(line["value/loss"]) for line in one)
    assert one[-1]["value/mean"] != 0
    assert one[-1].get("entropy_coefficient", 0.02) > 0.01  # rises as entropy is below the floor
    heads = [
        torch.load(f / "checkpoints" / "last" / "trainer.pt")["critic"]["head"] for f in (whole, stopped)
    ]
    assert torch.equal(heads[0]["weight"], heads[1]["weight"])


def test_groups_of_one_have_the_spread_of_the_iteration():
    trajectories = [replace(TRAJECTORY, reward=float(place % 2)) for place in range(8)]
    assert rollout_metrics(trajectories, 1)["reward_std"] == pytest.approx(stdev([0, 1] * 4))
    assert rollout_metrics(trajectories, 2)["reward_std"] == pytest.approx(stdev([0, 1]))


def is_time(key):
    return key.startswith(("time/", "memory/")) or key == "tokens_per_second"


def test_conversations_of_several_turns_are_trained_by_turn(tmp_path):
    asked = [
        "task=customer_service",
        "algorithm=ppo",
        "algorithm.value.gae_steps=turn",
        "algorithm.credit=turn",
    ]
    small = [text for text in SMALL if not text.startswith("task")]
    done = gspo_train(*small, *asked, "training.num_outer_iterations=1", f"hydra.run.dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    [line] = RunFolder(tmp_path / "run").read("metrics.jsonl")
    assert line["num_turns"] > 1
    assert line["value/return_mean"] != 0


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["algorithm=gspo", "algorithm.value.clip=0.3"], "algorithm.value: only applies to an actor-critic"),
        (["algorithm=gspo", "algorithm.advantage_baseline=value"], "a sequence ratio takes one for all"),
        (["algorithm=ppo", "algorithm.advantage_scale=group_std"], "advantage_scale=batch_std or none"),
        (["algorithm=ppo", "algorithm.dynamic_sampling=true"], "algorithm.dynamic_sampling=false"),
        (["algorithm=ppo", "algorithm.beta=0.1", "algorithm.kl_estimator=k1"], "kl_estimator=k2 or k3"),
        (["algorithm=ppo", "algorithm.value.gae_lambda=2"], "gae_lambda=2.0: must be from 0 to 1"),
        (["algorithm=ppo", "algorithm.value.clip=0"], "algorithm.value.clip=0.0: must be above 0"),
        (["algorithm=gspo", "training.num_generations=1"], "or algorithm=ppo"),
        (["algorithm=ppo", "algorithm.off_policy_mask=0.1"], "use algorithm.off_policy_mask=null"),
    ],
)
def test_bad_combinations_are_one_sentence(configure, overrides, sentence):
    assert_refused(configure, overrides, sentence)


def test_an_agent_with_several_sequences_is_refused(configure):
    from gspo_cli.training.credit import trainable

    config, _ = configure("algorithm=ppo")
    with pytest.raises(
        UserError, match=r"algorithm\.advantage_baseline=value: on problem p .* use algorithm=gspo"
    ):
        trainable([[replace(TRAJECTORY, segments=[0, 3])]], config.algorithm)
