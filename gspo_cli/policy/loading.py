"""From a hub id or a local folder to a Policy: dropout off, precision set, LoRA added."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

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

transformers_logging.disable_progress_bar()
logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries; the error that ends them is ours


def load_policy(
    name: str, model: ModelConfig, hardware: HardwareConfig, adapter: Path | None = None
) -> Policy:
    """The policy at `name` (hub id or folder), with a fresh LoRA adapter or the one saved in `adapter`.

    Trained weights are fp32 whatever the precision: bf16 rounds away updates of 1e-5. Frozen weights take the
    precision's dtype; where all weights are trained, bf16 means autocast. Raises UserError where nothing
    loads.
    """
    bf16 = hardware.precision is Precision.bf16
    dtype = torch.bfloat16 if bf16 and model.use_lora else torch.float32
    device = torch_device(hardware)
    causal, tokenizer = _load(name, dtype, model.trust_remote_code)
    causal.to(device)
    switch_dropout_off(causal)
    freeze_routers(causal, model.freeze_router)
    wrapped = _add_lora(causal, model, adapter) if model.use_lora else causal
    if model.gradient_checkpointing:
        # the older name on releases before 5.20
        newer = "activation_checkpointing_enable"
        enable = getattr(causal, newer if hasattr(causal, newer) else "gradient_checkpointing_enable")
        enable({"use_reentrant": False})
    return Policy(wrapped, tokenizer, torch.bfloat16 if bf16 and not model.use_lora else None)


def torch_device(hardware: HardwareConfig) -> torch.device:
    """The device of `hardware`. Raises UserError where there is no such device."""
    if hardware.device is Device.cuda and not torch.cuda.is_available():
        raise UserError(
            "hardware.device=cuda: no GPU is visible; use hardware=cpu, or check CUDA_VISIBLE_DEVICES"
        )
    return torch.device(hardware.device.value)


def switch_dropout_off(model: nn.Module) -> None:
    """Set every dropout to 0: live while scoring, it alone clips most samples at GSPO's band."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if ("drop" in name or "jitter" in name) and isinstance(value, float):
                setattr(module, name, 0.0)


def freeze_routers(model: nn.Module, frozen: bool) -> None:
    """Fix which experts a Mixture-of-Experts model chooses for a hidden state (router weights are
    `mlp.gate`)."""
    for name, parameter in model.named_parameters():
        if ".gate.weight" in name or ".router." in name:
            parameter.requires_grad_(not frozen)


def _load(
    name: str, dtype: torch.dtype, trust_remote_code: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    try:
        causal = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, trust_remote_code=trust_remote_code)
        return causal, AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        if (Path(name) / "adapter_config.json").exists():
            reason = "it is a LoRA adapter; merge it into its model first"
        raise UserError(
            f"model.name={name}: cannot be loaded ({reason}); give a hub id or a folder with "
            "config.json, weights "
            "and tokenizer, or model=tiny, which needs no download"
        ) from error


def lora_targets(causal: PreTrainedModel) -> list[str]:
    """Names of the linear layers that LoRA adapts: all but the output layer, the routers and the experts."""
    head = causal.get_output_embeddings()
    names = {
        path.rpartition(".")[2]
        for path, module in causal.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head and ".experts." not in path
    }
    return sorted(names - {"gate", "router"})


def _add_lora(causal: PreTrainedModel, model: ModelConfig, adapter: Path | None) -> PeftModel:
    config = LoraConfig(
        r=model.lora_r,
        lora_alpha=model.lora_alpha,
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
        target_modules=model.lora_target_modules or lora_targets(causal),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in causal.modules()),
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # peft 0.21 asks transformers by a name that transformers 5.23 deprecates
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        torch.manual_seed(model.init_seed)
        try:
            if adapter is not None:
                return PeftModel.from_pretrained(causal, adapter, is_trainable=True)
            return get_peft_model(causal, config)
        except ValueError as error:
            raise UserError(f"model.lora_target_modules: {' '.join(str(error).split())}") from error
