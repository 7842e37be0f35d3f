"""Generation with the trained model itself: prompts prefilled once per group, rows join the batch and leave
it between two steps.

Shapes: R rows, N the most tokens of an answer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import pad

from gspo_cli.errors import UserError
from gspo_cli.policy.policy import Policy
from gspo_cli.rollout.cached_forward import Batch, CachedForward
from gspo_cli.rollout.engine import Completion, Request, Sampling
from gspo_cli.rollout.kv_cache import KeptRows, is_plain, new_cache
from gspo_cli.rollout.sampling import draw, greedy, uniforms
from gspo_cli.types import FinishReason

FULL = 0.8  # share of a batch below which rows that ended leave it, and waiting ones may join
SPARE = 1.5  # room that a growing cache takes, as a share of what it holds


@dataclass(eq=False)
class _Row:
    """A request in flight. Once it has ended, `width` is how many columns the batch had, and `fed` the ids
    that the row's cache holds; the cache is to be kept if `keep`."""

    request: Request
    sampling: Sampling
    keep: bool
    width: int | None = None
    fed: list[int] = field(default_factory=list)

    @property
    def most(self) -> int:
        """Most tokens of the answer."""
        limit = self.sampling.max_new_tokens
        return min(limit, self.request.limit or limit)


@dataclass
class _Flight:
    """Rows in flight and what is drawn for them: `uniform`, `tokens`, `logprobs` and `truncated` (R, N),
    `counts` (R,) how many so far, and `limits` (R,) how many at most; `going` (R,) is false where a row has
    ended."""

    rows: list[_Row]
    batch: Batch
    uniform: Tensor
    tokens: Tensor
    logprobs: Tensor
    truncated: Tensor
    counts: Tensor
    limits: Tensor
    going: Tensor

    @classmethod
    def begin(cls, rows: list[_Row], batch: Batch) -> _Flight:
        """Rows of which nothing is drawn."""
        device, count = batch.mask.device, len(rows)
        limit = max(row.sampling.max_new_tokens for row in rows)
        uniform = uniforms([row.request.seed for row in rows], limit, device)
        tokens = torch.zeros(count, limit, dtype=torch.long, device=device)
        logprobs, truncated = torch.zeros(2, count, limit, device=device)
        counts = torch.zeros(count, dtype=torch.long, device=device)
        most = torch.tensor([row.most for row in rows], device=device)
        return cls(rows, batch, uniform, tokens, logprobs, truncated, counts, most, counts == 0)

    def tensors(self) -> Iterator[Tensor]:
        """All that has a row per request, but for the batch, in the order of the fields."""
        yield from (self.uniform, self.tokens, self.logprobs, self.truncated)
        yield from (self.counts, self.limits, self.going)

    def live(self) -> list[int]:
        """Places of the rows that have not ended."""
        return [place for place, row in enumerate(self.rows) if row.width is None]

    def needed(self) -> bool:
        """Whether a row has not ended, or its cache is to be kept."""
        return any(row.keep or row.width is None for row in self.rows)

    def select(self, places: list[int]) -> _Flight:
        """The rows at `places`."""
        index = torch.tensor(places, device=self.going.device)
        chosen = (tensor[index] for tensor in self.tensors())
        return _Flight([self.rows[place] for place in places], self.batch.select(index), *chosen)

    def join(self, other: _Flight, batch: Batch) -> _Flight:
        """The rows of both, whose `batch` is given."""
        limit = max(self.tokens.shape[1], other.tokens.shape[1])
        widened = ([_widened(tensor, limit) for tensor in each.tensors()] for each in (self, other))
        pairs = zip(*widened, strict=True)
        return _Flight([*self.rows, *other.rows], batch, *map(torch.cat, pairs))

    @cached_property
    def kinds(self) -> dict[tuple[float, float, int], list[int]]:
        """Places of the rows by how they are sampled: temperature, top_p and top_k."""
        found: dict[tuple[float, float, int], list[int]] = {}
        for place, row in enumerate(self.rows):
            how = row.sampling
            found.setdefault((how.temperature, how.top_p, how.top_k), []).append(place)
        return found

    def record(self, drawn: tuple[Tensor, Tensor, Tensor], stop_ids: Tensor) -> dict[int, Completion]:
        """Append a token to every row; `drawn` are tokens, logprobs and truncated mass (R,), `stop_ids` (S,)
        end a row. Returns what ended, by conversation."""
        new, logprobs, truncated = drawn
        limit = self.tokens.shape[1]
        each, at = torch.arange(len(self.rows), device=new.device), self.counts.clamp(max=limit - 1)
        self.tokens[each, at], self.logprobs[each, at], self.truncated[each, at] = new, logprobs, truncated
        self.counts = self.counts + self.going
        stopped = torch.isin(new, stop_ids) | self._ended_by_requests()
        ended = self.going & (stopped | (self.counts == self.limits))
        self.going = self.going & ~ended
        places = ended.nonzero().squeeze(dim=1)
        if not len(places):
            return {}
        found = {}
        columns = (self.tokens, self.logprobs, self.truncated, self.counts, stopped)
        drawn_rows = zip(*(column[places].tolist() for column in columns), strict=True)
        for place, values in zip(places.tolist(), drawn_rows, strict=True):
            row, completion = self.rows[place], _completion(*values)
            row.width, row.fed = self.batch.width, [*row.request.prompt_ids, *completion.token_ids[:-1]]
            found[row.request.conversation] = completion
        return found

    def _ended_by_requests(self) -> Tensor:
        """Rows whose requests say that the turn ends here. -> (R,)"""
        found = torch.zeros_like(self.going)
        for place, row in enumerate(self.rows):
            if row.width is None and row.request.ends is not None:
                found[place] = row.request.ends(self.tokens[place, : self.counts[place]].tolist())
        return found


