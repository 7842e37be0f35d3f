"""An optimizer step does not depend on how its batch is laid out."""

from __future__ import annotations

import itertools
from dataclasses import replace
from math import cos, pi

import numpy as np
import pytest
import torch

from gspo_cli.config.choices import Precision
from gspo_cli.errors import UserError
from gspo_cli.training.batch import MiniBatch, collate, split_by_tokens
from gspo_cli.training.metrics import Clock, update_metrics
from gspo_cli.training.update import Updater
from tests.support.batches import Small, adamw, gradients_of, samples_of, weights

OBJECTIVES = (
    "gspo", "gspo_token", "grpo", "dr_grpo", "dapo", "cispo", "rloo", "rloo_token", "sapo", "gmpo", "luspo",
)  # fmt: skip


def gradient(policy, config, samples, shift=0.02):
    """Loss and flat gradient of one step over `samples`; old log-probabilities are the policy's, shifted by
    row."""
    updater = Updater(policy, config)
    minibatch = updater.collator.minibatch(samples)
    total = 0.0
    with policy.updating():
        for micro in minibatch.micro_batches:
            with torch.no_grad():
                now = policy(micro.token_ids, micro.action_mask, 1.0)[0]
            sign = micro.token_ids % 3 - 1
            micro.old_logprobs = now + shift * sign
            loss = updater.loss(micro, minibatch)[0]
            loss.backward()
            total += loss.item()
    grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in policy.trainable()]
    flat = torch.cat([g.flatten() for g in grads]).clone()
    policy.zero_grad(set_to_none=True)
    return total, flat


@pytest.mark.parametrize(
    ("algorithm", "name"),
    [(each, "qwen3") for each in OBJECTIVES] + [("gspo", "qwen3_moe"), ("grpo", "qwen3_moe")],
)
def test_loss_and_gradient_do_not_depend_on_the_layout(load, configure, algorithm, name):
    config, _ = configure(f"algorithm={algorithm}", "algorithm.beta=0.1")
    policy = load(name)
    policy.keep_reference(load(name).causal_model)
    samples = samples_of(policy)
    loss, grad = gradient(policy, config, samples)
    assert grad.abs().max() > 1e-4
    for budget, order in ((1, samples), (60, samples[::-1]), (10_000, samples[::-1])):
        hardware = replace(config.hardware, tokens_per_microbatch=budget)
        other_loss, other = gradient(policy, replace(config, hardware=hardware), order)
        assert other_loss == pytest.approx(loss, abs=1e-5)
        torch.testing.assert_close(other, grad, rtol=0, atol=1e-5)


def test_the_gradient_of_a_step_is_the_mean_of_the_gradients_of_its_halves(load, configure):
    # 16 sequences against 8 and 8: the denominator counts sequences of the whole step, not of a micro-batch
    config, _ = configure("algorithm=gspo")
    policy = load("qwen3")
    samples = samples_of(policy)
    _, whole = gradient(policy, config, samples)
    halves = [gradient(policy, config, part)[1] for part in (samples[:8], samples[8:])]
    torch.testing.assert_close((halves[0] + halves[1]) / 2, whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "settings", [{}, {"use_lora": True}, {"use_lora": True, "gradient_checkpointing": True}]
)
@pytest.mark.parametrize("precision", list(Precision))
@pytest.mark.parametrize("name", ["qwen3", "qwen3_moe", "gpt2"])
def test_the_ratio_of_the_first_minibatch_is_exactly_one(load, configure, name, precision, settings):
    config, _ = configure("algorithm=gspo", "training.updates_per_rollout=1")
    policy = load(name, replace(config.hardware, precision=precision), **settings)
    report = Updater(policy, config).run(samples_of(policy), np.random.default_rng(0), Clock())
    assert (report.sums.stats.deviation_min, report.sums.stats.deviation_max) == (0.0, 0.0)
    assert report.sums.stats.clipped_sequences == 0
    # measured against a second pass in the same layout, and still exactly nothing
    assert report.sums.first_step_abs_err == 0.0


