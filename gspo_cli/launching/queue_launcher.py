"""The launcher `queue` of Hydra's multirun: jobs in processes of their own, one for each GPU."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

NAMESPACE = "hydra_plugins.gspo_cli"  # Hydra takes launchers of the namespace hydra_plugins alone


@dataclass
class QueueLauncherConfig:
    """`parallel` is how many runs go at once; null: one for each visible GPU, one on a CPU."""

    _target_: str = f"{NAMESPACE}.QueueLauncher"
    parallel: int | None = None


class QueueLauncher(Launcher):
    """Runs the jobs of a sweep in processes of their own; what does not fit at once waits."""

    def __init__(self, parallel: int | None = None) -> None:
        self._parallel = parallel

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra; the jobs run gspo-train, so that `task_function` is not needed."""
        self._loader, self._config = hydra_context.config_loader, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Called by Hydra's sweepers, with all jobs of a sweep or a part of them."""
        from gspo_cli.launching.queued_jobs import launch

        return launch(self._loader, self._config, job_overrides, initial_job_idx, self._parallel)


def offer_queue() -> None:
    """Make `hydra/launcher=queue` known to Hydra.

    Hydra takes launchers of the namespace hydra_plugins alone and finds them there by name: this module gets
    a second name in it, so that no folder of that name has to be installed beside the package."""
    ConfigStore.instance().store(
        group="hydra/launcher", name="queue", node=QueueLauncherConfig, provider="gspo-cli"
    )
    plugins = Plugins.instance()  # looks for installed plugins when it is made
    namespace, _, name = NAMESPACE.partition(".")
    try:
        parent = importlib.import_module(namespace)
    except ModuleNotFoundError:  # none is installed
        parent = sys.modules[namespace] = ModuleType(namespace)
    sys.modules[NAMESPACE] = sys.modules[__name__]
    setattr(parent, name, sys.modules[__name__])
    QueueLauncher.__module__ = NAMESPACE
    plugins.register(QueueLauncher)
