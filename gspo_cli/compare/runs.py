"""Finds and reads the run folders to compare, with the reason for each that cannot be compared.

A run is compared when it has ended (completed, stopped early at its score, or collapsed, which is an
outcome) and its logs are complete."""

from __future__ import annotations

import difflib
import json
import os
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from gspo_cli.compare.result import LeftOut
from gspo_cli.compare.stored_lines import RESTORE, is_count, is_number, lines
from gspo_cli.config.checks import require
from gspo_cli.config.choices import RatioLevel
from gspo_cli.config.stored import StoredConfig, read_stored, stored_config
from gspo_cli.config.typed import override
from gspo_cli.diagnosis.history import Record, number_of
from gspo_cli.errors import UserError
from gspo_cli.plain_files import bounded_json, require_plain
from gspo_cli.run.identity import changed_settings, computed, leaves
from gspo_cli.run.summary import ENDED, RunStatus

SETTINGS, LOGS = "config.yaml", ("metrics.jsonl", "summary.json")
MARKS = (SETTINGS, *LOGS)
APART = ("algorithm", "seed")  # keys in which arms and their runs are meant to differ
ROUNDING = 1e-6  # of a number of solved problems
ITERATIONS = "training.num_outer_iterations"  # covered by the common budget, unless a schedule depends on it
Subject = tuple[str, str, str]  # task, label of the model, name of the model


@dataclass(frozen=True)
class StoredRun:
    """The contents of a run folder: the resolved configuration, the lines of its logs (`heldout` is empty
    if the run wrote none), and summary.json. `apart` are settings outside of the algorithm that make another
    arm, by dotted key (see `told_apart`)."""

    folder: str
    config: Mapping[str, Any]
    metrics: Sequence[Record]
    evals: Sequence[Record]
    heldout: Sequence[Record]
    summary: Record
    apart: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def settings(self) -> StoredConfig:
        """`config` with typed groups."""
        return stored_config(self.config, self.folder)

    @property
    def seed(self) -> int:
        """The seed of problem order, sampling and minibatches."""
        return self.config["seed"]

    @property
    def algorithm(self) -> Mapping[str, Any]:
        """The resolved algorithm section, in which arms differ. What is named rloo and has token ratios is of
        the time when rloo_token had that name."""
        section = self.config["algorithm"]
        of_tokens = section["name"] == "rloo" and section["ratio_level"] == RatioLevel.token.value
        return {**section, "name": "rloo_token"} if of_tokens else section

    @property
    def arm_key(self) -> str:
        """Equal for the runs of one arm."""
        return json.dumps([self.algorithm, self.apart], sort_keys=True)

    @property
    def subject(self) -> Subject:
        """Task, label of the model, name of the model."""
        model = self.config["model"]
        return self.config["task"]["name"], model["label"], model["name"]

    @property
    def status(self) -> RunStatus:
        """How the run ended."""
        return RunStatus(self.summary["status"])

    @property
    def iterations(self) -> int:
        """The number of completed iterations."""
        return self.metrics[-1]["iteration"] if self.metrics else 0

    @property
    def planned(self) -> int:
        """The iterations that the run counts for: one that stopped early or collapsed keeps its last score to
        the end of its planned iterations."""
        if self.status is RunStatus.completed:
            return self.iterations
        return self.config["training"]["num_outer_iterations"]

    def last_heldout(self, end: int) -> Record | None:
        """The newest line of heldout.jsonl at or before iteration `end`."""
        inside = [line for line in self.heldout if line["iteration"] <= end]
        return inside[-1] if inside else None


def find_runs(paths: Sequence[Path], allow: Sequence[str] = ()) -> tuple[list[StoredRun], list[LeftOut]]:
    """All runs in `paths` that can be compared, and the folders that cannot, each with the reason.

    A path is a run folder, or a folder that contains some at any depth. The result does not depend on the
    order of `paths`; settings in `allow` may make arms. Raises UserError if a path does not exist or contains
    no run, or one of `allow` is no setting."""
    read, left_out = [], []
    for folder in run_folders(paths):
        try:
            read.append(read_run(folder))
        except UserError as error:
            reason = str(error).removeprefix(f"{folder}: ").removeprefix(f"{folder}{os.sep}")
            left_out.append(LeftOut(str(folder), reason))
    require_allowed(read, allow)
    read, repeats = _without_repeats(told_apart(read, allow))
    return read, sorted([*left_out, *repeats], key=lambda each: each.folder)


