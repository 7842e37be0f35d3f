"""Whether runs may be held against each other: settings that differ beside algorithm and seed, and whether
runs of one seed began alike. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gspo_cli.compare.outcomes import Budget, last_evaluation, score_curve
from gspo_cli.compare.problems import last_heldout
from gspo_cli.compare.runs import StoredRun
from gspo_cli.compare.statistics import seeds_to_pair
from gspo_cli.console.words import number
from gspo_cli.diagnosis.history import Record, number_of
from gspo_cli.errors import UserError
from gspo_cli.run.identity import computed
from gspo_cli.run.summary import RunStatus

Arms = Mapping[str, Sequence[StoredRun]]
APART = ("algorithm", "seed")  # what arms and their runs are meant to differ in
ITERATIONS = "training.num_outer_iterations"  # the common budget takes care of it, but for schedules
ROUNDING = 1e-9
CERTAIN = 2.0  # standard errors beyond which a different start is another model


def refuse_one_update(runs: Sequence[StoredRun]) -> None:
    """Raise UserError where a run made one update per rollout."""
    for run in runs:
        if run.config["training"]["updates_per_rollout"] == 1:
            raise UserError(
                f"{run.folder}: training.updates_per_rollout=1: with one update per rollout the "
                "ratio is 1 and "
                "nothing clips: GSPO and GRPO have the same gradient; use training.updates_per_rollout=4"
            )


def differences(arms: Arms, allow: Sequence[str]) -> list[dict[str, Any]]:
    """Settings beside algorithm and seed that are not the same in all runs: key, values by arm, and whether
    `allow` (keys, or sections of them) asks for it."""
    runs = [run for each in arms.values() for run in each]
    settings = {id(run): computed(run.config) for run in runs}
    constant = all(run.config["training"]["schedule"] == "constant" for run in runs)
    skipped = (*APART, *([ITERATIONS] if constant else []))
    found = []
    for key in sorted({key for values in settings.values() for key in values}):
        if within(key, skipped):
            continue
        values = {name: _distinct(settings[id(run)].get(key) for run in each) for name, each in arms.items()}
        if len(_distinct(value for each in values.values() for value in each)) > 1:
            found.append({"key": key, "values": values, "allowed": within(key, allow)})
    return found


def within(key: str, sections: Sequence[str]) -> bool:
    """Whether a dotted key is one of `sections`, or inside one."""
    return any(key == section or key.startswith(f"{section.rstrip('.')}.") for section in sections)


def _distinct(values: Iterable[Any]) -> list[Any]:
    by_text = {json.dumps(value, sort_keys=True): value for value in values}
    return [by_text[text] for text in sorted(by_text)]


def why_void(arms: Arms, found: Sequence[Mapping[str, Any]], budget: Budget) -> list[str]:
    """Why no verdict is allowed, in sentences; nothing where one is."""
    reasons = []
    for difference in found:
        if not difference["allowed"]:
            listed = "; ".join(
                f"{name}: {', '.join(json.dumps(value) for value in values)}"
                for name, values in difference["values"].items()
            )
            key = difference["key"]
            reasons.append(
                f"{key} is not the same in all runs ({listed}); make it so, or ask for it with "
                f"compare.allow=[{key}]."
            )
    if len({problems for runs in arms.values() for run in runs if (problems := _problems(run, budget))}) > 1:
        reasons.append("The held-out problems are not the same in all runs; evaluate all on the same.")
    for seed, records in _first_evaluations(arms).items():
        scores = {name: record["score"] for name, record in records.items()}
        gap = max(scores.values()) - min(scores.values())
        error = math.hypot(*(_error(record) for record in records.values()))
        if gap > CERTAIN * error + ROUNDING:
            reasons.append(
                f"Runs of seed {seed} did not start from the same weights: the held-out score "
                "before training is "
                f"{_listed(scores)}; give them one initial model."
            )
    return reasons


def nothing_learned(arms: Arms, budget: Budget) -> tuple[str, str]:
    """That the runs cannot tell algorithms apart, for all of them solve everything or none learned, as a
    verdict and as a caution; nothing where one did, or was not evaluated before training."""
    runs = [run for each in arms.values() for run in each]
    ends = {score_curve(run, budget.iterations)[1][-1] for run in runs}
    if ends == {1.0}:
        return (
            "All runs solve everything: the score at the end says nothing about the algorithms.",
            "All runs end at a held-out score of 1: take harder problems.",
        )
    if not any(_learned(run, budget.iterations) for run in runs):
        return (
            "No run learned: this says nothing about the algorithms.",
            f"No held-out score rose by more than {CERTAIN:g} standard errors over the one before training: "
            "train longer, or on problems that the model solves now and then.",
        )
    if ends == {0.0}:
        return (
            "All runs end at 0: the score at the end says nothing about the algorithms.",
            "All runs end at a held-out score of 0, after they had risen: see collapses and the curves.",
        )
    return "", ""


def _learned(run: StoredRun, end: int) -> bool:
    """Whether the held-out score rose above the one before training by more than chance; taken to be so where
    that one is not known."""
    first, *later = [r for r in run.evals if r["iteration"] <= end and number_of(r, "score") is not None] or [
        run.evals[0]
    ]
    if first["iteration"] > 0:
        return True
    best = max(later, key=lambda record: record["score"], default=first)
    error = math.hypot(_error(first), _error(best))
    return best["score"] - first["score"] > CERTAIN * error


def cautions(arms: Arms, budget: Budget) -> list[str]:
    """What a reader must know of how the runs compare, in sentences."""
    found = [*_seeds(arms), *_lengths(arms, budget)]
    for seed, records in _first_evaluations(arms).items():
        scores = {name: record["score"] for name, record in records.items()}
        if max(scores.values()) - min(scores.values()) > ROUNDING:
            found.append(
                f"Seed {seed}: the held-out score before training differs ({_listed(scores)}): "
                "not exactly the "
                "same weights or arithmetic."
            )
    for seed, rewards in _first_rewards(arms).items():
        if max(rewards.values()) - min(rewards.values()) > ROUNDING:
            found.append(
                f"Seed {seed}: the reward of the first iteration differs ({_listed(rewards)}): "
                "the first rollout "
                "was not the same."
            )
    runs = [run for each in arms.values() for run in each]
    versions = {json.dumps(run.summary.get("versions"), sort_keys=True) for run in runs}
    commits = {run.summary.get("git_commit") for run in runs}
    if len(versions) > 1:
        found.append("Runs were made with different versions of packages (summary.json: versions).")
    if len(commits) > 1:
        found.append("Runs were made with different states of the source (summary.json: git_commit).")
    return found


def _seeds(arms: Arms) -> list[str]:
    seeds = {name: sorted(run.seed for run in runs) for name, runs in arms.items()}
    found = [
        f"{name} has one seed only: no interval and no verdict."
        for name, own in seeds.items()
        if len(own) == 1
    ]
    if len({tuple(own) for own in seeds.values()}) > 1:
        listed = "; ".join(f"{name}: {', '.join(map(str, own))}" for name, own in seeds.items())
        found.append(f"The arms do not have the same seeds ({listed}): {_how_paired(seeds)}.")
    return found


def _how_paired(seeds: Mapping[str, Sequence[int]]) -> str:
    """Over which seeds the differences between the baseline, the last arm, and each other one are."""
    *others, baseline = seeds
    how = []
    for name in others:
        shared = seeds_to_pair(seeds[name], seeds[baseline])
        over = f"over the shared seeds {', '.join(map(str, shared))}" if shared else "of all runs, unpaired"
        how.append(f"differences between {name} and {baseline} are {over}")
    return "; ".join(how)


def _lengths(arms: Arms, budget: Budget) -> list[str]:
    runs = [run for each in arms.values() for run in each]
    found = []
    if len({run.planned for run in runs}) > 1:
        lengths = f"{min(run.planned for run in runs)} to {max(run.planned for run in runs)} iterations"
        found.append(f"Runs are of different lengths ({lengths}): all are compared at {budget.iterations}.")
    for status, words in (
        (
            RunStatus.collapsed,
            "collapsed before the budget's end keep their last score",
        ),
        (RunStatus.stopped_early, "stopped early at their score keep that score"),
    ):
        counts = {
            name: sum(run.status is status and run.iterations < budget.iterations for run in each)
            for name, each in arms.items()
        }
        if any(counts.values()):
            listed = ", ".join(f"{count} of {len(arms[name])} {name}" for name, count in counts.items())
            found.append(f"Runs that {words} ({listed}).")
    completed = [run for run in runs if run.status is RunStatus.completed]
    ends = {last_evaluation(run, budget.iterations)["iteration"] for run in completed}
    if len(ends) > 1:
        found.append(
            f"The last evaluation within the budget was not at the same iteration in all runs "
            f"({', '.join(map(str, sorted(ends)))})."
        )
    return found


def _first_evaluations(arms: Arms) -> dict[int, dict[str, Record]]:
    """seed -> arm -> evaluation before training, of seeds that several arms have."""
    found: dict[int, dict[str, Record]] = {}
    for name, runs in arms.items():
        for run in runs:
            first = run.evals[0]
            if first["iteration"] == 0 and number_of(first, "score") is not None:
                found.setdefault(run.seed, {})[name] = first
    return {seed: found[seed] for seed in sorted(found) if len(found[seed]) > 1}


def _first_rewards(arms: Arms) -> dict[int, dict[str, float]]:
    found: dict[int, dict[str, float]] = {}
    for name, runs in arms.items():
        for run in runs:
            reward = number_of(run.metrics[0], "reward")
            if reward is not None:
                found.setdefault(run.seed, {})[name] = reward
    return {seed: found[seed] for seed in sorted(found) if len(found[seed]) > 1}


def _problems(run: StoredRun, budget: Budget) -> tuple[str, ...]:
    line = last_heldout(run, budget.iterations)
    return tuple(line["problems"]) if line else ()


def _error(record: Record) -> float:
    """Binomial standard error of a held-out score."""
    share = min(1.0, max(0.0, record["score"]))
    return math.sqrt(share * (1 - share) / max(1.0, number_of(record, "num_problems") or 1.0))


def _listed(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {number(value)}" for name, value in values.items())
