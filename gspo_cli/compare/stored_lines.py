"""Reads the logs of a run that is compared. Every line is checked where it is read: what it holds is of the
kind, and within the bounds, that a run writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gspo_cli.config.checks import LARGEST
from gspo_cli.console.words import clean
from gspo_cli.diagnosis.history import Record
from gspo_cli.errors import UserError
from gspo_cli.plain_files import bounded_json, is_bounded, require_plain
from gspo_cli.run.logs import has_iteration

RESTORE = "restore the file, or repeat the run"
Test = Callable[[Any], bool]


def lines(path: Path) -> list[dict[str, Any]]:
    """The records of a log. Raises UserError if the log is missing or a line is not as a run writes it."""
    require_plain(path)
    try:
        texts = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError as error:
        raise UserError(f"has no {path.name}; the run is incomplete") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path.name} cannot be read ({error})") from error
    records = []
    for place, text in enumerate(texts, start=1):
        if not text and place == len(texts):
            continue
        try:
            record = bounded_json(text)
        except ValueError as error:
            raise UserError(f"line {place} of {path.name} is damaged; {RESTORE}") from error
        if not has_iteration(record):
            raise UserError(f"line {place} of {path.name} has no iteration; {RESTORE}")
        key = DAMAGE[path.name](record)
        if key:
            raise UserError(f"line {place} of {path.name} is damaged ({clean(key[:80])}); {RESTORE}")
        records.append(record)
    return records


def is_text(value: Any) -> bool:
    """A text."""
    return isinstance(value, str)


def is_count(value: Any) -> bool:
    """A whole number that is not negative."""
    return type(value) is int and value >= 0


def is_number(value: Any) -> bool:
    """A number, or null where it was not measured."""
    return value is None or is_bounded(value)


def is_share(value: Any) -> bool:
    """A number between 0 and 1, or null."""
    return value is None or (is_bounded(value) and 0 <= value <= 1)


def _is_result(value: Any) -> bool:
    """Whether a problem was solved; null where its conversation was excluded."""
    return value is None or isinstance(value, bool)


def _is_tally(value: Any) -> bool:
    """How many of how many sampled answers solve a problem."""
    pair = isinstance(value, list) and len(value) == 2 and all(map(is_count, value))
    return pair and value[0] <= value[1]


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and is_text(value.get("role")) and is_text(value.get("content"))


def _are(test: Test) -> Test:
    """The test of a list by the test of its items."""
    return lambda value: isinstance(value, list) and all(map(test, value))


CONVERSATION: Mapping[str, Test] = {  # all must be there
    "problem_id": is_text,
    "messages": _are(_is_message),
    "expected": lambda value: is_text(value) or isinstance(value, bool) or is_number(value),
    "reward": is_number,
    "components": lambda value: isinstance(value, dict) and all(map(is_number, value.values())),
    "finish_reason": is_text,
    "excluded": lambda value: value is None or is_text(value),
}
EVALUATION: Mapping[str, Test] = {  # all other keys have numbers
    "score": is_share,
    "pass@": is_share,
    "num_problems": lambda value: is_count(value) and value <= LARGEST,
    "excluded": is_count,
}
HELDOUT: Mapping[str, Test] = {  # all must be there, beside conversations
    "problems": _are(is_text),
    "solved": _are(_is_result),
}


def _of_metrics(record: Record) -> str:
    """The first key whose value no run writes; empty if there is none. `num_tokens` must be there."""
    if not is_count(record.get("num_tokens")):
        return "num_tokens"
    return next((key for key, value in record.items() if not is_number(value)), "")


def _of_evals(record: Record) -> str:
    """As `_of_metrics`. Where there is a score, there are problems; no more are excluded than there are."""
    for key, value in record.items():
        if not EVALUATION.get("pass@" if key.startswith("pass@") else key, is_number)(value):
            return key
    if record.get("excluded", 0) > record.get("num_problems", LARGEST):
        return "excluded"
    return "num_problems" if record.get("num_problems") == 0 and record.get("score") is not None else ""


def _of_heldout(record: Record) -> str:
    """As `_of_metrics`. Results are one for each problem."""
    wrong = _first_wrong(record, HELDOUT)
    if wrong:
        return wrong
    problems, sampled = len(record["problems"]), record.get("sampled")
    if len(record["solved"]) != problems:
        return "solved"
    if sampled is not None and not (_are(_is_tally)(sampled) and len(sampled) == problems):
        return "sampled"
    conversations = record.get("conversations")
    if not isinstance(conversations, list):
        return "conversations"
    for place, each in enumerate(conversations):
        if not isinstance(each, dict):
            return f"conversations[{place}]"
        wrong = _first_wrong(each, CONVERSATION)
        if not wrong and not is_count(each.get("turns", 0)):  # older runs do not have it
            wrong = "turns"
        if wrong:
            return f"conversations[{place}].{wrong}"
    return ""


def _first_wrong(record: Record, tests: Mapping[str, Test]) -> str:
    return next((key for key, test in tests.items() if key not in record or not test(record[key])), "")


DAMAGE: Mapping[str, Callable[[Record], str]] = {
    "metrics.jsonl": _of_metrics,
    "evals.jsonl": _of_evals,
    "heldout.jsonl": _of_heldout,
}
