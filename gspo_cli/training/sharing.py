"""Whether common beginnings of answers may be computed once: by the model's configuration, then by trying it.

Rows of prefix trees need a model whose attention takes any mask and whose positions are given, and nothing
besides attention that carries anything from one token to the next."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from gspo_cli.config.choices import SharePrefixes
from gspo_cli.config.schema import RunConfig
from gspo_cli.policy.packed import LONGEST_ROW, PackedRows
from gspo_cli.policy.policy import Policy
from gspo_cli.policy.tree_attention import has_tree_attention
from gspo_cli.policy.weights import full_shape
from gspo_cli.randomness import generator
from gspo_cli.training.batch import padded
from gspo_cli.training.memory_plan import longest_conversation
from gspo_cli.training.strategy import Strategy

BRANCH = 24  # tokens of the sequence that parts from the long one
BEGINNING = 8  # tokens that both begin with
SAME_FP32 = 1e-3  # nats; a wrong mask or position changes log-probabilities by far more
NOISE_TIMES = 4  # in bf16: as many times the difference between plain layouts, or kernels of attention
NOISE_TOKENS = 1024  # the plain kernel keeps the scores of all pairs


@dataclass(frozen=True)
class Sharing:
    """Whether beginnings are shared, and why not in words. `attention_share` is what a token's attention to
    one other costs, relative to what the token costs besides."""

    on: bool
    reason: str = ""
    attention_share: float = 0.0


ALONE = Sharing(False)


def sharing(config: RunConfig, policy: Policy, strategy: Strategy) -> Sharing:
    """The decision for a run. Every rank makes the same calls."""
    if config.training.share_prefixes is SharePrefixes.off:
        return Sharing(False, "training.share_prefixes=off")
    longest = longest_conversation(config, policy.max_positions)
    single_turn = config.task.single_turn
    reason = obstacle(policy, longest if single_turn else policy.max_positions)
    if reason is None:
        tried = _tried(config, policy, strategy, min(longest, LONGEST_ROW - BRANCH))
        # ranks round alike, but a single one that decides otherwise would train other answers
        reason = next((found for found in strategy.ranks.gather([tried]) if found), None)
    return Sharing(False, reason) if reason else Sharing(True, attention_share=attention_share(policy))


def obstacle(policy: Policy, longest: int) -> str | None:
    """What in a model's configuration rules sharing out for conversations of up to `longest` tokens."""
    shape = policy.causal_model.config.get_text_config()
    values: Mapping[str, Any] = shape.to_dict()
    attention = shape._attn_implementation or ""
    if "flash" in attention:
        return f"{attention} takes no mask of a tree"
    if values.get("alibi") or values.get("position_embedding_type") == "alibi":
        return "its positions are distances (ALiBi)"
    windows = [values.get("sliding_window"), values.get("attention_chunk_size")]
    kinds = set(values.get("layer_types") or [])
    if not kinds:
        kinds = {"sliding_attention"} if any(windows) and values.get("use_sliding_window", True) else set()
    others = sorted(kinds - {"full_attention", "sliding_attention", "chunked_attention"})
    if others:
        return f"it has layers of {others[0]}"
    windowed = bool(kinds - {"full_attention"})
    smallest = min((window for window in windows if window), default=0)
    if windowed and smallest < longest:
        return f"its attention is limited to {smallest:,} tokens, and conversations may have {longest:,}"
    return None


