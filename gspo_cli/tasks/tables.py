"""Tables by Hugging Face `datasets` (extra `data`): parquet, csv and arrow files, and data sets of the hub.

A table stays on disk: `datasets` keeps it as Arrow files and maps them into memory. A data set that consists
of a script is not loaded: the library has no way to run one."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from gspo_cli.config.checks import require
from gspo_cli.config.extras import install
from gspo_cli.errors import UserError
from gspo_cli.hub import ask_hub
from gspo_cli.tasks.json_rows import opened
from gspo_cli.tasks.separated import SEPARATORS, column_names, separated_rows
from gspo_cli.user_cache import cache_folder, one_at_a_time

DAMAGED = "correct the file, or give another"
NO_ROWS = "has no rows; give a file with rows"
BATCH = 1000  # rows of a csv file that are in memory at once


class Table:
    """The rows of one file or of one split of the hub; `name` is what errors call it."""

    def __init__(self, name: str, dataset: Any, stamp: str = "") -> None:
        self.name, self._dataset, self._stamp = name, dataset, stamp

    def __len__(self) -> int:
        return len(self._dataset)

    @property
    def stamp(self) -> str:
        """Changes with the content."""
        return self._stamp or str(self._dataset._fingerprint)

    def where(self, index: int) -> str:
        """Name and row, from 1, for errors."""
        return f"{self.name}:{index + 1}"

    def row(self, index: int) -> dict[str, Any]:
        """One row, by column. Raises UserError if it cannot be read."""
        return self._read(index, lambda: self._dataset[index])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """All rows, as `row` gives them."""
        rows = iter(self._dataset)
        yield from (self._read(index, lambda: next(rows)) for index in range(len(self)))

    def _read(self, index: int, read: Callable[[], Any]) -> dict[str, Any]:
        try:
            return {name: _without_added_nulls(value) for name, value in read().items()}
        except Exception as error:  # the library's own: text that is not UTF-8, a picture that is damaged
            raise UserError(f"{self.where(index)}: cannot be read ({_reason(error)}); correct it") from error


def _without_added_nulls(value: Any, within_calls: bool = False) -> Any:
    """`value` without the nulls of tool calls: a table gives all calls of a column the arguments of all."""
    if isinstance(value, dict):
        return {
            name: _without_added_nulls(each, within_calls or name == "tool_calls")
            for name, each in value.items()
            if each is not None or not within_calls
        }
    if isinstance(value, list):
        return [_without_added_nulls(each, within_calls) for each in value]
    return value


def file_tables(kind: str, paths: Sequence[str], key: str) -> list[Table]:
    """The tables of files of one kind: parquet, arrow, csv or tsv. What a csv file has stays text, as it is
    written. Raises UserError, naming the setting `key`, where a file cannot be read or has no rows."""
    _require_datasets(f"{key}={paths[0]}")
    if kind in SEPARATORS:
        return [_separated_table(path, kind, f"{key}={path}") for path in paths]
    for path in paths:
        _require_rows(path, kind, f"{key}={path}")
    splits = {f"file{number}": [os.path.abspath(path)] for number, path in enumerate(paths)}
    with _loading(f"{key}={paths[0]}", DAMAGED):
        from datasets import load_dataset

        tables = load_dataset(kind, data_files=splits, cache_dir=str(cache_folder("datasets")))
        return [Table(path, tables[name]) for path, name in zip(paths, splits, strict=True)]


def _separated_table(path: str, kind: str, setting: str) -> Table:
    """The table of a csv or tsv file, which is read once: by its place, size and time it is found again."""
    names, stat = column_names(path, kind, setting), os.stat(path)
    content = repr((os.path.abspath(path), kind, stat.st_size, stat.st_mtime_ns))
    stamp = hashlib.sha256(content.encode()).hexdigest()[:32]
    cached = cache_folder("separated") / f"{stamp}.arrow"
    with _loading(setting, DAMAGED), one_at_a_time(cached, lambda: None):
        from datasets import Dataset

        if not cached.exists():
            require(next(separated_rows(path, kind, setting), None) is not None, f"{setting}: {NO_ROWS}")
            _write_arrow(cached, names, separated_rows(path, kind, setting))
        return Table(path, Dataset.from_file(str(cached)), stamp)


def _write_arrow(cached: Path, names: list[str], rows: Iterator[list[str]]) -> None:
    """Write rows of text in batches, whole or not at all."""
    import pyarrow

    schema = pyarrow.schema([(name, pyarrow.string()) for name in names])
    temporary = cached.with_name(f".writing-{cached.name}")
    try:
        with pyarrow.OSFile(str(temporary), "wb") as file, pyarrow.ipc.new_stream(file, schema) as writer:
            while batch := list(islice(rows, BATCH)):
                columns = [pyarrow.array(column, pyarrow.string()) for column in zip(*batch, strict=True)]
                writer.write_batch(pyarrow.record_batch(columns, schema=schema))
        os.replace(temporary, cached)
    finally:
        temporary.unlink(missing_ok=True)


def _require_rows(path: str, kind: str, setting: str) -> None:
    """Raise UserError where a parquet or arrow file has no rows, or cannot be read."""
    with _loading(setting, DAMAGED), opened(path) as file:
        from pyarrow import ArrowInvalid, ipc, parquet

        if kind == "parquet":
            found = parquet.ParquetFile(file).metadata.num_rows > 0
        else:
            try:
                batches: Any = ipc.open_stream(file)
            except ArrowInvalid:  # of the form with a footer
                reader = ipc.open_file(file)
                batches = map(reader.get_batch, range(reader.num_record_batches))
            found = any(batch.num_rows for batch in batches)
    require(found, f"{setting}: {NO_ROWS}")


def hub_table(name: str, subset: str | None, split: str, revision: str | None, key: str) -> Table:
    """A split of the data set `name` of the hub. Raises UserError, naming the setting `key`, where the hub
    does not serve it."""
    _require_datasets(f"{key}={name}")
    from datasets import config, load_dataset

    if not config.HF_HUB_OFFLINE:
        try:
            ask_hub(name, "dataset")
        except Exception as error:  # the client's own errors, and those of two HTTP libraries
            raise UserError(
                f"{key}={name}: no such file or folder is here, and the hub does not serve it "
                f"({_reason(error)}); give a file, a folder or a hub id, or set HF_HUB_OFFLINE=1 to use the "
                "cached copy"
            ) from error
    fix = "check task.subset, task.split and task.revision"
    with _loading(f"{key}={name}", fix):
        table = load_dataset(name, name=subset, split=split, revision=revision)
        require(len(table) > 0, f"{key}={name}: split {split} has no rows; give another with task.split")
        return Table(f"{name}/{split}", table)


def _require_datasets(what: str) -> None:
    found = importlib.util.find_spec("datasets") is not None
    require(found, f"{what}: is read by the library datasets; {install('data')}")


@contextmanager
def _loading(what: str, fix: str) -> Iterator[None]:
    """Quiet, and with the library's errors in one sentence."""
    import datasets

    shown = datasets.utils.logging.get_verbosity()
    bars = datasets.utils.are_progress_bars_disabled()
    datasets.utils.logging.set_verbosity(datasets.utils.logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # the library's own, and those of pyarrow and file systems
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, UserError):
            cause = cause.__cause__
        if cause is not None:  # ours, within the library's
            raise cause from error
        raise UserError(f"{what}: cannot be loaded ({_reason(error)}); {fix}") from error
    finally:
        datasets.utils.logging.set_verbosity(shown)
        if not bars:
            datasets.enable_progress_bars()


def _reason(error: BaseException) -> str:
    """The first line of the error that is at the root of another, which only says that there was one."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
