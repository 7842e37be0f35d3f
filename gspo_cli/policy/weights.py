"""The policy's full weights: gathered where ZeRO-3 shards them, with the adapter added in, and under the
names of a plain checkpoint."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import groupby
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from gspo_cli.errors import UserError
from gspo_cli.policy.quantization import stored_dtypes

LAYER = re.compile(r".*?\.\d+\.")


@contextmanager
def zero_init(settings: dict[str, Any]) -> Iterator[None]:
    """Within the block `from_pretrained` shards weights over the ranks, as DeepSpeed's `settings` say."""
    from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

    config = HfDeepSpeedConfig(settings)  # transformers keeps only a weak reference to it
    try:
        yield
    finally:
        del config
        unset_hf_deepspeed_config()


def full_shape(parameter: nn.Parameter) -> torch.Size:
    """The shape of a weight, also where this rank holds a shard of it."""
    return getattr(parameter, "ds_shape", parameter.shape)  # set by DeepSpeed on sharded weights


def parameter_count(model: nn.Module, leave_out: str) -> int:
    """Parameters of a model but those with `leave_out` in their name. A sharded weight counts in full, and
    one in 4 bits, of which a byte holds two, as the values that it stands for."""
    stored = {
        id(parametrized.original): parametrized[0].quant_state.shape  # of fused experts
        for module in model.modules()
        for parametrized in getattr(module, "parametrizations", {}).values()
        if hasattr(parametrized[0], "quant_state")
    }
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)  # of a linear layer
        if state is not None:
            stored[id(parameter)] = state.shape
    counted = [p for name, p in model.named_parameters() if leave_out not in name]
    return sum(math.prod(stored.get(id(p), full_shape(p))) for p in counted)


def gathered(parameters: Iterable[nn.Parameter], modified: bool = False) -> AbstractContextManager[None]:
    """A block in which every rank has all of `parameters`, to read them, or to change them in the same way on
    all ranks (`modified`). Does nothing for weights that are not sharded."""
    sharded = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    if not sharded:
        return nullcontext()
    from deepspeed.runtime.zero import GatheredParameters

    return GatheredParameters(sharded, modifier_rank=0 if modified else None)


def merged(model: PeftModel) -> PreTrainedModel:
    """The model with its adapter merged into the weights. Raises UserError if these are quantized: rounding
    the sum would undo the training."""
    if stored_dtypes(model):
        raise UserError(
            "model.use_4bit, model.use_8bit: an adapter cannot be merged into quantized weights; load "
            "the model with both false, then merge"
        )
    return model.merge_and_unload()


@torch.no_grad()
def plain_weights(causal: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of a checkpoint of the plain model, layer by layer, for reading only.

    Without an adapter these are the model's own tensors. With one they are sums, computed in fp32 one layer
    at a time; the model itself is not changed. Tied weights are repeated under each of their names."""
    adapters: dict[int, list[LoraLayer]] = {}  # by the id of the parameter that they adapt
    for module in causal.modules():
        if isinstance(module, LoraLayer):
            name = getattr(module, "parameter_name", "weight")  # experts are adapted by their parameter
            adapters.setdefault(id(getattr(module.get_base_layer(), name)), []).append(module)
    tensors = [
        (name.replace(".base_layer", ""), tensor)
        for name, tensor in causal.state_dict(keep_vars=True).items()
        if ".lora_" not in name
    ]
    for _, layer in groupby(tensors, key=lambda item: _layer(item[0])):
        weights = {name: _with_adapters(tensor, adapters.get(id(tensor), [])) for name, tensor in layer}
        yield from revert_weight_conversion(causal, weights).items()


def _layer(name: str) -> str:
    found = LAYER.match(name)
    return found.group() if found else name


def _with_adapters(tensor: Tensor, layers: list[LoraLayer]) -> Tensor:
    value = tensor.detach()
    for layer in layers:
        for adapter in layer.active_adapters:
            value = value.float() + layer.get_delta_weight(adapter).float()
    return value