def test_later_minibatches_are_compared_with_the_policy_before_the_first_step(load, configure):
    config, _ = configure("algorithm=gspo", "algorithm.learning_rate=0.01")
    policy = load("qwen3")
    report = Updater(policy, config).run(samples_of(policy), np.random.default_rng(0), Clock())
    assert report.updates == 4
    assert report.sums.stats.deviation_max > 1e-3
    assert report.sums.stats.clipped_sequences > 0


def test_groups_without_advantage_cost_nothing_and_change_nothing(load, configure):
    config, _ = configure("algorithm=grpo", "training.updates_per_rollout=1", "algorithm.learning_rate=0.01")
    advantages = [0.0, 1.0, 0.0, -1.0] * 4
    skipping, computing = load("qwen3"), load("qwen3")
    samples = samples_of(skipping, advantages=advantages)
    report = Updater(skipping, config).run(samples, np.random.default_rng(0), Clock())
    assert report.sums.stats.sequences == 8  # went through the model
    assert report.sequences == 16  # are counted
    # the same step, with every sequence computed
    updater = Updater(computing, config)
    batch = collate(samples, computing.chat.pad_id, computing.device)
    updater.loss(batch, MiniBatch([batch], 16.0, 0, 16, 16, 0.0, 0, 0))[0].backward()
    updater.strategy.step(0.01)
    torch.testing.assert_close(weights(skipping), weights(computing), rtol=0, atol=1e-6)


def test_answers_without_advantage_are_held_near_the_reference(load, configure):
    config, _ = configure("algorithm=gspo", "algorithm.beta=0.5", "training.updates_per_rollout=1")
    policy = load("qwen3")
    policy.keep_reference(load("qwen3").causal_model)
    with torch.no_grad():
        policy.trainable()[0].add_(0.02)
    samples, expected = samples_of(policy, advantages=[0.0] * 16), []
    for sample in samples:
        ids, mask = torch.tensor([sample.token_ids]), torch.tensor([sample.action_mask])
        d = (policy(ids, mask, 1.0)[0] - policy(ids, mask, 1.0, reference=True)[0])[mask]
        expected.append(0.5 * ((-d).exp() - 1 + d).mean().item())
    report = Updater(policy, config).run(samples, np.random.default_rng(0), Clock())
    assert report.sums.stats.loss == pytest.approx(sum(expected) / 16, rel=1e-3)
    assert report.grad_norms[0] > 1e-4


def test_a_batch_without_any_advantage_leaves_fresh_weights_alone(load, configure):
    config, _ = configure("algorithm=gspo")
    policy = load("qwen3")
    before = weights(policy).clone()
    report = Updater(policy, config).run(
        samples_of(policy, advantages=[0.0] * 16), np.random.default_rng(0), Clock()
    )
    assert torch.equal(weights(policy), before)
    assert (report.updates, report.sums.stats.sequences) == (4, 0)


def test_a_gradient_that_is_not_finite_never_reaches_the_weights(load, configure):
    config, _ = configure("algorithm=gspo", "training.updates_per_rollout=1")
    policy = load("qwen3")
    before = weights(policy).clone()
    samples = samples_of(policy)
    samples[3].advantages = [float("inf")]
    report = Updater(policy, config).run(samples, np.random.default_rng(0), Clock())
    assert report.skipped == 1
    assert torch.equal(weights(policy), before)


