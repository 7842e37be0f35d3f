"""Log-probabilities from hidden states, without keeping logits for backward.

Shapes: N tokens, D hidden size, V vocabulary."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

CHUNK_ELEMENTS = 2**22  # fp32 logits in memory at once: 16 MiB


def at_least_fp32(dtype: torch.dtype) -> torch.dtype:
    """The precision of logits: the error of bf16 logits is larger than the width of the GSPO band."""
    return torch.promote_types(dtype, torch.float32)


def linear_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float) -> Tensor:
    """Logits of an LM head in fp32 (or float64), divided by the temperature. (N, D) -> (N, V)"""
    dtype = at_least_fp32(hidden.dtype)  # of the product itself
    logits = linear(hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))
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
        fp32 (or float64); entropy is 0 without `with_entropy`."""
        dtype = at_least_fp32(hidden.dtype)
        logprobs = torch.empty(len(targets), dtype=dtype, device=hidden.device)
        entropy, log_normalizer = torch.zeros_like(logprobs), torch.empty_like(logprobs)
        exact = weight.to(dtype)
        for part in _chunks(len(targets), weight.shape[0]):
            logits = linear_logits(hidden[part], exact, bias, temperature)
            log_normalizer[part] = logits.logsumexp(dim=-1)
            logprobs[part] = (
                logits.gather(dim=-1, index=targets[part, None]).squeeze(dim=-1) - log_normalizer[part]
            )
            if with_entropy:
                probabilities = (logits - log_normalizer[part, None]).exp_()
                entropy[part] = log_normalizer[part] - probabilities.mul_(logits).sum(dim=-1)
        ctx.save_for_backward(hidden, weight, bias, targets, log_normalizer)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        """d log p(y) / d logits = onehot(y) - softmax, chunk by chunk."""
        hidden, weight, bias, targets, log_normalizer = ctx.saved_tensors
        dtype = at_least_fp32(hidden.dtype)
        exact = weight.to(dtype)
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(exact) if ctx.needs_input_grad[1] else None
        grad_bias = torch.zeros_like(bias, dtype=dtype) if ctx.needs_input_grad[2] else None
        for part in _chunks(len(targets), weight.shape[0]):
            logits = linear_logits(hidden[part], exact, bias, ctx.temperature)
            scaled = grad[part, None] / ctx.temperature  # (n, 1)
            grad_logits = logits.sub_(log_normalizer[part, None]).exp_().mul_(-scaled)
            grad_logits.scatter_add_(dim=-1, index=targets[part, None], src=scaled)
            grad_hidden[part] = (grad_logits @ exact).to(hidden.dtype)
            if grad_weight is not None:
                grad_weight.addmm_(grad_logits.T, hidden[part].to(dtype))
            if grad_bias is not None:
                grad_bias += grad_logits.sum(dim=0)
        grads = (grad_weight, weight), (grad_bias, bias)
        return grad_hidden, *(g if g is None else g.to(p.dtype) for g, p in grads), None, None, None


def _chunks(tokens: int, vocabulary: int) -> list[slice]:
    size = max(16, CHUNK_ELEMENTS // vocabulary)
    return [slice(start, start + size) for start in range(0, tokens, size)]
