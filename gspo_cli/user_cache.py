"""Folders that gspo-cli keeps outside of runs, for one user: finished cold starts and fetched models."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(kind: str) -> Path:
    """The folder of what is cached under the name `kind`: in XDG_CACHE_HOME, or in ~/.cache."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "gspo-cli" / kind


def fetched_model(hub_id: str) -> Path:
    """Where a script puts the model with this hub id, and where `model.name` finds it."""
    return cache_folder("models") / hub_id.replace("/", "--")


def fetched_or_hub(hub_id: str) -> str:
    """The folder of the fetched model if it is on this machine, else the hub id."""
    folder = fetched_model(hub_id)
    return str(folder) if (folder / "config.json").is_file() else hub_id
