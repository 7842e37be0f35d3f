"""Run folders as gspo-train leaves them, made of numbers drawn here, so that what is in them is known.

The held-out score climbs from `initial` to `final` (1 - exp, time constant a third of the run), every draw
comes from (seed, algorithm), and what runs of one seed share, their first rollout, from the seed alone."""

from __future__ import annotations

import copy
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from gspo_cli.compare.runs import StoredRun
from gspo_cli.config.compose import register
from tests.support.diagnosed_runs import settings

register()

SHADOWS = {"gspo": ["grpo"], "gspo_token": ["grpo"], "grpo": ["gspo"]}
CLIP = {"gspo": 0.15, "gspo_token": 0.15, "grpo": 0.0013}
SPREAD = {"gspo": 4e-3, "gspo_token": 4e-3, "grpo": 4e-2}


@dataclass(frozen=True)
class Plan:
    """What a synthetic run is like. `seed_spread` moves the final score of all runs of a seed together,
    `noise` that of each run alone (both standard deviations); `jitter` is that of a single evaluation or
    iteration. `clip` None takes the algorithm's usual one. `ends` is the last iteration (None: all)."""

    algorithm: str = "gspo"
    seed: int = 0
    iterations: int = 40
    final: float = 0.7
    initial: float = 0.3
    seed_spread: float = 0.01
    noise: float = 0.02
    jitter: float = 0.01
    clip: float | None = None
    length: float = 40.0
    problems: int = 200
    every: int = 10
    samples: int = 4
    status: str = "completed"
    ends: int | None = None
    collapses_at: int | None = None
    spikes_at: Sequence[int] = ()
    expert_change: float | None = None
    newer: bool = True  # with heldout.jsonl and the keys of shadows, lengths and KL
    overrides: Sequence[str] = ()

    @property
    def last(self) -> int:
        return self.iterations if self.ends is None else self.ends

    def draws(self, *purpose: str) -> np.random.Generator:
        """Independent numbers for a purpose."""
        return np.random.default_rng([self.seed, *(zlib.crc32(text.encode()) for text in purpose)])


def config_of(plan: Plan) -> dict[str, Any]:
    """config.yaml of the run."""
    composed = settings(
        "task=arithmetic", f"algorithm={plan.algorithm}", "hardware.threads=1", *plan.overrides
    ).plain
    composed.pop("resume")
    composed["seed"] = plan.seed
    composed["training"]["num_outer_iterations"] = plan.iterations
    composed["evaluation"] |= {"every": plan.every, "problems": plan.problems, "samples": plan.samples}
    return composed


def score_curve(plan: Plan, at: np.ndarray) -> np.ndarray:
    """Held-out score at iterations `at`; the first is `initial` in every run."""
    final = plan.final + plan.seed_spread * plan.draws("shared").normal()
    final += plan.noise * plan.draws("own", plan.algorithm).normal()
    rise = (1 - np.exp(-3 * at / plan.iterations)) / (1 - np.exp(-3))
    wobble = plan.jitter * plan.draws("wobble", plan.algorithm).normal(size=plan.iterations + 1)[at]
    score = plan.initial + (final - plan.initial) * rise + wobble * (at > 0) * (at < plan.iterations)
    if plan.collapses_at is not None:
        score = np.where(at >= plan.collapses_at, 0.05, score)
    return np.clip(score, 0.0, 1.0)


