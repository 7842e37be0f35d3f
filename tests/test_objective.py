"""The objective against closed forms on a tabular policy, and its invariances."""

from __future__ import annotations

import math

import pytest
import torch

from gspo_cli.algorithm.objective import (
    importance_log_ratio,
    kl_penalty,
    loss_denominator,
    policy_loss,
    reward_kl,
)
from gspo_cli.config.choices import Aggregation, ClipMode, KLEstimator, RatioLevel
from gspo_cli.config.schema import AlgorithmConfig
from gspo_cli.errors import UserError


def algorithm(level="sequence", left=3e-4, right=4e-4, **more):
    return AlgorithmConfig(
        name="test",
        ratio_level=RatioLevel[level],
        clip_range_left=left,
        clip_range_right=right,
        learning_rate=1.0,
        **more,
    )


def tabular(logits, tokens):
    """log-probabilities of a policy that is a table: logits (B, T, V), tokens (B, T) -> (B, T)."""
    return logits.log_softmax(dim=-1).gather(dim=-1, index=tokens[..., None]).squeeze(dim=-1)


def score_gradient(logits, tokens):
    """d log p(y_t) / d logits = onehot - softmax. -> (B, T, V)"""
    return torch.nn.functional.one_hot(tokens, logits.shape[-1]) - logits.softmax(dim=-1)


def example(shift, rows=3, length=5, vocabulary=7, seed=0):
    """A random table, tokens and old log-probabilities such that every log w_t is `shift` (broadcast to (B,
    T))."""
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, length, vocabulary, generator=random, dtype=torch.float64).requires_grad_()
    tokens = torch.randint(vocabulary, (rows, length), generator=random)
    mask = torch.ones(rows, length, dtype=torch.bool)
    mask[:, 0] = False
    mask[0, 3:] = False
    old = tabular(logits, tokens).detach() - torch.as_tensor(shift, dtype=torch.float64).expand(rows, length)
    return logits, tokens, mask, old


def gradient(logits, tokens, mask, old, advantages, config, denominator=None):
    counts = mask.sum(dim=1).tolist()
    denominator = denominator or loss_denominator(counts, config.aggregation, 10)
    loss, stats = policy_loss(tabular(logits, tokens), old, advantages, mask, config, denominator)
    (grad,) = torch.autograd.grad(loss, logits)
    return loss.item(), grad, stats


@pytest.mark.parametrize("advantage", [2.0, -2.0])
@pytest.mark.parametrize("shift", [-5e-3, -1e-4, 0.0, 1e-4, 5e-3])
@pytest.mark.parametrize("level", ["sequence", "sequence_token"])
def test_gspo_loss_and_gradient_are_the_closed_form(level, shift, advantage):
    # Eq. 10: gradient = -(1/B) sum_i s_i A_i (1/|y_i|) sum_t grad log p_t, and 0 where the clip is active
    logits, tokens, mask, old = example(shift)
    advantages = torch.full((3, 1), advantage, dtype=torch.float64)
    loss, grad, stats = gradient(logits, tokens, mask, old, advantages, algorithm(level))
    s = math.exp(shift)
    clipped = (advantage > 0 and s > 1 + 4e-4) or (advantage < 0 and s < 1 - 3e-4)
    bounded = min(s * advantage, min(max(s, 1 - 3e-4), 1 + 4e-4) * advantage)
    assert loss == pytest.approx(-bounded, abs=1e-12)
    lengths = mask.sum(dim=1, keepdim=True)[..., None]
    expected = -s * advantage * score_gradient(logits, tokens) * mask[..., None] / lengths / 3
    torch.testing.assert_close(grad, torch.zeros_like(grad) if clipped else expected, rtol=1e-10, atol=1e-12)
    assert stats.clipped_sequences == (3 if clipped else 0)
    assert stats.clipped_low + stats.clipped_high == (mask.sum().item() if clipped else 0)


@pytest.mark.parametrize("advantage", [1.5, -1.5])
def test_grpo_loss_and_gradient_are_the_closed_form(advantage):
    # each token has its own ratio, on both sides of [0.8, 1.27] and inside
    shift = torch.tensor([[0.0, 0.5, -0.5, 0.1, -0.1]])
    logits, tokens, mask, old = example(shift)
    config = algorithm("token", 0.2, 0.27)
    loss, grad, stats = gradient(logits, tokens, mask, old, torch.full((3, 1), advantage), config)
    w = shift.double().exp().expand(3, 5)
    clipped = (w > 1.27) if advantage > 0 else (w < 0.8)
    terms = torch.minimum(w * advantage, w.clamp(0.8, 1.27) * advantage)
    lengths = mask.sum(dim=1, keepdim=True)
    assert loss == pytest.approx(-((terms * mask).sum(dim=1) / lengths[:, 0]).mean().item(), abs=1e-7)
    weight = (w * advantage * mask * ~clipped / lengths / 3)[..., None]
    torch.testing.assert_close(grad, -weight * score_gradient(logits, tokens), rtol=1e-7, atol=1e-9)
    assert stats.clipped_low + stats.clipped_high == (clipped & mask).sum().item()


