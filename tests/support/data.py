"""Tasks over rows of data, and what they give."""

from __future__ import annotations

import json
from itertools import chain

import pyarrow
import pyarrow.parquet

from gspo_cli.tasks.dataset import DatasetTask

ROWS = [{"question": f"What is {n} + 0?", "answer": str(n), "level": n % 3} for n in range(12)]


def dataset(path, **settings):
    return DatasetTask("dataset", "", "", path=str(path), **{"heldout": 3, **settings})


def contents(task):
    return [
        [(problem.messages, problem.answer) for problem in side]
        for side in (task.train_problems(), task.heldout_problems())
    ]


def both(task):
    return list(chain.from_iterable(contents(task)))


def lines(rows):
    return "".join(f"{json.dumps(row)}\n" for row in rows).encode()


def parquet(path, rows):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
