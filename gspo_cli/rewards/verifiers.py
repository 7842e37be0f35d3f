"""Verifiers: pure functions `(answer_text, gold) -> 0.0 or 1.0`, and the reward that applies one.

An empty answer scores 0. Answers are untrusted text: nothing here executes them, and a verifier accepts one
answer, not a list of guesses.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any

import regex as patterns  # matches as `re` does, and can be given a time limit

from gspo_cli.config.checks import require
from gspo_cli.config.compose import locate
from gspo_cli.config.extras import install
from gspo_cli.errors import UserError
from gspo_cli.rewards.answers import (
    answers,
    marked_answers,
    phrased_answers,
    stated_answers,
    unwrapped,
)
from gspo_cli.rewards.base import RewardFunction
from gspo_cli.rewards.json_answers import conforms, gold_json, is_schema, json_values, same_json
from gspo_cli.rewards.maths_worker import equal_mathematics
from gspo_cli.tasks.tools.written import without_reasoning
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
# "option B is correct", "(B) is the right answer"
CALLED_RIGHT = re.compile(r"\bis\s+(?:the\s+)?(?:correct|right|best|answer)\b")
SUBJECT = re.compile(rf"{CHOICES}[^\w.;]*$")
# "B", "(B)", "B. Paris", "**B**" at the start of a line; "\text{B}" in a box
LEADING = re.compile(rf"\W*(?:text\w*\{{\W*)?{CHOICES}(?=\s*(?:$|[).:,\]}}*-]))")
LONE = re.compile(r"\W*[A-Z]\W*")
# "2 or 3", "$2$ or $3$": the second is no single answer
EITHER = re.compile(r"[0-9)\]}$%*]\W{0,5}\bor\b\W{0,5}[0-9]")
FRACTION = re.compile(r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}")
EXPONENT = re.compile(r"([A-Za-z])\^\{?[0-9]+\}?")  # of a unit, such as cm^2
THOUSANDS = re.compile(r"(?<=[0-9])(?:\{,\}|\\[,!])(?=[0-9]{3})")  # LaTeX: 1{,}200
TAIL = 2_000  # characters at the end of a text, which have the answer where nothing states it
LONGEST = 1_000  # characters of a number or formula
SECONDS = 1.0  # for one pattern


def exact(answer_text: str, gold: str) -> float:
    r"""1 where both texts are equal, apart from case, whitespace, and markdown, quotes, `$`, `\boxed{}` or a
    final period around them; punctuation inside and articles do matter. A text that states its answer, such
    as "The answer is Paris.", is compared by what it states (`stated_answers`)."""
    return _every(answer_text, lambda answer: _normal(answer) == _normal(unwrapped(gold)))


def numeric(answer_text: str, gold: str) -> float:
    """1 where the last number of the text, or of what it states as its answer, equals `gold` exactly; `, $ %`
    and a final dot are dropped, and 1/2 equals 0.5. "5 or 6" is no answer.

    Units are not converted: "18%" equals 18, not 0.18. Raises UserError if `gold` is not one number.
    """
    expected, text = Fraction(gold_number(gold)), without_reasoning(answer_text)
    stated = {_last_number(answer) for answer in stated_answers(text)} - {None}
    return float((stated or {_last_number(text)}) == {expected})


def regex(answer_text: str, gold: str) -> float:
    """1 where the pattern `gold` matches the whole text after any reasoning, or what it states as its answer.
    A match that takes longer than a second is none. Raises UserError on a bad pattern."""
    pattern, text = gold_pattern(gold), without_reasoning(answer_text)
    return float(_matches(pattern, text) or _every(text, lambda answer: _matches(pattern, answer)) == 1)


def choice(answer_text: str, gold: str) -> float:
    """1 where the capital letter given as the answer is `gold`; giving different letters is wrong.

    Phrases such as "Answer: B", "the answer is (B)" or "option B is correct" decide, wherever they are;
    without one the text has to start or end with its letter: "B", "(B)", "B. Paris". Raises UserError if
    `gold` is not one letter A-Z.
    """
    expected, text = gold_letter(gold), without_reasoning(answer_text)
    marked = marked_answers(text)
    given = STATED.findall(text) + _called_right(text) if not marked else []
    if not given:
        lines = marked or text.splitlines()
        if not marked and lines and LONE.fullmatch(lines[-1]):
            lines = lines[-1:]
        given = [found[1] for line in lines if (found := LEADING.match(line))]
    letters = {letter for group in given for letter in re.findall(r"\b[A-Z]\b", group)}
    return float(letters == {expected})


def maths(answer_text: str, gold: str) -> float:
    r"""1 where the library math-verify (Apache-2.0, extra `math`) finds both equal: what the text has in
    `\boxed{}` or `<answer>`, else the last mathematics at its end.

    Compared in a worker process, with 0 for what takes too long. Raises UserError if `gold` cannot be
    parsed.
    """
    text = without_reasoning(answer_text)
    marked = marked_answers(text)
    candidates = [f"\\boxed{{{answer}}}" for answer in marked] or [text[-TAIL:]]
    either = not marked and any(
        EITHER.search(answer) for answer in phrased_answers(text[-TAIL:]) or [text[-TAIL:]]
    )
    usable = all(len(candidate) <= TAIL for candidate in candidates) and (not either or " or " in gold)
    equal = [equal_mathematics(candidate if usable else "", gold) for candidate in candidates]
    if None in equal:
        raise UserError(f"gold answer {gold!r}: is not valid mathematics; write a number, or LaTeX as $...$")
    return float(all(equal))


def json(answer_text: str, gold: str) -> float:
    """1 where the JSON of the text, which may stand in a code fence or in prose, equals `gold`: the same
    fields and no others, in any order.

    A `gold` with the key "$schema" is a JSON schema, to which the JSON has to conform. Raises UserError if
    `gold` is not JSON.
    """
    expected, text = gold_json(gold), without_reasoning(answer_text)
    values = [value for answer in marked_answers(text) or [text] for value in json_values(answer)]
    right = conforms if is_schema(expected) else same_json
    return float(values != [] and all(right(value, expected) for value in values))


VERIFIERS: dict[str, Verifier] = {
    "exact": exact,
    "numeric": numeric,
    "regex": regex,
    "choice": choice,
    "maths": maths,
    "json": json,
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
    checks: dict[str, Callable[[str], Any]] = {
        "numeric": gold_number,
        "regex": gold_pattern,
        "choice": gold_letter,
        "json": gold_json,
    }
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


def gold_pattern(gold: str) -> patterns.Pattern[str]:
    """The compiled pattern. Raises UserError if it does not compile."""
    try:
        return patterns.compile(gold)
    except (patterns.error, RecursionError, OverflowError) as error:
        raise UserError(f"gold answer {gold!r}: is not a regular expression ({error}); correct it") from error


def gold_letter(gold: str) -> str:
    """The letter of "B" or "(B)". Raises UserError if there is no single A-Z."""
    letter = gold.strip().strip("()")
    single = re.fullmatch("[A-Z]", letter) is not None
    require(single, f"gold answer {gold!r}: is not a single letter A-Z; write it like B")
    return letter


def _every(answer_text: str, right: Callable[[str], bool]) -> float:
    """1 where the text has an answer, and all that it states are right."""
    given = answers(answer_text)
    return float(given != [] and all(map(right, given)))


def _normal(answer: str) -> str:
    return " ".join(answer.casefold().split())


def _matches(pattern: patterns.Pattern[str], text: str) -> bool:
    try:
        return text != "" and pattern.fullmatch(text, timeout=SECONDS) is not None
    except TimeoutError:
        return False


def _called_right(text: str) -> list[str]:
    """Letters right before "is correct" and the like."""
    before = [text[max(0, found.start() - 40) : found.start()] for found in CALLED_RIGHT.finditer(text)]
    return [letters for subject in before for letters in SUBJECT.findall(subject)]


def _last_number(text: str) -> Fraction | None:
    """The last number of a text, or the fraction that it ends; None without a number, and for "2 or 3"."""
    text = FRACTION.sub(r"\1/\2", THOUSANDS.sub(",", EXPONENT.sub(r"\1", text)))
    found = list(NUMBER.finditer(text))
    if not found or len(found[-1][0]) > LONGEST:
        return None
    value = Fraction(_decimal(found[-1][0]))
    if len(found) == 1:
        return value
    before = found[-2]
    between = text[before.end() : found[-1].start()]
    if EITHER.search(text, before.start()):
        return None
    if between.strip() == "/" and value and len(before[0]) <= LONGEST:
        return Fraction(_decimal(before[0])) / value
    return value


def _decimal(text: str) -> Decimal:
    return Decimal(text.replace(",", "").replace("$", "").replace("\u2212", "-"))
