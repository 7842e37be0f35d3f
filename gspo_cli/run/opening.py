"""A stored run is opened: the rule of trust is kept, and edits of config.yaml by hand are named."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from gspo_cli.config.compose import load_saved, plain_values
from gspo_cli.config.schema import RunConfig
from gspo_cli.config.trust import require_trust
from gspo_cli.run.folder import RunFolder
from gspo_cli.run.identity import leaves


def open_run(folder: Path, typed: Collection[str] = ()) -> tuple[DictConfig, list[str]]:
    """The settings of the run in `folder` as gspo-cli wrote them last, and a sentence for each setting that
    config.yaml has otherwise: such an edit counts only where it is in `typed`, the overrides of this command
    line. Raises UserError where there is no run, or its settings need trust that they do not have."""
    run = RunFolder(folder)
    shown = load_saved(run.config)
    require_trust(plain_values(shown), RunConfig, folder, typed)
    if not run.written_config.is_file():  # of an earlier version
        return shown, []
    written = load_saved(run.written_config)
    require_trust(plain_values(written), RunConfig, folder, typed)
    keys = {text.lstrip("+~").partition("=")[0] for text in typed}
    edits = _edits(plain_values(written), plain_values(shown))
    return written, [
        f"{run.config}: {key} was edited from {_text(before)} to {_text(now)}, which does not count; type "
        f"{key}={_text(now)} to change it"
        for key, (before, now) in edits.items()
        if key not in keys
    ]


def _edits(written: dict[str, Any], shown: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What differs, by dotted key: the values before and after; null stands for a setting that is absent."""
    before, now = leaves(written), leaves(shown)
    keys = sorted(before.keys() | now.keys())
    return {key: (before.get(key), now.get(key)) for key in keys if before.get(key) != now.get(key)}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
