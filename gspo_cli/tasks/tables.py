"""Tables by Hugging Face `datasets` (extra `data`): parquet, csv and arrow files, and data sets of the hub.

A table stays on disk: it is kept as Arrow files, which are mapped into memory. A data set that consists of a
script is not loaded: the library has no way to run one. What a column calls an image, a sound or the like is
never decoded: that would open whatever file or address a row names."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any

from gspo_cli.config.checks import require
from gspo_cli.config.extras import install
from gspo_cli.errors import UserError
from gspo_cli.hub import ask_hub
from gspo_cli.tasks.json_rows import opened
from gspo_cli.tasks.separated import SEPARATORS, column_names, separated_rows
from gspo_cli.user_cache import cache_folder, one_at_a_time

DAMAGED = "correct the file, or give another"
NO_ROWS = "has no rows; give a file with rows"
BATCH = 1000  # rows that are in memory at once
END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"  # the last bytes of a whole Arrow stream


class Table:
    """The rows of one file or of one split of the hub; `name` is what errors call it."""

    def __init__(self, name: str, dataset: Any, stamp: str = "") -> None:
        self.name, self._stamp = name, stamp or str(dataset._fingerprint)
        self._dataset = dataset.with_format("arrow")  # in the library's own format, it decodes columns

    def __len__(self) -> int:
        return len(self._dataset)

    @property
    def stamp(self) -> str:
        """Changes with the content."""
        return self._stamp

    def where(self, index: int) -> str:
        """Name and row, from 1, for errors."""
        return f"{self.name}:{index + 1}"

    def row(self, index: int) -> dict[str, Any]:
        """One row, by column. Raises UserError if it cannot be read."""
        return self._read(index, lambda: self._dataset[index])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """All rows, as `row` gives them."""
        for start in range(0, len(self), BATCH):
            rows = self._dataset[start : start + BATCH]
            for place in range(rows.num_rows):
                yield self._read(start + place, partial(rows.slice, place, 1))

    def _read(self, index: int, read: Callable[[], Any]) -> dict[str, Any]:
        try:
            row = read()
            values = zip(row.schema, row.to_pylist()[0].values(), strict=True)
            return {column.name: _without_added_nulls(_plain(value, column.type)) for column, value in values}
        except Exception as error:  # the library's own: text that is not UTF-8
            raise UserError(f"{self.where(index)}: cannot be read ({_reason(error)}); correct it") from error


def _plain(value: Any, kind: Any) -> Any:
    """A value of the Arrow type `kind`, with what the column says is JSON parsed, also within."""
    from pyarrow import types

    if value is None:
        return None
    if getattr(kind, "extension_name", "") == "arrow.json":
        return json.loads(value)
    if types.is_struct(kind):
        return {field.name: _plain(value[field.name], field.type) for field in kind}
    if types.is_list(kind) or types.is_large_list(kind):
        return [_plain(each, kind.value_type) for each in value]
    return value


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
    return [_file_table(path, kind, f"{key}={path}") for path in paths]


def _file_table(path: str, kind: str, setting: str) -> Table:
    """The table of a file, which is read once: by its place, size and time it is found again."""
    try:
        stat = os.stat(path)
    except OSError as error:
        raise UserError(f"{setting}: cannot be read ({error.strerror}); give an existing file") from error
    with _loading(setting, DAMAGED):
        content = repr((os.path.abspath(path), kind, stat.st_size, stat.st_mtime_ns))
        stamp = hashlib.sha256(content.encode()).hexdigest()[:32]
        cached = cache_folder("tables") / f"{stamp}.arrow"
        with one_at_a_time(cached, lambda: None):
            dataset = _cached(cached, lambda: _batches(path, kind, setting))
    require(len(dataset) > 0, f"{setting}: {NO_ROWS}")
    return Table(path, dataset, stamp)


def _cached(cached: Path, batches: Callable[[], Iterator[Any]]) -> Any:
    """The data set of the file `cached`, which is written anew where it is absent or not whole; held in
    memory where the disk does not take it."""
    from datasets import Dataset
    from pyarrow import BufferOutputStream, OSFile

    if not _is_whole(cached):
        temporary = cached.with_name(f".writing-{cached.name}")
        try:
            _write_arrow(OSFile(str(temporary), "wb"), batches())
            os.replace(temporary, cached)
        except OSError as error:  # of the cache: those of the file that is read are UserErrors
            print(
                f"task: rows are held in memory, for {cached.parent} takes no file ({_reason(error)})",
                file=sys.stderr,
                flush=True,
            )
            memory = BufferOutputStream()
            _write_arrow(memory, batches())
            return Dataset.from_buffer(memory.getvalue())
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
    return Dataset.from_file(str(cached))


def _is_whole(cached: Path) -> bool:
    """Whether a file is an Arrow stream that is not cut off."""
    from pyarrow import ArrowException, ipc, memory_map

    try:
        with memory_map(str(cached)) as file, ipc.open_stream(file) as stream:
            stream.read_all()
            file.seek(file.size() - len(END_OF_STREAM))
            return bool(file.read() == END_OF_STREAM)
    except (OSError, ValueError, ArrowException):
        return False


def _write_arrow(file: Any, batches: Iterator[Any]) -> None:
    """Write an Arrow stream. The first of `batches` is its schema."""
    from pyarrow import ipc

    with file, ipc.new_stream(file, next(batches)) as writer:
        for batch in batches:
            writer.write_batch(batch)


def _batches(path: str, kind: str, setting: str) -> Iterator[Any]:
    """The schema of a file's rows, and then the rows in batches. Raises UserError where it cannot be read."""
    with _one_sentence(setting, DAMAGED):
        if kind in SEPARATORS:
            yield from _separated_batches(path, kind, setting)
            return
        with opened(path) as file:
            schema, batches = _parquet_batches(file) if kind == "parquet" else _arrow_batches(file)
            from pyarrow import RecordBatch

            # what the metadata says of columns is the library's to decode, or to fail at
            schema = schema.remove_metadata()
            yield schema
            for batch in batches:
                yield RecordBatch.from_arrays(batch.columns, schema=schema)


