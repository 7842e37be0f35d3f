"""`gspo-eval`: held-out evaluation of a run's checkpoint, or of any model folder, without training."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from gspo_cli.api.config import model_overrides
from gspo_cli.commands.train import run_command
from gspo_cli.config.compose import build_config, composed, load_saved, register, with_overrides
from gspo_cli.config.schema import RunConfig
from gspo_cli.errors import UserError
from gspo_cli.run.folder import RunFolder

EXAMPLES = """examples:
  gspo-eval outputs/arithmetic-tiny-gspo/<run>
      the run's best checkpoint on its held-out problems
  gspo-eval outputs/arithmetic-tiny-gspo/<run> --checkpoint last evaluation.samples=16
      the last one, with pass@16
  gspo-eval <model folder> task=gsm8k task.path=train.jsonl
      a model that no run of ours made
"""


def main() -> None:
    """Entry point of `gspo-eval`."""
    sys.path.insert(0, "")  # rewards and verifiers by dotted path from the user's folder
    run_command("gspo-eval", evaluate_command)


def evaluate_command() -> int:
    """Evaluate and print; --json prints the record alone."""
    arguments = parse()
    config, source, adapter = resolve(arguments.folder, arguments.checkpoint, arguments.overrides)

    from rich.console import Console
    from rich.progress import Progress

    from gspo_cli.console.samples import samples_table
    from gspo_cli.training.session import evaluate_only

    quiet = arguments.json or not sys.stderr.isatty()
    with Progress(console=Console(stderr=True), transient=True, disable=quiet) as bar:
        task = bar.add_task("evaluating", total=None)
        record, samples = evaluate_only(
            config,
            source,
            adapter,
            lambda done, total: bar.update(task, completed=done, total=total),
            lambda text: print(f"warning: {text}", file=sys.stderr),
        )
    if arguments.json:
        print(json.dumps(record))
        return 0
    console = Console()
    console.print(f"{source if adapter is None else adapter}", highlight=False, markup=False)
    for name, value in record.items():
        console.print(f"  {name:<14}{value:.4g}" if isinstance(value, float) else f"  {name:<14}{value}")
    if arguments.samples:
        console.print(samples_table(samples[: arguments.samples], console.width))
    return 0


def parse() -> argparse.Namespace:
    """The command line: a folder, flags, and overrides as for gspo-train."""
    parser = argparse.ArgumentParser(
        prog="gspo-eval",
        description="Evaluate a run folder or a model folder on held-out problems: greedy score and pass@k.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="run folder of gspo-train, or a folder with a model")
    parser.add_argument(
        "overrides", nargs="*", help="settings as for gspo-train, e.g. evaluation.problems=500"
    )
    parser.add_argument(
        "--checkpoint", default="best", help="best (default), last, initial, or a checkpoint's name"
    )
    parser.add_argument("--samples", type=int, default=3, help="how many answers to show (default 3)")
    parser.add_argument("--json", action="store_true", help="print one line of JSON and nothing else")
    return parser.parse_intermixed_args()  # overrides may stand after flags


def resolve(folder: Path, checkpoint: str, overrides: list[str]) -> tuple[RunConfig, str, Path | None]:
    """Configuration, where the model is, and its LoRA adapter if it has one. Raises UserError."""
    if not folder.is_dir():
        raise UserError(f"{folder}: is not a folder; give a run folder or a model folder")
    register()
    if not (folder / "config.yaml").exists():
        if not (folder / "config.json").exists():
            raise UserError(
                f"{folder}: is neither a run folder (config.yaml) nor a model folder (config.json)"
            )
        # absolute: a folder called tiny is no embedded model
        group, name = model_overrides(folder.absolute())
        chosen = any(text.startswith("model=") for text in overrides)
        node = composed([*([] if chosen else [group]), *overrides, name])
        return build_config(node), str(folder), None
    node = with_overrides(load_saved(folder / "config.yaml"), overrides)
    config = build_config(node)
    return config, *RunFolder(folder).checkpoint_model(checkpoint, config.model)


if __name__ == "__main__":
    main()
