"""What `hardware=auto` comes to on this machine: one of the other options of conf/hardware, and why.

GPUs are counted without torch. conf/hardware/auto.yaml takes each of its values from `auto_value`; a value
that was given stays as it is, and counts as a condition of the choice."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from gspo_cli.config.choices import Attention, Device, Engine, Optimizer
from gspo_cli.config.extras import install
from gspo_cli.config.paths import CONF_DIR

DEVICES = Path("/dev")
GPU = re.compile(r"\d+|(GPU|MIG)-\S+")  # an index or an identifier in CUDA_VISIBLE_DEVICES
SECONDS = 20  # that nvidia-smi may take: it can hang where the driver is broken
LEFT_OPEN = "${auto_hardware:"  # how a value that auto chooses is written
CHOSEN = ("device", "precision", "tokens_per_microbatch", "zero_stage", "processes")
ABSENT = {"zero_stage": 0, "processes": None}  # values of options that do not set them
GPU_ATTENTION = (Attention.flash_attention_2.value, Attention.flex_attention.value)


@dataclass(frozen=True)
class Choice:
    """An option of conf/hardware, the sentence that says why, and the number of processes; None starts one
    for each visible GPU."""

    option: str
    why: str
    processes: int | None = None


def visible_gpus() -> list[str]:
    """Names of the GPUs that runs may use: those of CUDA_VISIBLE_DEVICES, or all that nvidia-smi lists, or
    where that is missing, as in some containers, all that have a device file."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        # as CUDA reads it: an invalid name hides all that follow, and a duplicate name hides all
        names = list(takewhile(GPU.fullmatch, (name.strip() for name in listed.split(","))))
        return names if len(set(names)) == len(names) else []
    tool = shutil.which("nvidia-smi")
    count = len(list(DEVICES.glob("nvidia[0-9]*"))) if tool is None else _listed_by(tool)
    return [str(i) for i in range(count)]


@cache
def _listed_by(tool: str) -> int:
    """GPUs that nvidia-smi lists; 0 where it fails."""
    try:
        listed = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=SECONDS).stdout
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in listed.splitlines())


def is_left_open(hardware: Mapping[str, Any], key: str) -> bool:
    """Whether auto chooses hardware.`key`; `hardware` has the values as they are written."""
    return str(hardware.get(key)).startswith(LEFT_OPEN)


def written(node: DictConfig, group: str) -> dict[Any, Any]:
    """The values of a group as they are written: references are not resolved."""
    values = OmegaConf.to_container(node[group], resolve=False, enum_to_str=True)
    return values if isinstance(values, dict) else {}


def choose(node: DictConfig) -> Choice | None:
    """The option that the visible GPUs and the other settings of a composed `node` allow; None where nothing
    is left to choose."""
    hardware = written(node, "hardware")
    if not any(is_left_open(hardware, key) for key in CHOSEN):
        return None
    given = {key: hardware.get(key) for key in CHOSEN if not is_left_open(hardware, key)}
    count = len(visible_gpus())
    if given.get("device") == Device.cpu.value:
        return Choice("cpu", "hardware.device=cpu")
    if count == 0 and given.get("device") == Device.cuda.value:
        return Choice("single_gpu", "hardware.device=cuda")  # the start of the run finds no GPU
    if count == 0:
        return Choice("cpu", "no GPU is visible")
    if count == 1:
        return Choice("single_gpu", "one GPU is visible")
    seen = f"{count} GPUs are visible"
    reason = _why_one_process(node, given)
    if reason:
        return Choice("single_gpu", f"{seen}, but {reason}")
    prompts = _prompts(node)
    if prompts < count and given.get("processes") is None:
        why = f"{seen}, but an iteration has {prompts} prompts, and the answers to one stay in one process"
        return Choice("zero2", why, prompts)
    return Choice("zero2", seen)


def _why_one_process(node: DictConfig, given: Mapping[str, Any]) -> str:
    """What rules out ZeRO with several processes; empty if nothing does."""
    if given.get("zero_stage") == 0:
        return "hardware.zero_stage=0"
    if given.get("processes") == 1:
        return "hardware.processes=1"
    if node.rollout.engine is Engine.vllm:
        return "rollout.engine=vllm runs in one process"
    if node.training.optimizer is not Optimizer.adamw:
        return f"ZeRO does not support training.optimizer={node.training.optimizer.value}"
    if importlib.util.find_spec("deepspeed") is None:
        return f"DeepSpeed is not installed ({install('deepspeed')})"
    return "an iteration has one prompt" if _prompts(node) == 1 else ""


def _prompts(node: DictConfig) -> int:
    """Prompts of an iteration; 1 where the sizes are not valid, which is reported elsewhere."""
    training = node.training
    return max(1, training.generations_per_iteration // max(1, training.num_generations))


@cache
def option_values(option: str) -> dict[str, Any]:
    """What an option of conf/hardware sets of the values that auto chooses."""
    values = OmegaConf.load(CONF_DIR / "hardware" / f"{option}.yaml")
    assert isinstance(values, DictConfig)
    return {key: values.get(key, ABSENT.get(key)) for key in CHOSEN}


def auto_value(key: str, *, _root_: DictConfig) -> Any:
    """hardware.`key` as auto chooses it: the resolver `auto_hardware`."""
    choice = choose(_root_)
    if key == "chosen":
        return "" if choice is None else f"auto chose {choice.option}: {choice.why}"
    assert choice is not None  # the reference that is being resolved leaves something open
    return choice.processes if key == "processes" else option_values(choice.option)[key]


def use_one_process(node: DictConfig) -> None:
    """Let auto choose at most one GPU: for a run that shares the machine with others, or with a script."""
    if len(visible_gpus()) > 1 and is_left_open(written(node, "hardware"), "processes"):
        OmegaConf.update(node, "hardware.processes", 1)


def use_hardware_here(saved: DictConfig) -> str:
    """Change the stored settings of a run that was trained on a GPU, so that it is evaluated on the CPU where
    no GPU is visible. Returns a note, empty where nothing had to change."""
    if OmegaConf.select(saved, "hardware.device") != Device.cuda.value or visible_gpus():
        return ""
    values = {**option_values("cpu"), "offload": False, "nodes": 1, "chosen": ""}
    for key, value in values.items():
        OmegaConf.update(saved, f"hardware.{key}", value, force_add=True)
    if OmegaConf.select(saved, "model.attention") in GPU_ATTENTION:
        OmegaConf.update(saved, "model.attention", Attention.auto.value)
    # evaluation has no optimizer, and some need a GPU
    OmegaConf.update(saved, "training.optimizer", Optimizer.adamw.value, force_add=True)
    return (
        "the run was trained on a GPU and none is visible here: evaluating with the settings of hardware=cpu"
    )
