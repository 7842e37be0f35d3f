"""The bonus for entropy: its gradient against autograd through kept logits, and its adapted weight."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gspo_cli.algorithm.entropy import EntropyBonus
from gspo_cli.config.formulas import formula
from gspo_cli.errors import UserError
from gspo_cli.policy.logprobs import CHUNK_BYTES, LinearLogprobs, linear_logits
from gspo_cli.training.checkpoint import Checkpoints, TrainerState
from gspo_cli.training.metrics import Clock, update_metrics
from gspo_cli.training.update import Updater
from tests.support.batches import conversations, samples_of, weights


@pytest.mark.parametrize("chunk", [2**24, 256])
def test_the_gradient_of_entropy_is_that_of_kept_logits(monkeypatch, chunk):
    monkeypatch.setitem(CHUNK_BYTES, "cpu", chunk)
    random = torch.Generator().manual_seed(0)
    parameters = [
        torch.randn(s, generator=random, dtype=torch.float64, requires_grad=True)
        for s in ((50, 8), (11, 8), (11,))
    ]
    targets = torch.randint(11, (50,), generator=random)
    upstream = torch.randn(2, 50, generator=random, dtype=torch.float64)
    hidden, weight, bias = parameters
    kept = linear_logits(hidden, weight, bias, 0.7).log_softmax(dim=-1)
    logprobs, entropy = kept.gather(dim=-1, index=targets[:, None])[:, 0], -(kept.exp() * kept).sum(dim=-1)
    found = LinearLogprobs.apply(hidden, weight, bias, targets, 0.7, True)
    for mine, theirs in zip(found, (logprobs, entropy), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-13)
    both = ((found, (logprobs, entropy), list(upstream)), (found[1], entropy, upstream[1]))
    for mine, theirs, gradient in both:
        ours = torch.autograd.grad(mine, parameters, gradient, retain_graph=True)
        expected = torch.autograd.grad(theirs, parameters, gradient, retain_graph=True)
        for one, other in zip(ours, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def entropy_of(policy, samples, temperature=1.0):
    """Mean entropy over the trained tokens of samples, by plain torch, one conversation at a time."""
    found = []
    for sample in samples:
        logits = policy.causal_model(torch.tensor([sample.token_ids])).logits[0, :-1].float() / temperature
        log_p = logits.log_softmax(dim=-1)
        found.append(-(log_p.exp() * log_p).sum(dim=-1)[torch.tensor(sample.action_mask[1:])])
    return torch.cat(found).mean()


@pytest.mark.parametrize("budget", [1, 60, 10_000])
def test_the_step_climbs_the_mean_entropy_of_all_trained_tokens(load, configure, budget):
    config, _ = configure(
        "algorithm=grpo", "algorithm.entropy_coefficient=0.3", "rollout.temperature=0.7",
        "training.updates_per_rollout=1", f"hardware.tokens_per_microbatch={budget}",
    )  # fmt: skip
    policy = load("qwen3")
    # answers of equal reward: nothing but the bonus moves the weights
    samples = samples_of(policy, advantages=[0.0] * 16)
    naive = load("qwen3")
    expected = entropy_of(naive, samples, 0.7)
    (-0.3 * expected).backward()
    updater = Updater(policy, config)
    minibatch = updater.collator.minibatch(samples)
    losses = []
    for micro in minibatch.micro_batches:
        losses.append(updater.loss(micro, minibatch)[0])
        losses[-1].backward()
    assert -sum(losses).item() == pytest.approx(0.3 * expected.item(), abs=1e-5)
    for mine, theirs in zip(policy.trainable(), naive.trainable(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=0, atol=1e-6)
    assert max(p.grad.abs().max() for p in naive.trainable()) > 1e-4


@pytest.mark.parametrize("sharing", [False, True])
def test_the_entropy_rises_with_the_bonus_alone(load, configure, sharing):
    config, _ = configure(
        "algorithm=gspo", "algorithm.entropy_coefficient=1", "algorithm.learning_rate=0.01",
        f"hardware.tokens_per_microbatch={4096 if sharing else 1}",
    )  # fmt: skip
    policy = load("qwen3")
    with torch.no_grad():
        before, start = entropy_of(policy, samples_of(policy)).item(), weights(policy).clone()
    report = Updater(policy, config).run(
        samples_of(policy, advantages=[0.0] * 16), np.random.default_rng(0), Clock()
    )
    with torch.no_grad():
        assert entropy_of(policy, samples_of(policy)).item() > before
    assert not torch.equal(weights(policy), start)
    metrics = update_metrics(report)
    assert metrics["entropy_coefficient"] == 1
    assert metrics["entropy"] > 0


def test_a_run_without_a_bonus_logs_none(load, configure):
    config, _ = configure("algorithm=gspo")
    policy = load("qwen3")
    report = Updater(policy, config).run(samples_of(policy), np.random.default_rng(0), Clock())
    assert "entropy_coefficient" not in update_metrics(report)


def test_the_weight_follows_the_floor(configure):
    config, _ = configure(
        "algorithm.entropy_floor=0.2", "algorithm.entropy_step=0.01", "algorithm.entropy_coefficient=0.005"
    )
    algorithm, bonus = config.algorithm, EntropyBonus.of(config.algorithm)
    paid = [bonus.in_force(algorithm)]
    for entropy in (0.5, 0.1, 0.2, 0.15, 0.3, None, 0.19):
        bonus.adapt(algorithm, entropy)
        paid.append(bonus.in_force(algorithm))
    # 0.005 falls to 0, rises to 0.01, stays at the floor, rises to 0.02, falls to 0.01, rises to 0.02
    assert paid == pytest.approx([0, 0, 0.01, 0.01, 0.02, 0, 0, 0.02])
    constant, _ = configure("algorithm.entropy_coefficient=0.5")
    bonus = EntropyBonus.of(constant.algorithm)
    bonus.adapt(constant.algorithm, 0.01)
    assert bonus.in_force(constant.algorithm) == 0.5


def test_the_weight_is_adapted_over_iterations_and_kept_in_checkpoints(load, configure, tmp_path):
    config, _ = configure(
        "algorithm=gspo",
        "algorithm.entropy_floor=20",
        "algorithm.entropy_step=0.25",
        "algorithm.learning_rate=0.01",
    )
    policy = load("qwen3")
    updater, order = Updater(policy, config), np.random.default_rng(0)
    paid = []
    for _ in range(3):
        report = updater.run(conversations(policy.causal_model.config.vocab_size), order, Clock())
        paid.append(update_metrics(report)["entropy_coefficient"])
    assert paid == [0, 0.25, 0.5]
    checkpoints = Checkpoints(tmp_path, config.checkpoint)
    kept = {"coefficient": 0.75, "entropy": updater.bonus.entropy}
    assert vars(updater.bonus) == kept
    checkpoints.save(updater, TrainerState(iteration=3, bonus=dict(kept)))
    updater.run(conversations(policy.causal_model.config.vocab_size), order, Clock())
    assert updater.bonus.coefficient == 1
    checkpoints.roll_back(3, updater)
    assert vars(updater.bonus) == kept
    fresh = Updater(load("qwen3"), config)
    checkpoints.restore(tmp_path / "iteration-000003", fresh)
    assert vars(fresh.bonus) == kept


def test_the_card_says_what_is_paid(configure):
    assert formula(configure("algorithm.entropy_coefficient=0.01")[0].algorithm).endswith(" + 0.01 H")
    adapted = formula(configure("algorithm.entropy_floor=0.2")[0].algorithm)
    assert adapted.endswith(" + c H while H < 0.2, c from 0 in steps of 0.005")


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["algorithm.entropy_coefficient=-1"], r"algorithm\.entropy_coefficient=-1"),
        (["algorithm.entropy_coefficient=1e30"], r"algorithm\.entropy_coefficient=1e\+30"),
        (["algorithm.entropy_floor=0"], r"algorithm\.entropy_floor=0\.0: .* give 0\.2, or null"),
        (["algorithm.entropy_floor=1e30"], r"algorithm\.entropy_floor=1e\+30: .* at most 20"),
        (["algorithm.entropy_step=0.1"], r"algorithm\.entropy_step=0\.1: only applies with a floor"),
        (["algorithm=dpo", "algorithm.entropy_coefficient=0.1"], r"algorithm\.entropy_coefficient: a pair"),
        (["algorithm=dpo", "algorithm.entropy_floor=0.1"], r"algorithm\.entropy_floor: a pair"),
    ],
)
def test_bad_values_are_one_sentence(configure, overrides, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        configure(*overrides)
    assert "\n" not in str(error.value)
