"""The run folder: the contract that reports and people read.

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

LOGS = ("metrics.jsonl", "evals.jsonl", "samples.jsonl", "heldout.jsonl")


class RunFolder:
    """Paths and line files of one run. Every line has an `iteration`. Of the processes of one run the first
    one `writes`; to the others the folder is for reading."""

    def __init__(self, path: Path, writes: bool = True) -> None:
        self.path, self.writes = path, writes

    @property
    def config(self) -> Path:
        """The resolved configuration: what is there is what ran."""
        return self.path / "config.yaml"

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints, with the links `last` and `best`."""
        return self.path / "checkpoints"

    @property
    def logs(self) -> Path:
        """What ranks other than the first print."""
        return self.path / "logs"

    @property
    def initial_model(self) -> Path:
        """The model before training, where it was built or cold-started by the run."""
        return self.path / "initial_model"

    @contextmanager
    def held(self) -> Iterator[None]:
        """The length of a block in which no other process trains in the folder. Raises UserError where one
        does."""
        descriptor = os.open(self.path, os.O_RDONLY) if self.writes else None
        try:
            if descriptor is not None:
                self._hold(descriptor)
            yield
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def _hold(self, descriptor: int) -> None:
        # a disk that knows no locks (some network ones) says so by another error, and holds nobody up
        with suppress(OSError):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(
                    f"{self.path}: another process trains in this folder; wait for its end, or end it first"
                ) from error

    def create(self, config_yaml: str) -> None:
        """Make the folder for a new run. Raises UserError where one is there already or nothing can be
        written."""
        if self.config.exists():
            raise UserError(
                f"{self.path}: holds a run already; continue it with resume={self.path}, or choose "
                "another hydra.run.dir"
            )
        make_folder(self.path, "hydra.run.dir")
        write_atomically(self.config, config_yaml)

    def checkpoint_model(self, checkpoint: str, model: ModelConfig) -> tuple[str, Path | None]:
        """Where the model of a checkpoint is, and its adapter under LoRA. `checkpoint` is best (last where
        there is none), last, initial, or a checkpoint's name. Raises UserError where it has none of that
        name."""
        base = str(self.initial_model) if self.initial_model.exists() else model.name
        if checkpoint == "initial":
            return base, None
        chosen = self.checkpoints / checkpoint
        if checkpoint == "best" and not chosen.exists():
            chosen = chosen.with_name("last")
        if not chosen.exists():
            found = ["initial", *sorted(path.name for path in self.checkpoints.glob("[!.]*"))]
            raise UserError(f"--checkpoint {checkpoint}: is not there; choose one of {', '.join(found)}")
        return (base, chosen) if model.use_lora else (str(chosen), None)

    def append(self, log: str, record: Mapping[str, Any]) -> None:
        """Add one line to a log, whole and flushed. Numbers that are not finite become null."""
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
        """All whole lines of a log; a last line cut by a kill is left out."""
        path = self.path / log
        if not path.exists():
            return []
        records = []
        # not splitlines: it also breaks at U+2028 and the like, which models do write
        for line in path.read_text(encoding="utf-8").split("\n"):
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return records

    def rewind(self, iteration: int) -> None:
        """Drop all lines after `iteration`, so that a resumed run repeats none and leaves no gap."""
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
        """card.json; None where there is none, as in older runs. Raises UserError where it is not JSON."""
        return read_json(self.path / "card.json")

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Save summary.json."""
        if self.writes:
            write_json(self.path / "summary.json", json_ready(summary))