def told_apart(runs: Sequence[StoredRun], allow: Sequence[str]) -> list[StoredRun]:
    """The runs, with the settings in `allow` that make arms of this task and model: those in which runs of
    one algorithm and seed differ, at half of its seeds or more; a single such run is a repetition. How long a
    run is makes no arm."""
    seeds: dict[tuple[Subject, str], dict[int, list[StoredRun]]] = {}
    for run in runs:
        seeds.setdefault((run.subject, run.arm_key), {}).setdefault(run.seed, []).append(run)
    keys: dict[Subject, set[str]] = {}
    for (subject, _), own in seeds.items():
        differing = Counter(key for alike in own.values() for key in _differing(alike, allow))
        keys.setdefault(subject, set()).update(key for key, n in differing.items() if 2 * n >= len(own))
    return [
        replace(run, apart={key: computed(run.config).get(key) for key in sorted(keys[run.subject])})
        for run in runs
    ]


def _differing(alike: Sequence[StoredRun], allow: Sequence[str]) -> set[str]:
    """Settings in `allow` in which runs of one algorithm and seed differ."""
    found = {key for run in alike[1:] for key in changed_settings(alike[0].config, run.config)}
    return {key for key in found if within(key, allow) and not within(key, (*APART, ITERATIONS))}


def within(key: str, sections: Sequence[str]) -> bool:
    """Whether a dotted key is one of `sections`, or inside one."""
    return any(key == section or key.startswith(f"{section.rstrip('.')}.") for section in sections)


def run_folders(paths: Sequence[Path]) -> list[Path]:
    """Run folders in `paths`, sorted by name, each once. Raises UserError as `find_runs` does."""
    found: dict[Path, Path] = {}
    for path in paths:
        if not path.exists():
            raise UserError(f"{path}: does not exist; give run folders, or a folder that contains some")
        here = [path.parent] if path.is_file() and path.name in MARKS else list(_below(path))
        if not here:
            raise UserError(_no_run(path))
        for folder in here:
            known = found.setdefault(folder.resolve(), folder)
            found[folder.resolve()] = min(known, folder, key=lambda each: (len(str(each)), str(each)))
    return sorted(found.values(), key=str)


def _no_run(path: Path) -> str:
    packed = sorted(path.glob("*.[zZ][iI][pP]")) if path.is_dir() else []
    if packed:
        command = shlex.join(["gspo-compare", *map(str, packed)])
        return f"{path}: contains no run folder but packed comparisons; give their files: {command}"
    return f"{path}: contains no run (a folder with config.yaml and metrics.jsonl); train some"


def require_allowed(runs: Sequence[StoredRun], allow: Sequence[str]) -> None:
    """Raise UserError where one of `allow` is no setting of any run."""
    known = {key for run in runs for key in leaves(run.config)} if allow else set()
    for name in allow:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        require(
            not runs or any(within(key, [name]) for key in known),
            f"compare.allow: {name} is not a setting of these runs{hint}",
        )


def _below(path: Path) -> list[Path]:
    """Run folders in `path`, each real folder once; links are followed. A folder with only some files of a
    run counts as a (damaged or new) run only if no run is inside it."""
    whole, parts = [], []
    seen: set[Path] = set()
    for name, inner, files in os.walk(path, followlinks=True):
        folder, real = Path(name), Path(name).resolve()
        if real in seen:
            inner.clear()
            continue
        seen.add(real)
        tuning = {"trials"} if "runs" in inner else set()  # of a comparison: they chose settings
        inner[:] = sorted(each for each in set(inner) - tuning if not each.startswith("."))
        if SETTINGS in files and any(log in files for log in LOGS):
            inner.clear()  # a run contains no other run
            whole.append(folder)
        elif any(mark in files for mark in MARKS):
            parts.append(folder)
    above = {parent for folder in whole for parent in folder.parents}
    above |= {parent for folder in parts for parent in folder.parents}
    return [*whole, *(folder for folder in parts if folder not in above)]


def read_run(folder: Path) -> StoredRun:
    """The run in `folder`. Raises UserError with the reason where it has not ended or is incomplete."""
    config = read_stored(folder / "config.yaml").plain
    seed = config.get("seed", -1)
    if not is_count(seed) or seed >= 2**63:
        raise UserError("config.yaml has no seed; restore the file")
    if not any((folder / log).exists() for log in LOGS):
        resume = override("resume", folder)
        raise UserError(f"was prepared but never started; start it with gspo-train {resume}")
    summary = _summary(folder)
    metrics, evals = lines(folder / "metrics.jsonl"), lines(folder / "evals.jsonl")
    heldout = lines(folder / "heldout.jsonl") if (folder / "heldout.jsonl").exists() else []
    run = StoredRun(str(folder), config, metrics, evals, heldout, summary)
    _check_whole(run)
    return run


