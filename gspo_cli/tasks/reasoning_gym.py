"""The generated puzzles of the library reasoning-gym (Apache-2.0, extra `reasoning`), scored by the library.

Source: Stojanovski et al. 2025, arXiv 2505.24760; github.com/open-thought/reasoning-gym.
"""

from __future__ import annotations

import importlib.util
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from functools import cached_property
from typing import Any, ClassVar

from gspo_cli.concurrency import TookTooLong
from gspo_cli.config.checks import require, require_not_negative, require_positive
from gspo_cli.config.extras import install
from gspo_cli.config.marks import PLAIN, SETTINGS, Marks
from gspo_cli.errors import FOREIGN, UserError, as_exception
from gspo_cli.rewards.answers import Statement, marked_answers, statements, tagged_answers
from gspo_cli.rewards.base import RewardFunction
from gspo_cli.rewards.worker import Worker
from gspo_cli.tasks.questions import QuestionTask
from gspo_cli.tasks.splits import Split, split
from gspo_cli.tasks.tools.written import without_reasoning
from gspo_cli.types import Demonstration, Message, Problem, RewardResult, Trajectory

SECONDS = 10.0  # for the score of one answer
LONGEST = 20_000  # characters of an answer that is scored
DRAWS_PER_PROBLEM = 4  # some puzzles have few different questions: no more than so many draws for each
EXECUTES = "its scorer executes Python that it finds in a model's answer"
VARIES = "its problems are different in each process, so that held-out ones could be trained on"
REFUSED = {
    **dict.fromkeys(
        (
            *("binary_matrix", "countdown", "intermediate_integration", "n_queens", "puzzle24"),
            *("polynomial_multiplication", "simple_integration", "spiral_matrix", "string_insertion"),
        ),
        EXECUTES,
    ),
    **dict.fromkeys(("codeio", "isomorphic_strings", "knight_swap", "list_functions"), VARIES),
    **dict.fromkeys(("ransom_note", "word_ladder"), VARIES),
    "composite": "it mixes other datasets, also those that are refused",
    "game_of_life_halting": "its scorer pays 1 for any text",
}
AT_LEVEL = "settings"  # key of a problem's metadata, for its scorer
OWN_KEYS = {"size": "task.problems and task.heldout", "seed": "task.data_seed"}


