"""A stored run is opened: the rule of trust is kept, and edits of config.yaml by hand are named."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from gspo_cli.config.checks import override_key
from gspo_cli.config.compose import load_saved, plain_values
from gspo_cli.config.schema import RunConfig
from gspo_cli.config.trust import require_inside, require_trust
from gspo_cli.errors import UserError
from gspo_cli.run.folder import RunFolder
from gspo_cli.run.identity import leaves

SHOWN = 5  # edits that are named one by one


def open_run(folder: Path, typed: Collection[str] = ()) -> tuple[DictConfig, list[str]]:
    """The settings of the run in `folder` as gspo-cli wrote them last, and a sentence for each setting that
    config.yaml has otherwise: such an edit counts only where it is in `typed`, the overrides of this command
    line. Raises UserError where there is no run, or its settings need trust that they do not have."""
    run = RunFolder(folder)
    if folder.is_dir():
        require_inside(folder)
    if not run.written_config.exists():  # of an earlier version
        shown = load_saved(run.config)
        require_trust(plain_values(shown), RunConfig, folder, typed)
        return shown, []
    try:
        shown, written = _whole(run.config), _whole(run.written_config)
    except UserError as error:
        return _one_of_both(run, typed, str(error))
    for each in [written] if written == shown else [shown, written]:  # it walks through the folder
        require_trust(plain_values(each), RunConfig, folder, typed)
    keys = set(map(override_key, typed))
    edits = _edits(plain_values(written), plain_values(shown))
    notes = [
        f"{run.config}: {key} was edited from {_text(before)} to {_text(now)}, which does not count; type "
        f"{key}={_text(now)} to change it"
        for key, (before, now) in edits.items()
        if key not in keys
    ]
    more = [f"{run.config}: has {len(notes) - SHOWN} more such edits"] if len(notes) > SHOWN else []
    return written, [*notes[:SHOWN], *more]


def _whole(path: Path) -> DictConfig:
    node = load_saved(path)
    if "model" not in node:
        raise UserError(f"{path}: has no model settings; restore the file")
    return node


def _one_of_both(run: RunFolder, typed: Collection[str], reason: str) -> tuple[DictConfig, list[str]]:
    """The settings where config.yaml or its copy cannot be read, for a `reason`: those of the other."""
    try:
        path, node = run.written_config, _whole(run.written_config)
    except UserError:
        path, node = run.config, load_saved(run.config)
    require_trust(plain_values(node), RunConfig, run.path, typed)
    return node, [f"{reason.partition('; ')[0]}; {path} was taken in its place"]


def _edits(written: dict[str, Any], shown: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What differs, by dotted key: the values before and after; null stands for a setting that is absent."""
    before, now = leaves(written), leaves(shown)
    keys = sorted(before.keys() | now.keys())
    return {key: (before.get(key), now.get(key)) for key in keys if before.get(key) != now.get(key)}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
