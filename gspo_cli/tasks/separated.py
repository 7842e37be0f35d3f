"""Rows of csv and tsv files, read strictly: every row has as many fields as the first line has names, and
what it has stays text, as it is written."""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from gspo_cli.config.checks import require
from gspo_cli.errors import UserError
from gspo_cli.tasks.json_rows import opened

SEPARATORS = {"csv": ",", "tsv": "\t"}
LONGEST = 2**30  # characters of a field; the module's own limit of 131,072 is less than a long conversation


def column_names(path: str, kind: str, setting: str) -> list[str]:
    """The names in the first line that has any. Raises UserError, which begins with `setting`, where there is
    none, or the file cannot be read."""
    with _fields(path, kind, setting) as lines:
        return _names(next(lines, []), setting)


def separated_rows(path: str, kind: str, setting: str) -> Iterator[list[str]]:
    """The fields of each row. Raises UserError where the file cannot be read, or a row has more or fewer
    fields than the first line."""
    with _fields(path, kind, setting) as lines:
        names = len(_names(next(lines, []), setting))
        for number, fields in enumerate(lines, 1):
            require(
                len(fields) == names,
                f"{path}:{number}: does not have as many fields ({len(fields)}) as the first line has names "
                f"of columns ({names}); correct it, with quotes around a text that has the separator in it",
            )
            yield fields


@contextmanager
def _fields(path: str, kind: str, setting: str) -> Iterator[Iterator[list[str]]]:
    """The fields of each line that is not blank."""
    read = 0

    def lines() -> Iterator[list[str]]:
        nonlocal read
        for fields in csv.reader(text, delimiter=SEPARATORS[kind], strict=True):
            if len(fields) > 1 or "".join(fields).strip():
                read += 1
                yield fields

    csv.field_size_limit(LONGEST)
    try:
        with opened(path) as file:
            text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
            yield lines()
            text.detach()
    except UnicodeDecodeError as error:
        raise UserError(f"{setting}: is not UTF-8 text ({error.reason}); convert the file") from error
    except csv.Error as error:
        where = f"{path}:{read}:" if read else f"{setting}: its first line"
        raise UserError(
            f"{where} is not {kind} ({error}); write a quote inside of quotes twice, and close what is opened"
        ) from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{setting}: is not a whole compressed file ({error}); get it again") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{setting}: cannot be read ({error}); correct the file") from error


def _names(first: list[str], setting: str) -> list[str]:
    """Names of columns: the place stands for one that is missing, and a number follows one that comes again,
    as in pandas."""
    require(first != [], f"{setting}: is empty; give a file whose first line names the columns")
    names: list[str] = []
    for place, text in enumerate(first):
        name = text if text.strip() else f"Unnamed: {place}"
        again = sum(1 for each in first[:place] if each == text) if text.strip() else 0
        name = f"{name}.{again}" if again else name
        while name in names:
            name = f"{name}.1"
        names.append(name)
    return names