def metrics_of(plan: Plan) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    at = np.arange(1, plan.last + 1)
    own, first = plan.draws("metrics", plan.algorithm), plan.draws("first")
    wave = own.normal(size=(12, len(at)))
    reward = np.clip(score_curve(plan, at) * 0.8 + 0.01 * wave[0], 0, 1)
    reward[0] = 0.8 * plan.initial + 0.01 * first.normal()
    lengths = plan.length * (1 + 0.02 * wave[1])
    lengths[0] = 40.0 * (1 + 0.02 * first.normal())
    tokens = np.cumsum(np.round(lengths * 256)).astype(int)
    clip = (CLIP[plan.algorithm] if plan.clip is None else plan.clip) * np.exp(0.1 * wave[2])
    spread = SPREAD[plan.algorithm] * np.exp(0.1 * wave[3])
    norm = np.exp(0.2 * wave[4]) * np.where(np.isin(at, list(plan.spikes_at)), 30.0, 1.0)
    seconds = 10.0 * (1 + 0.05 * wave[5])
    sequence = clip if plan.algorithm == "grpo" else np.minimum(1.0, clip * 1.1)
    columns = {
        "reward": reward,
        "reward_std": np.full(len(at), 0.2),
        "solved": reward,
        "rewards/exact/mean": reward,
        "completions/mean_length": lengths,
        "completions/clipped_ratio": np.abs(0.01 * wave[6]),
        "completions/repetition": np.abs(0.02 * wave[7]),
        "frac_reward_zero_std": np.full(len(at), 0.2),
        "clip_ratio/low_mean": clip / 2,
        "clip_ratio/high_mean": clip / 2,
        "clip_ratio/region_mean": clip,
        "clip_ratio/token": clip,
        "clip_ratio/sequence": sequence,
        "entropy": 0.2 + 0.6 * np.exp(-at / 20) * np.exp(0.05 * wave[8]),
        "grad_norm": norm,
        "ratio/mean": 1 + 0.1 * spread * wave[9],
        "ratio/min": 1 - 4 * spread,
        "ratio/max": 1 + 4 * spread,
        "ratio/std": spread,
        "loss": 1e-4 * wave[10],
        "tokens_per_second": lengths * 256 / seconds,
        "time/iteration": seconds,
    }
    if plan.newer:
        columns |= _newer_columns(plan, lengths, clip, sequence, spread)
    if plan.expert_change is not None:
        columns["moe/expert_change"] = plan.expert_change * np.exp(0.1 * wave[11])
        columns["moe/experts_replaced"] = 0.4 * columns["moe/expert_change"]
    same = {
        "completions/min_length": 4, "completions/max_length": 200, "num_turns": 1.0, "turns_exhausted": 0.0,
        "excluded": 0, "sampling/rounds": 1, "sampling/truncated_mass": 1e-8, "learning_rate": 1e-4,
        "updates": 4, "updates_skipped": 0, "ratio/first_step_abs_err": 0.0, "oom_events": 0,
        "tokens_per_microbatch": 8192, "sampling/logp_difference/mean": 3e-7,
        "sampling/logp_difference/max": 1e-5, "memory/peak_gb": 0.5, "rollbacks": 0,
    }  # fmt: skip
    rows = zip(*(values.tolist() for values in columns.values()), strict=True)
    return [
        {"iteration": i + 1, **dict(zip(columns, row, strict=True)), **same, "epoch": (i + 1) / 100}
        | {"num_tokens": int(tokens[i])}
        for i, row in enumerate(rows)
    ]


def _newer_columns(
    plan: Plan, lengths: np.ndarray, clip: np.ndarray, sequence: np.ndarray, spread: np.ndarray
) -> dict[str, np.ndarray]:
    band = (0.2, 0.27) if plan.algorithm == "grpo" else (3e-4, 4e-4)
    columns = {
        "length/short_mean": 0.6 * lengths,
        "length/long_mean": 1.4 * lengths,
        "clip_ratio/short": 1.1 * clip,
        "clip_ratio/long": 0.95 * clip,
        "ratio/short_std": 1.2 * spread,
        "ratio/long_std": 0.8 * spread,
        "clip_range/left": np.full(len(lengths), band[0]),
        "clip_range/right": np.full(len(lengths), band[1]),
    }
    for other in SHADOWS[plan.algorithm]:
        factor = CLIP[other] / CLIP[plan.algorithm]
        columns |= {
            f"shadow/{other}/clip_token": factor * clip,
            f"shadow/{other}/clip_sequence": np.minimum(1.0, factor * sequence),
            f"shadow/{other}/weight_correlation": 0.4 + 0 * clip,
        }
    return columns


