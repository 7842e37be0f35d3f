"""A sweep (a Hydra multirun): the files its jobs write, how it resumes, what it prints at the end.

The folder of a sweep holds sweep.json (the command), jobs.jsonl (a line per job that ended, written by
whichever process ran it), and a run folder per job. A sweep that is started again in its folder skips the
jobs that are complete and continues the others."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from gspo_cli.config.compose import plain_values, register
from gspo_cli.config.replayed import FOLDER
from gspo_cli.config.schema import RunConfig
from gspo_cli.config.trust import require_command_trust, trust_command, trust_own
from gspo_cli.config.typed import override
from gspo_cli.console.words import counted, fixed
from gspo_cli.errors import UserError
from gspo_cli.launching.processes import INTERRUPTED
from gspo_cli.run.files import read_json, write_json
from gspo_cli.run.identity import State, prepare
from gspo_cli.run.summary import RunStatus, read_summary

COMMAND, JOBS = "sweep.json", "jobs.jsonl"


@dataclass(frozen=True)
class JobResult:
    """How job `job` of a sweep ended: gspo-train's exit code, why where it failed, and the final held-out
    score. A line of jobs.jsonl."""

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
    """Called by Hydra (conf/train.yaml) at the start of a sweep: saves its command, and prints how to
    continue it. An already saved command is replaced only once a job of the new command is accepted."""

    folder: ClassVar[Path | None] = None  # of the sweep that this process runs

    def __reduce__(self) -> tuple[Callable[[], SweepStart], tuple[()]]:
        """Launchers such as joblib send this object to new processes, which then need our resolvers."""
        return registered, ()

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Make the sweep's folder."""
        folder = Path(config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        SweepStart.folder = folder
        if not (folder / COMMAND).exists():
            save_command(folder)
        (folder / JOBS).unlink(missing_ok=True)
        print(f"sweep {folder}: if interrupted, continue with: {resume_command(folder)}")


def registered() -> SweepStart:
    """A SweepStart in a process where `register` has been called."""
    register()
    return SweepStart()


def resume_command(folder: Path) -> str:
    """The command that continues the sweep in `folder`."""
    return f"gspo-train -m {override('resume', folder)}"


def save_command(folder: Path) -> None:
    """Save what this sweep was started with."""
    write_json(folder / COMMAND, {"arguments": sys.argv[1:]})
    trust_command(sys.argv[1:])


def resumed_sweep(arguments: list[str]) -> list[str]:
    """The arguments of gspo-train. `-m resume=<sweep folder>` is replaced by those that the sweep began with,
    in its folder; other arguments are added to them."""
    given = [text for text in arguments if text.startswith("resume=")]
    if not given or not {"-m", "--multirun"} & set(arguments):
        return arguments
    folder = Path(given[-1].removeprefix("resume=").strip("'\""))
    saved = read_json(folder / COMMAND)
    if saved is None:
        return arguments
    began = saved.get("arguments")
    if not isinstance(began, list) or not all(isinstance(text, str) for text in began):
        raise UserError(
            f"{folder / COMMAND}: is not the command of a sweep; restore it, or start the sweep again"
        )
    require_command_trust(began, RunConfig, folder)
    began = [text for text in began if not text.startswith(FOLDER)]
    added = [text for text in arguments if text not in (*given, "-m", "--multirun")]
    return [*began, *added, *shlex.split(override("hydra.sweep.dir", folder))]


def in_sweep() -> bool:
    """Whether the present job is one of a sweep."""
    return HydraConfig.get().mode is RunMode.MULTIRUN


def prepare_job(folder: Path, config_yaml: str) -> State:
    """`prepare` the folder of a sweep's job, and print where it is not new."""
    node = OmegaConf.create(config_yaml)
    assert isinstance(node, DictConfig)
    trust_own(plain_values(node), RunConfig)
    state = prepare(folder, config_yaml)
    if SweepStart.folder is not None:
        save_command(SweepStart.folder)
    if state is not State.new:
        print(f"{folder}: {'is already complete' if state is State.complete else 'continues'}", flush=True)
    return state


def final_score(folder: Path) -> float | None:
    """The score of a run's last held-out evaluation; None if there is none."""
    summary = read_summary(folder)
    return summary["final_eval"]["score"] if summary and summary.get("final_eval") else None


def record_job(
    job: int, overrides: Sequence[str], folder: Path, code: int, why: str, sweep: Path
) -> JobResult:
    """Add the result of a job to jobs.jsonl."""
    score = final_score(folder) if code == 0 else None
    result = JobResult(job, list(overrides), str(folder), code, why, score)
    with (sweep / JOBS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(result), ensure_ascii=False) + "\n")
    return result


def record_present_job(code: int, why: str) -> float | None:
    """Add the result of the present job. Returns its score, which a sweeper may maximize; None if it
    failed. An interrupted job ends the sweep: raises SystemExit."""
    hydra = HydraConfig.get()
    folder, sweep = Path(hydra.runtime.output_dir), Path(hydra.sweep.dir)
    result = record_job(hydra.job.num, hydra.overrides.task, folder, code, why, sweep)
    if code == INTERRUPTED:
        sys.exit(code)
    return result.score


def job_results() -> list[JobResult]:
    """Results so far of the sweep that this process runs; empty if it runs none."""
    path = None if SweepStart.folder is None else SweepStart.folder / JOBS
    if path is None or not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return sorted((JobResult(**json.loads(line)) for line in lines if line), key=lambda result: result.job)


def report_sweep() -> int:
    """Print how the jobs of this process's sweep ended and what to run next. Returns the exit code: 0 where
    no job failed, 2 where all failed for bad input, 130 where it was interrupted."""
    results, folder = job_results(), SweepStart.folder
    if not results or folder is None:
        return 0
    print(f"\n{table(results)}", flush=True)
    codes = [result.code for result in results]
    if INTERRUPTED in codes:
        print(f"jobs that are not listed did not start; continue with: {resume_command(folder)}", flush=True)
        return INTERRUPTED
    if codes.count(0) > 1:
        print(f"compare with: gspo-compare {shlex.quote(str(folder))}", flush=True)
    return 0 if set(codes) == {0} else 2 if set(codes) == {2} else 1


def table(results: Sequence[JobResult]) -> str:
    """A line per job: its number, the overrides it differs in, how it ended, its held-out score."""
    names = job_names([result.overrides for result in results])
    width = max((len(name) for name in names), default=0)
    lines = [
        f"{result.job:>3}  {name:<{width}}  {result.status:<11}  held-out {fixed(result.score)}"
        + (f"  {result.why}" if result.why else "")
        for result, name in zip(results, names, strict=True)
    ]
    failed = sum(result.code not in (0, INTERRUPTED) for result in results)
    return "\n".join([*lines, f"{counted(len(results), 'job')}, {failed or 'none'} failed"])


def job_names(jobs: Sequence[Sequence[str]]) -> list[str]:
    """A short name for each job of a sweep: the overrides that are not shared by all jobs."""
    shared = set.intersection(*map(set, jobs)) if len(jobs) > 1 else set()
    return [" ".join(shortened(text) for text in overrides if text not in shared) for overrides in jobs]


def shortened(text: str) -> str:
    """An override without the groups of its key, a long number with four digits."""
    key, _, value = text.partition("=")
    if re.fullmatch(r"-?\d+\.?\d*(e-?\d+)?", value) and len(value) > 8:
        value = f"{float(value):.4g}"
    return f"{key.rpartition('.')[2]}={value}"
