"""What a checkpoint's folder holds, written last: sizes and checksums, by which damage is found. Free of
torch."""

from __future__ import annotations

import json
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from gspo_cli.errors import UserError
from gspo_cli.plain_files import machine_json, require_plain

MANIFEST, TRAINER = "manifest.json", "trainer.pt"  # the latter has optimizer and counters
NAME = re.compile(r"iteration-(\d{6,})")  # of a checkpoint's folder
BLOCK = 2**22  # bytes read at once


def write_manifest(folder: Path) -> None:
    """Record every file of a finished folder. CRC-32 finds damage, not deceit, at well over 1 GB a second."""
    files = {name: [path.stat().st_size, checksum(path)] for name, path in _files(folder)}
    text = json.dumps({"crc32": files}, indent=1)
    with (folder / MANIFEST).open("w", encoding="utf-8") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())


def damage(folder: Path, resumes: bool = True) -> str | None:
    """What is wrong with a checkpoint, in words; None if every file is as it was written. One from before
    there were manifests is looked at for files that were cut. Unless training `resumes` from it, the
    optimizer's file does not matter."""
    path = folder / MANIFEST
    try:
        require_plain(path)
        return _damage(folder, path, resumes) if path.exists() else _cut(folder, resumes)
    except UserError as error:
        return str(error)
    except OSError as error:
        return f"{error.filename or folder} cannot be read ({error.strerror})"


def _damage(folder: Path, path: Path, resumes: bool) -> str | None:
    try:
        recorded = machine_json(path.read_text(encoding="utf-8"))["crc32"]
        expected = {name: (int(size), int(value)) for name, (size, value) in recorded.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return f"{MANIFEST} cannot be read"
    found = dict(_files(folder))
    for name, (size, value) in expected.items():
        if name == TRAINER and not resumes:
            continue
        if name not in found:
            return f"{name} is missing"
        held = found[name].stat().st_size
        if held != size:
            return f"{name} has {held:,} bytes in place of {size:,}"
        if checksum(found[name]) != value:
            return f"{name} is not what was written"
    return None


def checksum(path: Path) -> int:
    """CRC-32 of a file."""
    value = 0
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            value = zlib.crc32(block, value)
    return value


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != MANIFEST:
            yield path.relative_to(folder).as_posix(), path


def _cut(folder: Path, resumes: bool) -> str | None:
    trainer = folder / TRAINER
    whole = trainer.is_file() and zipfile.is_zipfile(trainer)  # what torch.save writes, its index last
    if resumes and not whole:
        return f"{TRAINER} is missing or cut"
    for path in folder.glob("*.safetensors"):
        if not _is_whole(path):
            return f"{path.name} is cut"
    return None


def _is_whole(path: Path) -> bool:
    """Whether a safetensors file has as many bytes as its header says: 8 of its length, the header, data."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > size:
                return False
            header = machine_json(file.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    except (struct.error, ValueError, KeyError, TypeError, AttributeError):
        return False
    return size == 8 + length + max(ends, default=0)
