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
from gspo_cli.config.formulas import (
    advantage_formula,
    formula,
    mean_formula,
    ratio_formula,
    value_formula,
)
from gspo_cli.config.old_logprobs import narrowest_width
from gspo_cli.console.words import number
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


ANSWERS = "mean over answers of the mean over their trained tokens"
GROUP = "A = (r - mean of the group) / std of the group (n - 1)"
TOKEN = "w_t = pi(y_t) / pi_old(y_t), per token"
# what is maximized, over what the mean is, ratio, advantage
TERMS = {
    "algorithm=rloo": (
        "w A",
        "mean over answers",
        "w = pi(y)/pi_old(y), per answer: the product over its tokens [arXiv 2402.14740]",
        "A = (r - mean of the group's other answers)",
    ),
    "algorithm=reinforce_pp": (
        "min(w_t A, clip(w_t, 0.8, 1.2) A)",
        ANSWERS,
        TOKEN,
        "A = (r - 0.01 KL_k1 - mean of the batch) / std of the batch (n - 1)",
    ),
    "algorithm=sapo": (
        "4/tau sigmoid(tau (w_t - 1)) A, tau = 1 for A > 0, 1.05 for A < 0",
        ANSWERS,
        TOKEN,
        GROUP,
    ),
    "algorithm=gmpo": ("exp(mean_t clip(log w_t, -0.4, 0.4)) A", ANSWERS, TOKEN, GROUP),
    "algorithm=luspo": (
        "min(s A, clip(s, 0.9997, 1.0004) A)",
        "mean over answers of the sum over their trained tokens",
        "s = exp(mean_t log pi(y_t)/pi_old(y_t)), per answer [arXiv 2507.18071 Eq. 7]",
        GROUP,
    ),
    "algorithm=cispo": (
        "sg[min(w_t, 1.27)] A log pi(y_t)",
        "mean over all trained tokens of the update",
        TOKEN,
        GROUP,
    ),
    "algorithm=grpo algorithm.clip_ratio_dual=3": (
        "min(w_t A, clip(w_t, 0.8, 1.27) A), at least 3 A for A < 0",
        ANSWERS,
        TOKEN,
        GROUP,
    ),
    "algorithm=ppo": (
        "min(w_t A, clip(w_t, 0.8, 1.2) A)",
        "mean over all trained tokens of the update",
        TOKEN,
        "A = GAE over tokens, whitened: lambda 1, discount 1; r at the conversation's end",
    ),
    "algorithm=a2c": (
        "w_t A",
        "mean over all trained tokens of the update",
        TOKEN,
        "A = GAE over tokens: lambda 1, discount 1; r at the conversation's end",
    ),
    "algorithm=dpo": (
        "log sigmoid(0.1 h), h = sum of log(p/ref), best minus worst answer",
        "mean over pairs",
        "",
        "the best and the worst of a group by r; the others are not trained",
    ),
}
VALUE = {
    "algorithm=ppo": "(V - return)^2 / 2, at least that of V within 0.2 of its old value; a head trained at "
    "0.001, 0.1 of its gradient goes into the model",
    "algorithm=a2c algorithm.value.coefficient=0": "(V - return)^2 / 2; a head trained at 0.001, none of its "
    "gradient goes into the model",
    "algorithm=dpo": "",
    "algorithm=gspo": "",
}


@pytest.mark.parametrize("given", TERMS)
def test_card_and_comparison_say_what_is_maximized(configure, given):
    config, _ = configure(*given.split())
    of = formula, mean_formula, ratio_formula, advantage_formula
    assert tuple(each(config.algorithm) for each in of) == TERMS[given]
    told = objective(stored(configure, *given.split()))
    term, mean, ratio, advantage = TERMS[given]
    value, rate = value_formula(config.algorithm), f"learning rate {number(config.algorithm.learning_rate)}"
    rest = [part for part in (ratio, advantage, value, rate) if part]
    assert told == f"{term}, {mean}; {'; '.join(rest)}"


@pytest.mark.parametrize("given", VALUE)
def test_the_loss_of_a_value_head_is_told_where_there_is_one(configure, given):
    assert value_formula(configure(*given.split())[0].algorithm) == VALUE[given]


def test_the_objective_of_an_arm_names_what_else_is_its_own(configure):
    replayed = objective(stored(configure, "algorithm=grpo_replay"))
    assert replayed.endswith("; learning rate 1e-4; routing replay")
    calibrated = objective(stored(configure, "algorithm.clip_calibration=quantile"))
    assert calibrated.endswith("; range calibrated to clip 0.15 of tokens")


@pytest.mark.parametrize(
    ("arms", "names"),
    [
        (
            ["algorithm=ppo", "algorithm=ppo algorithm.value.gae_lambda=0.95"],
            ["ppo", "ppo value.gae_lambda=0.95"],
        ),
        # that another arm has this lambda, too, is no reason to leave it out for a2c
        (
            ["algorithm=a2c algorithm.value.gae_lambda=0.95", "algorithm=a2c"],
            ["a2c", "a2c value.gae_lambda=0.95"],
        ),
        (
            ["algorithm=a2c", "algorithm=a2c algorithm.value.clip=0.2 algorithm.beta=0.1"],
            ["a2c", "a2c beta=0.1 value.clip=0.2"],
        ),
        (
            ["algorithm=dpo algorithm.preference=ipo", "algorithm=dpo", "algorithm=rloo"],
            ["dpo", "rloo", "dpo preference=ipo"],
        ),
        (
            ["algorithm=sapo algorithm.tau_neg=2", "algorithm=sapo algorithm.tau_neg=3"],
            ["sapo tau_neg=2", "sapo tau_neg=3"],
        ),
    ],
)
def test_an_arm_is_named_by_the_settings_that_are_not_its_options(configure, arms, names):
    assert list(arms_of([stored(configure, *given.split()) for given in arms], [])) == names


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
