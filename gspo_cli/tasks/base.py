"""A task: training problems, held-out problems, an environment and a reward.

A task is a dataclass named by `task._target_`; its fields are the settings of conf/task/<name>.yaml. The
agent talks to an environment: a step takes the agent's text and returns the next messages."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Protocol, runtime_checkable

from gspo_cli.config.checks import require
from gspo_cli.config.choices import ToolForm
from gspo_cli.config.marks import PLAIN, Marks
from gspo_cli.errors import UserError
from gspo_cli.rewards.base import RewardFunction
from gspo_cli.tasks.tools import Tool
from gspo_cli.types import Demonstration, Message, Outcome, Problem


@dataclass(frozen=True)
class SystemPrompt:
    """The system prompt and tools of every conversation of a task.

    Tools are `announced` by the model's own chat template where calls are written in its format, else as
    lines of the system prompt. `tool_format` chooses between the two."""

    text: str = ""
    tools: tuple[Tool, ...] = ()
    announced: bool = True
    tool_format: ToolForm = ToolForm.auto


NO_SYSTEM_PROMPT = SystemPrompt()


@dataclass(frozen=True)
class Step:
    """What follows an agent's turn: the `messages` that the agent reads next, and the turn's own reward.

    `progress` has the goals by name, each 0 before the first turn and 1 at best: a reward weighs the last
    progress of a conversation, and turn-level credit its changes from turn to turn. When `done`, the agent no
    longer reads `messages`: they are for people."""

    messages: tuple[Message, ...] = ()
    done: bool = False
    reward: float = 0.0
    progress: Mapping[str, float] = field(default_factory=dict)

    @property
    def standing(self) -> Mapping[str, float]:
        """The former name of `progress`."""
        return self.progress


class Environment(Protocol):
    """One conversation: each has a fresh instance, and all conversations of a group share the seed.

    `single_turn` promises that the first step is the last; engines then keep no cache for a next one.
    Whatever the agent writes, a step must not raise: an exception counts as a fault of the environment, and
    its conversation is left out of training."""

    single_turn: bool

    def reset(self, problem: Problem, seed: int) -> tuple[Message, ...]:
        """Start a new conversation and return the first messages that the agent sees."""

    def step(self, text: str) -> Step | Awaitable[Step]:
        """React to one turn of the agent; `text` is the turn without its end token. May be a coroutine."""

    def finish(self) -> Outcome:
        """Report the outcome of a conversation that has ended or reached a limit, and free what it uses.
        Called once after every `reset` that returned."""


@runtime_checkable
class ToolEnvironment(Environment, Protocol):
    """An environment whose tools can be used without its user: a person may take the user's place."""

    def observe(self, text: str) -> Sequence[str] | str | None:
        """The tools' answer to an agent's turn, or one for each of its calls; None if the turn is text for
        the user."""

    def changes(self) -> list[str]:
        """Descriptions of what the conversation has changed so far; empty if nothing has changed."""


class SingleTurn:
    """The problem's messages, one answer, done."""

    single_turn = True

    def reset(self, problem: Problem, seed: int) -> tuple[Message, ...]:
        """The problem's own messages, which are not random."""
        return problem.messages

    def step(self, text: str) -> Step:
        """The end, after one turn."""
        return Step(done=True)

    def finish(self) -> Outcome:
        """None: the environment changes nothing."""
        return Outcome()


def stamp_of_files(files: Iterable[Path]) -> str:
    """A hash of the names and the content of files, for `Task.data_stamp`. Raises UserError where one cannot
    be read."""
    try:
        content = [(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in sorted(files)]
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror}); restore the file") from error
    return hashlib.sha256(repr(content).encode()).hexdigest()


