"""The runs that gspo-compare trains itself: all are composed and checked first, then the missing ones are
trained.

A run's folder is named after its algorithm, its seed and the fingerprint of its configuration, so that later
comparisons find the runs that are already complete."""

from __future__ import annotations

import hashlib
import importlib.util
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from gspo_cli.compare.arms import arms_of, baseline_of, resolved_settings
from gspo_cli.compare.runs import StoredRun, require_allowed, told_apart
from gspo_cli.config.auto_hardware import use_one_process
from gspo_cli.config.checks import override_key, require
from gspo_cli.config.compare_schema import CANDIDATES, CompareConfig
from gspo_cli.config.compose import build_config, composed, plain_values, resolved_yaml
from gspo_cli.config.old_logprobs import shared_by_runs
from gspo_cli.config.schema import RunConfig
from gspo_cli.config.trust import trust_own
from gspo_cli.config.typed import allowing
from gspo_cli.console.words import number
from gspo_cli.errors import UserError
from gspo_cli.launching.queue import QueuedJob, Status, make_slots, run_queue, training_job
from gspo_cli.launching.queue_table import make_table
from gspo_cli.run.folder import RunFolder
from gspo_cli.run.identity import State, changed_settings, fingerprint, prepare, state_of
from gspo_cli.sources import settled

RESERVED = ("algorithm", "seed", "resume", "hydra")  # set by the comparison
WIDTHS = ("clip_range_left", "clip_range_right")


@dataclass(frozen=True)
class ComparisonRun:
    """One run of a comparison: its entry of compare.algorithms, its checked configuration and its folder."""

    entry: str
    seed: int
    node: DictConfig
    config: RunConfig
    folder: Path

    @property
    def name(self) -> str:
        """Its name in the live table."""
        return f"{self.entry} s{self.seed}"


@dataclass(frozen=True)
class SharedSettings:
    """What all runs of a comparison share: overrides, and folders with custom options."""

    overrides: Sequence[str]
    directories: Sequence[Path] = ()

    def __post_init__(self) -> None:
        for directory in self.directories:
            require(
                directory.is_dir(), f"-cd {directory}: is not a folder; give a folder with custom options"
            )
        for text in self.overrides:
            key = override_key(text)
            group = key.partition("/")[0].partition(".")[0]
            require(
                key != "algorithm" and (group not in RESERVED or key.startswith("algorithm.")),
                f"{text}: is set by the comparison; use compare.algorithms and compare.seeds",
            )

    def run(self, entry: str, seed: int, base: Path | None, *more: str, place: str = "runs") -> ComparisonRun:
        """The run of `entry`, an option of the group algorithm followed by overrides, in the subfolder
        `place` of the comparison. Raises UserError if its configuration is not valid."""
        option, *own = shlex.split(entry)
        node = composed(
            [*self.overrides, f"algorithm={option}", *own, *more, f"seed={seed}"], self.directories
        )
        use_one_process(node)  # the runs share the GPUs
        settled(node, [*self.overrides, *own, *more])
        config = build_config(node)
        require(
            config.training.updates_per_iteration > 1 or not config.algorithm.weighs_by_ratio,
            "training.updates_per_rollout=1: the ratio is then 1 and nothing clips, so that GSPO and GRPO "
            "have the same gradient and there is nothing to compare; use 4",
        )
        require(
            config.hardware.nodes == 1,
            "hardware.nodes: gspo-compare starts runs on this machine; train on many nodes first, then "
            "compare the run folders",
        )
        settings = resolved_settings(node)
        mark = hashlib.sha256(f"{fingerprint(settings)} {input_digests(settings)}".encode()).hexdigest()[:8]
        base = base or Path("outputs", "compare", f"{config.task.name}-{config.model.label}")
        folder = base / place / f"{config.algorithm.name}-s{seed}-{mark}"
        return ComparisonRun(entry, seed, node, config, folder)


def runs_to_compare(shared: SharedSettings, settings: CompareConfig) -> list[ComparisonRun]:
    """All runs of a comparison, checked. All algorithms of one seed come first, then the next seed, so that
    an interrupted comparison has pairs."""
    require(
        len(settings.algorithms) > 1,
        f"compare.algorithms={settings.algorithms}: there is nothing to compare it with; give two or more",
    )
    base = None if settings.folder is None else Path(settings.folder)
    found = [shared.run(entry, seed, base) for seed in settings.seeds for entry in settings.algorithms]
    found = _deciding_together(found)
    seen: dict[Path, ComparisonRun] = {}
    for run in found:
        same = seen.setdefault(run.folder, run)
        require(
            same is run,
            f"compare.algorithms: {same.entry} and {run.entry} are the same configuration; leave one "
            "of them out",
        )
    stored = [StoredRun(str(run.folder), resolved_settings(run.node), (), (), (), {}) for run in found]
    # fail now rather than after hours of training
    require_allowed(stored, settings.allow)
    stored = told_apart(stored, settings.allow)
    _require_arms(stored, found)
    baseline_of(arms_of(stored, settings.algorithms), settings.baseline)
    return found


def _require_arms(stored: Sequence[StoredRun], runs: Sequence[ComparisonRun]) -> None:
    """Raise UserError where two entries are the same arm: one of them would be left out as a repetition."""
    seen: dict[tuple[str, int], tuple[StoredRun, str]] = {}
    for run, planned in zip(stored, runs, strict=True):
        first, entry = seen.setdefault((run.arm_key, run.seed), (run, planned.entry))
        if first is not run:
            keys = changed_settings(first.config, run.config)
            allowed = allowing(keys)
            fix = f"add {allowed} to compare them" if allowed else "leave one of them out"
            raise UserError(
                f"compare.algorithms: {entry} and {planned.entry} differ only in {','.join(keys)}, outside "
                f"of the algorithm; {fix}"
            )