def _summary(folder: Path) -> dict[str, Any]:
    path = folder / "summary.json"
    resume = f"continue it with gspo-train {override('resume', folder)}"
    require_plain(path)
    try:
        summary = bounded_json(path.read_text(encoding="utf-8"))
        status, done, total = (summary[key] for key in ("status", "iterations", "total_iterations"))
        known = RunStatus(status), is_count(done), is_count(total), is_number(summary.get("wall_seconds"))
        if not all(known):
            raise ValueError("it has what no run writes")
    except FileNotFoundError as error:
        raise UserError(f"has not ended (no summary.json); {resume}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"summary.json cannot be read; {resume}") from error
    if status not in ENDED:
        word = "failed" if status == RunStatus.failed else "was interrupted"
        raise UserError(f"{word} after {done} of {total} iterations; {resume}")
    return summary


def _check_whole(run: StoredRun) -> None:
    """Raise UserError if the logs have gaps or do not match the summary."""
    places = [record["iteration"] for record in run.metrics]
    if places != list(range(1, len(places) + 1)):
        raise UserError("metrics.jsonl has gaps or repeated iterations; repeat the run")
    done = run.summary["iterations"]
    if run.iterations != done:
        raise UserError(
            f"metrics.jsonl ends at iteration {run.iterations}, summary.json at {done}: it is damaged, or "
            "the run is still in progress"
        )
    if not run.metrics:
        raise UserError("has no iterations; train it")
    tokens = [record["num_tokens"] for record in run.metrics]
    if tokens != sorted(tokens):
        raise UserError(f"num_tokens falls in metrics.jsonl, which counts all tokens; {RESTORE}")
    _check_evaluations(run)


def _check_evaluations(run: StoredRun) -> None:
    """Raise UserError if evaluations are missing: a run that has ended, however it did, has one at its
    end."""
    evaluated = [record["iteration"] for record in run.evals]
    if evaluated != sorted(set(evaluated)):
        raise UserError("evals.jsonl has repeated or unordered iterations; repeat the run")
    if not any(number_of(record, "score") is not None for record in run.evals):
        raise UserError("evals.jsonl has no held-out score; evaluate with evaluation.problems above 0")
    if evaluated[-1] != run.iterations:
        raise UserError(
            f"evals.jsonl ends at iteration {evaluated[-1]}, the run at {run.iterations}; {RESTORE}"
        )
    if number_of(run.evals[-1], "score") is None:
        raise UserError(
            "its last evaluation has no score, as every conversation was excluded; repeat the run"
        )
    held = [line["iteration"] for line in run.heldout]
    if held != evaluated[max(0, len(evaluated) - len(held)) :]:  # older runs began to write it later
        raise UserError(f"heldout.jsonl does not have the evaluations of evals.jsonl; {RESTORE}")
    for line, record in zip(reversed(run.heldout), reversed(run.evals), strict=False):
        if record.get("num_problems", len(line["problems"])) != len(line["problems"]):
            raise UserError(
                f"iteration {line['iteration']} has other numbers of problems in evals.jsonl and "
                f"heldout.jsonl; {RESTORE}"
            )
        counted = [solved for solved in line["solved"] if solved is not None]
        score = number_of(record, "score")
        if (score is None) != (not counted) or abs((score or 0) * len(counted) - sum(counted)) > ROUNDING:
            raise UserError(
                f"iteration {line['iteration']} has a score in evals.jsonl that is not the share solved in "
                f"heldout.jsonl; {RESTORE}"
            )


def _without_repeats(runs: Sequence[StoredRun]) -> tuple[list[StoredRun], list[LeftOut]]:
    """One run per task, model, arm and seed: the one that counts for most iterations; of equal ones the last
    by name, where names have times."""
    kept: dict[tuple[Subject, str, int], StoredRun] = {}
    for run in sorted(runs, key=lambda each: (each.planned, each.folder)):
        kept[run.subject, run.arm_key, run.seed] = run
    left_out = []
    for run in runs:
        counted = kept[run.subject, run.arm_key, run.seed]
        if counted is not run:
            why = f"repeats seed {run.seed} of {run.algorithm['name']}: {counted.folder} is used, "
            longer = counted.planned > run.planned
            why += f"which counts for {counted.planned} iterations" if longer else "the last by name"
            lost = "; this one collapsed, which is not counted" * (run.status is RunStatus.collapsed)
            left_out.append(LeftOut(run.folder, f"{why}; a repeated run is not a second sample{lost}"))
    return [run for run in runs if kept[run.subject, run.arm_key, run.seed] is run], left_out
