"""LoRA over a loaded model: a new adapter, one that is continued, and a frozen one as the KL reference.

A continued adapter is checked to be what scoring, merging and export reproduce exactly: low-rank updates of
linear layers and of fused experts, nothing else."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

import torch
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    load_peft_weights,
    set_peft_model_state_dict,
)
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from gspo_cli.adapters import read_adapter
from gspo_cli.config.model_schema import ModelConfig
from gspo_cli.errors import UserError, is_out_of_memory

ROUTERS = {"gate", "router"}
TRAINED, REFERENCE = "default", "ref"  # names of adapters in a PeftModel
MERGE_FIRST = "merge it with peft (merge_and_unload) and give the merged folder"


def add_lora(causal: PreTrainedModel, model: ModelConfig, experts: Sequence[str]) -> PeftModel:
    """A new adapter that changes nothing yet; `experts` are the names of fused expert weights."""
    config = _new_config(causal, model, experts)
    try:
        return _wrapped(causal, config, model)
    except ValueError as error:
        raise UserError(f"model.lora_target_modules: {' '.join(str(error).split())}") from error


def continue_lora(causal: PreTrainedModel, adapter: Path, model: ModelConfig) -> PeftModel:
    """The adapter in the folder `adapter` over its base, to be trained on. Raises UserError if it is not a
    plain LoRA adapter of this base."""
    config = _stored_config(adapter)
    if model.use_4bit and config.target_parameters:
        raise UserError(  # peft would only warn and skip the experts' weights
            f"model.use_4bit=true: the adapter in {adapter} adapts experts, which is not supported in "
            "4 bits; set model.use_4bit=false"
        )
    weights = _weights(adapter)
    try:
        wrapped = _wrapped(causal, config, model)
        _fill(wrapped, weights, TRAINED)
    except Exception as error:  # peft checks little itself
        if is_out_of_memory(error):
            raise
        raise UserError(_misfit(adapter, causal, " ".join(str(error).split())[:300])) from error
    _check_layers(wrapped, adapter)
    return wrapped


def add_reference(wrapped: PeftModel, adapter: Path) -> None:
    """Load the adapter in the folder `adapter` a second time, frozen and inactive."""
    with _quiet_peft():
        wrapped.add_adapter(REFERENCE, _stored_config(adapter))
    set_reference(wrapped, _weights(adapter))


def copy_to_reference(wrapped: PeftModel) -> None:
    """Make the present weights of the trained adapter those of the reference adapter."""
    if not has_reference(wrapped):
        with _quiet_peft():
            wrapped.add_adapter(REFERENCE, deepcopy(wrapped.peft_config[TRAINED]))
    set_reference(wrapped, adapter_weights(wrapped, TRAINED))


def adapter_weights(wrapped: PeftModel, name: str) -> dict[str, Tensor]:
    """Copies of the weights of an adapter."""
    found = get_peft_model_state_dict(wrapped, adapter_name=name, save_embedding_layers=False)
    return {key: value.detach().clone() for key, value in found.items()}


def set_reference(wrapped: PeftModel, weights: dict[str, Tensor]) -> None:
    """Replace the weights of the reference adapter. Raises ValueError if they do not fit."""
    _fill(wrapped, weights, REFERENCE)
    wrapped.set_requires_grad(REFERENCE, False)


def has_reference(wrapped: PeftModel) -> bool:
    """Whether `add_reference` was called."""
    return REFERENCE in wrapped.peft_config


@contextmanager
def as_reference(wrapped: PeftModel) -> Iterator[None]:
    """A block in which the model is its own reference: with the reference adapter, or without any."""
    if not has_reference(wrapped):
        with wrapped.disable_adapter():
            yield
        return
    wrapped.set_adapter(REFERENCE, inference_mode=True)
    try:
        yield
    finally:
        wrapped.set_adapter(TRAINED)


def lora_targets(causal: PreTrainedModel) -> list[str]:
    """Names of the linear layers that LoRA adapts: all except the output layer, routers and experts."""
    head = causal.get_output_embeddings()
    names = {
        path.rpartition(".")[2]
        for path, module in causal.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head and ".experts." not in path
    }
    return sorted(names - ROUTERS)


def _new_config(causal: PreTrainedModel, model: ModelConfig, experts: Sequence[str]) -> LoraConfig:
    named = model.lora_target_modules
    if named and ROUTERS & {name.rpartition(".")[2] for name in named}:
        raise UserError(
            "model.lora_target_modules: names a router, which LoRA does not adapt; leave out gate and "
            "router, or use null for all other linear layers"
        )
    head = causal.get_output_embeddings()
    [output] = [path for path, module in causal.named_modules() if module is head] or [""]
    if named and any(output == name or output.endswith(f".{name}") for name in named):
        raise UserError(
            f"model.lora_target_modules: names the output layer ({output}), which LoRA does not adapt; "
            "leave it out"
        )
    # without the layer number: one name for all layers
    matrices = sorted({".".join(path.split(".")[-3:]) for path in experts})
    return LoraConfig(
        r=model.lora_r,
        lora_alpha=model.lora_alpha,
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
        target_modules=lora_targets(causal) if named in (None, ["all-linear"]) else named,
        target_parameters=matrices if model.lora_experts else None,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in causal.modules()),
    )


def _stored_config(adapter: Path) -> LoraConfig:
    """peft's configuration of a stored adapter: without dropout, which would clip most samples at GSPO's
    band, and without an initialization that changes the base."""
    return LoraConfig(**read_adapter(adapter).lora, lora_dropout=0.0, task_type="CAUSAL_LM")


def _wrapped(causal: PreTrainedModel, config: LoraConfig, model: ModelConfig) -> PeftModel:
    with _quiet_peft():
        torch.manual_seed(model.init_seed)
        return get_peft_model(causal, config)


@contextmanager
def _quiet_peft() -> Iterator[None]:
    """A block in which peft adds an adapter: the random state is restored after it, and a warning is off."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # peft 0.21 uses a name that transformers 5.23 deprecates
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        yield


