"""Drawing tokens from logits, reproducibly per row.

Shapes: R rows, V vocabulary."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def stream(seed: int, steps: int) -> np.ndarray:
    """Numbers in [0, 1) that depend on the seed alone. -> (steps,)"""
    return np.random.Generator(np.random.Philox(key=seed)).random(steps)


def uniforms(seeds: list[int], steps: int, device: torch.device) -> Tensor:
    """One `stream` per row. -> (R, steps)"""
    return torch.from_numpy(np.stack([stream(seed, steps) for seed in seeds])).to(device)


def draw(logits: Tensor, uniform: Tensor, top_p: float, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Inverse-transform sampling. logits (R, V) at the temperature, uniform (R,) in [0, 1) -> tokens,
    logprobs, truncated mass (R,).

    The log-probability is that of the whole distribution, so that it compares with the trainer's; what top_p
    and top_k leave out is returned: it is a bias."""
    logprobs = logits.log_softmax(dim=-1)
    probabilities = logprobs.double().exp()
    if top_p < 1 or top_k > 0:
        probabilities = torch.where(_kept(probabilities, top_p, top_k), probabilities, 0)
    cumulative = probabilities.cumsum(dim=-1)
    mass = cumulative[:, -1:]
    tokens = torch.searchsorted(cumulative, uniform[:, None].double() * mass, right=True)
    tokens = tokens.clamp(max=logits.shape[-1] - 1)
    return (
        tokens.squeeze(dim=1),
        logprobs.gather(dim=-1, index=tokens).squeeze(dim=1),
        (1 - mass.squeeze(dim=1)).clamp(min=0).float(),
    )


def greedy(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The most likely token. (R, V) -> tokens, logprobs, zeros (R,)"""
    logprobs, tokens = logits.log_softmax(dim=-1).max(dim=-1)
    return tokens, logprobs, torch.zeros_like(logprobs)


def _kept(probabilities: Tensor, top_p: float, top_k: int) -> Tensor:
    ordered, order = probabilities.sort(dim=-1, descending=True)
    before = ordered.cumsum(dim=-1) - ordered
    kept = before < top_p  # the smallest set that reaches top_p; the most likely token is always kept
    if top_k > 0:
        kept[:, top_k:] = False
    return torch.zeros_like(kept).scatter(dim=-1, index=order, src=kept)
