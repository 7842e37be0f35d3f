"""The processes of one run: their ranks, and how they communicate.

Every rank computes what is cheap (advantages, the layout of updates, metrics) from the same gathered
conversations, so that one process and several make the same decisions; generation, scoring and gradients are
sharded."""

from __future__ import annotations

import datetime
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import torch
from torch import distributed

from gspo_cli.config.choices import Device
from gspo_cli.config.schema import HardwareConfig
from gspo_cli.errors import UserError

Result = TypeVar("Result")
# how long ranks wait for each other: a cold start or a slow judge may delay one
PATIENCE = datetime.timedelta(hours=6)


@dataclass(frozen=True)
class ProcessGroup:
    """`rank` of `size` processes. The default is a single process, for which every call is free."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes the run folder."""
        return self.rank == 0

    def share(self, items: Sequence[Any]) -> Sequence[Any]:
        """This rank's contiguous part of `items`, as equal as can be."""
        return items[len(items) * self.rank // self.size : len(items) * (self.rank + 1) // self.size]

    def gather(self, items: list[Any]) -> list[Any]:
        """The lists of all ranks joined in the order of ranks, on every rank."""
        if self.size == 1:
            return items
        parts: list[Any] = [None] * self.size
        distributed.all_gather_object(parts, items)
        return [item for part in parts for item in part]

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true on any rank."""
        return any(self.gather([flag]))

    def agreed(self, value: Result) -> Result:
        """The value of the first rank: what others read from a shared disk may be older."""
        return self.gather([value])[0]

    def first_then_all(self, action: Callable[[], Result]) -> Result:
        """The result of `action`, which the first rank runs before the others: it writes files that they
        read."""
        if self.is_first:
            result = action()
            self.wait()
        else:
            self.wait()
            result = action()
        return result

    def wait(self) -> None:
        """Wait for all ranks."""
        if self.size > 1:
            distributed.barrier()


def join(hardware: HardwareConfig) -> ProcessGroup:
    """Join the other processes that the launcher (or torchrun) started; RANK and WORLD_SIZE identify this
    one.

    Takes the GPU of LOCAL_RANK where the run uses GPUs. The process ends with the one that started it.
    Raises UserError if processes or GPUs are not those of the configuration."""
    _end_with_parent()
    os.environ["DS_ACCELERATOR"] = hardware.device.value  # before any library imports deepspeed in passing
    meant = hardware.nodes * (hardware.processes or int(os.environ["WORLD_SIZE"]))
    if int(os.environ["WORLD_SIZE"]) != meant:
        raise UserError(
            f"hardware.processes, nodes: {meant} processes are configured, but "
            f"{os.environ['WORLD_SIZE']} were started; start {meant}"
        )
    device = None
    if hardware.device is Device.cuda:
        local = int(os.environ["LOCAL_RANK"])
        found = gpu_count()
        if local >= found:
            raise UserError(
                f"hardware.processes: rank {local} of this node finds {found} GPUs; use one process "
                "per GPU, or check CUDA_VISIBLE_DEVICES"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    backend = "gloo" if device is None else "nccl"
    distributed.init_process_group(backend, timeout=PATIENCE, device_id=device)
    return ProcessGroup(distributed.get_rank(), distributed.get_world_size())


def gpu_count() -> int:
    """GPUs that this process can use."""
    return torch.cuda.device_count()


def leave(ranks: ProcessGroup, code: int = 0) -> NoReturn:
    """End this process with exit code `code` when all ranks are done.

    At once: threads of the communication libraries abort now and then while an interpreter goes down."""
    ranks.wait()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _end_with_parent() -> None:
    """End this process when its launcher is killed, even if the launcher has already exited."""
    parent = int(os.environ.get("GSPO_LAUNCHER", os.getppid()))  # torchrun does not pass its process id

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, name="end with parent", daemon=True).start()
