"""The jobs of a sweep as a queue of processes: all are composed and checked before the first one starts."""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from gspo_cli.config.choices import Device
from gspo_cli.config.compose import build_config, explain, register, resolved_yaml
from gspo_cli.config.schema import RunConfig
from gspo_cli.errors import UserError
from gspo_cli.launching.processes import INTERRUPTED
from gspo_cli.launching.queue import Ended, Job, Slot, Status, make_slots, run_queue, training_job
from gspo_cli.launching.queue_table import make_table
from gspo_cli.launching.sweep import final_score, prepared, record, told_apart
from gspo_cli.run.identity import State


@dataclass(frozen=True)
class Planned:
    """A job that is composed and checked. `composed` has Hydra's section too."""

    number: int
    overrides: Sequence[str]
    composed: DictConfig
    node: DictConfig
    config: RunConfig
    folder: Path


def launch(
    loader: ConfigLoader,
    sweep: DictConfig,
    job_overrides: Sequence[Sequence[str]],
    first: int,
    parallel: int | None,
) -> list[JobReturn]:
    """Run the jobs that are not complete, `parallel` at once. Returns what Hydra's sweepers take: the final
    held-out scores, None where a job failed.

    Raises UserError before anything starts where one of them cannot run; SystemExit where the queue was
    interrupted."""
    setup_globals()
    register()
    plans = [plan(loader, sweep, overrides, first + i) for i, overrides in enumerate(job_overrides)]
    check_together(plans)
    slots = slots_for([each.config for each in plans], parallel)
    folder = Path(sweep.hydra.sweep.dir)
    names = told_apart([each.overrides for each in plans])
    jobs: dict[int, Job] = {}
    for each, name in zip(plans, names, strict=True):
        if prepared(each.folder, resolved_yaml(each.node)) is State.complete:
            record(each.number, each.overrides, each.folder, 0, "", folder)
        else:
            jobs[each.number] = queued(each, name)
    ends = dict(zip(jobs, run_queue(list(jobs.values()), slots, make_table(stays=False)), strict=True))
    for each in plans:
        ended = ends.get(each.number)
        if ended is not None and ended.code is not None:
            record(each.number, each.overrides, each.folder, shell_code(ended), ended.why, folder)
    if any(ended.status in (Status.interrupted, Status.not_started) for ended in ends.values()):
        sys.exit(INTERRUPTED)
    return [returned(each, ends.get(each.number)) for each in plans]


def plan(loader: ConfigLoader, sweep: DictConfig, overrides: Sequence[str], number: int) -> Planned:
    """Compose and check job `number`. Raises UserError that names it."""
    try:
        composed = loader.load_sweep_config(sweep, list(overrides))
        with open_dict(composed):
            composed.hydra.job.id, composed.hydra.job.num = str(number), number
        HydraConfig.instance().set_config(composed)
        folder = Path(composed.hydra.sweep.dir, composed.hydra.sweep.subdir).absolute()
        node = copy.deepcopy(composed)
        with open_dict(node):
            del node["hydra"]
        config = build_config(node)
    except (UserError, OmegaConfBaseException) as error:
        why = str(error) if isinstance(error, UserError) else explain(error)
        raise UserError(f"job {number} ({' '.join(overrides)}): {why}") from error
    if config.hardware.nodes > 1 or node.resume is not None:
        raise UserError(
            f"job {number}: the queue starts new runs on this machine alone; leave resume and hardware.nodes "
            "as they are"
        )
    return Planned(number, list(composed.hydra.overrides.task), composed, node, config, folder)


def check_together(plans: Sequence[Planned]) -> None:
    """Raise UserError where two jobs would share a folder."""
    seen: dict[Path, int] = {}
    for each in plans:
        other = seen.setdefault(each.folder, each.number)
        if other != each.number:
            raise UserError(
                f"hydra.sweep.subdir: jobs {other} and {each.number} have the same folder {each.folder}; put "
                "${hydra.job.num} in it"
            )


def slots_for(configs: Sequence[RunConfig], parallel: int | None) -> list[Slot]:
    """Places for runs like these. Raises UserError where there are no GPUs for them."""
    hardware = [config.hardware for config in configs]
    device = Device.cuda if any(each.device is Device.cuda for each in hardware) else Device.cpu
    return make_slots(device, parallel, max(each.processes or 1 for each in hardware))


def queued(each: Planned, name: str) -> Job:
    """The command that starts or continues a job in its folder."""
    iterations = each.config.training.num_outer_iterations
    return training_job(name or str(each.number), each.folder, each.folder / "log.txt", iterations)


def shell_code(ended: Ended) -> int:
    """A job's exit code as gspo-train gives it; 1 where a signal ended it by force."""
    if ended.status is Status.interrupted:
        return INTERRUPTED
    return ended.code if ended.code is not None and ended.code >= 0 else 1


def returned(each: Planned, ended: Ended | None) -> JobReturn:
    """What Hydra's sweepers take of a job; `ended` is None where it was complete before."""
    failed = ended is not None and ended.status is Status.failed
    result = JobReturn(
        overrides=each.overrides,
        cfg=each.node,
        hydra_cfg=OmegaConf.create({"hydra": each.composed.hydra}),
        working_dir=str(Path.cwd()),
        task_name=each.composed.hydra.job.name,
        status=JobStatus.COMPLETED,
    )
    result.return_value = None if failed else final_score(each.folder)
    return result
