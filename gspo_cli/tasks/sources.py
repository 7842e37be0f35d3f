"""The one door to data of tasks: which files a path names, and their rows in a fixed order."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

from gspo_cli.config.checks import require, require_path
from gspo_cli.errors import UserError
from gspo_cli.tasks.json_rows import JsonFile
from gspo_cli.tasks.tables import file_tables, hub_table

JSON = "json"
KINDS = {
    "jsonl": JSON,
    "ndjson": JSON,
    "json": JSON,
    "parquet": "parquet",
    "arrow": "arrow",
    "csv": "csv",
    "tsv": "tsv",
}
ENDINGS = ", ".join(f".{name}" for name in KINDS)
PACKED = (".gz", ".zst")
ADDRESS = re.compile(r"(?i)[a-z][a-z0-9+.-]*://")
OF_THE_LIBRARY = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
SPLITS = {  # the words by which the names of files tell their split, as on the hub
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
HUB_ID = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
SHARD = re.compile(r"-\d+-of-\d+.*$")


class Part(Protocol):
    """The rows of one file, or of one split of the hub."""

    @property
    def stamp(self) -> str: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[dict[str, Any]]: ...
    def row(self, index: int) -> dict[str, Any]: ...
    def where(self, index: int) -> str: ...


class Rows:
    """The rows of several parts, one after the other; `setting` is what names them, for errors."""

    def __init__(self, setting: str, parts: Sequence[Part]) -> None:
        self.setting, self.parts = setting, parts
        self._ends = list(accumulate(map(len, parts)))

    def __len__(self) -> int:
        return self._ends[-1]

    @property
    def stamp(self) -> str:
        """Changes with the content of any part."""
        return "\n".join(part.stamp for part in self.parts)

    def __getitem__(self, index: int) -> tuple[str, dict[str, Any]]:
        """Where a row is, for errors, and the row. Raises UserError if it cannot be read."""
        place = bisect_right(self._ends, index)
        inner = index - (self._ends[place - 1] if place else 0)
        return self.parts[place].where(inner), self.parts[place].row(inner)

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """All rows, as `[]` gives them."""
        for part in self.parts:
            yield from ((part.where(index), row) for index, row in enumerate(part))


def open_rows(
    path: str,
    key: str,
    subset: str | None = None,
    split: str | None = None,
    revision: str | None = None,
    split_name: str = "split",
) -> Rows:
    """The rows of a file, of the files of a split in a folder, or of a split of a data set of the hub.
    Without `split` these are all files of a folder, and test of the hub.

    `key` is the setting that gives `path`, task.`split_name` the one that gives `split`. Raises UserError
    where there is nothing to read, or a setting does not suit what is read."""
    require_path(key, path)
    require(
        ADDRESS.match(path) is None,
        f"{key}={path}: is an address, from which nothing is read; download the file and give its path, or "
        "give the id of a data set of the hub, such as openai/gsm8k",
    )
    return Rows(f"{key}={path}", _parts(path, key, subset, split, revision, split_name))


def _parts(
    path: str, key: str, subset: str | None, split: str | None, revision: str | None, split_name: str
) -> Sequence[Part]:
    place = Path(path).expanduser()
    if not place.exists() and HUB_ID.fullmatch(path) and _kind(place) is None:
        return [hub_table(path, subset, split or "test", revision, key)]
    require(
        revision is None,
        f"task.revision={revision}: {path} is not of the hub; set task.revision=null",
    )
    if place.is_dir():
        kind, files = _files_of(place, key, subset, split)
        return _of_files(kind, files, key)
    require(subset is None, f"task.subset={subset}: {path} is one file; set task.subset=null")
    require(
        split is None or (split_name == "split" and split == "train"),
        f"task.{split_name}={split}: {path} is one file, which has no splits; leave out "
        f"task.{split_name}, or give a folder",
    )
    said = _kind(place)
    return [_of_no_kind(str(place), key)] if said is None else _of_files(said, [str(place)], key)


def _of_no_kind(path: str, key: str) -> JsonFile:
    """The rows of a file whose name does not say what it is, if the first is JSON. Raises UserError."""
    file = JsonFile(path, key)
    try:
        file.row(0)
    except UserError as error:
        raise UserError(
            f"{key}={path}: its name does not end with one of {ENDINGS}, also with .gz or .zst, and it does "
            "not begin with a row of JSON; give a file of one of these kinds"
        ) from error
    return file


def _of_files(kind: str, files: Sequence[str], key: str) -> Sequence[Part]:
    return [JsonFile(file, key) for file in files] if kind == JSON else file_tables(kind, files, key)


def _kind(path: Path) -> str | None:
    """What a file's name says that it is."""
    name = path.name.lower()
    for packed in PACKED:
        name = name.removesuffix(packed)
    return KINDS.get(name.rpartition(".")[2])


def _files_of(folder: Path, key: str, subset: str | None, split: str | None) -> tuple[str, list[str]]:
    """Kind and paths of the files of `split` in a folder, in the order of their names."""
    root = folder if subset is None else folder / subset
    within = root.is_dir() and root.resolve().is_relative_to(folder.resolve())
    require(within, f"task.subset={subset}: {folder} has no such folder; give one that it has")
    found = [path for path in sorted(root.rglob("*")) if _is_data(path, root)]
    require(
        found != [], f"{key}={folder}: has no file of data; give one with {ENDINGS}, also with .gz or .zst"
    )
    inner = [path.relative_to(root) for path in found]
    chosen = inner if split is None else _of_split(inner, split)
    has = ", ".join(sorted({name for path in inner if (name := _split_of(path))})) or "train"
    require(chosen != [], f"{key}={folder}: has no files of split {split}; choose from {has}")
    tops = sorted(
        {path.parts[0] for path in chosen if len(path.parts) > 1 and not _tells_no_subset(path.parts[0])}
    )
    require(
        len(tops) < 2,
        f"{key}={folder}: has files in {', '.join(tops)}; choose one of these folders, as in "
        f"task.subset={next(iter(tops), '')}",
    )
    kinds = sorted({str(_kind(path)) for path in chosen})
    require(
        len(kinds) == 1,
        f"{key}={folder}: has files of different kinds ({', '.join(kinds)}); give one of the files, or a "
        "folder with one kind",
    )
    return kinds[0], [str(root / path) for path in chosen]


def _is_data(path: Path, root: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
    return not hidden and path.is_file() and path.name not in OF_THE_LIBRARY and _kind(path) is not None


def _of_split(paths: Sequence[Path], split: str) -> list[Path]:
    """The files of a split: those with its name, else those with a word for it; where no file's name has a
    word for any split, all are for training."""
    named = [path for path in paths if _stem(path) == split or split in path.parts[:-1]]
    wanted = _word(split) or split
    return (
        named
        or [path for path in paths if (_split_of(path) or "") == wanted]
        or ([*paths] if wanted == "train" and not any(map(_split_of, paths)) else [])
    )


def _split_of(path: Path) -> str | None:
    """The split that the name of a file, or of a folder that it is in, has a word for."""
    for part in (_stem(path), *reversed(path.parts[:-1])):
        for word in re.split(r"[^a-z]+", part.lower()):
            if found := _word(word):
                return found
    return None


def _tells_no_subset(folder: str) -> bool:
    """Whether the name of an inner folder is that of a split, or the usual one."""
    return folder == "data" or _split_of(Path(folder)) is not None


def _word(text: str) -> str | None:
    return next((split for split, words in SPLITS.items() if text.lower() in words), None)


def _stem(path: Path) -> str:
    """The name of a file without number of shard and endings."""
    return SHARD.sub("", path.name).partition(".")[0]
