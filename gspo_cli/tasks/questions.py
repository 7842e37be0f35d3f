"""Shared code of single-turn tasks: the form of the answer in words, and solved examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import dropwhile, takewhile
from typing import Any

from gspo_cli.config.checks import require, require_not_negative
from gspo_cli.tasks.base import Task
from gspo_cli.tasks.problem_index import Problems
from gspo_cli.tasks.splits import Split
from gspo_cli.types import Demonstration, Message, Problem


@dataclass
class QuestionTask(Task):
    """Base of tasks with one question and one answer.

    With `instructions` the last message of a problem ends with `answer_form`, which says how to answer; a
    tiny model gets the bare question. Subclasses write `sides` and, where the gold answer is not what a model
    should write, `model_answer`."""

    instructions: bool = False
    """Says in each question how to answer; false for a model that learned it from demonstrations."""
    examples: int = 0
    """Solved training problems shown before each question (few-shot); these are not trained on; 0 or more."""

    def __post_init__(self) -> None:
        require_not_negative("task", self, "examples")

    @property
    def answer_form(self) -> str:
        """The sentence that says how to answer; empty where the question itself says it."""
        raise NotImplementedError

    def sides(self) -> Split:
        """Training and held-out problems, without examples. Raises UserError."""
        raise NotImplementedError

    def model_answer(self, problem: Problem) -> str:
        """What a model should write: the gold answer in the form that `answer_form` describes."""
        return problem.answer

    def problem_key(self, problem: Problem) -> str:
        """See `Split.key`."""
        return self._split.key(problem)

    def asked(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        """`messages`, the last of which ends with the form of the answer where there are instructions."""
        if not (self.instructions and self.answer_form):
            return messages
        *before, last = messages
        return (*before, replace(last, content=f"{last.content}\n{self.answer_form}"))

    def train_problems(self) -> Sequence[Problem]:
        """Every problem that is neither held out nor an example. Raises UserError where none is left."""
        return self._with_examples[0]

    def heldout_problems(self) -> Sequence[Problem]:
        """Problems never trained on, the same for every seed."""
        return self._with_examples[1]

    def demonstrations(self) -> Sequence[Demonstration]:
        """See `solved_problems`."""
        return self.solved_problems()

    def solved_problems(self) -> Sequence[Demonstration]:
        """Training problems with the answer that a model should write."""
        return [
            Demonstration((*p.messages, Message("assistant", self.model_answer(p))), len(p.messages))
            for p in self.train_problems()
        ]

    @cached_property
    def _split(self) -> Split:
        return self.sides()

    @cached_property
    def _with_examples(self) -> tuple[Sequence[Problem], Sequence[Problem]]:
        train, heldout = self._split.train, self._split.heldout
        if self.examples == 0:
            return train, heldout
        shown: dict[str, Problem] = {}  # by key: the mirror image of an example is no second one
        taken = len(train)
        for place, problem in enumerate(train):
            key = self._split.key(problem)
            if len(shown) == self.examples and key not in shown:
                taken = place
                break
            shown.setdefault(key, problem)
        rest = train[taken:]
        require(
            len(rest) > 0,
            f"task.examples={self.examples}: takes all {len(train)} training problems; use fewer",
        )
        solved: list[Message] = []
        for problem in shown.values():
            solved += [*_after_system(problem), Message("assistant", self.model_answer(problem))]
        return _all_preceded(rest, solved), _all_preceded(heldout, solved)

    def __getstate__(self) -> dict[str, Any]:
        """The settings alone: another process reads its problems itself."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def _all_preceded(problems: Sequence[Problem], solved: Sequence[Message]) -> Sequence[Problem]:
    if isinstance(problems, Problems):
        return problems.changed(lambda problem: _preceded(problem, solved))
    return [_preceded(problem, solved) for problem in problems]


def _preceded(problem: Problem, solved: Sequence[Message]) -> Problem:
    """The problem with solved examples between its system message and its question."""
    system = takewhile(lambda message: message.role == "system", problem.messages)
    return replace(problem, messages=(*system, *solved, *_after_system(problem)))


def _after_system(problem: Problem) -> list[Message]:
    return list(dropwhile(lambda message: message.role == "system", problem.messages))
