"""The members of the family beside GSPO, GSPO-token and GRPO, against naive code for their equations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from gspo_cli.algorithm.advantages import group_advantages
from gspo_cli.algorithm.objective import policy_loss
from gspo_cli.config.choices import (
    AdvantageBaseline,
    AdvantageScale,
    Aggregation,
    ClipMode,
)
from tests.support.objectives import LIMIT, algorithm, batch, computed, differences

CASES = range(60)
EXACT = 1e-12


def ratios(logprobs, old, mask, row):
    """Log ratios of a row's trained tokens."""
    return (logprobs[row] - old[row])[mask[row]]


def naive_sapo(logprobs, old, advantages, mask, tau_pos, tau_neg):
    terms = []
    for row, advantage in enumerate(advantages[:, 0]):
        tau = tau_pos if advantage > 0 else tau_neg
        w = ratios(logprobs, old, mask, row).exp()
        terms.append((4 / tau / (1 + (-tau * (w - 1)).exp()) * advantage).mean())
    return -sum(terms) / len(terms)


def naive_gmpo(logprobs, old, advantages, mask, left, right):
    terms = []
    for row, advantage in enumerate(advantages[:, 0]):
        d = ratios(logprobs, old, mask, row)
        kept = (
            torch.minimum(d, d.new_tensor(right)) if advantage > 0 else torch.maximum(d, d.new_tensor(-left))
        )
        terms.append(kept.exp().prod() ** (1 / len(d)) * advantage)
    return -sum(terms) / len(terms)


def naive_luspo(logprobs, old, advantages, mask, left, right):
    terms = []
    for row, advantage in enumerate(advantages[:, 0]):
        d = ratios(logprobs, old, mask, row)
        s = d.exp().prod() ** (1 / len(d))
        terms.append(len(d) * torch.minimum(s * advantage, s.clamp(1 - left, 1 + right) * advantage))
    return -sum(terms) / len(terms)


def naive_dual(logprobs, old, advantages, mask, left, right, dual):
    terms = []
    for row, advantage in enumerate(advantages[:, 0]):
        w = ratios(logprobs, old, mask, row).exp()
        term = torch.minimum(w * advantage, w.clamp(1 - left, 1 + right) * advantage)
        terms.append((torch.maximum(term, dual * advantage) if advantage < 0 else term).mean())
    return -sum(terms) / len(terms)


def naive_rloo(logprobs, old, advantages, mask):
    whole = [ratios(logprobs, old, mask, row).exp().prod() for row in range(len(mask))]
    return -sum(w * a for w, a in zip(whole, advantages[:, 0], strict=True)) / len(whole)


def naive_rloo_clipped(logprobs, old, advantages, mask):
    terms = []
    for row, a in enumerate(advantages[:, 0]):
        w = ratios(logprobs, old, mask, row).exp().prod()
        terms.append(torch.minimum(w * a, w.clamp(0.6, 1.5) * a))
    return -sum(terms) / len(terms)


MEMBERS = {
    "sapo": (
        algorithm("token", None, None, clip_mode=ClipMode.soft_gate, tau_pos=0.7, tau_neg=2.5),
        lambda *given: naive_sapo(*given, 0.7, 2.5),
    ),
    "gmpo": (
        algorithm("sequence", 0.4, 0.3, clip_mode=ClipMode.token_log),
        lambda *given: naive_gmpo(*given, 0.4, 0.3),
    ),
    "luspo": (
        algorithm("sequence", 0.1, 0.15, aggregation=Aggregation.sequence_sum),
        lambda *given: naive_luspo(*given, 0.1, 0.15),
    ),
    "dual clip": (
        algorithm("token", 0.2, 0.27, clip_ratio_dual=1.6),
        lambda *given: naive_dual(*given, 0.2, 0.27, 1.6),
    ),
    "rloo": (algorithm("sequence_product", None, None, clip_mode=ClipMode.none), naive_rloo),
    "rloo clipped": (algorithm("sequence_product", 0.4, 0.5), naive_rloo_clipped),
}


