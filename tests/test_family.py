"""The members of the family beside GSPO, GSPO-token and GRPO, against naive code for their equations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from gspo_cli.algorithm.calibration import calibrated, candidates
from gspo_cli.algorithm.counterfactual import Objective, counterfactual_objectives, observe
from gspo_cli.algorithm.objective import policy_loss
from gspo_cli.compare.arms import objective
from gspo_cli.compare.runs import StoredRun
from gspo_cli.config.choices import Aggregation, ClipCalibration, ClipMode
from gspo_cli.config.old_logprobs import narrowest_width
from gspo_cli.errors import UserError
from gspo_cli.training.card import formula
from gspo_cli.training.metrics import Clock, update_metrics
from gspo_cli.training.update import Updater
from tests.support.batches import samples_of
from tests.support.objectives import algorithm, batch, computed, differences

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
}


@pytest.mark.parametrize("name", MEMBERS)
@pytest.mark.parametrize("spread", [0.02, 0.5, 1.5])
def test_loss_and_gradient_are_those_of_naive_code(name, spread):
    config, naive = MEMBERS[name]
    for seed in CASES:
        given = batch(seed, spread=spread)
        value, gradient = differences(computed(config, *given), naive(*given), given[0])
        assert value < EXACT
        assert gradient < EXACT


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
    bounded = not (name in ("luspo", "gmpo") and shift > 0 > advantage)  # min leaves that side open
    if bounded:
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


# ---- what stands beside an objective


def weight_of_gradient(config, given):
    """The mean over an answer's tokens of the factor of A / |y| in the gradient, by row."""
    logprobs, old, advantages, mask = given
    gradient = computed(config, logprobs, old, advantages, mask)[1]
    return -gradient.sum(dim=1) * len(mask) / advantages[:, 0]


@pytest.mark.parametrize("name", ["sapo", "gmpo", "dual clip"])
def test_the_weight_that_counterfactuals_compare_is_that_of_the_gradient(name):
    config, _ = MEMBERS[name]
    plain = Objective.of(algorithm("token", 0.2, 0.27))
    for seed in CASES:
        logprobs, old, advantages, mask = given = batch(seed)
        own = Objective.of(config)
        found = observe(logprobs, old, advantages, mask, own, {"own": own, "grpo": plain})
        x = weight_of_gradient(config, given) - 1
        y = weight_of_gradient(algorithm("token", 0.2, 0.27), given) - 1
        stats = found.counterfactuals["grpo"]
        assert (stats.x, stats.xy) == pytest.approx((x.sum().item(), (x * y).sum().item()), abs=1e-10)
        clipped = computed(config, *given)[2]
        assert found.counterfactuals["own"].clipped_tokens == clipped.clipped_low + clipped.clipped_high


@pytest.mark.parametrize(
    ("name", "names"), [("sapo", ["gspo", "grpo"]), ("gmpo", ["gspo", "grpo"]), ("luspo", ["grpo"])]
)
def test_a_member_is_compared_with_what_it_is_not(configure, name, names):
    config = configure(f"algorithm={name}")[0]
    assert list(counterfactual_objectives(config.algorithm, config.model.presets)) == names


def updated(load, configure, *overrides, rate="1e-2"):
    config, _ = configure(f"algorithm.learning_rate={rate}", *overrides)
    policy = load("qwen3")
    updater = Updater(policy, config)
    return updater, updater.run(samples_of(policy), np.random.default_rng(0), Clock())


def test_calibrated_widths_of_log_ratios_may_exceed_one(load, configure):
    # a large step, after which log ratios of whole tokens lie beyond -1; clipped are single tokens
    updater, report = updated(
        load, configure, "algorithm=gmpo", "algorithm.clip_calibration=quantile",
        "algorithm.clip_fraction=0.01", rate="0.3",
    )  # fmt: skip
    deviations = np.concatenate([part.deviation for part in report.sums.candidates])
    assert all((part.tokens == 1).all() for part in report.sums.candidates)
    assert np.sort(deviations)[:3].max() < -1
    left, right = updater.algorithm.clip_range
    below, above = np.sum(deviations < -left), np.sum(deviations > right)
    assert left > 1
    assert below <= 0.005 * report.tokens < below + 2
    assert above <= 0.005 * report.tokens < above + 2


