"""The run folder: the files that reports and people read.

config.yaml (resolved), card.txt and card.json, metrics.jsonl, evals.jsonl, samples.jsonl, heldout.jsonl
(results by held-out problem), checkpoints/, initial_model/ (where the run made the model), summary.json."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from gspo_cli.config.model_schema import ModelConfig
from gspo_cli.errors import UserError
from gspo_cli.run.files import json_ready, make_folder, read_json, write_atomically, write_json
from gspo_cli.sources import ModelSource, run_checkpoint

LOGS = ("metrics.jsonl", "evals.jsonl", "samples.jsonl", "heldout.jsonl")


def read_log(path: Path) -> tuple[list[dict[str, Any]], int | None]:
    """The records of a log up to the first line that is not a JSON object with an iteration, and the number
    of that line: None if all lines are valid. A missing log has no records."""
    if not path.exists():
        return [], None
    found: list[dict[str, Any]] = []
    # not splitlines: it also splits at U+2028 and similar characters, which models do write
    for place, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode("utf-8"))
        except ValueError:  # damaged text, or damaged JSON
            return found, place
        if not isinstance(record, dict) or not isinstance(record.get("iteration"), int):
            return found, place
        found.append(record)
    return found, None


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
        """A block in which no other process trains in the folder. Raises UserError if one does."""
        descriptor = os.open(self.path, os.O_RDONLY) if self.writes else None
        try:
            if descriptor is not None:
                self._lock(descriptor)
            yield
        finally:
            if descriptor is not None:
                os.close(descriptor)

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
                f"{self.path}: already contains a run; continue it with resume={self.path}, or choose "
                "another hydra.run.dir"
            )
        make_folder(self.path, "hydra.run.dir")
        write_atomically(self.config, config_yaml)

    def checkpoint_model(self, checkpoint: str, model: ModelConfig) -> ModelSource:
        """Where the model of a checkpoint is, and its adapter under LoRA (see `run_checkpoint`). Raises
        UserError if there is no such checkpoint."""
        return run_checkpoint(self.path, checkpoint, model.name, model.base)

    def append(self, log: str, record: Mapping[str, Any]) -> None:
        """Append one complete line to a log and flush it. Numbers that are not finite become null."""
        if not self.writes:
            return
        line = json.dumps(json_ready(record), ensure_ascii=False, allow_nan=False)
        try:
            with (self.path / log).open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise UserError(
                f"{self.path / log}: cannot be written ({error.strerror}); free space, then "
                f"resume={self.path}"
            ) from error

    def read(self, log: str) -> list[dict[str, Any]]:
        """The records of a log up to the first damaged line: a kill can cut the last one."""
        return read_log(self.path / log)[0]

    def rewind(self, iteration: int) -> None:
        """Drop all lines after `iteration`, so that a resumed run neither repeats lines nor leaves gaps."""
        if not self.writes:
            return
        for log in LOGS:
            kept = [record for record in self.read(log) if record["iteration"] <= iteration]
            lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in kept]
            write_atomically(self.path / log, "".join(lines))

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
