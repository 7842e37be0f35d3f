"""`gspo-compare`: what one algorithm changes against another, from run folders or from runs made for it."""

from __future__ import annotations

import argparse
import difflib
import hashlib
import shlex
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gspo_cli.commands.entry import command_parser, run_command
from gspo_cli.compare.missing_runs import Source, plan, reward_at_end, train_all, trials
from gspo_cli.config.checks import require
from gspo_cli.config.compare_schema import CompareConfig, TuneConfig
from gspo_cli.config.compose import explain
from gspo_cli.console.words import number
from gspo_cli.errors import UserError
from gspo_cli.launching.processes import INTERRUPTED
from gspo_cli.launching.queue import QueuedJob, Status
from gspo_cli.run.files import make_folder
from gspo_cli.run.folder import RunFolder

DESCRIPTION = """gspo-compare reports what GSPO changes against GRPO, or any algorithms against each other:
verdicts with intervals over seeds, curves, clip fractions, stability, conversations side by side. It compares
run folders and sweeps, or trains what is missing itself; a comparison that was cut goes on where it stands.
"""
EXAMPLES = """examples:
  gspo-compare task=arithmetic compare.seeds=[0,1,2] compare.algorithms=[gspo,grpo]
      trains six runs, then reports; runs that are there already are not made again
  gspo-compare outputs/sweeps/<sweep>
      reports on the runs of a sweep
  gspo-compare model=tiny_moe 'compare.algorithms=[gspo,grpo,"grpo algorithm.routing_replay=true"]'
      GRPO with and without routing replay
  gspo-compare task=arithmetic compare.tune.trials=5
      tunes learning rate and clip range of each algorithm first, with a seed of its own

settings (compare.<name>=<value>):
  algorithms, seeds   what is run: [gspo,grpo] and [0,1,2]
  baseline            what the others are held against: grpo where it is there
  level               of intervals and verdicts: 0.95
  threshold           held-out score of "steps to threshold": 80% of the way to the lowest mean final score
  allow               settings beside algorithm and seed that may differ: none; e.g. [rollout.temperature]
  tune.trials, tune.iterations, tune.seed
                      runs that tune each algorithm before: 0, as many as compared, 1000
  parallel            runs at once: one for each visible GPU, or one
  folder              where runs and report go: outputs/compare/<task>-<model>
"""

# what is trained: nothing of it where folders are given
OF_TRAINING = tuple(f"compare.{name}" for name in ("algorithms=", "seeds=", "parallel=", "tune."))


def main() -> None:
    """Entry point of `gspo-compare`."""
    run_command("gspo-compare", compare_command)


def compare_command() -> int:
    """Make or find runs, compare them, write and show the report; returns the exit code."""
    arguments = parse()
    if not arguments.what:
        raise UserError(
            "nothing to compare; give run folders, or what to train: gspo-compare task=arithmetic "
            "(gspo-compare --help shows more)"
        )
    folders = [text for text in arguments.what if "=" not in text or Path(text).exists()]
    overrides = [text for text in arguments.what if text not in folders]
    settings = compare_settings([text for text in overrides if text.startswith(("compare.", "compare="))])
    shared = [text for text in overrides if not text.startswith(("compare.", "compare="))]
    if not folders:
        try:
            return made(Source(shared, arguments.config_dir), settings)
        except KeyboardInterrupt:
            print("gspo-compare: stopped; the same command goes on where it stands", file=sys.stderr)
            return INTERRUPTED
    for text in overrides:
        require(
            not text.startswith(OF_TRAINING),
            f"{text}: decides what is trained, and folders are given; leave it out, or give the folders of "
            "the runs that are wanted",
        )
    if shared:
        raise UserError(
            f"{shared[0]}: runs in folders are compared as they are; leave it out, or leave the folders out "
            "to train runs with it"
        )
    paths = [Path(folder) for folder in folders]
    report(paths, settings, report_folder(settings, paths))
    return 0


def parse() -> argparse.Namespace:
    """The command line: run folders, or settings as for gspo-train."""
    parser = command_parser("gspo-compare", DESCRIPTION, EXAMPLES)
    parser.add_argument("what", nargs="*", help="run folders or sweeps; or settings as for gspo-train")
    parser.add_argument(
        "-cd", "--config-dir", type=Path, action="append", default=[], help="folder with options of your own"
    )
    return parser.parse_intermixed_args()


