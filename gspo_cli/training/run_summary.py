"""The summary of a run, which is written however it ends."""

from __future__ import annotations

from typing import Any

import torch

from gspo_cli.config.choices import Device
from gspo_cli.config.schema import RunConfig
from gspo_cli.config.stored import read_stored
from gspo_cli.diagnosis.examination import own_overrides
from gspo_cli.errors import UserError
from gspo_cli.launching.queue import runs_at_once
from gspo_cli.run.folder import RunFolder
from gspo_cli.run.identity import MEASURED, RESUMABLE, matches
from gspo_cli.run.provenance import git_commit, processor, versions
from gspo_cli.run.summary import RunStatus
from gspo_cli.training.trainer import Trainer


def summarize(
    config: RunConfig, folder: RunFolder, trainer: Trainer | None, status: RunStatus, reward_object: bool
) -> dict[str, Any]:
    """The content of summary.json. `reward_object`: a script gave the reward, and no command can rebuild
    it."""
    state = trainer.state if trainer else None
    return {
        "status": status.value,
        "algorithm": config.algorithm.name,
        "model": config.model.label,
        "model_name": config.model.name,
        "task": config.task.name,
        "seed": config.seed,
        "reward_object": reward_object,
        "iterations": state.iteration if state else 0,
        "total_iterations": config.training.num_outer_iterations,
        "initial_eval": state.initial_eval if state else None,
        "final_eval": state.last_eval if state else None,
        "best_eval": state.best_eval if state else None,
        "first_reward": state.first_reward if state else None,
        "last_reward": state.last_reward if state else None,
        "first_accuracy": state.first_accuracy if state else None,
        "last_accuracy": state.last_accuracy if state else None,
        "pairs": config.algorithm.pairs,
        "num_tokens": state.num_tokens if state else 0,
        "wall_seconds": trainer.wall_seconds if trainer else 0.0,
        "run_folder": str(folder.path),
        "overrides": comparable_overrides(folder),
        "versions": versions(),
        "git_commit": git_commit(),
        "machine": machine(config, trainer.ranks.size if trainer else 1),
    }


def machine(config: RunConfig, processes: int) -> dict[str, Any]:
    """What the run's times are of: CPU and GPU by name, torch's threads in each process, processes, and how
    many runs a queue ran at once."""
    on_gpu = config.hardware.device is Device.cuda and torch.cuda.is_available()
    return {
        "cpu": processor(),
        "gpu": torch.cuda.get_device_name() if on_gpu else None,
        "threads": config.hardware.threads or torch.get_num_threads(),
        "processes": processes,
        "runs_at_once": runs_at_once(),
    }


def comparable_overrides(folder: RunFolder) -> list[str] | None:
    """Overrides that compose the same run with another seed, without what affects no result, such as logging;
    None where conf/ cannot express its settings."""
    try:
        own = own_overrides(read_stored(folder.config))
    except UserError:
        return None
    ignored = ("seed", "logging", *(key for key in RESUMABLE if key not in MEASURED))
    return own and [text for text in own if not matches(text.split("=")[0].strip("'"), ignored)]
