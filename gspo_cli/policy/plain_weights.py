"""The policy's weights as a checkpoint of the plain model holds them: an adapter added in, experts apart.

What is yielded is for reading: without an adapter it is the policy's own tensors. With one it is sums, made
in fp32, one layer at a time; nothing is ever merged into the policy."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import groupby

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from gspo_cli.policy.policy import Policy

LAYER = re.compile(r".*?\.\d+\.")


@torch.no_grad()
def plain_weights(policy: Policy) -> Iterator[tuple[str, Tensor]]:
    """Names as on disk and tensors, layer after layer. Tied weights come under each of their names: who reads
    them may hold a copy for each, laid out for its own use."""
    causal = policy.causal_model
    adapters = _adapters(causal)
    held = [
        (name.replace(".base_layer", ""), tensor)
        for name, tensor in causal.state_dict(keep_vars=True).items()
        if ".lora_" not in name
    ]
    for _, layer in groupby(held, key=lambda item: _layer(item[0])):
        whole = {name: _with_adapters(tensor, adapters.get(id(tensor), [])) for name, tensor in layer}
        yield from revert_weight_conversion(causal, whole).items()


def _layer(name: str) -> str:
    found = LAYER.match(name)
    return found.group() if found else name


def _adapters(causal: PreTrainedModel) -> dict[int, list[LoraLayer]]:
    """LoRA layers by the id of the parameter that they adapt."""
    found: dict[int, list[LoraLayer]] = {}
    for module in causal.modules():
        if isinstance(module, LoraLayer):
            name = getattr(module, "parameter_name", "weight")  # experts are adapted by their parameter
            found.setdefault(id(getattr(module.get_base_layer(), name)), []).append(module)
    return found


def _with_adapters(tensor: Tensor, layers: list[LoraLayer]) -> Tensor:
    value = tensor.detach()
    for layer in layers:
        for adapter in layer.active_adapters:
            value = value.float() + layer.get_delta_weight(adapter).float()
    return value