@pytest.mark.parametrize("level", ["sequence", "sequence_token", "token"])
def test_a_fully_clipped_batch_has_gradient_exactly_zero(level):
    shift = torch.tensor([[1.0], [-1.0], [1.0]])
    logits, tokens, mask, old = example(shift)
    _, grad, stats = gradient(logits, tokens, mask, old, shift.clone(), algorithm(level))
    assert torch.equal(grad, torch.zeros_like(grad))
    assert stats.clipped_sequences == stats.sequences == 3


@pytest.mark.parametrize("level", ["sequence", "sequence_token", "token"])
def test_a_clipped_ratio_that_overflows_has_gradient_zero(level):
    logits, tokens, mask, old = example(1000.0)
    loss, grad, _ = gradient(logits, tokens, mask, old, torch.ones(3, 1), algorithm(level))
    assert loss == pytest.approx(-(1 + 4e-4))
    assert torch.equal(grad, torch.zeros_like(grad))


def test_the_clip_is_one_sided():
    # A > 0 below the band and A < 0 above it: the pessimistic minimum keeps the gradient
    shift = torch.tensor([[-1.0], [1.0], [-1.0]])
    logits, tokens, mask, old = example(shift)
    _, grad, stats = gradient(logits, tokens, mask, old, -shift, algorithm("sequence"))
    assert stats.clipped_sequences == 0
    assert (grad[mask].abs().sum(dim=-1) > 0).all()


def test_gspo_token_with_constant_advantage_equals_gspo():
    random = torch.Generator().manual_seed(3)
    shift = torch.randn(3, 5, generator=random, dtype=torch.float64) * 1e-3
    logits, tokens, mask, old = example(shift)
    advantages = torch.tensor([[1.0], [-0.7], [0.3]], dtype=torch.float64)
    one = gradient(logits, tokens, mask, old, advantages, algorithm("sequence"))
    two = gradient(logits, tokens, mask, old, advantages.expand(3, 5), algorithm("sequence_token"))
    assert one[0] == pytest.approx(two[0], abs=1e-12)
    torch.testing.assert_close(one[1], two[1], rtol=1e-9, atol=1e-12)
    assert one[2].clipped_low == two[2].clipped_low
    assert one[2].clipped_high == two[2].clipped_high
    assert one[2].ratios == two[2].ratios == 3  # that of each answer, not of each token
    assert two[2].deviation_sum == pytest.approx(one[2].deviation_sum, abs=1e-12)


def test_gspo_token_moves_only_the_turn_that_has_an_advantage():
    logits, tokens, mask, old = example(0.0)
    advantages = torch.zeros(3, 5, dtype=torch.float64)
    advantages[1, 3:] = 1.0
    _, grad, _ = gradient(logits, tokens, mask, old, advantages, algorithm("sequence_token"))
    moved = grad.abs().sum(dim=-1) > 0
    assert torch.equal(moved, advantages > 0)


def test_a_sequence_ratio_refuses_token_advantages_and_a_flat_vector():
    logits, tokens, mask, old = example(0.0)
    with pytest.raises(ValueError, match="use sequence_token"):
        gradient(logits, tokens, mask, old, torch.ones(3, 5), algorithm("sequence"))
    with pytest.raises(ValueError, match=r"\(B, 1\)"):  # (B,) against (B, 1) would broadcast to (B, B)
        gradient(logits, tokens, mask, old, torch.ones(3), algorithm("sequence"))


@pytest.mark.parametrize("name", ["sequence", "token", "sequence_token"])
def test_padding_and_infinities_outside_the_mask_change_nothing(name):
    logits, tokens, mask, old = example(1e-3)
    advantages = torch.tensor([[1.0], [-1.0], [0.5]], dtype=torch.float64)
    config = algorithm(name)
    loss, grad, _ = gradient(logits, tokens, mask, old, advantages, config)
    old = torch.where(mask, old, -torch.inf)
    padded = [torch.nn.functional.pad(value, (0, 4)) for value in (tokens, mask, old)]
    wide = torch.nn.functional.pad(logits, (0, 0, 0, 4))
    loss_padded, _ = policy_loss(tabular(wide, padded[0]), padded[2], advantages, padded[1], config, 3.0)
    (grad_padded,) = torch.autograd.grad(loss_padded, logits)
    assert loss_padded.item() == pytest.approx(loss, abs=1e-12)
    torch.testing.assert_close(grad_padded, grad)


