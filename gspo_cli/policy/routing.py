"""Which experts a Mixture-of-Experts model chooses: recorded, compared, and on request forced (routing
replay, GSPO paper, section 5.3: GRPO needs it, GSPO does not).

Shapes: B sequences, T tokens, L layers with routers, E experts, k of them chosen per token; N = B * T.

Choices are held as (B, T, L, k) on the model's device, next to the log-probabilities of the same micro-batch,
and cut into rows like these. An id takes one byte up to 256 experts, two above: 64 x 1024 tokens of 48 layers
and 8 experts are 25,165,824 ids, 24 MiB."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

from gspo_cli.config.schema import RunConfig
from gspo_cli.errors import UserError

PROBED_TOKENS = 16


def shares_of_all(logits: Tensor, chosen: Tensor) -> Tensor:
    """Softmax over all experts. (N, E), (N, k) -> (N, k)"""
    return torch.softmax(logits, dim=-1, dtype=torch.float).gather(dim=-1, index=chosen)


def shares_normalised(logits: Tensor, chosen: Tensor) -> Tensor:
    """Softmax over all experts, divided by the sum of the chosen ones. (N, E), (N, k) -> (N, k)"""
    shares = shares_of_all(logits, chosen)
    return shares / shares.sum(dim=-1, keepdim=True)


def shares_of_chosen(logits: Tensor, chosen: Tensor) -> Tensor:
    """Softmax over the chosen experts, in the precision of the logits. (N, E), (N, k) -> (N, k)"""
    return torch.softmax(logits.gather(dim=-1, index=chosen), dim=-1, dtype=logits.dtype)


Scores = Callable[[Tensor, Tensor], Tensor]
RULES: tuple[Scores, ...] = (shares_normalised, shares_of_all, shares_of_chosen)


@dataclass
class RoutingStats:
    """Sums over micro-batches and ranks. A pair is a trained token in a layer, a choice one of its k
    experts."""

    pairs: int = 0
    changed_pairs: int = 0
    choices: int = 0
    replaced_choices: int = 0
    balance_loss_sum: float = 0.0
    balance_loss_sequences: int = 0

    def __add__(self, other: RoutingStats) -> RoutingStats:
        return RoutingStats(**{name: value + vars(other)[name] for name, value in vars(self).items()})


class RouterPass:
    """One forward: what each layer's router chose by itself, whatever was forced."""

    def __init__(self, forced: Tensor | None, with_logits: bool) -> None:
        self.forced, self.with_logits = forced, with_logits
        self._chosen: dict[int, Tensor] = {}  # by layer, (N, k)
        self._logits: dict[int, Tensor] = {}  # by layer, (N, E)

    def note(self, layer: int, logits: Tensor, chosen: Tensor) -> None:
        """Keep the first report of a layer: gradient checkpointing computes it again in backward."""
        if layer not in self._chosen:
            self._chosen[layer] = chosen.to(torch.uint8 if logits.shape[-1] <= 256 else torch.int16)
            if self.with_logits:
                self._logits[layer] = logits

    def experts(self, shape: torch.Size) -> Tensor | None:
        """Expert ids in each router's own order, for token ids of `shape` (B, T): (B, T, L, k); None where
        the model has no routers."""
        if not self._chosen:
            return None
        layers = [self._chosen[layer] for layer in sorted(self._chosen)]
        return torch.stack([chosen.view(*shape, -1) for chosen in layers], dim=2)

    def changes(self, before: Tensor, action_mask: Tensor) -> RoutingStats:
        """How the choices differ, as sets, from `before` (B, T, L, k), at positions that predict a trained
        token: not at what the policy is told, and not at padding."""
        there = predicting(action_mask)  # (B, T)
        was, now = before[there], self.experts(action_mask.shape)[there]  # (n, L, k)
        kept = sum((was == now[..., place, None]).any(dim=-1).long() for place in range(now.shape[-1]))
        return RoutingStats(
            pairs=kept.numel(),
            changed_pairs=int((kept < now.shape[-1]).sum()),
            choices=now.numel(),
            replaced_choices=now.numel() - int(kept.sum()),
        )

    def balance_loss(self, action_mask: Tensor) -> Tensor:
        """Load-balancing loss of Switch (Fedus et al. 2021, Eq. 4-6) over all layers, k where all experts are
        chosen alike; of each row's tokens up to the last that predicts a trained one, so without padding."""
        used = predicting(action_mask).flip(dims=(1,)).cumsum(dim=1).flip(dims=(1,)) > 0
        logits = tuple(self._logits[layer].float() for layer in sorted(self._logits))
        return load_balancing_loss_func(logits, logits[0].shape[-1], self._chosen[0].shape[-1], used)