class TransformersEngine:
    """`RolloutEngine` over the policy's own weights: there is nothing to synchronize."""

    def __init__(
        self, policy: Policy, batch_size: int, cache_bytes: int | None = None, full: float = FULL
    ) -> None:
        """`cache_bytes` bounds the caches of rows in flight and, apart from them, those that are kept; a
        single row always fits. `full` is the share of a batch below which rows that have ended leave it, and
        waiting ones join; at 1 they do so at once, which copies more."""
        self.policy, self.sampled = policy, 0
        self.batch_size, self.cache_bytes, self.full = batch_size, cache_bytes, full
        cache = new_cache(policy.causal_model.config)
        if not all(hasattr(layer, "batch_select_indices") for layer in cache.layers):
            raise UserError(
                f"model.name: {type(policy.causal_model).__name__} has a cache that cannot be split "
                "by rows (linear attention or convolution); choose a model with attention in all layers"
            )
        self._joins = is_plain(cache)  # otherwise rows cannot be put beside others, nor kept
        self._forward = CachedForward(policy)
        self._kept = KeptRows(cache_bytes)
        self._waiting: dict[int, _Row] = {}  # by conversation, in the order of their requests
        self._flight: _Flight | None = None
        self._stops: frozenset[int] = frozenset()
        self._stop_ids = torch.tensor([])

    @property
    def max_positions(self) -> int:
        """The model's own limit."""
        return self.policy.max_positions

    @property
    def _room(self) -> float:
        """Tokens that caches have room for."""
        return math.inf if self.cache_bytes is None else self.cache_bytes / self._forward.position_bytes

    def refresh(self) -> dict[str, float]:
        """Does nothing: the engine uses the policy's own weights."""
        return {}

    @contextmanager
    def session(self) -> Iterator[None]:
        """See `RolloutEngine`. Weights that autocasting has cast stay cast from one step to the next."""
        casts = self.policy.autocast is not None
        if casts:
            torch.autocast_increment_nesting()
        try:
            yield
        finally:
            if casts and torch.autocast_decrement_nesting() == 0:
                torch.clear_autocast_cache()
            self._waiting, self._flight = {}, None
            self._kept.clear()

    def submit(self, request: Request, sampling: Sampling, keep_cache: bool) -> None:
        """See `RolloutEngine`. Each request is sampled as its own `sampling` says; raises ValueError where
        those in flight have other stop ids."""
        rows = [] if self._flight is None else self._flight.rows
        asked = {row.request.conversation for row in rows if row.width is None}
        if request.conversation in asked or request.conversation in self._waiting:
            raise ValueError(f"a request of conversation {request.conversation} is in flight")
        if (asked or self._waiting) and sampling.stop_ids != self._stops:
            raise ValueError("requests in flight have other stop ids")
        if sampling.stop_ids != self._stops:
            self._stops = sampling.stop_ids
            self._stop_ids = torch.tensor(sorted(self._stops), device=self.policy.device)
        self._waiting[request.conversation] = _Row(request, sampling, keep_cache and self._joins)

    def cancel(self, conversation: int) -> None:
        """See `RolloutEngine`."""
        self._kept.drop(conversation)
        self._waiting.pop(conversation, None)
        if self._flight is None:
            return
        for place, row in enumerate(self._flight.rows):
            if row.request.conversation == conversation:
                row.keep, row.width = False, self._flight.batch.width
                self._flight.going[place] = False
        if not self._flight.needed():
            self._flight = None

    @torch.no_grad()
    def step(self) -> dict[int, Completion]:
        """See `RolloutEngine`. Rows that wait join once a fifth of the batch is free for them, and those that
        have ended leave it then: both copy the caches of all rows."""
        with self.policy.autocasting():
            count = 0 if self._flight is None else len(self._flight.rows)
            live = [] if self._flight is None else self._flight.live()
            joining: list[_Row] = []
            many = max(1.0, (1 - self.full) * count)  # rows that are worth a copy of all
            due = len(live) < self.full * count
            if due or min(len(self._waiting), self.batch_size - len(live)) >= many:
                joining = self._next(len(live))
                due = due or len(joining) >= many
            if due and len(live) < count:
                self._let_go(live)
            self._feed()
            if due and joining:
                self._admit(joining)
            flight = self._flight
            if flight is None:
                return {}
            self.sampled += len(flight.live())
            found = flight.record(self._draw(flight), self._stop_ids)
        if not flight.needed():
            self._flight = None  # its memory is free before anything else happens
        return found

    def _draw(self, flight: _Flight) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens, logprobs and truncated mass (R,): rows that are sampled alike are drawn together."""
        at = flight.counts.clamp(max=flight.uniform.shape[1] - 1)[:, None]
        uniform = flight.uniform.gather(dim=1, index=at).squeeze(dim=1)
        hidden = flight.batch.hidden
        if len(flight.kinds) == 1:
            [how] = flight.kinds
            return self._drawn(hidden, uniform, *how)
        index = [torch.tensor(places, device=hidden.device) for places in flight.kinds.values()]
        parts = [
            self._drawn(hidden[rows], uniform[rows], *how)
            for how, rows in zip(flight.kinds, index, strict=True)
        ]
        order = torch.cat(index).argsort()
        tokens, logprobs, truncated = (torch.cat(each)[order] for each in zip(*parts, strict=True))
        return tokens, logprobs, truncated

    def _drawn(
        self, hidden: Tensor, uniform: Tensor, temperature: float, top_p: float, top_k: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`_draw` of rows that are sampled alike. hidden (R, D), uniform (R,)"""
        if temperature == 0:
            return greedy(self.policy.next_token_logits(hidden, 1.0))
        return draw(self.policy.next_token_logits(hidden, temperature), uniform, top_p, top_k)

    def _feed(self) -> None:
        """Run the last tokens of the rows in flight."""
        flight = self._flight
        if flight is not None:
            each = torch.arange(len(flight.rows), device=flight.going.device)
            last = flight.tokens[each, flight.counts - 1]
            flight.batch = self._forward.advance(flight.batch, last, flight.going)

    def _let_go(self, live: list[int]) -> None:
        """Take the rows that have ended out of the batch; keep the caches that are to be kept."""
        flight = self._flight
        assert flight is not None
        for place, row in enumerate(flight.rows):
            if row.keep and row.width is not None:
                self._kept.add(row.request.conversation, flight.batch.take(place, row.width, row.fed))
        self._flight = flight.select(live) if live else None

    def _next(self, live: int) -> list[_Row]:
        """Those waiting rows that fit beside `live` ones: by length, but conversations that may go on in
        their order, so that few have begun whose caches have no room."""
        if not self._waiting or (live and not self._joins):
            return []
        going = [] if self._flight is None else [row for row in self._flight.rows if row.width is None]
        longest = max((len(row.request.prompt_ids) for row in going), default=0)
        new_tokens = max((row.sampling.max_new_tokens for row in going), default=0)

        def rank(row: _Row) -> tuple[int, int]:
            return row.request.conversation if row.keep else -1, len(row.request.prompt_ids)

        found: list[_Row] = []
        for row in sorted(self._waiting.values(), key=rank)[: max(0, self.batch_size - live)]:
            longest = max(longest, len(row.request.prompt_ids))
            new_tokens = max(new_tokens, row.sampling.max_new_tokens)
            beside = live + len(found)
            if beside and (beside + 1) * SPARE * (longest + new_tokens) > self._room:
                break
            found.append(row)
        return found

    def _covers(self, row: _Row) -> bool:
        return self._kept.covers(row.request.conversation, row.request.prompt_ids)

    def _admit(self, rows: list[_Row]) -> None:
        """Put rows in flight, after what their kept caches hold, where there are any."""
        for row in rows:
            del self._waiting[row.request.conversation]
        resumed = [row for row in rows if self._covers(row)]
        begun = [row for row in rows if row not in resumed]
        for row in begun:
            self._kept.drop(row.request.conversation)
        kept = self._kept.take([row.request.conversation for row in resumed])
        batches = []
        if resumed:
            batches.append((resumed, self._forward.resume([row.request.prompt_ids for row in resumed], kept)))
        if begun:
            keep = any(row.keep for row in begun)
            batches.append((begun, self._forward.prefill([row.request.prompt_ids for row in begun], keep)))
        for joining, batch in batches:
            other = _Flight.begin(joining, batch)
            flight = self._flight
            self._flight = (
                other if flight is None else flight.join(other, self._forward.join(flight.batch, batch))
            )


def _widened(tensor: Tensor, limit: int) -> Tensor:
    """A tensor (R, N) with zeros up to (R, limit); one of (R,) as it is."""
    return tensor if tensor.dim() == 1 else pad(tensor, (0, limit - tensor.shape[1]))


def _completion(
    tokens: list[int], logprobs: list[float], truncated: list[float], count: int, stopped: bool
) -> Completion:
    return Completion(
        token_ids=tokens[:count],
        logprobs=logprobs[:count],
        finish_reason=FinishReason.stop if stopped else FinishReason.length,
        truncated_mass=sum(truncated[:count]) / count,
    )
