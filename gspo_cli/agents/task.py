"""The task of an agent that exists already: problems of the user's, solved by the user's program."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from gspo_cli.agents.base import AgentBase
from gspo_cli.agents.running import Agent, CommandAgent, FunctionAgent
from gspo_cli.config.checks import require
from gspo_cli.config.compose import OBJECT, locate
from gspo_cli.config.marks import CODE, COMMAND, Marks
from gspo_cli.errors import UserError
from gspo_cli.rewards.base import RewardFunction
from gspo_cli.rewards.verifiers import VerifierReward
from gspo_cli.tasks.base import Task
from gspo_cli.tasks.dataset import DatasetTask, row_name
from gspo_cli.types import Message, Problem

if TYPE_CHECKING:
    from gspo_cli.agents.host import AgentHost
    from gspo_cli.policy.chat import ChatFormat
    from gspo_cli.rollout.engine import RolloutEngine

UNSCORED = "none"


@dataclass
class AgentTask(DatasetTask, AgentBase):
    """An agent as it is, which talks to the policy behind an OpenAI-compatible endpoint.

    Its problems are rows, as in `DatasetTask`; a row need not have a prompt or an answer. Subclasses may
    write `make_agent`."""

    TRUST: ClassVar[Marks] = {"agent": CODE, "command": COMMAND}

    verifier: str = UNSCORED
    """How the agent's last answer is scored: `none`, or as in task=dataset, which needs answers in the rows.
    """
    agent: str | None = None
    """Function `run(problem, endpoint)`, plain or async, such as my_module:run, which returns the reward: a
    number, a RewardResult, or nothing where something else scores. Either this or `command`."""
    command: str | None = None
    """Program in place of a function, such as "node agent.js": the problem on its standard input, the
    endpoint in OPENAI_BASE_URL and OPENAI_API_KEY, and the reward as the last line of its output, as JSON."""

    def __post_init__(self) -> None:
        given = [name for name in ("agent", "command") if getattr(self, name) is not None]
        self.check_program(given)
        super().__post_init__()
        AgentBase.__post_init__(self)  # the bases of data end the chain of super()
        for name, value in (("instructions", False), ("examples", 0), ("system_prompt", "")):
            require(
                getattr(self, name) == value,
                f"task.{name}={getattr(self, name)}: the agent writes its own prompts; leave it out",
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

    def problem(self, row: dict[str, Any], where: str) -> Problem:
        """A row as a problem: its question, or the row itself as JSON, its answer if it has one, and all its
        columns as metadata. Raises as `DatasetTask.problem` does."""
        asked = any(getattr(self, name) is not None for name in ("prompt", "messages", "template"))
        scored = self.verifier != UNSCORED
        messages: tuple[Message, ...] = (Message("user", _as_json(row)),)
        answer: str | None = None
        with (
            nullcontext() if asked else suppress(UserError)
        ):  # what nobody has asked for may look as it likes
            messages, answer = self.opening(row, where)
        with nullcontext() if scored or self.answer else suppress(UserError):
            answer = answer if answer and not self.answer else self.reference(row, where)
        if scored:
            self.check_reference(answer or "", where)
        return Problem(row_name(row, where), messages, answer or "", row)

    def content(self, problem: Problem) -> str:
        """The whole row."""
        return repr(problem.messages) + _as_json(problem.metadata)

    def reward(self) -> RewardFunction:
        """What `verifier` says, or the agent itself."""
        return self.scored_by(None)

    def scored_by(self, given: RewardFunction | None) -> RewardFunction:
        """See `AgentBase`; without `given`, the verifier scores if there is one."""
        if given is None and self.verifier != UNSCORED:
            given = VerifierReward(self.verifier)
        return AgentBase.scored_by(self, given)

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


def check_agent(task: Task) -> None:
    """`AgentBase.check_agent` where the task has an agent."""
    if isinstance(task, AgentBase):
        task.check_agent()


def host_of(
    task: Task,
    engine: RolloutEngine,
    chat: ChatFormat,
    warn: Callable[[str], None] = lambda text: None,
) -> AgentHost | None:
    """What runs the task's agent; None for a task with environments."""
    return task.host(engine, chat, warn) if isinstance(task, AgentBase) else None


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
