"""Weights that DeepSpeed ZeRO-3 divided over ranks, brought together for a while."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn


@contextmanager
def dividing(settings: dict[str, Any]) -> Iterator[None]:
    """Within the block `from_pretrained` divides weights as DeepSpeed's `settings` say."""
    from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

    held = HfDeepSpeedConfig(settings)  # transformers keeps a weak reference to it
    try:
        yield
    finally:
        del held
        unset_hf_deepspeed_config()


def whole_shape(parameter: nn.Parameter) -> torch.Size:
    """The shape of a weight, also where this rank holds a part of it."""
    return parameter.ds_shape if hasattr(parameter, "ds_id") else parameter.shape


def whole(parameters: Iterable[nn.Parameter], changed: bool = False) -> AbstractContextManager[None]:
    """All of `parameters` on every rank for the length of a block, which only reads them, or changes them
    alike on all ranks (`changed`). Nothing to do for weights that are not divided."""
    divided = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    if not divided:
        return nullcontext()
    from deepspeed.runtime.zero import GatheredParameters

    return GatheredParameters(divided, modifier_rank=0 if changed else None)
