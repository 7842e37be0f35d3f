"""Rows of JSON lines and JSON arrays, plain or compressed, read strictly: an error names file and line.

Plain JSON lines are not kept: where each line starts is remembered, and a row is read when it is asked for.
Compressed files and arrays are held in memory, one text per row."""

from __future__ import annotations

import gzip
import importlib.util
import io
import json
import os
import re
import zlib
from array import array
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import IO, Any, cast

from gspo_cli.config.checks import require
from gspo_cli.config.extras import install
from gspo_cli.errors import UserError

BOM = b"\xef\xbb\xbf"
GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
LARGEST = 2**28  # bytes that are searched for the end of an object which begins in the first line
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # an escape that is half a character, perhaps without the other


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


STRICT = json.JSONDecoder(parse_constant=_refuse_constant)


class JsonFile:
    """The rows of one file, in order. `key` is the setting that names it, for errors.

    Raises UserError, when made, if the file cannot be read or has no rows; a bad row raises when it is
    read."""

    def __init__(self, path: str, key: str) -> None:
        self.path, self._setting = path, f"{key}={path}"
        self.numbers = array("q")  # of lines, or places in an array, from 1
        self._starts = array("q")  # of each line, in bytes; empty where `_texts` has the rows
        self._texts: list[bytes] = []
        try:
            self._stat = os.stat(path)
            self._read()
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UserError(
                f"{self._setting}: is not a whole compressed file ({error}); get it again"
            ) from error
        except OSError as error:
            reason = error.strerror or str(error)
            raise UserError(f"{self._setting}: cannot be read ({reason}); give an existing file") from error
        require(
            len(self) > 0,
            f"{self._setting}: is empty; give a file with one JSON object on each line, or an array of them",
        )

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def stamp(self) -> str:
        """Changes with the file's content."""
        return f"{os.path.abspath(self.path)} {self._stat.st_size} {self._stat.st_mtime_ns}"

    def where(self, index: int) -> str:
        """File and line of a row, for errors."""
        return f"{self.path}:{self.numbers[index]}"

    def row(self, index: int) -> dict[str, Any]:
        """One row. Raises UserError if it is not usable JSON, or the file has changed since it was opened."""
        if self._texts:
            return self._parsed(index, self._texts[index])
        try:
            with open(self.path, "rb") as file:
                now = os.fstat(file.fileno())
                file.seek(self._starts[index])
                line = file.readline()
        except OSError as error:
            raise UserError(f"{self._setting}: cannot be read any more ({error.strerror})") from error
        changed = (now.st_size, now.st_mtime_ns) != (self._stat.st_size, self._stat.st_mtime_ns)
        require(not changed, f"{self._setting}: has changed since the run began; start again")
        return self._parsed(index, line)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """All rows, as `row` gives them."""
        if self._texts:
            yield from (self._parsed(index, line) for index, line in enumerate(self._texts))
            return
        with open(self.path, "rb") as file:
            file.seek(self._starts[0])
            lines = (line for line in file if line.strip())
            yield from (self._parsed(index, line) for index, line in enumerate(lines))

    def _read(self) -> None:
        with opened(self.path) as file:
            packed = not isinstance(file, io.BufferedReader)
            first = next((line for line in file if line.removeprefix(BOM).strip()), b"")
            is_array = first.removeprefix(BOM).lstrip().startswith(b"[")
            file.seek(0)
            if is_array:
                self._texts = self._of_array(file.read())
                self.numbers.extend(range(1, len(self._texts) + 1))
            else:
                self._scan(file, keep=packed)

    def _scan(self, lines: Iterable[bytes], keep: bool) -> None:
        start = 0
        for number, line in enumerate(lines, 1):
            size, mark = len(line), len(BOM) if number == 1 and line.startswith(BOM) else 0
            if line[mark:].strip():
                self.numbers.append(number)
                if keep:
                    self._texts.append(line[mark:])
                else:
                    self._starts.append(start + mark)
            start += size

    def _of_array(self, content: bytes) -> list[bytes]:
        try:
            values = json.loads(content.removeprefix(BOM).decode())
        except UnicodeDecodeError as error:
            raise UserError(
                f"{self._setting}: is not UTF-8 text ({error.reason}); convert the file"
            ) from error
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{self.path}: begins with [ but is not a JSON array ({_reason(error)}); correct it, or "
                "write one JSON object on each line"
            ) from error
        values.reverse()  # each is freed once it is text
        return [json.dumps(values.pop()).encode() for _ in range(len(values))]

    def _parsed(self, index: int, line: bytes) -> dict[str, Any]:
        try:
            text = line.decode()
            row = STRICT.decode(text)
            if SURROGATE.search(text):
                json.dumps(row, ensure_ascii=False).encode()
        except UnicodeDecodeError as error:
            raise UserError(
                f"{self._setting}: line {self.numbers[index]} is not UTF-8 text ({error.reason}); convert "
                "the file"
            ) from error
        except UnicodeEncodeError as error:
            raise UserError(
                f"{self.where(index)}: has half of a character (a lone surrogate); correct the text"
            ) from error
        except (ValueError, RecursionError) as error:
            if index == 0:
                self._refuse_one_object(line)
            raise UserError(
                f"{self.where(index)}: is not JSON ({_reason(error)}); correct the line"
            ) from error
        require(
            isinstance(row, dict), f"{self.where(index)}: is not a JSON object; write {{...}} for each row"
        )
        return row

    def _refuse_one_object(self, first: bytes) -> None:
        """Raise UserError if the file begins with an object that goes on after its `first` line."""
        if not first.lstrip().startswith(b"{"):
            return
        with opened(self.path) as file:
            content = file.read(LARGEST).removeprefix(BOM).decode(errors="replace").lstrip()
        try:
            found, end = STRICT.raw_decode(content)
        except (ValueError, RecursionError):
            return
        lists = [key for key, value in found.items() if isinstance(value, list)]
        rows = f"only the array under {json.dumps(lists[0], ensure_ascii=False)}" if lists else "an array"
        one = "is one JSON object" if not content[end:].strip() else "has JSON objects"
        raise UserError(
            f"{self._setting}: {one} over several lines, not an array or lines; write {rows}, or one object "
            "on each line"
        )


@contextmanager
def opened(path: str) -> Iterator[IO[bytes]]:
    """The bytes of a file, unpacked if its first bytes say that it is compressed by gzip or zstd. Raises
    OSError, EOFError or zlib.error where it cannot be read, UserError without zstandard for zstd."""
    with open(path, "rb") as file:
        start = file.read(len(ZSTD))
    if start.startswith(GZIP):
        with gzip.open(path) as unpacked:
            yield cast(IO[bytes], unpacked)
    elif start == ZSTD:
        require(
            importlib.util.find_spec("zstandard") is not None,
            f"{path}: is compressed by zstd, which needs zstandard; {install('data')}",
        )
        yield io.BytesIO(_of_zstd(path))
    else:
        with open(path, "rb") as plain:
            yield plain


def _of_zstd(path: str) -> bytes:
    """The content of a zstd file, which may have several frames. Raises EOFError where the last one is cut
    off, or one is damaged."""
    import zstandard

    unpacked, frame = bytearray(), None
    try:
        with open(path, "rb") as file:
            while chunk := file.read(2**20):
                while chunk:
                    frame = frame or zstandard.ZstdDecompressor().decompressobj()
                    unpacked += frame.decompress(chunk)
                    chunk, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
    except zstandard.ZstdError as error:
        raise EOFError(str(error)) from error
    if frame is not None:
        raise EOFError("it ends too early")
    return bytes(unpacked)


def _reason(error: Exception) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
