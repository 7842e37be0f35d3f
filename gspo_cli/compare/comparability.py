"""Whether the runs are comparable: settings other than algorithm and seed that differ, different initial
models, and caveats. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gspo_cli.compare.outcomes import Budget, last_evaluation, score_curve
from gspo_cli.compare.runs import APART, ITERATIONS, StoredRun, within
from gspo_cli.compare.statistics import seeds_to_pair
from gspo_cli.config.choices import Schedule
from gspo_cli.config.typed import allowing
from gspo_cli.console.words import counted, number
from gspo_cli.diagnosis.history import CERTAIN, Record, number_of
from gspo_cli.errors import UserError
from gspo_cli.run.identity import computed
from gspo_cli.run.summary import RunStatus, score_error

Arms = Mapping[str, Sequence[StoredRun]]
SAME_SCORE = 1e-9
MOST_EXCLUDED = 0.1  # share of held-out conversations beyond which the scores are of other problems
VERSIONS = {"versions": "versions of packages", "git_commit": "states of the source"}
CARRIED = {
    RunStatus.collapsed: "collapsed before the end of the budget keep their last score",
    RunStatus.stopped_early: "stopped early at their score keep that score",
}


def refuse_one_update(runs: Sequence[StoredRun]) -> None:
    """Raise UserError if a run made one update per rollout."""
    for run in runs:
        training = run.config["training"]
        algorithm = run.config["algorithm"]
        by_ratio = (
            algorithm.get("preference", "none") == "none" and algorithm["advantage_baseline"] != "value"
        )
        if training["updates_per_rollout"] * training.get("passes", 1) == 1 and by_ratio:
            raise UserError(
                f"{run.folder}: training.updates_per_rollout=1: with one update per rollout the ratio is 1 "
                "and nothing clips: GSPO and GRPO have the same gradient; use training.updates_per_rollout=4"
            )


def differences(arms: Arms, allow: Sequence[str]) -> list[dict[str, Any]]:
    """Settings other than algorithm and seed that are not the same in all runs: key, values by arm, and
    whether `allow` (keys or sections) permits it."""
    runs = _runs(arms)
    settings = {id(run): computed(run.config) for run in runs}
    constant = all(run.settings.training.schedule is Schedule.constant for run in runs)
    skipped = (*APART, *([ITERATIONS] if constant else []))
    found = []
    for key in sorted({key for values in settings.values() for key in values}):
        if within(key, skipped):
            continue
        values = {name: _distinct(settings[id(run)].get(key) for run in each) for name, each in arms.items()}
        if len(_distinct(value for each in values.values() for value in each)) > 1:
            found.append({"key": key, "values": values, "allowed": within(key, allow)})
    return found


def _distinct(values: Iterable[Any]) -> list[Any]:
    by_text = {json.dumps(value, sort_keys=True): value for value in values}
    return [by_text[text] for text in sorted(by_text)]


def _runs(arms: Arms) -> list[StoredRun]:
    return [run for runs in arms.values() for run in runs]


def why_void(arms: Arms, found: Sequence[Mapping[str, Any]], budget: Budget) -> list[str]:
    """Sentences on why the comparison is inconclusive; empty if it is not. `found` are the differing
    settings."""
    reasons = []
    allowed = allowing([each["key"] for each in found])  # one command allows them all
    or_allow = f", or allow the difference with {allowed}" if allowed else ""
    for difference in (each for each in found if not each["allowed"]):
        key = difference["key"]
        listed = "; ".join(
            f"{name}: {', '.join(json.dumps(value) for value in values)}"
            for name, values in difference["values"].items()
        )
        reasons.append(f"{key} is not the same in all runs ({listed}); use one value{or_allow}.")
    heldout = [run.last_heldout(budget.iterations) for run in _runs(arms)]
    if len({tuple(line["problems"]) for line in heldout if line and line["problems"]}) > 1:
        reasons.append(
            "The held-out problems are not the same in all runs; evaluate all runs on the same problems."
        )
    for run in _runs(arms):
        if last_evaluation(run, budget.iterations)["iteration"] > budget.iterations:
            reasons.append(
                f"{run.folder} has no held-out score within the common budget of "
                f"{counted(budget.iterations, 'iteration')}; evaluate more often (evaluation.every)."
            )
    excluded = _excluded(arms, budget)
    if max(map(max, excluded.values())) > MOST_EXCLUDED:
        reasons.append(
            f"Over {MOST_EXCLUDED:.0%} of the held-out conversations of a run were excluded "
            f"({_shares(excluded)}): scores are of different problems; `excluded` in "
            "heldout.jsonl has the reason."
        )
    for seed, records in _first_evaluations(arms).items():
        scores = {name: record["score"] for name, record in records.items()}
        error = math.hypot(*(score_error(record) for record in records.values()))
        if _gap(scores) > CERTAIN * error + SAME_SCORE:
            reasons.append(
                f"Runs with seed {seed} did not start from the same weights: the held-out score before "
                f"training is {_listed(scores)}; give them the same initial model."
            )
    return reasons


def nothing_learned(arms: Arms, budget: Budget) -> tuple[str, str]:
    """A headline sentence and a caveat for runs that cannot separate the algorithms, because all solve
    everything or none learned. Both are empty if a run learned or was not evaluated before training."""
    runs = _runs(arms)
    ends = {score_curve(run, budget.iterations)[1][-1] for run in runs}
    if ends == {1.0}:
        return (
            "All runs solve everything: the final score says nothing about the algorithms.",
            "All runs end at a held-out score of 1: use harder problems.",
        )
    if not any(_learned(run, budget.iterations) for run in runs):
        return (
            "No run learned: the comparison says nothing about the algorithms.",
            f"No held-out score rose by more than {CERTAIN:g} standard errors over the one before training: "
            "train longer, or on problems that the model sometimes solves.",
        )
    if ends == {0.0}:
        return (
            "All runs end at 0: the final score says nothing about the algorithms.",
            "All held-out scores rose and then fell to 0: see collapses and the curves.",
        )
    return "", ""


def _learned(run: StoredRun, end: int) -> bool:
    """Whether the held-out score rose significantly above the one before training; True if that one is
    unknown."""
    first, *later = [r for r in run.evals if r["iteration"] <= end and number_of(r, "score") is not None] or [
        run.evals[0]
    ]
    if first["iteration"] > 0 or number_of(first, "score") is None:
        return True
    best = max(later, key=lambda record: record["score"], default=first)
    error = math.hypot(score_error(first), score_error(best))
    return best["score"] - first["score"] > CERTAIN * error


def caveats(arms: Arms, budget: Budget) -> list[str]:
    """Caveats about how the runs compare, as sentences."""
    found = [*_unequal_seeds(arms), *_unequal_lengths(arms, budget)]
    for seed, records in _first_evaluations(arms).items():
        scores = {name: record["score"] for name, record in records.items()}
        if _gap(scores) > SAME_SCORE:
            found.append(
                f"Seed {seed}: the held-out score before training differs ({_listed(scores)}): not exactly "
                "the same weights or arithmetic."
            )
    for seed, rewards in _first_rewards(arms).items():
        if _gap(rewards) > SAME_SCORE:
            found.append(
                f"Seed {seed}: the reward of the first iteration differs ({_listed(rewards)}): the first "
                "rollout was not the same."
            )
    excluded = _excluded(arms, budget)
    if 0 < max(map(max, excluded.values())) <= MOST_EXCLUDED:
        found.append(
            f"Some held-out conversations were excluded ({_shares(excluded)}): scores are not of quite the "
            "same problems."
        )
    for key, what in VERSIONS.items():
        if len({json.dumps(run.summary.get(key), sort_keys=True) for run in _runs(arms)}) > 1:
            found.append(f"Runs were made with different {what} (summary.json: {key}).")
    return found


def _excluded(arms: Arms, budget: Budget) -> dict[str, list[float]]:
    """arm -> share of the held-out conversations of each run's last evaluation that were excluded."""
    last = {name: [last_evaluation(run, budget.iterations) for run in runs] for name, runs in arms.items()}
    return {
        name: [(number_of(r, "excluded") or 0.0) / (number_of(r, "num_problems") or 1.0) for r in records]
        for name, records in last.items()
    }


