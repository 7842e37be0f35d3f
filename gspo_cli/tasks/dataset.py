"""Data with named columns, of files or of the hub, scored by a verifier."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from gspo_cli.config.checks import require
from gspo_cli.config.marks import PLAIN, Marks
from gspo_cli.errors import UserError
from gspo_cli.rewards.verifiers import check_gold
from gspo_cli.tasks.files import ROLES, content_of
from gspo_cli.tasks.jsonl import JsonlTask, as_json
from gspo_cli.tasks.problem_index import UnusableRow
from gspo_cli.tasks.row_templates import RowFilter, RowTemplate
from gspo_cli.tasks.tools.written import without_reasoning
from gspo_cli.types import Message, Problem

SPEAKERS = {"human": "user", "gpt": "assistant", "model": "assistant", "chatgpt": "assistant"}
LEFT_OUT = "correct it, or leave such rows out with task.filter"


@dataclass
class DatasetTask(JsonlTask):
    """Rows of files or of the hub: a prompt and an answer by the names of their columns, or a conversation,
    whose last assistant turn is the reference. A row that has neither is left out and counted."""

    TRUST: ClassVar[Marks] = dict.fromkeys(("prompt", "answer", "messages", "template", "filter"), PLAIN)

    prompt: str | None = None
    """Column of the question; null means prompt, unless messages or template is given."""
    answer: str | None = None
    """Column of the reference; null means answer, or with messages the last assistant turn."""
    messages: str | None = None
    """Column of a conversation: a list of {role, content}, or of {from, value}."""
    template: str | None = None
    """Jinja over the columns that writes the question, in a sandbox: "{{question}} Think first."."""
    filter: str | None = None
    """Jinja expression over the columns, in a sandbox; rows for which it does not hold are left out, as with
    "level < 3"."""

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [name for name in ("prompt", "messages", "template") if getattr(self, name) is not None]
        require(
            len(given) < 2,
            f"task.{' and task.'.join(given)}: each says where the question is; give one of them",
        )
        _ = self._template, self._filter  # are checked

    @cached_property
    def _template(self) -> RowTemplate | None:
        return None if self.template is None else RowTemplate("task.template", self.template)

    @cached_property
    def _filter(self) -> RowFilter | None:
        return None if self.filter is None else RowFilter("task.filter", self.filter)

    def keeps(self, row: dict[str, Any], where: str) -> bool:
        """Whether `filter` holds. Raises UserError where it does not suit the row."""
        return self._filter is None or self._filter(row, where)

    def problem(self, row: dict[str, Any], where: str) -> Problem:
        """The question and the reference of one row. Raises UnusableRow where it has none, UserError where
        one is empty or not a number."""
        opening, reference = self.opening(row, where)
        if self.messages is None or self.answer is not None:
            reference = self.reference(row, where)
        if reference is None:
            raise UnusableRow(f"{where}: its conversation has no assistant turn after another one")
        self.check_reference(reference, where)
        return Problem(id=row_name(row, where), messages=opening, answer=reference)

    def opening(self, row: dict[str, Any], where: str) -> tuple[tuple[Message, ...], str | None]:
        """The messages before the agent's turn; of a conversation also its last assistant turn, if it has
        one. Raises as `problem` does."""
        if self.messages is None:
            return (Message("user", self._question(row, where)),), None
        return _opening(_turns(_column(row, self.messages, where), where), where)

    def reference(self, row: dict[str, Any], where: str) -> str:
        """The answer of a row as text. Raises as `problem` does."""
        value = _column(row, self.answer or "answer", where)
        reads = self.verifier.startswith(("json", "python:"))
        if isinstance(value, dict | list) and not reads:
            kind = "an object" if isinstance(value, dict) else "a list"
            raise UnusableRow(f"{where}: its answer is {kind}, which only task.verifier=json reads")
        return _answer(value, where)

    def check_reference(self, reference: str, where: str) -> None:
        """Raise UnusableRow where the verifier takes no such reference."""
        try:
            check_gold(self.verifier, reference, where)
        except UserError as error:
            raise UnusableRow(str(error)) from error

    def _question(self, row: dict[str, Any], where: str) -> str:
        if self._template is not None:
            value: Any = self._template(row, where)
        else:
            value = _column(row, self.prompt or "prompt", where)
        if not isinstance(value, str):
            raise UnusableRow(f"{where}: its prompt is {value!r:.60}, not a text")
        require(value.strip() != "", f"{where}: its prompt is empty; {LEFT_OUT}")
        return value


def row_name(row: Mapping[str, Any], where: str) -> str:
    """What the problem of a row is called: its id, or else its file and line."""
    name = row.get("id")
    named = isinstance(name, str | int) and not isinstance(name, bool)
    return str(name) if named else Path(where).name


def _column(row: Mapping[str, Any], name: str, where: str) -> Any:
    if row.get(name) is None:
        absent = (
            f'has no column "{name}" but {", ".join(map(str, row))}'
            if name not in row
            else f'has no "{name}"'
        )
        raise UnusableRow(f"{where}: {absent}")
    return row[name]


def _answer(value: Any, where: str) -> str:
    """An answer as text. Raises UserError if it is empty or not finite, UnusableRow if it is of another
    type."""
    if isinstance(value, dict | list):
        return as_json(value, where)
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
        raise UnusableRow(f"{where}: its answer is {value!r:.60}, neither a text nor a number")
    if not isinstance(value, str | int):
        require(math.isfinite(value), f"{where}: its answer is {value}, not a finite number; {LEFT_OUT}")
    require(str(value).strip() != "", f"{where}: its answer is empty; {LEFT_OUT}")
    return str(value)


def _turns(value: Any, where: str) -> list[Message]:
    """The messages of a conversation. Raises UserError if one is empty, UnusableRow if it is not a list of
    them."""
    if not isinstance(value, list) or not value:
        raise UnusableRow(f"{where}: its conversation is {value!r:.60}, not a list of messages")
    turns = []
    for place, message in enumerate(value, 1):
        fields = message if isinstance(message, Mapping) else {}
        speaker = fields.get("role", fields.get("from"))
        role = SPEAKERS.get(speaker, speaker) if isinstance(speaker, str) else None
        content = content_of({**fields, "role": role})
        if role not in ROLES or content is None:
            raise UnusableRow(
                f"{where}: its message {place} is {message!r:.60}, without a known role and a text"
            )
        require(content.strip() != "", f"{where}: its message {place} is empty; {LEFT_OUT}")
        turns.append(Message(role, content))
    return turns


def _opening(turns: list[Message], where: str) -> tuple[tuple[Message, ...], str | None]:
    """The messages before the last assistant turn, and that turn after its reasoning; all messages where none
    follows."""
    last = max((place for place, turn in enumerate(turns) if turn.role == "assistant"), default=len(turns))
    reference: str | None
    opening, reference = tuple(turns[:last]), None
    if last < len(turns):
        reference = without_reasoning(turns[last].content)
        if not reference:
            raise UnusableRow(f"{where}: its last assistant turn is nothing but reasoning")
    if not opening or opening[-1].role not in ("user", "tool"):
        raise UnusableRow(f"{where}: its conversation has no user or tool message before the agent's turn")
    return opening, reference