class Routing:
    """The routers of a model (none in a dense one), in the order in which they act.

    A router is a module named `...TopKRouter` that answers (logits (N, E), scores (N, k), ids (N, k)).
    `scores` is the rule by which they weigh the chosen experts, found by trying: None where none of `RULES`
    gives their own scores to the last bit. In bf16 more than one may; these differ by a rounding at most."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.layers = 0
        self.scores: Scores | None = None
        self._present: RouterPass | None = None
        candidates = [m for m in model.modules() if type(m).__name__.lower().endswith("topkrouter")]
        if candidates:
            answers = _probe(model, candidates)
            for layer, router in enumerate(answers):
                router.register_forward_hook(partial(self._hook, layer))
            self.layers = len(answers)
            fitting = (rule for rule in RULES if all(_follows(rule, *a) for a in answers.values()))
            self.scores = next(fitting, None) if answers else None

    @contextmanager
    def watched(self, forced: Tensor | None = None, with_logits: bool = False) -> Iterator[RouterPass]:
        """A block with one forward and its backward, in which routers report what they choose; with `forced`
        (B, T, L, k) those experts act instead, weighed by the present logits, through which gradients flow.

        The backward belongs inside: gradient checkpointing computes the forward again there."""
        self._present = RouterPass(forced, with_logits)
        try:
            yield self._present
        finally:
            self._present = None

    def _hook(self, layer: int, router: nn.Module, arguments: Any, answer: tuple[Tensor, ...]) -> Any:
        present = self._present
        if present is None:
            return None  # leaves the answer as it is
        logits, scores, chosen = answer
        present.note(layer, logits, chosen)
        if present.forced is None:
            return None
        forced = present.forced[:, :, layer].reshape(chosen.shape).to(chosen.dtype)
        return logits, self.scores(logits, forced).to(scores.dtype), forced


def require_routing(routing: Routing, config: RunConfig) -> None:
    """Raise UserError where a setting for routers meets a model without routers that can take it."""
    if routing.scores is not None:
        return
    reason = (
        "weighs its experts in a way not known here" if routing.layers else "has no experts to choose from"
    )
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


@torch.no_grad()
def _probe(model: PreTrainedModel, candidates: list[nn.Module]) -> dict[nn.Module, tuple[Tensor, ...]]:
    """Answers of the candidates that are routers, in the order in which they act on a few tokens."""
    answers: dict[nn.Module, tuple[Tensor, ...]] = {}

    def keep(module: nn.Module, arguments: Any, answer: Any) -> None:
        if _is_choice(answer):
            answers[module] = answer

    handles = [candidate.register_forward_hook(keep) for candidate in candidates]
    vocabulary = model.get_input_embeddings().weight.shape[0]
    ids = torch.arange(PROBED_TOKENS, device=model.device)[None] % vocabulary
    model.base_model(input_ids=ids, use_cache=False)
    for handle in handles:
        handle.remove()
    return answers


def _is_choice(answer: Any) -> bool:
    return (
        isinstance(answer, tuple)
        and len(answer) == 3
        and all(isinstance(part, Tensor) and part.ndim == 2 for part in answer)
        and len(answer[0]) == len(answer[1])
        and answer[1].shape == answer[2].shape
        and not answer[2].is_floating_point()
    )


def _follows(rule: Scores, logits: Tensor, scores: Tensor, chosen: Tensor) -> bool:
    return torch.equal(rule(logits, chosen).to(scores.dtype), scores)
