"""A reference that becomes the present policy every few iterations."""

from __future__ import annotations

import pytest
import torch

from gspo_cli.run.folder import RunFolder
from gspo_cli.training.checkpoint import Checkpoints, TrainerState
from gspo_cli.training.update import Updater
from tests.support.batches import ragged
from tests.support.command_line import gspo_train
from tests.support.configs import assert_refused
from tests.support.whole_runs import SMALL, assert_same_run

KL = ("algorithm.beta=0.1", "algorithm.reference_refresh=2")


def changed(policy):
    """Other weights than the policy had; returns its scores with them."""
    with torch.no_grad():
        for parameter in policy.trainable():
            parameter.add_(0.05)
        return policy(*ragged(policy), 1.0)[0]


def kept(load, use_lora):
    policy = load("qwen3", use_lora=use_lora)
    if use_lora:
        policy.refresh_reference()
    else:
        policy.keep_reference(load("qwen3").causal_model)
    return policy


def reference(policy):
    return policy(*ragged(policy), 1.0, reference=True)[0]


@pytest.mark.parametrize("use_lora", [True, False])
def test_a_refreshed_reference_is_the_policy_and_then_stays(load, use_lora):
    policy = kept(load, use_lora)
    trained = [id(p) for p in policy.trainable()]
    with torch.no_grad():
        assert torch.equal(reference(policy), policy(*ragged(policy), 1.0)[0])
    first = changed(policy)
    assert not torch.equal(reference(policy), first)
    policy.refresh_reference()
    assert torch.equal(reference(policy), first)
    second = changed(policy)
    assert torch.equal(reference(policy), first)
    assert not torch.equal(first, second)
    assert [id(p) for p in policy.trainable()] == trained


@pytest.mark.parametrize("use_lora", [True, False])
def test_checkpoints_keep_it_and_a_rollback_takes_it_back(load, configure, tmp_path, use_lora):
    config, _ = configure(*KL, f"model.use_lora={use_lora}")
    policy = kept(load, use_lora)
    updater = Updater(policy, config)
    first = changed(policy)
    policy.refresh_reference()
    changed(policy)
    checkpoints = Checkpoints(tmp_path, config.checkpoint)
    checkpoints.save(updater, TrainerState(iteration=2))
    changed(policy)
    policy.refresh_reference()
    assert not torch.equal(reference(policy), first)
    checkpoints.roll_back(2, updater)
    assert torch.equal(reference(policy), first)
    fresh = Updater(kept(load, use_lora), config)
    checkpoints.restore(tmp_path / "iteration-000002", fresh)
    assert torch.equal(reference(fresh.policy), first)


@pytest.mark.long
@pytest.mark.parametrize("use_lora", [True, False])
def test_a_run_that_goes_on_is_the_run_that_did_not_stop(tmp_path, use_lora):
    own = [
        *KL,
        f"model.use_lora={use_lora}",
        "algorithm.learning_rate=1e-3",
        "evaluation.every=1",
        "training.updates_per_rollout=1",
    ]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    for folder, iterations in ((whole, 5), (stopped, 3)):
        total = f"training.num_outer_iterations={iterations}"
        done = gspo_train(*SMALL, *own, total, f"hydra.run.dir={folder}")
        assert done.returncode == 0, done.stderr
    assert gspo_train(f"resume={stopped}", "training.num_outer_iterations=5").returncode == 0
    assert_same_run(stopped, whole)
    kl = [line["kl"] for line in RunFolder(whole).read("metrics.jsonl")]
    # one update an iteration: after a refresh the policy is its reference
    assert kl[0] == pytest.approx(0, abs=1e-6)
    assert kl[1] > 1e-6
    assert kl[2] == pytest.approx(0, abs=1e-6)
    assert kl[3] > 1e-6
    assert kl[4] == pytest.approx(0, abs=1e-6)
    assert "every 2 iterations the present policy" in (whole / "card.txt").read_text()
    assert RunFolder(whole).read("evals.jsonl")[-1]["kl"] is None


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["algorithm.reference_refresh=2"], r"reference_refresh=2: only applies with a KL penalty"),
        (
            ["algorithm.beta=0.1", "algorithm.reference_refresh=0"],
            r"reference_refresh=0: is a number of iter",
        ),
        ([*KL, "evaluation.kl=true"], r"evaluation\.kl=true: .* use evaluation\.kl=null"),
        (
            [*KL, "hardware=zero3", "hardware.device=cpu"],
            r"reference_refresh=2: is not supported under ZeRO-3",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(configure, overrides, sentence):
    assert_refused(configure, overrides, sentence)
