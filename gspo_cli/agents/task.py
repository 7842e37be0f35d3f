"""The task of an agent that exists already: problems of the user's, solved by the user's program."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from gspo_cli.agents.running import Agent, CommandAgent, FunctionAgent
from gspo_cli.config.checks import require, require_positive
from gspo_cli.config.choices import AgentSchedule
from gspo_cli.config.compose import OBJECT, locate
from gspo_cli.config.extras import install
from gspo_cli.config.marks import CODE, COMMAND, Marks
from gspo_cli.errors import UserError
from gspo_cli.rewards.base import RewardFunction
from gspo_cli.rewards.composition import WeightedReward
from gspo_cli.rewards.returned import ReturnedReward
from gspo_cli.rewards.verifiers import VerifierReward
from gspo_cli.tasks.base import Environment, Task
from gspo_cli.tasks.dataset import DatasetTask, row_name
from gspo_cli.types import Message, Problem

if TYPE_CHECKING:
    from gspo_cli.agents.host import AgentHost
    from gspo_cli.policy.chat import ChatFormat
    from gspo_cli.rollout.engine import RolloutEngine

UNSCORED = "none"


@dataclass
class AgentTask(DatasetTask):
    """An agent as it is, which talks to the policy behind an OpenAI-compatible endpoint.

    Its problems are rows, as in `DatasetTask`; a row need not have a prompt or an answer. Subclasses may
    write `make_agent`."""

    TRUST: ClassVar[Marks] = {"agent": CODE, "command": COMMAND}
    runs_agent: ClassVar[bool] = True

    verifier: str = UNSCORED
    """How the agent's last answer is scored: `none`, or as in task=dataset, which needs answers in the rows.
    """
    agent: str | None = None
    """Function `run(problem, endpoint)`, plain or async, such as my_module:run, which returns the reward: a
    number, a RewardResult, or nothing where something else scores. Either this or `command`."""
    command: str | None = None
    """Program in place of a function, such as "node agent.js": the problem on its standard input, the
    endpoint in OPENAI_BASE_URL and OPENAI_API_KEY, and the reward as the last line of its output, as JSON."""
    return_share: float | None = None
    """Weight of what the agent returns, where `reward` or `verifier` scores too; the rest is theirs. null is
    0 with them and 1 without; 0 to 1."""
    schedule: AgentSchedule = AgentSchedule.lockstep
    """When the policy generates."""
    concurrency: int = 256
    """Conversations that run at once, each with a thread or a process of its own, unless the function is
    async; above 0."""

    def __post_init__(self) -> None:
        given = [name for name in ("agent", "command") if getattr(self, name) is not None]
        self.check_program(given)
        super().__post_init__()
        require_positive("task", self, "concurrency")
        for name, value in (("instructions", False), ("examples", 0), ("system_prompt", "")):
            require(
                getattr(self, name) == value,
                f"task.{name}={getattr(self, name)}: the agent writes its own prompts; leave it out",
            )
        share = self.return_share
        require(
            share is None or 0 <= share <= 1,
            f"task.return_share={share}: must be from 0 to 1; give such as 0.5",
        )

    def check_program(self, given: list[str]) -> None:
        """Raise UserError unless one of `agent` and `command` is `given`."""
        require(
            len(given) == 1,
            "task.agent: say what to train, either a function with task.agent=my_module:run, or a program "
            'with task.command="node agent.js"',
        )

    def check_verifier(self) -> None:
        """See `JsonlTask`."""
        if self.verifier != UNSCORED:
            super().check_verifier()

    @property
    def answer_form(self) -> str:
        """None: the agent says how to answer."""
        return ""

    @property
    def single_turn(self) -> bool:
        """False: how many answers an agent asks for is its own affair."""
        return False

    def problem(self, row: dict[str, Any], where: str) -> Problem:
        """A row as a problem: its question, or the row itself as JSON, its answer if it has one, and all its
        columns as metadata. Raises as `DatasetTask.problem` does."""
        said = any(getattr(self, name) is not None for name in ("prompt", "messages", "template"))
        answer: str | None = None
        if said or row.get("prompt") is not None:
            messages, answer = self.opening(row, where)
        else:
            messages = (Message("user", _as_json(row)),)
        if self.answer is not None or row.get("answer") is not None or self.verifier != UNSCORED:
            answer = answer if answer and not self.answer else self.reference(row, where)
        if self.verifier != UNSCORED:
            self.check_reference(answer or "", where)
        return Problem(row_name(row, where), messages, answer or "", row)

    def content(self, problem: Problem) -> str:
        """The whole row."""
        return repr(problem.messages) + _as_json(problem.metadata)

    def environment(self) -> Environment:
        """Raises UserError: there is none."""
        raise UserError("task=agent: has no environment of its own; the agent talks to the policy itself")

    def reward(self) -> RewardFunction:
        """What `verifier` says, or the agent itself."""
        return self.scored_by(None)

    def scored_by(self, given: RewardFunction | None) -> RewardFunction:
        """`given` or the verifier, what the agent returned, or both, weighted. Raises UserError where there
        is nothing to weigh."""
        other = given
        if other is None and self.verifier != UNSCORED:
            other = VerifierReward(self.verifier)
        if other is None:
            require(
                self.return_share is None,
                f"task.return_share={self.return_share}: there is nothing to weigh it against; give reward= "
                "or task.verifier=, or leave it out",
            )
            return ReturnedReward()
        share = self.return_share or 0.0
        parts = {"agent": (share, ReturnedReward()), "scored": (1 - share, other)}
        weighted = {name: part for name, part in parts.items() if part[0]}
        return other if share == 0 else WeightedReward(weighted, -inf, inf)

    def use(self, function: Callable[..., Any]) -> None:
        """Run `function`, whatever `agent` names."""
        self.__dict__["_agent"] = FunctionAgent(function)

    def make_agent(self) -> Agent:
        """What runs the agent. Raises UserError where there is no such function or program."""
        if str(self.agent).startswith(OBJECT):
            raise UserError(
                f"task.agent: was the {self.agent}, which a script gave, and no command can find; put it "
                "into a module, and give task.agent=module:function"
            )
        if self.command is not None:
            return CommandAgent(_runnable(self.command))
        function = locate(str(self.agent).replace(":", "."), "task.agent")
        require(callable(function), f"task.agent={self.agent}: is not a function; give my_module:run")
        return FunctionAgent(function)

    @cached_property
    def _agent(self) -> Agent:
        return self.make_agent()

    def check_agent(self) -> None:
        """Raise UserError where the agent cannot be run here: before a model is loaded."""
        try:
            import gspo_cli.agents.host  # noqa: F401
        except ImportError as error:
            raise UserError(f"task={self.name}: needs packages ({error}); {install('agents')}") from error
        _ = self._agent

    def host(
        self, engine: RolloutEngine, chat: ChatFormat, warn: Callable[[str], None] = lambda text: None
    ) -> AgentHost:
        """Runs the agent with the policy of `engine`; to be closed. Raises as `check_agent` does."""
        self.check_agent()
        from gspo_cli.agents.host import AgentHost
        from gspo_cli.agents.rollout import Waits

        return AgentHost(engine, chat, self._agent, Waits(self.schedule, self.concurrency), warn)


def check_agent(task: Task) -> None:
    """`AgentTask.check_agent` where the task has an agent."""
    if isinstance(task, AgentTask):
        task.check_agent()


def host_of(
    task: Task,
    engine: RolloutEngine,
    chat: ChatFormat,
    warn: Callable[[str], None] = lambda text: None,
) -> AgentHost | None:
    """What runs the task's agent; None for a task with environments."""
    return task.host(engine, chat, warn) if isinstance(task, AgentTask) else None


def _runnable(command: str) -> str:
    try:
        parts = shlex.split(command)
    except ValueError as error:
        raise UserError(f"task.command={command}: is no command ({error}); close its quotes") from error
    require(parts != [], "task.command: is empty; give a program, such as task.command='node agent.js'")
    found = shutil.which(parts[0]) or Path(parts[0]).is_file()
    require(bool(found), f"task.command={command}: {parts[0]} is not found; install it, or give its path")
    return command


def _as_json(row: Any) -> str:
    return json.dumps(row, ensure_ascii=False, default=str)
