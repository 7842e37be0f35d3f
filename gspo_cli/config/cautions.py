"""Settings that are valid but probably not intended."""

from __future__ import annotations

from gspo_cli.config.choices import ClipMode, OldLogprobs, Precision, RatioLevel
from gspo_cli.config.schema import RunConfig


def cautions(config: RunConfig) -> list[str]:
    """A sentence for each such setting of `config`."""
    found = []
    algorithm = config.algorithm
    widths = [w for w in (algorithm.clip_range_left, algorithm.clip_range_right) if w is not None]
    if algorithm.has_band and not algorithm.compares_means and min(widths, default=1) < 0.01:
        found.append(
            "algorithm.clip_range: under 0.01 suits sequence ratios; token ratios usually take about 0.2"
        )
    if algorithm.compares_means and max(widths, default=0) > 0.05:
        found.append("algorithm.clip_range: over 0.05 rarely clips a sequence ratio; the paper uses 3e-4")
    if config.training.updates_per_iteration == 1 and algorithm.weighs_by_ratio:
        found.append(
            "training.updates_per_rollout=1: the ratio is always 1, nothing is clipped, and GSPO, "
            "GSPO-token and sequence-mean GRPO have the same gradient"
        )
    of_products = (
        algorithm.ratio_level is RatioLevel.sequence_product and algorithm.clip_mode is ClipMode.none
    )
    if of_products and config.training.updates_per_iteration > 1:
        found.append(
            "algorithm.ratio_level=sequence_product: nothing clips the ratio, a product over an answer's "
            "tokens, so that in later updates a few long answers may outweigh all others; use "
            "training.updates_per_rollout=1, or algorithm=rloo_token"
        )
    if config.rollout.truncates:
        found.append(
            "rollout.top_p, top_k: truncate the sampled distribution, which biases the ratio by the "
            "truncated mass (logged as sampling/truncated_mass)"
        )
    noisy = config.rollout.old_logprobs is OldLogprobs.engine and config.hardware.precision is Precision.bf16
    if noisy and algorithm.compares_means and algorithm.has_band:
        found.append(
            "rollout.old_logprobs=engine: in bf16 the engine's noise is about as wide as a sequence ratio's "
            "clip band and clips answers at random (logged as ratio/first_step_abs_err); recompute is safer"
        )
    if config.task.is_benchmark:
        found.append(
            f"task={config.task.name}: is a benchmark; do not report scores on problems that were trained on"
        )
    return found