def evaluations_of(plan: Plan, metrics: Sequence[Mapping[str, Any]]) -> tuple[list[dict], list[dict]]:
    """The lines of evals.jsonl and of heldout.jsonl."""
    at = sorted({*range(0, plan.last + 1, plan.every), plan.iterations} & set(range(plan.last + 1)))
    scores = score_curve(plan, np.array(at))
    difficulty = np.random.default_rng(7).random(plan.problems)  # of the problems: the same in all runs
    evals, heldout = [], []
    for iteration, score in zip(at, scores, strict=True):
        draws = plan.draws("first" if iteration == 0 else plan.algorithm, str(iteration))
        order = np.argsort(difficulty + 0.15 * draws.normal(size=plan.problems))
        solved = np.zeros(plan.problems, dtype=bool)
        solved[order[: round(score * plan.problems)]] = True
        right = np.where(solved, plan.samples, plan.samples // 4) if plan.samples else None
        share = solved.sum() / plan.problems
        record = {
            "iteration": iteration,
            "score": float(share),
            "reward": float(share),
            "mean_length": 40.0,
            "num_turns": 1.0,
            "clipped_ratio": 0.0,
            "num_problems": plan.problems,
            "excluded": 0,
            **(
                {"pass@1": 0.8 * float(share), "pass@4": min(1.0, float(share) + 0.1)} if plan.samples else {}
            ),
            "num_tokens": metrics[iteration - 1]["num_tokens"] if iteration else 0,
            "time/eval": 0.5,
        }
        evals.append(record | ({"kl": 0.004 * iteration**0.7} if plan.newer else {}))
        heldout.append(_heldout_line(plan, iteration, solved, right))
    return evals, heldout if plan.newer else []


def _heldout_line(plan: Plan, iteration: int, solved: np.ndarray, right: np.ndarray | None) -> dict[str, Any]:
    talks = [
        {
            "iteration": iteration,
            "problem_id": f"{i}+{i + 3}=",
            "messages": [
                {"role": "user", "content": f"{i}+{i + 3}="},
                {"role": "assistant", "content": str(2 * i + 3 if solved[i] else i)},
            ],
            "expected": str(2 * i + 3),
            "reward": float(solved[i]),
            "components": {"exact": float(solved[i])},
            "finish_reason": "stop",
            "advantage": None,
            "excluded": None,
        }
        for i in range(min(4, plan.problems))
    ]
    return {
        "iteration": iteration,
        "problems": [f"{i}+{i + 3}=" for i in range(plan.problems)],
        "solved": solved.tolist(),
        "sampled": None if right is None else [[count, plan.samples] for count in right.tolist()],
        "conversations": talks,
    }


def summary_of(plan: Plan, config: Mapping[str, Any], metrics: Sequence, evals: Sequence) -> dict[str, Any]:
    """summary.json."""
    return {
        "status": plan.status,
        "algorithm": config["algorithm"]["name"],
        "model": config["model"]["label"],
        "model_name": config["model"]["name"],
        "task": config["task"]["name"],
        "seed": plan.seed,
        "reward_object": False,
        "iterations": plan.last,
        "total_iterations": plan.iterations,
        "initial_eval": evals[0],
        "final_eval": evals[-1],
        "best_eval": max(evals, key=lambda record: record["score"]),
        "first_reward": metrics[0]["reward"] if metrics else None,
        "last_reward": metrics[-1]["reward"] if metrics else None,
        "num_tokens": metrics[-1]["num_tokens"] if metrics else 0,
        "wall_seconds": sum(line["time/iteration"] for line in metrics),
        "run_folder": "elsewhere",
        "versions": {"python": "3.11.7", "gspo-cli": "0.1.0", "torch": "2.13.0+cpu"},
        "git_commit": None,
    }


def stored_run(algorithm: str = "gspo", seed: int = 0, iterations: int = 40, **planned: Any) -> StoredRun:
    """The run in memory; `planned` are the fields of Plan."""
    plan = Plan(algorithm, seed, iterations, **planned)
    config, metrics = config_of(plan), metrics_of(plan)
    evals, heldout = evaluations_of(plan, metrics)
    summary = summary_of(plan, config, metrics, evals)
    return StoredRun(f"{algorithm}-s{seed}", config, metrics, evals, heldout, summary)


def write_run(
    folder: Path, algorithm: str = "gspo", seed: int = 0, iterations: int = 40, **planned: Any
) -> Path:
    """The run as a folder; returns it. `stored_run` says what `planned` takes."""
    run = stored_run(algorithm, seed, iterations, **planned)
    write_stored(folder, run)
    return folder


def write_stored(folder: Path, run: StoredRun) -> None:
    """Write a run that is in memory."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(run.config)), encoding="utf-8")
    logs = {"metrics.jsonl": run.metrics, "evals.jsonl": run.evals, "samples.jsonl": []}
    if run.heldout:
        logs["heldout.jsonl"] = run.heldout
    for name, lines in logs.items():
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "summary.json").write_text(json.dumps(dict(run.summary)), encoding="utf-8")


def changed(run: StoredRun, **settings_by_key: Any) -> StoredRun:
    """The run with settings replaced; `a__b` stands for a.b."""
    config = copy.deepcopy(dict(run.config))
    for name, value in settings_by_key.items():
        *path, last = name.split("__")
        here = config
        for part in path:
            here = here[part]
        here[last] = value
    return replace(run, config=config)