def compare_settings(overrides: Sequence[str]) -> CompareConfig:
    """The checked settings that `compare.<name>=<value>` texts give. Raises UserError."""
    for text in overrides:
        check_known(text.partition("=")[0].removeprefix("compare."))
    try:
        given = OmegaConf.from_dotlist(list(overrides)).get("compare", {})
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(CompareConfig), given))
    except yaml.YAMLError as error:
        raise UserError(f"{' '.join(overrides)}: cannot be read; write compare.name=value") from error
    except OmegaConfBaseException as error:
        raise UserError(f"compare.{explain(error)}") from error


def check_known(key: str) -> None:
    """Raise UserError where compare.`key` is no setting."""
    section, _, name = key.rpartition(".")
    kinds = {"": CompareConfig, "tune": TuneConfig}
    known = [f.name for f in fields(kinds.get(section, CompareConfig)) if f.name != "tune"]
    close = difflib.get_close_matches(name, known, n=1)
    above = f"{section}." if section else ""
    hint = f"did you mean {above}{close[0]}?" if close else "gspo-compare --help lists them"
    require(section in kinds and name in known, f"compare.{key}: is not a setting; {hint}")


def made(source: Source, settings: CompareConfig) -> int:
    """Train what is missing, then report."""
    notes = ["Learning rates and clip ranges are those that the configuration gives; none was tuned."]
    planned, ended = plan(source, settings), []  # bad input answers before a trial starts
    base = planned[0].folder.parent.parent
    make_folder(base, "compare.folder")
    with RunFolder(base).held():
        if settings.tune.trials:
            settings, notes, ended = tuned(source, settings)
            planned = plan(source, settings)
        ended += train_all(planned, settings)
        report([run.folder for run in planned], settings, base, notes)
    return 1 if any(end.status is Status.failed for end in ended) else 0


def tuned(source: Source, settings: CompareConfig) -> tuple[CompareConfig, list[str], list[QueuedJob]]:
    """The settings with each algorithm's best trial in its place, what was tried, in sentences, and how the
    trials ended."""
    spent = {entry: trials(source, settings, entry) for entry in settings.algorithms}
    ended = train_all([run for runs in spent.values() for run in runs], settings)
    chosen, notes = [], []
    for entry, runs in spent.items():
        rewards = {run.entry: reward_at_end(run.folder) for run in runs}
        whole = {tried: reward for tried, reward in rewards.items() if reward is not None}
        if not whole:
            raise UserError(f"compare.tune: all trials of {entry} failed; see {runs[0].folder}.log")
        best = max(whole, key=lambda tried: whole[tried])
        chosen.append(best)
        listed = "; ".join(
            f"{tried}: {'failed' if reward is None else number(reward)}" for tried, reward in rewards.items()
        )
        notes.append(
            f"{entry} was tuned with {len(runs)} trials, seed {settings.tune.seed}, by the training reward "
            f"at their end: {listed}. Taken: {best}."
        )
    return replace(settings, algorithms=chosen), notes, ended


def report_folder(settings: CompareConfig, paths: Sequence[Path]) -> Path:
    """Where the report on given folders goes: into the one folder, or into one named after all of them."""
    if settings.folder is not None:
        return Path(settings.folder)
    if len(paths) == 1:
        return paths[0]
    names = "\n".join(sorted(str(path.resolve()) for path in paths))
    return Path("outputs", "compare", hashlib.sha256(names.encode()).hexdigest()[:8])


def report(paths: Sequence[Path], settings: CompareConfig, folder: Path, notes: Sequence[str] = ()) -> None:
    """Compare the runs in `paths`, write the report to `folder`, and show its first page."""
    from rich.console import Console

    from gspo_cli.commands.compare_view import show
    from gspo_cli.compare.comparison import compare
    from gspo_cli.compare.report import write_report
    from gspo_cli.compare.runs import find_runs

    runs, left_out = find_runs(paths)
    found = compare(runs, left_out, settings)
    again = shlex.join(["gspo-compare", *sys.argv[1:]])
    found = replace(found, methods=[*found.methods, *notes], reproduce=[again, *found.reproduce[1:]])
    show(found, write_report(found, folder), Console())


if __name__ == "__main__":
    main()
