"""What gspo-eval and gspo-chat share: the folder of a run or a model on the command line, and its model."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from gspo_cli.api.config import model_overrides
from gspo_cli.commands.entry import command_parser
from gspo_cli.config.auto_hardware import use_hardware_here
from gspo_cli.config.compose import build_config, composed, load_saved, with_overrides
from gspo_cli.config.schema import RunConfig
from gspo_cli.errors import UserError
from gspo_cli.run.folder import RunFolder


def model_parser(name: str, description: str, examples: str) -> argparse.ArgumentParser:
    """The parser of a command that takes a folder, a checkpoint, and settings as gspo-train does."""
    parser = command_parser(name, description, examples)
    parser.add_argument("folder", type=Path, help="run folder of gspo-train, or a folder with a model")
    parser.add_argument(
        "overrides", nargs="*", help="settings as for gspo-train, e.g. evaluation.problems=500"
    )
    parser.add_argument(
        "--checkpoint", default="best", help="best (default), last, initial, or a checkpoint's name"
    )
    return parser


def resolve(folder: Path, checkpoint: str, overrides: list[str]) -> tuple[RunConfig, str, Path | None]:
    """Configuration, where the model is, and its LoRA adapter if it has one. Raises UserError."""
    if not folder.is_dir():
        raise UserError(f"{folder}: is not a folder; give a run folder or a model folder")
    if (folder / "config.yaml").exists():
        saved = load_saved(folder / "config.yaml")
        if note := use_hardware_here(saved):
            print(f"note: {note}", file=sys.stderr)
        config = build_config(with_overrides(saved, overrides))
        return config, *RunFolder(folder).checkpoint_model(checkpoint, config.model)
    if not (folder / "config.json").exists():
        raise UserError(f"{folder}: is neither a run folder (config.yaml) nor a model folder (config.json)")
    # absolute: a folder called tiny is not the embedded model
    group, name = model_overrides(folder.absolute())
    chosen = any(text.startswith("model=") for text in overrides)
    node = composed([*([] if chosen else [group]), *overrides, name])
    return build_config(node), str(folder), None
