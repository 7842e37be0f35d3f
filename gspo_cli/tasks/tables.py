"""Tables by Hugging Face `datasets` (extra `data`): parquet, csv and arrow files, and data sets of the hub.

A table stays on disk: `datasets` keeps it as Arrow files and maps them into memory. A data set that consists
of a script is not loaded: the library has no way to run one."""

from __future__ import annotations

import csv
import importlib.util
import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from gspo_cli.config.checks import require
from gspo_cli.config.extras import install
from gspo_cli.errors import UserError
from gspo_cli.hub import ask_hub
from gspo_cli.tasks.json_rows import opened
from gspo_cli.user_cache import cache_folder

SEPARATORS = {"csv": ",", "tsv": "\t"}


class Table:
    """The rows of one file or of one split of the hub; `name` is what errors call it."""

    def __init__(self, name: str, dataset: Any) -> None:
        self.name, self._dataset = name, dataset

    def __len__(self) -> int:
        return len(self._dataset)

    @property
    def stamp(self) -> str:
        """Changes with the content."""
        return str(self._dataset._fingerprint)

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
            return dict(read())
        except Exception as error:  # the library's own: text that is not UTF-8, a picture that is damaged
            raise UserError(f"{self.where(index)}: cannot be read ({_reason(error)}); correct it") from error


def file_tables(kind: str, paths: Sequence[str], key: str) -> list[Table]:
    """The tables of files of one kind: parquet, arrow, csv or tsv. What a csv file has stays text, as it is
    written. Raises UserError, naming the setting `key`, where a file cannot be read."""
    _require_datasets(f"{key}={paths[0]}")
    splits = {f"file{number}": [os.path.abspath(path)] for number, path in enumerate(paths)}
    options: dict[str, Any] = {}
    if kind in SEPARATORS:
        options = {
            "sep": SEPARATORS[kind],
            "keep_default_na": False,
            "features": _text_columns(paths, kind, key),
        }
    with _loading(f"{key}={paths[0]}", "correct the file, or give another"):
        from datasets import load_dataset

        reader = "csv" if kind in SEPARATORS else kind
        cache = str(cache_folder("datasets"))
        tables = load_dataset(reader, data_files=splits, cache_dir=cache, **options)
        return [Table(path, tables[name]) for path, name in zip(paths, splits, strict=True)]


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
        return Table(f"{name}/{split}", table)


def _text_columns(paths: Sequence[str], kind: str, key: str) -> Any:
    """Every column that the first file names in its first line, as text."""
    from datasets import Features, Value

    try:
        with opened(paths[0]) as file:
            lines = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
            names = next(csv.reader(lines, delimiter=SEPARATORS[kind]), [])
            lines.detach()
    except (OSError, EOFError, ValueError, csv.Error) as error:
        raise UserError(f"{key}={paths[0]}: cannot be read ({error}); correct the file") from error
    require(names != [], f"{key}={paths[0]}: is empty; give a file whose first line names the columns")
    return Features({name: Value("string") for name in names})


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
    except Exception as error:  # the library's own, and those of pyarrow, pandas and file systems
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
