"""tau-bench's retail shop (Yao et al. 2024, arXiv 2406.12045) from its published files: tools, policy, and a
user who follows a script, is a ticket, or is played by a language model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from gspo_cli.chat_endpoint import ChatEndpoint
from gspo_cli.config.checks import require, require_positive
from gspo_cli.config.choices import ToolForm
from gspo_cli.config.marks import ADDRESS, PATH, PLAIN, Marks
from gspo_cli.rewards.base import RewardFunction
from gspo_cli.rewards.conversation import conversation_reward
from gspo_cli.tasks.base import SystemPrompt, Task
from gspo_cli.tasks.llm_user import LlmUser
from gspo_cli.tasks.scripted import converse, fixed_agent
from gspo_cli.tasks.splits import Split, split
from gspo_cli.tasks.tau.database import RetailData
from gspo_cli.tasks.tau.environment import RetailEnvironment
from gspo_cli.tasks.tau.files import (
    Case,
    checked_data,
    dropped_note,
    fault,
    read_cases,
    read_json,
    read_text,
    retail_problem,
    sifted,
    split_note,
    stamp_of_folder,
)
from gspo_cli.tasks.tau.oracle import service, ticket_work
from gspo_cli.tasks.tau.tools import TAU_TOOLS
from gspo_cli.tasks.tau.users import TICKET_NOTE, TicketUser, User
from gspo_cli.tasks.tau_retail.instructions import read_script
from gspo_cli.tasks.tau_retail.scripted_user import GREETINGS, USER_NOTE, ScriptedUser
from gspo_cli.types import Demonstration, Message, Problem

BENCHMARKS = ("dev", "test")  # the published splits that are not for training


class RetailUser(Enum):
    """Who talks to the agent."""

    scripted = "scripted"
    """a user who follows a script; synthetic tasks only"""
    ticket = "ticket"
    """no user; the task is a ticket and the agent has tools"""
    llm = "llm"
    """a language model behind a URL"""


# what a user expects beyond the published policy; a language model as the user needs no more than that
NOTES = {RetailUser.scripted: USER_NOTE, RetailUser.ticket: TICKET_NOTE}


@dataclass
class TauRetail(Task):
    """Tasks of tasks_<tasks>.jsonl or .py in `path`, which also has the data and the policy, wiki.md.

    Left out and counted: tasks where doing nothing wins, whose gold actions fail, and, with a scripted user,
    in free text. Without `heldout_tasks`, the tasks of some users, about `heldout`, are held out."""

    TRUST: ClassVar[Marks] = {
        **{"path": PATH, "tasks": PLAIN, "heldout_tasks": PLAIN, "user_url": ADDRESS, "user_model": PLAIN}
    }

    path: str | None = None
    """Folder with orders.json, users.json, products.json, wiki.md and the task files; required."""
    tasks: str = "train"
    """Which published tasks are trained on, of tasks_<tasks>.jsonl or .py; dev and test count as
    benchmarks."""
    heldout_tasks: str | None = None
    """Which published tasks are held out; null splits the tasks of some users off `tasks`."""
    heldout: int = 50
    """Approximate number of held-out tasks, unused where heldout_tasks is given; above 0."""
    user: RetailUser = RetailUser.scripted
    """Who talks to the agent."""
    user_url: str | None = None
    """OpenAI-compatible URL of the user's language model; required with user=llm."""
    user_model: str | None = None
    """Name of that model at the URL; required with user=llm."""
    max_turns: int = 40
    """Default of `rollout.max_turns`; above 0."""
    tool_format: ToolForm = ToolForm.auto
    """How tool calls are written."""
    instructions: bool = True
    """Puts policy and tools in the system prompt of each conversation."""

    def __post_init__(self) -> None:
        require(
            self.path is not None,
            "task.path: is needed; give the folder with orders.json, users.json, products.json and wiki.md",
        )
        require_positive("task", self, "heldout", "max_turns", "answer_length")
        if self.user is RetailUser.llm:
            for name, value in (("user_url", self.user_url), ("user_model", self.user_model)):
                require(bool(value), f"task.{name}: is needed with task.user=llm; give the user's {name[5:]}")
            require(
                str(self.user_url).startswith(("http://", "https://")),
                f"task.user_url={self.user_url}: is not a valid address; give one like "
                "http://localhost:8000/v1",
            )
        self.is_benchmark = self.is_benchmark or self.tasks in BENCHMARKS

    def train_problems(self) -> Sequence[Problem]:
        """The tasks to train on. Raises UserError, naming file and key, on unusable files."""
        return self._split.train

    def heldout_problems(self) -> Sequence[Problem]:
        """Those of `heldout_tasks`, or those taken out of `tasks`."""
        return self._split.heldout

    def demonstrations(self) -> Sequence[Demonstration]:
        """An oracle's conversations on the training problems; none if the user is a language model."""
        if self.user is RetailUser.llm:
            return []
        return [
            Demonstration(self.solved(problem, seed)) for seed, problem in enumerate(self.train_problems())
        ]

    def solved(self, problem: Problem, seed: int = 0) -> tuple[Message, ...]:
        """The conversation of an agent that knows the gold actions."""
        environment = self.environment()
        turns = (
            ticket_work(self.shop, problem)
            if self.user is RetailUser.ticket
            else service(self.shop, environment, problem)
        )
        return converse(environment, problem, fixed_agent(turns), seed).messages

    def notes(self) -> Sequence[str]:
        """How many tasks are left out, and why."""
        found = [
            f"task.{key}={name}: {note}"
            for key, name in self._sides
            for note in dropped_note(self.dropped[key], len(self._cases[key]))
        ]
        return [*found, *split_note(self._split)]

    @property
    def dropped(self) -> Mapping[str, Mapping[str, int]]:
        """Number of tasks left out, by setting (tasks, heldout_tasks) and reason."""
        return {key: dropped for key, (_, dropped) in self._sifted.items()}

    def system_prompt_and_tools(self) -> SystemPrompt:
        """The policy, unless `system_prompt` replaces it, and the tools."""
        text = self.system_prompt
        if self.instructions and not text:
            policy = read_text(self._folder / "wiki.md", "task.path").strip()
            note = NOTES.get(self.user)
            text = f"{policy}\n\n{note}" if note else policy
        return SystemPrompt(text, TAU_TOOLS, self.instructions, self.tool_format)

    def environment(self) -> RetailEnvironment:
        """A conversation; all of them share the data."""
        return RetailEnvironment(self.shop, self._user, TAU_TOOLS)

    def reward(self) -> RewardFunction:
        """The records changed, the facts told, the policy and the manner."""
        return conversation_reward()

    def data_stamp(self) -> str:
        """Changes with the files of the folder."""
        return stamp_of_folder(self._folder)

    @property
    def _folder(self) -> Path:
        assert self.path is not None  # see __post_init__
        return Path(self.path)

    @cached_property
    def shop(self) -> RetailData:
        """The data, read once. Raises UserError naming the file."""
        orders, users, products = (
            read_json(self._folder / f"{table}.json", "task.path", dict)
            for table in ("orders", "users", "products")
        )
        return checked_data(orders, users, products, f"task.path={self.path}")

    @cached_property
    def _split(self) -> Split:
        sides = {key: [self._problem(case) for case in kept] for key, (kept, _) in self._sifted.items()}
        for key, name in self._sides:
            free_text = self.dropped[key].get("free_text", 0)
            require(
                sides[key] != [],
                f"task.user={self.user.value}: none of the tasks of task.{key}={name} can be used; "
                f"{free_text} are in free text, which needs task.user=ticket or llm",
            )
        if self.heldout_tasks is not None:
            return split(sides["tasks"], sides["heldout_tasks"], lambda p: p.metadata["instruction"])
        return split(sides["tasks"], self.heldout, lambda p: p.metadata["user_id"])

    @property
    def _sides(self) -> list[tuple[str, str]]:
        sides = [("tasks", self.tasks), ("heldout_tasks", self.heldout_tasks)]
        return [(key, name) for key, name in sides if name is not None]

    @cached_property
    def _cases(self) -> Mapping[str, Sequence[Case]]:
        return {key: read_cases(self._folder, name, f"task.{key}") for key, name in self._sides}

    @cached_property
    def _sifted(self) -> Mapping[str, tuple[list[Case], Mapping[str, int]]]:
        return {key: sifted(cases, self._fault) for key, cases in self._cases.items()}

    def _fault(self, case: Case) -> str | None:
        """Why a task cannot be trained on, as a key of REASONS."""
        found = fault(self.shop, case)
        if found is None and self.user is RetailUser.scripted and read_script(case.instruction) is None:
            return "free_text"
        return found

    def _problem(self, case: Case) -> Problem:
        opening = TicketUser(case.instruction).opening() if self.user is RetailUser.ticket else GREETINGS[0]
        return retail_problem(case, opening)

    def _user(self, problem: Problem, seed: int) -> User:
        instruction = problem.metadata["instruction"]
        if self.user is RetailUser.ticket:
            return TicketUser(instruction)
        if self.user is RetailUser.llm:
            return LlmUser(self._endpoint, instruction, GREETINGS[0])
        script = read_script(instruction)
        assert script is not None  # see _fault
        return ScriptedUser(script, seed)

    @cached_property
    def _endpoint(self) -> ChatEndpoint:
        return ChatEndpoint(str(self.user_url), str(self.user_model))
