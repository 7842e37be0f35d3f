"""From a hub id or a local folder to a Policy: dropout off, precision set, frozen weights quantized, LoRA
added."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging as transformers_logging

from gspo_cli.config.choices import Device, Precision
from gspo_cli.config.model_schema import ModelConfig
from gspo_cli.config.schema import HardwareConfig
from gspo_cli.errors import UserError
from gspo_cli.policy.policy import Policy
from gspo_cli.policy.quantization import (
    loader_options,
    quantize_parameters,
    require_as_configured,
    score_as_trained,
)
from gspo_cli.policy.weights import full_shape

transformers_logging.disable_progress_bar()
logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it logs every retry; we report the final error

ROUTERS = {"gate", "router"}


def load_policy(
    name: str, model: ModelConfig, hardware: HardwareConfig, adapter: Path | None = None
) -> Policy:
    """The policy at `name` (hub id or folder), with a fresh LoRA adapter or the one saved in `adapter`.

    Trained weights are fp32 at any precision: bf16 rounds away updates of 1e-5. Frozen weights take the
    precision's dtype, or 4 or 8 bits; where all weights are trained, bf16 means autocast. Raises UserError
    if the model cannot be loaded.
    """
    bf16 = hardware.precision is Precision.bf16
    dtype = torch.bfloat16 if bf16 and model.use_lora else torch.float32
    device = torch_device(hardware)
    options = loader_options(model, dtype, device)
    causal, tokenizer = _load(name, dtype, model.trust_remote_code, **options)
    if model.is_quantized:
        score_as_trained(causal, dtype)
    else:
        causal.to(device)  # type: ignore[arg-type]  # transformers decorates it without `self`
    require_as_configured(causal, name, model)
    experts = expert_parameters(causal)
    _check_experts(causal, model, experts)
    if model.use_4bit:
        quantize_parameters(causal, experts, model)
    switch_dropout_off(causal)
    freeze_routers(causal, model.freeze_router)
    wrapped = _add_lora(causal, model, experts, adapter) if model.use_lora else causal
    if model.gradient_checkpointing:
        # releases before 5.20 have the older name
        newer = "activation_checkpointing_enable"
        enable = getattr(causal, newer if hasattr(causal, newer) else "gradient_checkpointing_enable")
        enable({"use_reentrant": False})
    return Policy(wrapped, tokenizer, torch.bfloat16 if bf16 and not model.use_lora else None)


def torch_device(hardware: HardwareConfig) -> torch.device:
    """The device of `hardware`. Raises UserError if the machine does not have it."""
    if hardware.device is Device.cuda and not torch.cuda.is_available():
        raise UserError(
            "hardware.device=cuda: no GPU is visible; use hardware=cpu, or check CUDA_VISIBLE_DEVICES"
        )
    return torch.device(hardware.device.value)


def switch_dropout_off(model: nn.Module) -> None:
    """Set every dropout to 0: active dropout alone would clip most samples at GSPO's band."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if ("drop" in name or "jitter" in name) and isinstance(value, float):
                setattr(module, name, 0.0)


def freeze_routers(model: nn.Module, frozen: bool) -> None:
    """Freeze the routers of a Mixture-of-Experts model, or train them (their weights are `mlp.gate`)."""
    for name, parameter in model.named_parameters():
        if ".gate.weight" in name or ".router." in name:
            parameter.requires_grad_(not frozen)


def expert_parameters(causal: PreTrainedModel) -> list[str]:
    """Names of fused expert weights, of shape (experts, rows, columns), one or two per layer; none in a dense
    model."""
    return [
        name
        for name, parameter in causal.named_parameters()
        if len(full_shape(parameter)) == 3 and name.rpartition(".")[0].endswith(".experts")
    ]


def _check_experts(causal: PreTrainedModel, model: ModelConfig, experts: Sequence[str]) -> None:
    """Set the experts' implementation. Raises UserError on settings that the model does not support."""
    if model.lora_experts and not experts:
        raise UserError(
            f"model.lora_experts=true: {type(causal).__name__} has no fused experts; set "
            "model.lora_experts=false"
        )
    if model.experts_implementation is None:
        return
    wanted = model.experts_implementation.value
    if experts:
        causal.set_experts_implementation(wanted)
    if not experts or wanted not in causal.get_experts_implementation().values():
        raise UserError(
            f"model.experts_implementation={wanted}: {type(causal).__name__} does not offer a choice "
            "of expert implementations; set model.experts_implementation=null"
        )


def _load(
    name: str, dtype: torch.dtype, trust_remote_code: bool, **options: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    try:
        with warnings.catch_warnings():
            # weights stored quantized are loaded as they are, which require_as_configured checks
            warnings.filterwarnings("ignore", message="You passed `quantization_config`")
            causal = AutoModelForCausalLM.from_pretrained(
                name, dtype=dtype, trust_remote_code=trust_remote_code, **options
            )
        return causal, AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        if (Path(name) / "adapter_config.json").exists():
            reason = "it is a LoRA adapter; merge it into its model first"
        raise UserError(
            f"model.name={name}: cannot be loaded ({reason}); give a hub id or a folder with "
            "config.json, weights and tokenizer, or model=tiny, which needs no download"
        ) from error


def lora_targets(causal: PreTrainedModel) -> list[str]:
    """Names of the linear layers that LoRA adapts: all except the output layer, routers and experts."""
    head = causal.get_output_embeddings()
    names = {
        path.rpartition(".")[2]
        for path, module in causal.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head and ".experts." not in path
    }
    return sorted(names - ROUTERS)


def _add_lora(
    causal: PreTrainedModel, model: ModelConfig, experts: Sequence[str], adapter: Path | None
) -> PeftModel:
    config = _lora_config(causal, model, experts)
    if adapter is not None and model.use_4bit and LoraConfig.from_pretrained(adapter).target_parameters:
        raise UserError(  # peft would only warn and skip the experts' weights
            f"model.use_4bit=true: the adapter in {adapter} adapts experts, which is not supported in "
            "4 bits; set model.use_4bit=false"
        )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # peft 0.21 uses a name that transformers 5.23 deprecates
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        torch.manual_seed(model.init_seed)
        try:
            if adapter is not None:
                return PeftModel.from_pretrained(causal, adapter, is_trainable=True)
            return get_peft_model(causal, config)
        except ValueError as error:
            raise UserError(f"model.lora_target_modules: {' '.join(str(error).split())}") from error


def _lora_config(causal: PreTrainedModel, model: ModelConfig, experts: Sequence[str]) -> LoraConfig:
    named = model.lora_target_modules
    if named and ROUTERS & {name.rpartition(".")[2] for name in named}:
        raise UserError(
            "model.lora_target_modules: names a router, which LoRA does not adapt; leave out gate and "
            "router, or use null for all other linear layers"
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
