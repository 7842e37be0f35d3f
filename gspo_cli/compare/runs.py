"""Finding and reading the run folders that are compared: what can be read whole, and why the rest cannot.

A run is compared when it ended (completed, stopped early at its score, or collapsed, which is an outcome),
its logs are whole, and it is of the task and model that most of the folders are of."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from gspo_cli.compare.result import LeftOut
from gspo_cli.config.stored import StoredConfig, read_stored, stored_config
from gspo_cli.diagnosis.history import Record, number_of
from gspo_cli.errors import UserError
from gspo_cli.run.summary import RunStatus

SETTINGS, LOGS = "config.yaml", ("metrics.jsonl", "summary.json")
MARKS = (SETTINGS, *LOGS)
TOLD = {"problem_id", "messages", "expected", "reward", "components", "finish_reason", "excluded"}
# beside `iteration`: what is read of a line, and the kind that it must be; all else may be missing
NEEDED: Mapping[str, Mapping[str, type | tuple[type, ...]]] = {
    "metrics.jsonl": {"num_tokens": int},
    "heldout.jsonl": {"problems": list, "solved": list, "conversations": list},
}
ENDED = (RunStatus.completed, RunStatus.stopped_early, RunStatus.collapsed)


@dataclass(frozen=True)
class StoredRun:
    """A run as its folder holds it: the resolved configuration, the lines of its logs (`heldout` is empty
    where the run wrote none), and summary.json."""

    folder: str
    config: Mapping[str, Any]
    metrics: Sequence[Record]
    evals: Sequence[Record]
    heldout: Sequence[Record]
    summary: Record

    @cached_property
    def settings(self) -> StoredConfig:
        """`config` with typed groups."""
        return stored_config(self.config, self.folder)

    @property
    def seed(self) -> int:
        """Of the run: problem order, sampling, minibatches."""
        return self.config["seed"]

    @property
    def algorithm(self) -> Mapping[str, Any]:
        """The resolved section: what tells arms apart."""
        return self.config["algorithm"]

    @property
    def subject(self) -> tuple[str, str, str]:
        """Task, label of the model, name of the model."""
        model = self.config["model"]
        return self.config["task"]["name"], model["label"], model["name"]

    @property
    def status(self) -> RunStatus:
        """How the run ended."""
        return RunStatus(self.summary["status"])

    @property
    def iterations(self) -> int:
        """Iterations that were done."""
        return self.metrics[-1]["iteration"] if self.metrics else 0

    @property
    def planned(self) -> int:
        """Iterations that the run stands for: a run that stopped early or collapsed keeps its last score to
        the end of what it was given."""
        if self.status is RunStatus.completed:
            return self.iterations
        return self.config["training"]["num_outer_iterations"]


def find_runs(paths: Sequence[Path]) -> tuple[list[StoredRun], list[LeftOut]]:
    """All runs in `paths` that can be compared, and the folders that cannot, each with the reason.

    A path is a run folder, or a folder that holds some at any depth. The result does not depend on the order
    of `paths`. Raises UserError where a path is not there or holds no run."""
    read, left_out = [], []
    for folder in run_folders(paths):
        try:
            read.append(read_run(folder))
        except UserError as error:
            left_out.append(LeftOut(str(folder), str(error).removeprefix(f"{folder}: ")))
    for select in (_of_one_subject, _without_repeats):
        read, out = select(read)
        left_out += out
    return read, sorted(left_out, key=lambda each: each.folder)


def run_folders(paths: Sequence[Path]) -> list[Path]:
    """Run folders in `paths`, in order of their names, each once. Raises UserError as `find_runs` does."""
    found: dict[Path, Path] = {}
    for path in paths:
        if not path.exists():
            raise UserError(f"{path}: does not exist; give run folders, or a folder that holds some")
        here = [path.parent] if path.is_file() and path.name in MARKS else list(_below(path))
        if not here:
            raise UserError(f"{path}: holds no run (a folder with config.yaml and metrics.jsonl); train some")
        for folder in here:
            known = found.setdefault(folder.resolve(), folder)
            found[folder.resolve()] = min(known, folder, key=lambda each: (len(str(each)), str(each)))
    return sorted(found.values(), key=str)


def _below(path: Path) -> list[Path]:
    """Run folders in `path`, links followed, each real folder once. A folder that holds a part of a run alone
    is one (a damaged or a new one) only where no run is inside it."""
    whole, parts = [], []
    seen: set[Path] = set()
    for name, inner, files in os.walk(path, followlinks=True):
        folder, real = Path(name), Path(name).resolve()
        if real in seen:
            inner.clear()
            continue
        seen.add(real)
        tuning = {"trials"} if "runs" in inner else set()  # of a comparison: made to choose settings by
        inner[:] = sorted(each for each in set(inner) - tuning if not each.startswith("."))
        if SETTINGS in files and any(log in files for log in LOGS):
            inner.clear()  # nothing inside a run is another run
            whole.append(folder)
        elif any(mark in files for mark in MARKS):
            parts.append(folder)
    above = {parent for folder in whole for parent in folder.parents}
    above |= {parent for folder in parts for parent in folder.parents}
    return [*whole, *(folder for folder in parts if folder not in above)]


def read_run(folder: Path) -> StoredRun:
    """The run in `folder`. Raises UserError with what is wrong where it did not end, or is not whole."""
    config = read_stored(folder / "config.yaml").plain
    if not isinstance(config.get("seed"), int):
        raise UserError("config.yaml has no seed; restore the file")
    if not any((folder / log).exists() for log in LOGS):
        raise UserError(f"was prepared, and never started; start it with gspo-train resume={folder}")
    summary = _summary(folder)
    metrics, evals = lines(folder / "metrics.jsonl"), lines(folder / "evals.jsonl")
    heldout = lines(folder / "heldout.jsonl") if (folder / "heldout.jsonl").exists() else []
    _check_heldout(heldout)
    run = StoredRun(str(folder), config, metrics, evals, heldout, summary)
    _check_whole(run)
    return run


def lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a log. Raises UserError where it is not there, or a line is no record."""
    try:
        texts = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError as error:
        raise UserError(f"has no {path.name}; the run is not whole") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path.name} cannot be read ({error})") from error
    records = []
    for place, text in enumerate(texts, start=1):
        if not text and place == len(texts):
            continue
        try:
            record = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"line {place} of {path.name} is damaged; restore the file, or repeat") from error
        if not isinstance(record, dict) or not isinstance(record.get("iteration"), int):
            raise UserError(f"line {place} of {path.name} names no iteration; restore the file, or repeat")
        for key, kind in NEEDED.get(path.name, {}).items():
            if not isinstance(record.get(key), kind):
                raise UserError(f"line {place} of {path.name} has no {key}; restore the file, or repeat")
        records.append(record)
    return records


