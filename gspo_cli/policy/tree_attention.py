"""`model.attention=flex_attention`: rows of prefix trees by torch's flex_attention, which skips blocks in
which no node sees another, and needs no dense mask. All other passes are sdpa's: plain rows have no mask, and
generation would compile anew as its cache grows.

Shapes: R rows, L nodes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

COMPILED = 64  # kernels for different shapes; beyond torch's own limit of 8 all scores of a row are kept
NAME = "tree_flex_attention"  # for "flex_attention" in it, transformers checks that the model supports that


def use_tree_attention(causal: PreTrainedModel) -> None:
    """Compute rows of prefix trees by flex_attention, all else by sdpa. Raises ValueError where the model
    does not support both."""
    import torch._dynamo.config as compiler  # takes a second

    compiler.recompile_limit = max(compiler.recompile_limit, COMPILED)
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    for name in ("sdpa", NAME):
        causal.set_attn_implementation(name)


def has_tree_attention(causal: PreTrainedModel) -> bool:
    """Whether `use_tree_attention` was called."""
    return bool(causal.config.get_text_config()._attn_implementation == NAME)


def block_mask(ends: Tensor) -> BlockMask:
    """What each node sees, itself and its ancestors, where its subtree ends at `ends` (R, L)."""

    def seen(row: Tensor, head: Tensor, node: Tensor, other: Tensor) -> Tensor:
        return (other <= node) & (node < ends[row, other])

    rows, size = ends.shape
    return create_block_mask(seen, rows, None, size, size, device=ends.device)


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **settings: Any
) -> tuple[Tensor, Tensor | None]:
    if not isinstance(attention_mask, BlockMask):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    kind = query.device.type
    if torch.is_autocast_enabled(kind):  # which casts for sdpa, but not here
        dtype = torch.get_autocast_dtype(kind)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    return flex_attention_forward(module, query, key, value, attention_mask, **settings)
