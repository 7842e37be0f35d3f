"""Folders that gspo-cli keeps outside of runs, for one user: finished cold starts and fetched models."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


def cache_folder(kind: str) -> Path:
    """The folder of what is cached under the name `kind`: in XDG_CACHE_HOME, or in ~/.cache."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "gspo-cli" / kind


@contextmanager
def one_at_a_time(cached: Path, wait: Callable[[], None]) -> Iterator[None]:
    """Within the block no other process makes `cached`; if one does already, `wait` is called once and its
    end is awaited. The end of a process releases what it held. Where nothing can be cached, the block just
    runs."""
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(cached.with_name(f"{cached.name}.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            wait()
            lock.acquire()
    except (OSError, NotImplementedError):  # the second: a file system without locks
        yield
        return
    try:
        yield
    finally:
        lock.release()


def fetched_model(hub_id: str) -> Path:
    """Where a script puts the model with this hub id, and where `model.name` finds it."""
    return cache_folder("models") / hub_id.replace("/", "--")


def fetched_or_hub(hub_id: str) -> str:
    """The folder of the fetched model if it is on this machine, else the hub id."""
    folder = fetched_model(hub_id)
    return str(folder) if (folder / "config.json").is_file() else hub_id
