"""Lines of metrics.jsonl as a run that learns writes them, to be changed by tests."""

from __future__ import annotations

import copy
from functools import cache

from gspo_cli.config.compose import build_config, plain_values
from gspo_cli.config.stored import StoredConfig, stored_config
from tests.support.configs import composed_from_parts


@cache
def _settings(*overrides: str) -> StoredConfig:
    node = composed_from_parts("training.num_outer_iterations=100", *overrides)
    build_config(node)
    return stored_config(plain_values(node), "config.yaml")


def settings(*overrides: str) -> StoredConfig:
    """What config.yaml of a run of 100 iterations would hold."""
    return copy.deepcopy(_settings(*overrides))


def line(iteration: int, **changed) -> dict:
    """An iteration of a run that learns; `a__b` stands for a/b."""
    healthy = {
        "iteration": iteration,
        "reward": min(0.9, 0.2 + 0.02 * iteration + 0.01 * (-1) ** iteration),
        "reward_std": 0.3,
        "solved": 0.4,
        "frac_reward_zero_std": 0.2,
        "completions/mean_length": 50.0,
        "completions/clipped_ratio": 0.05,
        "completions/repetition": 0.05,
        "entropy": max(0.02, 0.5 - 0.02 * iteration),
        "loss": 1e-3,
        "clip_ratio/token": 0.3,
        "clip_ratio/sequence": 0.3,
        "ratio/std": 0.01,
        "ratio/first_step_abs_err": 1e-7,
        "grad_norm": 1.0 + 0.5 * (iteration % 3),
        "learning_rate": 1e-4,
        "updates": 4,
        "updates_skipped": 0,
        "excluded": 0,
        "oom_events": 0,
        "tokens_per_microbatch": 1024,
        "memory/peak_gb": 1.5,
    }
    return healthy | {name.replace("__", "/"): value for name, value in changed.items()}


def run_of(iterations: int, start: int = 1, **changed) -> list[dict]:
    """Iterations 1 to `iterations`, with `changed` from `start` on; a function is given the iteration."""
    return [
        line(
            i,
            **{
                name: value(i) if callable(value) else value
                for name, value in (changed if i >= start else {}).items()
            },
        )
        for i in range(1, iterations + 1)
    ]


def only(findings):
    assert len(findings) == 1, findings
    return findings[0]