@pytest.mark.parametrize("name", MEMBERS)
@pytest.mark.parametrize("spread", [0.02, 0.5, 1.5])
def test_loss_and_gradient_are_those_of_naive_code(name, spread):
    config, naive = MEMBERS[name]
    for seed in CASES:
        given = batch(seed, spread=spread)
        found = computed(config, *given)
        size = max(1.0, found[0].abs().item(), found[1].abs().max().item())  # a product may be large
        value, gradient = differences(found, naive(*given), given[0])
        assert value < EXACT * size
        assert gradient < EXACT * size


def test_the_gates_gradient_is_a_sech_squared_times_the_ratio():
    # d/dr 4/tau sigmoid(tau (r - 1)) = sech^2(tau (r - 1) / 2), and dr / d log p = r
    for seed in CASES:
        logprobs, old, advantages, mask = batch(seed)
        config = algorithm("token", None, None, clip_mode=ClipMode.soft_gate, tau_pos=0.7, tau_neg=2.5)
        _, gradient, stats = computed(config, logprobs, old, advantages, mask)
        w = (logprobs - old).exp().detach()
        tau = torch.full_like(advantages, 2.5).masked_fill(advantages > 0, 0.7)
        slope = 1 / torch.cosh(tau * (w - 1) / 2) ** 2
        expected = -w * slope * advantages * mask / mask.sum(dim=1, keepdim=True) / len(mask)
        torch.testing.assert_close(gradient, expected, rtol=0, atol=EXACT)
        assert stats.clipped_low == stats.clipped_high == 0


def test_the_gradient_of_gmpo_weighs_all_tokens_that_are_not_clipped_alike():
    for seed in CASES:
        logprobs, old, advantages, mask = batch(seed)
        config = algorithm("sequence", 0.4, 0.4, clip_mode=ClipMode.token_log)
        _, gradient, stats = computed(config, logprobs, old, advantages, mask)
        d = (logprobs - old).detach()
        clipped = mask & (((advantages > 0) & (d > 0.4)) | ((advantages < 0) & (d < -0.4)))
        kept = torch.where(clipped, 0.4 * advantages.sign(), d) * mask
        count = mask.sum(dim=1, keepdim=True)
        s = (kept.sum(dim=1, keepdim=True) / count).exp()
        expected = -s * advantages * (mask & ~clipped) / count / len(mask)
        torch.testing.assert_close(gradient, expected, rtol=0, atol=EXACT)
        assert stats.clipped_low + stats.clipped_high == clipped.sum()
        assert stats.ratios == len(mask)  # it is reported per answer, as the ratio of GSPO


def test_luspo_is_gspo_with_a_weight_of_the_answers_length():
    # rows of 1 and 3 tokens, ratio 1: terms 1 A and 3 A, over two answers
    zeros = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, False, False], [True, True, True]])
    config = algorithm("sequence", 3e-4, 4e-4, aggregation=Aggregation.sequence_sum)
    advantages = torch.tensor([[1.0], [10.0]], dtype=torch.float64)
    loss, gradient, _ = computed(config, zeros, zeros.detach(), advantages, mask)
    assert loss.item() == pytest.approx(-(1 + 30) / 2, abs=EXACT)
    assert gradient.tolist() == [[-0.5, 0, 0], [-5, -5, -5]]


def test_the_dual_clip_stops_the_gradient_of_bad_answers_that_became_far_more_likely():
    logprobs = torch.tensor([[2.0, 0.5, -1.0]], dtype=torch.float64, requires_grad=True)
    old, mask = torch.zeros(1, 3, dtype=torch.float64), torch.ones(1, 3, dtype=torch.bool)
    for sign, weights in ((-1.0, [0, math.exp(0.5), 0]), (1.0, [0, 0, math.exp(-1)])):
        _, gradient, stats = computed(
            algorithm("token", 0.2, 0.27, clip_ratio_dual=3.0), logprobs, old, torch.full((1, 1), sign), mask
        )
        torch.testing.assert_close(gradient[0], -sign * torch.tensor(weights).double() / 3)
        assert (stats.clipped_low, stats.clipped_high) == ((1, 1) if sign < 0 else (0, 2))
    # at the bound itself nothing is clipped
    edge = torch.tensor([[math.log(3.0)]], dtype=torch.float64, requires_grad=True)
    one = torch.ones(1, 1, dtype=torch.bool)
    bound = algorithm("token", 0.2, 0.27, clip_ratio_dual=math.exp(math.log(3.0)))
    assert computed(bound, edge, torch.zeros(1, 1).double(), -torch.ones(1, 1), one)[1].abs().sum() > 0