@dataclass
class ReasoningGym(QuestionTask):
    r"""Problems of one dataset of the library; the library's score, between 0 and 1, is the reward.

    The answer is what stands in `<answer></answer>`, else in `\boxed{}` or after "Answer:" or "the answer
    is", else the whole text after any reasoning; different answers in one text score 0."""

    TRUST: ClassVar[Marks] = {"dataset": PLAIN, "settings": SETTINGS}
    DIFFICULTY: ClassVar[str | None] = "level"

    dataset: str = "chain_sum"
    """Name of the dataset in the library, such as chain_sum, gcd or spell_backward. Those whose scorers
    execute a model's text, or pay for any text, are refused."""
    settings: Any = None
    """Settings of the dataset by name, such as {max_terms: 3}; those left out, or all with null, have the
    values of `level`, or the library's defaults."""
    level: int | None = None
    """Level of the library's own curriculum for the dataset, 0 or more; null does not use it."""
    problems: int = 2000
    """Number of training problems; above 0. Fewer where the dataset has fewer different questions."""
    heldout: int = 200
    """Number of held-out problems; above 0."""
    data_seed: int = 0
    """Seed of the problems, 0 or more; they do not depend on the run's seed."""

    def __post_init__(self) -> None:
        require(
            self.settings is None or isinstance(self.settings, dict),
            f"task.settings={self.settings}: must be a mapping; write {{name: value}}",
        )
        require_positive("task", self, "problems", "heldout")
        require_not_negative("task", self, "data_seed", *(["level"] if self.level is not None else []))
        reason = REFUSED.get(self.dataset)
        require(reason is None, f"task.dataset={self.dataset}: is refused, as {reason}; choose another one")
        missing = importlib.util.find_spec("reasoning_gym") is None
        require(not missing, f"task=reasoning_gym: needs reasoning-gym; {install('reasoning')}")
        super().__post_init__()

    @property
    def answer_form(self) -> str:
        """An answer between tags, after as much reasoning as the model likes."""
        return "End your reply with your answer inside <answer></answer>, and nothing else inside the tags."

    def model_answer(self, problem: Problem) -> str:
        """The library's answer, in tags where the question asks for these."""
        return f"<answer>{problem.answer}</answer>" if self.instructions else problem.answer

    def demonstrations(self) -> Sequence[Demonstration]:
        """The training problems solved; none where the library has no answers of its own."""
        return self.solved_problems() if all(p.answer for p in self.train_problems()) else []

    def notes(self) -> Sequence[str]:
        """How many problems the dataset lacks."""
        train, wanted = len(self._split.train), self.problems
        few = f"task.dataset={self.dataset}: has {train} different training problems, not {wanted}"
        return [few] if train < wanted else []

    def reward(self) -> RewardFunction:
        """See ReasoningGymReward."""
        return ReasoningGymReward(self.dataset, self._settings)

    def sides(self) -> Split:
        """`heldout` problems and at most `problems` others, no question twice. Raises UserError."""
        found = list(self._problems())
        solvable = self.examples == 0 or all(problem.answer for problem in found)
        unsolved = f"{self.dataset} comes without answers of its own; set task.examples=0"
        require(solvable, f"task.examples={self.examples}: {unsolved}")
        return split(found, self.heldout, lambda problem: problem.metadata["question"])

    def _problems(self) -> Iterator[Problem]:
        wanted = self.problems + self.heldout
        settings = self._settings
        dataset = _dataset(self.dataset, settings, wanted * DRAWS_PER_PROBLEM, self.data_seed)
        questions: set[str] = set()
        for place in range(wanted * DRAWS_PER_PROBLEM):
            if len(questions) == wanted:
                return
            try:
                entry = dataset[place]
            except FOREIGN as error:
                raise UserError(_rejects(self.dataset, error)) from error
            if entry["question"] in questions:
                continue
            questions.add(entry["question"])
            yield Problem(
                id=f"{self.dataset}:{place}",
                messages=self.asked((Message("user", entry["question"]),)),
                answer="" if entry["answer"] is None else str(entry["answer"]),
                metadata=entry if self.level is None else {**entry, AT_LEVEL: settings},
            )

    @cached_property
    def _settings(self) -> dict[str, Any]:
        of_level = {} if self.level is None else _level_settings(self.dataset, self.level)
        return {**of_level, **(self.settings or {})}


class ReasoningGymReward(RewardFunction):
    """The library's score of an answer, computed in a process of its own, under `settings` or those of the
    problem's level. An answer that the scorer cannot
    read, or takes longer than `SECONDS` for, scores 0, as an empty one does."""

    def __init__(self, dataset: str, settings: Mapping[str, Any]) -> None:
        self.dataset, self.settings = dataset, dict(settings)

    def compute_reward(
        self, trajectory: Trajectory, turn: Message, context: Mapping[str, Any]
    ) -> RewardResult:
        """The score of the last answer, which is also the only component."""
        gold = str(trajectory.problem.answer)
        answer = final_answer(trajectory.answer, gold.count("\n") + 1 if gold else None)
        value = 0.0
        if answer and len(answer) <= LONGEST:
            try:
                entry = dict(trajectory.problem.metadata)
                request = (self.dataset, entry.pop(AT_LEVEL, self.settings), answer, entry)
                value = WORKER.ask(request, SECONDS)
            except TookTooLong:
                value = 0.0
        return RewardResult(value, {"score": value})


