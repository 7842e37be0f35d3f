"""Verifiers: pure functions `(answer_text, gold) -> 0.0 or 1.0`, and the reward that applies one.

An empty answer scores 0. Answers are untrusted text: nothing here executes them, and a verifier accepts one
answer, not a list of guesses.
"""

from __future__ import annotations

import importlib.util
import inspect
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any
from unicodedata import normalize

import regex as patterns  # matches as `re` does, and can be given a time limit

from gspo_cli.config.checks import require
from gspo_cli.config.compose import locate
from gspo_cli.config.extras import install
from gspo_cli.errors import UserError
from gspo_cli.rewards.answers import (
    HEDGE,
    SENTENCE_END,
    Statement,
    affirmed,
    marked_answers,
    readings,
    statements,
    unwrapped,
)
from gspo_cli.rewards.base import RewardFunction
from gspo_cli.rewards.choices import given_letters, leading_letters
from gspo_cli.rewards.json_answers import conforms, gold_json, is_schema, same_json, stated_json
from gspo_cli.rewards.maths_worker import equal_mathematics, is_formula, squeezed
from gspo_cli.rewards.numbers import gold_number, last_number, whole_number
from gspo_cli.tasks.tools.written import without_reasoning
from gspo_cli.types import Message, RewardResult, Trajectory

Verifier = Callable[[str, str], float]

TAIL = 2_000  # characters at the end of a text, which have the answer where nothing states it
SECONDS = 1.0  # for one pattern
# "5 or 6", "$5$ or maybe $6$", "5; 6": two values
EITHER = patterns.compile(
    rf"(?i)[0-9)\]}}$%*](?:\W{{0,5}}(?:\w{{1,20}}\W{{1,5}}){{0,2}}?{HEDGE}\W{{0,5}}(?:[a-z]{{2,20}}\W{{1,5}}){{0,3}}|\s?;\W{{0,4}})[0-9]"
)
MATHEMATICAL = patterns.compile(r"[0-9$\\]")
SPELLED = patterns.compile(r"[\s~eE]|\\[,!: ]")  # numbers that the library does not read: 3 1/2, 1\,200, 1e5
UNREACHED = "is not accepted as an answer by task.verifier="
COMPOSED = 10_000  # characters of a text whose accents are composed, which takes quadratic time
QUOTES = str.maketrans("\u2018\u2019\u201c\u201d", "''\"\"")


def exact(answer_text: str, gold: str) -> float:
    r"""1 where both texts are equal, apart from case, whitespace, and markdown, quotes, `$`, `\boxed{}` or a
    final period around them; punctuation inside and articles do matter. A text that states its answer, such
    as "The answer is Paris.", is compared by what it states (`readings`)."""
    whole = unwrapped(without_reasoning(answer_text))
    same = whole != "" and _same_text(whole, unwrapped(gold))
    return float(same or _every(answer_text, lambda answer: _same_text(answer, unwrapped(gold))))


def numeric(answer_text: str, gold: str) -> float:
    """1 where the last number of the text, or of what it states as its answer, equals `gold` exactly, however
    it is written (`numbers`): 1,200 and 1 200, 1/2 and 3 1/2, 10^3 and 1e3. What a "not" denies is not read.
    "5 or 6" is no answer.

    Units are not converted: "18%" equals 18, not 0.18. Raises UserError if `gold` is not one number.
    """
    expected, text = gold_number(gold), without_reasoning(answer_text)
    marked = marked_answers(text)
    text = text if marked else affirmed(text)
    stated = map(last_number, marked) if marked else map(_said_number, statements(text))
    found = set[Fraction | None]().union(*stated)
    return float((found or last_number(text)) == {expected})


def regex(answer_text: str, gold: str) -> float:
    """1 where the pattern `gold` matches the whole text after any reasoning, or what it states as its answer.
    A match that takes longer than a second is none. Raises UserError on a bad pattern."""
    pattern, text = gold_pattern(gold), without_reasoning(answer_text)
    return float(_matches(pattern, text) or _every(text, lambda answer: _matches(pattern, answer)) == 1)


def choice(answer_text: str, gold: str) -> float:
    """1 where the capital letter given as the answer is `gold`; giving different letters is wrong.

    Phrases such as "Answer: B", "the answer is (B)" or "option B is correct" decide, wherever they are;
    without one the text has to start or end with its letter: "B", "(B)", "B. Paris" (`choices`). Raises
    UserError if `gold` is not one letter A-Z.
    """
    expected, text = gold_letter(gold), without_reasoning(answer_text)
    marked = marked_answers(text)
    letters = set().union(*map(leading_letters, marked)) if marked else given_letters(affirmed(text))
    return float(letters == {expected})


