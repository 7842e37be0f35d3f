"""What stands beside the objectives of the family: counterfactuals, calibration, card, comparison."""

from __future__ import annotations

import math

import numpy as np
import pytest
from omegaconf import OmegaConf

from gspo_cli.algorithm.calibration import calibrated, candidates
from gspo_cli.algorithm.counterfactual import Objective, counterfactual_objectives, observe
from gspo_cli.compare.arms import arms_of, objective, overrides
from gspo_cli.compare.runs import StoredRun
from gspo_cli.config.choices import (
    ClipCalibration,
    ClipMode,
    RatioLevel,
)
from gspo_cli.config.old_logprobs import narrowest_width
from gspo_cli.training.card import formula
from gspo_cli.training.metrics import Clock, update_metrics
from gspo_cli.training.update import Updater
from tests.support.batches import samples_of
from tests.support.configs import assert_refused
from tests.support.objectives import algorithm, batch, computed
from tests.test_family import CASES, MEMBERS


def weight_of_gradient(config, given):
    """The mean over an answer's tokens of the factor of A / |y| in the gradient, by row."""
    logprobs, old, advantages, mask = given
    gradient = computed(config, logprobs, old, advantages, mask)[1]
    weight = -gradient.sum(dim=1) * len(mask) / advantages[:, 0]
    # the whole answer is not divided by its length
    return weight / mask.sum(dim=1) if config.ratio_level is RatioLevel.sequence_product else weight


@pytest.mark.parametrize("name", ["sapo", "gmpo", "dual clip", "rloo", "rloo clipped"])
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
    ("name", "names"),
    [("sapo", ["gspo", "grpo"]), ("gmpo", ["gspo", "grpo"]), ("luspo", ["grpo"]), ("rloo", ["gspo", "grpo"])],
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


@pytest.mark.parametrize("name", ["rloo", "rloo_token", "reinforce_pp"])
def test_a_reinforce_takes_optimizer_steps(load, configure, name):
    _, report = updated(load, configure, f"algorithm={name}", "algorithm.beta=0")
    metrics = update_metrics(report)
    assert metrics["grad_norm"] > 0
    assert metrics["clip_ratio/token"] == 0 or name == "reinforce_pp"


def test_the_calibrated_band_of_whole_answers_is_of_the_product(configure):
    logprobs, old, advantages, mask = batch(0, rows=600, length=9)
    config = algorithm("sequence_product", 0.4, 0.4, clip_calibration=ClipCalibration.quantile)
    seen = candidates(logprobs, old, advantages, mask, config)
    left, right = calibrated([seen], int(mask.sum()), 0.1, config.clip_range, config.widest_left)
    stats = computed(algorithm("sequence_product", left, right), logprobs, old, advantages, mask)[2]
    assert stats.clipped_low / stats.tokens == pytest.approx(0.05, abs=2e-3)
    assert stats.clipped_high / stats.tokens == pytest.approx(0.05, abs=2e-3)


def stored(configure, *settings):
    text = configure(*settings)[1]
    return StoredRun("run", OmegaConf.to_container(OmegaConf.create(text)), [], [], [], {})


def test_a_run_of_the_former_rloo_is_compared_under_its_present_name(configure):
    former = stored(configure, "algorithm=rloo_token", "algorithm.name=rloo")
    token, published = stored(configure, "algorithm=rloo_token"), stored(configure, "algorithm=rloo")
    assert list(arms_of([former, published], [])) == ["rloo", "rloo_token"]
    assert list(arms_of([former, stored(configure)], [])) == ["gspo", "rloo_token"]
    assert former.arm_key == token.arm_key  # one arm with runs of today
    assert "algorithm=rloo_token" in overrides(former)
    assert former.config["algorithm"]["name"] == "rloo"  # as it was saved


TERMS = {
    "algorithm=rloo": ("w A", "w A, no clipping, sequence_mean"),
    "algorithm=reinforce_pp": (
        "min(w_t A, clip(w_t, 0.8, 1.2) A)",
        "min(w_t A, clip(w_t) A), clip range 0.2 / 0.2, sequence_mean",
    ),
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


@pytest.mark.parametrize("given", TERMS)
def test_card_and_comparison_say_what_is_maximized(configure, given):
    config, _ = configure(*given.split())
    on_card, compared = TERMS[given]
    assert formula(config.algorithm) == on_card
    told = objective(stored(configure, *given.split()))
    assert told.startswith(compared)
    assert ("at least 3 A for A < 0" in told) == ("dual" in given)


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
        (
            ["algorithm=rloo", "algorithm.aggregation=sequence_sum"],
            r"use algorithm\.aggregation=sequence_mean",
        ),
        (["algorithm=rloo", "algorithm.credit=turn"], r"use algorithm=gspo_token or algorithm=grpo"),
        (["algorithm=reinforce_pp", "algorithm.credit=turn"], r"use algorithm\.credit=trajectory, or"),
        (
            ["algorithm=reinforce_pp", "algorithm.dynamic_sampling=true"],
            r"use algorithm\.dynamic_sampling=fa",
        ),
        (
            ["algorithm=reinforce_pp", "algorithm.advantage_scale=group_std"],
            r"use algorithm\.advantage_scale=b",
        ),
        (["algorithm=luspo", "algorithm.aggregation=token_mean"], r"needs sequence_mean or sequence_sum"),
    ],
)
def test_what_has_no_meaning_together_is_refused_in_one_sentence(configure, overrides, sentence):
    assert_refused(configure, overrides, sentence)