def test_the_weights_after_a_run_are_those_of_plain_adamw(load, configure):
    # every setting at once: warm-up, schedule, what rollbacks left of the rate, betas, decay, and a clip that
    # acts; in the second iteration nothing has a gradient, and momentum and decay go on
    training = {
        "num_outer_iterations": 3, "updates_per_rollout": 2, "schedule": "cosine", "warmup_iterations": 1,
        "weight_decay": 0.1, "adam_beta1": 0.8, "adam_beta2": 0.95, "max_grad_norm": 0.05,
    }  # fmt: skip
    config, _ = configure(
        "algorithm=grpo", "algorithm.learning_rate=0.01", *(f"training.{k}={v}" for k, v in training.items())
    )
    policy = load("qwen3")
    start, updater = weights(policy), Updater(policy, config)
    updater.rate_factor = 0.5
    grads, norms, used = gradients_of(updater.strategy, policy.trainable()), [], []
    for seed, advantages in enumerate((None, [0.0] * 16, None)):
        samples = samples_of(policy, seed=seed, advantages=advantages)
        report = updater.run(samples, np.random.default_rng(seed), Clock())
        norms += report.grad_norms
        used.append(report.learning_rate)
    rates = [0.5 * 0.01 * x for x in (0.5, 1, *((1 + cos(pi * k / 4)) / 2 for k in range(4)))]
    assert used == pytest.approx(rates[1::2], rel=1e-12)
    assert norms == pytest.approx([grad.norm().item() for grad in grads], rel=1e-5)
    assert [norm > 0.06 for norm in norms] == [True, True, False, False, True, True]
    expected = adamw(start, grads, rates, config.training, weight_decay=0.1)
    torch.testing.assert_close(weights(policy), expected, rtol=0, atol=1e-6)
    assert (expected - start).abs().max() > 0.01


def scores_at(temperature, policy, sample):
    """Log-probabilities of the trained tokens of a sample, and the entropies there, in plain torch."""
    ids, trained = torch.tensor([sample.token_ids]), torch.tensor(sample.action_mask[1:])
    logits = policy.causal_model(ids).logits[0, :-1].float() / temperature
    every = logits.log_softmax(dim=-1)[trained]
    chosen = every.gather(dim=1, index=ids[0, 1:][trained][:, None])[:, 0]
    return chosen, -(every.exp() * every).sum(dim=1)


def test_an_update_at_another_temperature_is_that_of_plain_torch(load, configure):
    # two passes of two minibatches, with k3 in the loss: scores of the policy, the old one and the reference
    config, _ = configure(
        "algorithm=gspo", "algorithm.beta=0.5", "algorithm.learning_rate=0.01", "rollout.temperature=0.6",
        "training.updates_per_rollout=2", "training.passes=2", "training.max_grad_norm=1e6",
    )  # fmt: skip
    policy, plain, reference = (load("qwen3") for _ in range(3))
    for each in (policy, plain):  # away from the reference
        random = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in each.trainable():
                parameter += 0.02 * torch.randn(parameter.shape, generator=random)
    policy.keep_reference(reference.causal_model)
    samples, updater = samples_of(policy), Updater(policy, config)
    places = {id(sample.trajectory): place for place, sample in enumerate(samples)}
    minibatches = updater.collator.minibatches(samples, np.random.default_rng(0))
    parts = [
        [places[id(sample.trajectory)] for micro in minibatch.micro_batches for sample in micro.samples]
        for minibatch in minibatches
    ]
    with torch.no_grad():
        old, entropies = zip(*(scores_at(0.6, plain, sample) for sample in samples), strict=True)
        ref = [scores_at(0.6, reference, sample)[0] for sample in samples]
    for sample, values in zip(samples, old, strict=True):  # the engine samples at this temperature, too
        sampled = iter(values.tolist())
        sample.trajectory.sampling_logprobs = [next(sampled) if m else 9.0 for m in sample.action_mask]
    optimizer = torch.optim.AdamW(plain.trainable(), 0.01, weight_decay=0.0)
    expected, penalties = gradients_of(optimizer, plain.trainable()), []
    for part in parts * 2:
        terms = []
        for place in part:
            now, a = scores_at(0.6, plain, samples[place])[0], samples[place].advantages[0]
            s, d = (now - old[place]).mean().exp(), now - ref[place]
            penalty = (-d).exp() - 1 + d
            terms.append(torch.min(s * a, s.clamp(1 - 3e-4, 1 + 4e-4) * a) - 0.5 * penalty.mean())
            penalties += penalty.tolist()
        optimizer.zero_grad()
        (-torch.stack(terms).mean()).backward()
        optimizer.step()
    found = gradients_of(updater.strategy, policy.trainable())
    metrics = update_metrics(updater.run(samples, np.random.default_rng(0), Clock()))
    assert min(grad.norm() for grad in expected) > 0.05
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)
    assert metrics["kl"] == pytest.approx(sum(penalties) / len(penalties), rel=1e-4)
    first = torch.cat([entropies[place] for place in parts[0]])
    assert metrics["entropy"] == pytest.approx(first.mean().item(), abs=1e-6)
    assert metrics["sampling/logp_difference/max"] < 1e-5


