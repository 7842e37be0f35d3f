"""Any file of prompts with answers, scored by a verifier."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from gspo_cli.config.checks import require
from gspo_cli.config.marks import CODE, Marks
from gspo_cli.errors import UserError
from gspo_cli.rewards.base import RewardFunction
from gspo_cli.rewards.json_answers import gold_json, is_schema
from gspo_cli.rewards.verifiers import VerifierReward, check_gold, resolve_verifier
from gspo_cli.tasks.files import FileTask, prompt_messages
from gspo_cli.types import Problem

FORMS = {  # by verifier: `regex` and functions of users accept what only the prompts can say
    "exact": "Reply with the exact answer only.",
    "numeric": "End your reply with the answer as a number.",
    "choice": "Reply with the capital letter of the right choice only.",
    "maths": "End your reply with the answer in \\boxed{}.",
    "json": "Reply with the JSON only.",
}


@dataclass
class JsonlTask(FileTask):
    """Lines `{"prompt": text, "answer": text or number}`, or "messages" for "prompt"; "id" is optional."""

    TRUST: ClassVar[Marks] = {"verifier": CODE}

    verifier: str = "exact"
    """How an answer is scored: exact, numeric, regex, choice, json, maths (extra `math`), or
    python:module.function."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_verifier()
        require(
            self.examples == 0 or self.verifier != "regex",
            f"task.examples={self.examples}: with task.verifier=regex the gold answers are patterns and not "
            "answers; set task.examples=0",
        )

    def check_verifier(self) -> None:
        """Raise UserError if `verifier` is none of those that there are."""
        resolve_verifier(self.verifier)

    def problem(self, row: dict[str, Any], where: str) -> Problem:
        """The conversation up to the agent's turn, and the gold answer as text."""
        messages = prompt_messages(row, where)
        last = messages[-1].role
        require(
            last in ("user", "tool"), f'{where}: "messages" ends with {last}; end with a user or tool message'
        )
        answer = row.get("answer")
        if self.verifier == "json" and isinstance(answer, dict | list):
            answer = as_json(answer, where)
        usable = isinstance(answer, str | int | float) and not isinstance(answer, bool)
        require(usable and str(answer).strip() != "", f'{where}: needs "answer", a number or a string')
        finite = not isinstance(answer, float) or math.isfinite(answer)
        require(finite, f'{where}: "answer" is not a finite number')
        check_gold(self.verifier, str(answer), where)
        name = str(row.get("id", Path(where).name))
        return Problem(id=name, messages=messages, answer=str(answer))

    @property
    def answer_form(self) -> str:
        """What the verifier reads; nothing where the prompts themselves have to say it."""
        return FORMS.get(self.verifier, "")

    def model_answer(self, problem: Problem) -> str:
        """The gold answer, in a box for `maths`. Raises UserError where it is a schema of answers."""
        if self.verifier == "json" and is_schema(gold_json(problem.answer)):
            raise UserError(
                f"{problem.id}: its answer is a schema, which no model should write; set task.examples=0 and "
                "model.cold_start.steps=0"
            )
        if self.verifier == "maths":
            return f"\\boxed{{{problem.answer.strip().strip('$')}}}"
        return problem.answer

    def reward(self) -> RewardFunction:
        """1 or 0 by `verifier`."""
        return VerifierReward(self.verifier)


def as_json(value: Any, where: str) -> str:
    """An object or a list that is a gold answer, as a text. Raises UserError if it holds no plain values."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f'{where}: "answer" is not plain JSON ({error}); correct it') from error