def _parquet_batches(file: IO[bytes]) -> tuple[Any, Iterator[Any]]:
    from pyarrow.parquet import ParquetFile

    parquet = ParquetFile(file)
    return parquet.schema_arrow, parquet.iter_batches(BATCH)


def _arrow_batches(file: IO[bytes]) -> tuple[Any, Iterator[Any]]:
    from pyarrow import ArrowInvalid, ipc

    try:
        stream = ipc.open_stream(file)
    except ArrowInvalid:  # of the form with a footer
        whole = ipc.open_file(file)
        return whole.schema, map(whole.get_batch, range(whole.num_record_batches))
    return stream.schema, iter(stream)


def _separated_batches(path: str, kind: str, setting: str) -> Iterator[Any]:
    import pyarrow

    schema = pyarrow.schema([(name, pyarrow.string()) for name in column_names(path, kind, setting)])
    yield schema
    rows = separated_rows(path, kind, setting)
    while batch := list(islice(rows, BATCH)):
        columns = [pyarrow.array(column, pyarrow.string()) for column in zip(*batch, strict=True)]
        yield pyarrow.record_batch(columns, schema=schema)


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
    fix = (
        "check task.subset, task.split and task.revision, and whether what is cached in "
        f"{config.HF_DATASETS_CACHE} is whole"
    )
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
        with _one_sentence(what, fix):
            yield
    finally:
        datasets.utils.logging.set_verbosity(shown)
        if not bars:
            datasets.enable_progress_bars()


@contextmanager
def _one_sentence(what: str, fix: str) -> Iterator[None]:
    """Raises UserError for an error of the libraries, or of a file system."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # the library's own, and those of pyarrow and file systems
        raise UserError(f"{what}: cannot be loaded ({_reason(error)}); {fix}") from error


def _reason(error: BaseException) -> str:
    """The first line of the error that is at the root of another, which only says that there was one."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
