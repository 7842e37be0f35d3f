"""Gates: what a ratio outside of its band, or far from 1, contributes to the objective and its gradient.

Shapes: B sequences, T tokens, aligned as in `gspo_cli.types`. A clip mode turns a ratio r and an advantage A
into a term:

    min            min(r A, clip(r) A)              GSPO paper, Eq. 2, 5; dual clip: arXiv 1912.09729, Eq. 5
    stop_gradient  sg[clip(r)] A log pi             CISPO, arXiv 2506.13585, Eq. 4
    soft_gate      4 / tau sigmoid(tau (r - 1)) A   SAPO, arXiv 2511.20347
    token_log      exp(mean_t clip(log w_t)) A      GMPO, arXiv 2507.20673
    none           r A"""

from __future__ import annotations

import torch
from torch import Tensor

from gspo_cli.config.choices import ClipMode
from gspo_cli.config.schema import AlgorithmConfig

SATURATED = 80.0  # log ratio at which a gate is flat in any precision, and exp is finite in fp32

Sides = tuple[Tensor, Tensor]


def surrogate(
    log_ratio: Tensor,
    token_log_ratio: Tensor,
    logprobs: Tensor,
    advantages: Tensor,
    action_mask: Tensor,
    algorithm: AlgorithmConfig,
) -> tuple[Tensor, Tensor, Tensor]:
    """Objective term, and the tokens clipped from below and from above. `log_ratio`, (B, T) or (B, 1), is at
    the algorithm's level. -> term (B, T) or (B, 1), and two (B, T)

    min(ratio A, clip(ratio) A) is `ratio A` except where A > 0 and ratio > 1 + right, or A < 0 and
    ratio < 1 - left; there it is a constant, so the gradient is exactly 0 (GSPO paper, Eq. 5)."""
    if algorithm.clip_mode is ClipMode.soft_gate:
        never = torch.zeros_like(action_mask)
        return soft_gate(log_ratio, advantages, algorithm.tau_pos, algorithm.tau_neg), never, never
    if algorithm.clip_mode is ClipMode.token_log:
        log_s, low, high = clipped_mean(token_log_ratio, advantages, action_mask, algorithm.log_band)
        return log_s.exp() * advantages, low, high
    bottom, top = algorithm.band
    value = log_ratio.detach().exp()
    weight = value.clamp(min=bottom, max=top) * advantages
    clipped_low, clipped_high = clip_sides(value, advantages, algorithm.clip_mode, algorithm.band)
    if algorithm.clip_mode is ClipMode.stop_gradient:
        # CISPO, arXiv 2506.13585 Eq. 4: only the weight is capped, every token keeps its gradient
        term = weight * torch.where(action_mask, logprobs, 0)
        return term, clipped_low & action_mask, clipped_high & action_mask
    if algorithm.clip_ratio_dual is not None:
        beyond = over_dual(value, advantages, algorithm.clip_ratio_dual)
        weight = torch.where(beyond, algorithm.clip_ratio_dual * advantages, weight)
        clipped_high = clipped_high | beyond
    clipped = clipped_low | clipped_high
    # mask before exp: the gradient of an overflowed ratio is nan even where it is not used
    term = torch.where(clipped, weight, torch.where(clipped, 0, log_ratio).exp() * advantages)
    return term, clipped_low & action_mask, clipped_high & action_mask


def clip_sides(value: Tensor, advantages: Tensor, mode: ClipMode, band: tuple[float, float]) -> Sides:
    """Where a ratio is clipped from below and from above; never where A = 0. With `ClipMode.token_log` value
    and band are of log ratios. (B, T) or (B, 1) -> two of the same shape"""
    low, high = band
    if mode is ClipMode.stop_gradient:
        return (value < low) & (advantages != 0), (value > high) & (advantages != 0)
    return (advantages < 0) & (value < low), (advantages > 0) & (value > high)


def over_dual(value: Tensor, advantages: Tensor, bound: float) -> Tensor:
    """Where the dual clip acts: max(min(r A, clip(r) A), c A) is the constant c A for A < 0 and r > c, as
    arXiv 1912.09729 has it in its Eq. 5. (B, T) or (B, 1) -> of the same shape"""
    return (advantages < 0) & (value > bound)


def soft_gate(log_ratio: Tensor, advantages: Tensor, tau_pos: float, tau_neg: float) -> Tensor:
    """4 / tau sigmoid(tau (r - 1)) A, with `tau_pos` where A > 0, else `tau_neg`. (B, T) or (B, 1) -> of the
    same shape. At r = 1 its gradient is that of r A."""
    tau = gate_temperature(advantages, tau_pos, tau_neg)
    # exp must not overflow: the gradient would be 0 * inf
    distance = torch.expm1(log_ratio.clamp(max=SATURATED))
    return 4 / tau * torch.sigmoid(tau * distance) * advantages


def gate_fading(deviation: Tensor, advantages: Tensor, tau_pos: float, tau_neg: float) -> Tensor:
    """1 - the gate's derivative by r, tanh^2(tau (r - 1) / 2), from `deviation` = r - 1. (B, T) or (B, 1) ->
    of the same shape"""
    return torch.tanh(gate_temperature(advantages, tau_pos, tau_neg) * deviation / 2).square()


def gate_temperature(advantages: Tensor, tau_pos: float, tau_neg: float) -> Tensor:
    """The temperature of each advantage, of its shape."""
    return torch.where(advantages > 0, torch.full_like(advantages, tau_pos), tau_neg)


def clipped_mean(
    token_log_ratio: Tensor, advantages: Tensor, action_mask: Tensor, log_band: tuple[float, float]
) -> tuple[Tensor, Tensor, Tensor]:
    """Logarithm of the geometric mean of clipped token ratios (B, 1), and the trained tokens clipped from
    below and from above, two (B, T). token_log_ratio (B, T), 0 where not trained; advantages (B, 1).

    A token is clipped on the side that its advantage pushes to, as in `min`, and has no gradient there."""
    low, high = clip_sides(token_log_ratio.detach(), advantages, ClipMode.token_log, log_band)
    bounded = torch.where(low, log_band[0], torch.where(high, log_band[1], token_log_ratio))
    count = action_mask.sum(dim=1, keepdim=True).clamp(min=1)
    return bounded.sum(dim=1, keepdim=True) / count, low, high
