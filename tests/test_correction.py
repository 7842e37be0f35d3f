"""Engine weights: truncated per token or a mask per sequence; constants of the policy term alone."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from gspo_cli.algorithm.correction import EngineStats, engine_weights, weighted
from gspo_cli.algorithm.objective import policy_loss
from gspo_cli.config.cautions import cautions
from gspo_cli.config.choices import EngineCorrection
from gspo_cli.training.metrics import Clock, update_metrics
from gspo_cli.training.update import Updater
from tests.support.batches import samples_of
from tests.support.configs import assert_refused

# d = log 1.5, log 4, log 0.5 | log 1.2, -log 1.2, and a position that is not trained
OLD = torch.tensor([[0.0, -1.0, -2.0], [-1.0, -1.0, 5.0]])
DIFFERENCE = torch.tensor(
    [[math.log(1.5), math.log(4), math.log(0.5)], [math.log(1.2), -math.log(1.2), 100.0]]
)
MASK = torch.tensor([[True, True, True], [True, True, False]])


def algorithm(configure, *overrides):
    return configure(*overrides)[0].algorithm


def test_token_weights_are_the_ratio_up_to_the_bound(configure):
    chosen = algorithm(configure, "algorithm.engine_correction=token_truncate")
    weights, stats = engine_weights(OLD, OLD - DIFFERENCE, MASK, chosen)
    expected = torch.tensor([[1.5, 2.0, 0.5], [1.2, 1 / 1.2, 1.0]])
    torch.testing.assert_close(weights, expected, rtol=1e-6, atol=0)
    assert (stats.counted, stats.dropped) == (5, 1)
    assert stats.ratio_sum == pytest.approx(1.5 + 4 + 0.5 + 1.2 + 1 / 1.2, rel=1e-6)


def test_sequences_are_masked_by_their_geometric_mean(configure):
    # (1.5 * 4 * 0.5) ** (1/3) = 1.44 is out of the band; 1.2 and 1 / 1.2 make 1
    chosen = algorithm(configure, "algorithm.engine_correction=sequence_mask")
    weights, stats = engine_weights(OLD, OLD - DIFFERENCE, MASK, chosen)
    assert weights.tolist() == [[0.0], [1.0]]
    assert (stats.counted, stats.dropped) == (2, 1)
    assert stats.ratio_sum == pytest.approx(3 ** (1 / 3) + 1, rel=1e-6)


@pytest.mark.parametrize("off", [1.08, 1 / 1.08])
def test_the_band_of_the_mask_is_closed_to_both_sides_and_set_by_its_bound(configure, off):
    difference = torch.full((1, 4), math.log(off))
    mask = torch.ones(1, 4, dtype=torch.bool)
    found = [
        engine_weights(
            torch.zeros(1, 4),
            -difference,
            mask,
            algorithm(
                configure,
                "algorithm.engine_correction=sequence_mask",
                f"algorithm.engine_correction_max={bound}",
            ),
        )[0].item()
        for bound in ("null", 1.07, 1.09)
    ]
    assert found == [0.0, 0.0, 1.0]


def test_the_mask_does_not_depend_on_length(configure):
    # a product over 1000 tokens of 1.01 would be 20,959; their geometric mean is 1.01
    chosen = algorithm(configure, "algorithm.engine_correction=sequence_mask")
    difference = torch.full((1, 1000), math.log(1.01))
    weights, stats = engine_weights(
        torch.zeros(1, 1000), -difference, torch.ones(1, 1000, dtype=torch.bool), chosen
    )
    assert weights.item() == 1.0
    assert stats.ratio_sum == pytest.approx(1.01, rel=1e-5)


def test_no_correction_weighs_everything_as_one_and_judges_nothing(configure):
    weights, stats = engine_weights(OLD, OLD - DIFFERENCE, MASK, algorithm(configure))
    assert weights.tolist() == [[1.0], [1.0]]
    assert stats == EngineStats()


def term_gradient(configure, weights, level, *overrides):
    """Gradient by the log-probabilities, with engine weights put in through `weighted`; and without, times
    the weights."""
    chosen = algorithm(configure, f"algorithm={level}", *overrides)
    old = torch.tensor([[-1.0, -2.0, -1.5], [-1.0, -0.5, 0.0]])
    advantages = torch.tensor([[0.7], [-0.4]])
    found = []
    for given in (weighted(advantages, weights, MASK, chosen.ratio_level), advantages):
        logprobs = (old + torch.tensor([[0.05, -0.3, 0.02], [0.4, -0.1, 0.0]])).requires_grad_()
        loss, _ = policy_loss(logprobs, old, given, MASK, chosen, 2.0)
        (gradient,) = torch.autograd.grad(loss, logprobs)
        found.append(gradient)
    return found


@pytest.mark.parametrize("level", ["grpo", "gspo_token", "cispo", "dr_grpo"])
def test_a_token_weight_multiplies_the_term_of_its_token(configure, level):
    weights = torch.tensor([[1.5, 2.0, 0.5], [1.2, 0.8, 1.0]])
    corrected, plain = term_gradient(configure, weights, level)
    torch.testing.assert_close(corrected, plain * weights, rtol=1e-6, atol=1e-8)
    assert plain.abs().max() > 0.01


def test_a_sequence_ratio_takes_the_mean_of_its_token_weights(configure):
    weights = torch.tensor([[1.5, 2.0, 0.5], [1.2, 0.8, 77.0]])
    corrected, plain = term_gradient(configure, weights, "gspo", "algorithm.clip_mode=none")
    means = torch.tensor([[4 / 3], [1.0]])
    torch.testing.assert_close(corrected, plain * means, rtol=1e-6, atol=1e-8)
    assert plain.abs().max() > 0.01


@pytest.mark.long
def test_a_masked_sequence_leaves_the_others_step_as_it_was(configure):
    # it stays in the denominator: the gradient of the rest is the same, not larger
    weights = torch.tensor([[0.0], [1.0]])
    corrected, plain = term_gradient(configure, weights, "gspo", "algorithm.clip_mode=none")
    assert corrected[0].abs().max() == 0
    assert torch.equal(corrected[1], plain[1])
    assert plain[0].abs().max() > 0.01


def sampled(policy, shifts):
    """Samples whose engine log-probabilities differ from the policy's by `shifts[i]` per trained token."""
    samples = samples_of(policy)
    for sample, shift in zip(samples, shifts, strict=True):
        ids = torch.tensor([sample.trajectory.token_ids])
        mask = torch.tensor([sample.trajectory.action_mask])
        with torch.no_grad():
            values = policy(ids, mask, 1.0)[0][0]
        sample.trajectory.sampling_logprobs = (values - shift * mask[0]).tolist()
    return samples