def test_micro_batches_hold_similar_lengths_within_the_budget(load):
    samples = samples_of(load("qwen3"), count=40)
    parts = split_by_tokens(samples, 60)
    assert sorted(id(s) for part in parts for s in part) == sorted(map(id, samples))
    assert all(len(part) == 1 or max(s.length for s in part) * len(part) <= 60 for part in parts)
    padded = sum(max(s.length for s in part) * len(part) for part in parts)
    assert padded < 1.15 * sum(s.length for s in samples)


def test_k1_takes_the_mean_log_ratio_to_the_reference_off_the_reward(load, configure):
    config, _ = configure(
        "algorithm=gspo", "algorithm.beta=0.5", "algorithm.kl_estimator=k1", "rollout.temperature=0.6"
    )
    policy = load("qwen3")
    policy.keep_reference(load("qwen3").causal_model)
    samples = samples_of(policy, count=4)
    updater = Updater(policy, config)
    assert updater.reward_kl(samples) == [0.0] * 4
    with torch.no_grad():
        for parameter in policy.trainable():
            parameter.add_(0.02)
    expected = []
    for sample in samples:  # which lie in one micro-batch, in another order
        ids, mask = torch.tensor([sample.token_ids]), torch.tensor([sample.action_mask])
        difference = policy(ids, mask, 0.6)[0] - policy(ids, mask, 0.6, reference=True)[0]
        expected.append(difference[mask].mean().item())
    assert updater.reward_kl(samples) == pytest.approx(expected, abs=1e-5)
    assert min(abs(a - b) for a, b in itertools.pairwise(sorted(expected))) > 1e-3


def test_advantages_per_token_travel_with_their_tokens(load):
    policy = load("qwen3")
    samples = samples_of(policy, count=3)
    samples[1].advantages = [float(i) for i in range(samples[1].length)]
    batch = collate(samples, policy.chat.pad_id, policy.device)
    assert batch.advantages.shape == batch.token_ids.shape
    assert batch.advantages[1, : samples[1].length].tolist() == samples[1].advantages
    assert (batch.advantages[0][batch.action_mask[0]] == samples[0].advantages[0]).all()


def test_a_group_split_over_minibatches_keeps_the_advantages_it_was_given(load, configure):
    config, _ = configure("algorithm=gspo")
    policy = load("qwen3")
    samples = samples_of(policy)
    minibatches = Updater(policy, config).collator.minibatches(samples, np.random.default_rng(1))
    assert [m.sequences for m in minibatches] == [4, 4, 4, 4]
    found = {
        tuple(ids[: int(length)].tolist()): advantage.item()
        for minibatch in minibatches
        for micro in minibatch.micro_batches
        for ids, length, advantage in zip(
            micro.token_ids,
            micro.action_mask.long().cumsum(dim=1).argmax(dim=1) + 1,
            micro.advantages[:, 0],
            strict=True,
        )
    }
    assert found == {tuple(s.trajectory.token_ids): pytest.approx(s.advantages[0]) for s in samples}


