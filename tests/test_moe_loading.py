"""Mixture-of-Experts models: LoRA on fused experts, frozen routers, the ways of computing experts."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import PeftModel

from gspo_cli.config.choices import ExpertsImplementation, Precision
from gspo_cli.config.model_schema import ModelConfig
from gspo_cli.config.schema import HardwareConfig
from gspo_cli.errors import UserError
from gspo_cli.policy.loading import expert_parameters, load_policy
from gspo_cli.policy.weights import merged
from gspo_cli.run.folder import RunFolder
from gspo_cli.training.session import run_training

MATRICES = ["down_proj", "gate_up_proj"]


def spoken(policy):
    """Three random rows of 24 tokens, all but the first two trained. -> token_ids, action_mask (B, T)"""
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(policy.causal_model.config.vocab_size, (3, 24), generator=random)
    mask = torch.ones(ids.shape, dtype=torch.bool)
    mask[:, :2] = False
    return ids, mask


def stirred(policy):
    """`policy` with trained weights moved at random, and the same for every policy of a shape."""
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.trainable():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=random))
    return policy


def scored(policy):
    with torch.no_grad():
        return policy(*spoken(policy), 1.0)[0]


def opened(folder, adapter=None, **settings):
    model = ModelConfig(**({"label": "x", "name": str(folder), "gradient_checkpointing": False} | settings))
    return load_policy(str(folder), model, HardwareConfig(), adapter)


def test_the_fused_experts_of_every_layer_are_found(load):
    names = [f"model.layers.{layer}.mlp.experts.{name}" for layer in (0, 1) for name in MATRICES]
    assert sorted(expert_parameters(load("qwen3_moe").causal_model)) == names
    assert expert_parameters(load("qwen3").causal_model) == expert_parameters(load("gpt2").causal_model) == []


@pytest.mark.parametrize("targets", [None, ["all-linear"], ["q_proj"]])
def test_lora_experts_adapts_each_expert_beside_the_named_layers(load, targets):
    without = load("qwen3_moe", use_lora=True, lora_r=4, lora_target_modules=targets)
    policy = load("qwen3_moe", use_lora=True, lora_r=4, lora_target_modules=targets, lora_experts=True)
    # r x (inputs + outputs) for each of 4 experts: 32 -> 2 x 48 and 48 -> 32, in 2 layers
    expected = 2 * 4 * 4 * ((32 + 96) + (48 + 32))
    count = [sum(parameter.numel() for parameter in p.trainable()) for p in (without, policy)]
    assert count[1] - count[0] == expected
    assert {parameter.dtype for parameter in policy.trainable()} == {torch.float32}
    trained = [name for name, p in policy.model.named_parameters() if p.requires_grad]
    assert all("lora_" in name and ".gate." not in name and "lm_head" not in name for name in trained)


@pytest.mark.parametrize("bits", [{}, {"use_8bit": True}])
@pytest.mark.parametrize("precision", list(Precision))
@pytest.mark.parametrize("checkpointing", [False, True])
def test_expert_adapters_learn_and_score_without_noise(load, checkpointing, precision, bits):
    settings = {"use_lora": True, "lora_experts": True, "gradient_checkpointing": checkpointing} | bits
    policy = stirred(load("qwen3_moe", HardwareConfig(precision=precision), **settings))
    before = scored(policy)
    with policy.updating():
        updated = policy(*spoken(policy), 1.0)[0]
        updated.sum().backward()
    assert torch.equal(before, updated.detach())
    assert all(p.dtype is torch.float32 and p.grad.abs().sum() > 0 for p in policy.trainable())


def test_the_gradient_of_an_expert_adapter_is_that_of_its_product(load):
    policy, whole = (
        load("qwen3_moe", use_lora=True, lora_experts=True, lora_alpha=8, lora_r=4),
        load("qwen3_moe"),
    )
    stirred(policy)
    with torch.no_grad():
        plain = merged(copy.deepcopy(policy.model)).state_dict()
        whole.causal_model.load_state_dict(plain)
    gradients = []
    for model in (policy, whole):
        with model.updating():
            model(*spoken(model), 1.0)[0].sum().backward()
    for name, parameter in whole.causal_model.named_parameters():
        if name.endswith("experts.down_proj"):
            gradients.append(parameter.grad)  # (experts, 32, 48): dL/dW of W + 2 B A
    layers = policy.causal_model.model.layers
    for layer, gradient in zip(layers, gradients, strict=True):
        wrappers = [m for m in layer.modules() if getattr(m, "parameter_name", None) == "down_proj"]
        lora_a, lora_b = wrappers[0].lora_A["default"].weight, wrappers[0].lora_B["default"].weight
        split_b = lora_b.reshape(32, 4, 4).permute(2, 0, 1)  # outputs, r, experts -> experts, outputs, r
        expected = 2 * split_b.transpose(1, 2) @ gradient  # experts, r, inputs
        torch.testing.assert_close(lora_a.grad.reshape(4, 4, 48), expected, rtol=1e-4, atol=1e-5)


def test_expert_adapters_switch_off_to_the_base_model_to_the_bit(load):
    policy, base = stirred(load("qwen3_moe", use_lora=True, lora_experts=True)), load("qwen3_moe")
    off = policy(*spoken(policy), 1.0, reference=True)[0]
    assert torch.equal(off, scored(base))
    assert (scored(policy) - off).abs().max() > 1e-2


def test_expert_adapters_load_back_to_the_bit(load, folders, tmp_path):
    policy = stirred(load("qwen3_moe", use_lora=True, lora_experts=True))
    policy.save(tmp_path)
    assert torch.equal(scored(opened(folders["qwen3_moe"], tmp_path, lora_experts=True)), scored(policy))
    fresh = load("qwen3_moe", use_lora=True, lora_experts=True)
    fresh.load_weights(tmp_path)
    assert torch.equal(scored(fresh), scored(policy))


def test_expert_adapters_are_not_loaded_onto_experts_in_four_bits(load, folders, tmp_path):
    load("qwen3_moe", use_lora=True, lora_experts=True).save(tmp_path)
    with pytest.raises(UserError, match=r"^model.use_4bit=true: the adapter in .* adapts experts"):
        opened(folders["qwen3_moe"], tmp_path, use_4bit=True)


def test_expert_adapters_merge(load):
    policy = stirred(load("qwen3_moe", use_lora=True, lora_experts=True))
    ours = scored(policy)
    policy.model = merged(policy.model)
    assert not isinstance(policy.model, PeftModel)
    torch.testing.assert_close(scored(policy), ours, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["qwen3", "gpt2"])
@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"lora_experts": True}, r"^model.lora_experts=true: \w+ has no fused experts; set"),
        (
            {"experts_implementation": ExpertsImplementation.eager},
            "^model.experts_implementation=eager: .* does not offer a choice of expert",
        ),
        (
            {"experts_implementation": ExpertsImplementation.grouped_mm},
            "^model.experts_implementation=grouped",
        ),
    ],
)
def test_settings_of_experts_need_experts(load, name, settings, sentence):
    with pytest.raises(UserError, match=sentence):
        load(name, use_lora=True, **settings)


@pytest.mark.parametrize("targets", [["gate"], ["q_proj", "gate"], ["mlp.gate"]])
def test_a_router_is_not_adapted(load, targets):
    with pytest.raises(UserError, match=r"^model\.lora_target_modules: names a router"):
        load("qwen3_moe", use_lora=True, lora_target_modules=targets)


@pytest.mark.parametrize("use_lora", [True, False])
def test_all_ways_of_computing_experts_agree(load, use_lora):
    results = {}
    for way in ExpertsImplementation:
        settings = {"use_lora": use_lora, "lora_experts": use_lora, "experts_implementation": way}
        policy = stirred(load("qwen3_moe", **settings))
        assert policy.causal_model.get_experts_implementation()[""] == way.value
        with policy.updating():
            logprobs = policy(*spoken(policy), 1.0)[0]
            (logprobs.sum() / logprobs.numel()).backward()
        results[way] = [logprobs.detach(), *(parameter.grad for parameter in policy.trainable())]
    first = results[ExpertsImplementation.eager]
    for way in (ExpertsImplementation.grouped_mm, ExpertsImplementation.batched_mm):
        for one, other in zip(first, results[way], strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_null_leaves_the_librarys_way(load):
    assert load("qwen3_moe").causal_model.get_experts_implementation()[""] == "grouped_mm"


@pytest.mark.long
@pytest.mark.parametrize(
    "settings",
    [["model.lora_experts=true"], ["model.use_4bit=true"], ["model.experts_implementation=eager"]],
)
def test_a_run_of_an_embedded_mixture_trains(configure, reporter, tmp_path, settings):
    config, text = configure(
        "model=tiny_moe",
        "model.shape.experts=4",
        "model.use_lora=true",
        "model.freeze_router=true",
        "hardware.threads=1",
        "algorithm.learning_rate=1e-2",
        "reward=tests.support.whole_runs.EvenReward",
        *settings,
    )
    folder = RunFolder(tmp_path / "run")
    folder.create(text)
    assert run_training(config, folder, reporter)["status"] == "completed"
    first, second = folder.read("metrics.jsonl")
    assert first["grad_norm"] > 0
    assert first["ratio/first_step_abs_err"] == second["ratio/first_step_abs_err"] == 0
