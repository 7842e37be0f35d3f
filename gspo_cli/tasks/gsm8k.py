"""GSM8K: grade-school word problems with published solutions, read from the user's own copy of the file.

Source: Cobbe et al. 2021, arXiv 2110.14168; files at github.com/openai/grade-school-math (MIT).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gspo_cli.config.checks import require
from gspo_cli.rewards.verifiers import VerifierReward, check_gold
from gspo_cli.tasks.files import FileTask, text_field
from gspo_cli.types import Demonstration, Message, Problem

ANNOTATION = re.compile(r"<<[^>]*>>")


@dataclass
class Gsm8k(FileTask):
    """Lines `{"question": ..., "answer": "solution #### number"}`; the last number of an answer is scored."""

    def problem(self, row: dict[str, Any], where: str) -> Problem:
        """The number after the last `####` is the gold answer; the whole solution is kept as metadata."""
        published = text_field(row, "answer", where)
        _, mark, gold = published.rpartition("####")
        require(mark != "", f'{where}: "answer" does not end in "#### number"; restore the line')
        check_gold("numeric", gold, where)
        return Problem(
            id=Path(where).name,
            messages=(Message("user", text_field(row, "question", where)),),
            answer=gold.strip(),
            metadata={"solution": published},
        )

    @property
    def answer_form(self) -> str:
        """A solution that ends as the published ones do."""
        return "Solve the problem step by step. End your reply with #### and the answer as a number."

    def model_answer(self, problem: Problem) -> str:
        """The published solution without calculator annotations (<<48/2=24>>)."""
        return ANNOTATION.sub("", problem.metadata["solution"])

    def demonstrations(self) -> Sequence[Demonstration]:
        """Published solutions of the training problems."""
        return self.solved_problems()

    def reward(self) -> VerifierReward:
        """1 where the last number of the answer is the published one."""
        return VerifierReward("numeric")
