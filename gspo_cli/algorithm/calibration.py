"""Clip calibration: the clip widths that would have clipped a given share of an iteration's trained tokens,
computed from the ratios of its updates.

It compares algorithms whose ratios spread differently at an equal clip fraction, as an alternative to the
widths of the paper. The first iteration takes the configured widths, each later one those calibrated on the
iteration before.

Shapes: B sequences, T tokens, aligned as in `gspo_cli.types`; N candidates for a clip."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gspo_cli.algorithm.gates import clip_sides
from gspo_cli.algorithm.objective import level_log_ratio, token_log_ratio
from gspo_cli.config.choices import ClipMode
from gspo_cli.config.schema import AlgorithmConfig

NARROWEST = 1e-8  # a width of 0 is not allowed


@dataclass(frozen=True)
class Candidates:
    """What a band of width 0 would clip: `deviation` is ratio - 1 (with clip_mode=token_log the log ratio),
    negative where clipped from below, and `tokens` the number of trained tokens of that ratio (1 for a token
    ratio). Both (N,) float32, unordered."""

    deviation: np.ndarray
    tokens: np.ndarray


@torch.no_grad()
def candidates(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    action_mask: Tensor,
    algorithm: AlgorithmConfig,
) -> Candidates:
    """The candidates of a micro-batch. Three (B, T), advantages (B, 1) or (B, T), depending on the ratio
    level. The tokens that `clip_ratio_dual` bounds are none of them: they come on top of the share."""
    log_ratio = token_log_ratio(logprobs.detach(), old_logprobs, action_mask)
    per_token = algorithm.clips_tokens
    at_level = log_ratio if per_token else level_log_ratio(log_ratio, action_mask, algorithm.ratio_level)
    in_logs = algorithm.clip_mode is ClipMode.token_log
    deviation = at_level if in_logs else torch.expm1(at_level)  # exact near 0, where the GSPO band lies
    low, high = clip_sides(deviation, advantages, algorithm.clip_mode, (0.0, 0.0))
    would_clip = (low | high) & action_mask  # (B, T)
    if per_token:
        found = deviation[would_clip]
        tokens = torch.ones_like(found)
    else:
        tokens = would_clip.sum(dim=1).float()
        found, tokens = deviation[tokens > 0, 0], tokens[tokens > 0]
    return Candidates(found.float().cpu().numpy(), tokens.cpu().numpy())


def calibrated(
    seen: Sequence[Candidates],
    trained_tokens: int,
    fraction: float,
    widths: tuple[float | None, float | None],
    widest_left: float = 1.0,
) -> tuple[float | None, float | None]:
    """Widths (left, right) for the next iteration, in place of `widths`.

    Together the bounded sides should clip `fraction` of all `trained_tokens` (including those with A = 0 and
    those of the first minibatch): half from below and half from above, or all on the only bounded side. At
    most that many are clipped: the ratio at the quantile itself is not clipped. A side with fewer candidates
    than it should clip takes the smallest deviation among them, at least 1e-8; without candidates it keeps
    its width. An unbounded side stays unbounded. The left width is at most `widest_left`: a ratio is never
    below 0, a log ratio may be below -1."""
    deviation = np.concatenate([np.empty(0, np.float32), *(part.deviation for part in seen)])
    tokens = np.concatenate([np.empty(0, np.float32), *(part.tokens for part in seen)])
    bounded = [width for width in widths if width is not None]
    to_clip = fraction * trained_tokens / max(1, len(bounded))
    left, right = (
        width if width is None else _width(np.abs(deviation[side]), tokens[side], to_clip, width)
        for side, width in zip((deviation < 0, deviation > 0), widths, strict=True)
    )
    return left if left is None else min(widest_left, left), right


def _width(distances: np.ndarray, tokens: np.ndarray, to_clip: float, present: float) -> float:
    """The weighted quantile of `distances` (N,) beyond which at most `to_clip` of `tokens` (N,) lie."""
    total = float(tokens.sum(dtype=np.float64))
    if total == 0:
        return present
    share = max(0.0, 1 - to_clip / total)
    width = float(np.quantile(distances.astype(np.float64), share, weights=tokens, method="inverted_cdf"))
    return max(NARROWEST, width) if math.isfinite(width) else present
