"""Preference optimization: pairs, their loss, and runs of dpo."""

from __future__ import annotations

import random
from dataclasses import replace
from math import exp, log

import numpy as np
import pytest
import torch

from gspo_cli.algorithm.preference import best_and_worst, pair_losses
from gspo_cli.config.choices import Preference
from gspo_cli.run.folder import RunFolder
from gspo_cli.training.credit import informative, trainable, with_advantages
from gspo_cli.training.metrics import Clock, update_metrics
from gspo_cli.training.sharing import Sharing
from gspo_cli.training.update import Updater
from gspo_cli.types import FinishReason
from tests.support.batches import conversations, gradients_of
from tests.support.command_line import gspo_train
from tests.support.configs import assert_refused
from tests.support.whole_runs import SMALL


def test_the_best_and_the_worst_of_each_group():
    rewards = torch.tensor([[0.2, 0.9, 0.1, 0.9], [0.5, 0.5, 0.5, 0.5], [9.0, 0.1, 0.2, -9.0]])
    valid = torch.tensor([[True] * 4, [True] * 4, [False, True, True, False]])
    assert best_and_worst(rewards, valid).tolist() == [[0, 1, -1, 0], [0] * 4, [0, -1, 1, 0]]


@pytest.mark.parametrize("beta", [0.1, 2.0])
def test_losses_are_the_published_ones_and_slopes_their_derivatives(beta):
    h = torch.linspace(-5, 5, 41, dtype=torch.float64, requires_grad=True)
    for kind in (Preference.dpo, Preference.ipo):
        losses, slopes = pair_losses(h, kind, beta)
        expected = [
            -log(1 / (1 + exp(-beta * x))) if kind is Preference.dpo else (x - 1 / (2 * beta)) ** 2
            for x in h.tolist()
        ]
        assert losses.tolist() == pytest.approx(expected, abs=1e-12)
        [gradient] = torch.autograd.grad(losses.sum(), h)
        torch.testing.assert_close(slopes, gradient, rtol=0, atol=1e-12)


def paired(policy, groups=4, seed=0):
    """Samples of random conversations, of which the best and the worst of each group are compared."""
    samples = conversations(policy.causal_model.config.vocab_size, groups=groups, seed=seed)
    draw = random.Random(seed)
    trajectories = [replace(s.trajectory, reward=draw.gauss(0, 1)) for s in samples]
    return [trajectories[place : place + 4] for place in range(0, len(trajectories), 4)]


def prepared(load, configure, *overrides, sharing=False):
    config, _ = configure("algorithm=dpo", "algorithm.learning_rate=0.01", *overrides)
    policy = load("qwen3")
    policy.keep_reference(load("qwen3").causal_model)
    with torch.no_grad():  # the policy has moved away from its reference
        for parameter in policy.trainable():
            parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    return Updater(policy, config, sharing=Sharing(sharing, attention_share=1e-4))


def samples_of(updater):
    groups, algorithm = paired(updater.policy), updater.config.algorithm
    return with_advantages(trainable(groups, algorithm), groups, algorithm, limit=8)


