"""Log-probabilities from hidden states, without keeping logits for backward. Scoring, updates and sampling
read the output layer through this module.

Shapes: N tokens, D hidden size, V vocabulary.

Logits are exact: products of fp32 numbers, or of bf16 ones summed in fp32. The error of bf16 logits is larger
than the width of the GSPO band. Copies are bounded: logits of some tokens at a time, and a weight of lower
precision in blocks of its rows, or once for all where it is frozen and the device is a CPU."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

CHUNK_BYTES = {"cpu": 2**24, "cuda": 2**28}  # logits in memory at once
LEAST_ROWS = 16  # tokens of a chunk at any vocabulary
BLOCK_BYTES = 2**26  # rows of a weight that are cast at once


def at_least_fp32(dtype: torch.dtype) -> torch.dtype:
    """The precision of logits."""
    return torch.promote_types(dtype, torch.float32)


def chunk_rows(vocabulary: int, device: str, width: int = 4) -> int:
    """Tokens whose logits, of `width` bytes each, are in memory at once."""
    return max(LEAST_ROWS, CHUNK_BYTES.get(device, CHUNK_BYTES["cuda"]) // (width * vocabulary))


class Head:
    """The output layer of a model, as `LinearLogprobs` and `linear_logits` read it."""

    def __init__(self, layer: nn.Linear) -> None:
        self.layer = layer
        self._kept: tuple[tuple[int, int], Tensor] | None = None

    @property
    def bias(self) -> Tensor | None:
        """The bias of the layer."""
        return self.layer.bias

    @property
    def weight(self) -> Tensor:
        """The weight (V, D); a frozen one of lower precision on a CPU as a copy in fp32, made once."""
        weight = self.layer.weight
        if not keeps_copy(weight):
            return weight
        key = (weight.data_ptr(), weight._version)  # a weight that was replaced is read again
        if self._kept is None or self._kept[0] != key:
            self._kept = (key, weight.detach().to(at_least_fp32(weight.dtype)))
        return self._kept[1]


def keeps_copy(weight: Tensor) -> bool:
    """Whether an output layer's weight is kept in fp32 besides."""
    exact = weight.dtype is at_least_fp32(weight.dtype)
    sharded = hasattr(weight, "ds_id")  # by ZeRO-3, which gathers it for each pass
    return not (exact or weight.requires_grad or sharded or weight.device.type != "cpu")


def linear_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float) -> Tensor:
    """Logits of an output layer in fp32 (or float64), divided by the temperature. (..., D) -> (..., V)"""
    dtype = at_least_fp32(hidden.dtype)
    if weight.dtype is dtype:
        logits = linear(hidden.to(dtype), weight)
    elif hidden.is_cuda and hidden.dtype is weight.dtype:
        flat = torch.mm(hidden.flatten(end_dim=-2), weight.T, out_dtype=dtype)
        logits = flat.view(*hidden.shape[:-1], -1)
    else:
        logits = torch.empty(*hidden.shape[:-1], len(weight), dtype=dtype, device=hidden.device)
        for rows, block in _blocks(weight, dtype):
            logits[..., rows] = linear(hidden.to(dtype), block)
    if bias is not None:
        logits += bias.to(dtype)
    return logits if temperature == 1 else logits / temperature


class LinearLogprobs(torch.autograd.Function):
    """log p(target) and entropy under softmax(hidden @ weight.T + bias); logits are recomputed in
    backward."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        with_entropy: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """hidden (N, D), weight (V, D), bias (V,) or None, targets (N,) -> logprobs (N,), entropy (N,), both
        fp32 (or float64); entropy is 0 and has no gradient without `with_entropy`."""
        dtype = at_least_fp32(hidden.dtype)
        logprobs = torch.empty(len(targets), dtype=dtype, device=hidden.device)
        entropy, log_normalizer = torch.zeros_like(logprobs), torch.empty_like(logprobs)
        for part in _chunks(len(targets), weight):
            logits = linear_logits(hidden[part], weight, bias, temperature)
            log_normalizer[part] = logits.logsumexp(dim=-1)
            logprobs[part] = (
                logits.gather(dim=-1, index=targets[part, None]).squeeze(dim=-1) - log_normalizer[part]
            )
            if with_entropy:
                probabilities = (logits - log_normalizer[part, None]).exp_()
                entropy[part] = log_normalizer[part] - probabilities.mul_(logits).sum(dim=-1)
        ctx.save_for_backward(hidden, weight, bias, targets, log_normalizer, entropy)
        ctx.temperature = temperature
        ctx.set_materialize_grads(False)
        if not with_entropy:
            ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, of_entropy: Tensor | None) -> tuple[Tensor | None, ...]:
        """d log p(y) / d logits = onehot(y) - p, d entropy / d logits = -p (log p + entropy), chunk by
        chunk."""
        hidden, weight, bias, targets, log_normalizer, entropy = ctx.saved_tensors
        grad = torch.zeros_like(log_normalizer) if grad is None else grad
        dtype = at_least_fp32(hidden.dtype)
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=dtype) if ctx.needs_input_grad[1] else None
        grad_bias = torch.zeros_like(bias, dtype=dtype) if ctx.needs_input_grad[2] else None
        for part in _chunks(len(targets), weight):
            logits = linear_logits(hidden[part], weight, bias, ctx.temperature)
            scaled = grad[part, None] / ctx.temperature  # (n, 1)
            log_p = logits.sub_(log_normalizer[part, None])
            if of_entropy is None:
                grad_logits = log_p.exp_().mul_(-scaled)
            else:
                rising = (log_p + entropy[part, None]) * (of_entropy[part, None] / ctx.temperature)
                grad_logits = log_p.exp_().mul_(-(rising + scaled))
            grad_logits.scatter_add_(dim=-1, index=targets[part, None], src=scaled)
            products = (grad_logits[:, rows] @ block for rows, block in _blocks(weight, dtype))
            grad_hidden[part] = functools.reduce(Tensor.add_, products).to(hidden.dtype)
            if grad_weight is not None:
                grad_weight.addmm_(grad_logits.T, hidden[part].to(dtype))
            if grad_bias is not None:
                grad_bias += grad_logits.sum(dim=0)
        grads = (grad_weight, weight), (grad_bias, bias)
        return grad_hidden, *(g if g is None else g.to(p.dtype) for g, p in grads), None, None, None


def _chunks(tokens: int, weight: Tensor) -> list[slice]:
    width = at_least_fp32(weight.dtype).itemsize
    size = chunk_rows(len(weight), weight.device.type, width)
    return [slice(start, start + size) for start in range(0, tokens, size)]


def _blocks(weight: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Rows of `weight` in `dtype`; a weight that has it is one block."""
    if weight.dtype is dtype:
        yield slice(None), weight
        return
    size = max(1, BLOCK_BYTES // (dtype.itemsize * weight.shape[1]))
    for start in range(0, len(weight), size):
        rows = slice(start, start + size)
        yield rows, weight[rows].to(dtype)
