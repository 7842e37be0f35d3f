"""What gspo-eval, gspo-chat and gspo-serve share: the run or model on the command line, and its settings."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from gspo_cli.api.config import model_overrides
from gspo_cli.commands.entry import command_parser
from gspo_cli.config.auto_hardware import use_hardware_here
from gspo_cli.config.checks import override_key, require
from gspo_cli.config.compose import OBJECT, build_config, composed, literal, load_saved, with_overrides
from gspo_cli.config.schema import RunConfig
from gspo_cli.config.trust import FLAG
from gspo_cli.run.folder import RunFolder
from gspo_cli.run.opening import open_run
from gspo_cli.sources import find_source, is_run, run_of, settled


def model_parser(name: str, description: str, examples: str) -> argparse.ArgumentParser:
    """The parser of a command that takes a model, a checkpoint, and settings as gspo-train does."""
    parser = command_parser(name, description, examples)
    parser.add_argument(
        "model",
        help="run folder of gspo-train, one of its checkpoints, an adapter or model folder, a GGUF file, "
        "or a hub id",
    )
    parser.add_argument(
        "overrides", nargs="*", default=[], help="settings as for gspo-train, e.g. evaluation.problems=500"
    )
    parser.add_argument(
        "--checkpoint",
        default="best",
        help="of a run folder: best (default), last, initial, an iteration, or a checkpoint's name",
    )
    parser.add_argument(
        FLAG, action="store_true", help="honor code, addresses, files that a run folder names"
    )
    return parser


def resolve(name: str, checkpoint: str, overrides: list[str]) -> tuple[RunConfig, str, Path | None]:
    """Configuration, where the model is, and its LoRA adapter if it has one. The folder of a run's checkpoint
    has the configuration of its run, unless another task or model preset is chosen. Raises UserError."""
    folder, run = Path(name).expanduser(), run_named(name, overrides)
    if run is None:
        config = _of_model(name, overrides)
        return config, *find_source(config.model.name, config.model.base)
    saved, notes = open_run(run, overrides)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    if note := use_hardware_here(saved):
        print(f"note: {note}", file=sys.stderr)
    config = build_config(with_overrides(saved, overrides))
    named = checkpoint if is_run(folder) else folder.resolve().name
    return config, *RunFolder(run).checkpoint_model(named, config.model)


def run_named(name: str, overrides: list[str]) -> Path | None:
    """The run folder whose settings hold for what the command line names; None for a model by itself."""
    folder = Path(name).expanduser()
    if is_run(folder):
        return folder
    chosen = {"task", "model"} & set(map(override_key, overrides))
    return run_of(folder) if folder.is_dir() and not chosen else None


def has_reward_object(folder: Path) -> bool:
    """Whether a script gave a run its reward as a Python object, which no command can rebuild."""
    saved = folder / "config.yaml"
    return saved.is_file() and str(load_saved(saved).get("reward")).startswith(OBJECT)


def _of_model(name: str, overrides: list[str]) -> RunConfig:
    """The configuration for a model that is not a run's."""
    here = Path(name).expanduser()
    require(
        here.exists() or not (here.is_absolute() or (str(here.parent) != "." and here.parent.exists())),
        f"{name}: does not exist; give a run folder, a model folder or a hub id",
    )
    given = dict(text.lstrip("+").partition("=")[::2] for text in overrides)
    base = given.get("model.base")
    source = find_source(name, None if base in ("", "null") else base)
    preset = [] if "model" in given else model_overrides(source.base)[:1]
    # absolute: a folder called tiny is not the embedded model
    node = composed([*preset, *overrides])
    node.model.name = literal(source.place)
    settled(node, overrides)
    return build_config(node)
