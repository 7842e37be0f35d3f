"""Frozen weights in 4 and 8 bits: equal scores in every mode, exact gradients, bounded error, whole runs."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from gspo_cli.config.choices import Optimizer, Precision, QuantType
from gspo_cli.config.model_schema import ModelConfig
from gspo_cli.config.schema import HardwareConfig
from gspo_cli.errors import UserError
from gspo_cli.policy.loading import load_policy
from gspo_cli.policy.optimizers import make_optimizer
from gspo_cli.policy.weights import merged
from gspo_cli.rewards.base import RewardFunction
from gspo_cli.run.folder import RunFolder
from gspo_cli.training.session import evaluate_only, run_training
from gspo_cli.types import RewardResult
from tests.support.batches import ragged

NAMES = ["qwen3", "qwen3_moe", "gpt2"]
BITS = ["use_4bit", "use_8bit"]
LENGTHS = (30, 12, 22)


def opened(folder, adapter=None, **settings):
    """The LoRA policy at `folder`, with the adapter saved in `adapter`."""
    model = ModelConfig(**({"label": "x", "name": str(folder), "gradient_checkpointing": False} | settings))
    return load_policy(str(folder), model, HardwareConfig(), adapter)


def stirred(policy, size=0.05):
    """`policy` with an adapter that is not zero, the same for every policy of a shape."""
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.trainable():
            parameter.add_(size * torch.randn(parameter.shape, generator=random))
    return policy


@pytest.mark.parametrize(
    ("name", "bits", "precision", "checkpointing"),
    [  # every pair of settings once
        ("qwen3", "use_4bit", Precision.fp32, False),
        ("qwen3", "use_8bit", Precision.bf16, True),
        ("qwen3_moe", "use_4bit", Precision.bf16, True),
        ("qwen3_moe", "use_8bit", Precision.fp32, False),
        ("gpt2", "use_4bit", Precision.fp32, True),
        ("gpt2", "use_8bit", Precision.bf16, False),
    ],
)
def test_scores_with_and_without_gradient_are_equal_to_the_bit(load, name, bits, precision, checkpointing):
    # left alone, bitsandbytes on a CPU scores in eval mode otherwise than in train mode, by up to 1e-2
    settings = {"use_lora": True, "gradient_checkpointing": checkpointing, bits: True}
    policy = stirred(load(name, HardwareConfig(precision=precision), **settings))
    ids, mask = ragged(policy, LENGTHS)
    with torch.no_grad():
        before = policy(ids, mask, 1.0)[0]
    with policy.updating():
        updated = policy(ids, mask, 1.0)[0]
        updated.sum().backward()
    assert torch.equal(before, updated.detach())
    assert all(parameter.grad.abs().sum() > 0 for parameter in policy.trainable())


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("name", ["qwen3", "qwen3_moe"])
def test_logprobs_and_gradients_are_those_of_the_restored_weights(load, name, bits, double):
    quantized = load(name, use_lora=True, bnb_4bit_use_double_quant=double, **{bits: True})
    whole = load(name, use_lora=True)
    restore(quantized.model, whole.model)
    ids, mask = ragged(quantized, LENGTHS)
    results = []
    for policy in (stirred(quantized), stirred(whole)):
        with torch.no_grad():
            policy(ids, mask, 1.0)  # scoring first must not take the gradient away
        with policy.updating():
            logprobs = policy(ids, mask, 1.0)[0]
            logprobs.sum().backward()
        results.append((logprobs.detach(), [parameter.grad for parameter in policy.trainable()]))
    (ours, our_grads), (theirs, their_grads) = results
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)
    for mine, other in zip(our_grads, their_grads, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


def restore(quantized, whole):
    """Write what the weights of `quantized` stand for into `whole`, module by module."""
    changed = 0
    for path, module in quantized.named_modules():
        if isinstance(module, Linear4bit):
            value = dequantize_4bit(module.weight.data, module.weight.quant_state)
        elif isinstance(module, Linear8bitLt):
            scale = module.state.SCB if module.weight.SCB is None else module.weight.SCB
            value = module.weight.data.float() * scale[:, None] / 127
        elif torch.nn.utils.parametrize.is_parametrized(module):
            for name in module.parametrizations:
                whole.get_submodule(path).get_parameter(name).data.copy_(getattr(module, name))
            continue
        else:
            continue
        whole.get_submodule(path).weight.data.copy_(value)
        changed += 1
    assert changed >= 8


@pytest.mark.parametrize(
    ("settings", "least", "most"),
    # largest difference of a log-probability measured over NAMES and both precisions: nf4 0.036 to 0.065,
    # fp4 0.036 to 0.079, int8 0.0009 to 0.0025
    [
        ({"use_4bit": True}, 5e-3, 0.15),
        ({"use_4bit": True, "bnb_4bit_quant_type": QuantType.fp4}, 5e-3, 0.2),
        ({"use_8bit": True}, 1e-4, 5e-3),
    ],
)
@pytest.mark.parametrize("precision", list(Precision))
@pytest.mark.parametrize("name", NAMES)
def test_quantising_moves_logprobs_by_little_but_not_by_nothing(load, name, precision, settings, least, most):
    hardware = HardwareConfig(precision=precision)
    policy, whole = load(name, hardware, use_lora=True, **settings), load(name, hardware, use_lora=True)
    ids, mask = ragged(policy, LENGTHS)
    with torch.no_grad():
        difference = (policy(ids, mask, 1.0)[0] - whole(ids, mask, 1.0)[0]).abs().max().item()
    assert least < difference < most


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("name", NAMES)
def test_only_the_fp32_adapter_is_trained_and_the_output_layer_is_whole(load, name, bits):
    policy = load(name, HardwareConfig(precision=Precision.bf16), use_lora=True, **{bits: True})
    trained = {key: p for key, p in policy.model.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in key and p.dtype is torch.float32 for key, p in trained.items())
    stored = torch.uint8 if bits == "use_4bit" else torch.int8
    kept = {key for key, p in policy.model.named_parameters() if p.dtype is not stored and key not in trained}
    expected = ("embed", "norm", "lm_head", ".ln_", "wte", "wpe", ".gate.", "bias")
    experts = () if bits == "use_4bit" else (".experts.",)
    assert not [key for key in kept if not any(part in key for part in expected + experts)]
    assert type(policy.causal_model.get_output_embeddings()) is torch.nn.Linear


@pytest.mark.parametrize(("bits", "share"), [("use_4bit", 1 / 8), ("use_8bit", 1 / 4)])
@pytest.mark.parametrize("name", ["qwen3", "gpt2"])
def test_quantized_matrices_take_their_bits_of_memory(load, name, bits, share):
    def size(policy):
        frozen = {key: p for key, p in policy.model.named_parameters() if not p.requires_grad}
        layers = [p for key, p in frozen.items() if key.endswith("base_layer.weight")]
        return sum(p.numel() * p.element_size() for p in layers)

    whole = size(load(name, use_lora=True))
    assert size(load(name, use_lora=True, **{bits: True})) == share * whole > 0


def test_four_bits_hold_the_experts_too_and_eight_do_not(load):
    four, eight = (load("qwen3_moe", use_lora=True, **{bits: True}) for bits in BITS)
    found = {
        policy: {p.dtype for key, p in policy.model.named_parameters() if ".experts." in key}
        for policy in (four, eight)
    }
    assert found == {four: {torch.uint8}, eight: {torch.float32}}


def test_experts_are_not_kept_restored_after_an_update(load):
    # bitsandbytes counts users of a global cache; recomputation under checkpointing must give each back
    policy = stirred(load("qwen3_moe", use_lora=True, gradient_checkpointing=True, use_4bit=True))
    ids, mask = ragged(policy, LENGTHS)
    with policy.updating():
        policy(ids, mask, 1.0)[0].sum().backward()
    assert torch.nn.utils.parametrize._cache_enabled == 0
    assert torch.nn.utils.parametrize._cache == {}


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("name", NAMES)
def test_training_the_adapter_lowers_a_supervised_loss(load, name, bits):
    policy = load(name, use_lora=True, **{bits: True})
    ids, mask = ragged(policy, LENGTHS)
    optimizer = torch.optim.AdamW(policy.trainable(), lr=1e-2)
    losses = []
    for _ in range(8):
        with policy.updating():
            loss = -policy(ids, mask, 1.0)[0].sum() / mask.sum()
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize("bits", BITS)
def test_a_saved_adapter_loads_onto_the_quantized_model_and_is_all_that_is_saved(
    load, folders, bits, tmp_path
):
    policy = stirred(load("qwen3_moe", use_lora=True, **{bits: True}))
    policy.save(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert all("lora_" in key and value.dtype is torch.float32 for key, value in saved.items())
    assert not list(tmp_path.glob("model*"))
    ids, mask = ragged(policy, LENGTHS)
    again, fresh = (opened(folders["qwen3_moe"], saved, **{bits: True}) for saved in (tmp_path, None))
    with torch.no_grad():
        assert torch.equal(again(ids, mask, 1.0)[0], policy(ids, mask, 1.0)[0])
        assert torch.equal(
            policy(ids, mask, 1.0, reference=True)[0], fresh(ids, mask, 1.0)[0]
        )  # switched off, the adapter is gone to the bit
        fresh.load_weights(tmp_path)
        assert torch.equal(fresh(ids, mask, 1.0)[0], policy(ids, mask, 1.0)[0])


@pytest.mark.parametrize("bits", BITS)
def test_nothing_is_merged_into_quantized_weights(load, bits):
    with pytest.raises(UserError, match="an adapter cannot be merged into quantized weights"):
        merged(load("qwen3_moe", use_lora=True, **{bits: True}).model)


def test_weights_that_are_stored_quantized_load_as_what_they_are(folders, load, tmp_path):
    stored = AutoModelForCausalLM.from_pretrained(
        folders["qwen3"],
        quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
        dtype=torch.float32,
        device_map={"": "cpu"},
    )
    stored.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(folders["qwen3"]).save_pretrained(tmp_path)
    policy = opened(tmp_path, use_4bit=True)
    ours = load("qwen3", use_lora=True, use_4bit=True, bnb_4bit_use_double_quant=False)
    ids, mask = ragged(policy, LENGTHS)
    with torch.no_grad():
        assert torch.equal(policy(ids, mask, 1.0)[0], ours(ids, mask, 1.0)[0])
    for settings in ({"use_lora": False}, {}, {"use_8bit": True}):
        with pytest.raises(UserError, match="the quantization of its weights"):
            opened(tmp_path, **settings)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"use_4bit": True, "use_8bit": True, "use_lora": True}, "model.use_4bit, model.use_8bit: are both"),
        ({"use_4bit": True, "use_lora": False}, "model.use_4bit=true: quantized weights are frozen"),
        ({"use_8bit": True, "use_lora": False}, "model.use_8bit=true: quantized weights are frozen"),
        (
            {"use_4bit": True, "lora_experts": True},
            "model.lora_experts=true: LoRA does not support experts in 4 bits",
        ),
        ({"use_lora": False, "lora_experts": True}, "model.lora_experts=true: without LoRA all"),
    ],
)
def test_settings_that_do_not_go_together_are_said(settings, sentence):
    with pytest.raises(UserError, match=f"^{sentence}"):
        ModelConfig(label="x", name="x", **settings)


@pytest.mark.parametrize("bits", BITS)
def test_a_bitsandbytes_that_does_not_work_here_is_one_sentence(load, monkeypatch, bits):
    def fails(*_, **__):
        raise RuntimeError("no kernel image\nis available")

    for kernel in ("quantize_4bit", "int8_vectorwise_quant"):
        monkeypatch.setattr(f"bitsandbytes.functional.{kernel}", fails)
    sentence = (
        rf"^model\.{bits}: bitsandbytes cannot quantize on cpu here \(no kernel image is available\); set"
    )
    with pytest.raises(UserError, match=sentence):
        load("qwen3", use_lora=True, **{bits: True})


@pytest.mark.parametrize("bits", BITS)
def test_a_missing_bitsandbytes_is_one_sentence(load, monkeypatch, bits):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match=rf"^model\.{bits}: bitsandbytes is not installed; pip install"):
        load("qwen3", use_lora=True, **{bits: True})


class LowReward(RewardFunction):
    """Share of sampled ids under 100: differs inside every group, and can be learned."""

    def compute_reward(self, trajectory, turn, context):
        ids = [t for t, spoken in zip(trajectory.token_ids, trajectory.action_mask, strict=True) if spoken]
        return RewardResult(sum(t < 100 for t in ids) / len(ids))


RUN = [
    "model.use_lora=true",
    "hardware.threads=1",
    "rollout.old_logprobs=recompute",
    "checkpoint.every=1",
    "evaluation.every=0",
    "evaluation.problems=1",
    "model.cold_start.steps=1",
    "algorithm.learning_rate=1e-2",
    f"reward={__name__}.LowReward",
]


@pytest.mark.long
@pytest.mark.parametrize("bits", BITS)
def test_a_quantized_run_resumes_to_the_same_weights(configure, reporter, tmp_path, bits):
    def run(name, *settings):
        folder = RunFolder(tmp_path / name)
        config, text = configure(*RUN, f"model.{bits}=true", *settings)
        if not folder.path.exists():
            folder.create(text)
        return run_training(config, folder, reporter), folder, config

    straight, whole, config = run("straight")
    assert straight["status"] == "completed"
    run("stopped", "training.num_outer_iterations=1")
    resumed, parts, _ = run("stopped")
    assert resumed["iterations"] == 2
    for key, value in load_file(whole.checkpoints / "last" / "adapter_model.safetensors").items():
        other = load_file(parts.checkpoints / "last" / "adapter_model.safetensors")[key]
        assert torch.equal(value, other)
    noise = [record["ratio/first_step_abs_err"] for record in whole.read("metrics.jsonl")]
    assert noise == [0.0, 0.0]
    stored = load_file(whole.initial_model / "model.safetensors")
    assert all(value.is_floating_point() for value in stored.values())  # a cold start is not quantized
    for checkpoint in ("initial", "last"):
        place = whole.checkpoint_model(checkpoint, config.model)
        record, _ = evaluate_only(config, *place, lambda done, total, note: None, reporter.warn)
        assert math.isfinite(record["score"])


KINDS = [Optimizer.adamw, Optimizer.adamw_8bit]


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_optimizer_goes_on_to_the_bit(configure, kind, tmp_path):
    config, _ = configure(f"training.optimizer={kind.value}", "training.weight_decay=0.1")

    def parameters():
        random = torch.Generator().manual_seed(0)
        return [torch.nn.Parameter(torch.randn(s, generator=random)) for s in ((100, 60), (7, 5), (4096,))]

    def steps(values, optimizer, first, last):
        for step in range(first, last):
            random = torch.Generator().manual_seed(step + 1)
            for value in values:
                value.grad = torch.randn(value.shape, generator=random)
            optimizer.step()

    straight, stopped = parameters(), parameters()
    steps(straight, make_optimizer(straight, config), 0, 5)
    optimizer = make_optimizer(stopped, config)
    steps(stopped, optimizer, 0, 3)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    fresh = make_optimizer(stopped, config)
    fresh.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True, map_location="cpu"))
    steps(stopped, fresh, 3, 5)
    for one, other, start in zip(straight, stopped, parameters(), strict=True):
        assert torch.equal(one, other)
        assert not torch.equal(one, start)


def test_eight_bit_states_are_bytes_and_step_almost_alike(configure):
    moved, kinds = {}, {}
    for kind in KINDS:
        config, _ = configure(f"training.optimizer={kind.value}", "algorithm.learning_rate=1e-3")
        value = torch.nn.Parameter(torch.zeros(64, 128))
        optimizer = make_optimizer([value], config)
        random = torch.Generator().manual_seed(0)
        for _ in range(10):
            value.grad = 1 + 0.3 * torch.randn(value.shape, generator=random)
            optimizer.step()
        moved[kind] = value.detach()
        states = [s for s in optimizer.state[value].values() if torch.is_tensor(s)]
        kinds[kind] = {s.dtype for s in states if s.shape == value.shape}
    assert kinds == {Optimizer.adamw: {torch.float32}, Optimizer.adamw_8bit: {torch.uint8}}
    difference = (moved[Optimizer.adamw] - moved[Optimizer.adamw_8bit]).abs().max()
    assert 0 < difference < 5e-4  # of the 1e-2 that ten such steps move


def test_each_optimizer_is_the_class_of_its_name(configure):
    config, _ = configure()
    for config.training.optimizer in Optimizer:
        made = make_optimizer([torch.nn.Parameter(torch.zeros(3))], config)
        assert type(made).__name__.lower() == config.training.optimizer.value.replace("_", "")


def test_an_optimizer_without_bitsandbytes_is_one_sentence(configure, monkeypatch):
    config, _ = configure("training.optimizer=adamw_8bit")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match=r"^training.optimizer=adamw_8bit: bitsandbytes is not installed"):
        make_optimizer([torch.nn.Parameter(torch.zeros(3))], config)
