"""Verifiers: pure functions `(answer_text, gold) -> 0.0 or 1.0`, and the reward that applies one.

An empty answer scores 0. Answers are untrusted text: nothing here executes them, and a verifier accepts one
answer, not a list of guesses.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from gspo_cli.config.checks import require
from gspo_cli.config.compose import locate
from gspo_cli.config.extras import install
from gspo_cli.errors import UserError
from gspo_cli.rewards.base import RewardFunction
from gspo_cli.rewards.maths_worker import equal_mathematics
from gspo_cli.types import Message, RewardResult, Trajectory

Verifier = Callable[[str, str], float]

# A minus after a digit or a bracket is a subtraction: "10-3" ends in 3. A comma belongs to a number only
# before three digits: "3,4,5" ends in 5. U+2212 is the typographic minus.
NUMBER = re.compile(
    r"(?:(?<![0-9)\]])[-\u2212])?(?:\$[-\u2212]?)?"
    r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)?|[0-9]*\.[0-9]+|[0-9]+)"
)
# One capital, or several joined as in "B or C", "(B), (C)". "I think" and, after a choice, "A cat" are not.
CHOICES = (
    r"((?!I\s+[a-z])[A-Z](?![\w'])"
    r"(?:[^\w.;]*(?:(?:or|and)\b[^\w.;]*)?[A-Z](?![\w'])(?!\s+(?!(?:or|and)\b)[a-z]))*)"
)
# "Answer: B", "the answer is option (B)", "the correct choice is B", "\boxed{B}"
STATED = re.compile(
    r"(?i:\banswer\b(?:\s+is\b)?|\b(?:option|choice)\s+is\b|\\boxed\b)[^\w.]*"
    rf"(?:(?i:option|choice)[^\w.]*)?{CHOICES}"
)
# "B", "(B)", "B. Paris", "**B**" at the start of the text
LEADING = re.compile(rf"^\W*{CHOICES}(?=\s*(?:$|[).:,\]}}*-]))")


def exact(answer_text: str, gold: str) -> float:
    """1 where the texts are equal. Case matters; whitespace at the ends and its amount inside do not."""
    words = answer_text.split()
    return float(bool(words) and words == gold.split())


def numeric(answer_text: str, gold: str) -> float:
    """1 where the last number of the text equals `gold` as a Decimal; `, $ %` and a final dot are dropped.

    Units are not converted: "18%" equals 18, not 0.18. Raises UserError if `gold` is not one number.
    """
    found = NUMBER.findall(answer_text)
    return float(bool(found) and _decimal(found[-1]) == gold_number(gold))


def regex(answer_text: str, gold: str) -> float:
    """1 where the pattern `gold` matches the whole text, stripped. Raises UserError on a bad pattern."""
    text = answer_text.strip()
    return float(bool(text) and gold_pattern(gold).fullmatch(text) is not None)


def choice(answer_text: str, gold: str) -> float:
    """1 where the capital letter given as the answer is `gold`; giving different letters is wrong.

    Phrases such as "Answer: B" or "the answer is (B)" decide, wherever they are; without one the text has to
    start with its letter: "B", "(B)", "B. Paris". Raises UserError if `gold` is not one letter A-Z.
    """
    given = STATED.findall(answer_text) or LEADING.findall(answer_text)
    letters = {letter for group in given for letter in re.findall(r"\b[A-Z]\b", group)}
    return float(letters == {gold_letter(gold)})


def maths(answer_text: str, gold: str) -> float:
    """1 where the library math-verify (Apache-2.0, extra `math`) finds both equal.

    Compared in a worker process, with 0 for what takes too long. Raises UserError if `gold` cannot be
    parsed.
    """
    equal = equal_mathematics(answer_text, gold)
    if equal is None:
        raise UserError(f"gold answer {gold!r}: is not valid mathematics; write a number, or LaTeX as $...$")
    return float(equal)


VERIFIERS: dict[str, Verifier] = {
    "exact": exact,
    "numeric": numeric,
    "regex": regex,
    "choice": choice,
    "maths": maths,
}


def resolve_verifier(name: str) -> Verifier:
    """The verifier of `task.verifier`: a key of VERIFIERS, or `python:module.function` for a custom one.

    Raises UserError on an unknown name, a function that cannot be imported, and `maths` without its library.
    """
    if name.startswith("python:"):
        verifier = locate(name.removeprefix("python:"), "task.verifier")
        message = f"task.verifier={name}: is not a function; give (answer_text, gold) -> float"
        require(callable(verifier), message)
        return verifier
    choices = ", ".join(VERIFIERS)
    require(name in VERIFIERS, f"task.verifier={name}: choose one of {choices}, or python:module.function")
    missing = name == "maths" and importlib.util.find_spec("math_verify") is None
    require(not missing, f"task.verifier=maths: needs math-verify; {install('math')}")
    return VERIFIERS[name]


def check_gold(name: str, gold: str, where: str) -> None:
    """Raise UserError naming `where` if verifier `name` cannot use `gold`. For the loading of tasks."""
    checks = {"numeric": gold_number, "regex": gold_pattern, "choice": gold_letter}
    try:
        checks.get(name, str)(gold)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


class VerifierReward(RewardFunction):
    """1 or 0 for the trajectory's last answer, by the verifier named `name` (see `resolve_verifier`)."""

    def __init__(self, name: str) -> None:
        self.verifier = resolve_verifier(name)
        self.component = name.rpartition(".")[2]  # a custom function is logged under its own name

    def compute_reward(
        self, trajectory: Trajectory, turn: Message, context: Mapping[str, Any]
    ) -> RewardResult:
        """The verifier's value, which is also the only component; 0 for an empty answer."""
        answer = trajectory.answer
        value = float(self.verifier(answer, trajectory.problem.answer)) if answer.strip() else 0.0
        return RewardResult(value, {self.component: value})


def gold_number(gold: str) -> Decimal:
    """`gold` as a number. Raises UserError if it is not exactly one."""
    text = gold.strip().rstrip(".%")
    single = NUMBER.fullmatch(text) is not None
    require(single, f"gold answer {gold.strip()!r}: is not a single number; use another task.verifier")
    return _decimal(text)


def gold_pattern(gold: str) -> re.Pattern[str]:
    """The compiled pattern. Raises UserError if it does not compile."""
    try:
        return re.compile(gold)
    except re.error as error:
        raise UserError(f"gold answer {gold!r}: is not a regular expression ({error}); correct it") from error


def gold_letter(gold: str) -> str:
    """The letter of "B" or "(B)". Raises UserError if there is no single A-Z."""
    letter = gold.strip().strip("()")
    single = re.fullmatch("[A-Z]", letter) is not None
    require(single, f"gold answer {gold!r}: is not a single letter A-Z; write it like B")
    return letter


def _decimal(text: str) -> Decimal:
    return Decimal(text.replace(",", "").replace("$", "").replace("\u2212", "-"))
