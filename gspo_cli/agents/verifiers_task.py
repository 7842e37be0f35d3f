"""The task of environments of the package verifiers (MIT, extra `verifiers`), which run and score their
conversations themselves.

Source: github.com/PrimeIntellect-ai/verifiers, by its interface `verifiers.v1` of 0.4."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, ClassVar

from gspo_cli.agents.base import AgentBase
from gspo_cli.agents.running import Agent, Endpoint, FunctionAgent
from gspo_cli.config.checks import require, require_positive
from gspo_cli.config.extras import install
from gspo_cli.config.marks import MODULE, SETTINGS, Marks
from gspo_cli.errors import UserError
from gspo_cli.tasks.splits import Split, split
from gspo_cli.types import Problem, RewardResult

if TYPE_CHECKING:
    from types import ModuleType

    from gspo_cli.agents.verifiers_environment import Episodes, Source


@dataclass
class VerifiersTask(AgentBase):
    """Tasks of an environment as problems. A conversation is one episode of the environment, whose reward is
    the reward, and whose scores by name are its components."""

    TRUST: ClassVar[Marks] = {
        "environment_id": MODULE,
        "arguments": SETTINGS,
        "heldout_arguments": SETTINGS,
    }

    environment_id: str = ""
    """Installed package, or module of this folder, with a taskset, such as my_env, or a function that
    returns a verifiers.v1.Env, such as my_module:load."""
    arguments: Any = None
    """Settings of the environment as a mapping, as in the [env] block of its TOML files, such as
    {taskset: {split: train}, agent: {max_turns: 4}}; of a function its arguments."""
    heldout_arguments: Any = None
    """What differs in the environment whose tasks are all held out, such as {taskset: {split: test}}; null
    takes them from the same tasks."""
    problems: int | None = None
    """How many tasks are read, the first ones; above 0. null means all."""
    heldout: int = 200
    """Number of held-out problems, or with heldout_arguments the most that are read; above 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("task", self, "heldout")
        require(
            self.problems is None or self.problems > 0,
            f"task.problems={self.problems}: must be above 0; give how many tasks to read, or null for all",
        )
        for name in ("arguments", "heldout_arguments"):
            value = getattr(self, name)
            require(
                value is None or isinstance(value, Mapping),
                f"task.{name}={value}: must be a mapping; write {{taskset: {{name: value}}}}",
            )
        require(
            self.system_prompt == "",
            f"task.system_prompt={self.system_prompt}: the environment writes its own prompts; leave it out",
        )

    def train_problems(self) -> Sequence[Problem]:
        """The tasks that are not held out. Raises UserError where the environment cannot be loaded."""
        return self._split.train

    def heldout_problems(self) -> Sequence[Problem]:
        """The tasks of the environment with `heldout_arguments`, else `heldout` of the others by a hash of
        their content. Raises as `train_problems` does."""
        return self._split.heldout

    def notes(self) -> Sequence[str]:
        """How many tasks are left out."""
        dropped = self._split.dropped
        return [f"{dropped} training problems are left out: they are also held out"] if dropped else []

    def data_stamp(self) -> str:
        """Changes with the content of any task, and with their order."""
        everything = [self.content(problem) for problem in (*self._split.train, *self._split.heldout)]
        return blake2b(repr(everything).encode(), digest_size=16).hexdigest()

    def content(self, problem: Problem) -> str:
        """What makes a problem another one: all data of its task but where it stands."""
        return repr(sorted((name, value) for name, value in problem.metadata.items() if name != "idx"))

    def make_agent(self) -> Agent:
        """Runs episodes. Raises UserError where the package or the environment is absent."""
        _ = self._split
        return FunctionAgent(self._run)

    async def _run(self, problem: Problem, endpoint: Endpoint) -> RewardResult:
        episodes, task = self._episodes[problem.id]
        return await episodes.run(task, endpoint)

    @cached_property
    def _library(self) -> ModuleType:
        try:
            import gspo_cli.agents.verifiers_environment as library
        except ImportError as error:
            needed = f"needs verifiers 0.4 or later ({error}); {install('verifiers')}"
            raise UserError(f"task={self.name}: {needed}") from error
        return library

    @cached_property
    def _sources(self) -> tuple[Source, Source]:
        """The environments of training and of held-out problems: the same, unless arguments differ."""
        require(
            self.environment_id != "",
            "task.environment_id: say which environment, such as task.environment_id=my_env for an installed "
            "package, or my_module:load for a function",
        )
        given = dict(self.arguments or {})
        train = self._library.source_of(self.environment_id, given, "task.arguments")
        if not self.heldout_arguments:
            return train, train
        changed = merged(given, self.heldout_arguments)
        return train, self._library.source_of(self.environment_id, changed, "task.heldout_arguments")

    @cached_property
    def _tasks(self) -> dict[str, tuple[Source, Any, Problem]]:
        """Source, task and problem by the problem's name."""
        train, heldout = self._sources
        sides = [("", train, self.problems)]
        if heldout is not train:
            sides.append(("heldout-", heldout, self.heldout))
        found = {}
        for prefix, source, most in sides:
            for task in source.tasks(most):
                name = f"{prefix}{task.data.idx}"
                data = task.data.model_dump(mode="json", exclude_defaults=True)
                found[name] = source, task, Problem(name, self._library.opening_of(task), metadata=data)
        return found

    @cached_property
    def _split(self) -> Split:
        train, heldout = self._sources
        known = list(self._tasks.values())
        if heldout is train:
            return split([problem for *_, problem in known], self.heldout, self.content)
        sides = [[problem for source, _, problem in known if source is side] for side in (train, heldout)]
        return split(sides[0], sides[1], self.content)

    @cached_property
    def _episodes(self) -> dict[str, tuple[Episodes, Any]]:
        runners = {id(source): self._library.Episodes(source) for source in self._sources}
        return {name: (runners[id(source)], task) for name, (source, task, _) in self._tasks.items()}

    def __getstate__(self) -> dict[str, Any]:
        """The settings alone: another process loads the environment itself."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def merged(given: Any, changes: Mapping[str, Any]) -> dict[str, Any]:
    """`given` with `changes`, mapping by mapping."""
    found = dict(given)
    for name, value in changes.items():
        inner = found.get(name)
        both = isinstance(inner, Mapping) and isinstance(value, Mapping)
        found[name] = merged(inner, value) if both else value
    return found
