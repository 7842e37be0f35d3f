"""The levels of a difficulty curriculum: a task at rising values of its difficulty setting.

What is held out at a level or a later one is not trained on before, nor demonstrated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from gspo_cli.config.checks import require
from gspo_cli.errors import UserError
from gspo_cli.tasks.base import Task
from gspo_cli.types import Demonstration, Message, Problem


@dataclass(frozen=True)
class Level:
    """The problems of a level. `withheld` are the messages of those problems of its `task` that are not
    trained on because a later level holds them out."""

    task: Task
    train: Sequence[Problem]
    heldout: Sequence[Problem]
    withheld: frozenset[tuple[Message, ...]] = field(default=frozenset())

    @property
    def number(self) -> int | None:
        """The value of the difficulty setting; None where the task has none."""
        return self.task.difficulty_level

    def demonstrations(self) -> Sequence[Demonstration]:
        """The task's own, without those of withheld problems."""
        found = self.task.demonstrations()
        if not self.withheld:
            return found
        lengths = {len(messages) for messages in self.withheld}
        return [
            shown
            for shown in found
            if not any(tuple(shown.messages[:length]) in self.withheld for length in lengths)
        ]


def levels_of(task: Task, start: int | None = None) -> list[Level]:
    """The levels from `start` to the task itself; without a start the task alone. Raises UserError where a
    level has nothing to train on."""
    tasks = [task] if start is None else task.levels(start)
    held: set[str] = set()
    found = []
    for each in reversed(tasks):
        train, heldout = _sides(each, each is not task)
        withheld: list[Problem] = []
        if held:
            withheld = [problem for problem in train if each.problem_key(problem) in held]
            train = [problem for problem in train if each.problem_key(problem) not in held]
            require(
                len(train) > 0,
                f"task.{each.DIFFICULTY}={each.difficulty_level}: all training problems are held out at "
                "later levels; use a higher training.difficulty_curriculum_start, or a lower task.heldout",
            )
        if start is not None:
            held |= {each.problem_key(problem) for problem in heldout}
        found.append(Level(each, train, heldout, frozenset(problem.messages for problem in withheld)))
    return found[::-1]


def _sides(task: Task, lower: bool) -> tuple[Sequence[Problem], Sequence[Problem]]:
    """Training and held-out problems; what is wrong with those of a `lower` level names it."""
    try:
        return task.train_problems(), task.heldout_problems()
    except UserError as error:
        if not lower:
            raise
        raise UserError(f"task.{task.DIFFICULTY}={task.difficulty_level}: {error}") from error
