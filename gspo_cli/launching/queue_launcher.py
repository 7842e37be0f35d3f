"""The launcher `queue` of Hydra's multirun: each job in its own process, one for each GPU.

All jobs are composed and checked before the first one starts."""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from gspo_cli.config.auto_hardware import use_one_process
from gspo_cli.config.checks import require
from gspo_cli.config.choices import Device
from gspo_cli.config.compose import build_config, explain, resolved_yaml
from gspo_cli.config.schema import RunConfig
from gspo_cli.errors import UserError
from gspo_cli.launching.processes import INTERRUPTED
from gspo_cli.launching.queue import QueuedJob, Slot, Status, make_slots, run_queue, training_job
from gspo_cli.launching.sweep import final_score, job_names, prepare_job, record_job
from gspo_cli.run.identity import State

NAMESPACE = "hydra_plugins.gspo_cli"  # Hydra accepts launchers only from the namespace hydra_plugins


@dataclass
class QueueLauncherConfig:
    """`parallel` is the number of runs at once; null means one per visible GPU, or one on a CPU."""

    _target_: str = f"{NAMESPACE}.QueueLauncher"
    parallel: int | None = None


@dataclass(frozen=True)
class SweepJob:
    """A job of a sweep, composed and checked. `composed` includes Hydra's section, `node` does not."""

    number: int
    overrides: Sequence[str]
    composed: DictConfig
    node: DictConfig
    config: RunConfig
    folder: Path


class QueueLauncher(Launcher):
    """Runs the jobs of a sweep in their own processes, `parallel` at once."""

    def __init__(self, parallel: int | None = None) -> None:
        self._parallel = parallel

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra. The jobs run gspo-train, so `task_function` is not needed."""
        self._loader, self._sweep = hydra_context.config_loader, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Called by Hydra's sweepers with all jobs of a sweep or a part of them: runs those that are not
        complete. Returns the final held-out scores, None if a job failed.

        Raises UserError before anything starts where one of them cannot run; SystemExit where the queue was
        interrupted."""
        from gspo_cli.launching.queue_table import make_table  # imported late: rich is slow to import

        setup_globals()
        jobs = [
            sweep_job(self._loader, self._sweep, overrides, number)
            for number, overrides in enumerate(job_overrides, start=initial_job_idx)
        ]
        check_folders(jobs)
        slots = slots_for([job.config for job in jobs], self._parallel)
        sweep = Path(self._sweep.hydra.sweep.dir)
        missing = []
        for job, name in zip(jobs, job_names([job.overrides for job in jobs]), strict=True):
            if prepare_job(job.folder, resolved_yaml(job.node)) is State.complete:
                record_job(job.number, job.overrides, job.folder, 0, "", sweep)
            else:
                log, iterations = job.folder / "log.txt", job.config.training.num_outer_iterations
                missing.append((job, training_job(name or str(job.number), job.folder, log, iterations)))
        ended = run_queue([command for _, command in missing], slots, make_table(stays=False))
        failed = set()
        for (job, _), queued in zip(missing, ended, strict=True):
            if queued.code is not None:
                record_job(job.number, job.overrides, job.folder, shell_code(queued), queued.why, sweep)
            if queued.status is Status.failed:
                failed.add(job.number)
        if any(queued.status in (Status.interrupted, Status.not_started) for queued in ended):
            sys.exit(INTERRUPTED)
        return [job_return(job, failed=job.number in failed) for job in jobs]


def sweep_job(loader: ConfigLoader, sweep: DictConfig, overrides: Sequence[str], number: int) -> SweepJob:
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
        use_one_process(node)  # the jobs share the GPUs
        config = build_config(node)
        require(
            config.hardware.nodes == 1 and node.resume is None,
            "the queue only starts new runs on this machine; leave out resume and hardware.nodes",
        )
    except (UserError, OmegaConfBaseException) as error:
        why = str(error) if isinstance(error, UserError) else explain(error)
        raise UserError(f"job {number} ({' '.join(overrides)}): {why}") from error
    return SweepJob(number, list(composed.hydra.overrides.task), composed, node, config, folder)


def check_folders(jobs: Sequence[SweepJob]) -> None:
    """Raise UserError if two jobs would share a folder."""
    seen: dict[Path, int] = {}
    for job in jobs:
        other = seen.setdefault(job.folder, job.number)
        require(
            other == job.number,
            f"hydra.sweep.subdir: jobs {other} and {job.number} have the same folder {job.folder}; add "
            "${hydra.job.num} to it",
        )


def slots_for(configs: Sequence[RunConfig], parallel: int | None) -> list[Slot]:
    """Slots for runs like these. Raises UserError if there are no GPUs for them."""
    hardware = [config.hardware for config in configs]
    device = Device.cuda if any(each.device is Device.cuda for each in hardware) else Device.cpu
    return make_slots(device, parallel, max(each.processes or 1 for each in hardware))


def shell_code(queued: QueuedJob) -> int:
    """A job's exit code as gspo-train gives it; 1 where a signal killed it."""
    if queued.status is Status.interrupted:
        return INTERRUPTED
    return queued.code if queued.code is not None and queued.code >= 0 else 1


def job_return(job: SweepJob, failed: bool) -> JobReturn:
    """What Hydra's sweepers expect of a job."""
    result = JobReturn(
        overrides=job.overrides,
        cfg=job.node,
        hydra_cfg=OmegaConf.create({"hydra": job.composed.hydra}),
        working_dir=str(Path.cwd()),
        task_name=job.composed.hydra.job.name,
        status=JobStatus.COMPLETED,
    )
    result.return_value = None if failed else final_score(job.folder)
    return result


def offer_queue() -> None:
    """Make `hydra/launcher=queue` known to Hydra.

    Hydra accepts launchers only from the namespace hydra_plugins and finds them there by name. This module
    is registered in it under a second name, so that no such folder has to be installed beside the package."""
    ConfigStore.instance().store(
        group="hydra/launcher", name="queue", node=QueueLauncherConfig, provider="gspo-cli"
    )
    plugins = Plugins.instance()  # its constructor looks for installed plugins
    namespace, _, name = NAMESPACE.partition(".")
    try:
        parent = importlib.import_module(namespace)
    except ModuleNotFoundError:  # none is installed
        parent = sys.modules[namespace] = ModuleType(namespace)
    sys.modules[NAMESPACE] = sys.modules[__name__]
    setattr(parent, name, sys.modules[__name__])
    QueueLauncher.__module__ = NAMESPACE
    plugins.register(QueueLauncher)
