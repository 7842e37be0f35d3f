"""The policy: one shift, exact log-probabilities, no dropout, the reference, the noise-free first ratio."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gspo_cli.config.choices import Attention, Precision
from gspo_cli.config.model_schema import ModelConfig
from gspo_cli.config.schema import HardwareConfig
from gspo_cli.errors import UserError
from gspo_cli.policy.loading import load_policy
from gspo_cli.policy.logprobs import CHUNK_BYTES, Head, LinearLogprobs, linear_logits
from tests.support.batches import ragged

NAMES = ["qwen3", "qwen3_moe", "gpt2"]


@pytest.mark.parametrize("name", NAMES)
def test_logprobs_are_those_of_the_model_one_position_earlier(load, name):
    policy = load(name)
    ids, mask = ragged(policy)
    logprobs, entropy = policy(ids, mask, 0.7, with_entropy=True)
    assert logprobs.shape == entropy.shape == ids.shape
    assert (logprobs[~mask] == 0).all()
    for row, length in enumerate((5, 9, 3)):  # each row alone, without padding
        logits = policy.causal_model(ids[row : row + 1, :length]).logits.float() / 0.7
        expected = logits.log_softmax(dim=-1)[0, :-1]
        chosen = expected.gather(dim=-1, index=ids[row, 1:length, None])[:, 0]
        torch.testing.assert_close(logprobs[row, 2:length], chosen[1:], rtol=0, atol=1e-5)
        torch.testing.assert_close(
            entropy[row, 2:length], -(expected.exp() * expected).sum(dim=-1)[1:], rtol=0, atol=1e-5
        )


def test_nothing_predicts_the_first_token(load):
    policy = load("qwen3")
    ids, mask = ragged(policy)
    expected = policy(ids, mask, 1.0)[0]
    mask[:, 0] = True
    assert torch.equal(policy(ids, mask, 1.0)[0], expected)


@pytest.mark.parametrize("chunk", [2**24, 256])
def test_recomputed_gradients_equal_those_of_kept_logits(monkeypatch, chunk):
    monkeypatch.setitem(CHUNK_BYTES, "cpu", chunk)
    random = torch.Generator().manual_seed(0)
    hidden, weight, bias = (
        torch.randn(s, generator=random, requires_grad=True) for s in ((50, 8), (11, 8), (11,))
    )
    targets, upstream = torch.randint(11, (50,), generator=random), torch.randn(50, generator=random)
    logprobs, _ = LinearLogprobs.apply(hidden, weight, bias, targets, 0.7)
    kept = (
        linear_logits(hidden, weight, bias, 0.7)
        .log_softmax(dim=-1)
        .gather(dim=-1, index=targets[:, None])[:, 0]
    )
    torch.testing.assert_close(logprobs, kept)
    ours = torch.autograd.grad(logprobs, (hidden, weight, bias), upstream)
    theirs = torch.autograd.grad(kept, (hidden, weight, bias), upstream)
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("block", [2**26, 100])
def test_a_frozen_weight_of_lower_precision_gives_exact_logits(monkeypatch, block):
    monkeypatch.setattr("gspo_cli.policy.logprobs.BLOCK_BYTES", block)
    random = torch.Generator().manual_seed(0)
    layer = torch.nn.Linear(8, 11, dtype=torch.bfloat16).requires_grad_(False)
    hidden = torch.randn(50, 8, generator=random).bfloat16().requires_grad_(True)
    targets, upstream = torch.randint(11, (50,), generator=random), torch.randn(50, generator=random)
    exact = torch.log_softmax(hidden.float() @ layer.weight.float().T + layer.bias.float(), dim=-1)
    wanted = exact.gather(dim=-1, index=targets[:, None])[:, 0]
    (gradient,) = torch.autograd.grad(wanted, hidden, upstream)
    head = Head(layer)
    for weight in (layer.weight, head.weight):
        logprobs, _ = LinearLogprobs.apply(hidden, weight, layer.bias, targets, 1.0)
        torch.testing.assert_close(logprobs, wanted, rtol=0, atol=1e-6)
        torch.testing.assert_close(torch.autograd.grad(logprobs, hidden, upstream)[0], gradient)
    assert head.weight is head.weight  # made once
    with torch.no_grad():
        layer.weight.add_(1)
    assert torch.equal(head.weight, layer.weight.float())


@pytest.mark.parametrize("use_lora", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_logits_of_a_bf16_model_are_products_in_fp32(load, name, use_lora):
    policy = load(name, HardwareConfig(precision=Precision.bf16), use_lora=use_lora)
    ids, mask = ragged(policy)
    with torch.no_grad(), policy.autocasting():
        hidden = policy.causal_model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    head = policy.causal_model.get_output_embeddings()
    exact = hidden.double() @ head.weight.double().T
    rounded = torch.nn.functional.linear(hidden.bfloat16(), head.weight.bfloat16()).double()

    def scores(logits):
        chosen = (logits / 0.7).log_softmax(dim=-1)[:, :-1].gather(2, ids[:, 1:, None])[..., 0]
        return chosen[mask[:, 1:]]

    with torch.no_grad():
        found = policy(ids, mask, 0.7)[0]
        with policy.autocasting():  # as the engine runs
            sampled = policy.next_token_logits(hidden[:, 1], 0.7)
    torch.testing.assert_close(found[mask].double(), scores(exact), rtol=0, atol=2e-6)
    torch.testing.assert_close(sampled.double(), exact[:, 1] / 0.7, rtol=0, atol=2e-6)
    # a product in bf16 would be off by more than the width of GSPO's band
    assert (scores(rounded) - scores(exact)).abs().max() > 4e-4


def test_backward_keeps_no_logits():
    saved = []
    hidden, weight = torch.randn(40, 8, requires_grad=True), torch.randn(1000, 8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.shape) or t, lambda t: t):
        LinearLogprobs.apply(hidden, weight, None, torch.arange(40), 1.0)
    assert (40, 1000) not in [tuple(shape) for shape in saved]


@pytest.mark.parametrize(
    "settings", [{}, {"use_lora": True}, {"use_lora": True, "gradient_checkpointing": True}]
)
@pytest.mark.parametrize("precision", list(Precision))
@pytest.mark.parametrize("name", NAMES)
def test_scores_with_and_without_gradient_are_equal_to_the_bit(load, name, precision, settings):
    # gpt2 brings dropout 0.1: live, it would clip every sample
    policy = load(name, HardwareConfig(precision=precision), **settings)
    ids, mask = ragged(policy)
    with torch.no_grad():
        old = policy(ids, mask, 1.0)[0]
    with policy.updating():
        new = policy(ids, mask, 1.0)[0]
        new.sum().backward()
    assert torch.equal(old, new.detach())
    assert all(p.grad is not None for p in policy.trainable() if p.ndim > 1 and "experts" not in name)


@pytest.mark.parametrize("use_lora", [True, False])
def test_trained_weights_are_fp32_under_bf16(load, use_lora):
    policy = load("qwen3", HardwareConfig(precision=Precision.bf16), use_lora=use_lora)
    assert {p.dtype for p in policy.trainable()} == {torch.float32}
    frozen = {p.dtype for p in policy.model.parameters() if not p.requires_grad}
    assert frozen == ({torch.bfloat16} if use_lora else set())


def test_the_lora_reference_is_the_adapter_switched_off(load, folders):
    policy, plain = load("qwen3", use_lora=True), load("qwen3")
    ids, mask = ragged(policy)
    with torch.no_grad():
        for parameter in policy.trainable():
            parameter.add_(0.05)
        expected = plain(ids, mask, 0.7)[0]
        assert not torch.equal(policy(ids, mask, 0.7)[0], expected)
    assert torch.equal(policy(ids, mask, 0.7, reference=True)[0], expected)


def test_a_full_model_has_a_frozen_reference(load):
    policy = load("qwen3")
    policy.keep_reference(load("qwen3").causal_model)
    ids, mask = ragged(policy)
    with torch.no_grad():
        expected = policy(ids, mask, 0.7)[0]
        for parameter in policy.trainable():
            parameter.add_(0.05)
        assert not torch.equal(policy(ids, mask, 0.7)[0], expected)
    assert torch.equal(policy(ids, mask, 0.7, reference=True)[0], expected)


def test_lora_adapts_neither_output_layer_nor_router_nor_experts(load):
    policy = load("qwen3_moe", use_lora=True)
    adapted = [name for name, p in policy.model.named_parameters() if p.requires_grad]
    assert adapted
    assert not [name for name in adapted if "lm_head" in name or ".gate." in name or "experts" in name]


def test_routers_are_frozen_by_setting(load):
    frozen = load("qwen3_moe", freeze_router=True)
    free = load("qwen3_moe", freeze_router=False)
    assert len(free.trainable()) - len(frozen.trainable()) == 2  # one router per layer


def test_lora_weights_depend_on_the_seed_of_the_model_alone(load):
    torch.manual_seed(1)
    first = load("qwen3", use_lora=True).trainable()
    torch.manual_seed(2)
    second = load("qwen3", use_lora=True).trainable()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# peft 0.21 asks transformers by a name that transformers 5.23 deprecates
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("use_lora", [False, True])
def test_what_is_saved_loads_with_from_pretrained(load, folders, tmp_path, use_lora):
    from peft import AutoPeftModelForCausalLM

    policy = load("qwen3", use_lora=use_lora)
    with torch.no_grad():
        for parameter in policy.trainable():
            parameter.add_(0.01)
    policy.save(tmp_path / "saved")
    loader = AutoPeftModelForCausalLM if use_lora else AutoModelForCausalLM
    model = loader.from_pretrained(tmp_path / "saved", dtype=torch.float32).eval()
    ids = torch.arange(6)[None]
    torch.testing.assert_close(model(ids).logits, policy.model(ids).logits)
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").decode([10]) == policy.tokenizer.decode([10])


def load_folder(folder):
    model = ModelConfig(label="x", name=str(folder), use_lora=False)
    return load_policy(str(folder), model, HardwareConfig())


@pytest.mark.parametrize("name", NAMES)
def test_attention_is_computed_as_it_is_asked_for(load, name):
    fused, plain = (load(name, attention=kind) for kind in (Attention.sdpa, Attention.eager))
    assert fused.causal_model.config._attn_implementation == "sdpa"
    assert plain.causal_model.config._attn_implementation == "eager"
    ids, mask = ragged(fused)
    with torch.no_grad():
        torch.testing.assert_close(fused(ids, mask, 1.0), plain(ids, mask, 1.0), rtol=0, atol=1e-5)
    with pytest.raises(UserError, match=r"model\.attention=flash_attention_2: needs a GPU"):
        load(name, attention=Attention.flash_attention_2)


def test_an_absent_model_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"model\.name=.*: is a folder without a model"):
        load_folder(tmp_path)


@pytest.mark.parametrize("bits", ["use_4bit", "use_8bit"])
@pytest.mark.parametrize("name", ["qwen3", "qwen3_moe", "gpt2"])
def test_a_quantized_model_has_as_many_parameters_as_the_whole_one(load, name, bits):
    whole = load(name, use_lora=True).num_parameters
    assert load(name, use_lora=True, **{bits: True}).num_parameters == whole
