"""The runs that gspo-compare makes itself: composed and checked first, then trained where they are not there.

A run's folder is named after its algorithm, its seed and the fingerprint of its configuration, so that what
was trained before is found again, by this comparison or the next."""

from __future__ import annotations

import hashlib
import importlib.util
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from gspo_cli.compare.naming import arms_of, baseline_of
from gspo_cli.compare.runs import StoredRun
from gspo_cli.config.checks import require
from gspo_cli.config.compare_schema import CANDIDATES, CompareConfig
from gspo_cli.config.compose import build_config, composed, resolved_yaml
from gspo_cli.config.schema import RunConfig
from gspo_cli.launching.queue import QueuedJob, Status, make_slots, run_queue, training_job
from gspo_cli.launching.queue_table import make_table
from gspo_cli.run.folder import RunFolder
from gspo_cli.run.identity import State, fingerprint, prepare, state_of

OURS = ("algorithm", "seed", "resume", "hydra")  # decided by the comparison
WIDTHS = ("clip_range_left", "clip_range_right")


@dataclass(frozen=True)
class Planned:
    """One run: what was asked for, its checked configuration, and where it is or will be."""

    entry: str
    seed: int
    node: DictConfig
    config: RunConfig
    folder: Path

    @property
    def name(self) -> str:
        """What the live table calls it."""
        return f"{self.entry} s{self.seed}"


@dataclass(frozen=True)
class Source:
    """What all runs of a comparison share: overrides, and folders with options of one's own."""

    overrides: Sequence[str]
    directories: Sequence[Path] = ()

    def __post_init__(self) -> None:
        for directory in self.directories:
            require(directory.is_dir(), f"-cd {directory}: is not a folder; give one with your own options")
        for text in self.overrides:
            key = text.lstrip("+~").partition("=")[0]
            group = key.partition("/")[0].partition(".")[0]
            require(
                key != "algorithm" and (group not in OURS or key.startswith("algorithm.")),
                f"{text}: is decided by the comparison; use compare.algorithms and compare.seeds",
            )

    def run(self, entry: str, seed: int, base: Path | None, *more: str, place: str = "runs") -> Planned:
        """The run of `entry`, an option of the group algorithm with overrides after it, in the folder `place`
        of the comparison. Raises UserError."""
        option, *own = shlex.split(entry)
        node = composed(
            [*self.overrides, f"algorithm={option}", *own, *more, f"seed={seed}"], self.directories
        )
        config = build_config(node)
        require(
            config.training.updates_per_rollout > 1,
            "training.updates_per_rollout=1: the ratio is then 1 and nothing clips, so that GSPO and GRPO "
            "have the same gradient and there is nothing to compare; use 4",
        )
        require(
            config.hardware.nodes == 1,
            "hardware.nodes: gspo-compare starts runs on this machine; train on many nodes first, then "
            "compare the run folders",
        )
        settings = as_saved(node)
        mark = hashlib.sha256(f"{fingerprint(settings)} {sources(settings)}".encode()).hexdigest()[:8]
        base = base or Path("outputs", "compare", f"{config.task.name}-{config.model.label}")
        return Planned(entry, seed, node, config, base / place / f"{config.algorithm.name}-s{seed}-{mark}")


def plan(source: Source, settings: CompareConfig) -> list[Planned]:
    """All runs of a comparison, checked, seeds of one after the other so that a cut comparison has pairs."""
    require(
        len(settings.algorithms) > 1,
        f"compare.algorithms={settings.algorithms}: there is nothing to compare it with; give two or more",
    )
    base = None if settings.folder is None else Path(settings.folder)
    found = [source.run(entry, seed, base) for seed in settings.seeds for entry in settings.algorithms]
    seen: dict[Path, Planned] = {}
    for run in found:
        same = seen.setdefault(run.folder, run)
        require(
            same is run,
            f"compare.algorithms: {same.entry} and {run.entry} are one configuration; leave one of them out",
        )
    stored = [StoredRun(str(run.folder), as_saved(run.node), (), (), (), {}) for run in found]
    baseline_of(arms_of(stored, settings.algorithms), settings.baseline)  # before hours of training
    return found


def as_saved(node: DictConfig) -> dict[str, Any]:
    """A configuration as config.yaml holds it."""
    return OmegaConf.to_container(node, resolve=True, enum_to_str=True)


def sources(settings: Mapping[str, Any]) -> str:
    """What a run reads beside its settings, as a digest: files that the task names, and modules of the user's
    own. Runs from before a change of theirs are other runs."""
    files = [value for value in settings["task"].values() if isinstance(value, str) and Path(value).is_file()]
    for target in (settings["task"].get("_target_"), settings["reward"]):
        module = target.rpartition(".")[0] if target else ""
        if module and not module.startswith("gspo_cli."):
            spec = importlib.util.find_spec(module)
            files += [spec.origin] if spec is not None and spec.origin else []
    digests = [hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in files]
    return " ".join(digests)


def trials(source: Source, settings: CompareConfig, entry: str) -> list[Planned]:
    """The runs by which the learning rate and the clip range of `entry` are tuned."""
    base = None if settings.folder is None else Path(settings.folder)
    tune = settings.tune
    own = OmegaConf.select(source.run(entry, tune.seed, base).node, "algorithm")
    shared = ["evaluation.every=0"]
    if tune.iterations is not None:
        shared.append(f"training.num_outer_iterations={tune.iterations}")
    found = []
    for rate, width in CANDIDATES[: tune.trials]:
        changes = scaled(own, rate, width)
        added = " ".join([entry, *changes])
        found.append(source.run(added, tune.seed, base, *shared, place="trials"))
    return list({run.folder: run for run in found}.values())  # a width that is not there cannot be scaled


def scaled(algorithm: DictConfig, rate: float, width: float) -> list[str]:
    """Overrides for a learning rate and clip widths that are multiples of `algorithm`'s; nothing for what
    stays."""
    factors = {"learning_rate": rate, **dict.fromkeys(WIDTHS, width)}
    return [
        f"algorithm.{name}={algorithm[name] * factor:.4g}"
        for name, factor in factors.items()
        if factor != 1 and algorithm[name] is not None
    ]


def reward_at_end(folder: Path) -> float | None:
    """Mean training reward of the last tenth of a run, of three iterations at least. None where a reward is
    missing, or the run did not come to its end."""
    if state_of(folder) is not State.complete:
        return None
    rewards: list[Any] = [line["reward"] for line in RunFolder(folder).read("metrics.jsonl")]
    last = rewards[-max(3, len(rewards) // 10) :]
    return None if not last or None in last else sum(last) / len(last)


def train_all(planned: Sequence[Planned], settings: CompareConfig) -> list[QueuedJob]:
    """Train those of `planned` that are not complete, each in a process of its own; returns how each of them
    ended. Raises KeyboardInterrupt after Ctrl-C, when those that ran have saved a checkpoint."""
    jobs = []
    for run in planned:
        if prepare(run.folder, resolved_yaml(run.node)) is not State.complete:
            log = run.folder.with_name(f"{run.folder.name}.log")
            iterations = run.config.training.num_outer_iterations
            jobs.append(training_job(run.name, run.folder, log, iterations))
    if len(jobs) < len(planned):
        print(f"{len(planned) - len(jobs)} of {len(planned)} runs are already complete", flush=True)
    if not jobs:
        return []
    hardware = planned[0].config.hardware
    slots = make_slots(hardware.device, settings.parallel, hardware.processes or 1)
    ended = run_queue(jobs, slots, make_table())
    if any(end.status in (Status.interrupted, Status.not_started) for end in ended):
        raise KeyboardInterrupt
    return ended