@pytest.mark.parametrize("aggregation", list(Aggregation))
def test_the_loss_is_a_sum_over_any_split_of_the_rows(aggregation):
    logits, tokens, mask, old = example(0.1, rows=6)
    config = algorithm("token", 0.2, 0.27, aggregation=aggregation)
    advantages = torch.linspace(-1, 1, 6, dtype=torch.float64)[:, None]
    denominator = loss_denominator(mask.sum(dim=1).tolist(), aggregation, 10)
    whole, grad, _ = gradient(logits, tokens, mask, old, advantages, config)
    parts = 0
    for rows in ([5, 0], [2], [1, 4, 3]):
        parts = (
            parts
            + policy_loss(
                tabular(logits, tokens)[rows], old[rows], advantages[rows], mask[rows], config, denominator
            )[0]
        )
    assert parts.item() == pytest.approx(whole, abs=1e-12)
    torch.testing.assert_close(torch.autograd.grad(parts, logits)[0], grad)


def test_aggregations_are_the_three_published_means():
    # two sequences of 1 and 3 trained tokens, all terms 1: means 1, 1, and 4 / (2 * 10)
    mask = torch.tensor([[0, 1, 0, 0], [0, 1, 1, 1]], dtype=torch.bool)
    zeros = torch.zeros(2, 4)
    for aggregation, expected in [("sequence_mean", 1.0), ("token_mean", 1.0), ("constant", 0.2)]:
        config = algorithm("token", 0.2, 0.27, aggregation=Aggregation[aggregation])
        denominator = loss_denominator([1, 3], config.aggregation, 10)
        loss, _ = policy_loss(zeros, zeros, torch.ones(2, 1), mask, config, denominator)
        assert loss.item() == pytest.approx(-expected)
    # with terms +1 on the short answer and -1 on the long one the first two differ: 0 and -1/2
    signs = torch.tensor([[1.0], [-1.0]])
    for aggregation, expected in [("sequence_mean", 0.0), ("token_mean", 0.5)]:
        config = algorithm("token", 0.2, 0.27, aggregation=Aggregation[aggregation])
        denominator = loss_denominator([1, 3], config.aggregation, 10)
        loss, _ = policy_loss(zeros, zeros, signs, mask, config, denominator)
        assert loss.item() == pytest.approx(expected)


def test_sequences_without_trained_tokens_leave_the_denominator():
    assert loss_denominator([0, 2, 5], Aggregation.sequence_mean, 10) == 2
    assert loss_denominator([0, 2, 5], Aggregation.token_mean, 10) == 7
    assert loss_denominator([0, 2, 5], Aggregation.constant, 10) == 20
    assert loss_denominator([0, 0], Aggregation.sequence_mean, 10) == 1


def test_an_empty_batch_of_actions_has_loss_zero_and_finite_gradient():
    logits, tokens, mask, old = example(1.0)
    loss, grad, stats = gradient(
        logits, tokens, torch.zeros_like(mask), old, torch.ones(3, 1), algorithm("sequence")
    )
    assert loss == 0
    assert torch.equal(grad, torch.zeros_like(grad))
    assert stats.tokens == 0


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_cispo_caps_the_weight_and_every_token_keeps_its_score(advantage):
    shift = torch.tensor([[0.0, 1.0, -1.0, 0.1, -0.1]])
    logits, tokens, mask, old = example(shift)
    config = algorithm(
        "token", None, 0.27, clip_mode=ClipMode.stop_gradient, aggregation=Aggregation.token_mean
    )
    _, grad, stats = gradient(logits, tokens, mask, old, torch.full((3, 1), advantage), config)
    weight = shift.double().exp().clamp(max=1.27).expand(3, 5) * advantage * mask / mask.sum()
    torch.testing.assert_close(
        grad, -weight[..., None] * score_gradient(logits, tokens), rtol=1e-7, atol=1e-9
    )
    assert stats.clipped_high == mask[:, 1].sum()


@pytest.mark.parametrize("estimator", [KLEstimator.k2, KLEstimator.k3])
def test_the_kl_gradient_is_zero_where_policy_equals_reference(estimator):
    logits, tokens, mask, _ = example(0.0)
    logprobs = tabular(logits, tokens)
    kl = kl_penalty(logprobs, logprobs.detach(), mask, estimator)
    assert torch.equal(kl, torch.zeros_like(kl))
    assert torch.equal(torch.autograd.grad(kl.sum(), logits)[0], torch.zeros_like(logits))


