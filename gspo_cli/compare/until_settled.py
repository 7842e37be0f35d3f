"""Trains seeds until the primary outcome is settled or a budget is used up, and keeps the looks that were
taken beside the runs, so that every later report on them knows that their number was not fixed.

What is decided depends on the stored runs and looks only, so that an interrupted comparison goes the same
way."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gspo_cli.compare.arms import arms_of, baseline_of
from gspo_cli.compare.comparability import differences, why_void
from gspo_cli.compare.missing_runs import ComparisonRun, SharedSettings, runs_to_compare, train_missing
from gspo_cli.compare.outcomes import PRIMARY, budget_of, measure, resolutions
from gspo_cli.compare.result import Design, LeftOut
from gspo_cli.compare.runs import StoredRun, read_run, told_apart
from gspo_cli.compare.sequential import SETTLED, Added, design_of
from gspo_cli.config.checks import require
from gspo_cli.config.choices import Until
from gspo_cli.config.compare_schema import CompareConfig
from gspo_cli.diagnosis.history import number_of
from gspo_cli.errors import UserError
from gspo_cli.launching.queue import QueuedJob, make_slots
from gspo_cli.plain_files import bounded_json, require_plain
from gspo_cli.run.files import write_atomically

FILE = re.compile(r"design-([0-9a-f]{8}|packed)\.json")  # of a design
NAME = re.compile(r"\w[\w.-]{0,199}", re.ASCII)  # of a run's folder
KEPT = ("level", "smallest", "baseline", "parallel")  # settings of a design that a report on it uses


@dataclass(frozen=True)
class StoredDesign:
    """design-<mark>.json of a comparison's folder: the seeds in their order, the numbers of them at which was
    looked, the names of the runs (all arms of the first seed, then of the next), and the settings KEPT."""

    path: Path
    seeds: Sequence[int]
    looks: Sequence[int]
    runs: Sequence[str]
    settings: Mapping[str, Any]

    @property
    def arms(self) -> int:
        """The number of arms, the baseline included."""
        return len(self.runs) // len(self.seeds)

    @property
    def added(self) -> Added:
        """The looks as the statistics take them."""
        return Added(self.seeds, self.looks, step_of(self.settings["parallel"], self.arms))

    def folders(self, seeds: int | None = None) -> list[Path]:
        """The run folders of the first `seeds` seeds, or of all."""
        names = self.runs[: None if seeds is None else seeds * self.arms]
        return [(self.path.parent / "runs" / name).resolve() for name in names]

    @property
    def text(self) -> str:
        """What `stored_design` reads back."""
        content = {"seeds": self.seeds, "looks": self.looks, "runs": self.runs, **self.settings}
        return json.dumps(content, indent=1) + "\n"

    def write(self) -> None:
        """Save it. Raises UserError if that fails."""
        write_atomically(self.path, self.text)

    def completed(self, settings: CompareConfig) -> CompareConfig:
        """The settings of a report, those KEPT that are not given from here."""
        return replace(settings, **{k: v for k, v in self.settings.items() if not settings.is_given(k)})


def stored_design(path: Path) -> StoredDesign:
    """The design in a file. Raises UserError if it is not one."""
    require_plain(path)
    try:
        found = bounded_json(path.read_text(encoding="utf-8"))
        seeds, looks, runs = (list(found[key]) for key in ("seeds", "looks", "runs"))
        settings = {key: found[key] for key in KEPT}
        whole = all(type(n) is int for n in (*seeds, *looks, settings["parallel"]))
        rising = looks == sorted(set(looks)) and (not looks or (looks[0] > 1 and looks[-1] <= len(seeds)))
        named = all(isinstance(name, str) and NAME.fullmatch(name) for name in runs)
        fits = (
            len(set(seeds)) == len(seeds) > 0
            and len(runs) >= 2 * len(seeds)
            and len(runs) % len(seeds) == 0
            and len(set(runs)) == len(runs)
        )
        if not (whole and rising and named and fits and isinstance(settings["baseline"], str | None)):
            raise ValueError("it is not a design")
        replace(CompareConfig(), **settings)
    except (OSError, ValueError, KeyError, TypeError, UserError) as error:
        raise UserError(f"{path}: cannot be read as the looks of a comparison; restore the file") from error
    return StoredDesign(path, seeds, looks, runs, settings)


def step_of(parallel: int, arms: int) -> int:
    """Seeds that are added before the next look: as many as train at once, one at least."""
    return max(1, parallel // arms)


def designs_of(folders: Sequence[Path]) -> list[StoredDesign]:
    """The designs beside run folders. Raises UserError as `stored_design` does."""
    places = sorted({folder.resolve().parent.parent for folder in folders})
    found = [path for place in places for path in sorted(place.glob("design-*.json"))]
    return [stored_design(path) for path in found if FILE.fullmatch(path.name)]


@dataclass(frozen=True)
class Looked:
    """Runs as their looks have them: those that were looked at and the others, the settings with those of the
    design that are not given, the design, and caveats about designs of which only some runs are compared."""

    runs: Sequence[StoredRun]
    left_out: Sequence[LeftOut]
    settings: CompareConfig
    design: StoredDesign | None = None
    caveats: Sequence[str] = ()

    @property
    def added(self) -> Added | None:
        """The looks as the statistics take them."""
        return self.design.added if self.design else None


def fixed_seeds(runs: Sequence[StoredRun], settings: CompareConfig) -> Looked:
    """Runs whose number was fixed in advance."""
    return Looked(runs, [], settings)


def looked_at(runs: Sequence[StoredRun], settings: CompareConfig) -> Looked:
    """The looks at these runs, if they have all those of a design; of several, of the one with as many arms,
    and most runs. Raises UserError as `stored_design` does, and if a run has another seed than a design has
    for it."""
    here = {Path(run.folder).resolve(): run for run in runs}
    arms, caveats = len(arms_of(runs, ())), []
    whole: list[tuple[StoredDesign, list[Path]]] = []
    for design in designs_of(list(here)):
        for place, folder in enumerate(design.folders()):
            seed = design.seeds[place // design.arms]
            require(
                folder not in here or here[folder].seed == seed,
                f"{design.path}: has seed {seed} for {folder.name}, which is not its seed; restore the file",
            )
        last = design.looks[-1] if design.looks else 0
        its = design.folders(last) if last else [folder for folder in design.folders() if folder in here]
        if its and here.keys() >= set(its) and (last or arms == design.arms):
            whole.append((design, its))
        elif here.keys() & set(design.folders()[(design.looks or [len(design.seeds)])[0] * design.arms :]):
            caveats.append(
                f"Some of these runs were added until another comparison was settled ({design.path}): p and "
                "intervals of differences, which take their number as fixed, find differences too easily."
            )
    if not whole:
        return Looked(runs, [], settings, caveats=caveats)
    design, its = max(whole, key=lambda pair: (pair[0].arms == arms, len(pair[1])))
    why = (
        f"is not among the runs that were looked at until they were settled ({design.path.name}); compare it "
        "with folders of single runs"
    )
    others = [LeftOut(run.folder, why) for folder, run in here.items() if folder not in its]
    used = design.completed(settings)
    design = replace(design, settings={key: getattr(used, key) for key in KEPT})  # as they are packed
    said = (
        f"The looks were taken at level {used.level:g} ({design.path}); compare.level={settings.level:g} "
        "tests at that level."
    )
    noted = (said,) if used.level != settings.level else ()
    return Looked([here[folder] for folder in its], others, used, design, noted)


def train_until_settled(
    shared: SharedSettings, settings: CompareConfig, first: Sequence[ComparisonRun]
) -> tuple[list[ComparisonRun], list[QueuedJob]]:
    """Train the runs of the first seeds, then batches of seeds, all arms of a seed together, until the
    primary outcome is settled in every arm, a run fails, or the budget is used up. Returns the runs, and how
    those that were trained ended."""
    fixed = replace(settings, until=Until.none)
    arms, hardware = len(settings.algorithms), first[0].config.hardware
    slots = make_slots(hardware.device, settings.parallel, hardware.processes or 1)
    settings = replace(settings, parallel=len(slots))
    design = _begun(first, settings)
    seeds = [*design.seeds, *seeds_in_order(settings)[len(design.seeds) :]]
    count = design.looks[-1] if design.looks else len(settings.seeds)
    runs = list(first[: count * arms])
    stored: list[StoredRun] = []
    ended: list[QueuedJob] = []
    while True:
        more = seeds[len(runs) // arms : count]
        runs += runs_to_compare(shared, replace(fixed, seeds=more)) if more else []
        design = replace(design, seeds=seeds[:count], runs=[run.folder.name for run in runs])
        design.write()
        ended += train_missing(runs[len(stored) :], settings)
        try:
            stored += [read_run(run.folder) for run in runs[len(stored) :]]
        except UserError as error:
            print(f"seeds up to {seeds[count - 1]}: a run {error}; no more seeds are added", flush=True)
            return runs, ended
        if count not in design.looks:
            design = replace(design, looks=[*design.looks, count])
            design.write()
        found, baseline, void = look(stored, settings, design.added)
        following = min(count + design.added.step, settings.max_seeds)
        why = void or _why_to_stop(found, stored, settings, count, following)
        adding = f"adding seed{'s' * (following - count > 1)} {', '.join(map(str, seeds[count:following]))}"
        print(f"after {count} seeds: {look_text(found, baseline)}; {why or adding}", flush=True)
        if why:
            return runs, ended
        count = following


def seeds_in_order(settings: CompareConfig) -> list[int]:
    """The seeds to begin with, then the next whole numbers without the seed of tuning trials."""
    more = [
        seed
        for seed in range(max(settings.seeds) + 1, max(settings.seeds) + settings.max_seeds + 2)
        if seed != settings.tune.seed
    ]
    return [*settings.seeds, *more][: settings.max_seeds]


def _begun(runs: Sequence[ComparisonRun], settings: CompareConfig) -> StoredDesign:
    """The design that these runs began, or a new one. Raises UserError if it began with other seeds."""
    folders, base = {run.folder.resolve() for run in runs}, runs[0].folder.parent.parent
    kept, seeds = {key: getattr(settings, key) for key in KEPT}, seeds_in_order(settings)
    for design in designs_of([run.folder for run in runs]):
        if folders & set(design.folders()):
            known = min(len(seeds), len(design.seeds))
            began = list(design.seeds[: design.looks[0] if design.looks else None])
            require(
                list(design.seeds[:known]) == seeds[:known],
                f"compare.seeds={settings.seeds}: {design.path} has begun to add seeds to {began}; give "
                "these, or seeds that it did not use",
            )
            return replace(design, settings=kept)
    mark = hashlib.sha256(" ".join(sorted(run.folder.name for run in runs)).encode()).hexdigest()[:8]
    return StoredDesign(base / f"design-{mark}.json", settings.seeds, [], [r.folder.name for r in runs], kept)


def look(runs: Sequence[StoredRun], settings: CompareConfig, added: Added) -> tuple[Design, str, str]:
    """What all looks so far find in these runs, the baseline, and why they are no comparison, if so."""
    runs = told_apart(runs, settings.allow)
    arms = arms_of(runs, settings.algorithms)
    baseline = baseline_of(arms, settings.baseline)
    budget = budget_of(runs, settings.threshold)
    values = {
        name: {run.seed: value for run in own if (value := measure(run, budget)[PRIMARY]) is not None}
        for name, own in arms.items()
    }
    step = resolutions(runs, budget)[PRIMARY]
    found = design_of(values, baseline, added, settings.level, settings.smallest, step)
    void = why_void(arms, differences(arms, settings.allow), budget)
    return found, baseline, "the runs cannot be compared" if void else ""


def is_settled(design: Design) -> bool:
    """Whether a look has settled the primary outcome of every arm."""
    return all(any(look.verdict in SETTLED for look in looks) for looks in design.looks.values())


def _why_to_stop(
    design: Design, runs: Sequence[StoredRun], settings: CompareConfig, count: int, more: int
) -> str:
    """Why no seeds are added; empty if some are."""
    if is_settled(design):
        return "settled"
    if more <= count:
        return f"compare.max_seeds={settings.max_seeds} is reached"
    seconds = sum(number_of(run.summary, "wall_seconds") or 0.0 for run in runs) / (settings.parallel or 1)
    if settings.max_hours is not None and seconds * more / count > settings.max_hours * 3600:
        return f"compare.max_hours={settings.max_hours:g} would be exceeded"
    return ""


def look_text(design: Design, baseline: str) -> str:
    """The last look in a line: gspo - grpo = 0.031 [-0.04, 0.10]: not settled."""
    parts = []
    for name, looks in design.looks.items():
        settled = next((each.verdict.value for each in looks if each.verdict in SETTLED), "not settled")
        parts.append(f"{name} - {baseline} = {looks[-1].difference}: {settled}")
    return "; ".join(parts)
