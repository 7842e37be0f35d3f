"""How gspo-train starts a run: the settings it resumes with, whether this machine has its hardware, and the
number of processes. Free of torch."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gspo_cli.config.auto_hardware import option_values, visible_gpus
from gspo_cli.config.checks import override_key, require
from gspo_cli.config.choices import Device
from gspo_cli.config.compose import plain_values, with_overrides
from gspo_cli.config.schema import HardwareConfig, RunConfig
from gspo_cli.console.words import counted
from gspo_cli.errors import UserError
from gspo_cli.launching.processes import require_deepspeed
from gspo_cli.run.identity import RESUMABLE, matches
from gspo_cli.run.opening import open_run
from gspo_cli.run.summary import RunStatus, known_summary

DECIDING = ("evaluation.every", "evaluation.problems")  # when the level of a curriculum rises
NO_GPU = "hardware.device=cuda: no GPU is visible; use hardware=cpu, or check CUDA_VISIBLE_DEVICES"


def resumed(folder: Path, overrides: list[str]) -> tuple[DictConfig, list[str]]:
    """The saved configuration of a run, with the few settings that may change when it is resumed; and what
    was edited by hand (see `open_run`).

    Raises UserError if the folder is not a run, the run is complete, or another setting is overridden."""
    saved, notes = open_run(folder, overrides)
    changes = [text.lstrip("+") for text in overrides if override_key(text) != "resume"]
    allowed = ", ".join(f"{key}*" if key.endswith(".") else key for key in RESUMABLE)
    for text in changes:
        key = override_key(text)
        require(
            key != "hardware",
            f"{text}: is given as single settings when a run is resumed, such as hardware.device=cpu "
            "hardware.precision=fp32",
        )
        require(
            matches(key, RESUMABLE) or _is_stored(saved, text, key),
            f"{key}: cannot change when a run is resumed (only {allowed} can); start a new run to change it",
        )
        leveled = saved.training.get("difficulty_curriculum_start") is not None
        require(
            not leveled or key not in DECIDING or _is_stored(saved, text, key),
            f"{key}: decides when the level of the curriculum rises, and cannot change when the run is "
            "resumed; leave it out, or start a new run",
        )
    node = with_overrides(saved, changes)
    if any(text.startswith("hardware.") for text in changes):
        node.hardware.chosen = ""  # no longer what auto chose
    summary = known_summary(folder)
    if summary is not None and summary["status"] == RunStatus.completed:
        done = summary["iterations"]
        require(
            done < node.training.num_outer_iterations,
            f"{folder}: is complete after {counted(done, 'iteration')}; continue with "
            f"training.num_outer_iterations={2 * done}",
        )
    node.resume = str(folder)
    return node, notes


def _is_stored(saved: DictConfig, text: str, key: str) -> bool:
    """Whether an override gives a setting the value that it has."""
    try:
        return bool(OmegaConf.select(with_overrides(saved, [text]), key) == OmegaConf.select(saved, key))
    except (UserError, OmegaConfBaseException, HydraException):
        return False


def require_device(hardware: HardwareConfig, count_gpus: Callable[[], int], resumes: bool = False) -> int:
    """GPUs that a process can use: 0 where the run uses none, or runs on other nodes. `count_gpus`, called
    only where a GPU is visible and wanted, asks torch. Raises UserError if the run needs one and there is
    none; where it resumes, with the settings that let it continue here."""
    if hardware.device is Device.cpu or hardware.nodes > 1:
        return 0
    visible = len(visible_gpus())
    found = count_gpus() if visible else 0
    instead = settings_for("cpu", hardware) if resumes else "hardware=cpu"
    require(visible > 0, NO_GPU.replace("hardware=cpu", instead))
    require(
        found > 0,
        f"hardware.device=cuda: torch {metadata.version('torch')} finds none of the GPUs that are visible; "
        f"use {instead}, or install a torch that can",
    )
    return found


def settings_for(option: str, hardware: HardwareConfig) -> str:
    """The single settings that change `hardware` to an option of conf/hardware, as they are typed."""
    wanted = {**plain_values(OmegaConf.structured(HardwareConfig)), **option_values(option)}
    now = plain_values(OmegaConf.structured(hardware))
    keys = [key for key in now if key not in ("chosen", "threads")]
    changed = {key: wanted[key] for key in keys if now[key] != wanted[key]}
    return " ".join(f"hardware.{key}={'null' if value is None else value}" for key, value in changed.items())


def idle_gpu_note(config: RunConfig) -> str:
    """For a resumed run that uses the CPU where a GPU is visible: how it can use it; else empty."""
    hardware = config.hardware
    if hardware.device is Device.cuda or hardware.zero_stage > 0 or not visible_gpus():
        return ""
    return f"the run continues on the CPU; to use a GPU, add {settings_for('single_gpu', hardware)}"


def process_count(config: RunConfig, count_gpus: Callable[[], int], resumes: bool = False) -> int:
    """Processes of a run on this machine, or on each of many nodes. Raises UserError where the number of
    processes is not known or cannot run, and as `require_device` does."""
    hardware = config.hardware
    gpus = require_device(hardware, count_gpus, resumes)
    if hardware.zero_stage == 0:
        return 1
    require_deepspeed()
    if hardware.device is Device.cpu or hardware.nodes > 1:
        where = "share this CPU" if hardware.device is Device.cpu else "run on each node"
        if hardware.processes is None:
            raise UserError(f"hardware.processes: has no value; set how many processes {where}")
        return hardware.processes
    # all answers to a prompt run in one process
    processes = hardware.processes or min(gpus, config.training.prompts_per_iteration)
    require(
        processes <= gpus,
        f"hardware.processes={processes}: {gpus} GPUs are visible; use at most {gpus}, or check "
        "CUDA_VISIBLE_DEVICES",
    )
    config.check_processes(processes)
    return processes


def torchrun_command(config: RunConfig, folder: Path) -> str:
    """The command to run on each node of a run on many nodes."""
    hardware = config.hardware
    return (
        f"torchrun --nnodes {hardware.nodes} --nproc-per-node {hardware.processes} --rdzv-backend c10d "
        f"--rdzv-endpoint HOST:29500 -m gspo_cli.commands.worker {shlex.quote(str(folder.absolute()))}"
    )


def require_gpus() -> list[str]:
    """`visible_gpus`. Raises UserError if there are none."""
    found = visible_gpus()
    require(bool(found), NO_GPU)
    return found
