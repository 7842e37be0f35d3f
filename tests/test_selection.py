"""The policy gradient on the tokens of highest entropy alone, against naive code over a whole update."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from gspo_cli.config.formulas import formula
from gspo_cli.training.batch import collate
from gspo_cli.training.metrics import Clock, update_metrics
from gspo_cli.training.process_group import ProcessGroup
from gspo_cli.training.selection import select_high_entropy
from gspo_cli.training.update import Updater
from tests.support.batches import conversations, samples_of, weights
from tests.support.configs import assert_refused


def selected_gradient(load, configure, share, budget=10_000, samples=samples_of):
    """Loss and gradient of an update whose tokens are selected, and the number of selected tokens."""
    config, _ = configure("algorithm=grpo", f"algorithm.high_entropy_tokens={share}")
    policy = load("qwen3")
    hardware = replace(config.hardware, tokens_per_microbatch=budget)
    updater = Updater(policy, replace(config, hardware=hardware))
    minibatch = updater.collator.minibatch(samples(policy))
    select_high_entropy(minibatch, updater._entropy, updater.strategy.ranks, share)
    total, count = 0.0, 0
    for micro in minibatch.micro_batches:
        micro.old_logprobs = updater._logprobs(micro).detach() + 0.02 * (micro.token_ids % 3 - 1)
        loss = updater.loss(micro, minibatch)[0]
        loss.backward()
        total, count = total + loss.item(), count + int(micro.selected.sum())
    return total, torch.cat([p.grad.flatten() for p in policy.trainable()]), count


@pytest.mark.parametrize("share", [0.2, 0.5, 1.0])
def test_the_gradient_is_that_of_naive_code_over_all_answers(load, configure, share):
    policy = load("qwen3")
    samples = samples_of(policy)
    batch = collate(samples, policy.chat.pad_id, policy.device)
    mask = batch.action_mask
    logprobs, entropy = policy(batch.token_ids, mask, 1.0, with_entropy=True)
    old = logprobs.detach() + 0.02 * (batch.token_ids % 3 - 1)
    ratio = (logprobs - old).exp()
    a = batch.advantages
    term = torch.minimum(ratio * a, ratio.clamp(0.8, 1.27) * a)
    chosen = (entropy >= torch.quantile(entropy[mask], 1 - share)) & mask
    loss = -((term * chosen).sum(dim=1) / mask.sum(dim=1)).mean()
    loss.backward()
    expected = torch.cat([p.grad.flatten() for p in policy.trainable()])
    found, gradient, count = selected_gradient(load, configure, share)
    assert count == chosen.sum() == pytest.approx(share * mask.sum().item(), abs=1)
    assert found == pytest.approx(loss.item(), abs=1e-6)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-6)
    assert expected.abs().max() > 1e-4


@pytest.mark.parametrize("budget", [1, 60])
def test_the_choice_does_not_depend_on_the_layout(load, configure, budget):
    def several(policy):
        return conversations(policy.causal_model.config.vocab_size)

    for samples in (samples_of, several):
        loss, gradient, count = selected_gradient(load, configure, 0.3, samples=samples)
        other_loss, other, other_count = selected_gradient(load, configure, 0.3, budget, samples)
        assert other_count == count
        assert other_loss == pytest.approx(loss, abs=1e-6)
        torch.testing.assert_close(other, gradient, rtol=0, atol=1e-6)


class OtherRank(ProcessGroup):
    """A group in which another rank has tokens of higher entropy than any of this one."""

    def gather(self, mine):
        return [*mine, *[100.0] * len(mine)]


def test_the_quantile_is_over_all_ranks(load, configure):
    config, _ = configure("algorithm=grpo")
    policy = load("qwen3")
    updater = Updater(policy, config)
    minibatch = updater.collator.minibatch(samples_of(policy))
    select_high_entropy(minibatch, updater._entropy, OtherRank(), 0.5)
    assert sum(int(micro.selected.sum()) for micro in minibatch.micro_batches) <= 1


def recorded(collator):
    """The minibatches that `collator` will make."""
    found, make = [], collator.minibatches
    collator.minibatches = lambda *given: found.extend(make(*given)) or found
    return found


def test_a_run_selects_in_every_minibatch_and_by_the_old_policy(load, configure):
    found = {}
    for share in (1.0, 0.2):
        config, _ = configure(
            "algorithm=grpo", f"algorithm.high_entropy_tokens={share}", "algorithm.learning_rate=1e-2"
        )
        policy = load("qwen3")
        updater = Updater(policy, config)
        minibatches = recorded(updater.collator)
        report = updater.run(samples_of(policy), np.random.default_rng(0), Clock())
        found[share] = update_metrics(report), weights(policy)
        assert len(minibatches) == 4
        for micro in (micro for minibatch in minibatches for micro in minibatch.micro_batches):
            assert (micro.selected is None) == (share == 1)
    assert not torch.equal(found[0.2][1], found[1.0][1])
    assert 0 < found[0.2][0]["grad_norm"] < found[1.0][0]["grad_norm"]
    # the old policy is the same: with all tokens the first minibatch has the same entropy
    assert found[0.2][0]["entropy"] == found[1.0][0]["entropy"]


def test_the_card_says_which_tokens(configure):
    config = configure("algorithm=grpo", "algorithm.high_entropy_tokens=0.2")[0].algorithm
    assert formula(config).endswith("; of the 0.2 of tokens with the highest entropy")


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["algorithm=grpo", "algorithm.high_entropy_tokens=0"], r"above 0 and at most 1; give 0\.2, or 1"),
        (
            ["algorithm=gspo", "algorithm.high_entropy_tokens=0.2"],
            r"use algorithm=grpo or algorithm=gspo",
        ),
        (
            ["algorithm=gmpo", "algorithm.high_entropy_tokens=0.2"],
            r"use algorithm=grpo or algorithm=gspo",
        ),
        (["algorithm=dpo", "algorithm.high_entropy_tokens=0.2"], r"use algorithm\.high_entropy_tokens=1"),
    ],
)
def test_what_has_no_meaning_together_is_refused_in_one_sentence(configure, overrides, sentence):
    assert_refused(configure, overrides, sentence)