def final_answer(text: str, lines: int | None = None) -> str:
    """The one answer of a text, as `ReasoningGym` says; empty where there are several. What is in tags, and a
    text without any statement, stay as they are: a puzzle's answer may end with a period. After a phrase the
    answer is its line, or the block of lines down to an empty one where an answer has several `lines`; null
    for `lines` means a block where it begins below the phrase."""
    text = without_reasoning(text)
    stated = tagged_answers(text) or marked_answers(text)
    if not stated:
        stated = list(dict.fromkeys(_lines(statement, lines) for statement in statements(text)))
    if stated:
        return stated[0] if len(stated) == 1 else ""
    return text


def _lines(statement: Statement, lines: int | None) -> str:
    several = statement.below if lines is None else lines > 1
    return statement.block if several else statement.line


def _dataset(name: str, settings: Mapping[str, Any], size: int, seed: int) -> Any:
    """A dataset of the library. Raises UserError naming the setting that it does not take."""
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    known = sorted(set(DATASETS) - set(REFUSED))
    near = ", ".join(get_close_matches(name, known, cutoff=0.5) or known)
    require(name in DATASETS, f"task.dataset={name}: is not a dataset of reasoning-gym; nearest are {near}")
    takes = [each.name for each in fields(DATASETS[name][1]) if each.name not in OWN_KEYS]
    for key in settings:
        require(key not in OWN_KEYS, f"task.settings.{key}: is set by {OWN_KEYS.get(key)}; leave it out")
        near = ", ".join(get_close_matches(str(key), takes, cutoff=0.5) or takes)
        require(key in takes, f"task.settings.{key}: is not a setting of {name}; nearest are {near}")
    try:
        return reasoning_gym.create_dataset(name, size=size, seed=seed, **settings)
    except FOREIGN as error:
        raise UserError(_rejects(name, error)) from error


def _level_settings(name: str, level: int) -> dict[str, Any]:
    """What the library's curriculum for a dataset sets at a level. Raises UserError where it has none, or no
    such level."""
    from reasoning_gym.coaching import RangeAttributeDefinition
    from reasoning_gym.factory import create_curriculum, has_curriculum

    key = f"task.level={level}"
    require(has_curriculum(name), f"{key}: the library has no curriculum for {name}; use task.level=null")
    curriculum = create_curriculum(name)
    attributes = curriculum.attributes.values()
    highest = max(len(attribute.levels) for attribute in attributes) - 1
    require(
        level <= highest, f"{key}: is above the highest level of {name}; use at most task.level={highest}"
    )
    curriculum.set_global_level(level)
    try:
        config = curriculum.generate_configuration()
    except FOREIGN as error:
        raise UserError(f"{key}: {name} fails with it ({as_exception(error)}); use another level") from error
    taken: list[str] = []
    for each in attributes:
        is_range = isinstance(each, RangeAttributeDefinition)
        taken += [each.lower_field_name, each.upper_field_name] if is_range else [each.field_name]
    return {field: getattr(config, field) for field in taken}


def _rejects(name: str, error: BaseException) -> str:
    reason = f"{type(error).__name__}: {as_exception(error)}"
    return f"task.settings: {name} fails with them ({reason}); correct them"


def _scorer() -> Callable[[tuple[str, dict[str, Any], str, dict[str, Any]]], float]:
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (some scorers print what is wrong with an answer)
    built: dict[tuple[str, str], Any] = {}

    def score(request: tuple[str, dict[str, Any], str, dict[str, Any]]) -> float:
        name, settings, answer, entry = request
        key = repr(settings)
        if (name, key) not in built:
            built[name, key] = _dataset(name, settings, 1, 0)
        try:
            value = float(built[name, key].score_answer(answer, entry))
        except FOREIGN:  # scorers raise on text that they cannot read
            return 0.0
        return min(max(value, 0.0), 1.0) if math.isfinite(value) else 0.0

    return score


WORKER = Worker(_scorer)
