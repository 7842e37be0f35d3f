"""The experts that a Mixture-of-Experts model chooses: recorded, compared, and optionally replayed (routing
replay, GSPO paper, section 5.3: GRPO needs it, GSPO does not).

Shapes: B sequences, T tokens, L layers with routers, E experts, k of them chosen per token; N = B * T.

Choices are stored as (B, T, L, k) on the model's device, next to the log-probabilities of the same
micro-batch. An id takes one byte up to 256 experts, two above: 64 x 1024 tokens of 48 layers and 8 experts
are 25,165,824 ids, 24 MiB."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

from gspo_cli.algorithm.accumulators import Accumulator
from gspo_cli.config.schema import RunConfig
from gspo_cli.errors import UserError
from gspo_cli.policy.packed import PackedRows

PROBED_TOKENS = 16


def shares_of_all(logits: Tensor, chosen: Tensor) -> Tensor:
    """Softmax over all experts. (N, E), (N, k) -> (N, k)"""
    return torch.softmax(logits, dim=-1, dtype=torch.float).gather(dim=-1, index=chosen)


def shares_normalized(logits: Tensor, chosen: Tensor) -> Tensor:
    """Softmax over all experts, divided by the sum of the chosen ones. (N, E), (N, k) -> (N, k)"""
    shares = shares_of_all(logits, chosen)
    return shares / shares.sum(dim=-1, keepdim=True)


def shares_of_chosen(logits: Tensor, chosen: Tensor) -> Tensor:
    """Softmax over the chosen experts, in the precision of the logits. (N, E), (N, k) -> (N, k)"""
    return torch.softmax(logits.gather(dim=-1, index=chosen), dim=-1, dtype=logits.dtype)


Scores = Callable[[Tensor, Tensor], Tensor]
RULES: tuple[Scores, ...] = (shares_normalized, shares_of_all, shares_of_chosen)


@dataclass
class RoutingStats(Accumulator):
    """Sums over micro-batches and ranks. A pair is a trained token in one layer, a choice is one of its k
    experts."""

    pairs: int = 0
    changed_pairs: int = 0
    choices: int = 0
    replaced_choices: int = 0
    balance_loss_sum: float = 0.0
    balance_loss_sequences: float = 0


class RouterPass:
    """One forward pass: what each layer's router chose by itself, also where other experts were forced.

    Where it computes `rows` that sequences share, N counts their nodes; choices are taken and given by
    sequence."""

    def __init__(self, forced: Tensor | None, with_logits: bool, rows: PackedRows | None = None) -> None:
        self.forced = None if forced is None else _by_node(forced, rows)
        self.with_logits, self.rows = with_logits, rows
        self._chosen: dict[int, Tensor] = {}  # by layer, (N, k)
        self._logits: dict[int, Tensor] = {}  # by layer, (N, E)

    def record(self, layer: int, logits: Tensor, chosen: Tensor) -> None:
        """Keep the first choice of a layer: gradient checkpointing computes it again in backward."""
        if layer not in self._chosen:
            self._chosen[layer] = chosen.to(torch.uint8 if logits.shape[-1] <= 256 else torch.int16)
            if self.with_logits:
                self._logits[layer] = logits

    def experts(self, shape: torch.Size) -> Tensor | None:
        """Expert ids in each router's own order, for token ids of `shape` (B, T): (B, T, L, k); None if
        the model has no routers."""
        return self._stacked(shape) if self._chosen else None

    def _stacked(self, shape: torch.Size) -> Tensor:
        layers = [self._chosen[layer] for layer in sorted(self._chosen)]
        if self.rows is not None:
            layers = [chosen[self.rows.nodes] for chosen in layers]
        return torch.stack([chosen.view(*shape, -1) for chosen in layers], dim=2)

    def changes(self, before: Tensor, action_mask: Tensor) -> RoutingStats:
        """How the choices differ, as sets, from `before` (B, T, L, k), at positions that predict a trained
        token; prompts, observations and padding do not count."""
        counted = predicting(action_mask)  # (B, T)
        was, now = before[counted], self._stacked(action_mask.shape)[counted]  # (n, L, k)
        kept = torch.zeros(now.shape[:-1], dtype=torch.long, device=now.device)  # (n, L)
        for place in range(now.shape[-1]):
            kept += (was == now[..., place, None]).any(dim=-1)
        return RoutingStats(
            pairs=kept.numel(),
            changed_pairs=int((kept < now.shape[-1]).sum()),
            choices=now.numel(),
            replaced_choices=now.numel() - int(kept.sum()),
        )

    def balance_loss(self, action_mask: Tensor) -> Tensor:
        """Load-balancing loss of Switch (Fedus et al. 2021, Eq. 4-6) over all layers; k where all experts are
        chosen equally often. Each sequence counts up to its last token that predicts a trained one, so
        without padding; a node that several share counts for each."""
        used = predicting(action_mask).flip(dims=(1,)).cumsum(dim=1).flip(dims=(1,)) > 0
        if self.rows is not None:
            size = self.rows.token_ids.shape
            used = torch.bincount(self.rows.nodes[used], minlength=size.numel()).view(size)
        logits = tuple(self._logits[layer].float() for layer in sorted(self._logits))
        experts, chosen = logits[0].shape[-1], self._chosen[0].shape[-1]
        # annotated for a tuple of one layer; a number only without logits
        return cast(Tensor, load_balancing_loss_func(cast(Any, logits), experts, chosen, used))


class Routing:
    """The routers of a model (none in a dense one), in the order of the forward pass.

    A router is a module named `...TopKRouter` that returns (logits (N, E), scores (N, k), ids (N, k)).
    `scores` is the rule by which it weights the chosen experts, found by a probe: None if none of `RULES`
    reproduces its scores exactly. In bf16 several may; these differ by a rounding at most."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.layers = 0
        self.scores: Scores | None = None
        self._current: RouterPass | None = None
        candidates = [m for m in model.modules() if type(m).__name__.lower().endswith("topkrouter")]
        if candidates:
            outputs = _probe(model, candidates)
            for layer, router in enumerate(outputs):
                router.register_forward_hook(partial(self._hook, layer))
            self.layers = len(outputs)
            fitting = (rule for rule in RULES if all(_follows(rule, *o) for o in outputs.values()))
            self.scores = next(fitting, None) if outputs else None

    @contextmanager
    def watched(
        self, forced: Tensor | None = None, with_logits: bool = False, rows: PackedRows | None = None
    ) -> Iterator[RouterPass]:
        """A block with one forward and its backward pass, in which the choices of routers are recorded. With
        `forced` (B, T, L, k) those experts are used instead, weighted by the current logits, through which
        gradients flow. `rows` is what the pass computes, None for plain sequences.

        The backward pass belongs inside: gradient checkpointing computes the forward again there."""
        self._current = RouterPass(forced, with_logits, rows)
        try:
            yield self._current
        finally:
            self._current = None

    def _hook(self, layer: int, router: nn.Module, arguments: Any, output: tuple[Tensor, ...]) -> Any:
        current = self._current
        if current is None:
            return None  # does not change the output
        logits, scores, chosen = output
        current.record(layer, logits, chosen)
        if current.forced is None:
            return None
        if self.scores is None:
            raise ValueError("experts cannot be forced: their weighting rule is unknown")
        forced = current.forced[:, layer].reshape(chosen.shape).to(chosen.dtype)
        return logits, self.scores(logits, forced).to(scores.dtype), forced


