"""A sweep, which is a multirun of Hydra's: what its jobs leave, how it continues, what it says at its end.

The folder of a sweep holds sweep.json (the command), jobs.jsonl (a line per job that ended, written by
whichever process ran it), and a run folder per job. A sweep that is started again in its folder skips the
jobs that are complete and continues those that are not."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from gspo_cli.console.words import fixed, override
from gspo_cli.launching.processes import INTERRUPTED
from gspo_cli.run.files import write_json
from gspo_cli.run.identity import State, prepare
from gspo_cli.run.summary import RunStatus, read_summary

COMMAND, JOBS = "sweep.json", "jobs.jsonl"


@dataclass(frozen=True)
class Outcome:
    """How job `job` of a sweep ended: gspo-train's exit code, why where it failed, and the final held-out
    score."""

    job: int
    overrides: Sequence[str]
    folder: str
    code: int
    why: str = ""
    score: float | None = None

    @property
    def status(self) -> RunStatus:
        """completed, failed, or interrupted."""
        return {0: RunStatus.completed, INTERRUPTED: RunStatus.interrupted}.get(self.code, RunStatus.failed)


class SweepStart(Callback):
    """Called by Hydra (conf/train.yaml) at the start of a sweep: keeps its command, and says how to continue
    it. A command that is already there gives way to this one only when a job of this one is good."""

    folder: ClassVar[Path | None] = None  # of the sweep that this process runs

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Make the sweep's folder."""
        folder = Path(config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        SweepStart.folder = folder
        if not (folder / COMMAND).exists():
            keep_command(folder)
        (folder / JOBS).unlink(missing_ok=True)
        print(f"sweep {folder}: if it is cut short, gspo-train -m {override('resume', str(folder))}")


def keep_command(folder: Path) -> None:
    """Write down what this sweep was started with."""
    write_json(folder / COMMAND, {"arguments": sys.argv[1:]})


def in_sweep() -> bool:
    """Whether the present job is one of a sweep."""
    return HydraConfig.get().mode is RunMode.MULTIRUN


def prepared(folder: Path, config_yaml: str) -> State:
    """`prepare` the folder of a sweep's job, and say where it is not new."""
    state = prepare(folder, config_yaml)
    if SweepStart.folder is not None:
        keep_command(SweepStart.folder)
    if state is not State.new:
        print(f"{folder}: {'is complete already' if state is State.complete else 'continues'}", flush=True)
    return state


def final_score(folder: Path) -> float | None:
    """The score of a run's last held-out evaluation; None where there is none."""
    summary = read_summary(folder)
    return summary["final_eval"]["score"] if summary and summary["final_eval"] else None


def record(job: int, overrides: Sequence[str], folder: Path, code: int, why: str, sweep: Path) -> Outcome:
    """Write down how a job ended."""
    score = final_score(folder) if code == 0 else None
    outcome = Outcome(job, list(overrides), str(folder), code, why, score)
    with (sweep / JOBS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(outcome), ensure_ascii=False) + "\n")
    return outcome


def record_this(code: int, why: str) -> float | None:
    """Write down how the present job ended. Returns its score, which a sweeper may maximise; None where it
    failed. An interrupted job ends the sweep: raises SystemExit."""
    hydra = HydraConfig.get()
    folder, sweep = Path(hydra.runtime.output_dir), Path(hydra.sweep.dir)
    outcome = record(hydra.job.num, hydra.overrides.task, folder, code, why, sweep)
    if code == INTERRUPTED:
        sys.exit(code)
    return outcome.score


def outcomes(sweep: Path) -> list[Outcome]:
    """How the jobs of a sweep ended that did, in their order."""
    path = sweep / JOBS
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    return sorted((Outcome(**json.loads(line)) for line in lines if line), key=lambda each: each.job)


def ended_jobs() -> list[Outcome]:
    """Of the sweep that this process runs; none where it runs none."""
    return outcomes(SweepStart.folder) if SweepStart.folder is not None else []


def exit_code(ended: Sequence[Outcome]) -> int:
    """Of a sweep: 0 where no job failed, 2 where all did for bad input, 130 where it was interrupted."""
    codes = {each.code for each in ended}
    if INTERRUPTED in codes:
        return INTERRUPTED
    return 0 if codes <= {0} else 2 if codes == {2} else 1


def told_apart(jobs: Sequence[Sequence[str]]) -> list[str]:
    """A name for each job of a sweep: those of its overrides that not all have, in short."""
    shared = set.intersection(*map(set, jobs)) if len(jobs) > 1 else set()
    return [" ".join(shortened(text) for text in overrides if text not in shared) for overrides in jobs]


def shortened(text: str) -> str:
    """An override without the groups of its key, a long number to four digits."""
    key, _, value = text.partition("=")
    long_number = re.fullmatch(r"-?\d+\.?\d*(e-?\d+)?", value) and len(value) > 8
    return (
        f"{key.rpartition('.')[2]}={float(value):.4g}" if long_number else f"{key.rpartition('.')[2]}={value}"
    )


def table(ended: Sequence[Outcome]) -> str:
    """A line per job: its number, what it differs in, how it ended, its held-out score."""
    names = told_apart([each.overrides for each in ended])
    width = max((len(name) for name in names), default=0)
    lines = [
        f"{each.job:>3}  {name:<{width}}  {each.status:<11}  held-out {fixed(each.score)}"
        + (f"  {each.why}" if each.why else "")
        for each, name in zip(ended, names, strict=True)
    ]
    failed = sum(each.status is RunStatus.failed for each in ended)
    return "\n".join([*lines, f"{len(ended)} jobs, {failed or 'none'} failed"])


def continued(arguments: list[str]) -> list[str]:
    """The arguments of gspo-train, where they say `-m resume=<sweep folder>` replaced by those that the sweep
    began with, in its folder. Others that stand beside them are added."""
    given = [text for text in arguments if text.startswith("resume=")]
    if not given or not {"-m", "--multirun"} & set(arguments):
        return arguments
    folder = Path(given[-1].removeprefix("resume=").strip("'\""))
    if not (folder / COMMAND).exists():
        return arguments
    began = json.loads((folder / COMMAND).read_text(encoding="utf-8"))["arguments"]
    began = [text for text in began if not text.startswith("hydra.sweep.dir=")]
    added = [text for text in arguments if text not in (*given, "-m", "--multirun")]
    return [*began, *added, *shlex.split(override("hydra.sweep.dir", str(folder)))]
