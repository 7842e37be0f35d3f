"""The launcher `queue` of gspo-cli. Hydra looks for launchers in the namespace hydra_plugins alone, and
imports this at the start of every program that uses it: what is heavy is imported when a sweep begins.

Annotations are not postponed: Hydra runs a plugin's module before it is one of sys.modules, where dataclass
would look for their names."""

from collections.abc import Sequence
from dataclasses import dataclass

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class QueueLauncherConfig:
    """`parallel` is how many runs go at once; null: one for each visible GPU, one on a CPU."""

    _target_: str = "hydra_plugins.gspo_queue.QueueLauncher"
    parallel: int | None = None


ConfigStore.instance().store(
    group="hydra/launcher", name="queue", node=QueueLauncherConfig, provider="gspo_queue"
)


class QueueLauncher(Launcher):
    """Runs the jobs of a sweep in processes of their own, one for each GPU; the rest waits."""

    def __init__(self, parallel: int | None = None) -> None:
        self._parallel = parallel

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra; the jobs run gspo-train, so that `task_function` is not needed."""
        self._loader, self._config = hydra_context.config_loader, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Called by Hydra's sweepers, with all jobs of a sweep or a part of them."""
        from gspo_cli.commands.queued_jobs import launch

        return launch(self._loader, self._config, job_overrides, initial_job_idx, self._parallel)
