"""tau2-bench (Barres et al. 2025, arXiv 2506.07982): its retail tasks as tickets, its telecom tasks in solo
style, as far as they can be scored without an LLM judge."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from gspo_cli.config.checks import require, require_positive
from gspo_cli.config.choices import ToolForm
from gspo_cli.config.marks import PATH, PLAIN, Marks
from gspo_cli.rewards.base import RewardFunction
from gspo_cli.rewards.conversation import conversation_reward
from gspo_cli.tasks.base import Environment, SystemPrompt, Task
from gspo_cli.tasks.scripted import converse, fixed_agent
from gspo_cli.tasks.splits import Split, split
from gspo_cli.tasks.tau.database import RetailData
from gspo_cli.tasks.tau.environment import RetailEnvironment
from gspo_cli.tasks.tau.files import (
    REASONS,
    Case,
    check_fields,
    checked_actions,
    checked_data,
    checked_texts,
    dropped_note,
    fault,
    read_json,
    read_text,
    retail_problem,
    split_note,
    stamp_of_folder,
    user_of,
)
from gspo_cli.tasks.tau.oracle import ticket_work
from gspo_cli.tasks.tau.tools import TAU2_TOOLS
from gspo_cli.tasks.tau.users import TICKET, TICKET_NOTE, TicketUser
from gspo_cli.tasks.tau.writes import WRITES
from gspo_cli.tasks.tau2 import telecom_files
from gspo_cli.tasks.tau2.environment import TelecomEnvironment
from gspo_cli.tasks.tau2.tools import TOOLS
from gspo_cli.tasks.tau2.world import TelecomData
from gspo_cli.types import Demonstration, Message, Problem

TRAINING_SPLITS = ("train", "small")  # the others contain test tasks
SCENARIO_PARTS = ("known_info", "reason_for_call", "task_instructions", "unknown_info")
POLICIES = {"retail": ("policy.md",), "telecom": ("main_policy_solo.md", "tech_support_workflow_solo.md")}


class Domain(Enum):
    """Which of the published domains."""

    retail = "retail"
    """a shop, its tasks as tickets"""
    telecom = "telecom"
    """carrier and phone, both operated by the agent"""


@dataclass
class Tau2(Task):
    """Tasks of `path`, the folder `domains`; `split` and `heldout_split` are keys of split_tasks.json.

    Left out and counted: tasks that need an LLM judge, where doing nothing wins, or whose gold actions
    fail."""

    TRUST: ClassVar[Marks] = {"path": PATH, "split": PLAIN, "heldout_split": PLAIN}

    path: str | None = None
    """Folder `domains` of tau2-bench, under data/tau2; required."""
    domain: Domain = Domain.retail
    """One of the published domains."""
    split: str = "train"
    """Which tasks are trained on, a key of split_tasks.json, or small; all but train and small count as
    benchmarks."""
    heldout_split: str | None = None
    """Which tasks are held out; null splits `heldout` tasks off `split`."""
    heldout: int = 10
    """Number of held-out tasks, unused where heldout_split is given; above 0."""
    max_turns: int = 30
    """Default of `rollout.max_turns`; above 0."""
    tool_format: ToolForm = ToolForm.auto
    """How tool calls are written."""
    instructions: bool = True
    """Puts policy and tools in the system prompt of each conversation."""

    def __post_init__(self) -> None:
        require(self.path is not None, "task.path: is needed; give the folder domains of tau2-bench")
        require_positive("task", self, "heldout", "max_turns", "answer_length")
        self.is_benchmark = self.is_benchmark or self.split not in TRAINING_SPLITS

    def train_problems(self) -> Sequence[Problem]:
        """The tasks of `split`. Raises UserError, naming file and key, on unusable files."""
        return self._sides.train

    def heldout_problems(self) -> Sequence[Problem]:
        """Those of `heldout_split`, or `heldout` taken out of `split`."""
        return self._sides.heldout

    def demonstrations(self) -> Sequence[Demonstration]:
        """Conversations of an agent that carries out the gold actions."""
        return [Demonstration(self.solved(problem)) for problem in self.train_problems()]

    def solved(self, problem: Problem) -> tuple[Message, ...]:
        """The conversation of an agent that knows the gold actions."""
        environment = self.environment()
        if self.domain is Domain.retail:
            turns = ticket_work(self._shop, problem)
            return converse(environment, problem, fixed_agent(turns), seed=0).messages
        gold = iter(telecom_files.telecom_turns(problem))
        messages = converse(environment, problem, fixed_agent(gold), seed=0).messages
        # what follows a transfer, which ends the conversation, stays part of the demonstration
        return (*messages, *(Message("assistant", turn) for turn in gold))

    def notes(self) -> Sequence[str]:
        """How many tasks are left out, and why."""
        words = telecom_files.REASONS if self.domain is Domain.telecom else REASONS
        found = [
            f"task.{key}={name}: {note}"
            for key, name in self._splits
            for note in dropped_note(self.dropped[key], len(self._of_split[key]), words)
        ]
        return [*found, *split_note(self._sides)]

    @cached_property
    def dropped(self) -> Mapping[str, Mapping[str, int]]:
        """Number of tasks left out, by setting (split, heldout_split) and reason."""
        return {
            key: dict(Counter(why for _, why in pairs if why is not None))
            for key, pairs in self._of_split.items()
        }

    def system_prompt_and_tools(self) -> SystemPrompt:
        """The policy, unless `system_prompt` replaces it, and the tools."""
        tools = TAU2_TOOLS if self.domain is Domain.retail else tuple(TOOLS.values())
        if not self.instructions:
            return SystemPrompt(self.system_prompt, tools, False, self.tool_format)
        texts = [read_text(self._folder / name, "task.path").strip() for name in POLICIES[self.domain.value]]
        texts += [TICKET_NOTE] if self.domain is Domain.retail else []
        text = self.system_prompt or "\n\n".join(texts)
        return SystemPrompt(text, tools, True, self.tool_format)

    def environment(self) -> Environment:
        """A conversation; all of them share the data."""
        if self.domain is Domain.telecom:
            return TelecomEnvironment(self._telecom)
        return RetailEnvironment(
            self._shop, lambda p, seed: TicketUser(p.metadata["instruction"]), TAU2_TOOLS
        )

    def reward(self) -> RewardFunction:
        """The goals reached, the facts told, the policy and the manner."""
        return conversation_reward()

    def data_stamp(self) -> str:
        """Changes with the files of the folder."""
        return stamp_of_folder(self._folder)

    @property
    def _folder(self) -> Path:
        assert self.path is not None  # see __post_init__
        return Path(self.path) / self.domain.value

    @cached_property
    def _shop(self) -> RetailData:
        tables = read_json(self._folder / "db.json", "task.path", dict)
        where = f"task.path: {self._folder / 'db.json'}"
        check_fields(tables, {"orders": dict, "users": dict, "products": dict}, where)
        return checked_data(tables["orders"], tables["users"], tables["products"], where)

    @cached_property
    def _telecom(self) -> TelecomData:
        return telecom_files.read_telecom(self._folder, "task.path")

    @property
    def _splits(self) -> list[tuple[str, str]]:
        pairs = [("split", self.split), ("heldout_split", self.heldout_split)]
        return [(key, name) for key, name in pairs if name is not None]

    @cached_property
    def _sides(self) -> Split:
        sides = {key: [p for p, why in pairs if why is None] for key, pairs in self._of_split.items()}
        for key, name in self._splits:
            require(sides[key] != [], f"task.{key}={name}: has no usable task in {self._folder}; use another")
        if self.heldout_split is not None:
            return split(sides["split"], sides["heldout_split"], lambda problem: problem.id)
        return split(sides["split"], self.heldout, lambda p: p.metadata.get("user_id") or p.id)

    @cached_property
    def _of_split(self) -> Mapping[str, list[tuple[Problem, str | None]]]:
        """Problems of each split that are in the files, with the reason to leave them out."""
        path = self._folder / "split_tasks.json"
        splits = read_json(path, "task.path", dict)
        found = {}
        for key, name in self._splits:
            names = ", ".join(splits)
            require(
                isinstance(splits.get(name), list), f"task.{key}={name}: is not in {path}; it has {names}"
            )
            wanted = set(splits[name])
            found[key] = [self._with_reason(p) for p in self._problems if p[0].id in wanted]
        return found

    def _with_reason(self, pair: tuple[Problem, bool]) -> tuple[Problem, str | None]:
        problem, needs_judge = pair
        if needs_judge:
            return problem, "judge"
        if self.domain is Domain.telecom:
            return problem, telecom_files.telecom_fault(self._telecom, problem)
        return problem, fault(self._shop, Case(**problem.metadata))

    @cached_property
    def _problems(self) -> list[tuple[Problem, bool]]:
        """Every task of the file, and whether it needs an LLM judge; from the large telecom file if it
        exists."""
        read: Callable[[Any, str], tuple[Problem, bool]] = self._retail_problem
        path = self._folder / "tasks.json"
        if self.domain is Domain.telecom:
            read = self._telecom_problem
            path = path if path.is_file() else self._folder / "tasks_small.json"
        rows = read_json(path, "task.path", list)
        return [read(row, f"task.path: {path}, task {number}") for number, row in enumerate(rows, 1)]

    def _telecom_problem(self, row: Any, where: str) -> tuple[Problem, bool]:
        problem = telecom_files.telecom_problem(row, where)
        return problem, problem.metadata["needs_judge"]

    def _retail_problem(self, row: Any, where: str) -> tuple[Problem, bool]:
        check_fields(row, {"id": str, "user_scenario": dict, "evaluation_criteria": dict}, where)
        where = f"{where} ({row['id']})"
        wishes, criteria = row["user_scenario"].get("instructions"), row["evaluation_criteria"]
        check_fields(wishes, {"reason_for_call": str}, f"{where}: instructions")
        actions = checked_actions(criteria.get("actions") or [], "arguments", where)
        case = Case(
            id=row["id"],
            user_id=user_of(self._shop, actions),
            instruction="\n".join(str(wishes[part]) for part in SCENARIO_PARTS if wishes.get(part)),
            actions=[action for action in actions if action["name"] in WRITES],
            outputs=checked_texts(criteria.get("communicate_info") or [], where),
        )
        return retail_problem(case, TICKET + case.instruction), bool(criteria.get("nl_assertions"))