def _shares(excluded: Mapping[str, Sequence[float]]) -> str:
    return ", ".join(f"{name} up to {max(shares):.0%}" for name, shares in excluded.items())


def _unequal_seeds(arms: Arms) -> list[str]:
    seeds = {name: sorted(run.seed for run in runs) for name, runs in arms.items()}
    found = [
        f"{name} has only one seed: it has no interval and the result is inconclusive."
        for name, own in seeds.items()
        if len(own) == 1
    ]
    if len({tuple(own) for own in seeds.values()}) > 1:
        listed = "; ".join(f"{name}: {', '.join(map(str, own))}" for name, own in seeds.items())
        found.append(f"The arms do not have the same seeds ({listed}): {_how_paired(seeds)}.")
    return found


def _how_paired(seeds: Mapping[str, Sequence[int]]) -> str:
    """Which seeds the differences between each arm and the baseline, the last one, are computed over."""
    *others, baseline = seeds
    how = []
    for name in others:
        shared = seeds_to_pair(seeds[name], seeds[baseline])
        over = f"over the shared seeds {', '.join(map(str, shared))}" if shared else "of all runs, unpaired"
        how.append(f"differences between {name} and {baseline} are {over}")
    return "; ".join(how)


def _unequal_lengths(arms: Arms, budget: Budget) -> list[str]:
    runs, found = _runs(arms), []
    planned = [run.planned for run in runs]
    if len(set(planned)) > 1:
        lengths = f"{min(planned)} to {max(planned)} iterations"
        found.append(f"Runs are of different lengths ({lengths}): all are compared at {budget.iterations}.")
    for status, words in CARRIED.items():
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
    """seed -> arm -> evaluation before training, for seeds that several arms have."""
    found: dict[int, dict[str, Record]] = {}
    for name, runs in arms.items():
        for run in runs:
            first = run.evals[0]
            if first["iteration"] == 0 and number_of(first, "score") is not None:
                found.setdefault(run.seed, {})[name] = first
    return {seed: found[seed] for seed in sorted(found) if len(found[seed]) > 1}


def _first_rewards(arms: Arms) -> dict[int, dict[str, float]]:
    """seed -> arm -> reward of the first iteration, for seeds that several arms have."""
    found: dict[int, dict[str, float]] = {}
    for name, runs in arms.items():
        for run in runs:
            reward = number_of(run.metrics[0], "reward")
            if reward is not None:
                found.setdefault(run.seed, {})[name] = reward
    return {seed: found[seed] for seed in sorted(found) if len(found[seed]) > 1}


def _gap(values: Mapping[str, float]) -> float:
    return max(values.values()) - min(values.values())


def _listed(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {number(value)}" for name, value in values.items())
