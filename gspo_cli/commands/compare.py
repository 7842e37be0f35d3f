"""`gspo-compare`: compares algorithms, from run folders or from runs that it trains itself."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import cast

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gspo_cli.commands.compare_report import Extras, add_extras, extras_of, report, report_folder
from gspo_cli.commands.entry import command_parser, run_command
from gspo_cli.compare.missing_runs import SharedSettings, runs_to_compare, train_missing, tune
from gspo_cli.config.checks import require
from gspo_cli.config.choices import Until
from gspo_cli.config.compare_schema import CompareConfig, TuneConfig, TypedCompareConfig
from gspo_cli.config.compose import explain
from gspo_cli.config.trust import FLAG
from gspo_cli.errors import UserError
from gspo_cli.launching.processes import INTERRUPTED
from gspo_cli.launching.queue import QueuedJob, Status
from gspo_cli.run.files import make_folder
from gspo_cli.run.folder import RunFolder

DESCRIPTION = """gspo-compare compares GSPO with GRPO, or any algorithms with each other: verdicts with
intervals over seeds, curves, clip fractions, stability, conversations side by side. It compares run folders
and sweeps, of several tasks and models too, or trains the missing runs itself; an interrupted comparison
resumes from its last checkpoints.
"""
EXAMPLES = """examples:
  gspo-compare task=arithmetic compare.seeds=[0,1,2] compare.algorithms=[gspo,grpo]
      trains six runs, then reports; runs that are already complete are not repeated
  gspo-compare outputs/sweeps/<sweep>
      reports on the runs of a sweep
  gspo-compare outputs/compare/arithmetic-tiny outputs/compare/countdown-tiny
      one report with a section for each task and model, and a summary across them
  gspo-compare outputs/sweeps/<sweep> --csv --png
      and writes its tables and figures as files
  gspo-compare model=tiny_moe 'compare.algorithms=[gspo,grpo,"grpo algorithm.routing_replay=true"]'
      GRPO with and without routing replay
  gspo-compare outputs/sweeps/<sweep> --zip
      packs report, configs and logs for somebody else, who runs gspo-compare comparison.zip
  gspo-compare task=arithmetic compare.until=settled compare.max_hours=8
      adds seeds until the held-out score is settled, or the budget is used up
  gspo-compare task=arithmetic compare.tune.trials=5
      first tunes learning rate and clip range of each algorithm, with a separate seed

settings (compare.<name>=<value>):
  algorithms, seeds   the runs: [gspo,grpo] and [0,1,2]
  until               settled adds seeds until the algorithms differ in the held-out score, or by less than
                      `smallest`: none
  smallest            smallest difference of the held-out score that is of interest: 0.05
  max_seeds, max_hours
                      where adding ends: 20 seeds per algorithm; no limit of training hours
  baseline            the algorithm that the others are compared with: grpo if present
  level               of intervals and verdicts: 0.95
  threshold           held-out score of "steps to threshold": 80% of the way to the lowest mean final score
  allow               settings other than algorithm and seed that may differ: none; e.g. [rollout.temperature]
  tune.trials, tune.iterations, tune.seed
                      runs that tune each algorithm first: 0, as long as the compared runs, 1000
  parallel            runs at once: one for each visible GPU, or one
  folder              where runs and report go: outputs/compare/<task>-<model>