def run(policy, config, samples):
    before = [p.detach().clone() for p in policy.trainable()]
    report = Updater(policy, config).run(samples, np.random.default_rng(0), Clock())
    change = torch.cat([(p.detach() - b).flatten() for p, b in zip(policy.trainable(), before, strict=True)])
    return update_metrics(report), change


def test_the_dropped_share_of_an_update_is_logged(load, configure):
    config, _ = configure("algorithm=gspo", "algorithm.engine_correction=sequence_mask")
    policy = load("qwen3")
    metrics, change = run(policy, config, sampled(policy, [0.2] * 4 + [0.01] * 12))
    assert metrics["sampling/dropped_fraction"] == pytest.approx(0.25)
    # later minibatches are compared with the policy before the first step, too
    expected = (4 * math.exp(0.2) + 12 * math.exp(0.01)) / 16
    assert metrics["sampling/engine_ratio_mean"] == pytest.approx(expected, rel=1e-4)
    assert change.abs().max() > 0


def test_with_all_sequences_masked_nothing_but_the_penalty_is_trained(load, configure):
    overrides = (
        "algorithm=gspo",
        "algorithm.engine_correction=sequence_mask",
        "training.updates_per_rollout=1",
    )
    policy, moved = load("qwen3"), []
    samples = sampled(policy, [0.2] * 16)
    metrics, _ = run(policy, configure(*overrides)[0], samples)
    assert metrics["sampling/dropped_fraction"] == 1.0
    assert metrics["grad_norm"] == 0.0
    for correction in ("sequence_mask", "none"):
        penalised = configure(
            *overrides[:1], *overrides[2:], "algorithm.beta=0.1", "algorithm.kl_estimator=k2"
        )
        algorithm_ = replace(penalised[0].algorithm, engine_correction=EngineCorrection[correction])
        policy = load("qwen3")
        reference = load("qwen3").causal_model
        with torch.no_grad():
            reference.get_input_embeddings().weight.mul_(1.1)
        policy.keep_reference(reference)
        idle = [replace(s, advantages=[0.0]) for s in samples] if correction == "none" else samples
        moved.append(run(policy, replace(penalised[0], algorithm=algorithm_), idle)[0]["grad_norm"])
    # the penalty of masked sequences is whole: that of the same sequences without any advantage
    assert moved[0] == pytest.approx(moved[1], rel=1e-6)
    assert moved[0] > 1e-4


