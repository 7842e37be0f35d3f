"""`gspo-export`: a trained model as a plain Hugging Face folder that other programs serve, or its adapter."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gspo_cli.commands.entry import command_parser, run_command
from gspo_cli.config.checks import require
from gspo_cli.config.compose import build_config
from gspo_cli.config.schema import RunConfig
from gspo_cli.config.trust import FLAG
from gspo_cli.errors import UserError
from gspo_cli.run.folder import RunFolder
from gspo_cli.run.opening import open_run
from gspo_cli.sources import ModelSource, find_source, is_quantized, is_run, run_of

DESCRIPTION = (
    "Write a trained model as a plain Hugging Face folder with a model card: LoRA merged in fp32, saved in "
    "the precision of the base, and compared with the policy on held-out prompts."
)
EXAMPLES = """examples:
  gspo-export outputs/arithmetic-smollm2-gspo/<run>
      the run's best checkpoint, in the folder export of the run
  gspo-export outputs/arithmetic-smollm2-gspo/<run> my-model --checkpoint last
      the last checkpoint, in the folder my-model
  gspo-export outputs/arithmetic-smollm2-gspo/<run> my-adapter --adapter
      the LoRA adapter alone, for peft, or for vLLM beside its base
  gspo-export <adapter folder or GGUF file> my-model
      an adapter from elsewhere merged into its base, or a GGUF file as a plain folder
"""


@dataclass(frozen=True)
class Job:
    """What is exported where; `run` and `config` are None for what no run trained."""

    source: ModelSource
    folder: Path
    run: RunFolder | None
    config: RunConfig | None
    adapter_only: bool
    why_adapter: str | None


def main() -> None:
    """Entry point of `gspo-export`."""
    run_command("gspo-export", export_command)


def export_command() -> int:
    """Export, and print how close the export is and how to serve it."""
    arguments = parser().parse_args()
    job = prepare(
        arguments.model,
        arguments.folder,
        arguments.checkpoint,
        arguments.adapter,
        arguments.base,
        ("model.trust_remote_code",) if arguments.trust_remote_code else (),
    )

    from gspo_cli.training.export import KL_LIMIT, export_adapter, export_model
    from gspo_cli.training.model_card import model_card

    if job.why_adapter:
        print(f"note: {job.why_adapter}", file=sys.stderr)
    source, folder = job.source, job.folder
    if job.adapter_only:
        export_adapter(source, folder, model_card(source, job.config, job.run, None, None))
        print(f"{folder}: is written, an adapter over {source.base}; serve it with\n")
        print(f"  vllm serve {source.base} --enable-lora --lora-modules trained={folder}")
        return 0
    fidelity = export_model(
        source,
        folder,
        job.config,
        arguments.dtype,
        arguments.trust_remote_code,
        lambda found, prompt: model_card(source, job.config, job.run, found, prompt),
        lambda text: print(f"warning: {text}", file=sys.stderr),
    )
    size = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    print(f"{folder}: is written ({size:,.0f} MB, {fidelity.dtype}), from {source.place}")
    print(f"  merged in fp32   logits within {fidelity.merge_error:.1g} of their range of the policy's")
    print(f"  as saved         KL {fidelity.kl:.2g} nats per token; same token {fidelity.same_tokens} of "
          f"{fidelity.tokens}, same answer {fidelity.same_answers} of {fidelity.answers}")  # fmt: skip
    if not fidelity.kl <= KL_LIMIT:
        print(
            f"warning: rounding to {fidelity.dtype} changes the policy by more than {KL_LIMIT:g} nats per "
            "token; export it with --dtype float32",
            file=sys.stderr,
        )
    if job.run is not None and source.place.endswith("iteration-000000"):
        print("note: no later checkpoint scored higher than the model before training, which this is")
    print(f"serve it with\n\n  vllm serve {folder}")
    return 0


def parser() -> ArgumentParser:
    """The command line."""
    found = command_parser("gspo-export", DESCRIPTION, EXAMPLES)
    found.add_argument("model", help="run folder, checkpoint, adapter folder, or GGUF file")
    found.add_argument(
        "folder", type=Path, nargs="?", help="folder to write (default: export, in the run folder)"
    )
    found.add_argument(
        "--checkpoint",
        default="best",
        help="of a run folder: best (default), last, initial, an iteration, or a checkpoint's name",
    )
    found.add_argument("--adapter", action="store_true", help="only the LoRA adapter, not merged")
    found.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="precision of the saved weights (default: that of the pretrained model)",
    )
    found.add_argument("--base", help="base of an adapter folder, where it names none that is here")
    found.add_argument(
        "--trust-remote-code", action="store_true", help="let a hub model run its own code while it loads"
    )
    found.add_argument(FLAG, action="store_true", help="honor what a run folder names outside of it")
    return found


def prepare(
    name: str,
    folder: Path | None,
    checkpoint: str,
    adapter: bool,
    base: str | None,
    allowed: Sequence[str] = (),
) -> Job:
    """Find what to export, before anything is loaded. `allowed` are settings of a run that this command line
    allows. Raises UserError where that cannot work."""
    place = Path(name).expanduser()
    run = RunFolder(place if is_run(place) else run_of(place) or place)
    is_trained = is_run(run.path)
    config = None
    if is_trained:
        # the reward is not needed, and perhaps not importable here
        node, notes = open_run(run.path, ("reward", "reward_settings", *allowed))
        node.reward = node.reward_settings = None
        for note in notes:
            print(f"note: {note}", file=sys.stderr)
        config = build_config(node)
    if config is not None and is_run(place):
        given = config.model if base is None else replace(config.model, base=base)
        source = run.checkpoint_model(checkpoint, given)
    else:
        require(
            checkpoint == "best",
            f"--checkpoint {checkpoint}: {name} is not a run folder, of whose checkpoints it takes one; "
            "leave it out",
        )
        source = find_source(name, base)
    written = (folder or run.path / ("export-adapter" if adapter else "export")).expanduser().absolute()
    require(
        folder is not None or is_trained,
        f"{name}: is not a run; say which folder to write, as in gspo-export {name} my-model",
    )
    require(
        not written.exists() or (written.is_dir() and not any(written.iterdir())),
        f"{written}: already exists; give another folder to write, or remove it",
    )
    require(
        source.adapter is not None or source.is_gguf or is_trained,
        f"{source.base}: is a plain model already; give a run, a checkpoint, an adapter or a GGUF file",
    )
    require(
        source.adapter is not None or not adapter,
        f"--adapter: {source.place} has no LoRA adapter, all its weights are its own; leave out --adapter",
    )
    why = _why_adapter(source, config)
    if why and source.adapter is None:
        raise UserError(f"{source.place}: {why}; give a checkpoint that has an adapter")
    return Job(
        source, written, run if is_trained else None, config, adapter or bool(why), None if adapter else why
    )


def _why_adapter(source: ModelSource, config: RunConfig | None) -> str | None:
    """Why only the adapter can be exported; None where it can be merged."""
    if config is not None and config.model.is_quantized and source.adapter is not None:
        key = config.model.quantized_by
        reason = f"it was trained over a base in fewer bits (model.{key}=true)"
    elif is_quantized(source.base):
        reason = f"the weights of its base {source.base} are stored in fewer bits"
    else:
        return None
    return (
        f"{reason}, and rounding the sum of both would undo the training: the adapter is exported alone, "
        "to be served over that base"
    )


if __name__ == "__main__":
    main()