def _deciding_together(runs: Sequence[ComparisonRun]) -> list[ComparisonRun]:
    """The runs with what they must have in common. Where that is not what a run would choose alone, it has
    another folder: in another comparison it may be a different run."""
    common = shared_by_runs([run.config for run in runs])
    found = []
    for run in runs:
        folder = run.folder
        if common != shared_by_runs([run.config]):
            name, _, mark = folder.name.rpartition("-")
            digest = hashlib.sha256(f"{mark} {sorted(common.items())}".encode()).hexdigest()
            folder = folder.with_name(f"{name}-{digest[:8]}")
        found.append(replace(run, folder=folder))
    for run in found:
        for name, value in common.items():
            run.node.rollout[name] = value
            setattr(run.config.rollout, name, value)
    return found


def input_digests(settings: Mapping[str, Any]) -> str:
    """Digests of what a run reads beside its settings: files that the task names, and the user's own modules.
    If they change, it is a different run."""
    files = [value for value in settings["task"].values() if isinstance(value, str) and Path(value).is_file()]
    for target in (settings["task"].get("_target_"), settings["reward"]):
        module = target.rpartition(".")[0] if target else ""
        if module and not module.startswith("gspo_cli."):
            spec = importlib.util.find_spec(module)
            files += [spec.origin] if spec is not None and spec.origin else []
    digests = [hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in files]
    return " ".join(digests)


def tune(shared: SharedSettings, settings: CompareConfig) -> tuple[CompareConfig, list[str], list[QueuedJob]]:
    """Train the tuning trials of each algorithm. Returns the settings with each algorithm replaced by its
    best trial, what was tried, in sentences, and how the trials ended."""
    trials = {entry: tuning_trials(shared, settings, entry) for entry in settings.algorithms}
    ended = train_missing([run for runs in trials.values() for run in runs], settings)
    chosen, notes = [], []
    for entry, runs in trials.items():
        rewards = {run.entry: reward_at_end(run.folder) for run in runs}
        complete = {tried: reward for tried, reward in rewards.items() if reward is not None}
        if not complete:
            raise UserError(f"compare.tune: all trials of {entry} failed; see {runs[0].folder}.log")
        best = max(complete, key=lambda tried: complete[tried])
        chosen.append(best)
        listed = "; ".join(
            f"{tried}: {'failed' if reward is None else number(reward)}" for tried, reward in rewards.items()
        )
        notes.append(
            f"{entry} was tuned with {len(runs)} trials, seed {settings.tune.seed}, by the training reward "
            f"at their end: {listed}. Chosen: {best}."
        )
    return replace(settings, algorithms=chosen), notes, ended


def tuning_trials(shared: SharedSettings, settings: CompareConfig, entry: str) -> list[ComparisonRun]:
    """The runs that tune the learning rate and the clip range of `entry`."""
    base = None if settings.folder is None else Path(settings.folder)
    tune = settings.tune
    preset = OmegaConf.select(shared.run(entry, tune.seed, base).node, "algorithm")
    more = ["evaluation.every=0"]
    if tune.iterations is not None:
        more.append(f"training.num_outer_iterations={tune.iterations}")
    found = []
    for rate, width in CANDIDATES[: tune.trials]:
        changed = " ".join([entry, *scaled_overrides(preset, rate, width)])
        found.append(shared.run(changed, tune.seed, base, *more, place="trials"))
    found = _deciding_together(found)
    return list({run.folder: run for run in found}.values())  # scaling a width of null changes nothing


def scaled_overrides(algorithm: DictConfig, rate: float, width: float) -> list[str]:
    """Overrides that scale the learning rate and the clip widths of `algorithm`; none for a factor of 1."""
    factors = {"learning_rate": rate, **dict.fromkeys(WIDTHS, width)}
    return [
        f"algorithm.{name}={algorithm[name] * factor:.4g}"
        for name, factor in factors.items()
        if factor != 1 and algorithm[name] is not None
    ]


def reward_at_end(folder: Path) -> float | None:
    """Mean training reward of the last tenth of a run, of three iterations at least. None if a reward is
    missing or the run is not complete."""
    if state_of(folder) is not State.complete:
        return None
    rewards: list[Any] = [line["reward"] for line in RunFolder(folder).read("metrics.jsonl")]
    last = rewards[-max(3, len(rewards) // 10) :]
    return None if not last or None in last else sum(last) / len(last)


def train_missing(runs: Sequence[ComparisonRun], settings: CompareConfig) -> list[QueuedJob]:
    """Train the runs that are not complete, each in its own process; returns how each of them ended. Raises
    KeyboardInterrupt after Ctrl-C, once the active runs have saved a checkpoint."""
    jobs = []
    for run in runs:
        trust_own(plain_values(run.node), RunConfig)
        if prepare(run.folder, resolved_yaml(run.node)) is not State.complete:
            log = run.folder.with_name(f"{run.folder.name}.log")
            iterations = run.config.training.num_outer_iterations
            jobs.append(training_job(run.name, run.folder, log, iterations))
    if len(jobs) < len(runs):
        print(f"{len(runs) - len(jobs)} of {len(runs)} runs are already complete", flush=True)
    if not jobs:
        return []
    hardware = runs[0].config.hardware
    slots = make_slots(hardware.device, settings.parallel, hardware.processes or 1)
    ended = run_queue(jobs, slots, make_table())
    if any(end.status in (Status.interrupted, Status.not_started) for end in ended):
        raise KeyboardInterrupt
    return ended
