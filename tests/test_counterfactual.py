"""Shadow objectives against numbers by hand, and what a run logs of them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from gspo_cli.algorithm.counterfactual import (
    CounterfactualStats,
    LengthStats,
    Objective,
    counterfactual_objectives,
    observe,
)
from gspo_cli.algorithm.objective import policy_loss
from gspo_cli.config.choices import ClipMode, RatioLevel
from gspo_cli.training.metrics import Clock, update_metrics
from gspo_cli.training.update import Updater
from tests.support.batches import random_batch, samples_of

GSPO = Objective(RatioLevel.sequence, ClipMode.min, (1 - 3e-4, 1 + 4e-4))
GSPO_TOKEN = replace(GSPO, level=RatioLevel.sequence_token)
GRPO = Objective(RatioLevel.token, ClipMode.min, (0.8, 1.27))
CISPO = Objective(RatioLevel.token, ClipMode.stop_gradient, (-math.inf, 1.27))


def seen(ratios, advantages, own, shadows, lengths=None, **more):
    """`observe` of token ratios (B, T), an advantage per row or per token, and each row's trained tokens at
    its end (all but the filler, where ratios are None)."""
    ratios = torch.tensor(ratios, dtype=torch.float64)
    mask = torch.ones(ratios.shape, dtype=torch.bool)
    for row, length in enumerate(lengths or []):
        mask[row, length:] = False
    advantages = torch.tensor(advantages, dtype=torch.float64)
    advantages = advantages if advantages.dim() == 2 else advantages[:, None]
    return observe(ratios.log(), torch.zeros_like(ratios), advantages, mask, own, shadows, **more)


def test_grpo_clips_a_token_where_gspo_clips_the_sequence():
    ratios = [
        [1.5, 1.0, 1.0, 1.0],  # A > 0: a token over 1.27; s = 1.5^(1/4) = 1.107, over 1.0004
        [1.0, 1.0, 0.5, 1.0],  # A < 0: a token under 0.8; s = 0.841, under 0.9997
        [1.0, 1.5, 1.0, 1.0],  # A < 0 above the band: the minimum keeps the ratio
        [9.0, 9.0, 9.0, 9.0],  # A = 0: never clipped, not compared
        [1.1, 1 / 1.1, 1.1, 9.0],  # 2 trained tokens, whose ratios cancel in s
    ]
    advantages, lengths = [1.0, -1.0, -2.0, 0.0, 1.0], [4, 4, 4, 4, 2]
    grpo = seen(ratios, advantages, GSPO, {"grpo": GRPO}, lengths).counterfactuals["grpo"]
    gspo = seen(ratios, advantages, GRPO, {"gspo": GSPO}, lengths).counterfactuals["gspo"]
    assert (grpo.clipped_tokens, grpo.clipped_sequences) == (2, 2)
    assert (gspo.clipped_tokens, gspo.clipped_sequences) == (8, 2)
    # weights: of GSPO 0, 0, 1.5^(1/4), 1; of GRPO 3/4, 3/4, 4.5/4, (1.1 + 1/1.1)/2
    x = np.array([0, 0, 1.5**0.25, 1])
    y = np.array([0.75, 0.75, 1.125, (1.1 + 1 / 1.1) / 2])
    assert grpo.compared == gspo.compared == 4
    assert (grpo.x, grpo.y, grpo.xy) == pytest.approx(
        ((x - 1).sum(), (y - 1).sum(), ((x - 1) * (y - 1)).sum()), abs=1e-12
    )
    assert grpo.correlation == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-12)
    assert gspo.correlation == pytest.approx(grpo.correlation, abs=1e-12)


def test_cispo_weighs_by_the_capped_ratio_and_clips_whatever_the_sign():
    ratios = [[2.0, 1.0], [2.0, 0.1], [1.0, 1.0]]
    found = seen(ratios, [1.0, -1.0, 1.0], CISPO, {"grpo": GRPO, "cispo": CISPO}).counterfactuals
    # CISPO: (1.27 + 1)/2, (1.27 + 0.1)/2, 1; GRPO: (0 + 1)/2, (2 + 0)/2, 1
    x, y = np.array([2.27 / 2, 1.37 / 2, 1]), np.array([0.5, 1, 1])
    assert found["grpo"].correlation == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-12)
    assert (found["cispo"].clipped_tokens, found["cispo"].clipped_sequences) == (2, 2)
    assert (found["grpo"].clipped_tokens, found["grpo"].clipped_sequences) == (2, 2)


def test_gspo_and_gspo_token_are_one_where_the_advantage_is_constant():
    random = np.random.default_rng(0)
    ratios = np.exp(random.normal(0, 3e-3, size=(32, 6))).tolist()
    advantages = random.normal(size=32)
    found = seen(ratios, advantages, GSPO, {"gspo": GSPO, "gspo_token": GSPO_TOKEN}).counterfactuals
    constant = np.repeat(advantages[:, None], 6, axis=1)
    per_token = seen(ratios, constant, GSPO_TOKEN, {"gspo_token": GSPO_TOKEN}).counterfactuals
    assert 0 < found["gspo"].clipped_sequences < 32
    assert found["gspo"] == found["gspo_token"]
    assert per_token["gspo_token"].clipped_tokens == found["gspo"].clipped_tokens
    assert per_token["gspo_token"].xy == pytest.approx(found["gspo"].xy, abs=1e-12)


def test_an_advantage_per_token_clips_part_of_a_sequence_in_gspo_token_and_all_or_nothing_in_gspo():
    ratios = [[1.1] * 4, [1.1] * 4, [1.1] * 4, [1.0] * 4]
    advantages = [
        [
            2.0,
            -1.0,
            -1.0,
            -1.0,
        ],  # the mean is below 0: GSPO keeps it at 1.1, GSPO-token clips the one above 0
        [3.0, -1.0, -1.0, 0.0],  # the mean is above 0
        [0.0, 0.0, 0.0, 7.0],  # the last token is not trained: nothing to learn
        [0.0, 1.0, 0.0, 0.0],  # one token is enough to be compared
    ]
    shadows = {"gspo": GSPO, "gspo_token": GSPO_TOKEN}
    found = seen(ratios, advantages, GRPO, shadows, [4, 4, 3, 4]).counterfactuals
    assert (found["gspo_token"].clipped_tokens, found["gspo_token"].clipped_sequences) == (2, 2)
    assert (found["gspo"].clipped_tokens, found["gspo"].clipped_sequences) == (4, 1)
    # weights - 1: GSPO 0.1, -1, 0; GSPO-token 3.3/4 - 1 twice, 0
    assert found["gspo"].compared == found["gspo_token"].compared == 3
    assert found["gspo"].y == pytest.approx(0.1 - 1, abs=1e-12)
    assert found["gspo_token"].y == pytest.approx(2 * (3.3 / 4 - 1), abs=1e-12)


OBJECTIVES = (
    "gspo", "gspo_token", "grpo", "dr_grpo", "dapo", "cispo", "rloo", "rloo_token", "sapo", "gmpo", "luspo",
)  # fmt: skip


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_own_objective_as_its_shadow_has_its_clip_shares_and_correlation_one(configure, name):
    algorithm = configure(f"algorithm={name}")[0].algorithm
    batch = random_batch(spread=1e-3 if name in ("gspo", "gspo_token", "luspo") else 0.3)
    stats = policy_loss(*batch, algorithm, 1.0)[1]
    own = Objective.of(algorithm)
    seen = observe(*batch, own, {"own": own}, median=5)
    shadow = seen.counterfactuals["own"]
    assert shadow.clipped_tokens == stats.clipped_low + stats.clipped_high
    assert shadow.clipped_sequences == stats.clipped_sequences
    assert (stats.clipped_sequences > 0) == (name not in ("rloo", "rloo_token", "sapo"))
    assert shadow.compared == 16
    assert shadow.correlation == 1.0
    halves = seen.short + seen.long
    assert (halves.clipped, halves.ratios) == (shadow.clipped_tokens, stats.ratios)
    assert halves.deviation_squares == pytest.approx(stats.deviation_squares, rel=1e-6)


def test_shadows_add_up_over_micro_batches():
    batch = random_batch()
    shadows = {"gspo": GSPO, "grpo": GRPO}
    whole = observe(*batch, CISPO, shadows, median=4)
    parts = [observe(*(t[rows] for t in batch), CISPO, shadows, median=4)
             for rows in (slice(5), slice(5, 6), slice(6, None))]  # fmt: skip
    for name in shadows:
        total = sum((part.counterfactuals[name] for part in parts), start=CounterfactualStats())
        assert vars(total) == pytest.approx(vars(whole.counterfactuals[name]), rel=1e-12, abs=1e-12)
        assert total.correlation == pytest.approx(whole.counterfactuals[name].correlation, abs=1e-12)
        assert 0 < abs(total.correlation) < 1
    for half in ("short", "long"):
        total = sum((getattr(part, half) for part in parts), start=LengthStats())
        assert vars(total) == pytest.approx(vars(getattr(whole, half)), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("spread", [0.0, 1e-4])
def test_the_correlation_of_weights_that_do_not_vary_or_are_too_few_is_not_defined(spread):
    same = [[1 + spread] * 3] * 5
    assert seen(same, [-1.0] * 5, GSPO, {"grpo": GRPO}).counterfactuals["grpo"].correlation is None
    assert seen([[1.1, 1.0, 1.0]], [-1.0], GSPO, {"grpo": GRPO}).counterfactuals["grpo"].correlation is None
    overflowed = [[math.inf, 1.0], [1.0, 1.0], [1.1, 1.0]]
    assert seen(overflowed, [-1.0] * 3, GRPO, {"grpo": GRPO}).counterfactuals["grpo"].correlation is None


def test_the_first_minibatch_counts_in_clip_shares_and_not_in_the_correlation():
    ratios, advantages = [[2.0, 1.0], [1.0, 1.0]], [1.0, 1.0]
    found = seen(ratios, advantages, GSPO, {"grpo": GRPO}, compare_weights=False).counterfactuals["grpo"]
    assert (found.clipped_tokens, found.compared, found.x, found.yy) == (1, 0, 0, 0)


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        ("algorithm=gspo", ["grpo"]),
        ("algorithm=gspo_token", ["grpo"]),
        ("algorithm=gspo_token algorithm.credit=turn", ["gspo", "grpo"]),
        ("algorithm=grpo", ["gspo"]),
        ("algorithm=grpo algorithm.credit=turn", ["gspo", "gspo_token"]),
        ("algorithm=dr_grpo", ["gspo"]),  # ratio and band of grpo
        ("algorithm=dapo", ["gspo", "grpo"]),
        ("algorithm=cispo", ["gspo", "grpo"]),
        ("algorithm=rloo", ["gspo", "grpo"]),
        ("algorithm=grpo algorithm.clip_range_left=0.1", ["gspo", "grpo"]),
        ("algorithm=gspo algorithm.clip_range_left=0.1", ["grpo"]),
    ],
)
def test_a_run_is_compared_with_what_it_is_not(configure, overrides, names):
    config = configure(*overrides.split())[0]
    assert list(counterfactual_objectives(config.algorithm, config.model.presets)) == names


def test_shadows_have_the_bands_of_the_model(configure):
    config = configure("algorithm=dapo", "model=large", "model.name=x")[0]
    found = counterfactual_objectives(config.algorithm, config.model.presets)
    assert found["gspo"].band == (1 - 2e-4, 1 + 3e-4)
    assert found["grpo"].band == (1 - 0.2, 1 + 0.27)


def test_halves_are_of_one_median_and_answers_as_long_as_it_are_short():
    ratios = [[1.5, 1.5, 1.0], [1.5, 9.0, 9.0], [1.0, 1.1, 9.0]]
    found = seen(ratios, [1.0, 1.0, 1.0], GRPO, {}, [3, 1, 2], median=2)
    # short: ratios 1.5 | 1.0, 1.1; long: 1.5, 1.5, 1.0
    assert (found.short.clipped, found.short.ratios) == (1, 3)
    assert (found.long.clipped, found.long.ratios) == (2, 3)
    assert found.short.std == pytest.approx(np.std([1.5, 1.0, 1.1]), abs=1e-12)
    assert found.long.std == pytest.approx(np.std([1.5, 1.5, 1.0]), abs=1e-12)
    of_sequences = seen(ratios, [1.0, 1.0, 1.0], GSPO, {}, [3, 1, 2], median=2)
    assert of_sequences.short.std == pytest.approx(np.std([1.5, 1.1**0.5]), abs=1e-12)
    assert (of_sequences.long.clipped, of_sequences.long.std) == (3, 0)
    assert LengthStats().std is None


def metrics_of(load, configure, *overrides, samples=samples_of):
    """Of one iteration with bands that both ratios leave now and then."""
    bands = [
        f"model.presets.{level}.clip_range_{side}={width}"
        for level in ("sequence", "token")
        for side, width in (("left", 0.002), ("right", 0.003))
    ]
    config, _ = configure("algorithm.learning_rate=1e-2", *bands, *overrides)
    policy = load("qwen3")
    report = Updater(policy, config).run(samples(policy), np.random.default_rng(0), Clock())
    return update_metrics(report)


@pytest.mark.parametrize("name", ["gspo", "grpo"])
def test_what_is_logged_does_not_depend_on_the_layout(load, configure, name):
    # with one answer in each micro-batch a median within micro-batches would call every answer short
    wide = metrics_of(load, configure, f"algorithm={name}")
    narrow = metrics_of(load, configure, f"algorithm={name}", "hardware.tokens_per_microbatch=1")
    other = "grpo" if name == "gspo" else "gspo"
    keys = [f"shadow/{other}/{what}" for what in ("clip_token", "clip_sequence", "weight_correlation")]
    keys += ["clip_ratio/short", "clip_ratio/long", "ratio/short_std", "ratio/long_std"]
    keys += ["length/short_mean", "length/long_mean"]
    for key in keys:
        assert narrow[key] == pytest.approx(wide[key], abs=1e-5)
        assert wide[key] != 0, key
    assert wide["length/short_mean"] < wide["length/long_mean"]
    assert (wide["clip_range/left"], wide["clip_range/right"]) == (0.002, 0.003)


def test_halves_count_all_trained_answers_of_each_minibatch(load, configure):
    # answers without advantage take part: the halves' shares are of the same tokens as clip_ratio/token
    def half_without(policy):
        return samples_of(policy, advantages=[0.0, 1.0] * 8)

    settings = ("algorithm=grpo", "training.minibatch_by=answer")
    metrics = metrics_of(load, configure, *settings, samples=half_without)
    config = configure(*settings)[0]
    policy = load("qwen3")
    short, long = [], []
    for minibatch in Updater(policy, config).collator.minibatches(
        half_without(policy), np.random.default_rng(0)
    ):
        assert (minibatch.sequences, minibatch.computed) != (4, 4)
    order = np.random.default_rng(0).permutation(16).reshape(4, 4)
    counts = np.array([s.trajectory.num_actions for s in half_without(policy)])
    for part in order:
        median = np.median(counts[part])
        short += [n for n in counts[part] if n <= median]
        long += [n for n in counts[part] if n > median]
    assert metrics["length/short_mean"] == pytest.approx(np.mean(short), abs=1e-12)
    assert metrics["length/long_mean"] == pytest.approx(np.mean(long), abs=1e-12)
    weighted = metrics["clip_ratio/short"] * sum(short) + metrics["clip_ratio/long"] * sum(long)
    assert weighted / sum(counts) == pytest.approx(metrics["clip_ratio/token"], abs=1e-12)
    assert metrics["clip_ratio/token"] > 0


def test_without_any_advantage_shares_are_zero_and_correlations_not_defined(load, configure):
    metrics = metrics_of(
        load, configure, "algorithm=cispo", samples=lambda policy: samples_of(policy, advantages=[0.0] * 16)
    )
    for name in ("gspo", "grpo"):
        assert metrics[f"shadow/{name}/clip_token"] == metrics[f"shadow/{name}/clip_sequence"] == 0
        assert metrics[f"shadow/{name}/weight_correlation"] is None
    assert metrics["ratio/long_std"] is None


def test_an_unbounded_side_has_no_width(load, configure):
    def widths(*overrides):
        report = Updater(load("qwen3"), configure(*overrides)[0]).run(
            samples_of(load("qwen3")), np.random.default_rng(0), Clock()
        )
        metrics = update_metrics(report)
        return metrics["clip_range/left"], metrics["clip_range/right"]

    assert widths("algorithm=cispo") == (None, 0.27)
    assert widths("algorithm=rloo") == (None, None)
