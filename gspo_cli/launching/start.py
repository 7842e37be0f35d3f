"""How gspo-train starts a run: the settings it resumes with, the number of processes, the GPUs. Free of
torch."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path

from omegaconf import DictConfig

from gspo_cli.config.checks import require
from gspo_cli.config.choices import Device
from gspo_cli.config.compose import load_saved, with_overrides
from gspo_cli.config.schema import RunConfig
from gspo_cli.errors import UserError
from gspo_cli.launching.processes import require_deepspeed
from gspo_cli.run.identity import RESUMABLE, matches
from gspo_cli.run.summary import RunStatus, read_summary

DEVICES = Path("/dev")
NO_GPU = "hardware.device=cuda: no GPU is visible; use hardware=cpu, or check CUDA_VISIBLE_DEVICES"
GPU = re.compile(r"\d+|(GPU|MIG)-\S+")  # an index or an identifier in CUDA_VISIBLE_DEVICES


def resumed(folder: Path, overrides: list[str]) -> DictConfig:
    """The saved configuration of a run, with the few settings that may change when it is resumed.

    Raises UserError if the folder is not a run, the run is complete, or another setting is overridden."""
    saved = load_saved(folder / "config.yaml")
    changes = [text.lstrip("+") for text in overrides if not text.lstrip("+").startswith("resume=")]
    allowed = ", ".join(f"{key}*" if key.endswith(".") else key for key in RESUMABLE)
    for text in changes:
        key = text.lstrip("~").split("=")[0]
        require(
            matches(key, RESUMABLE),
            f"{key}: cannot change when a run is resumed (only {allowed} can); start a new run to change it",
        )
    node = with_overrides(saved, changes)
    summary = read_summary(folder)
    if summary is not None and summary["status"] == RunStatus.completed:
        done = summary["iterations"]
        require(
            done < node.training.num_outer_iterations,
            f"{folder}: is complete after {done} iterations; continue with "
            f"training.num_outer_iterations={2 * done}",
        )
    node.resume = str(folder)
    return node


def process_count(config: RunConfig, count_gpus: Callable[[], int]) -> int:
    """Processes of a run on this machine, or on each of many nodes. `count_gpus`, called only where the run
    uses GPUs, counts those that a process can use. Raises UserError where the number of processes is not
    known or cannot run."""
    hardware = config.hardware
    if hardware.zero_stage == 0:
        return 1
    require_deepspeed()
    if hardware.device is Device.cpu or hardware.nodes > 1:
        where = "share this CPU" if hardware.device is Device.cpu else "run on each node"
        if hardware.processes is None:
            raise UserError(f"hardware.processes: has no value; set how many processes {where}")
        return hardware.processes
    found = count_gpus()
    require(found > 0, NO_GPU)
    processes = hardware.processes or found
    require(
        processes <= found,
        f"hardware.processes={processes}: {found} GPUs are visible; use at most {found}, or check "
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


def visible_gpus() -> list[str]:
    """Names of the GPUs that runs may use: those of CUDA_VISIBLE_DEVICES, or all that nvidia-smi lists, or
    where that is missing, as in some containers, all that have a device file."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        # as CUDA reads it: an invalid name hides all that follow, and a duplicate name hides all
        names = list(takewhile(GPU.fullmatch, (name.strip() for name in listed.split(","))))
        return names if len(set(names)) == len(names) else []
    if shutil.which("nvidia-smi") is None:
        return [str(i) for i in range(len(list(DEVICES.glob("nvidia[0-9]*"))))]
    output = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout
    return [str(i) for i in range(sum(line.startswith("GPU ") for line in output.splitlines()))]
