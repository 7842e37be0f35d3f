"""Generation with the trained model itself: prompts prefilled once per group, finished rows leave the batch.

Shapes: R rows, L positions. A row is [left padding | prompt | generated]; after a resumed turn the middle
may hold padding too, which the mask leaves out."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from gspo_cli.errors import UserError
from gspo_cli.policy.policy import Policy
from gspo_cli.policy.prefix_tree import common_prefix
from gspo_cli.rollout.engine import Completion, Request, Sampling
from gspo_cli.rollout.kv_cache import (
    NO_PREFIX,
    KeptRow,
    KeptRows,
    Prefix,
    cache_bytes,
    is_plain,
    left_padding_mask,
    new_cache,
    stack_rows,
    take_prefix,
    take_row,
)
from gspo_cli.rollout.progress import Generated
from gspo_cli.rollout.sampling import draw, greedy, uniforms
from gspo_cli.types import FinishReason

SHRINK_BELOW = 0.8  # share of unfinished rows below which the batch is reduced to them


@dataclass
class _Batch:
    """Rows in flight: `mask` (R, L) is true on real tokens, `lengths` (R,) counts them, `hidden` (R, D)
    predicts the next token. All rows have `prefix` in their first columns."""

    cache: DynamicCache
    mask: Tensor
    lengths: Tensor
    hidden: Tensor
    padded: bool
    prefix: Prefix = NO_PREFIX

    def select(self, rows: Tensor) -> _Batch:
        self.cache.batch_select_indices(rows)
        return replace(self, mask=self.mask[rows], lengths=self.lengths[rows], hidden=self.hidden[rows])


class TransformersEngine:
    """`RolloutEngine` over the policy's own weights: there is nothing to synchronize."""

    def __init__(self, policy: Policy, batch_size: int, cache_bytes: int | None = None) -> None:
        """`cache_bytes` bounds the caches of rows in flight and, apart from them, those that are kept; a
        single row always fits."""
        self.policy = policy
        self.batch_size, self.cache_bytes = batch_size, cache_bytes
        layers = new_cache(policy.causal_model.config).layers
        if not all(hasattr(layer, "batch_select_indices") for layer in layers):
            raise UserError(
                f"model.name: {type(policy.causal_model).__name__} has a cache that cannot be split "
                "by rows (linear attention or convolution); choose a model with attention in all layers"
            )
        self._kept = KeptRows(cache_bytes)

    @property
    def max_positions(self) -> int:
        """The model's own limit."""
        return self.policy.max_positions

    def conversations_at_once(self, tokens: int) -> int:
        """As many as fit into `cache_bytes`, at least one."""
        if self.cache_bytes is None:
            return sys.maxsize
        return max(1, self.cache_bytes // (tokens * self._position_bytes))

    def forget(self) -> None:
        """Drop the caches kept between turns."""
        self._kept.clear()

    def refresh(self) -> dict[str, float]:
        """Does nothing: the engine uses the policy's own weights."""
        return {}

    @torch.no_grad()
    def generate(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        keep_cache: bool,
        progress: Generated | None = None,
    ) -> list[Completion]:
        """See `RolloutEngine`. Rows of similar length share a batch of at most `batch_size`; those whose
        cache was kept do not share one with others."""
        begun = [not self._kept.covers(asked.conversation, asked.prompt_ids) for asked in requests]
        order = sorted(range(len(requests)), key=lambda i: (begun[i], len(requests[i].prompt_ids), i))
        completions: dict[int, Completion] = {}
        with self.policy.autocasting():
            while len(completions) < len(order):
                start = len(completions)
                indices = self._next_batch(order[start:], requests, begun, sampling.max_new_tokens)
                tokens = sum(len(completion.token_ids) for completion in completions.values())
                batch_progress = None if progress is None else _after(progress, start, tokens)
                results = self._generate_batch(
                    [requests[i] for i in indices], sampling, keep_cache, batch_progress
                )
                completions.update(zip(indices, results, strict=True))
        return [completions[i] for i in range(len(requests))]

    def _generate_batch(
        self,
        requests: list[Request],
        sampling: Sampling,
        keep_cache: bool,
        progress: Generated | None,
    ) -> list[Completion]:
        conversations = [request.conversation for request in requests]
        if all(self._kept.covers(request.conversation, request.prompt_ids) for request in requests):
            batch = self._resume(requests, self._kept.take(conversations))
        else:  # an earlier batch of the same call may have taken the room of a kept cache
            self._kept.drop(conversations)
            batch = self._prefill(requests, keep_cache)
        return self._decode(batch, requests, sampling, keep_cache and is_plain(batch.cache), progress)

    def _next_batch(
        self, left: list[int], requests: Sequence[Request], begun: list[bool], new_tokens: int
    ) -> list[int]:
        """The next of the sorted requests that are `left`: as many as fit, and are begun or resumed alike."""
        found: list[int] = []
        for index in left[: self.batch_size]:
            longest = len(requests[index].prompt_ids) + new_tokens  # sorted: of those so far
            fits = len(found) < self.conversations_at_once(longest)
            if found and not (fits and begun[index] == begun[found[0]]):
                break
            found.append(index)
        return found

    @functools.cached_property
    @torch.no_grad()
    def _position_bytes(self) -> int:
        """Bytes of a position of one row in the caches of all layers."""
        cache = new_cache(self.policy.causal_model.config)
        token = torch.zeros(1, 1, dtype=torch.long, device=self.policy.device)
        self._run(token, token, None, cache)
        return cache_bytes(cache)

    def _prefill(self, requests: list[Request], keep_cache: bool) -> _Batch:
        """Run what all prompts begin with once, then the rest of each different prompt, then give every
        request its copy."""
        unique = list({tuple(request.prompt_ids): None for request in requests})
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
        rows = torch.tensor([places[tuple(request.prompt_ids)] for request in requests], device=device)
        return batch if len(unique) == len(requests) else batch.select(rows)

    def _resume(self, requests: list[Request], kept: list[KeptRow]) -> _Batch:
        """Put kept caches side by side and run only what is new."""
        covered = [len(row.token_ids) for row in kept]
        new = [request.prompt_ids[count:] for request, count in zip(requests, covered, strict=True)]
        cache, old_mask, prefix = stack_rows(self.policy.causal_model.config, kept, self.policy.device)
        new_mask = left_padding_mask([len(ids) for ids in new], self.policy.device)
        batch = self._forward(cache, torch.cat([old_mask, new_mask], dim=1), new, torch.tensor(covered))
        return replace(batch, prefix=prefix)

    def _forward(
        self, cache: DynamicCache, mask: Tensor, ids: Sequence[Sequence[int]], past: Tensor
    ) -> _Batch:
        """Feed ragged `ids`, padded on the left, after `past` (R,) tokens. `mask` (R, L) covers cache and
        ids."""
        past = past.to(mask.device)
        width = max(len(row) for row in ids)
        tokens = torch.tensor([[0] * (width - len(row)) + list(row) for row in ids], device=mask.device)
        positions = (mask[:, -width:].cumsum(dim=1) - 1).clamp(min=0) + past[:, None]
        padded = not bool(mask.all())
        hidden = self._run(tokens, positions, mask if padded else None, cache)
        lengths = past + torch.tensor([len(row) for row in ids], device=mask.device)
        return _Batch(cache, mask, lengths, hidden, padded)

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

    def _decode(
        self,
        batch: _Batch,
        requests: list[Request],
        sampling: Sampling,
        keep_cache: bool,
        progress: Generated | None,
    ) -> list[Completion]:
        device, count, limit = batch.mask.device, len(requests), sampling.max_new_tokens
        uniform = uniforms([request.seed for request in requests], limit, device)
        stop = torch.tensor(sorted(sampling.stop_ids), device=device)
        tokens = torch.zeros(count, limit, dtype=torch.long, device=device)
        logprobs, truncated = torch.zeros(2, count, limit, device=device)
        new_lengths = torch.full((count,), limit, device=device)
        stopped = torch.zeros(count, dtype=torch.bool, device=device)
        rows = torch.arange(count, device=device)  # which request each row of the batch belongs to
        prompt_width = batch.mask.shape[1]
        unfinished, drawn = count, 0  # rows, and tokens so far
        for step in range(limit):
            new, logprobs[rows, step], truncated[rows, step] = self._draw(
                batch.hidden, uniform[rows, step], sampling
            )
            tokens[rows, step] = new
            ended = torch.isin(new, stop) & ~stopped[rows]
            new_lengths[rows[ended]] = step + 1
            stopped[rows[ended]] = True
            going = ~stopped[rows]
            remaining = int(going.sum())
            unfinished, drawn = remaining, drawn + unfinished
            if progress is not None:
                progress(count if step + 1 == limit else count - remaining, drawn)
            if remaining == 0 or step + 1 == limit:
                break
            if remaining < SHRINK_BELOW * len(rows):
                if keep_cache:
                    self._keep(batch, rows, ~going, requests, tokens, new_lengths, prompt_width)
                live = going.nonzero().squeeze(dim=1)
                batch, rows, new = batch.select(live), rows[live], new[live]
            batch = self._advance(batch, new)
        if keep_cache:
            self._keep(
                batch,
                rows,
                torch.ones_like(rows, dtype=torch.bool),
                requests,
                tokens,
                new_lengths,
                prompt_width,
            )
        return _completions(tokens, logprobs, truncated, new_lengths, stopped)

    def _draw(self, hidden: Tensor, uniform: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor, Tensor]:
        if sampling.temperature == 0:
            return greedy(self.policy.next_token_logits(hidden, 1.0))
        logits = self.policy.next_token_logits(hidden, sampling.temperature)
        return draw(logits, uniform, sampling.top_p, sampling.top_k)

    def _advance(self, batch: _Batch, drawn: Tensor) -> _Batch:
        mask = torch.cat([batch.mask, torch.ones_like(batch.mask[:, :1])], dim=1)
        hidden = self._run(
            drawn[:, None], batch.lengths[:, None], mask if batch.padded else None, batch.cache
        )
        return replace(batch, mask=mask, lengths=batch.lengths + 1, hidden=hidden)

    def _keep(
        self,
        batch: _Batch,
        rows: Tensor,
        chosen: Tensor,
        requests: list[Request],
        tokens: Tensor,
        new_lengths: Tensor,
        prompt_width: int,
    ) -> None:
        """Set aside the caches of the `chosen` rows: the prompt and all generated tokens but the last, never
        fed."""
        for row in chosen.nonzero().squeeze(dim=1).tolist():
            index = int(rows[row])
            fed = int(new_lengths[index]) - 1
            shared = len(batch.prefix.token_ids)
            prompt = shared + batch.mask[row, shared:prompt_width].nonzero().squeeze(dim=1)
            generated = torch.arange(prompt_width, prompt_width + fed, device=prompt.device)
            ids = [*requests[index].prompt_ids, *tokens[index, :fed].tolist()]
            positions = torch.cat([prompt, generated])
            kept = take_row(batch.cache, row, positions, ids, batch.prefix)
            self._kept.add(requests[index].conversation, kept)


def _after(progress: Generated, ended: int, tokens: int) -> Generated:
    """Adds what earlier batches of the same call came to."""
    return lambda now, new: progress(ended + now, tokens + new)


def _shared_beginning(prompts: Sequence[tuple[int, ...]]) -> int:
    """Number of tokens with which several prompts all begin; each keeps one token of its own."""
    if len(prompts) < 2:
        return 0
    first, last = np.array(min(prompts)), np.array(max(prompts))  # what both ends share, all share
    return min(common_prefix(first, last), min(map(len, prompts)) - 1)


def _completions(
    tokens: Tensor, logprobs: Tensor, truncated: Tensor, new_lengths: Tensor, stopped: Tensor
) -> list[Completion]:
    lists = zip(
        *(value.tolist() for value in (tokens, logprobs, truncated, new_lengths, stopped)), strict=True
    )
    return [
        Completion(
            token_ids=ids[:length],
            logprobs=values[:length],
            finish_reason=FinishReason.stop if ended else FinishReason.length,
            truncated_mass=sum(cut[:length]) / length,
        )
        for ids, values, cut, length, ended in lists
    ]