def test_without_correction_nothing_of_it_is_logged(load, configure):
    policy = load("qwen3")
    metrics, _ = run(policy, configure("algorithm=gspo")[0], sampled(policy, [0.2] * 16))
    assert "sampling/dropped_fraction" not in metrics


def test_old_logprobs_of_the_engine_put_its_distance_into_the_first_ratio(load, configure):
    # log s = 0.001 for every sequence of the first minibatch, where recomputing gives exactly 1
    config, _ = configure(
        "algorithm=gspo", "rollout.old_logprobs=engine", "training.updates_per_rollout=1",
        "algorithm.clip_mode=none",
    )  # fmt: skip
    policy = load("qwen3")
    metrics, _ = run(policy, config, sampled(policy, [0.001] * 16))
    assert metrics["ratio/first_step_abs_err"] == pytest.approx(math.expm1(0.001), rel=2e-3)
    assert metrics["ratio/mean"] == pytest.approx(math.exp(0.001), abs=1e-6)
    assert metrics["sampling/logp_difference/mean"] == pytest.approx(0.001, rel=2e-3)


class Counting(Updater):
    """Counts passes through the model."""

    passes = 0

    def _scored(self, micro, with_entropy=False, values=False):
        self.passes += 1
        return super()._scored(micro, with_entropy, values)


def test_old_logprobs_of_the_engine_cost_no_scoring_pass(load, configure):
    passes, policy = {}, load("qwen3")
    samples = sampled(policy, [0.0] * 16)
    for source in ("engine", "recompute"):
        config, _ = configure("algorithm=gspo", f"rollout.old_logprobs={source}")
        updater = Counting(load("qwen3"), config)
        updater.run(samples, np.random.default_rng(0), Clock())
        passes[source] = updater.passes
    first, *later = Updater(policy, config).collator.minibatches(samples, np.random.default_rng(0))
    scored = sum(len(minibatch.micro_batches) for minibatch in later)
    assert passes["engine"] == len(first.micro_batches) + scored  # those of the gradient
    assert passes["recompute"] == passes["engine"] + scored + 1  # and a probe of the first minibatch


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["algorithm.engine_correction_max=1.0"], "algorithm.engine_correction_max=1.0"),
        (
            ["algorithm.engine_correction=sequence_mask", "rollout.old_logprobs=engine"],
            "rollout.old_logprobs=recompute",
        ),
        (["algorithm.routing_replay=true", "rollout.old_logprobs=engine"], "algorithm.routing_replay=true"),
        (["rollout=vllm", "hardware.zero_stage=1"], "hardware.zero_stage=0"),
        (["rollout=vllm", "model.use_lora=true", "model.use_8bit=true"], "model.use_8bit=false"),
        (["rollout.vllm_memory=1.0"], "rollout.vllm_memory=1.0"),
    ],
)
def test_settings_that_do_not_go_together_are_refused_in_one_sentence(configure, overrides, message):
    assert_refused(configure, overrides, re.escape(message))


@pytest.mark.parametrize(("precision", "warned"), [("bf16", True), ("fp32", False)])
def test_the_engines_noise_under_a_narrow_band_is_a_caution(configure, precision, warned):
    config, _ = configure("rollout.old_logprobs=engine", f"hardware.precision={precision}")
    assert any("rollout.old_logprobs" in text for text in cautions(config)) == warned