def require_routing(routing: Routing, config: RunConfig) -> None:
    """Raise UserError on a setting for routers where the model has none, or none that supports it."""
    if routing.scores is not None:
        return
    reason = "weights its experts by an unknown rule" if routing.layers else "has no routed experts"
    who = f"model.name={config.model.name} {reason}"
    if config.algorithm.routing_replay:
        raise UserError(f"algorithm.routing_replay=true: {who}; set algorithm.routing_replay=false")
    weight = config.model.router_aux_loss
    if weight > 0:
        raise UserError(f"model.router_aux_loss={weight:g}: {who}; set model.router_aux_loss=0")


def predicting(action_mask: Tensor) -> Tensor:
    """Positions whose hidden state predicts a trained token: one before each. (B, T) -> (B, T)"""
    before = torch.zeros_like(action_mask)
    before[:, :-1] = action_mask[:, 1:]
    return before


def _by_node(forced: Tensor, rows: PackedRows | None) -> Tensor:
    """Experts by sequence (B, T, L, k) for the tokens that a pass computes: (N, L, k)"""
    flat = forced.flatten(end_dim=1)
    if rows is None:
        return flat
    # padding takes the first experts; tokens that share a node have the same
    found = torch.arange(forced.shape[-1], device=forced.device).to(forced.dtype)
    found = found.repeat(rows.token_ids.numel(), forced.shape[2], 1)
    found[rows.nodes.flatten()] = flat
    return found


@torch.no_grad()
def _probe(model: PreTrainedModel, candidates: list[nn.Module]) -> dict[nn.Module, tuple[Tensor, ...]]:
    """Outputs, for a few tokens, of the candidates that are routers, in the order of the forward pass."""
    outputs: dict[nn.Module, tuple[Tensor, ...]] = {}

    def keep(module: nn.Module, arguments: Any, output: Any) -> None:
        if _is_choice(output):
            outputs[module] = output

    handles = [candidate.register_forward_hook(keep) for candidate in candidates]
    vocabulary = cast(nn.Embedding, model.get_input_embeddings()).weight.shape[0]
    ids = torch.arange(PROBED_TOKENS, device=model.device)[None] % vocabulary
    model.base_model(input_ids=ids, use_cache=False)
    for handle in handles:
        handle.remove()
    return outputs


def _is_choice(output: Any) -> bool:
    return (
        isinstance(output, tuple)
        and len(output) == 3
        and all(isinstance(part, Tensor) and part.ndim == 2 for part in output)
        and len(output[0]) == len(output[1])
        and output[1].shape == output[2].shape
        and not output[2].is_floating_point()
    )


def _follows(rule: Scores, logits: Tensor, scores: Tensor, chosen: Tensor) -> bool:
    return torch.equal(rule(logits, chosen).to(scores.dtype), scores)