@pytest.mark.parametrize("name", MEMBERS)
@pytest.mark.parametrize("shift", [1000.0, -1000.0])
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_ratios_that_overflow_give_no_nan_and_masked_positions_change_nothing(name, shift, advantage):
    config, _ = MEMBERS[name]
    logprobs, old, _, mask = batch(0)
    advantages = torch.full((5, 1), advantage, dtype=torch.float64)
    broken = torch.where(mask, old, -torch.inf)
    same = computed(config, logprobs, old, advantages, mask)
    other = computed(config, logprobs, broken, advantages, mask)
    assert torch.equal(other[0], same[0])
    assert torch.equal(other[1], same[1])
    bounded = not (
        name in ("luspo", "gmpo", "rloo clipped") and shift > 0 > advantage
    )  # min leaves that side open
    if bounded and name != "rloo":
        loss, gradient, _ = computed(config, logprobs, old - shift, advantages, mask)
        assert loss.isfinite()
        assert gradient.isfinite().all()


@pytest.mark.parametrize("name", MEMBERS)
def test_the_loss_of_a_member_is_a_sum_over_any_split_of_the_rows(name):
    config, _ = MEMBERS[name]
    logprobs, old, advantages, mask = batch(3)
    whole = computed(config, logprobs, old, advantages, mask)[0]
    parts = [
        policy_loss(logprobs[rows], old[rows], advantages[rows], mask[rows], config, 5.0)[0]
        for rows in ([4, 0], [1], [3, 2])
    ]
    assert sum(parts).item() == pytest.approx(whole.item(), abs=EXACT)


def test_on_policy_the_gradients_are_those_of_grpo():
    logprobs, _, advantages, mask = batch(1)
    expected = computed(algorithm(), logprobs, logprobs.detach(), advantages, mask)[1]
    for name in ("sapo", "gmpo", "dual clip"):
        found = computed(MEMBERS[name][0], logprobs, logprobs.detach(), advantages, mask)[1]
        torch.testing.assert_close(found, expected, rtol=0, atol=EXACT)


def test_on_policy_the_gradient_of_rloo_is_that_of_the_whole_answers_log_probability():
    # arXiv 2402.14740: A grad log pi(y), without a division by the length
    logprobs, _, advantages, mask = batch(2)
    found = computed(MEMBERS["rloo"][0], logprobs, logprobs.detach(), advantages, mask)[1]
    torch.testing.assert_close(found, -advantages * mask / len(mask), rtol=0, atol=EXACT)
    # the token form differs from it by the constant that it divides by
    config = algorithm("token", None, None, clip_mode=ClipMode.none, aggregation=Aggregation.constant)
    by_token = computed(config, logprobs, logprobs.detach(), advantages, mask)[1]
    torch.testing.assert_close(by_token * LIMIT, found, rtol=0, atol=EXACT)


@pytest.mark.parametrize("seed", range(20))
def test_advantages_against_the_batch_are_those_of_reinforce_pp(seed):
    # arXiv 2501.03262: (r - mean of the batch) / std of the batch, over all valid answers
    random = np.random.default_rng(seed)
    rewards = random.normal(size=(4, 3))
    rewards[1] = 0.5  # a group of equal rewards teaches, too
    valid = random.random((4, 3)) < 0.8
    found = group_advantages(
        torch.tensor(rewards), torch.tensor(valid), AdvantageBaseline.batch_mean, AdvantageScale.batch_std
    )
    counted = rewards[valid]
    expected = np.where(valid, (rewards - counted.mean()) / counted.std(ddof=1), 0)
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=EXACT)
    flat = torch.full((4, 3), 0.3)
    equal = group_advantages(
        flat, torch.tensor(valid), AdvantageBaseline.batch_mean, AdvantageScale.batch_std
    )
    assert torch.equal(equal, torch.zeros(4, 3, dtype=torch.float64))
