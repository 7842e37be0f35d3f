"""The memory that a device has, what is left of it, and the share that caches may take."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

CACHE_SHARE = 0.25  # of the device's memory: the same for every run of a comparison, whatever else is running
SCARCE_SHARE = 0.5  # of what is free, where that is less; caches are gone before an update
CONTROL_GROUPS = Path("/sys/fs/cgroup")  # limits of a container, in the files of version 2 or 1
VERSIONS = (
    (".", "memory.max", "memory.current", "inactive_file"),
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def free_bytes(device: torch.device) -> int:
    """Bytes that can still be allocated on a device; on a CPU within the limit of a container, too."""
    return _free_and_total(device)[0]


def default_cache_gb(device: torch.device, processes: int) -> float:
    """`rollout.cache_gb` where it is not given, for each of `processes` on a device of its own, or on the
    CPU that they share."""
    shared = processes if device.type == "cpu" else 1
    free, total = _free_and_total(device)
    room = min(CACHE_SHARE * total, SCARCE_SHARE * free) / shared
    return max(0.1, round(room / 2**30, 1))


def _free_and_total(device: torch.device) -> tuple[int, int]:
    """Bytes that a device has free and in all; on a CPU within the limit of a container."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return int(free), int(total)
    memory = psutil.virtual_memory()
    limit, used = _container()
    if limit is None:
        return int(memory.available), int(memory.total)
    return min(int(memory.available), max(0, limit - used)), min(int(memory.total), limit)


def _container() -> tuple[int | None, int]:
    """Limit (None without one) and use of this process's container in bytes. Files that the kernel keeps in
    memory and can drop are not in use."""
    for folder, limit, used, droppable in VERSIONS:
        place = CONTROL_GROUPS / folder
        try:
            most, taken = (int((place / name).read_text()) for name in (limit, used))
            counts = dict(line.split() for line in (place / "memory.stat").read_text().splitlines())
            return most, taken - int(counts.get(droppable, 0))
        except (OSError, ValueError):  # another version, no container, or "max": no limit
            continue
    return None, 0
