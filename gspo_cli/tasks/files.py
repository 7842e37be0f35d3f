"""Shared code of tasks over files: JSON lines, whose errors name the line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from gspo_cli.config.checks import require, require_positive
from gspo_cli.config.marks import PATH, Marks
from gspo_cli.errors import UserError
from gspo_cli.tasks.questions import QuestionTask
from gspo_cli.tasks.splits import Split, split
from gspo_cli.types import Demonstration, Message, Problem

ROLES = ("system", "user", "assistant", "tool")


def read_jsonl(path: str, key: str) -> list[tuple[int, dict[str, Any]]]:
    """Line number and object of every line that is not blank.

    Raises UserError: naming `key` where the file cannot be used, file and line where a line cannot."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = [(number, line) for number, line in enumerate(file, 1) if line.strip()]
    except OSError as error:
        raise UserError(f"{key}={path}: cannot be read ({error.strerror}); give an existing file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{key}={path}: is not UTF-8 text ({error.reason}); convert the file") from error
    require(bool(lines), f"{key}={path}: is empty; give a file with one JSON object on each line")
    return [(number, _object(f"{path}:{number}", line)) for number, line in lines]


def _object(where: str, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: is not JSON ({error}); correct the line") from error
    require(isinstance(row, dict), f"{where}: is not a JSON object; write {{...}} on each line")
    return row


def text_field(row: dict[str, Any], name: str, where: str) -> str:
    """A field with text. Raises UserError if it is absent, blank or something else."""
    value = row.get(name)
    if not (isinstance(value, str) and value.strip()):
        raise UserError(f'{where}: needs "{name}", a non-empty string')
    return value


def prompt_messages(row: dict[str, Any], where: str) -> tuple[Message, ...]:
    """The conversation of a row with "prompt" (one user message) or "messages". Raises UserError."""
    single = "prompt" in row
    require(single != ("messages" in row), f'{where}: needs "prompt" or "messages", and not both')
    if single:
        return (Message("user", text_field(row, "prompt", where)),)
    messages = row["messages"]
    require(
        isinstance(messages, list) and messages != [],
        f'{where}: "messages" must be a non-empty list of messages',
    )
    return tuple(_message(message, where) for message in messages)


def _message(message: Any, where: str) -> Message:
    usable = isinstance(message, dict) and isinstance(message.get("content"), str)
    require(
        usable and message.get("role") in ROLES,
        f'{where}: has an invalid message; write {{"role": one of {", ".join(ROLES)}, "content": text}}',
    )
    return Message(message["role"], message["content"])


def read_demonstrations(path: str) -> list[Demonstration]:
    """Conversations of a file with lines {"messages": [...]} or {"prompt": ..., "answer": ...}.

    Raises UserError, with file and line, on a bad line or one without an assistant message."""
    demonstrations = []
    for number, row in read_jsonl(path, "model.cold_start.demonstrations"):
        where = f"{path}:{number}"
        messages = prompt_messages(row, where)
        if "prompt" in row:
            messages += (Message("assistant", text_field(row, "answer", where)),)
        spoken = any(message.role == "assistant" and message.content.strip() for message in messages)
        require(spoken, f"{where}: has no assistant message to train on; add one")
        demonstrations.append(Demonstration(messages))
    return demonstrations


@dataclass
class FileTask(QuestionTask):
    """Base of tasks over a JSON lines file; without `heldout_path`, `heldout` problems of `path` are held
    out."""

    TRUST: ClassVar[Marks] = {"path": PATH, "heldout_path": PATH}

    path: str | None = None
    """JSON lines file of training problems; required."""
    heldout_path: str | None = None
    """File of held-out problems; null splits `heldout` problems off `path`."""
    heldout: int = 200
    """Problems split off `path`, unused where heldout_path is given; above 0."""

    def __post_init__(self) -> None:
        require(self.path is not None, "task.path: is needed; give a JSON lines file with task.path=<file>")
        require_positive("task", self, "heldout")
        super().__post_init__()

    def problem(self, row: dict[str, Any], where: str) -> Problem:
        """The problem of one line; `where` is its file and line number, for errors. Raises UserError."""
        raise NotImplementedError

    @property
    def answer_form(self) -> str:
        """None, unless a task says how to answer."""
        return ""

    def split(self) -> Split:
        """Problems of `path` that are not held out, and those of `heldout_path`, or held out of `path`.
        Raises UserError, with file and line, on a bad file."""
        held = self._read(self.heldout_path, "task.heldout_path") if self.heldout_path else self.heldout
        problems = self._read(str(self.path), "task.path")
        return split(problems, held, lambda problem: repr(problem.messages))

    def demonstrations(self) -> Sequence[Demonstration]:
        """None: a gold answer alone need not be a good example of the whole answer."""
        return []

    @property
    def duplicates_dropped(self) -> int:
        """Lines of `path` that are not trained on because the same conversation is held out."""
        return self._split.dropped

    def notes(self) -> Sequence[str]:
        """How many training problems are left out."""
        dropped = self.duplicates_dropped
        return [f"{dropped} training problems are left out: they are also held out"] if dropped else []

    def _read(self, path: str, key: str) -> list[Problem]:
        return [self.problem(row, f"{path}:{number}") for number, row in read_jsonl(path, key)]