def test_clip_shares_are_of_all_trained_tokens(load, configure):
    # half of the answers have no advantage: they count below the line and never above it
    config, _ = configure("algorithm=gspo", "algorithm.learning_rate=0.01")
    policy = load("qwen3")
    report = Updater(policy, config).run(
        samples_of(policy, advantages=[0.0, 1.0] * 8), np.random.default_rng(0), Clock()
    )
    metrics = update_metrics(report)
    assert 0 < metrics["clip_ratio/sequence"] <= 0.5
    assert metrics["clip_ratio/sequence"] == report.sums.stats.clipped_sequences / 16


def test_an_update_for_which_memory_runs_out_is_made_again_with_half_the_budget(load, configure):
    config, _ = configure(
        "algorithm=gspo", "algorithm.learning_rate=0.01", "hardware.tokens_per_microbatch=80"
    )
    wide, narrow = load("qwen3"), load("qwen3")
    small = Small(narrow, tokens=38)  # the second micro-batch of a step does not fit
    updater = Updater(narrow, config)
    expected = Updater(wide, config).run(samples_of(wide), np.random.default_rng(0), Clock())
    report = updater.run(samples_of(narrow), np.random.default_rng(0), Clock())
    assert small.refused == report.oom_events >= 1
    assert report.tokens_per_microbatch == updater.collator.budget <= 40
    assert update_metrics(report)["oom_events"] == report.oom_events
    torch.testing.assert_close(weights(narrow), weights(wide), rtol=0, atol=1e-6)
    # nothing is counted twice
    assert report.sums.entropy_tokens == expected.sums.entropy_tokens
    assert report.sums.logp_difference_tokens == expected.sums.logp_difference_tokens
    assert report.sums.stats.sequences == expected.sums.stats.sequences
    assert update_metrics(report)["ratio/max"] == pytest.approx(
        update_metrics(expected)["ratio/max"], abs=1e-6
    )


def test_a_single_answer_that_does_not_fit_ends_the_run_with_a_sentence(load, configure):
    config, _ = configure("algorithm=gspo")
    policy = load("qwen3")
    Small(policy, tokens=3)
    with pytest.raises(UserError, match=r"tokens_per_microbatch=.*memory ran out in an update"):
        Updater(policy, config).run(samples_of(policy), np.random.default_rng(0), Clock())


@pytest.mark.parametrize("algorithm", ["ppo", "reinforce_pp"])
def test_scoring_for_which_memory_runs_out_is_repeated_with_half_the_budget(load, configure, algorithm):
    config, _ = configure(f"algorithm={algorithm}", "hardware.tokens_per_microbatch=80")
    wide, narrow = (Updater(load("qwen3"), config) for _ in range(2))

    def scored(updater):
        if updater.critic is None:
            return [[kl] for kl in updater.reward_kl(samples)]
        return updater.values(samples)

    for updater in (wide, narrow):
        reference = load("qwen3").causal_model
        for parameter in reference.parameters():
            parameter.data *= 1.1
        updater.policy.keep_reference(reference)
        if updater.critic is not None:
            torch.nn.init.constant_(updater.critic.head.weight, 0.1)
    samples = samples_of(narrow.policy)
    expected, small = scored(wide), Small(narrow.policy, tokens=45, scoring=True)
    found = scored(narrow)
    assert small.refused >= 1
    assert narrow.collator.budget <= 40 < wide.collator.budget
    for mine, theirs in zip(found, expected, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-6)
    assert any(map(any, found))
    # counted in the metrics of the iteration
    valued = [
        replace(s, advantages=[1.0] * s.length, values=[0.0] * s.length, returns=[1.0] * s.length)
        for s in samples
    ]
    times = small.refused
    report = narrow.run(valued if narrow.critic else samples, np.random.default_rng(0), Clock())
    assert report.oom_events == times
    small.tokens = 3
    with pytest.raises(
        UserError, match=r"tokens_per_microbatch=\d+: memory ran out while answers were scored"
    ):
        scored(narrow)
