"""The run folder: the files that reports and people read.

config.yaml (resolved), data.json (hash of what the task has read), card.txt and card.json, metrics.jsonl,
evals.jsonl, samples.jsonl, heldout.jsonl (results by held-out problem), checkpoints/, initial_model/ (where
the run made the model), summary.json."""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from gspo_cli.config.compose import WRITTEN
from gspo_cli.config.model_schema import ModelConfig
from gspo_cli.config.typed import override
from gspo_cli.errors import UserError
from gspo_cli.run.files import (
    json_ready,
    make_folder,
    read_json,
    remove_empty,
    remove_leftovers,
    write_atomically,
    write_json,
)
from gspo_cli.run.logs import ASIDE, LOGS, check_log, cut_log, read_log, repair_log
from gspo_cli.sources import ModelSource, run_checkpoint

LOCK = "GSPO_LOCKED"  # in the environment of a process whose parent holds the lock for it: the folder
_HELD: dict[Path, tuple[int, int]] = {}  # locks of this process: their descriptors and threads
DATA = "data.json"  # a hash of what the task has read
OWN = ("config.yaml", WRITTEN, DATA, "card.txt", "card.json", "summary.json", "wandb_id", *LOGS)  # files
PROGRESS = ("checkpoints", "initial_model")  # what took time to make


class RunFolder:
    """Paths and line files of one run. Every line has an `iteration`. Only the first process of a
    run `writes`; the others read."""

    def __init__(self, path: Path, writes: bool = True) -> None:
        self.path, self.writes = path, writes

    @property
    def config(self) -> Path:
        """The resolved configuration, which is what ran."""
        return self.path / "config.yaml"

    @property
    def written_config(self) -> Path:
        """A copy of config.yaml as the program wrote it, by which edits are noticed."""
        return self.path / WRITTEN

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints, with the links `last` and `best`."""
        return self.path / "checkpoints"

    @property
    def logs(self) -> Path:
        """Output of all ranks but the first."""
        return self.path / "logs"

    @property
    def initial_model(self) -> Path:
        """The model before training, where it was built or cold-started by the run."""
        return self.path / "initial_model"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """A block in which no other process trains in the folder or writes to it. Within another such block
        of this process it does nothing. Raises UserError if another process has the lock, or the folder is
        gone."""
        place = self.path.resolve()
        mine = _HELD.get(place, (-1, -1))[1] == threading.get_ident()
        if not self.writes or mine or os.environ.get(LOCK) == str(place):
            yield
            return
        try:
            descriptor = os.open(place, os.O_RDONLY)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be opened ({error.strerror})") from error
        try:
            self._lock(descriptor)
            _HELD[place] = (descriptor, threading.get_ident())
            try:
                remove_leftovers(place)
                remove_leftovers(self.checkpoints)
                yield
            finally:
                del _HELD[place]
        finally:
            os.close(descriptor)

    @property
    def lock(self) -> tuple[dict[str, str], tuple[int, ...]]:
        """What a child process needs to hold the lock, too: variables of its environment, and descriptors."""
        place = self.path.resolve()
        return ({LOCK: str(place)}, (_HELD[place][0],)) if place in _HELD else ({}, ())

    def _lock(self, descriptor: int) -> None:
        # file systems without locks (some network ones) raise other errors; there is no locking on those
        with suppress(OSError):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(
                    f"{self.path}: another process trains in this folder; wait until it ends, or stop it"
                ) from error

    def create(self, config_yaml: str) -> None:
        """Make the folder for a new run. Raises UserError if it already contains a run or cannot be
        written."""
        if self.config.exists():
            raise UserError(
                f"{self.path}: already contains a run; continue it with {override('resume', self.path)}, or "
                "choose another hydra.run.dir"
            )
        make_folder(self.path, "hydra.run.dir")
        self.write_config(config_yaml)

    def write_config(self, config_yaml: str) -> None:
        """Save the resolved configuration, and the copy by which edits are noticed."""
        write_atomically(self.written_config, config_yaml)
        write_atomically(self.config, config_yaml)

    @property
    def has_progress(self) -> bool:
        """Whether there is something that took time to make."""
        return any((self.path / name).exists() for name in PROGRESS)

    def discard(self) -> None:
        """Remove the files of a run that was refused before it came to anything, so that the corrected
        command may use the folder. What took time to make is never removed."""
        if self.writes and not self.has_progress:
            for name in OWN:
                (self.path / name).unlink(missing_ok=True)
            remove_empty(self.path)  # where there are files that are not ours, it is not

    def checkpoint_model(self, checkpoint: str, model: ModelConfig) -> ModelSource:
        """Where the model of a checkpoint is, and its adapter under LoRA (see `run_checkpoint`). Raises
        UserError if there is no such checkpoint."""
        return run_checkpoint(self.path, checkpoint, model.name, model.base)

    def append(self, log: str, record: Mapping[str, Any]) -> None:
        """Append one complete line to a log and flush it. Numbers that are not finite become null, and half
        of a character its JSON escape."""
        if not self.writes:
            return
        line = json.dumps(json_ready(record), ensure_ascii=False, allow_nan=False)
        try:
            with (self.path / log).open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(line + "\n")
        except FileNotFoundError as error:
            raise UserError(f"{self.path}: was removed while the run went on; start it again") from error
        except OSError as error:
            raise UserError(
                f"{self.path / log}: cannot be written ({error.strerror}); free space, then "
                + override("resume", self.path)
            ) from error

    def read(self, log: str) -> list[dict[str, Any]]:
        """The records of a log up to the first damaged line: a kill can cut the last one."""
        return read_log(self.path / log)[0]

    def check_logs(self, repair: bool) -> list[str]:
        """Before a resume: raise UserError where a log has a line that cannot be read, or, with `repair`,
        move such lines to a file beside it. Returns what was moved, in sentences."""
        notes = []
        for log in LOGS:
            path = self.path / log
            if repair and (count := repair_log(path)):
                notes.append(f"{path}: {count} lines that cannot be read were moved to {log}{ASIDE}")
            check_log(path, f"gspo-train {override('resume', self.path)}")
        if any(self.checkpoints.glob("iteration-*[1-9]*")) and not (self.path / LOGS[0]).exists():
            notes.append(f"{self.path / LOGS[0]}: is gone; it goes on without the earlier iterations")
        return notes

    def rewind(self, iteration: int) -> None:
        """Move all lines after `iteration` out of the logs (see `cut_log`)."""
        for log in LOGS if self.writes else ():
            cut_log(self.path / log, iteration)

    def write_card(self, text: str, card: Mapping[str, Any]) -> None:
        """Save the objective card: `text` for people as card.txt, `card` for programs as card.json."""
        if self.writes:
            write_atomically(self.path / "card.txt", text + "\n")
            write_json(self.path / "card.json", json_ready(card))

    def read_card(self) -> dict[str, Any] | None:
        """card.json; None if there is none, as in older runs. Raises UserError if it is not JSON."""
        return read_json(self.path / "card.json")

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Save summary.json."""
        if self.writes:
            write_json(self.path / "summary.json", json_ready(summary))