def _check_heldout(heldout: Sequence[Record]) -> None:
    """Raise UserError where a line says of other than its problems whether they were solved, or holds a
    conversation that cannot be shown."""
    for place, line in enumerate(heldout, start=1):
        told = line["conversations"]
        if len(line["solved"]) != len(line["problems"]) or any(TOLD - set(talk) for talk in told):
            raise UserError(f"line {place} of heldout.jsonl is not whole; restore the file, or repeat")


def _summary(folder: Path) -> dict[str, Any]:
    path = folder / "summary.json"
    go_on = f"continue it with gspo-train resume={folder}"
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        status, done, total = (summary[key] for key in ("status", "iterations", "total_iterations"))
    except FileNotFoundError as error:
        raise UserError(f"did not end (no summary.json); {go_on}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"summary.json cannot be read; {go_on}") from error
    if status not in ENDED:
        words = {RunStatus.interrupted: "was interrupted", RunStatus.failed: "failed"}
        word = words.get(status, f"is {status}")
        raise UserError(f"{word} after {done} of {total} iterations; {go_on}")
    return summary


def _check_whole(run: StoredRun) -> None:
    """Raise UserError where logs have gaps, or are not those of the summary."""
    places = [record["iteration"] for record in run.metrics]
    if places != list(range(1, len(places) + 1)):
        raise UserError("metrics.jsonl has gaps, or iterations twice; repeat the run")
    done = run.summary["iterations"]
    if run.iterations != done:
        raise UserError(
            f"metrics.jsonl ends at iteration {run.iterations}, summary.json at {done}: it is damaged, or "
            "going on at this moment"
        )
    if not run.metrics:
        raise UserError("made no iteration; train it")
    evaluated = [record["iteration"] for record in run.evals]
    if evaluated != sorted(set(evaluated)):
        raise UserError("evals.jsonl has iterations twice or out of order; repeat the run")
    if not any(number_of(record, "score") is not None for record in run.evals):
        raise UserError("evals.jsonl has no held-out score; evaluate with evaluation.problems above 0")
    if run.status is RunStatus.completed and evaluated[-1] != done:
        raise UserError(f"evals.jsonl ends at iteration {evaluated[-1]}, the run at {done}: it is damaged")


def _of_one_subject(runs: Sequence[StoredRun]) -> tuple[list[StoredRun], list[LeftOut]]:
    """Runs of the task and model that most are of; of equally many the first by name."""
    counts = Counter(run.subject for run in runs)
    if not counts:
        return [], []
    chosen = min(counts, key=lambda subject: (-counts[subject], subject))
    others = [run for run in runs if run.subject != chosen]
    reasons = [LeftOut(run.folder, _other_subject(run.subject, chosen)) for run in others]
    return [run for run in runs if run.subject == chosen], reasons


def _other_subject(subject: tuple[str, str, str], chosen: tuple[str, str, str]) -> str:
    kinds = ("task", "model", "model.name")
    kind, is_one, most = next(each for each in zip(kinds, subject, chosen, strict=True) if each[1] != each[2])
    return f"{kind} {is_one}, most of the runs are of {kind} {most}; compare it with its own kind"


def arm_key(run: StoredRun) -> str:
    """Equal for runs of one arm."""
    return json.dumps(run.algorithm, sort_keys=True)


def _without_repeats(runs: Sequence[StoredRun]) -> tuple[list[StoredRun], list[LeftOut]]:
    """One run per arm and seed: the longest, of equally long ones the last by name, where times stand."""
    kept: dict[tuple[str, int], StoredRun] = {}
    for run in sorted(runs, key=lambda each: (each.iterations, each.folder)):
        kept[arm_key(run), run.seed] = run
    left_out = []
    for run in runs:
        counted = kept[arm_key(run), run.seed]
        if counted is not run:
            why = f"repeats seed {run.seed} of {run.algorithm['name']}: {counted.folder} counts, "
            longer = counted.iterations > run.iterations
            why += f"which has {counted.iterations} iterations" if longer else "the last by name"
            left_out.append(LeftOut(run.folder, f"{why}; a repeated run is no second sample"))
    return [run for run in runs if kept[arm_key(run), run.seed] is run], left_out
