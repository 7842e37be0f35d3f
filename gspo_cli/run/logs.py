"""The logs of a run, one JSON object with an iteration per line: read whole, and cut where a run resumes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gspo_cli.errors import UserError
from gspo_cli.plain_files import machine_json, require_plain

LOGS = ("metrics.jsonl", "evals.jsonl", "samples.jsonl", "heldout.jsonl")
LONGEST = 1 << 28  # bytes of a line
LONGEST_RUN = 10**9  # iterations, as training.num_outer_iterations may be
ASIDE = ".rewound"  # ends the name of the file that holds what was cut off a log


def read_log(path: Path) -> tuple[list[dict[str, Any]], int | None]:
    """The records of a log up to the first line that is not a JSON object with an iteration, and the number
    of that line: None if all lines are valid. A missing log has no records."""
    found: list[dict[str, Any]] = []
    for record in each_record(path):
        if isinstance(record, int):
            return found, record
        found.append(record)
    return found, None


def each_record(path: Path) -> Iterator[dict[str, Any] | int]:
    """The records of a log one by one, and at the end, where one cannot be read, the number of its line."""
    for place, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        record = _record(line)
        if record is None:
            yield place
            return
        yield record


def check_log(path: Path, resume: str) -> None:
    """Raise UserError, with the command `resume` that repairs it, if a line before the last cannot be read: a
    kill can cut the last one only."""
    for place, line in enumerate(_lines(path), start=1):
        if line.endswith(b"\n") and line.strip() and _record(line) is None:
            raise UserError(
                f"{path}: line {place} cannot be read; restore the file, or move what cannot be read to "
                f"{path.name}{ASIDE} with: {resume} --repair"
            )


def repair_log(path: Path) -> int:
    """Move the lines that cannot be read to the file beside; returns their number."""
    kept: list[bytes] = []
    broken: list[bytes] = []
    for line in _lines(path):
        if line.strip():
            (broken if _record(line) is None else kept).append(line.rstrip(b"\n") + b"\n")
    if broken:
        _set_aside(path, broken)
        _replace(path, kept)
    return len(broken)


def cut_log(path: Path, iteration: int) -> None:
    """Cut a log at the first line after `iteration`, so that a resumed run neither repeats lines nor leaves
    gaps. The rest is moved to the file beside: nothing is lost. A last line that a kill cut goes, too."""
    kept: list[bytes] = []
    rest: list[bytes] = []
    line = b"\n"
    for line in _lines(path):
        if not line.strip():
            continue
        record = _record(line)
        later = bool(rest) or record is None or record["iteration"] > iteration
        (rest if later else kept).append(line.rstrip(b"\n") + b"\n")
    if rest:
        _set_aside(path, rest)
    if rest or not line.endswith(b"\n"):  # what is appended starts a line of its own
        _replace(path, kept)


def _lines(path: Path) -> Iterator[bytes]:
    """Lines of a file, read one by one. Not splitlines: it also splits at U+2028 and similar characters,
    which models do write. Raises UserError if it is no plain file, or a line is longer than any of ours."""
    require_plain(path)
    try:
        with path.open("rb") as file:
            while line := file.readline(LONGEST):
                if len(line) == LONGEST:
                    raise UserError(f"{path}: has a line of more than {LONGEST:,} bytes; restore the file")
                yield line
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); restore the file") from error


def has_iteration(record: Any) -> bool:
    """Whether what a line holds is a record of a run."""
    count = record.get("iteration") if isinstance(record, dict) else None
    return type(count) is int and 0 <= count <= LONGEST_RUN


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = machine_json(line.decode("utf-8"))
    except ValueError:  # damaged text, or damaged JSON
        return None
    return record if has_iteration(record) else None


def _set_aside(path: Path, lines: list[bytes]) -> None:
    with path.with_name(path.name + ASIDE).open("ab") as file:
        file.writelines(lines)
        file.flush()
        os.fsync(file.fileno())


def _replace(path: Path, lines: list[bytes]) -> None:
    temporary = path.with_name(f".writing-{path.name}")
    with temporary.open("wb") as file:
        file.writelines(lines)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
