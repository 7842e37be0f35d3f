"""Actor-critic: values, generalized advantage estimates, the value loss, and whole runs of ppo and a2c."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from statistics import fmean, stdev

import numpy as np
import pytest
import torch

from gspo_cli.algorithm.actor_critic import explained_variance, gae, value_loss, whitened
from gspo_cli.training.batch import Sample
from gspo_cli.training.checkpoint import Checkpoints, TrainerState
from gspo_cli.training.critic import value_metrics, with_value_advantages
from gspo_cli.training.metrics import Clock, update_metrics
from gspo_cli.training.sharing import Sharing
from gspo_cli.training.update import Updater
from gspo_cli.types import FinishReason, Problem, Trajectory
from tests.support.batches import Small, adamw, conversations, gradients_of, weights


@pytest.mark.parametrize("seed", range(20))
def test_the_estimate_is_the_discounted_sum_of_temporal_differences(seed):
    draw = random.Random(seed)
    steps, discount, lam = draw.randint(1, 9), draw.uniform(0.5, 1), draw.uniform(0, 1)
    rewards, values = ([draw.gauss(0, 1) for _ in range(steps)] for _ in range(2))
    after = [*values[1:], 0.0]
    deltas = [r + discount * v2 - v for r, v, v2 in zip(rewards, values, after, strict=True)]
    expected = [
        sum((discount * lam) ** (later - k) * deltas[later] for later in range(k, steps))
        for k in range(steps)
    ]
    assert gae(rewards, values, discount, lam) == pytest.approx(expected, abs=1e-12)


def test_the_extremes_of_lambda_are_the_return_and_the_next_value():
    rewards, values = [1.0, 2.0, 4.0], [0.5, 1.0, 3.0]
    assert gae(rewards, values, 1.0, 1.0) == [7 - 0.5, 6 - 1.0, 4 - 3.0]
    assert gae(rewards, values, 0.5, 0.0) == [1 + 0.5 - 0.5, 2 + 1.5 - 1.0, 4 - 3.0]


@pytest.mark.parametrize("clip", [None, 0.1])
def test_the_value_loss_and_its_gradient_are_those_of_single_tokens(clip):
    generator = torch.Generator().manual_seed(0)
    values, old, returns = (torch.randn(6, 5, generator=generator, dtype=torch.float64) for _ in range(3))
    mask = torch.rand(6, 5, generator=generator) < 0.7
    values.requires_grad_()
    found, stats = value_loss(values, old, returns, mask, clip)
    [gradient] = torch.autograd.grad(found.sum(), values)
    clipped = 0
    for row, place in np.ndindex(6, 5):
        v, o, r = (t[row, place].item() for t in (values, old, returns))
        loss, slope = (v - r) ** 2 / 2, v - r
        if clip is not None:
            limited = o + min(clip, max(-clip, v - o))
            if (limited - r) ** 2 / 2 > loss:
                loss, slope, clipped = (limited - r) ** 2 / 2, 0.0, clipped + bool(mask[row, place])
        assert found[row, place].item() == pytest.approx(loss * bool(mask[row, place]), abs=1e-14)
        assert gradient[row, place].item() == pytest.approx(slope * bool(mask[row, place]), abs=1e-14)
    assert (stats.tokens, stats.clipped) == (mask.sum(), clipped)
    assert clip is None or clipped > 3
    assert stats.squares == pytest.approx((values - returns).detach()[mask].square().sum().item())


def test_what_is_not_trained_may_hold_anything():
    values = torch.tensor([[1.0, torch.nan]], requires_grad=True)
    mask = torch.tensor([[True, False]])
    found, _ = value_loss(values, values.detach(), torch.tensor([[2.0, torch.inf]]), mask, 0.2)
    [gradient] = torch.autograd.grad(found.sum(), values)
    assert (found.sum().item(), gradient.tolist()) == (0.5, [[-1.0, 0.0]])


def test_whitening_gives_mean_0_and_deviation_1():
    draw = random.Random(0)
    values = [draw.gauss(3, 2) for _ in range(50)]
    found = whitened(values, 0.0)
    assert (fmean(found), stdev(found)) == pytest.approx((0, 1), abs=1e-12)
    assert whitened(values, 100.0) == pytest.approx([(v - fmean(values)) / 100 for v in values])
    assert whitened([0.1 + 0.2, 0.3, 0.3], 0.0) == [0, 0, 0]
    assert whitened([2.0], 0.0) == [0.0]


def test_explained_variance():
    returns = [1.0, 2.0, 3.0]
    assert explained_variance(returns, returns) == 1
    assert explained_variance([2.0, 2.0, 2.0], returns) == 0
    assert explained_variance([3.0, 2.0, 1.0], returns) == pytest.approx(-3)
    assert explained_variance(returns, [2.0, 2.0, 2.0]) is None


# two turns of two tokens each, an observation between them; the second turn's reward is 0.25 more than told
TURNS = [-1, 0, 0, -1, 1, 1]
VALUES = [9.0, 0.1, 0.2, 9.0, 0.3, 0.4]
TRAJECTORY = Trajectory(
    Problem("p", ()), [1, 2, 3, 4, 5, 6], [t >= 0 for t in TURNS], [0.0] * 6, TURNS, [],
    FinishReason.stop, turn_rewards=[1.0, 0.5], reward=1.75,
)  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "rewards", "places"),
    [
        ("gae_steps=token", [0, 0, 0, 1.75], [1, 2, 4, 5]),
        ("gae_steps=token credit=turn", [0, 1, 0, 0.75], [1, 2, 4, 5]),
        ("gae_steps=turn", [0, 1.75], [1, 4]),
        ("gae_steps=turn credit=turn", [1, 0.75], [1, 4]),
    ],
)
def test_rewards_and_values_of_a_conversation_by_token_and_by_turn(configure, settings, rewards, places):
    from gspo_cli.training.batch import Sample

    overrides = [f"algorithm.{'value.' * ('gae' in each)}{each}" for each in settings.split()]
    overrides += [
        "algorithm.discount=0.9",
        "algorithm.value.gae_lambda=0.8",
        "algorithm.advantage_scale=none",
    ]
    config, _ = configure("algorithm=ppo", *overrides)
    [sample] = with_value_advantages([Sample.of(TRAJECTORY)], [[TRAJECTORY]], config.algorithm, [VALUES])
    steps = gae(rewards, [VALUES[place] for place in places], 0.9, 0.8)
    of_step = [steps[sum(p <= place for p in places) - 1] if TURNS[place] >= 0 else 0.0 for place in range(6)]
    assert sample.advantages == pytest.approx(of_step, abs=1e-12)
    first = [max(p for p in places if p <= place) if TURNS[place] >= 0 else None for place in range(6)]
    expected = [0.0 if p is None else a + VALUES[p] for p, a in zip(first, of_step, strict=True)]
    assert sample.returns == pytest.approx(expected, abs=1e-12)
    assert sample.values == VALUES


def test_advantages_of_an_iteration_are_whitened_over_its_trained_tokens(configure):
    from gspo_cli.training.batch import Sample

    config, _ = configure("algorithm=ppo")
    excluded = replace(TRAJECTORY, reward=None, excluded="failed")
    samples = [
        Sample.of(TRAJECTORY),
        Sample.of(excluded, trained=False),
        Sample.of(replace(TRAJECTORY, reward=0)),
    ]
    groups = [[sample.trajectory for sample in samples]]
    found = with_value_advantages(samples, groups, config.algorithm, [VALUES] * 3)
    trained = [a for s in found for a, m in zip(s.advantages, s.action_mask, strict=True) if m]
    assert len(trained) == 8
    assert (fmean(trained), stdev(trained)) == pytest.approx((0, 1), abs=1e-12)
    assert found[1].advantages == [0.0] * 6
    metrics = value_metrics(found)
    assert metrics["value/mean"] == pytest.approx(0.25)
    assert metrics["value/explained_variance"] < 1


# ---- updates


def updater_of(load, configure, *overrides, sharing=False, **settings):
    config, _ = configure("algorithm=ppo", "algorithm.learning_rate=0.01", *overrides)
    policy = load("qwen3", **settings)
    updater = Updater(policy, config, sharing=Sharing(sharing, attention_share=1e-4))
    with torch.no_grad():  # a head of zeros has no gradient for the model
        updater.critic.head.weight += torch.linspace(-0.1, 0.1, 32)
    return updater


def valued(updater, seed=0):
    samples = conversations(updater.policy.causal_model.config.vocab_size, seed=seed)
    draw = random.Random(seed)
    return [
        replace(
            sample,
            advantages=[draw.gauss(0, 1) for _ in sample.token_ids],
            values=values,
            returns=[draw.gauss(0, 1) for _ in sample.token_ids],
        )
        for sample, values in zip(samples, updater.values(samples), strict=True)
    ]


def test_the_advantage_that_is_shown_is_the_mean_over_trained_tokens():
    ids, mask = [5, 6, 7, 8], [False, True, False, True]
    trajectory = Trajectory(Problem("p", ()), ids, mask, [0.0] * 4, [-1, 0, -1, 1], [], FinishReason.stop)
    sample = Sample.of(trajectory, [9.0, 1.0, 9.0, 4.0])
    assert sample.mean_advantage == 2.5  # over turns
    last = replace(sample, advantages=[9.0, 1.0, 2.0, 4.0], values=[0.0] * 4)
    assert last.mean_advantage == 2.5


@pytest.mark.parametrize("sharing", [False, True])
def test_the_value_of_a_token_is_read_from_the_state_that_predicts_it(load, configure, sharing):
    updater = updater_of(load, configure, sharing=sharing)
    samples = conversations(updater.policy.causal_model.config.vocab_size)
    for sample, values in zip(samples, updater.values(samples), strict=True):
        ids = torch.tensor([sample.token_ids])
        with torch.no_grad():
            hidden = updater.policy.causal_model.base_model(ids).last_hidden_state[0]
            expected = hidden[:-1] @ updater.critic.head.weight
        for place, trained in enumerate(sample.action_mask):
            assert values[place] == pytest.approx(expected[place - 1].item() if trained else 0.0, abs=1e-5)


@pytest.mark.parametrize(("coefficient", "clip"), [(0.0, None), (0.5, None), (0.5, 0.05)])
def test_the_step_is_that_of_plain_torch(load, configure, coefficient, clip):
    settings = (
        f"algorithm.value.coefficient={coefficient}",
        f"algorithm.value.clip={'null' if clip is None else clip}",
        *("training.updates_per_rollout=1", "training.max_grad_norm=1e6"),
    )
    updater = updater_of(load, configure, *settings)
    apart = random.Random(1)  # how far the head has moved since the rollout
    samples = [
        replace(sample, values=[value + apart.gauss(0, 0.1) for value in sample.values])
        for sample in valued(updater)
    ]
    head, model = updater.critic.head, updater.policy.causal_model
    weight, bias = (p.detach().clone().requires_grad_() for p in (head.weight, head.bias))
    policy_terms, value_terms, squares = [], [], []
    for sample in samples:
        ids = torch.tensor([sample.token_ids])
        out = model(ids, output_hidden_states=True)
        hidden = out.hidden_states[-1][0]
        logprobs = out.logits[0].float().log_softmax(-1)
        for place in (i for i, trained in enumerate(sample.action_mask) if trained):
            logprob = logprobs[place - 1, sample.token_ids[place]]
            policy_terms.append((logprob - logprob.detach()).exp() * sample.advantages[place])
            now, old, target = hidden[place - 1] @ weight + bias, sample.values[place], sample.returns[place]
            limit = math.inf if clip is None else clip
            limited = old + (now - old).clamp(-limit, limit)
            squares.append((now - target).square().item())
            value_terms.append(torch.maximum((now - target).square(), (limited - target).square()) / 2)
    policy_loss, value = -torch.stack(policy_terms).mean(), torch.stack(value_terms).mean()
    parameters = updater.policy.trainable()
    grads = torch.autograd.grad(policy_loss + coefficient * value, parameters, retain_graph=True)
    expected_head = torch.autograd.grad(value, [weight, bias])
    updater.strategy.step = lambda rate: (
        found.update(model=[p.grad.clone() for p in parameters]) or updater.strategy.drop_gradient() or 1.0
    )
    found = {}
    own = updater.critic.step
    updater.critic.step = lambda rate: (
        found.update(head=[p.grad.clone() for p in (head.weight, head.bias)]) or own(rate)
    )
    report = updater.run(samples, np.random.default_rng(0), Clock())
    for mine, theirs in zip(found["model"], grads, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=2e-6)
    for mine, theirs in zip(found["head"], expected_head, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=2e-6)
    metrics = update_metrics(report)
    assert metrics["value/loss"] == pytest.approx(sum(squares) / len(squares) / 2, abs=1e-6)  # not clipped
    assert (metrics["value/clipped"] > 0) == (clip is not None)
    assert metrics["value/learning_rate"] == 1e-3


def test_the_head_takes_the_steps_of_adamw_at_its_own_rate(load, configure):
    settings = {"max_grad_norm": 0.05, "adam_beta1": 0.8, "adam_beta2": 0.95, "weight_decay": 0.1}
    updater = updater_of(
        load, configure, *(f"training.{key}={value}" for key, value in settings.items()),
        "training.schedule=linear", "training.num_outer_iterations=2", "training.updates_per_rollout=2",
        "algorithm.value.learning_rate=0.02",
    )  # fmt: skip
    head = list(updater.critic.head.parameters())
    start = torch.cat([p.detach().flatten() for p in head])
    grads = gradients_of(updater.critic, head)
    for seed in range(2):
        report = updater.run(valued(updater, seed), np.random.default_rng(seed), Clock())
    rates = [0.02 * (1 - step / 4) for step in range(4)]
    assert update_metrics(report)["value/learning_rate"] == pytest.approx(rates[-1])
    assert min(grad.norm() for grad in grads) > 0.06  # it is clipped
    found = torch.cat([p.detach().flatten() for p in head])
    expected = adamw(start, grads, rates, updater.config.training, weight_decay=0.0)  # which a head has not
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_values_are_learned_from_answers_without_advantage(load, configure):
    updater = updater_of(load, configure, "training.updates_per_rollout=1")
    samples = [replace(sample, advantages=[0.0] * sample.length) for sample in valued(updater)]
    report = updater.run(samples, np.random.default_rng(0), Clock())
    assert report.sums.value.tokens == sum(sample.num_actions for sample in samples)
    assert report.sums.value.squares > 0


def test_memory_that_runs_out_leaves_no_gradient_in_the_head(load, configure):
    found = []
    for tokens in (10_000, 45):  # the third micro-batch of the step does not fit
        settings = ("hardware.tokens_per_microbatch=60", "training.updates_per_rollout=1")
        updater = updater_of(load, configure, *settings)
        samples = valued(updater)
        small = Small(updater.policy, tokens)
        grads = gradients_of(updater.critic, [updater.critic.head.weight])
        updater.run(samples, np.random.default_rng(0), Clock())
        found.append(torch.stack(grads))
    assert small.refused >= 1
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-5)


def test_the_layout_changes_no_gradient_of_the_head(load, configure):
    found = []
    for budget in (1, 60, 10_000):
        settings = (f"hardware.tokens_per_microbatch={budget}", "training.updates_per_rollout=2")
        updater = updater_of(load, configure, *settings, sharing=budget == 60)
        updater.run(valued(updater), np.random.default_rng(0), Clock())
        found.append(torch.cat([updater.critic.head.weight, weights(updater.policy)]))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=5e-5)
    torch.testing.assert_close(found[2], found[0], rtol=0, atol=5e-5)


def test_a_gradient_of_the_head_that_is_not_finite_is_counted_and_not_applied(load, configure):
    updater = updater_of(load, configure, "training.updates_per_rollout=2", "algorithm.value.coefficient=0")
    samples = valued(updater)
    updater.critic.head.weight.register_hook(lambda grad: grad * math.nan)
    before, head = weights(updater.policy), updater.critic.head.weight.detach().clone()
    report = updater.run(samples, np.random.default_rng(0), Clock())
    assert (report.updates, report.skipped, len(report.grad_norms)) == (2, 2, 2)
    assert torch.equal(updater.critic.head.weight, head)
    assert not torch.equal(weights(updater.policy), before)


def test_values_are_computed_without_log_probabilities(load, configure, monkeypatch):
    updater = updater_of(load, configure)
    samples = conversations(updater.policy.causal_model.config.vocab_size)
    expected = {}
    for micro in updater.collator.micro_batches([s for s in samples if s.num_actions]):
        scored = updater._scored(micro, values=True)[2]
        expected |= {id(s): row for s, row in zip(micro.samples, scored.tolist(), strict=True)}
    monkeypatch.setattr("gspo_cli.policy.policy.LinearLogprobs.apply", lambda *_: pytest.fail("computed"))
    for sample, found in zip(samples, updater.values(samples), strict=True):
        if sample.num_actions:
            assert found == expected[id(sample)][: sample.length]


def test_a_rollback_takes_the_head_back(load, configure, tmp_path):
    updater = updater_of(load, configure)
    checkpoints = Checkpoints(tmp_path, updater.config.checkpoint)
    checkpoints.save(updater, TrainerState())
    before = updater.critic.head.weight.detach().clone()
    updater.run(valued(updater), np.random.default_rng(0), Clock())
    assert not torch.equal(updater.critic.head.weight, before)
    checkpoints.roll_back(0, updater)
    assert torch.equal(updater.critic.head.weight, before)
    assert not updater.critic.optimizer.state_dict()["state"]
