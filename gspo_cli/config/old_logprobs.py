"""When `rollout.old_logprobs=auto` may take the engine's log-probabilities, as far as settings tell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from gspo_cli.config.choices import Engine, EngineCorrection, OldLogprobs, Precision
from gspo_cli.config.schema import RunConfig

ENGINE_SHARE = 0.05  # of the narrowest clip width


def needs_recompute(config: RunConfig) -> str | None:
    """The setting that needs recomputed log-probabilities; None if none does."""
    algorithm, rollout, hardware = config.algorithm, config.rollout, config.hardware
    reasons = {
        f"task={config.task.name}, whose agent may read its own words anew": config.task.runs_agent,
        f"rollout.engine={rollout.engine.value}": rollout.engine is not Engine.transformers,
        f"hardware.precision={hardware.precision.value}": hardware.precision is not Precision.fp32,
        f"hardware.zero_stage={hardware.zero_stage}": hardware.zero_stage > 0,
        f"algorithm.preference={algorithm.preference.value}": algorithm.in_pairs,
        "algorithm.routing_replay=true": algorithm.routing_replay,
        "algorithm.engine_correction": algorithm.engine_correction is not EngineCorrection.none,
        "algorithm.clip_calibration": algorithm.is_calibrated,
        "rollout.top_p or top_k": rollout.truncates,
        "training.updates_per_rollout=1, which scores nothing": config.training.updates_per_rollout == 1,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def narrowest_width(config: RunConfig) -> float:
    """The narrower side of the clip band; infinite without one."""
    algorithm = config.algorithm
    widths = [w for w in (algorithm.clip_range_left, algorithm.clip_range_right) if w is not None]
    return min(widths) if algorithm.has_band and widths else math.inf


def shared_by_runs(configs: Sequence[RunConfig]) -> dict[str, Any]:
    """What runs that are compared must have in common, as settings of `rollout` by name: recomputation, if
    one of them needs it, or the narrowest clip width."""
    if any(config.rollout.old_logprobs is not OldLogprobs.auto for config in configs):
        return {}
    reason = next((found for found in map(needs_recompute, configs) if found), None)
    if reason is not None:
        chosen = f"a run of the comparison needs it, because of {reason}"
        return {"old_logprobs": OldLogprobs.recompute, "old_logprobs_chosen": chosen}
    width = min(map(narrowest_width, configs))
    return {"old_logprobs_band": width} if math.isfinite(width) else {}
