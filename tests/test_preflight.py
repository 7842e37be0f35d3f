"""The noise floor: none between scoring and update, some between layouts, a warning where it is too much."""

from __future__ import annotations

import math

import pytest
from torch import nn

from gspo_cli.config.choices import Precision
from gspo_cli.config.schema import HardwareConfig
from gspo_cli.rollout.prompts import Prompts
from gspo_cli.run.folder import RunFolder
from gspo_cli.training.preflight import NoiseFloor, noise_floor, noise_limit, noise_text, noise_warnings
from gspo_cli.training.session import run_training
from gspo_cli.training.strategy import OneProcess
from gspo_cli.types import Message, Problem
from tests.support.models import untouched

PROBLEMS = [Problem(str(n), (Message("user", f"{n}+{n * n * n}="),)) for n in (1, 7, 15, 120, 9999)]
BF16 = HardwareConfig(precision=Precision.bf16)


@pytest.fixture
def measured(configure):
    """`measured(policy, "key=value")`: its noise floor, and the configuration."""

    def measure(policy, *overrides):
        config, _ = configure(*overrides)
        return noise_floor(config, policy, OneProcess(policy, config), PROBLEMS, Prompts(policy.chat)), config

    return measure


@pytest.mark.parametrize("settings", [{}, {"use_lora": True}, {"use_lora": True, "use_4bit": True}])
@pytest.mark.parametrize("name", ["qwen3", "qwen3_moe", "gpt2"])
def test_scoring_and_update_agree_to_the_bit(load, measured, name, settings):
    floor, _ = measured(load(name, **settings))
    assert floor.same == 0
    assert floor.layouts < 1e-5


@pytest.mark.parametrize("settings", [{}, {"use_lora": True}, {"use_lora": True, "use_4bit": True}])
def test_layouts_differ_in_bf16_by_more_than_in_fp32(load, measured, settings):
    floor, _ = measured(load("qwen3", BF16, **settings))
    assert floor.same == 0
    assert 1e-5 < floor.layouts < 0.1


def test_dropout_that_is_live_in_updates_is_found(load, measured):
    policy = load("gpt2")
    for module in policy.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.1
    floor, config = measured(policy)
    assert floor.same > noise_limit(config)
    (warning,) = noise_warnings(config, floor)
    assert "over a third of the clip width 3.0e-04" in warning
    assert "hardware.precision=fp32 or a wider algorithm.clip_range" in warning


def test_measuring_changes_nothing(load, measured):
    policy = load("qwen3")
    with untouched(policy):
        assert measured(policy)[0] == measured(policy)[0]


def test_a_micro_batch_for_one_row_is_measured_with_padding(load, measured):
    floor, _ = measured(load("qwen3", BF16), "hardware.tokens_per_microbatch=4")
    assert floor.same == 0
    assert math.isfinite(floor.layouts)


def test_noise_between_layouts_matters_where_the_engine_s_log_probs_are_old_ones(configure):
    noisy = NoiseFloor(same=0.0, layouts=2e-4)
    config, _ = configure()
    assert noise_warnings(config, noisy) == []
    config, _ = configure("rollout.old_logprobs=engine")
    (warning,) = noise_warnings(config, noisy)
    assert warning.startswith("rollout.old_logprobs=engine: ")
    assert "use rollout.old_logprobs=recompute" in warning
    assert noise_warnings(config, NoiseFloor(0.0, 0.9e-4)) == []


def test_noise_that_is_no_number_warns(configure):
    config, _ = configure()
    assert len(noise_warnings(config, NoiseFloor(math.nan, 0.0))) == 1


def test_the_limit_is_a_third_of_the_narrower_side(configure):
    config, _ = configure("algorithm.clip_range_left=6e-4", "algorithm.clip_range_right=9e-4")
    assert noise_limit(config) == pytest.approx(2e-4, rel=1e-12)
    assert noise_text(NoiseFloor(0.0, 3.2e-7), noise_limit(config)) == (
        "same layout 0, other layouts 3e-07; band 0.0006 (limit 0.0002)"
    )
    config, _ = configure("algorithm=grpo", "algorithm.clip_mode=none")
    assert noise_text(NoiseFloor(0.0, 1.0), noise_limit(config)).endswith("; no clip band")
    assert noise_warnings(config, NoiseFloor(1.0, 1.0)) == []


def test_a_run_shows_its_noise_floor_on_the_card(configure, reporter, tmp_path):
    config, yaml = configure("training.num_outer_iterations=1")
    folder = RunFolder(tmp_path / "run")
    folder.create(yaml)
    run_training(config, folder, reporter)
    lines = (tmp_path / "run" / "card.txt").read_text().splitlines()
    (line,) = [line for line in lines if line.strip().startswith("noise")]
    assert line.split()[1:4] == ["same", "layout", "0,"]
    assert not [warning for warning in reporter.warnings if "noise" in warning]
    card = folder.read_card()
    assert card["noise"]["same"] == 0
    assert card["noise_limit"] == noise_limit(config)
    assert card["sizes"]["answers"] == config.training.generations_per_iteration
    assert card["memory"]["phases"]["update"]["weights"] > 0
