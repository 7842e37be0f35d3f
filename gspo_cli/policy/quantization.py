"""Frozen weights in 4 or 8 bits (bitsandbytes), with the same scores with and without gradient.

All linear layers but the output layer are quantized; in 4 bits fused expert weights are, too. Embeddings,
norms and routers keep the dtype of `hardware.precision`; in 8 bits so do fused experts, for which
bitsandbytes has no 8-bit form. Quantized weights are never trained, merged into or saved: a checkpoint holds
the adapter only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from gspo_cli.config.extras import install
from gspo_cli.config.model_schema import ModelConfig
from gspo_cli.errors import UserError


def loader_options(model: ModelConfig, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Arguments of `from_pretrained`: none without quantization, else how and where, with matrix products in
    `dtype`. Raises UserError if bitsandbytes is missing or cannot quantize on `device`."""
    if not model.is_quantized:
        return {}
    _require_bitsandbytes(model, device)
    if model.use_8bit:
        config = BitsAndBytesConfig(load_in_8bit=True)
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=model.bnb_4bit_quant_type.value,
            bnb_4bit_use_double_quant=model.bnb_4bit_use_double_quant,
            bnb_4bit_compute_dtype=dtype,
        )
    place = torch.cuda.current_device() if device.type == "cuda" else device.type
    return {"quantization_config": config, "device_map": {"": place}}


def _require_bitsandbytes(model: ModelConfig, device: torch.device) -> None:
    key = f"model.{model.quantized_by}"
    try:
        from bitsandbytes import functional

        if model.use_4bit:
            functional.dequantize_4bit(*functional.quantize_4bit(torch.ones(64, device=device)))
        else:
            functional.int8_vectorwise_quant(torch.ones(1, 64, device=device, dtype=torch.float16))
    except ImportError as error:
        raise UserError(
            f"{key}: bitsandbytes is not installed; {install('quant')}, or set {key}=false"
        ) from error
    except (RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{key}: bitsandbytes cannot quantize on {device.type} here ({reason}); set {key}=false"
        ) from error


def require_as_configured(causal: PreTrainedModel, name: str, model: ModelConfig) -> None:
    """Raise UserError if the weights at `name` are stored in another quantization than `model` says."""
    expected = {torch.uint8} if model.use_4bit else {torch.int8} if model.use_8bit else set()
    if stored_dtypes(causal) != expected:
        raise UserError(
            f"model.name={name}: the quantization of its weights differs from model.use_4bit and "
            "model.use_8bit; set these to match the stored weights, or use the full-precision model"
        )


def score_as_trained(causal: PreTrainedModel, dtype: torch.dtype) -> None:
    """Let quantized layers compute in `dtype`, the same in eval and train mode, with and without gradient.

    By default bitsandbytes 0.50 does not. On a CPU scoring would repack 4-bit weights for AVX512-BF16
    (products in bf16 from then on, through which no gradient flows, and an error where a width is not a
    multiple of 64). It would also round the inputs of 8-bit layers, which training does not: the
    log-probabilities would differ by 1e-2, where GSPO's clip band is 3e-4 wide."""
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    for module in causal.modules():
        if isinstance(module, Linear4bit):
            module.compute_dtype = dtype
            module.support_avx512bf16_for_cpu = False
        elif isinstance(module, Linear8bitLt):
            module.register_forward_pre_hook(_stay_in_train_mode)


def _stay_in_train_mode(module: nn.Module, _: tuple[object, ...]) -> None:
    module.training = True  # an 8-bit layer uses it only to choose the matrix product


def quantize_parameters(causal: PreTrainedModel, paths: Sequence[str], model: ModelConfig) -> None:
    """Store the named parameters (the fused experts) in 4 bits; each use dequantizes one for its layer.

    They are loaded in full precision first, which is the peak memory of a 4-bit Mixture-of-Experts model. An
    update keeps the dequantized weights for backward: of one layer under gradient checkpointing, else of all.
    """
    from bitsandbytes.nn.parametrize import replace_parameter_4bit

    for path in paths:
        owner, _, name = path.rpartition(".")
        replace_parameter_4bit(
            causal.get_submodule(owner),
            name,
            compress_statistics=model.bnb_4bit_use_double_quant,
            quant_type=model.bnb_4bit_quant_type.value,
        )


def stored_dtypes(model: nn.Module) -> set[torch.dtype]:
    """The integer dtypes in which weights are stored; none without quantization."""
    return {p.dtype for p in model.parameters() if not p.is_floating_point()}
