"""From what `model.name` names to a Policy: dropout off, precision set, frozen weights quantized, LoRA added,
continued or merged."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from huggingface_hub.utils import enable_progress_bars
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from gspo_cli.config.choices import Attention, Device, Precision
from gspo_cli.config.model_schema import ModelConfig
from gspo_cli.config.schema import HardwareConfig
from gspo_cli.errors import UserError
from gspo_cli.policy.lora import add_lora, continue_lora
from gspo_cli.policy.policy import Policy
from gspo_cli.policy.pretrained import load_config, load_pretrained, load_tokenizer
from gspo_cli.policy.quantization import (
    loader_options,
    quantize_parameters,
    require_as_configured,
    score_as_trained,
)
from gspo_cli.policy.soundness import require_finite
from gspo_cli.policy.tree_attention import use_tree_attention
from gspo_cli.policy.weights import full_shape, merged

transformers_logging.disable_progress_bar()
enable_progress_bars()  # of downloads, which the line above also switches off
logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it logs every retry; we report the final error


def load_policy(
    name: str, model: ModelConfig, hardware: HardwareConfig, adapter: Path | None = None
) -> Policy:
    """The policy at `name`, which may be anything that `find_source` finds. `adapter` is the folder of a LoRA
    adapter to use in place of the one that `name` has; without any, LoRA starts a new one. Raises UserError
    if the model cannot be loaded."""
    from gspo_cli.sources import ModelSource, find_source  # reads run folders, which needs OmegaConf

    base = model.base if name == model.name else None  # it belongs to the adapter in model.name
    source = ModelSource(name, adapter) if adapter is not None else find_source(name, base)
    dtype, device = weights_dtype(model, hardware.precision), torch_device(hardware)
    options = loader_options(model, dtype, device)
    causal, tokenizer = load_pretrained(source.base, dtype, model.trust_remote_code, **options)
    if model.is_quantized:
        score_as_trained(causal, dtype)
    else:
        causal.to(device)  # type: ignore[arg-type]  # transformers decorates it without `self`
    require_as_configured(causal, source.base, model)
    return as_policy(causal, tokenizer, model, hardware, source.adapter)


def as_policy(
    causal: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    model: ModelConfig,
    hardware: HardwareConfig,
    adapter: Path | None = None,
) -> Policy:
    """The policy over a model whose weights are on their device, in `weights_dtype` or quantized; `adapter`
    is the folder of a LoRA adapter to continue, or to merge where all weights are trained."""
    choose_attention(causal, model.attention)
    if adapter is not None:
        tokenizer = _tokenizer_of(adapter, causal) or tokenizer
        if not model.use_lora:
            causal = merged(continue_lora(causal, adapter, model)).requires_grad_(True)
    experts = expert_parameters(causal)
    _check_experts(causal, model, experts)
    if model.use_4bit:
        quantize_parameters(causal, experts, model)
    switch_dropout_off(causal)
    freeze_routers(causal, model.freeze_router)
    wrapped: PreTrainedModel | PeftModel = causal
    if model.use_lora and adapter is not None:
        wrapped = continue_lora(causal, adapter, model)
    elif model.use_lora:
        wrapped = add_lora(causal, model, experts)
    if model.gradient_checkpointing:
        # releases before 5.20 have the older name
        newer = "activation_checkpointing_enable"
        enable = getattr(causal, newer if hasattr(causal, newer) else "gradient_checkpointing_enable")
        enable({"use_reentrant": False})
    require_finite(wrapped, str(adapter or causal.name_or_path))
    autocasts = hardware.precision is Precision.bf16 and not model.use_lora
    return Policy(wrapped, tokenizer, torch.bfloat16 if autocasts else None)


def weights_dtype(model: ModelConfig, precision: Precision) -> torch.dtype:
    """The precision of a model's weights: trained ones are fp32 at any precision, because bf16 rounds away
    updates of 1e-5, and bf16 then means autocast; frozen ones have the precision's dtype, if they are not
    quantized."""
    return torch.bfloat16 if precision is Precision.bf16 and model.use_lora else torch.float32


def empty_model(base: str, model: ModelConfig, precision: Precision) -> PreTrainedModel | PeftModel | None:
    """The model at `base` as `load_policy` makes it, on the device meta: shapes without data. None where its
    configuration does not tell them: GGUF files, code of its own, quantized weights, and models that
    `load_policy` refuses.

    Raises UserError if there is no such model."""
    if Path(base).is_file() or model.trust_remote_code or model.is_quantized:
        return None
    shape = load_config(base, trust_remote_code=False)
    dtype = weights_dtype(model, precision)
    with torch.device("meta"):
        try:
            causal = AutoModelForCausalLM.from_config(shape, dtype=dtype)
        except Exception:  # which load_policy will report
            return None
        if not hasattr(shape.get_text_config(), "num_attention_heads"):
            return None
        freeze_routers(causal, model.freeze_router)
        return add_lora(causal, model, expert_parameters(causal)) if model.use_lora else causal


def choose_attention(causal: PreTrainedModel, attention: Attention) -> None:
    """Compute attention as it is asked for, and never by cuDNN, which plans anew for each new length: 60 ms
    for each token of a rollout. Raises UserError where the model or the machine cannot."""
    torch.backends.cuda.enable_cudnn_sdp(False)  # of the whole process
    if attention is Attention.auto:
        return
    low = causal.device.type == "cuda" and causal.dtype in (torch.bfloat16, torch.float16)
    reason = "needs a GPU and weights in bf16 (hardware.precision=bf16 with model.use_lora=true)"
    if attention is not Attention.flash_attention_2 or low:
        try:
            if attention is Attention.flex_attention:
                use_tree_attention(causal)
            else:
                causal.set_attn_implementation(attention.value)
            return
        except (ImportError, ValueError) as error:
            reason = f"cannot be used here ({' '.join(str(error).split())[:200]})"
    raise UserError(f"model.attention={attention.value}: {reason}; use model.attention=auto")


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


def _tokenizer_of(adapter: Path, causal: PreTrainedModel) -> PreTrainedTokenizerBase | None:
    tokenizer = load_tokenizer(adapter)
    [weight] = causal.get_input_embeddings().parameters()
    rows = full_shape(weight)[0]
    if tokenizer is not None and len(tokenizer) > max(rows, causal.config.get_text_config().vocab_size):
        raise UserError(
            f"model.name={adapter}: its tokenizer has {len(tokenizer)} tokens, but its base "
            f"{causal.name_or_path} has {rows}; give the base that it was trained over with "
            "model.base=<hub id or model folder>, or merge the adapter where its base was extended"
        )
    return tokenizer