"""

# training settings: not allowed where folders are given
OF_TRAINING = tuple(
    f"compare.{name}" for name in ("algorithms=", "seeds=", "until=", "max_", "parallel=", "tune.")
)


def main() -> None:
    """Entry point of `gspo-compare`."""
    run_command("gspo-compare", compare_command)


def compare_command() -> int:
    """Train or find the runs, compare them, write and show the report; returns the exit code."""
    arguments = parse()
    if not arguments.what:
        raise UserError(
            "nothing to compare; give run folders, or settings to train with: gspo-compare task=arithmetic "
            "(gspo-compare --help shows more)"
        )
    for text in arguments.what:
        require(
            text != "", "'': is no folder (an empty variable of the shell?); give run folders or settings"
        )
        bare = text.startswith("compare.") and "=" not in text and not Path(text).exists()
        require(not bare, f"{text}: has no value; type {text}=<value>")
    folders = [text for text in arguments.what if "=" not in text or Path(text).exists()]
    overrides = [text for text in arguments.what if text not in folders]
    settings = compare_settings([text for text in overrides if text.startswith(("compare.", "compare="))])
    shared = [text for text in overrides if not text.startswith(("compare.", "compare="))]
    extras = extras_of(arguments)
    if not folders:
        refuse_several(shared)
        try:
            return train_and_report(SharedSettings(shared, arguments.config_dir), settings, extras)
        except KeyboardInterrupt:
            print(
                "gspo-compare: stopped; the same command resumes from the last checkpoints", file=sys.stderr
            )
            return INTERRUPTED
    for text in overrides:
        require(
            not text.startswith(OF_TRAINING),
            f"{text}: is a training setting, but run folders are given; leave one of them out",
        )
    if shared:
        raise UserError(
            f"{shared[0]}: does not apply to existing runs; leave it out, or leave out the folders to "
            "train runs with it"
        )
    paths = [_unpacked(Path(folder)) for folder in folders]
    report(paths, settings, report_folder(settings, paths), extras)
    return 0


def _unpacked(path: Path) -> Path:
    """A given folder as it is; of a packed comparison the folder of its runs."""
    if path.suffix.lower() != ".zip" or not path.is_file():
        return path
    from gspo_cli.compare.packing import unpacked

    return unpacked(path)


def refuse_several(overrides: Sequence[str]) -> None:
    """Raise UserError where an override has several values, as in a sweep, or there are two tasks or
    models."""
    chosen: dict[str, list[str]] = {}
    for text in overrides:
        key, _, value = text.partition("=")
        if key in ("task", "model"):
            chosen.setdefault(key, []).extend(value.strip("[]").split(","))
        elif is_sweep(text):
            raise UserError(
                f"{text}: has several values, and gspo-compare trains with one; run it once for each"
            )
    for key, given in chosen.items():
        values = list(dict.fromkeys(value.strip() for value in given))
        commands = " and ".join(f"gspo-compare {key}={value}" for value in values)
        require(
            len(values) == 1,
            f"{key}={','.join(values)}: gspo-compare trains with one {key} at a time; run {commands}, each "
            "with your other settings, then gspo-compare with the folders of all, which makes one report",
        )


def is_sweep(text: str) -> bool:
    """Whether Hydra reads an override as several values; False where it cannot read it, which is reported
    elsewhere."""
    try:
        return OverridesParser.create().parse_override(text).is_sweep_override()
    except (HydraException, RecursionError):
        return False


def parse() -> argparse.Namespace:
    """The command line: run folders, or settings as for gspo-train."""
    parser = command_parser("gspo-compare", DESCRIPTION, EXAMPLES)
    parser.add_argument(
        "what", nargs="*", help="run folders, sweeps or packed comparisons; or settings as for gspo-train"
    )
    add_extras(parser)
    parser.add_argument(
        "-cd", "--config-dir", type=Path, action="append", default=[], help="folder with custom options"
    )
    parser.add_argument(FLAG, action="store_true", help="honor what stored runs name outside their folders")
    return parser.parse_intermixed_args()


def compare_settings(overrides: Sequence[str]) -> CompareConfig:
    """The checked settings from `compare.<name>=<value>` texts. Raises UserError."""
    for text in overrides:
        key, _, value = text.partition("=")
        check_known(key.removeprefix("compare."))
        require(value.strip() != "", f"{text}: has no value; type {key}=<value>, or leave it out")
    try:
        given = OmegaConf.from_dotlist(list(overrides)).get("compare", {})
        # to_object's type covers lists and scalars too; of a structured node it returns the dataclass
        settings = cast(
            CompareConfig, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(CompareConfig), given))
        )
        return TypedCompareConfig(**vars(settings), typed=sorted(given))
    except yaml.YAMLError as error:
        raise UserError(f"{' '.join(overrides)}: cannot be read; write compare.name=value") from error
    except OmegaConfBaseException as error:
        raise UserError(explain(error, CompareConfig, "compare.")) from error


def check_known(key: str) -> None:
    """Raise UserError where compare.`key` is not a setting."""
    section, _, name = key.rpartition(".")
    kinds = {"": CompareConfig, "tune": TuneConfig}
    known = [f.name for f in fields(kinds.get(section, CompareConfig)) if f.name != "tune"]
    close = difflib.get_close_matches(name, known, n=1)
    above = f"{section}." if section else ""
    hint = f"did you mean {above}{close[0]}?" if close else "gspo-compare --help lists them"
    require(section in kinds and name in known, f"compare.{key}: is not a setting; {hint}")


def train_and_report(shared: SharedSettings, settings: CompareConfig, extras: Extras) -> int:
    """Train the missing runs, then report; returns the exit code."""
    notes = ["Learning rates and clip ranges come from the configuration; none was tuned."]
    runs = runs_to_compare(shared, settings)  # bad input fails before a trial starts
    ended: list[QueuedJob] = []
    base = runs[0].folder.parent.parent
    make_folder(base, "compare.folder")
    with RunFolder(base).locked():
        if settings.tune.trials:
            settings, notes, ended = tune(shared, settings)
            runs = runs_to_compare(shared, settings)
        if settings.until is Until.settled:
            from gspo_cli.compare.until_settled import train_until_settled

            runs, added = train_until_settled(shared, settings, runs)
            ended += added
        else:
            ended += train_missing(runs, settings)
        report([run.folder for run in runs], settings, base, extras, notes)
    return 1 if any(end.status is Status.failed for end in ended) else 0


if __name__ == "__main__":
    main()
