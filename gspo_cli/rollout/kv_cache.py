"""Key-value caches that grow in place, shrink by rows, and survive from one turn of a conversation to the
next.

Shapes: R rows, H key-value heads, L positions, D head size."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer


class GrowingLayer(DynamicLayer):
    """A cache layer that writes into spare room instead of copying everything for each token."""

    spare = 64  # positions added when room runs out, at least

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append (R, H, new, D) states; return all (R, H, L, D)."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        length = self.get_seq_length()
        total = length + key_states.shape[-2]
        if length == 0 or total > self.key_room.shape[-2]:
            self._make_room(key_states, length, total)
        self.key_room[:, :, length:total] = key_states
        self.value_room[:, :, length:total] = value_states
        self.keys, self.values = self.key_room[:, :, :total], self.value_room[:, :, :total]
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows `indices`, in that order, repeated where named twice."""
        super().batch_select_indices(indices)
        self.key_room, self.value_room = self.keys, self.values

    def _make_room(self, states: Tensor, length: int, total: int) -> None:
        rows, heads, _, size = states.shape
        room = total + max(self.spare, total // 2)
        key_room = states.new_empty(rows, heads, room, size)
        value_room = states.new_empty(rows, heads, room, size)
        if length:
            key_room[:, :, :length], value_room[:, :, :length] = self.keys, self.values
        self.key_room, self.value_room = key_room, value_room


@dataclass(frozen=True)
class KeptRow:
    """The cache of one conversation: ids it covers, and per layer keys and values (H, len(ids), D)."""

    token_ids: list[int]
    layers: list[tuple[Tensor, Tensor]]


def new_cache(config: PreTrainedConfig) -> DynamicCache:
    """An empty cache for a model; layers of full attention grow in place."""
    cache = DynamicCache(config=config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def is_plain(cache: DynamicCache) -> bool:
    """Whether every layer keeps all positions, so that rows can be taken out and put back."""
    return all(isinstance(layer, GrowingLayer) for layer in cache.layers)


def take_row(cache: DynamicCache, row: int, positions: Tensor, token_ids: list[int]) -> KeptRow:
    """Copy one row's valid `positions`, which hold `token_ids`."""
    layers = [(layer.keys[row][:, positions], layer.values[row][:, positions]) for layer in cache.layers]
    return KeptRow(token_ids, layers)


def stack_rows(config: PreTrainedConfig, rows: list[KeptRow]) -> DynamicCache:
    """One cache of several kept conversations, padded on the left."""
    cache = new_cache(config)
    longest = max(len(row.token_ids) for row in rows)
    for index, layer in enumerate(cache.layers):
        first_keys = rows[0].layers[index][0]
        shape = (len(rows), first_keys.shape[0], longest, first_keys.shape[2])
        keys, values = first_keys.new_zeros(shape), first_keys.new_zeros(shape)
        for place, row in enumerate(rows):
            start = longest - len(row.token_ids)
            keys[place, :, start:], values[place, :, start:] = row.layers[index]
        layer.update(keys, values)
    return cache


def left_padding_mask(lengths: list[int], device: torch.device) -> Tensor:
    """True where a row of that length has a token, rows padded on the left. -> (R, max length)"""
    longest = max(lengths)
    return (
        torch.arange(longest, device=device)[None] >= longest - torch.tensor(lengths, device=device)[:, None]
    )