@pytest.mark.parametrize("kind", ["dpo", "ipo"])
@pytest.mark.parametrize("aggregation", ["sequence_sum", "sequence_mean"])
def test_the_gradient_of_a_step_is_that_of_the_loss(load, configure, kind, aggregation):
    settings = ("training.updates_per_rollout=1", "training.max_grad_norm=1e6", "algorithm.beta=0.5")
    settings += (f"algorithm.preference={kind}", f"algorithm.aggregation={aggregation}")
    updater = prepared(load, configure, *settings)
    policy, reference = updater.policy, load("qwen3").causal_model
    samples = samples_of(updater)

    def gained(sample):
        ids = torch.tensor([sample.token_ids])
        found = []
        for model in (policy.causal_model, reference):
            logprobs = model(ids).logits[0, :-1].float().log_softmax(-1)
            found.append(logprobs.gather(1, ids[0, 1:, None])[:, 0][torch.tensor(sample.action_mask[1:])])
        difference = found[0] - found[1].detach()
        return difference.mean() if aggregation == "sequence_mean" else difference.sum()

    losses, gains = [], []
    for pair in {s.pair for s in samples if s.pair >= 0}:
        best, worst = (next(s for s in samples if (s.pair, s.advantages) == (pair, [x])) for x in (1, -1))
        h = gained(best) - gained(worst)
        gains.append([0.5 * gained(best).item(), 0.5 * gained(worst).item()])
        loss = -torch.nn.functional.logsigmoid(0.5 * h) if kind == "dpo" else (h - 1).square()
        losses.append(loss)
    assert len(losses) == 4
    expected = torch.autograd.grad(torch.stack(losses).mean(), policy.trainable())
    found = gradients_of(updater.strategy, policy.trainable())
    metrics = update_metrics(updater.run(samples, np.random.default_rng(0), Clock()))
    assert max(grad.abs().max() for grad in expected) > 1e-3
    [gradient] = found
    flat = torch.cat([grad.flatten() for grad in expected])
    torch.testing.assert_close(gradient, flat, rtol=1e-4, atol=2e-6)
    assert metrics["loss"] == pytest.approx(torch.stack(losses).mean().item(), abs=1e-6)
    assert metrics["preference/pairs"] == 4
    chosen, rejected = np.mean(gains, axis=0)
    assert metrics["preference/chosen"] == pytest.approx(chosen, abs=1e-5)
    assert metrics["preference/rejected"] == pytest.approx(rejected, abs=1e-5)


def test_a_minibatch_holds_both_answers_of_a_pair(load, configure):
    settings = ("training.minibatch_by=answer", "training.updates_per_rollout=4")
    updater = prepared(load, configure, *settings)
    minibatches = updater.collator.minibatches(samples_of(updater), np.random.default_rng(0))
    found = [[s.pair for micro in m.micro_batches for s in micro.samples] for m in minibatches]
    assert sorted(map(sorted, found)) == [[pair, pair] for pair in range(4)]


def test_the_layout_changes_no_step(load, configure):
    found = []
    for budget in (1, 60, 10_000):
        settings = (
            f"hardware.tokens_per_microbatch={budget}",
            "training.updates_per_rollout=2",
            "training.passes=2",
        )
        updater = prepared(load, configure, *settings, sharing=budget == 60)
        report = updater.run(samples_of(updater), np.random.default_rng(0), Clock())
        found.append([*report.grad_norms, update_metrics(report)["loss"]])
    assert found[1] == pytest.approx(found[0], rel=1e-3)
    assert found[2] == pytest.approx(found[0], rel=1e-3)


@pytest.mark.long
def test_passes_count_a_pair_once_and_log_no_ratio(load, configure):
    found = []
    for passes in (1, 3):
        updater = prepared(load, configure, "training.updates_per_rollout=2", f"training.passes={passes}")
        found.append(update_metrics(updater.run(samples_of(updater), np.random.default_rng(0), Clock())))
    for metrics in found:
        assert metrics["preference/pairs"] == 4
        assert 0 <= metrics["preference/accuracy"] <= 1
        of_ratios = ("clip_", "approx_kl", "ratio/m", "ratio/std", "ratio/short", "ratio/long", "shadow/")
        assert [name for name in metrics if name.startswith(of_ratios)] == []
    assert found[0].keys() == found[1].keys()
    assert found[0]["length/long_mean"] == found[1]["length/long_mean"]


def test_without_a_pair_there_is_nothing_to_log_of_pairs(load, configure):
    updater = prepared(load, configure, "training.updates_per_rollout=2")
    groups = [[replace(t, reward=1.0) for t in group] for group in paired(updater.policy)]
    algorithm = updater.config.algorithm
    samples = with_advantages(trainable(groups, algorithm), groups, algorithm, limit=8)
    metrics = update_metrics(updater.run(samples, np.random.default_rng(0), Clock()))
    named = {name: value for name, value in metrics.items() if name.startswith("preference/")}
    assert (metrics["loss"], metrics["grad_norm"], named) == (None, 0.0, {"preference/pairs": 0})


