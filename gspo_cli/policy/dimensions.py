"""What the memory and the time of a model depend on, read from its modules; these may be without data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from gspo_cli.policy.policy import max_positions
from gspo_cli.policy.weights import full_shape

UNCAST = ("embed", "wte", "wpe", "lm_head")  # matrices that are read outside of autocast
LAST = ("o_proj", "c_proj", "out_proj", "down_proj", "fc2")  # the last linear layer of attention or MLP


@dataclass(frozen=True)
class Dimensions:
    """What the memory of a model depends on. `weights` in bytes; `trained`, `largest` (of the trained
    tensors) and `cast` (matrices that autocast copies) in elements; `width` is that of the residual stream in
    bytes. Over a layer's LoRA adapters `adapter_inputs` and `adapter_ranks` add up, `adapter_keeps` those
    inputs that are kept for them alone and once for all that read them."""

    layers: int
    hidden: int
    heads: int
    queries: int
    key_heads: int
    keys: int
    inner: int
    vocabulary: int
    positions: int
    experts: int
    active: int
    gated: bool
    rms_norm: bool
    head_norm: bool
    activation_steps: int
    tied: bool
    width: int
    weights: int
    trained: int
    largest: int
    cast: int
    adapter_inputs: int
    adapter_ranks: int
    adapter_keeps: int

    @property
    def expert_elements(self) -> int:
        """Elements of a layer's experts."""
        return self.experts * 3 * self.hidden * self.inner


def dimensions(model: PreTrainedModel | PeftModel, autocast: bool = False) -> Dimensions:
    """The dimensions of a model, which may be without data (on the device meta); weights that ZeRO-3 shards
    count in full. `autocast`: matrix products cast its weights."""
    causal = model.get_base_model() if isinstance(model, PeftModel) else model
    shape = causal.config.get_text_config()
    values: Mapping[str, Any] = shape.to_dict()  # model families differ in their names
    embeddings = causal.get_input_embeddings().weight
    assert isinstance(embeddings, Tensor)
    parameters = list(model.named_parameters())
    names = {name for name, _ in parameters}
    heads, hidden, layers = shape.num_attention_heads, shape.hidden_size, shape.num_hidden_layers
    head = values.get("head_dim") or hidden // heads
    key_heads = values.get("num_key_value_heads") or heads
    experts = values.get("num_experts") or values.get("num_local_experts") or 0
    inner = values.get("moe_intermediate_size") if experts else None
    trained = {name: p for name, p in parameters if p.requires_grad}
    # a frozen adapter is a reference
    adapters = {n: full_shape(p) for n, p in trained.items() if ".lora_A." in n and ".experts." not in n}
    matrices = [p for n, p in trained.items() if len(full_shape(p)) == 2 and not _contains([n], *UNCAST)]
    inputs = {_reads(name): columns for name, (_, columns) in adapters.items()}
    inputs = {read: columns for read, columns in inputs.items() if not _is_attention_output(read)}
    return Dimensions(
        layers=layers,
        hidden=hidden,
        heads=heads,
        queries=heads * head,
        key_heads=key_heads,
        keys=key_heads * head,
        inner=inner or values.get("intermediate_size") or values.get("n_inner") or 4 * hidden,
        vocabulary=shape.vocab_size,
        positions=max_positions(causal),
        experts=experts,
        active=values.get("num_experts_per_tok") or 1,
        gated=_contains(names, "gate_proj", "gate_up_proj"),
        rms_norm=not _contains(names, "ln_f.bias", "norm.bias", "layernorm.bias"),
        head_norm=_contains(names, "q_norm"),
        activation_steps=4 if values.get("activation_function") == "gelu_new" else 1,
        tied=bool(values.get("tie_word_embeddings", True)),
        width=embeddings.element_size(),
        weights=sum(_elements(p) * p.element_size() for _, p in parameters),
        trained=sum(map(_elements, trained.values())),
        largest=max(map(_elements, trained.values())),
        cast=sum(map(_elements, matrices)) if autocast else 0,
        adapter_inputs=sum(columns for _, columns in adapters.values()) // layers,
        adapter_ranks=sum(rank for rank, _ in adapters.values()) // layers,
        adapter_keeps=sum(inputs.values()),
    )


def _contains(names: Iterable[str], *parts: str) -> bool:
    """Whether one of `names` has one of `parts` in it."""
    return any(part in name for name in names for part in parts)


def _reads(adapted: str) -> tuple[str, bool]:
    """Which input an adapted layer reads: of its attention or MLP, or of the last linear layer in it."""
    parts = adapted.split(".")
    owner, layer = parts[parts.index("lora_A") - 2 : parts.index("lora_A")]
    return owner, layer in LAST


def _is_attention_output(read: tuple[str, bool]) -> bool:
    """What attention keeps in any case."""
    return "attn" in read[0] and read[1]


def _elements(parameter: Any) -> int:
    return math.prod(full_shape(parameter))