@dataclass
class Task:
    """Base of all tasks. `train_problems` and `heldout_problems` never overlap and do not depend on the run's
    seed. `prompt_length` and `answer_length`, in tokens, are the defaults of `rollout.max_prompt_length` and
    `rollout.max_completion_length` (of one turn)."""

    TRUST: ClassVar[Marks] = {"name": PLAIN, "license": PLAIN, "source": PLAIN, "system_prompt": PLAIN}
    DIFFICULTY: ClassVar[str | None] = None  # the setting, a whole number, that a curriculum raises
    runs_agent: ClassVar[bool] = False  # an agent beside the run writes the prompts: not those of problems

    name: str
    """Name of the task, in run folders and reports."""
    license: str
    """License of the data, on the objective card."""
    source: str
    """Where the data comes from, on the objective card."""
    is_benchmark: bool = False
    """Whether the problems belong to a test split; the card then warns not to report scores on problems
    trained on."""
    system_prompt: str = ""
    """System message of every conversation; replaces the task's own policy where it has one."""
    prompt_length: int = 256
    """Default of `rollout.max_prompt_length`, in tokens."""
    answer_length: int = 256
    """Default of `rollout.max_completion_length`, in tokens; of one turn in conversational tasks."""

    def __init_subclass__(cls) -> None:
        """Tasks of users may still define `briefing`, the former name of `system_prompt_and_tools`."""
        if "briefing" in vars(cls):
            cls.system_prompt_and_tools = vars(cls)["briefing"]  # type: ignore[method-assign]

    def train_problems(self) -> Sequence[Problem]:
        """All problems to train on, in a fixed order; the run shuffles them. Raises UserError on unusable
        files."""
        raise NotImplementedError

    def heldout_problems(self) -> Sequence[Problem]:
        """Problems never trained on, in a fixed order; evaluation takes the first `evaluation.problems`."""
        raise NotImplementedError

    def demonstrations(self) -> Sequence[Demonstration]:
        """Solved training problems for the cold start; empty if the task has none."""
        return []

    def levels(self, start: int) -> list[Task]:
        """The task at each value of its difficulty setting, from `start` to its own: the last is the task
        itself. Raises UserError where it has no such setting, or none is from `start` on."""
        key, name, here = "training.difficulty_curriculum_start", self.DIFFICULTY, self.difficulty_level
        if name is None:
            raise UserError(
                f"{key}={start}: task={self.name} has no setting of difficulty; use {key}=null, or a task "
                "that has one, such as customer_service, arithmetic or countdown"
            )
        if here is None:
            raise UserError(
                f"{key}={start}: rises to task.{name}, which is not set; use task.{name}={start + 1}"
            )
        require(
            start <= here,
            f"{key}={start}: is above task.{name}={here}, to which it rises; use {key}={here} or less",
        )
        try:
            lower: list[Task] = [replace(self, **{name: level}) for level in range(start, here)]  # type: ignore[arg-type]
        except UserError as error:
            raise UserError(f"{key}={start}: {error}") from error
        return [*lower, self]

    @property
    def difficulty_level(self) -> int | None:
        """The value of the difficulty setting; None where there is none, or it is not set."""
        value = getattr(self, self.DIFFICULTY) if self.DIFFICULTY is not None else None
        return value if isinstance(value, int) else None

    def problem_key(self, problem: Problem) -> str:
        """Equal for problems of which only one side may be trained on."""
        return repr(problem.messages)

    def system_prompt_and_tools(self) -> SystemPrompt:
        """What the agent reads before every conversation: the system prompt, and the tools it may call."""
        return SystemPrompt(self.system_prompt)

    def notes(self) -> Sequence[str]:
        """Notes about the problems, such as how many are left out."""
        return []

    def data_stamp(self) -> str:
        """A hash that changes with the content of what the problems are read from; empty where they are
        generated. Raises UserError on unusable files."""
        return ""

    def environment(self) -> Environment:
        """A fresh environment for one conversation."""
        return SingleTurn()

    @property
    def single_turn(self) -> bool:
        """Whether every conversation is over after one turn of the agent."""
        return self.environment().single_turn

    def reward(self) -> RewardFunction:
        """The task's own reward, in [0, 1]."""
        raise NotImplementedError

    def scored_by(self, given: RewardFunction | None) -> RewardFunction:
        """The reward of a run that names the reward `given`, or none."""
        return self.reward() if given is None else given
