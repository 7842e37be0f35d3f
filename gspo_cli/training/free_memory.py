"""The memory that a device has left, and the share of it that caches may take."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

CACHE_SHARE = 0.5  # of what is free once the weights are loaded; caches are gone before an update
CONTROL_GROUP = Path("/sys/fs/cgroup")  # of this process, in a container


def free_bytes(device: torch.device) -> int:
    """Bytes that can still be allocated on a device; on a CPU within the limit of a container, too."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    free = int(psutil.virtual_memory().available)
    try:
        limit, used = (
            (CONTROL_GROUP / name).read_text().strip() for name in ("memory.max", "memory.current")
        )
        return min(free, max(0, int(limit) - int(used)))
    except (OSError, ValueError):  # no container, or none with a limit
        return free


def default_cache_gb(device: torch.device, processes: int) -> float:
    """`rollout.cache_gb` where it is not given, for each of `processes` on a device of its own, or on the
    CPU that they share."""
    shared = processes if device.type == "cpu" else 1
    return max(0.1, round(CACHE_SHARE * free_bytes(device) / shared / 2**30, 1))
