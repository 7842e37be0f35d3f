"""Reading and writing whole files: writes go to a temporary name first, then are renamed."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path
from typing import Any

from gspo_cli.errors import UserError
from gspo_cli.plain_files import machine_json, require_plain


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace `path` by `content`, or leave it as it was. Raises UserError if it cannot be written."""
    temporary = path.with_name(f".writing-{path.name}")
    data = content if isinstance(content, bytes) else content.encode(errors="backslashreplace")
    try:
        if temporary.is_symlink():  # in the folder of a stranger it may lead anywhere
            temporary.unlink()
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except FileNotFoundError as error:
        raise UserError(f"{path.parent}: was removed meanwhile; start again") from error
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); free space or choose another folder"
        ) from error


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """`write_atomically` for JSON."""
    write_atomically(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None if there is no file. Raises UserError if it cannot be read."""
    require_plain(path)
    try:
        value = machine_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); restore or remove it") from error
    except ValueError as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}); restore or remove the file") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: is not a JSON object; restore or remove the file")
    return value


def json_ready(value: Any) -> Any:
    """`value` as JSON can hold it: numbers that are not finite become null, enums their values."""
    if isinstance(value, Mapping):
        return {key: json_ready(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(item) for item in value]
    if isinstance(value, Enum):
        return value.value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def make_folder(folder: Path, key: str) -> None:
    """Create a folder unless it exists. Raises UserError that names the setting `key` where that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{key}={folder}: cannot be created ({error.strerror}); choose another") from error


def remove_empty(folder: Path) -> None:
    """Remove a folder that is empty, and the empty ones around it that are below the current one."""
    here = Path.cwd()
    with suppress(OSError):  # not empty, or gone
        folder.rmdir()
        for parent in folder.absolute().parents:
            if here not in parent.parents:
                return
            parent.rmdir()


@contextmanager
def folder_written_whole(folder: Path) -> Iterator[Path]:
    """A temporary folder that is renamed to `folder` if the block succeeds, and removed if it fails."""
    temporary = folder.with_name(f".writing-{folder.name}-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for path in temporary.rglob("*"):
            if path.is_file():
                _sync(path)
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.exists():
                raise
            # another run wrote the same folder first; a complete folder is never replaced
        _sync(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_leftovers(folder: Path, name: str = "") -> None:
    """Remove what a killed process left half-written in a folder, of one `name` or of all. Whoever calls it
    holds the lock under which such files are written."""
    for path in folder.glob(f".writing-{name}*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def point(link: Path, target: Path) -> None:
    """Make `link` a relative symbolic link to its sibling `target`, in one step."""
    temporary = link.with_name(f".writing-{link.name}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target.name)
    temporary.replace(link)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
