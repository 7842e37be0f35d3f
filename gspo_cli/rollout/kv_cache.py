"""Key-value caches that grow in place, shrink by rows, and survive from one turn of a conversation to the
next.

Shapes: R rows, H key-value heads, L positions, D head size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
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


@dataclass(frozen=True, eq=False)
class Prefix:
    """What several conversations begin with: ids, and per layer keys and values (H, len(ids), D)."""

    token_ids: list[int]
    layers: list[tuple[Tensor, Tensor]]

    @cached_property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return sum(keys.nbytes + values.nbytes for keys, values in self.layers)


@dataclass(frozen=True, eq=False)
class KeptRow(Prefix):
    """The cache of one conversation: ids it covers, and per layer keys and values (H, n, D) of those that
    come after its prefix."""

    prefix: Prefix


NO_PREFIX = Prefix([], [])


class KeptRows:
    """Caches by conversation, which take at most `limit` bytes (None: any number): the oldest is dropped."""

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self._rows: dict[int, KeptRow] = {}

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def nbytes(self) -> int:
        """Bytes of all caches; a prefix that several share counts once."""
        prefixes = {id(row.prefix): row.prefix for row in self._rows.values()}
        return sum(part.nbytes for part in (*prefixes.values(), *self._rows.values()))

    def add(self, conversation: int, row: KeptRow) -> None:
        """Keep a cache, and drop the oldest ones where they take too much."""
        self._rows[conversation] = row
        while self.limit is not None and self._rows and self.nbytes > self.limit:
            del self._rows[next(iter(self._rows))]

    def covers(self, conversation: int, prompt_ids: list[int]) -> bool:
        """Whether there is a cache of the beginning of `prompt_ids`."""
        row = self._rows.get(conversation)
        if row is None or len(row.token_ids) >= len(prompt_ids):
            return False
        return prompt_ids[: len(row.token_ids)] == row.token_ids

    def take(self, conversations: Sequence[int]) -> list[KeptRow]:
        """The caches of these conversations, which are no longer kept."""
        return [self._rows.pop(conversation) for conversation in conversations]

    def drop(self, conversation: int) -> None:
        """Forget the cache of a conversation, where there is one."""
        self._rows.pop(conversation, None)

    def clear(self) -> None:
        """Forget all."""
        self._rows.clear()


def new_cache(config: PreTrainedConfig) -> DynamicCache:
    """An empty cache for a model; layers of full attention grow in place."""
    cache = DynamicCache(config=config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def _layers(cache: DynamicCache) -> list[Any]:
    return cache.layers  # Any: transformers' layers differ in what they have; see `is_plain`


def cache_bytes(cache: DynamicCache) -> int:
    """Bytes of all keys and values."""
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in _layers(cache))


def is_plain(cache: DynamicCache) -> bool:
    """Whether every layer keeps all positions, so that rows can be taken out and put back."""
    return all(isinstance(layer, GrowingLayer) for layer in cache.layers)


def take_prefix(cache: DynamicCache, token_ids: list[int]) -> Prefix:
    """Copy what all rows begin with, in the first columns of each."""
    count = len(token_ids)
    layers = [(layer.keys[0, :, :count], layer.values[0, :, :count]) for layer in _layers(cache)]
    return Prefix(token_ids, [(keys.clone(), values.clone()) for keys, values in layers])


def take_row(
    cache: DynamicCache, row: int, positions: Tensor, token_ids: list[int], prefix: Prefix
) -> KeptRow:
    """Copy one row's valid `positions` after the prefix; with it they hold `token_ids`."""
    layers = [(layer.keys[row][:, positions], layer.values[row][:, positions]) for layer in _layers(cache)]
    return KeptRow(token_ids, layers, prefix)


def stack_rows(
    config: PreTrainedConfig, rows: list[KeptRow], device: torch.device
) -> tuple[DynamicCache, Tensor, Prefix]:
    """One cache of several kept conversations: the prefix of all, then each one's own, padded on the left.
    -> the cache, a mask (R, L) of real tokens, and the prefix."""
    prefix = rows[0].prefix
    if any(row.prefix.token_ids != prefix.token_ids for row in rows):
        rows, prefix = [_whole(row) for row in rows], NO_PREFIX
    cache = new_cache(config)
    own = [len(row.token_ids) - len(prefix.token_ids) for row in rows]
    for index, layer in enumerate(_layers(cache)):
        parts = [_padded_left([row.layers[index][part] for row in rows], max(own)) for part in (0, 1)]
        if prefix.token_ids:
            shared = [part.expand(len(rows), *part.shape) for part in prefix.layers[index]]
            parts = [torch.cat(pair, dim=2) for pair in zip(shared, parts, strict=True)]
        layer.update(*parts)
    known = torch.ones(len(rows), len(prefix.token_ids), dtype=torch.bool, device=device)
    return cache, torch.cat([known, left_padding_mask(own, device)], dim=1), prefix


def join_caches(
    config: PreTrainedConfig, parts: Sequence[tuple[DynamicCache, Tensor, Prefix]]
) -> tuple[DynamicCache, Tensor, Prefix]:
    """One cache of several with their masks (R, L) and prefixes: columns of padding alone are left out, and
    the narrower ones are padded on the left of what they have of their own.
    -> the cache, its mask, and the prefix, if it is that of all."""
    prefix = parts[0][2]
    if any(other.token_ids != prefix.token_ids for _, _, other in parts):
        prefix = NO_PREFIX
    shared = len(prefix.token_ids)
    rest = [mask[:, shared:].any(dim=0) for _, mask, _ in parts]
    own = [len(used) - int(used.int().argmax()) for used in rest]  # argmax: the first column in use
    joined = new_cache(config)
    for index, layer in enumerate(_layers(joined)):
        states = [
            [getattr(_layers(cache)[index], name) for cache, _, _ in parts] for name in ("keys", "values")
        ]
        layer.update(*(_joined(side, shared, own, dim=2) for side in states))
    return joined, _joined([mask for _, mask, _ in parts], shared, own, dim=1), prefix


def _joined(parts: Sequence[Tensor], shared: int, own: Sequence[int], dim: int) -> Tensor:
    """Tensors under each other along their rows: of each the first `shared` columns (dimension `dim`), and
    the last `own` ones, which stand at the right."""
    shape = list(parts[0].shape)
    shape[0], shape[dim] = sum(map(len, parts)), shared + max(own)
    whole = parts[0].new_zeros(shape)
    rows = whole.split([len(part) for part in parts])
    for place, part, width in zip(rows, parts, own, strict=True):
        place.narrow(dim, 0, shared).copy_(part.narrow(dim, 0, shared))
        place.narrow(dim, shape[dim] - width, width).copy_(part.narrow(dim, part.shape[dim] - width, width))
    return whole


def _whole(row: KeptRow) -> KeptRow:
    """The same cache without a prefix of its own."""
    if not row.prefix.token_ids:
        return row
    pairs = zip(row.prefix.layers, row.layers, strict=True)
    layers = [
        (torch.cat([shared[0], own[0]], dim=1), torch.cat([shared[1], own[1]], dim=1))
        for shared, own in pairs
    ]
    return KeptRow(row.token_ids, layers, NO_PREFIX)


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
