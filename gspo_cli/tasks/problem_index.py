"""Problems of many rows: an index of them in 20 bytes each, and problems built when they are drawn.

The index of a large source is cached by the content of its files and by what makes problems of it. K rows
are usable."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, overload
from zipfile import BadZipFile

import numpy as np

from gspo_cli.config.checks import require
from gspo_cli.errors import UserError
from gspo_cli.tasks.sources import Rows
from gspo_cli.types import Problem
from gspo_cli.user_cache import cache_folder, one_at_a_time

MANY = 20_000  # rows from which on problems are built when they are drawn, and the index is cached


class UnusableRow(UserError):
    """A row that is left out and counted, by a task that does so."""


class Made(NamedTuple):
    """A problem of a row; `bare` is its conversation without what settings of a run add to it, and `content`
    all by which problems differ."""

    problem: Problem
    bare: str
    content: str


@dataclass(frozen=True)
class Index:
    """The usable rows of a source. `order` and `share` are hashes: of the problem, and of its conversation
    alone. `unusable` rows are left out, the first for the reason `first`; `filtered` ones by a filter.

    `stamp` is a hash of all conversations and answers in the order of their rows."""

    rows: np.ndarray  # (K,) places in the source
    order: np.ndarray  # (K,)
    share: np.ndarray  # (K,)
    unusable: int = 0
    filtered: int = 0
    first: str = ""
    stamp: str = ""

    def taken(self, which: np.ndarray | slice) -> Index:
        """The index of some of the rows: places in this index, or a mask."""
        return replace(self, rows=self.rows[which], order=self.order[which], share=self.share[which])

    def notes(self, name: str) -> list[str]:
        """How many rows are left out, in sentences."""
        total = len(self.rows) + self.unusable + self.filtered
        by_filter = f"{self.filtered} of {total} {name} are left out by task.filter"
        others = f"{self.unusable} of {total} {name} are left out, the first because {self.first}"
        return [*([by_filter] if self.filtered else []), *([others] if self.unusable else [])]


class Problems(Sequence[Problem]):
    """Problems that are built when they are asked for: `make(row)` for each of `rows`. So are slices."""

    def __init__(self, make: Callable[[int], Problem], rows: np.ndarray) -> None:
        self.make, self.rows = make, rows

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Problem: ...
    @overload
    def __getitem__(self, index: slice) -> Problems: ...
    def __getitem__(self, index: int | slice) -> Problem | Problems:
        """One problem, or some, which are not built yet."""
        if isinstance(index, slice):
            return Problems(self.make, self.rows[index])
        return self.make(int(self.rows[index]))

    def changed(self, change: Callable[[Problem], Problem]) -> Problems:
        """The same problems, each changed when it is built."""
        return Problems(lambda row: change(self.make(row)), self.rows)

    def without(self, places: Iterable[int]) -> Problems:
        """All but the problems at these places."""
        return Problems(self.make, np.delete(self.rows, list(places)))


def index_of(rows: Rows, make: Callable[[str, dict[str, Any]], Made | None], settings: object) -> Index:
    """The index of `rows`, whose problems are `make(where, row)`: None for a row that a filter leaves out,
    `UnusableRow` for one that is counted. `settings` is all that `make` depends on. Raises its UserError."""
    if len(rows) < MANY:
        return _indexed(rows, make)
    content = json.dumps([rows.stamp, settings], default=str)
    cached = cache_folder("rows") / f"{hashlib.sha256(content.encode()).hexdigest()[:32]}.npz"
    with one_at_a_time(cached, lambda: _say(f"another process reads the {len(rows):,} rows")):
        found = _read(cached)
        if found is None:
            _say(f"reading {len(rows):,} rows, once: their index is kept in {cached.parent}")
            found = _indexed(rows, make)
            _write(cached, found)
    return found


def split_rows(index: Index, heldout: int | float | Index, setting: str) -> tuple[Index, Index, int]:
    """Training rows, held-out rows, and how many are left out of the former because their problem is held
    out too.

    Held out are the given rows, the first `heldout` different problems in the order of their hashes, or the
    fraction `heldout` of all, by a hash of the conversation alone: what is held out stays so when rows are
    added. A problem that has several rows is held out once. Training rows come in the order of the hashes.
    Raises UserError where none is left."""
    index = index.taken(np.argsort(index.order, kind="stable"))
    different = index.taken(np.append(True, index.order[1:] != index.order[:-1]))
    if isinstance(heldout, Index):
        held = heldout
    elif isinstance(heldout, int):
        held = different.taken(slice(heldout))
    else:
        held = different.taken(different.share < np.uint64(heldout * 2**64))
    train = index.taken(~np.isin(index.order, held.order))
    total = f"{len(different.rows)} problems"
    require(len(train.rows) > 0, f"{setting}: leaves none of {total} to train on; hold out fewer")
    require(len(held.rows) > 0, f"{setting}: holds out none of {total}; hold out more")
    from_index = 0 if isinstance(heldout, Index) else len(held.rows)
    return train, held, len(index.rows) - len(train.rows) - from_index


def _indexed(rows: Rows, make: Callable[[str, dict[str, Any]], Made | None]) -> Index:
    kept, order, share = bytearray(), bytearray(), bytearray()
    unusable = filtered = 0
    first, stamp = "", hashlib.sha256()
    for place, (where, row) in enumerate(rows):
        try:
            made = make(where, row)
        except UnusableRow as error:
            unusable, first = unusable + 1, first or str(error)
            continue
        if made is None:
            filtered += 1
            continue
        kept += place.to_bytes(4, "little")
        by_content = hashlib.sha256(made.content.encode()).digest()
        stamp.update(by_content + f"{made.problem.answer!r}\n".encode())
        order += by_content[:8]
        share += hashlib.blake2b(made.bare.encode(), digest_size=8).digest()
    by_problem, by_prompt = (np.frombuffer(each, ">u8").astype(np.uint64) for each in (order, share))
    counts = unusable, filtered, first, stamp.hexdigest()
    return Index(np.frombuffer(kept, "<u4"), by_problem, by_prompt, *counts)


def _read(path: Path) -> Index | None:
    try:
        with np.load(path, allow_pickle=False) as found:
            unusable, filtered, first, stamp = json.loads(str(found["counts"]))
            counts = unusable, filtered, first, stamp
            return Index(found["rows"], found["order"], found["share"], *counts)
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile):  # absent, or damaged
        return None


def _write(path: Path, index: Index) -> None:
    temporary = path.with_name(f".writing-{path.name}")
    counts = json.dumps([index.unusable, index.filtered, index.first, index.stamp])
    try:
        with temporary.open("wb") as file:
            np.savez(file, rows=index.rows, order=index.order, share=index.share, counts=np.array(counts))
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)  # a disk that is full: the next start reads the rows again


def _say(text: str) -> None:
    print(f"task: {text}", file=sys.stderr, flush=True)
