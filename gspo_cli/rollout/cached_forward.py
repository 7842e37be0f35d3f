"""The policy's forward passes over key-value caches: prompts, further turns, one token after the other.

Shapes: R rows, L positions, D hidden size. A row is [padding | tokens]; where it went on after a turn, or
joined longer ones, padding may stand between its tokens, too, which the mask leaves out."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from gspo_cli.policy.policy import Policy
from gspo_cli.policy.prefix_tree import common_prefix
from gspo_cli.rollout.kv_cache import (
    NO_PREFIX,
    KeptRow,
    Prefix,
    cache_bytes,
    is_plain,
    join_caches,
    left_padding_mask,
    new_cache,
    stack_rows,
    take_prefix,
    take_row,
)


@dataclass
class Batch:
    """Rows in flight: `mask` (R, L) is true on real tokens, `lengths` (R,) counts them, `hidden` (R, D)
    predicts the next token. All rows have `prefix` in their first columns."""

    cache: DynamicCache
    mask: Tensor
    lengths: Tensor
    hidden: Tensor
    padded: bool
    prefix: Prefix = NO_PREFIX

    @property
    def width(self) -> int:
        """Columns so far, L."""
        return self.mask.shape[1]

    def select(self, rows: Tensor) -> Batch:
        """The batch of these rows, in that order; this one is used up."""
        self.cache.batch_select_indices(rows)
        return replace(self, mask=self.mask[rows], lengths=self.lengths[rows], hidden=self.hidden[rows])

    def take(self, row: int, width: int, token_ids: list[int]) -> KeptRow:
        """Copy a row's cache from the first `width` columns; they hold `token_ids`."""
        shared = len(self.prefix.token_ids)
        positions = shared + self.mask[row, shared:width].nonzero().squeeze(dim=1)
        return take_row(self.cache, row, positions, token_ids, self.prefix)


class CachedForward:
    """Runs a policy over batches whose caches it makes."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    @functools.cached_property
    @torch.no_grad()
    def position_bytes(self) -> int:
        """Bytes of a position of one row in the caches of all layers."""
        cache = new_cache(self.policy.causal_model.config)
        token = torch.zeros(1, 1, dtype=torch.long, device=self.policy.device)
        with self.policy.autocasting():
            self._run(token, token, None, cache)
        return cache_bytes(cache)

    def prefill(self, prompts: Sequence[Sequence[int]], keep_cache: bool) -> Batch:
        """Run what all prompts begin with once, then the rest of each different prompt, then give every
        row its copy."""
        unique = list({tuple(ids): None for ids in prompts})
        places = {prompt: place for place, prompt in enumerate(unique)}
        cache, device = new_cache(self.policy.causal_model.config), self.policy.device
        shared = _shared_beginning(unique) if is_plain(cache) else 0
        past, prefix = torch.full((len(unique),), shared), NO_PREFIX
        if shared:
            common = list(unique[0][:shared])
            self._forward(cache, left_padding_mask([shared], device), [common], past[:1] * 0)
            if keep_cache:
                prefix = take_prefix(cache, common)
            cache.batch_select_indices(past.to(device) * 0)
        rest = [prompt[shared:] for prompt in unique]
        known = torch.ones(len(unique), shared, dtype=torch.bool, device=device)
        mask = torch.cat([known, left_padding_mask([len(ids) for ids in rest], device)], dim=1)
        batch = replace(self._forward(cache, mask, rest, past), prefix=prefix)
        rows = torch.tensor([places[tuple(ids)] for ids in prompts], device=device)
        return batch if len(unique) == len(prompts) else batch.select(rows)

    def resume(self, prompts: Sequence[Sequence[int]], kept: list[KeptRow]) -> Batch:
        """Put kept caches side by side and run only what is new."""
        covered = [len(row.token_ids) for row in kept]
        new = [ids[count:] for ids, count in zip(prompts, covered, strict=True)]
        cache, old_mask, prefix = stack_rows(self.policy.causal_model.config, kept, self.policy.device)
        new_mask = left_padding_mask([len(ids) for ids in new], self.policy.device)
        batch = self._forward(cache, torch.cat([old_mask, new_mask], dim=1), new, torch.tensor(covered))
        return replace(batch, prefix=prefix)

    def join(self, one: Batch, other: Batch) -> Batch:
        """Rows of both, in that order, without columns that only padding is left in."""
        parts = [(one.cache, one.mask, one.prefix), (other.cache, other.mask, other.prefix)]
        cache, mask, prefix = join_caches(self.policy.causal_model.config, parts)
        lengths, hidden = (
            torch.cat(pair) for pair in ((one.lengths, other.lengths), (one.hidden, other.hidden))
        )
        return Batch(cache, mask, lengths, hidden, not bool(mask.all()), prefix)

    def advance(self, batch: Batch, tokens: Tensor, live: Tensor) -> Batch:
        """Feed one token (R,) to each row. Rows that are not `live` (R,) have ended; what they come to does
        not matter, and they do not grow."""
        mask = torch.cat([batch.mask, torch.ones_like(batch.mask[:, :1])], dim=1)
        padding = mask if batch.padded else None
        hidden = self._run(tokens[:, None], batch.lengths[:, None], padding, batch.cache)
        return replace(batch, mask=mask, lengths=batch.lengths + live, hidden=hidden)

    def _forward(
        self, cache: DynamicCache, mask: Tensor, ids: Sequence[Sequence[int]], past: Tensor
    ) -> Batch:
        """Feed ragged `ids`, padded on the left, after `past` (R,) tokens. `mask` (R, L) covers cache and
        ids."""
        past = past.to(mask.device)
        width = max(len(row) for row in ids)
        tokens = torch.tensor([[0] * (width - len(row)) + list(row) for row in ids], device=mask.device)
        positions = (mask[:, -width:].cumsum(dim=1) - 1).clamp(min=0) + past[:, None]
        padded = not bool(mask.all())
        hidden = self._run(tokens, positions, mask if padded else None, cache)
        lengths = past + torch.tensor([len(row) for row in ids], device=mask.device)
        return Batch(cache, mask, lengths, hidden, padded)

    def _run(self, tokens: Tensor, positions: Tensor, mask: Tensor | None, cache: DynamicCache) -> Tensor:
        """Last hidden state of each row after `tokens` (R, new). -> (R, D)"""
        out = self.policy.causal_model.base_model(
            input_ids=tokens,
            position_ids=positions,
            attention_mask=None if mask is None else mask.long(),
            past_key_values=cache,
            use_cache=True,
        )
        return out.last_hidden_state[:, -1]


def _shared_beginning(prompts: Sequence[tuple[int, ...]]) -> int:
    """Number of tokens with which several prompts all begin; each keeps one token of its own."""
    if len(prompts) < 2:
        return 0
    first, last = np.array(min(prompts)), np.array(max(prompts))  # what both ends share, all share
    return min(common_prefix(first, last), min(map(len, prompts)) - 1)
