"""Several passes over the answers of an iteration, and the KL divergence that ends them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gspo_cli.training.metrics import Clock, update_metrics
from gspo_cli.training.update import Updater, learning_rate
from tests.support.batches import Small, samples_of, weights
from tests.support.configs import assert_refused

FAST = ("algorithm.learning_rate=0.01",)


def updated(load, configure, *overrides, name="qwen3", prepare=lambda policy: policy, samples=samples_of):
    config, _ = configure(*FAST, *overrides)
    policy = load(name)
    prepare(policy)
    updater = Updater(policy, config)
    report = updater.run(samples(policy), np.random.default_rng(0), Clock())
    return policy, updater, report


def test_the_second_pass_compares_with_the_policy_that_sampled(load, configure):
    one_step = ("training.updates_per_rollout=1", "algorithm.clip_range_left=0.9")
    policy, _, report = updated(load, configure, *one_step, "training.passes=2")
    assert report.updates == 2
    assert report.sums.stats.deviation_max > 1e-3
    assert weights(policy) == pytest.approx(naive(load("qwen3"), steps=2), abs=1e-5)  # a step is 0.01


def naive(policy, steps):
    """The weights after steps of AdamW on GSPO's objective over all samples, in plain torch."""
    samples = samples_of(policy)
    optimizer = torch.optim.AdamW(policy.trainable(), lr=0.01, weight_decay=0.0)

    def means():
        for sample in samples:
            ids = torch.tensor([sample.token_ids])
            logits = policy.causal_model(ids).logits[0, :-1].float()
            chosen = logits.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
            yield chosen[torch.tensor(sample.action_mask[1:])].mean()

    with torch.no_grad():
        old = list(means())
    for _ in range(steps):
        optimizer.zero_grad()
        terms = []
        for now, before, sample in zip(means(), old, samples, strict=True):
            ratio, advantage = (now - before).exp(), sample.advantages[0]
            terms.append(torch.min(ratio * advantage, ratio.clamp(0.1, 1 + 4e-4) * advantage))
        (-torch.stack(terms).mean()).backward()
        torch.nn.utils.clip_grad_norm_(policy.trainable(), 1.0)
        optimizer.step()
    return weights(policy).tolist()


def test_a_pass_is_the_same_minibatches_in_the_same_order(load, configure):
    once, _, report = updated(load, configure, "training.passes=1")
    twice, _, more = updated(load, configure, "training.passes=2")
    assert (report.updates, more.updates) == (4, 8)
    assert more.grad_norms[:4] == report.grad_norms
    assert (more.tokens, more.sequences) == (2 * report.tokens, 2 * report.sequences)
    assert not torch.equal(weights(once), weights(twice))


def test_memory_that_runs_out_in_the_first_pass_leaves_the_next_as_it_was(load, configure):
    settings = ("training.passes=2", "hardware.tokens_per_microbatch=80")
    wide, _, expected = updated(load, configure, *settings)
    narrow, _, report = updated(load, configure, *settings, prepare=lambda policy: Small(policy, tokens=45))
    assert report.oom_events >= 1
    torch.testing.assert_close(weights(narrow), weights(wide), rtol=0, atol=1e-6)
    assert report.sums.entropy_tokens == expected.sums.entropy_tokens


def test_experts_of_the_first_minibatch_are_replayed_in_the_second_pass(load, configure):
    settings = ("algorithm=grpo", "model=tiny_moe", "training.updates_per_rollout=1", "training.passes=2")
    _, _, report = updated(load, configure, *settings, name="qwen3_moe")
    assert report.sums.routing.pairs > 0
    assert report.sums.routing.changed_pairs > 0
    free, _, _ = updated(load, configure, *settings, name="qwen3_moe")
    replayed, _, _ = updated(load, configure, *settings, "algorithm.routing_replay=true", name="qwen3_moe")
    assert not torch.equal(weights(free), weights(replayed))


def test_the_distance_from_the_old_policy_is_k3_of_its_tokens(load, configure):
    config, _ = configure(*FAST)
    policy = load("qwen3")
    updater = Updater(policy, config)
    minibatch = updater.collator.minibatch(samples_of(policy))
    found, total, tokens = 0.0, 0.0, 0
    for micro in minibatch.micro_batches:
        with torch.no_grad():
            now = policy(micro.token_ids, micro.action_mask, 1.0)[0]
            micro.old_logprobs = now + 0.1 * (micro.token_ids % 3 - 1)
            found += updater.loss(micro, minibatch)[1].stats.moved_sum
        ratio = (now - micro.old_logprobs)[micro.action_mask].double()
        total += (ratio.exp() - 1 - ratio).sum().item()
        tokens += int(micro.action_mask.sum())
    assert tokens == minibatch.tokens
    assert found == pytest.approx(total, rel=1e-6)


def test_a_distance_beyond_the_target_ends_the_updates_of_an_iteration(load, configure):
    _, _, free = updated(load, configure, "training.passes=3")
    _, updater, report = updated(load, configure, "training.passes=3", "training.target_kl=1e-6")
    assert (free.updates, report.updates) == (12, 2)  # at the first one the policy is the old one
    assert update_metrics(report)["approx_kl_last"] > 1e-6
    assert update_metrics(report)["approx_kl"] == pytest.approx(
        update_metrics(report)["approx_kl_last"] / 2, rel=0.2
    )
    assert updater.steps == 12  # of the schedule
    _, _, all_of_them = updated(load, configure, "training.passes=3", "training.target_kl=1e3")
    assert all_of_them.grad_norms == free.grad_norms


def test_schedule_and_warm_up_count_the_steps_of_all_passes(configure):
    config, _ = configure(
        "algorithm.learning_rate=1",
        *(f"training.{text}" for text in ("num_outer_iterations=3", "passes=2", "updates_per_rollout=2")),
        *("training.schedule=linear", "training.warmup_iterations=1"),
    )
    rates = [learning_rate(config, step, 12) for step in range(12)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1, *(1 - step / 8 for step in range(8))])


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("training.passes=0", "training.passes=0: must be above 0"),
        (
            "training.target_kl=0.1 training.updates_per_rollout=1",
            "ends the updates of an iteration early, and there is one; use training.target_kl=null, or more",
        ),
        ("training.target_kl=0", "training.target_kl=0.0: is a KL divergence in nats and must be above 0"),
    ],
)
def test_bad_values_are_one_sentence(configure, override, sentence):
    assert_refused(configure, [*FAST, *override.split()], sentence)
