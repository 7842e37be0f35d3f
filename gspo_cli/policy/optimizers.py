"""The optimizer that `training.optimizer` names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from gspo_cli.config.choices import Optimizer
from gspo_cli.config.extras import install
from gspo_cli.config.schema import RunConfig
from gspo_cli.errors import UserError


def make_optimizer(parameters: Iterable[nn.Parameter], config: RunConfig) -> torch.optim.Optimizer:
    """AdamW over `parameters` with the settings of `config`.

    In 8 bits a tensor of at least 4096 elements takes 2 bytes of state per element instead of 8; smaller ones
    keep fp32 states. Paged states are restored from a checkpoint unpaged, into the GPU's memory.

    Raises UserError if bitsandbytes is needed and not installed."""
    training, kind = config.training, config.training.optimizer
    settings: dict[str, Any] = {
        "lr": config.algorithm.learning_rate,
        "betas": (training.adam_beta1, training.adam_beta2),
        "weight_decay": training.weight_decay,
    }
    if kind is Optimizer.adamw:
        # DeepSpeed makes its own partitions of the parameters
        return torch.optim.AdamW(parameters, **settings, fused=config.hardware.zero_stage == 0)
    try:
        from bitsandbytes import optim
    except ImportError as error:
        raise UserError(
            f"training.optimizer={kind.value}: bitsandbytes is not installed; {install('quant')}, or use "
            "training.optimizer=adamw"
        ) from error
    classes = {
        Optimizer.adamw_8bit: optim.AdamW8bit,
        Optimizer.paged_adamw: optim.PagedAdamW,
        Optimizer.paged_adamw_8bit: optim.PagedAdamW8bit,
    }
    return classes[kind](parameters, **settings)