def attention_share(policy: Policy) -> float:
    """Operations of a token's attention to one other, over those of its matrix products."""
    shape = policy.causal_model.config.get_text_config()
    values: Mapping[str, Any] = shape.to_dict()
    heads = shape.num_attention_heads
    queries = heads * (values.get("head_dim") or shape.hidden_size // heads)
    experts = values.get("num_experts") or values.get("num_local_experts") or 1
    used = (values.get("num_experts_per_tok") or 1) / experts
    products = 0.0
    for name, parameter in policy.causal_model.base_model.named_parameters():
        size = full_shape(parameter)
        if len(size) > 1 and "embed" not in name:
            products += np.prod(size) * (used if ".experts." in name else 1)
    return float(2 * shape.num_hidden_layers * queries / products)


def _tried(config: RunConfig, policy: Policy, strategy: Strategy, longest: int) -> str | None:
    """Score a sequence of the longest length, and one that parts from it early, in a tree and by themselves.
    An error is a difference, too."""
    draw = generator(config.seed, "sharing")
    vocabulary = policy.causal_model.config.get_text_config().vocab_size
    long = draw.integers(vocabulary, size=max(longest, BEGINNING + 2))
    short = np.concatenate([long[:BEGINNING], draw.integers(vocabulary, size=BRANCH)])
    sequences = sorted((long, short), key=list)
    masks = [np.arange(len(ids)) > 0 for ids in sequences]
    together = _side_by_side(sequences, masks, policy)
    rows = PackedRows.of([sequences], masks, together[0].shape[1], policy.chat.pad_id, policy.device)

    def score(ids: Tensor, mask: Tensor, rows: PackedRows | None = None) -> Tensor:
        return strategy.forward(ids, mask, 1.0, rows=rows)[0]

    with torch.no_grad():
        alone = [_side_by_side([one], [mask], policy) for one, mask in zip(sequences, masks, strict=True)]
        plain = [score(*one)[0] for one in alone]
        try:
            found = score(*together, rows)
            if has_tree_attention(policy.causal_model) and not strategy.collective:
                _differentiate(policy, lambda: score(*together, rows))
        except Exception as error:  # whatever a model's own code raises on such a mask
            return f"it failed on a tree ({type(error).__name__}: {error})"
        limit = SAME_FP32
        if policy.autocast is not None or policy.causal_model.dtype is not torch.float32:
            noise = max(_difference(plain, score(*together)), _kernel_noise(long, policy, score))
            wrong = _ignored_mask(long, short, policy, score)
            limit = max(limit, min(NOISE_TIMES * noise, wrong / NOISE_TIMES))
    difference = _difference(plain, found)
    if difference <= limit:
        return None
    return f"its log-probabilities differ by {difference:.1g} nats in a tree"


def _kernel_noise(ids: np.ndarray, policy: Policy, score: Callable[..., Tensor]) -> float:
    """What the first tokens of a plain row differ by between two kernels of attention: a tree's mask asks for
    another one than a plain row does, which rounds otherwise."""
    ids = ids[:NOISE_TOKENS]
    row = _side_by_side([ids], [np.arange(len(ids)) > 0], policy)
    plain = score(*row)
    with sdpa_kernel(SDPBackend.MATH):
        return _difference([plain[0]], score(*row))


def _ignored_mask(long: np.ndarray, short: np.ndarray, policy: Policy, score: Callable[..., Tensor]) -> float:
    """What the tokens that part differ by where they see all of the long sequence, too, as they would if a
    model took no notice of the mask."""
    before = long[: max(BEGINNING, len(long) - BRANCH)]  # so that the row is no longer than the other
    after = np.concatenate([before, short[BEGINNING:]])
    seen, alone = (
        score(*_side_by_side([ids], [np.arange(len(ids)) > 0], policy))[0] for ids in (after, short)
    )
    return _difference([alone[BEGINNING:]], seen[None, len(before) :])


def _differentiate(policy: Policy, score: Callable[[], Tensor]) -> None:
    """Run a backward pass, whose gradient is not kept: flex_attention compiles it apart from the forward, and
    may fail in it alone."""
    with torch.enable_grad(), policy.updating():
        torch.autograd.grad(score().sum(), policy.trainable(), allow_unused=True)


def _side_by_side(sequences: list[Any], masks: list[Any], policy: Policy) -> tuple[Tensor, Tensor]:
    width, pad_id = max(map(len, sequences)), policy.chat.pad_id
    ids = padded(sequences, width, pad_id, torch.long, policy.device)
    return ids, padded(masks, width, False, torch.bool, policy.device)


def _difference(plain: list[Tensor], batch: Tensor) -> float:
    """Largest difference; infinite if one is not a number."""
    parts = [(row - other[: len(row)]).abs().max() for row, other in zip(plain, batch, strict=True)]
    return torch.stack(parts).max().nan_to_num(torch.inf).item()
