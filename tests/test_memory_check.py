"""What does not fit into memory is refused before weights are loaded, or made smaller."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from omegaconf import OmegaConf
from transformers import MambaConfig, T5Config

from gspo_cli.config.choices import Precision
from gspo_cli.config.compose import plain_values
from gspo_cli.errors import UserError
from gspo_cli.policy.dimensions import dimensions
from gspo_cli.policy.loading import empty_model, load_policy
from gspo_cli.run.folder import RunFolder
from gspo_cli.run.identity import changed_settings, prepare, saved_settings
from gspo_cli.training.memory_check import fitting_tokens, needed
from gspo_cli.training.memory_plan import longest_conversation
from gspo_cli.training.session import build_parts, run_training

LORA = ("model.use_lora=true", "model.lora_r=4")
SHARED = "hardware.tokens_per_microbatch=8192"


@pytest.mark.parametrize("settings", [[], LORA, [*LORA, "model.lora_experts=true"]])
@pytest.mark.parametrize("precision", list(Precision))
@pytest.mark.parametrize("name", ["qwen3", "qwen3_moe", "gpt2"])
def test_the_configuration_alone_tells_the_dimensions(folders, configure, name, precision, settings):
    if name != "qwen3_moe" and "model.lora_experts=true" in settings:
        pytest.skip("a dense model has no experts")
    config, _ = configure(f"hardware.precision={precision.value}", "model.cold_start.steps=0", *settings)
    base, autocast = str(folders[name]), precision is Precision.bf16 and not settings
    shapes = empty_model(base, config.model, precision)
    assert {p.device.type for p in shapes.parameters()} == {"meta"}
    loaded = load_policy(base, replace(config.model, name=base), config.hardware)
    assert dimensions(shapes, autocast) == dimensions(loaded.model, loaded.autocast is not None)


def test_what_cannot_be_told_is_not_checked(folders, configure):
    config, _ = configure(*LORA, "model.use_4bit=true")
    assert empty_model(str(folders["qwen3"]), config.model, Precision.fp32) is None


@pytest.fixture
def planned(load, configure):
    """A configuration and the dimensions of a model."""

    def made(*overrides):
        config, _ = configure(SHARED, *overrides)
        return config, dimensions(load("qwen3", use_lora=config.model.use_lora).model)

    return made


def test_micro_batches_shrink_until_an_update_fits(planned):
    config, model = planned("training.generations_per_iteration=512", "rollout.max_prompt_length=200")
    assert fitting_tokens(config, model, 2**40) == 8192
    found = [fitting_tokens(config, model, needed(config, model, t, 1, 2.0)) for t in (4096, 1024)]
    assert found == [4096, 1024]
    longest = longest_conversation(config, model.positions)
    assert fitting_tokens(config, model, needed(config, model, longest, 1)) == longest


@pytest.mark.parametrize(
    ("settings", "share", "fix"),
    [
        (["model.gradient_checkpointing=false"], 0.95, "use model.gradient_checkpointing=true"),
        (["model.gradient_checkpointing=true"], 0.9, "use model.use_lora=true, or a smaller model"),
        ([*LORA, "model.gradient_checkpointing=true"], 0.95, "lower rollout.max_prompt_length or"),
        ([*LORA, "model.gradient_checkpointing=true"], 0.02, "use model.use_4bit=true, or a smaller model"),
    ],
)
def test_what_cannot_fit_is_refused_with_what_helps(planned, settings, share, fix):
    config, model = planned(*settings)
    least = needed(config, model, longest_conversation(config, model.positions), 1)
    with pytest.raises(UserError, match=r"an update on one conversation of \d+ tokens takes .*" + fix):
        fitting_tokens(config, model, int(share * least))


def test_a_run_is_made_smaller_with_a_note_and_stays_so(configure, reporter, tmp_path, monkeypatch):
    config, yaml = configure(
        "training.num_outer_iterations=1", SHARED, "training.generations_per_iteration=512"
    )
    folder = RunFolder(tmp_path / "run")
    folder.create(yaml)
    monkeypatch.setattr("gspo_cli.training.session.free_bytes", lambda device: 3 * 2**20)
    build_parts(config, folder, reporter)
    saved = saved_settings(folder.path)
    tokens = saved["hardware"]["tokens_per_microbatch"]
    assert tokens == config.hardware.tokens_per_microbatch < 8192
    why = "in place of 8192, to fit the 3 MiB of memory that are free"
    note = f"hardware.tokens_per_microbatch={tokens}: {why}"
    assert note in reporter.warnings
    assert saved["hardware"]["resized"] == why
    assert changed_settings(plain_values(OmegaConf.create(yaml)), saved) == []
    prepare(folder.path, yaml)
    assert saved_settings(folder.path)["hardware"] == saved["hardware"]


def test_memory_that_is_too_small_ends_a_run_before_weights_are_read(
    configure, reporter, tmp_path, monkeypatch
):
    config, yaml = configure("training.num_outer_iterations=1")
    folder = RunFolder(tmp_path / "run")
    folder.create(yaml)
    monkeypatch.setattr("gspo_cli.training.session.free_bytes", lambda device: 1000)
    monkeypatch.setattr("gspo_cli.training.session.load_policy", lambda *_: pytest.fail("loaded"))
    with pytest.raises(UserError, match="of the machine's memory is free"):
        build_parts(config, folder, reporter)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA"), RuntimeError("DefaultCPUAllocator: no")])
def test_memory_that_runs_out_in_a_rollout_names_what_helps(
    error, configure, reporter, tmp_path, monkeypatch
):
    config, yaml = configure("training.num_outer_iterations=1", "rollout.cache_gb=3")
    folder = RunFolder(tmp_path / "run")
    folder.create(yaml)

    def fails(*_, **__):
        raise error

    monkeypatch.setattr("gspo_cli.rollout.transformers_engine.TransformersEngine.step", fails)
    said = rf"^rollout\.cache_gb=3\.0: .* resume={folder.path} rollout\.cache_gb=<less>"
    with pytest.raises(UserError, match=said):
        run_training(config, folder, reporter)

    # the noise is measured on a micro-batch of training, before any rollout
    monkeypatch.setattr("gspo_cli.training.session.noise_floor", fails)
    tokens = rf"hardware\.tokens_per_microbatch={config.hardware.tokens_per_microbatch}"
    said = rf"^{tokens}: .* resume={folder.path} hardware\.tokens_per_microbatch=<less>"
    with pytest.raises(UserError, match=said):
        run_training(config, folder, reporter)


def test_models_that_are_refused_later_are_not_checked(configure, tmp_path):
    config, _ = configure()
    for made in (T5Config(), MambaConfig()):  # no causal model, and one without attention
        made.save_pretrained(tmp_path)
        assert empty_model(str(tmp_path), config.model, Precision.fp32) is None