def test_a_calibrated_band_of_gmpo_clips_its_share_of_the_same_tokens(configure):
    logprobs, old, advantages, mask = batch(0, rows=600, length=9)
    config = algorithm(
        "sequence", 0.4, 0.4, clip_mode=ClipMode.token_log, clip_calibration=ClipCalibration.quantile
    )
    seen = candidates(logprobs, old, advantages, mask, config)
    tokens = int(mask.sum())
    left, right = calibrated([seen], tokens, 0.1, config.clip_range, config.widest_left)
    chosen = algorithm("sequence", left, right, clip_mode=ClipMode.token_log)
    stats = computed(chosen, logprobs, old, advantages, mask)[2]
    assert stats.clipped_low / tokens == pytest.approx(0.05, abs=1e-3)
    assert stats.clipped_high / tokens == pytest.approx(0.05, abs=1e-3)


@pytest.mark.parametrize("name", ["sapo", "gmpo", "luspo"])
def test_a_member_takes_optimizer_steps_and_logs_its_clips(load, configure, name):
    _, report = updated(load, configure, f"algorithm={name}")
    metrics = update_metrics(report)
    assert metrics["grad_norm"] > 0
    assert metrics["ratio/std"] > 0
    assert (metrics["clip_ratio/token"] > 0) == (name == "luspo")
    widths = {"sapo": (None, None), "gmpo": (0.4, 0.4), "luspo": (3e-4, 4e-4)}
    assert (metrics["clip_range/left"], metrics["clip_range/right"]) == widths[name]


TERMS = {
    "algorithm=sapo": (
        "4/tau sigmoid(tau (w_t - 1)) A, tau = 1 for A > 0, 1.05 for A < 0",
        "4/tau sigmoid(tau (w_t - 1)) A, tau 1 / 1.05, sequence_mean",
    ),
    "algorithm=gmpo": (
        "exp(mean_t clip(w_t, 0.67032, 1.49182)) A",
        "exp(mean_t clip(log w_t)) A, clip range 0.4 / 0.4 in logs, sequence_mean",
    ),
    "algorithm=luspo": (
        "min(s A, clip(s, 0.9997, 1.0004) A)",
        "min(s A, clip(s) A), clip range 3e-4 / 4e-4, sequence_sum",
    ),
    "algorithm=grpo algorithm.clip_ratio_dual=3": (
        "min(w_t A, clip(w_t, 0.8, 1.27) A), at least 3 A for A < 0",
        "min(w_t A, clip(w_t) A), clip range 0.2 / 0.27, sequence_mean",
    ),
}


@pytest.mark.parametrize("overrides", TERMS)
def test_card_and_comparison_say_what_is_maximized(configure, overrides):
    config, text = configure(*overrides.split())
    on_card, compared = TERMS[overrides]
    assert formula(config.algorithm) == on_card
    told = objective(StoredRun("run", OmegaConf.to_container(OmegaConf.create(text)), [], [], [], {}))
    assert told.startswith(compared)
    assert ("at least 3 A for A < 0" in told) == ("dual" in overrides)


def test_a_soft_gate_has_no_band_whatever_the_widths(configure):
    config = configure("algorithm=grpo", "algorithm.clip_mode=soft_gate")[0]
    assert config.algorithm.clip_range_left == 0.2
    assert config.algorithm.clip_range == (None, None)
    assert config.algorithm.band == (-math.inf, math.inf)
    assert narrowest_width(config) == math.inf


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ["algorithm.tau_pos=2"],
            r"algorithm\.tau_pos=2\.0: only applies to the soft gate; use algorithm=sapo",
        ),
        (
            ["algorithm=sapo", "algorithm.tau_neg=0"],
            r"algorithm\.tau_neg=0\.0: must be above 0 .*; give 1\.05",
        ),
        (
            ["algorithm=sapo", "algorithm.clip_ratio_dual=3"],
            r"bounds the term of clip_mode=min; set algorithm",
        ),
        (["algorithm=sapo", "algorithm.clip_calibration=quantile"], r"there is no clip band to calibrate"),
        (["algorithm.clip_ratio_dual=1"], r"algorithm\.clip_ratio_dual=1\.0: .* above 1 .*; give 3, or null"),
        (
            ["algorithm=grpo", "algorithm.clip_mode=token_log"],
            r"set algorithm\.ratio_level=sequence or algorithm",
        ),
        (["algorithm=gmpo", "algorithm.clip_range_left=null"], r"clip_mode=token_log needs both widths"),
        (["algorithm=gmpo", "algorithm.credit=turn"], r"use algorithm=gspo_token or algorithm=grpo"),
        (["algorithm=luspo", "algorithm.aggregation=token_mean"], r"needs sequence_mean, or sequence_sum"),
    ],
)
def test_what_has_no_meaning_together_is_refused_in_one_sentence(configure, overrides, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        configure(*overrides)
    assert "\n" not in str(error.value)
