"""Environments under the names of the GSPO guide: a task of conf/task with its settings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from omegaconf import DictConfig

from gspo_cli.api.config import write_setting
from gspo_cli.config.checks import require
from gspo_cli.config.compose import build_task, composed
from gspo_cli.errors import UserError
from gspo_cli.run.files import write_atomically
from gspo_cli.tasks.base import Environment, Task

# keyword arguments of ConversationEnvironment, as the guide passes them
CONVERSATION_CONFIGS: dict[str, dict[str, Any]] = {
    "customer_service": {"task": "customer_service"},
    "technical_support": {"task": "technical_support"},
    "sales": {"task": "sales"},
    "tutoring": {"task": "tutoring"},
}
HELD_SHARE = 5  # one of this many scenarios is held out


class ConversationEnvironment:
    """The environment an agent is trained in: the task named `task` (an option of conf/task), with the given
    settings overridden, e.g. `ConversationEnvironment(task="customer_service", difficulty=3)`; or custom
    `scenarios`, as `gspo_cli.tasks.scenarios.scenario` describes them, of which one in five is held out.

    It provides training problems, held-out problems, and a new conversation for each answer."""

    def __init__(
        self,
        task: str = "scenarios",
        scenarios: Sequence[Mapping[str, Any]] | None = None,
        **settings: Any,
    ) -> None:
        own = scenarios is None or task == "scenarios"
        require(own, f"scenarios: only apply to task=scenarios, not {task}; leave one of them out")
        self.name, self.scenarios = task, scenarios
        self.settings: Mapping[str, Any] = settings
        if scenarios is not None:
            self.settings = {"heldout": max(1, len(scenarios) // HELD_SHARE), **settings}

    def apply(self, node: DictConfig, folder: Path) -> None:
        """Write the settings into a configuration composed with `task=<name>`; scenarios are read from
        `folder`, see `write`. Raises UserError on a value that a configuration cannot hold."""
        for name, value in self.settings.items():
            write_setting(node, f"task.{name}", value)
        if self.scenarios is not None:
            write_setting(node, "task.path", self._path(folder))

    def write(self, folder: Path) -> None:
        """Write the scenarios to `folder`. Raises UserError if they are not plain data."""
        if self.scenarios is None:
            return
        try:
            text = json.dumps(list(self.scenarios), ensure_ascii=False, indent=1)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"scenarios: cannot be written as JSON ({error}); use plain JSON values"
            ) from error
        write_atomically(self._path(folder), text)

    def task(self) -> Task:
        """The task itself, with `train_problems`, `heldout_problems` and `reward`. Raises UserError."""
        node = composed([f"task={self.name}"])
        with TemporaryDirectory() as folder:
            self.write(Path(folder))
            self.apply(node, Path(folder))
            task: Task = build_task(node.task)
            if self.scenarios is not None:
                task.train_problems()  # read now: the temporary folder is deleted afterwards
        return task

    def conversation(self) -> Environment:
        """A new conversation: reset it with a problem, then step it with the agent's turns."""
        return self.task().environment()

    def _path(self, folder: Path) -> Path:
        return folder.resolve() / "scenarios.json"
