"""Environments under the names of the GSPO guide: a task of conf/task with its settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from gspo_cli.api.config import composed
from gspo_cli.config.compose import build_task
from gspo_cli.environments.base import Environment
from gspo_cli.tasks.base import Task

# keyword arguments of ConversationEnvironment, as the guide passes them
CONVERSATION_CONFIGS: dict[str, dict[str, Any]] = {
    "customer_service": {"task": "customer_service"},
    "technical_support": {"task": "technical_support"},
    "sales": {"task": "sales"},
    "tutoring": {"task": "tutoring"},
}


class ConversationEnvironment:
    """What an agent is trained in: the task named `task` (an option of conf/task), with other settings than
    the option's where given, e.g. `ConversationEnvironment(task="customer_service", difficulty=3)`.

    It gives problems to train on, problems held out, and a fresh conversation for each answer."""

    def __init__(self, task: str, **settings: Any) -> None:
        self.name = task
        self.settings: Mapping[str, Any] = settings

    def apply(self, node: DictConfig) -> None:
        """Write the settings into a configuration composed with `task=<name>`."""
        for name, value in self.settings.items():
            OmegaConf.update(node, f"task.{name}", value, force_add=True)

    def task(self) -> Task:
        """The task itself, with `train_problems`, `heldout_problems` and `reward`. Raises UserError."""
        node = composed([f"task={self.name}"])
        self.apply(node)
        return build_task(node.task)

    def conversation(self) -> Environment:
        """A fresh conversation, to be reset with a problem and stepped with an agent's words."""
        return self.task().environment()
