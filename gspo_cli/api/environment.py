"""Environments under the names of the GSPO guide: a task of conf/task with its settings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from omegaconf import DictConfig

from gspo_cli.api.config import write_setting
from gspo_cli.api.scenarios import as_scenarios
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
    `scenarios`, of which one in five is held out: dicts as `gspo_cli.tasks.scenarios.scenario` describes
    them or as the guide writes them (topic, user_goal, context), or texts, each of which a user says.
    `heldout_scenarios` are held out in place of a share. `persona` is the guide's name of `system_prompt`.

    It provides training problems, held-out problems, and a new conversation for each answer."""

    def __init__(
        self,
        task: str = "scenarios",
        scenarios: Sequence[Mapping[str, Any] | str] | None = None,
        heldout_scenarios: Sequence[Mapping[str, Any] | str] | None = None,
        persona: str | None = None,
        **settings: Any,
    ) -> None:
        own = scenarios is None or task == "scenarios"
        require(own, f"scenarios: only apply to task=scenarios, not {task}; leave one of them out")
        self.name = task
        self.settings: Mapping[str, Any] = settings | ({} if persona is None else {"system_prompt": persona})
        self._rows: dict[str, list[Any]] = {}  # by the setting that names their file
        if scenarios is not None:
            self._rows["path"] = as_scenarios(scenarios, "scenarios")
            self.settings = {"heldout": max(1, len(scenarios) // HELD_SHARE), **self.settings}
        if heldout_scenarios is not None:
            require(scenarios is not None, "heldout_scenarios: only apply with scenarios; give both")
            self._rows["heldout_path"] = as_scenarios(heldout_scenarios, "heldout_scenarios")

    @cached_property
    def scenarios(self) -> list[Any]:
        """The given scenarios; of another task one dict for each training problem: the `task`, its `id`, and
        as `context` what the user says first. Raises UserError."""
        if "path" in self._rows:
            return self._rows["path"]
        return [
            {"task": self.name, "id": problem.id, "context": problem.messages[-1].content}
            for problem in self.task().train_problems()
        ]

    def asking(self, queries: Sequence[Mapping[str, Any] | str]) -> ConversationEnvironment:
        """An environment with these queries in place of the training problems. Held out is what this one
        holds out where it has scenarios, else one query in five. Raises UserError."""
        rows = as_scenarios(queries, "train_queries")
        taken = next((row for row in rows if isinstance(row, Mapping) and "task" in row), None)
        if taken is not None:
            raise UserError(
                f"train_queries: {taken.get('id')} is a problem of {taken['task']}, whose user and tools no "
                "query brings along; leave train_queries out to train on its problems"
            )
        if "path" in self._rows:
            held = [problem.metadata["scenario"] for problem in self.task().heldout_problems()]
            return ConversationEnvironment(scenarios=rows, heldout_scenarios=held, **self.settings)
        require(len(rows) > 1, "train_queries: has 1; give at least two, one of which is held out")
        prompt = {key: text for key, text in self.settings.items() if key == "system_prompt"}
        return ConversationEnvironment(scenarios=rows, **prompt)

    def apply(self, node: DictConfig, folder: Path) -> None:
        """Write the settings into a configuration composed with `task=<name>`; scenarios are read from
        `folder`, see `write`. Raises UserError on a value that a configuration cannot hold."""
        for name, value in self.settings.items():
            write_setting(node, f"task.{name}", value)
        for name in self._rows:
            write_setting(node, f"task.{name}", self._path(folder, name))

    def write(self, folder: Path) -> None:
        """Write the scenarios to `folder`. Raises UserError if they are not plain data."""
        for name, rows in self._rows.items():
            try:
                text = json.dumps(rows, ensure_ascii=False, indent=1)
            except (TypeError, ValueError) as error:
                raise UserError(
                    f"scenarios: cannot be written as JSON ({error}); use plain JSON values"
                ) from error
            write_atomically(self._path(folder, name), text)

    def task(self) -> Task:
        """The task itself, with `train_problems`, `heldout_problems` and `reward`. Raises UserError."""
        node = composed([f"task={self.name}"])
        with TemporaryDirectory() as folder:
            self.write(Path(folder))
            self.apply(node, Path(folder))
            task: Task = build_task(node.task)
            if self._rows:
                task.train_problems()  # read now: the temporary folder is deleted afterwards
        return task

    def conversation(self) -> Environment:
        """A new conversation: reset it with a problem, then step it with the agent's turns."""
        return self.task().environment()

    def _path(self, folder: Path, name: str) -> Path:
        return folder.resolve() / {"path": "scenarios.json", "heldout_path": "heldout_scenarios.json"}[name]
