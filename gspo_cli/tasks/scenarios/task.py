"""Custom scenarios, from a JSON file with a list of objects, and a base of tasks that generate scenarios.
Their format is described in `gspo_cli.tasks.scenarios.scenario`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from gspo_cli.config.checks import require
from gspo_cli.config.marks import PATH, Marks
from gspo_cli.errors import UserError
from gspo_cli.tasks.base import stamp_of_files
from gspo_cli.tasks.scenarios.environment import ScenarioEnvironment
from gspo_cli.tasks.scenarios.reading import read_scenario
from gspo_cli.tasks.scenarios.scenario import Scenario
from gspo_cli.tasks.scripted import ScriptedTask, Transcript, converse, fixed_agent
from gspo_cli.tasks.splits import Split, split
from gspo_cli.tasks.tools import Tool
from gspo_cli.types import Demonstration, Message, Problem

POLICY = (
    "You talk to a user. Find out what they want and help them, one step a turn, in one short sentence. Say "
    "only what you have been told; look up the rest, if you have tools."
)


def read_rows(path: str, key: str) -> list[Any]:
    """The entries of a file with a JSON list. Raises UserError naming `key` where it has none."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            rows = json.load(file)
    except OSError as error:
        raise UserError(f"{key}={path}: cannot be read ({error.strerror}); give an existing file") from error
    except (ValueError, RecursionError) as error:  # also text that is not UTF-8
        raise UserError(f"{key}={path}: is not JSON ({error}); correct the file") from error
    require(isinstance(rows, list) and rows != [], f"{key}={path}: must be a list of scenarios, [{{...}}]")
    return rows


def replay(problem: Problem, scenario: Scenario) -> Transcript:
    """The conversation in which the agent says the scenario's example, line by line."""
    return converse(ScenarioEnvironment(), problem, fixed_agent(scenario.example), seed=0)


@dataclass
class Scenarios(ScriptedTask):
    """Scenarios of `path`; `heldout` of them, or those of `heldout_path`, are held out. Demonstrations are
    the examples that scenarios carry."""

    TRUST: ClassVar[Marks] = {"path": PATH, "heldout_path": PATH}

    path: str | None = None
    """JSON file with a list of scenarios; required."""
    heldout_path: str | None = None
    """File of held-out scenarios; null splits `heldout` scenarios off `path`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.path is not None, "task.path: is needed; give a JSON file with task.path=<file>")

    def policy(self) -> str:
        """General instructions; `system_prompt` replaces them."""
        return POLICY

    def tools(self) -> tuple[Tool, ...]:
        """The tools of all scenarios."""
        return tuple(self._tools.values())

    def environment(self) -> ScenarioEnvironment:
        """The user of a scenario."""
        return ScenarioEnvironment()

    def train_problems(self) -> Sequence[Problem]:
        """Scenarios of `path` that are not held out. Raises UserError, with file and place, on a bad one."""
        return self._split.train

    def heldout_problems(self) -> Sequence[Problem]:
        """Scenarios of `heldout_path`, or those taken out of `path`."""
        return self._split.heldout

    def notes(self) -> Sequence[str]:
        """How many training scenarios are left out."""
        dropped = self._split.dropped
        return [f"{dropped} training scenarios are left out: their ids are also held out"] if dropped else []

    def demonstrations(self) -> Sequence[Demonstration]:
        """The examples of training scenarios, as conversations."""
        pairs = [(p, read_scenario(p.metadata["scenario"], p.id)) for p in self.train_problems()]
        shown = [(problem, scenario) for problem, scenario in pairs if scenario.example]
        return [replay(*pair).demonstration() for pair in shown[: self.demonstrations_count]]

    def data_stamp(self) -> str:
        """Changes with the files."""
        return stamp_of_files(Path(each) for each in (self.path, self.heldout_path) if each is not None)

    @cached_property
    def _split(self) -> Split:
        held: int | list[Problem] = self.heldout
        if self.heldout_path is not None:
            held = self._read(self.heldout_path, "task.heldout_path")
        return split(self._read(str(self.path), "task.path"), held, lambda problem: problem.id)

    @cached_property
    def _tools(self) -> dict[str, Tool]:
        tools: dict[str, Tool] = {}
        for problem in (*self.train_problems(), *self.heldout_problems()):
            for lookup in read_scenario(problem.metadata["scenario"], problem.id).lookups:
                tool = tools.setdefault(lookup.tool.name, lookup.tool)
                require(
                    tool == lookup.tool,
                    f'{problem.id}: describes the tool "{tool.name}" differently from another '
                    "scenario; rename it",
                )
        return tools

    def _read(self, path: str, key: str) -> list[Problem]:
        problems: dict[str, Problem] = {}
        for number, row in enumerate(read_rows(path, key), 1):
            where = f"{path}: scenario {number}"
            problem = self._problem(row, where)
            require(problem.id not in problems, f'{where}: the id "{problem.id}" is used twice; change one')
            problems[problem.id] = problem
        return list(problems.values())

    def _problem(self, row: Any, where: str) -> Problem:
        scenario = read_scenario(row, where)
        opening = (Message("user", scenario.openings[0]),)
        problem = Problem(scenario.id, opening, metadata={"scenario": row, **scenario.about})
        if scenario.example and scenario.goals:
            outcome = replay(problem, scenario).outcome
            details = {key: outcome.details[key] for key in ("goals missed", "facts missed", "violations")}
            found = "; ".join(f"{key}: {', '.join(names)}" for key, names in details.items() if names)
            require(bool(outcome.solved), f'{where}: its "example" does not solve it ({found}); correct one')
        return problem


@dataclass
class GeneratedScenarios(ScriptedTask):
    """Base of tasks that generate their scenarios: `problems` to train on, and `heldout` others."""

    problems: int = 1500
    """Number of training problems."""

    def scenario(self, trained: bool, number: int) -> dict[str, Any]:
        """One scenario of a side, as plain data."""
        raise NotImplementedError

    def environment(self) -> ScenarioEnvironment:
        """The user of a scenario."""
        return ScenarioEnvironment()

    def train_problems(self) -> Sequence[Problem]:
        """`problems` scenarios."""
        return self._sides[0]

    def heldout_problems(self) -> Sequence[Problem]:
        """`heldout` scenarios, with content and words that are never trained on."""
        return self._sides[1]

    @cached_property
    def _sides(self) -> tuple[list[Problem], list[Problem]]:
        train = [self._problem(True, number) for number in range(self.problems)]
        return train, [self._problem(False, number) for number in range(self.heldout)]

    def _problem(self, trained: bool, number: int) -> Problem:
        row = self.scenario(trained, number)
        name = f"{'train' if trained else 'heldout'}-{number}"
        return Problem(name, (Message("user", row["opening"]),), metadata={"scenario": row})
