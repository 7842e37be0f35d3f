"""Preference pairs of a file: what the agent reads, a better answer and a worse one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gspo_cli.config.checks import require
from gspo_cli.tasks.base import stamp_of_files
from gspo_cli.tasks.files import message_list, prompt_messages, text_field
from gspo_cli.tasks.sources import open_rows
from gspo_cli.types import Message

KEY = "algorithm.pairs"
ANSWERS = ("chosen", "rejected")


@dataclass(frozen=True)
class Pair:
    """A conversation up to the agent's turn and two answers, of which the first is preferred; `where` is
    file and line."""

    messages: tuple[Message, ...]
    chosen: str
    rejected: str
    where: str


class PairFile:
    """The pairs of a file, checked once and read again when they are drawn. Raises UserError if the file
    cannot be read, and on a bad row, with file and line."""

    def __init__(self, path: str) -> None:
        place = Path(path).expanduser()
        require(place.is_file(), f"{KEY}={path}: is not a file; give an existing file of pairs")
        self._rows = open_rows(str(place), KEY)
        for where, row in self._rows:
            pair_of(row, where)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: int) -> Pair:
        where, row = self._rows[place]
        return pair_of(row, where)


def pairs_stamp(path: str) -> str:
    """Changes with the content of a file of pairs. Raises UserError if it cannot be read."""
    return stamp_of_files([Path(path).expanduser()])


def pair_of(row: Mapping[str, Any], where: str) -> Pair:
    """The pair of a row: "prompt" (a text, or messages) or "messages", and an answer in "chosen" and one in
    "rejected" (a text, or a list with one assistant message); or, without a prompt, two conversations that
    differ in their last message. Raises UserError."""
    chosen, rejected = (_turns(row, name, where) for name in ANSWERS)
    given = {name: row[name] for name in ("prompt", "messages") if row.get(name) is not None}
    if len(chosen) == len(rejected) == 1:
        listed = isinstance(given.get("prompt"), list) and len(given) == 1
        opening = message_list(given["prompt"], "prompt", where) if listed else prompt_messages(given, where)
    else:
        require(
            not given,
            f'{where}: "chosen" or "rejected" has more than one message beside "{next(iter(given), "")}"; '
            "give one assistant message in each, or the whole conversation in both and no prompt",
        )
        opening = chosen[:-1]
        require(
            opening == rejected[:-1],
            f'{where}: "chosen" and "rejected" do not answer the same conversation; let them differ in the '
            "last message only",
        )
    for name, turns in zip(ANSWERS, (chosen, rejected), strict=True):
        role = turns[-1].role
        require(role == "assistant", f'{where}: "{name}" ends with {role}; end it with an assistant message')
    last = opening[-1].role
    require(
        last in ("user", "tool"),
        f"{where}: the conversation before the answers ends with {last}; end it with a user or tool message",
    )
    return Pair(opening, chosen[-1].content, rejected[-1].content, where)


def _turns(row: Mapping[str, Any], name: str, where: str) -> tuple[Message, ...]:
    if isinstance(row.get(name), list):
        return message_list(row[name], name, where)
    return (Message("assistant", text_field(dict(row), name, where)),)
