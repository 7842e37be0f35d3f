"""rollout.old_logprobs=auto: the engine's log-probabilities where nothing speaks against them; how far they
are from the trainer's."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from gspo_cli.compare.missing_runs import SharedSettings, runs_to_compare, tuning_trials
from gspo_cli.config.choices import OldLogprobs
from gspo_cli.config.compare_schema import CompareConfig, TuneConfig
from gspo_cli.config.compose import resolved_yaml
from gspo_cli.rollout.prompts import Prompts
from gspo_cli.rollout.transformers_engine import TransformersEngine
from gspo_cli.run.folder import RunFolder
from gspo_cli.run.identity import changed_settings, fingerprint, prepare, saved_settings
from gspo_cli.training.metrics import Clock, update_metrics
from gspo_cli.training.old_logprobs import choose
from gspo_cli.training.preflight import NoiseFloor
from gspo_cli.training.session import run_training
from gspo_cli.training.update import Updater
from gspo_cli.types import Message, Problem
from tests.support.batches import samples_of
from tests.support.whole_runs import ARITHMETIC

PROBLEMS = [Problem(str(n), (Message("user", f"{n}+{n}="),)) for n in (1, 7, 15)]
QUIET = NoiseFloor(0.0, 1e-7)


def chosen(policy, configure, *overrides, floor=QUIET):
    config, _ = configure(*overrides)
    engine = TransformersEngine(policy, config.rollout.batch_size)
    return choose(config, policy, engine, floor, PROBLEMS, Prompts(policy.chat))


def test_a_quiet_engine_saves_the_scoring_pass(load, configure):
    taken, why = chosen(load("qwen3"), configure)
    assert taken is OldLogprobs.engine
    assert "is below 5% of the clip width 0.0003" in why
    taken, why = chosen(load("qwen3"), configure, "algorithm.clip_mode=none", "algorithm=grpo")
    assert (taken, why.startswith("no clip band")) == (OldLogprobs.engine, True)


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["hardware.precision=bf16"], "hardware.precision=bf16"),
        (["algorithm=grpo", "algorithm.engine_correction=sequence_mask"], "algorithm.engine_correction"),
        (["algorithm.clip_calibration=quantile"], "algorithm.clip_calibration"),
        (["rollout.top_p=0.9"], "rollout.top_p or top_k"),
        (["training.updates_per_rollout=1"], "training.updates_per_rollout=1, which scores nothing"),
    ],
)
def test_what_needs_recomputed_log_probabilities_gets_them(load, configure, overrides, reason):
    assert chosen(load("qwen3"), configure, *overrides) == (OldLogprobs.recompute, f"because of {reason}")


def test_routers_and_noise_need_them_too(load, configure):
    assert chosen(load("qwen3_moe"), configure) == (OldLogprobs.recompute, "because of the model's routers")
    noisy = NoiseFloor(0.0, 1e-7, packed=2e-5)
    taken, why = chosen(load("qwen3"), configure, floor=noisy)
    assert (taken, "is over 5% of the clip width" in why) == (OldLogprobs.recompute, True)
    narrow = chosen(load("qwen3"), configure, "rollout.old_logprobs_band=1e-8")
    assert (narrow[0], "clip width 1e-08" in narrow[1]) == (OldLogprobs.recompute, True)


def test_a_run_saves_what_auto_came_to_and_resumes_with_it(configure, reporter, tmp_path):
    config, yaml = configure("training.num_outer_iterations=1")
    folder = RunFolder(tmp_path / "run")
    folder.create(yaml)
    composed = OmegaConf.to_container(OmegaConf.create(yaml))
    run_training(config, folder, reporter)
    saved = saved_settings(folder.path)
    assert saved["rollout"]["old_logprobs"] == "engine"
    card = (folder.path / "card.txt").read_text()
    assert f"rollout.old_logprobs=engine: {saved['rollout']['old_logprobs_chosen']}" in card
    # the same run for a comparison, which composes it with auto
    assert composed["rollout"]["old_logprobs"] == "auto"
    assert fingerprint(composed) == fingerprint(saved)
    assert changed_settings(composed, saved) == []
    (folder.path / "summary.json").unlink()  # as if it were killed
    prepare(folder.path, yaml)
    assert saved_settings(folder.path) == saved


@pytest.mark.long
def test_runs_that_are_compared_share_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def rollouts(*entries):
        settings = replace(CompareConfig(), algorithms=list(entries), seeds=[0])
        return [run.config.rollout for run in runs_to_compare(SharedSettings(ARITHMETIC), settings)]

    one, other = rollouts("gspo", "grpo")
    assert one.old_logprobs is other.old_logprobs is OldLogprobs.auto
    assert one.old_logprobs_band == other.old_logprobs_band == 3e-4
    one, other = rollouts("gspo", "grpo algorithm.clip_calibration=quantile")
    assert one.old_logprobs is other.old_logprobs is OldLogprobs.recompute
    assert "algorithm.clip_calibration" in one.old_logprobs_chosen


@pytest.mark.long
def test_a_run_that_decides_otherwise_in_another_comparison_has_another_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def folders(*entries):
        settings = replace(CompareConfig(), algorithms=list(entries), seeds=[0])
        return [run.folder.name for run in runs_to_compare(SharedSettings(ARITHMETIC), settings)]

    with_gspo, with_token = folders("grpo", "gspo"), folders("grpo", "gspo_token")
    assert with_gspo[0] == with_token[0], "both take the narrow band of the sequence ratio"
    alone = folders("grpo", "grpo algorithm.learning_rate=1e-3")[0]
    assert len({alone, with_gspo[0], folders("grpo", "gspo algorithm.clip_calibration=quantile")[0]}) == 3


def test_trials_of_one_algorithm_share_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = replace(CompareConfig(), tune=TuneConfig(trials=5))
    trials = tuning_trials(SharedSettings(ARITHMETIC), settings, "gspo")
    widths = {run.config.algorithm.clip_range_left for run in trials}
    assert len(widths) > 1
    assert {run.config.rollout.old_logprobs_band for run in trials} == {min(widths)}


def test_a_saved_configuration_reloads(configure):
    config, yaml = configure()
    assert config.rollout.old_logprobs is OldLogprobs.auto
    assert resolved_yaml(OmegaConf.create(yaml)) == yaml


def test_a_run_that_was_begun_with_recomputed_ones_goes_on_with_them(configure, tmp_path):
    _, given = configure("rollout.old_logprobs=recompute")
    _, automatic = configure()
    folder = tmp_path / "run"
    prepare(folder, given)
    prepare(folder, automatic)  # as gspo-compare does with runs from before there was a choice
    assert saved_settings(folder)["rollout"]["old_logprobs"] == "recompute"


def test_the_difference_to_the_sampler_is_measured_on_trained_tokens(load, configure):
    config, _ = configure("algorithm=gspo", "training.updates_per_rollout=1")
    policy = load("qwen3")
    samples = samples_of(policy, count=4)
    # a sampler that is off by 0.25 on every trained token, to either side, and by anything elsewhere
    for place, sample in enumerate(samples):
        trajectory, off = sample.trajectory, 0.25 if place % 2 else -0.25
        ids, mask = torch.tensor([trajectory.token_ids]), torch.tensor([trajectory.action_mask])
        with torch.no_grad():
            logprobs = policy(ids, mask, 1.0)[0][0]
        trajectory.sampling_logprobs = torch.where(mask[0], logprobs + off, 9.0).tolist()
    report = Updater(policy, config).run(samples, np.random.default_rng(0), Clock())
    metrics = update_metrics(report)
    assert metrics["sampling/logp_difference/mean"] == pytest.approx(0.25, abs=1e-5)
    assert metrics["sampling/logp_difference/max"] == pytest.approx(0.25, abs=1e-5)


@pytest.mark.parametrize("off", [-0.25, 0.25])
def test_the_noise_of_the_first_step_is_measured_to_either_side(load, configure, off):
    config, _ = configure("algorithm=gspo", "rollout.old_logprobs=engine")
    policy = load("qwen3")
    samples = samples_of(policy)
    for sample in samples:
        trajectory = sample.trajectory
        ids, mask = torch.tensor([trajectory.token_ids]), torch.tensor([trajectory.action_mask])
        with torch.no_grad():
            trajectory.sampling_logprobs = (policy(ids, mask, 1.0)[0][0] + off).tolist()
    report = Updater(policy, config).run(samples, np.random.default_rng(0), Clock())
    assert report.sums.first_step_abs_err == pytest.approx(abs(math.expm1(-off)), abs=1e-5)