def maths(answer_text: str, gold: str) -> float:
    r"""1 where the library math-verify (Apache-2.0, extra `math`) finds both equal: what the text has in
    `\boxed{}` or `<answer>`, else what it states after a phrase, else the last mathematics at its end. Equal
    texts and equal numbers (`numbers`) are right too; 50% equals 50 and 0.5.

    Compared in a worker process, with 0 for what takes too long. Raises UserError if `gold` cannot be
    parsed.
    """
    text = without_reasoning(answer_text)
    marked = marked_answers(text)
    if text != "" and squeezed(text) == squeezed(gold):
        return 1.0
    candidates = marked or _mathematics(affirmed(text), gold)
    usable = all(len(candidate) <= TAIL for candidate in candidates)
    for candidate in dict.fromkeys(candidates if usable else [""]):
        equal = _same_value(candidate, gold, marked != [])
        if equal is None:
            raise UserError(
                f"gold answer {gold!r}: is not valid mathematics; write a number, or LaTeX as $...$"
            )
        if not equal:
            return 0.0
    return 1.0


def json(answer_text: str, gold: str) -> float:
    """1 where the JSON of the text, which may stand in a code fence or in prose, equals `gold`: the same
    fields and no others, in any order.

    A `gold` with the key "$schema" is a JSON schema, to which the JSON has to conform. Raises UserError if
    `gold` is not JSON.
    """
    expected, values = gold_json(gold), stated_json(answer_text)
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
        require(
            _takes_two_texts(verifier),
            f"task.verifier={name}: does not take two arguments; give (answer_text, gold) -> float",
        )
        return verifier
    choices = ", ".join(VERIFIERS)
    require(name in VERIFIERS, f"task.verifier={name}: choose one of {choices}, or python:module.function")
    missing = name == "maths" and importlib.util.find_spec("math_verify") is None
    require(not missing, f"task.verifier=maths: needs math-verify; {install('math')}")
    return VERIFIERS[name]


def _takes_two_texts(verifier: Callable[..., Any]) -> bool:
    """Whether a function can be called with an answer and a gold, as far as its signature is known."""
    try:
        inspect.signature(verifier).bind("", "")
    except TypeError:
        return False
    except ValueError:  # of a function in C without a signature
        return True
    return True


def check_gold(name: str, gold: str, where: str) -> None:
    """Raise UserError naming `where` if verifier `name` cannot use `gold`, or does not accept it as an answer
    (custom functions are not tried). For the loading of tasks."""
    checks: dict[str, Callable[[str], Any]] = {
        "numeric": gold_number,
        "regex": gold_pattern,
        "choice": gold_letter,
        "json": gold_json,
    }
    try:
        checks.get(name, str)(gold)
        answerable = name == "regex" or (name == "json" and is_schema(gold_json(gold)))
        if name in VERIFIERS and not answerable and VERIFIERS[name](_shown(name, gold), gold) != 1:
            raise UserError(f"gold answer {gold!r:.80}: {UNREACHED}{name}; write the answer alone")
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _shown(name: str, gold: str) -> str:
    """The answer that a model is shown for a gold: the letter alone, mathematics in a box."""
    return gold_letter(gold) if name == "choice" else gold


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
    """1 where the text has an answer, and all that it states can be taken for a right one."""
    given = readings(answer_text)
    return float(given != [] and all(any(map(right, each)) for each in given))


def _normal(answer: str) -> str:
    return " ".join(answer.translate(QUOTES).casefold().split())


def _same_text(answer: str, gold: str) -> bool:
    """Whether both are equal, apart from case, whitespace, curly quotes and how accents are composed."""
    first, second = _normal(answer), _normal(gold)
    if first == second or max(len(first), len(second)) > COMPOSED:
        return first == second
    return normalize("NFC", first) == normalize("NFC", second)


def _matches(pattern: patterns.Pattern[str], text: str) -> bool:
    try:
        return text != "" and pattern.fullmatch(text, timeout=SECONDS) is not None
    except TimeoutError:
        return False


def _said_number(statement: Statement) -> set[Fraction | None]:
    """The number of a statement's first sentence that has one; else of its line, and of the line's beginning
    where this is another one, as in "18. Or 19."."""
    found = (number for sentence in statement.sentences if (number := last_number(sentence)))
    beginning = SENTENCE_END.split(statement.line, maxsplit=1)[0]
    return next(found, None) or last_number(statement.line) | last_number(beginning)


def _mathematics(text: str, gold: str) -> list[str]:
    """Where nothing is marked: what is stated after phrases, where that has mathematics, else the end of the
    text. Two values in prose, as in "5 or maybe 6", are no answer."""
    stated = [next(iter(each.sentences), each.line).rstrip(" ,;") for each in statements(text)]
    found = [each for each in stated if MATHEMATICAL.search(each) or is_formula(each)]
    found = found or [unwrapped(text[-TAIL:])]
    return [""] if " or " not in gold and any(map(EITHER.search, found)) else found


def _same_value(answer: str, gold: str, marked: bool) -> bool | None:
    """Whether both are one text, one number, or equal for the library; None for an unusable gold."""
    if squeezed(answer) == squeezed(gold):
        return answer != ""
    number, expected = whole_number(answer), whole_number(gold)
    if number is not None and expected is not None:
        pair = ((answer, number), (gold, expected))
        shares = [each / 100 if text.rstrip(". ").endswith("%") else each for text, each in pair]
        if number == expected or shares[0] == shares[1]:
            return True
    plain = answer if number is None or not SPELLED.search(answer) else str(number)
    gold = gold if expected is None or not SPELLED.search(gold) else str(expected)
    return equal_mathematics(f"\\boxed{{{plain}}}" if marked or is_formula(plain) else plain, gold)
