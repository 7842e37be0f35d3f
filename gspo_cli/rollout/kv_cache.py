"""Key-value caches that grow in place, shrink by rows, and survive from one turn of a conversation to the
next.

Shapes: R rows, H key-value heads, L positions, D head size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer


class GrowingLayer(DynamicLayer):
    """A cache layer that writes into spare room instead of copying everything for each token."""

    spare = 64  # positions added when room runs out, at least
    key_room: Tensor
    value_room: Tensor

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append (R, H, new, D) states; return all (R, H, L, D)."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        length = self.get_seq_length()
        total = length + key_states.shape[-2]
        if length == 0 or total > self.key_room.shape[-2]:
            room = total + max(self.spare, total // 2)
            self.key_room = _roomier(key_states, self.keys, length, room)
            self.value_room = _roomier(value_states, self.values, length, room)
        self.key_room[:, :, length:total] = key_states
        self.value_room[:, :, length:total] = value_states
        keys, values = self.key_room[:, :, :total], self.value_room[:, :, :total]
        self.keys, self.values = keys, values
        return keys, values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows `indices`, in that order, repeated where named twice."""
        super().batch_select_indices(indices)
        assert self.keys is not None  # rows are selected after a first update
        assert self.values is not None
        self.key_room, self.value_room = self.keys, self.values


def _roomier(states: Tensor, stored: Tensor | None, length: int, room: int) -> Tensor:
    """A buffer for `room` positions of `states` (R, H, new, D), the first `length` filled from `stored`."""
    buffer = states.new_empty(*states.shape[:2], room, states.shape[3])
    if stored is not None and length:
        buffer[:, :, :length] = stored
    return buffer


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


def _layers(cache: DynamicCache) -> list[Any]:
    return cache.layers  # Any: transformers' layers differ in what they have; see `is_plain`


def is_plain(cache: DynamicCache) -> bool:
    """Whether every layer keeps all positions, so that rows can be taken out and put back."""
    return all(isinstance(layer, GrowingLayer) for layer in cache.layers)


def take_row(cache: DynamicCache, row: int, positions: Tensor, token_ids: list[int]) -> KeptRow:
    """Copy one row's valid `positions`, which hold `token_ids`."""
    layers = [(layer.keys[row][:, positions], layer.values[row][:, positions]) for layer in _layers(cache)]
    return KeptRow(token_ids, layers)


def stack_rows(config: PreTrainedConfig, rows: list[KeptRow]) -> DynamicCache:
    """One cache of several kept conversations, padded on the left."""
    cache = new_cache(config)
    longest = max(len(row.token_ids) for row in rows)
    for index, layer in enumerate(_layers(cache)):
        layer.update(*(_padded_left([row.layers[index][part] for row in rows], longest) for part in (0, 1)))
    return cache


def _padded_left(rows: list[Tensor], width: int) -> Tensor:
    """Ragged (H, n, D) as one (R, H, width, D)."""
    first = rows[0]
    padded = first.new_zeros(len(rows), first.shape[0], width, first.shape[2])
    for place, row in enumerate(rows):
        padded[place, :, width - row.shape[1] :] = row
    return padded


def left_padding_mask(lengths: list[int], device: torch.device) -> Tensor:
    """True where a row of that length has a token, rows padded on the left. -> (R, max length)"""
    longest = max(lengths)
    return (
        torch.arange(longest, device=device)[None] >= longest - torch.tensor(lengths, device=device)[:, None]
    )
