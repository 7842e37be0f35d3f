"""Shared code of tasks over files of rows, whose errors name file and line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

from gspo_cli.config.checks import require, require_positive
from gspo_cli.config.marks import PATH, PLAIN, Marks
from gspo_cli.errors import UserError
from gspo_cli.tasks.json_rows import JsonFile
from gspo_cli.tasks.problem_index import MANY, Index, Made, Problems, index_of, split_rows
from gspo_cli.tasks.questions import QuestionTask
from gspo_cli.tasks.sources import Rows, open_rows
from gspo_cli.tasks.splits import Split
from gspo_cli.tasks.tools.written import UnreadableError, requested_call
from gspo_cli.types import AgentTurn, Demonstration, Message, Problem

ROLES = ("system", "user", "assistant", "tool")
HELDOUT = {"heldout_path", "heldout_split", "heldout_fraction", "heldout"}
TEXTS = ("path", "heldout_path", "subset", "split", "revision", "heldout_split")
SOURCE = {"path", "subset", "split", "revision", *HELDOUT}  # has no part in how a row becomes a problem


def read_jsonl(path: str, key: str) -> list[tuple[int, dict[str, Any]]]:
    """Line number (of an array: place) and object of every row of a JSON file.

    Raises UserError: naming `key` where the file cannot be used, file and line where a row cannot."""
    file = JsonFile(path, key)
    return list(zip(file.numbers, file, strict=True))


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
    return message_list(row["messages"], "messages", where)


def message_list(value: Any, name: str, where: str) -> tuple[Message, ...]:
    """The messages of the field `name`. Raises UserError if one is empty or none."""
    require(
        isinstance(value, list) and value != [], f'{where}: "{name}" must be a non-empty list of messages'
    )
    return tuple(_message(message, where) for message in value)


def _message(message: Any, where: str) -> Message:
    content = content_of(message) if isinstance(message, dict) else None
    require(
        content is not None and message.get("role") in ROLES,
        f'{where}: has an invalid message; write {{"role": one of {", ".join(ROLES)}, "content": text}}, an '
        'assistant\'s also with "tool_calls"',
    )
    require(str(content).strip() != "", f"{where}: has an empty {message['role']} message; fill it")
    return Message(message["role"], content or "")


def content_of(message: Mapping[str, Any]) -> str | None:
    """What a message says: its text (`content` or `value`), with an assistant's `tool_calls` and
    `reasoning_content` an AgentTurn. None if it has neither, or calls that are not an object of a name and
    arguments each."""
    text = message.get("content", message.get("value"))
    calls, reasoning = message.get("tool_calls"), message.get("reasoning_content")
    if message.get("role") != "assistant" or not (calls or reasoning):
        return text if isinstance(text, str) else None
    try:
        requested = tuple(requested_call(call) for call in calls or ())
    except (TypeError, UnreadableError):
        return None
    if not isinstance(text, str | None) or not isinstance(reasoning, str | None):
        return None
    return AgentTurn("", (text or "").strip(), (reasoning or "").strip(), requested)


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
    """Base of tasks over files of rows, or a data set of the hub. Without `heldout_path`, `heldout_split` and
    `heldout_fraction`, `heldout` problems of `path` are held out."""

    TRUST: ClassVar[Marks] = {
        "path": PATH,
        "heldout_path": PATH,
        **dict.fromkeys(("subset", "split", "revision", "heldout_split"), PLAIN),
    }

    path: str | None = None
    """JSON lines or a JSON array, also .gz; with the extra `data` also parquet, csv, arrow, .zst and hub ids.
    A folder of such files is read as one. Required."""
    heldout_path: str | None = None
    """File, folder or hub id of held-out problems; null takes them from `path`."""
    heldout: int = 200
    """Problems split off `path`, unused where another heldout setting is given; above 0."""
    subset: str | None = None
    """Configuration of a hub data set, or folder inside of `path`."""
    split: str = "train"
    """Split of a hub data set or a folder that is trained on."""
    revision: str | None = None
    """Branch, tag or commit of a hub data set."""
    heldout_split: str | None = None
    """Split of `heldout_path`, or else of `path`, that is held out; null means all files of a folder
    `heldout_path`, and test of a hub id."""
    heldout_fraction: float = 0.0
    """Fraction of `path` that is held out, by a hash of the prompt: it stays held out when rows are added.
    0 for none; below 1."""

    def __post_init__(self) -> None:
        require(
            self.path is not None,
            "task.path: is needed; give a file of rows, such as JSON lines, with task.path=<file>",
        )
        for name in TEXTS:
            value = getattr(self, name)
            empty = value is not None and not value.strip()
            require(not empty, f"task.{name}={value!r}: is empty; give a value, or leave it out")
        require_positive("task", self, "heldout")
        require(
            0 <= self.heldout_fraction < 1,
            f"task.heldout_fraction={self.heldout_fraction}: must be 0 or more and below 1; give such as 0.1",
        )
        given = [name for name in ("heldout_path", "heldout_split") if getattr(self, name)]
        require(
            not (given and self.heldout_fraction),
            f"task.heldout_fraction={self.heldout_fraction}: task.{' and task.'.join(given)} say what is "
            "held out; give one of them",
        )
        super().__post_init__()

    def problem(self, row: dict[str, Any], where: str) -> Problem:
        """The problem of one row, without instructions; `where` is its file and line, for errors. Raises
        UserError, or UnusableRow for a row that is left out and counted."""
        raise NotImplementedError

    def content(self, problem: Problem) -> str:
        """What makes a problem another one: two with the same content are never on both sides."""
        return repr(problem.messages)

    def keeps(self, row: dict[str, Any], where: str) -> bool:
        """Whether a row is used at all."""
        return True

    @property
    def answer_form(self) -> str:
        """None, unless a task says how to answer."""
        return ""

    def sides(self) -> Split:
        """Problems of `path` that are not held out, and those that are. Raises UserError, with file and line,
        on a bad file."""
        setting, held = self._held_out()
        rows = self._rows(self.split)
        index, heldout = self._index(rows), self._index(held) if isinstance(held, Rows) else held
        train, kept, dropped = split_rows(index, heldout, setting)
        notes = index.notes("training rows")
        if isinstance(held, Rows) and isinstance(heldout, Index):
            notes += heldout.notes("held-out rows")
        sides = self._problems(rows, train), self._problems(held if isinstance(held, Rows) else rows, kept)
        stamp = f"{index.stamp} {heldout.stamp}" if isinstance(heldout, Index) else index.stamp
        return Split(*sides, dropped, self.content, notes, stamp)

    def _held_out(self) -> tuple[str, int | float | Rows]:
        """The setting that says what is held out: how many problems, what fraction, or which rows."""
        if self.heldout_path:
            key = "task.heldout_path"
            return key, open_rows(self.heldout_path, key, None, self.heldout_split, None, "heldout_split")
        if self.heldout_split:
            rows = self._rows(self.heldout_split, "heldout_split")
            return f"task.heldout_split={self.heldout_split}", rows
        if self.heldout_fraction:
            return f"task.heldout_fraction={self.heldout_fraction}", self.heldout_fraction
        return f"task.heldout={self.heldout}", self.heldout

    def _rows(self, split: str, name: str = "split") -> Rows:
        return open_rows(str(self.path), "task.path", self.subset, split, self.revision, name)

    def _index(self, rows: Rows) -> Index:
        names = [field.name for field in fields(self) if field.name not in SOURCE]
        settings = {name: getattr(self, name) for name in names}
        index = index_of(rows, self._made, [type(self).__name__, settings])
        notes = "; ".join(index.notes("rows"))
        require(len(index.rows) > 0, f"{rows.setting}: has no row that can be used: {notes}")
        return index

    def _made(self, where: str, row: dict[str, Any]) -> Made | None:
        if not self.keeps(row, where):
            return None
        problem = self.problem(row, where)
        bare = "\n".join(f"{message.role}: {message.content}" for message in problem.messages)
        asked = replace(problem, messages=self.asked(problem.messages))
        return Made(asked, bare, self.content(asked))

    def _problems(self, rows: Rows, index: Index) -> Sequence[Problem]:
        def problem(place: int) -> Problem:
            where, row = rows[place]
            found = self.problem(row, where)
            return replace(found, messages=self.asked(found.messages))

        problems = Problems(problem, index.rows)
        return problems if len(rows) >= MANY else tuple(problems)

    def demonstrations(self) -> Sequence[Demonstration]:
        """None: a gold answer alone need not be a good example of the whole answer."""
        return []

    @property
    def duplicates_dropped(self) -> int:
        """Rows of `path` that are not trained on because the same conversation is held out."""
        return self._split.dropped

    def data_stamp(self) -> str:
        """Changes with the conversation or the answer of any row, and with their order."""
        return self._split.stamp

    def notes(self) -> Sequence[str]:
        """How many rows are left out, and why."""
        dropped = self.duplicates_dropped
        same = [f"{dropped} training problems are left out: they are also held out"] if dropped else []
        return [*self._split.notes, *same]