def _weights(adapter: Path) -> dict[str, Tensor]:
    """The tensors of a stored adapter, on the CPU."""
    try:
        weights = load_peft_weights(str(adapter), device="cpu")
    except Exception as error:  # files that are damaged, or hold more than tensors
        raise UserError(
            f"model.name={adapter}: its weights cannot be read ({' '.join(str(error).split())[:200]}); "
            "restore the file"
        ) from error
    others = sorted(name for name in weights if ".lora_A." not in name and ".lora_B." not in name)
    if others:
        raise UserError(
            f"model.name={adapter}: also replaces weights of its base ({others[0]}), which is not supported; "
            f"{MERGE_FIRST}"
        )
    return weights


def _fill(wrapped: PeftModel, weights: dict[str, Tensor], name: str) -> None:
    """Set the weights of the adapter `name`. Raises ValueError if they are too few or too many."""
    loaded = set_peft_model_state_dict(wrapped, weights, adapter_name=name)
    lacking = sorted(key for key in loaded.missing_keys if ".lora_" in key and f".{name}." in key)
    for key, what in ((lacking, "has no"), (sorted(loaded.unexpected_keys), "the base has no place for")):
        if key:
            raise ValueError(f"{what} {key[0]}")


def _check_layers(wrapped: PeftModel, adapter: Path) -> None:
    head = wrapped.get_base_model().get_output_embeddings()
    for path, module in wrapped.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        is_linear = isinstance(module.get_base_layer(), nn.Linear | Conv1D) and module is not head
        if not (is_linear or ".experts" in path) or path.rpartition(".")[2] in ROUTERS:
            raise UserError(
                f"model.name={adapter}: adapts {path.removeprefix('base_model.model.')}, but only linear "
                "layers and experts can be adapted, not embeddings, output layers and routers; "
                f"{MERGE_FIRST}"
            )


def _misfit(adapter: Path, causal: PreTrainedModel, reason: str) -> str:
    return (
        f"model.name={adapter}: does not fit its base {causal.name_or_path} ({reason}); give the base "
        "that it was trained over with model.base=<hub id or model folder>"
    )