def test_groups_without_a_pair_are_not_informative(load, configure):
    updater = prepared(load, configure, "algorithm.truncated_completions=mask")
    algorithm, groups = updater.config.algorithm, paired(updater.policy)
    # all groups have four rewards that differ; of these two answers are left, of which one was cut
    for answer in groups[2][:2]:
        answer.reward, answer.excluded = None, "the grader failed"
    groups[2][2].finish_reason = FinishReason.length
    for answer, reward in zip(groups[3], (0.0, 1.0, 1.0, 1.0), strict=True):  # the only other one was cut
        answer.reward, answer.finish_reason = (
            reward,
            FinishReason.length if reward == 0 else FinishReason.stop,
        )
    samples = with_advantages(trainable(groups, algorithm), groups, algorithm, limit=8)
    in_pairs = [any(s.advantages[0] for s in samples[place : place + 4]) for place in range(0, 16, 4)]
    assert informative(groups, algorithm) == in_pairs == [True, True, False, False]
    # where every answer has an advantage, the one that was cut still counts in the mean of the others
    gspo = configure("algorithm=gspo", "algorithm.truncated_completions=mask")[0].algorithm
    assert informative(groups, gspo) == [True, True, True, True]


def test_the_loss_of_a_batch_falls(load, configure):
    settings = ("training.updates_per_rollout=1", "training.passes=10", "algorithm.learning_rate=3e-3")
    updater = prepared(load, configure, *settings)
    samples = samples_of(updater)
    report = updater.run(samples, np.random.default_rng(0), Clock())
    again = updater.run(samples, np.random.default_rng(0), Clock())
    assert update_metrics(again)["loss"] < 0.8 * update_metrics(report)["loss"]
    assert update_metrics(again)["preference/accuracy"] >= 0.75  # one pair are two equal answers


@pytest.mark.long
def test_a_run_that_goes_on_is_the_run_that_did_not_stop(tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    for folder, iterations in ((whole, 4), (stopped, 2)):
        total = f"training.num_outer_iterations={iterations}"
        done = gspo_train(*SMALL, "algorithm=dpo", total, f"hydra.run.dir={folder}")
        assert done.returncode == 0, done.stderr
    done = gspo_train(f"resume={stopped}", "training.num_outer_iterations=4")
    assert done.returncode == 0, done.stderr
    names = ("loss", "reward", "preference/margin", "grad_norm")
    lines = [
        [[line[n] for n in names] for line in RunFolder(f).read("metrics.jsonl")] for f in (whole, stopped)
    ]
    assert lines[0] == lines[1]
    assert lines[0][-1][2] != 0


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["algorithm.beta=0"], "algorithm.beta=0: algorithm.preference=dpo needs its beta"),
        (["algorithm.aggregation=token_mean"], "a pair compares whole answers; use sequence_sum"),
        (["algorithm.advantage_scale=group_std"], "use algorithm.advantage_scale=none"),
        (["algorithm.engine_correction=token_truncate"], "use algorithm.engine_correction=none"),
        (["training.generations_per_iteration=8"], "use training.updates_per_rollout=2, or more"),
        (["training.target_kl=0.1"], "has no old policy; use training.target_kl=null"),
        (["algorithm.routing_replay=true"], "has no old policy to replay; use false"),
        (["algorithm.kl_estimator=k1"], "use algorithm.kl_estimator=k3, or algorithm.preference=none"),
        (["rollout.old_logprobs=engine"], "has no old policy; use rollout.old_logprobs=auto"),
    ],
)
def test_bad_combinations_are_one_sentence(configure, overrides, sentence):
    assert_refused(configure, ["algorithm=dpo", *overrides], sentence)
