"""`gspo-eval`: held-out evaluation of a run's checkpoint, or of any model, without training."""

from __future__ import annotations

import json
import sys

from gspo_cli.commands.entry import run_command
from gspo_cli.commands.model_source import model_parser, resolve
from gspo_cli.config.checks import require

DESCRIPTION = "Evaluate a run or a model on held-out problems: greedy score and pass@k."
EXAMPLES = """examples:
  gspo-eval outputs/arithmetic-tiny-gspo/<run>
      the run's best checkpoint on its held-out problems
  gspo-eval outputs/arithmetic-tiny-gspo/<run> --checkpoint last evaluation.samples=16
      the last checkpoint, with pass@16
  gspo-eval Qwen/Qwen3-0.6B task=gsm8k task.path=train.jsonl
      a model that was not trained by gspo-train: a hub id, a model folder, an adapter folder, or a GGUF file
"""


def main() -> None:
    """Entry point of `gspo-eval`."""
    run_command("gspo-eval", evaluate_command)


def evaluate_command() -> int:
    """Evaluate and print; --json prints the record alone."""
    parser = model_parser("gspo-eval", DESCRIPTION, EXAMPLES)
    parser.add_argument("--samples", type=int, default=3, help="how many answers to show (default 3)")
    parser.add_argument("--json", action="store_true", help="print one line of JSON and nothing else")
    arguments = parser.parse_intermixed_args()  # overrides may stand after flags
    require(arguments.samples >= 0, f"--samples {arguments.samples}: give 0 or more, such as --samples 3")
    config, source, adapter = resolve(arguments.model, arguments.checkpoint, arguments.overrides)

    from rich.console import Console
    from rich.progress import Progress

    from gspo_cli.console.plain import PlainConsole
    from gspo_cli.console.samples import samples_table
    from gspo_cli.training.session import evaluate_only

    lines = PlainConsole(sys.stderr)

    def progress(done: int, total: int, note: str) -> None:
        """A bar on a terminal; lines elsewhere, where it takes longer than a few seconds."""
        bar.update(task, completed=done, total=total, description=f"evaluating {done}/{total}  {note}")
        if note and not arguments.json and not sys.stderr.isatty():
            lines.stage("evaluation", done, total, note)

    quiet = arguments.json or not sys.stderr.isatty()
    with Progress(console=Console(stderr=True), transient=True, disable=quiet) as bar:
        task = bar.add_task("evaluating", total=None)
        record, samples = evaluate_only(
            config,
            source,
            adapter,
            progress,
            lambda text: print(f"warning: {text}", file=sys.stderr),
        )
    if arguments.json:
        print(json.dumps(record))
        return 0
    console = Console()
    console.print(f"{source if adapter is None else adapter}", highlight=False, markup=False, soft_wrap=True)
    for name, value in record.items():
        console.print(f"  {name:<14}{value:.4g}" if isinstance(value, float) else f"  {name:<14}{value}")
    if arguments.samples:
        console.print(samples_table(samples[: arguments.samples], console.width))
    return 0


if __name__ == "__main__":
    main()
