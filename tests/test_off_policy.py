"""Options for a policy that has moved, and for an engine that is not the trainer, against naive code."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from gspo_cli.algorithm.correction import engine_weights, off_policy_kept, weighted
from gspo_cli.algorithm.objective import policy_loss
from gspo_cli.config.choices import EngineCorrection
from gspo_cli.config.formulas import formula
from gspo_cli.training.metrics import Clock, update_metrics
from gspo_cli.training.update import Updater
from tests.support.batches import samples_of
from tests.support.configs import assert_refused
from tests.support.objectives import algorithm, batch, computed, differences
from tests.test_family import ratios

CASES = range(60)
EXACT = 1e-12


def naive_loss(logprobs, old, advantages, mask, weight):
    """GRPO's loss with a weight (B, T) on each token's term."""
    terms = []
    for row, advantage in enumerate(advantages[:, 0]):
        w = ratios(logprobs, old, mask, row).exp()
        term = torch.minimum(w * advantage, w.clamp(0.8, 1.27) * advantage)
        terms.append((term * weight[row][mask[row]]).mean())
    return -sum(terms) / len(terms)


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_the_corrected_kl_is_k3_times_the_ratio_of_the_token(level):
    # unbiased: E_old[w k3] = E_pi[k3], so that the ratio's gradient is part of it
    for seed in CASES:
        logprobs, old, advantages, mask = batch(seed)
        reference = old + 0.4 * torch.sin(10 * old)
        config = algorithm(level, 0.2, 0.27, beta=0.3)
        corrected = replace(config, kl_bias_corrected=True)
        penalty = []
        for row in range(len(mask)):
            d = (logprobs[row] - reference[row])[mask[row]]
            penalty.append((ratios(logprobs, old, mask, row).exp() * ((-d).exp() - 1 + d)).mean())
        plain = replace(config, beta=0.0)
        expected = 0.3 * sum(penalty) / len(penalty)
        found = computed(corrected, logprobs, old, advantages, mask, ref_logprobs=reference)
        without = computed(plain, logprobs, old, advantages, mask)
        part = (found[0] - without[0], found[1] - without[1])
        assert max(differences(part, expected, logprobs)) < EXACT
        total = sum(p * n for p, n in zip(penalty, mask.sum(dim=1), strict=True)).item()
        assert found[2].kl_sum == pytest.approx(total, abs=EXACT)


def test_the_gradient_of_the_corrected_kl_is_that_of_the_reverse_kl():
    # exactly, over all outcomes of one token: sum_y old(y) grad[w k3] = grad KL(pi || ref)
    logits = torch.tensor([0.3, -0.2, 1.1], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    reference = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    logprobs, mask = logits.log_softmax(dim=0)[:, None], torch.ones(3, 1, dtype=torch.bool)
    reverse = (logprobs.exp() * (logprobs - reference.log()[:, None])).sum()
    (exact,) = torch.autograd.grad(reverse, logits, retain_graph=True)
    found = torch.zeros(3, dtype=torch.float64)
    for outcome in range(3):
        rows = slice(outcome, outcome + 1)
        given = (logprobs[rows], old.log()[rows, None], torch.zeros(1, 1).double(), mask[rows])
        config = algorithm("token", beta=1.0, kl_bias_corrected=True)
        loss = policy_loss(*given, config, 1.0, ref_logprobs=reference.log()[rows, None])[0]
        found += old[outcome] * torch.autograd.grad(loss, logits, retain_graph=True)[0]
    torch.testing.assert_close(found, exact, rtol=0, atol=EXACT)


def test_bad_answers_that_the_policy_has_left_are_not_trained_on():
    for seed in CASES:
        logprobs, old, advantages, mask = given = batch(seed)
        limit = 0.05
        kept = off_policy_kept(logprobs, old, advantages, mask, limit)
        far = [-ratios(logprobs, old, mask, row).mean().item() > limit for row in range(len(mask))]
        expected = [a >= 0 or not away for a, away in zip(advantages[:, 0].tolist(), far, strict=True)]
        assert kept[:, 0].tolist() == expected
        weight = kept.double().expand(mask.shape)
        found = computed(algorithm(), logprobs, old, advantages * kept, mask)
        assert max(differences(found, naive_loss(*given, weight), logprobs)) < EXACT


def test_of_advantages_per_token_the_negative_ones_of_a_far_answer_are_left_out():
    logprobs, old = torch.zeros(2, 3), torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 9.0]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    advantages = torch.tensor([[1.0, -1.0, 0.0], [-1.0, -1.0, -1.0]])
    kept = off_policy_kept(logprobs, old, advantages, mask, 0.5)
    assert kept.tolist() == [[True, False, True], [True, True, True]]


CORRECTIONS = {
    "token_mask": lambda d, bound: torch.where((d.exp() <= bound) & (d.exp() >= 1 / bound), d.exp(), 0),
    "sequence_truncate": lambda d, bound: d.mean().exp().clamp(max=bound).expand(len(d)),
    "token_truncate": lambda d, bound: d.exp().clamp(max=bound),
    "sequence_mask": lambda d, bound: (d.mean().abs() <= torch.tensor(bound).log()).double().expand(len(d)),
}


@pytest.mark.parametrize("name", CORRECTIONS)
def test_engine_weights_and_the_loss_under_them_are_those_of_naive_code(name):
    bounds = {"token_mask": 2.0, "token_truncate": 2.0}
    for seed in CASES:
        logprobs, old, advantages, mask = given = batch(seed)
        random = torch.Generator().manual_seed(1000 + seed)
        engine = old - 0.6 * torch.randn(old.shape, generator=random, dtype=torch.float64)
        config = algorithm(engine_correction=EngineCorrection[name])
        weights, stats = engine_weights(old, engine, mask, config)
        expected = torch.ones_like(old)
        for row in range(len(mask)):
            d = (old[row] - engine[row])[mask[row]]
            expected[row, mask[row]] = CORRECTIONS[name](d, bounds.get(name, 1.05))
        found = computed(config, logprobs, old, weighted(advantages, weights, mask, config.ratio_level), mask)
        assert max(differences(found, naive_loss(*given, expected), logprobs)) < EXACT
        dropped = (expected != (old - engine).exp()) & mask if name.startswith("token") else None
        assert dropped is None or stats.dropped == dropped.sum()
        assert stats.counted == (mask.sum() if name.startswith("token") else len(mask))


def updated(load, configure, *overrides):
    config, _ = configure("algorithm.learning_rate=1e-2", *overrides)
    policy = load("qwen3")
    samples = samples_of(policy, advantages=[1.0, -1.0] * 8)
    return update_metrics(Updater(policy, config).run(samples, np.random.default_rng(0), Clock()))


def test_the_share_of_answers_that_are_masked_is_logged(load, configure):
    tight = updated(load, configure, "algorithm=grpo", "algorithm.off_policy_mask=1e-6")
    loose = updated(load, configure, "algorithm=grpo", "algorithm.off_policy_mask=100")
    assert 0 < tight["off_policy/masked"] <= 0.5  # half of the answers are bad
    assert loose["off_policy/masked"] == 0
    plain = updated(load, configure, "algorithm=grpo")
    assert "off_policy/masked" not in plain
    assert {key: value for key, value in loose.items() if key in plain} == plain


def test_a_masked_answer_has_no_gradient_in_an_update(load, configure):
    # the policy is 0.11 to 0.31 per token below the old one: bad answers are left out, good ones are not
    found = {}
    for advantage in (1.0, -1.0):
        for limit in ("0.1", "null"):
            config, _ = configure("algorithm=grpo", f"algorithm.off_policy_mask={limit}")
            policy = load("qwen3")
            updater = Updater(policy, config)
            minibatch = updater.collator.minibatch(samples_of(policy, advantages=[advantage] * 16))
            loss = 0.0
            for micro in minibatch.micro_batches:
                now = updater._logprobs(micro).detach()
                micro.old_logprobs = now + 0.11 + 0.1 * (micro.token_ids % 3)
                loss += updater.loss(micro, minibatch)[0]
            loss.backward()
            found[advantage, limit] = sum(p.grad.abs().sum().item() for p in policy.trainable())
    assert found[-1.0, "0.1"] == 0 < found[-1.0, "null"]
    assert found[1.0, "0.1"] == found[1.0, "null"] > 0


def test_the_card_says_what_is_masked_and_corrected(configure):
    config = configure(
        "algorithm=grpo", "algorithm.beta=0.1", "algorithm.kl_bias_corrected=true",
        "algorithm.off_policy_mask=0.1",
    )[0].algorithm  # fmt: skip
    assert formula(config).endswith(" - 0.1 w_t KL_k3; 0 for A < 0 where mean log(pi_old/pi) > 0.1")


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["algorithm.off_policy_mask=0"], r"algorithm\.off_policy_mask=0\.0: .* above 0 .*; give 0\.1"),
        (["algorithm=dpo", "algorithm.off_policy_mask=0.1"], r"use algorithm\.off_policy_mask=null, or"),
        (["algorithm=dpo", "algorithm.kl_bias_corrected=true"], r"corrects k3 in the loss"),
        (["algorithm.kl_bias_corrected=true"], r"use algorithm\.beta=0\.01 algorithm\.kl_estimator=k3, or"),
        (
            ["algorithm.kl_bias_corrected=true", "algorithm.beta=1", "algorithm.kl_estimator=k2"],
            r"corrects k3 in the loss",
        ),
    ],
)
def test_what_has_no_meaning_together_is_refused_in_one_sentence(configure, overrides, sentence):
    assert_refused(configure, overrides, sentence)