def test_kl_estimators_are_unbiased_or_close_under_the_policy():
    # KL = sum p (log p - log q) exactly; k1 and k3 are unbiased, k2 is close when p and q are
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    q = torch.tensor([0.4, 0.4, 0.2], dtype=torch.float64)
    mask = torch.ones(3, 1, dtype=torch.bool)
    exact = (p * (p / q).log()).sum().item()
    for estimator, tolerance in [(KLEstimator.k1, 1e-12), (KLEstimator.k3, 1e-12), (KLEstimator.k2, 2e-3)]:
        values = kl_penalty(p.log()[:, None], q.log()[:, None], mask, estimator)[:, 0]
        assert (p * values).sum().item() == pytest.approx(exact, abs=tolerance)


def test_kl_is_outside_the_clip_and_not_weighted_by_the_ratio():
    # fully clipped: the only gradient left is beta times that of k3, per-token mean
    shift = torch.tensor([[1.0], [1.0], [1.0]])
    logits, tokens, mask, old = example(shift)
    config = algorithm("sequence", beta=0.5)
    logprobs = tabular(logits, tokens)
    reference = logprobs.detach() - 0.3
    loss, _ = policy_loss(logprobs, old, torch.ones(3, 1), mask, config, 3.0, ref_logprobs=reference)
    (grad,) = torch.autograd.grad(loss, logits)
    weight = 0.5 * (1 - math.exp(-0.3)) * mask.double() / mask.sum(dim=1, keepdim=True) / 3
    torch.testing.assert_close(
        grad, weight[..., None] * score_gradient(logits, tokens), rtol=1e-9, atol=1e-12
    )


def test_k1_goes_into_the_reward_as_the_mean_over_trained_tokens():
    old = torch.tensor([[9.0, 1.0, 3.0, 9.0]])
    mask = torch.tensor([[False, True, True, False]])
    assert reward_kl(old, torch.zeros(1, 4), mask).tolist() == [2.0]


@pytest.mark.parametrize("shift", [1.0, -1.0])
def test_advantage_zero_never_counts_as_clipped(shift):
    logits, tokens, mask, old = example(shift)
    cispo = algorithm(
        "token", 0.2, 0.27, clip_mode=ClipMode.stop_gradient, aggregation=Aggregation.token_mean
    )
    for config in (*map(algorithm, ("sequence", "token", "sequence_token")), cispo):
        _, _, stats = gradient(logits, tokens, mask, old, torch.zeros(3, 1), config)
        assert stats.clipped_low == stats.clipped_high == stats.clipped_sequences == 0
    for advantage in (1.0, -1.0):  # CISPO caps whatever the sign
        _, _, stats = gradient(logits, tokens, mask, old, torch.full((3, 1), advantage), cispo)
        assert (stats.clipped_low, stats.clipped_high) == ((0, 10) if shift > 0 else (10, 0))


def test_token_and_sequence_clip_fractions_are_different_numbers():
    # one token out of band in each of two sequences: 2 of 10 tokens, 2 of 3 sequences
    shift = torch.zeros(3, 5)
    shift[1:, 2] = 1.0
    logits, tokens, mask, old = example(shift)
    _, _, stats = gradient(logits, tokens, mask, old, torch.ones(3, 1), algorithm("token", 0.2, 0.27))
    assert (stats.clipped_high, stats.tokens, stats.clipped_sequences, stats.sequences) == (2, 10, 2, 3)


def test_on_policy_all_three_algorithms_have_one_gradient():
    logits, tokens, mask, old = example(0.0)
    advantages = torch.tensor([[1.0], [-2.0], [0.5]], dtype=torch.float64)
    grads = [
        gradient(logits, tokens, mask, old, advantages, algorithm(level))[1]
        for level in ("sequence", "sequence_token", "token")
    ]
    torch.testing.assert_close(grads[0], grads[1])
    torch.testing.assert_close(grads[0], grads[2])


def test_the_sequence_ratio_is_the_geometric_mean_of_token_ratios():
    old = torch.zeros(1, 4)
    logprobs = torch.tensor([[5.0, 0.1, 0.3, -0.1]])
    mask = torch.tensor([[False, True, True, True]])
    log_ratio = importance_log_ratio(logprobs, old, mask, RatioLevel.sequence)
    assert log_ratio.shape == (1, 1)
    assert log_ratio.exp().item() == pytest.approx(math.exp(0.1))


def test_ratio_deviations_keep_their_precision():
    logits, tokens, mask, old = example(1e-9)
    _, _, stats = gradient(logits, tokens, mask, old, torch.ones(3, 1), algorithm("sequence"))
    assert stats.deviation_sum / stats.ratios == pytest.approx(1e-9, rel=1e-5)


@pytest.mark.parametrize("level", ["sequence", "sequence_token"])
def test_illegal_combinations_are_refused_with_the_fix(level):
    with pytest.raises(UserError, match="sequence_mean"):
        algorithm(level, aggregation=Aggregation.token_mean)
    with pytest.raises(UserError, match="ratio_level=token"):
        algorithm(level, clip_mode=ClipMode.stop_gradient)
