"""The report of gspo-doctor on a run folder: what its numbers show, and which commands to run next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gspo_cli.config.auto_hardware import visible_gpus
from gspo_cli.config.choices import Device
from gspo_cli.config.compose import OBJECT, composed, literal, plain_values
from gspo_cli.config.stored import StoredConfig, read_stored
from gspo_cli.config.typed import override
from gspo_cli.console.words import clean, counted, number
from gspo_cli.diagnosis.columns import rows_of
from gspo_cli.diagnosis.diagnosis import diagnose
from gspo_cli.diagnosis.guide import Answer, guide
from gspo_cli.diagnosis.history import Finding, History, Record, Severity
from gspo_cli.errors import UserError
from gspo_cli.manifest import damage
from gspo_cli.run.folder import RunFolder
from gspo_cli.run.identity import RESUMABLE, WRITTEN, leaves, matches
from gspo_cli.run.logs import each_record


@dataclass(frozen=True)
class Report:
    """What gspo-doctor reports on a run. `unread` names what of its logs and checkpoints could not be read;
    `commands` are (command, why)."""

    run: str
    verdict: str
    unread: str
    findings: Sequence[Finding]
    guide: Sequence[Answer]
    commands: Sequence[tuple[str, str]]


def examine(path: Path) -> Report:
    """The report on a run folder. Raises UserError if it is not one, or has no measurements yet."""
    if not path.is_dir():
        raise UserError(f"{path}: is not a folder; give a run folder of gspo-train")
    folder = RunFolder(path)
    config = read_stored(folder.config)
    metrics, damaged = read_numbers(path / "metrics.jsonl")
    evals, broken = read_numbers(path / "evals.jsonl")
    if not metrics and damaged:
        raise UserError(f"{path / 'metrics.jsonl'}: cannot be read from line 1 on; restore the file")
    if not metrics:
        raise UserError(f"{path}: has no iterations yet; try again after the first one")
    findings = diagnose(config, metrics, evals)
    history = History(config, metrics, evals)
    unread = damaged_checkpoints(folder.checkpoints)
    if damaged:
        last = metrics[-1]["iteration"]
        end = f"metrics.jsonl cannot be read from line {damaged} on; this report ends at iteration {last}"
        unread = [end, *unread]
    if broken:
        unread.append(f"evals.jsonl cannot be read from line {broken} on")
    return Report(
        str(path),
        verdict(config, history, findings),
        "; ".join(unread),
        findings,
        guide(history, findings, folder.read_card()),
        commands(path, config, metrics, findings),
    )


def damaged_checkpoints(folder: Path) -> list[str]:
    """What is wrong with the checkpoints in a folder, in words; every file is read."""
    found = ((path.name, damage(path)) for path in sorted(folder.glob("iteration-*")))
    return [f"checkpoint {name} is damaged ({what})" for name, what in found if what is not None]


def read_numbers(path: Path) -> tuple[Sequence[Record], int | None]:
    """`read_log`; only values that are numbers are kept."""
    damaged: list[int] = []

    def readable() -> Iterator[dict[str, Any]]:
        for record in each_record(path):
            if isinstance(record, int):
                damaged.append(record)
            else:
                yield record

    return rows_of(readable()), damaged[0] if damaged else None


def verdict(config: StoredConfig, history: History, findings: Sequence[Finding]) -> str:
    """One sentence: healthy or not, and which run."""
    serious = [finding for finding in findings if finding.severity is not Severity.note]
    done, total = history.everything[-1]["iteration"], config.training.num_outer_iterations
    task, model = config.task.get("name"), config.model.label
    about = f"{config.algorithm.name} on {task}, model {model}"
    name = "reward" if config.algorithm.pairs is None else "preference/accuracy"
    values = history.values(name)
    course = f", {name} {number(values[0])} to {number(values[-1])}" if values else ""
    state = "healthy" if not serious else counted(len(serious), "finding")
    return clean(f"{state}: {done} of {total} iterations of {about}{course}")


def commands(
    path: Path, config: StoredConfig, metrics: Sequence[Record], findings: Sequence[Finding]
) -> list[tuple[str, str]]:
    """What to run next: (command, why)."""
    serious = [finding for finding in findings if finding.severity is not Severity.note]
    wanted: dict[str, str] = {}
    for finding in serious:
        for setting in finding.settings:
            wanted.setdefault(setting.split("=")[0], setting)
    if not wanted or (config.reward or "").startswith(OBJECT):
        return []  # nothing to change, or only the script that created the reward can train again
    changes = " ".join(wanted.values())
    unfinished = metrics[-1]["iteration"] < config.training.num_outer_iterations
    resume = f"gspo-train {override('resume', path)}"
    if unfinished and all(matches(key, RESUMABLE) for key in wanted):
        return [(f"{resume} {changes}", "continue from the last checkpoint with these changes")]
    found = []
    if unfinished and any(finding.severity is Severity.collapse for finding in serious):
        why = "return to the checkpoint before the collapse and continue with a lower learning rate"
        found.append((f"{resume} training.on_collapse=rollback", why))
    own = own_overrides(config)
    if own is None:
        return [*found, (f"gspo-train ... {changes}", "a new run: your settings with these changes")]
    kept = [text for text in own if text.split("=")[0] not in wanted]
    why = "a new run with the settings of this one and the changes"
    return [*found, (" ".join(["gspo-train", *kept, changes]), why)]


def own_overrides(config: StoredConfig) -> list[str] | None:
    """The overrides that compose these settings from conf/. None if its options cannot express them."""
    hardware = config.hardware
    place = f"zero{hardware.zero_stage}" if hardware.zero_stage else "single_gpu"
    chosen = {
        "task": str(config.task.get("name")),
        "model": config.model.label,
        "algorithm": config.algorithm.name,
        "hardware": "cpu" if hardware.device is Device.cpu and not hardware.zero_stage else place,
        "logging": config.logging.report_to.value,
    }
    groups = [override(group, option) for group, option in chosen.items()]
    try:
        # both through OmegaConf, so that only real differences remain
        preset = leaves(plain_values(_options(*groups)))
    except (UserError, OmegaConfBaseException):
        return None
    own = leaves(plain_values(OmegaConf.create(literal(config.plain))))
    if any(key not in preset for key in own if key.startswith("task.")):
        return None
    changed = {
        key: value
        for key, value in own.items()
        if key in preset and preset[key] != value and key not in WRITTEN
    }
    usual = {"logging=none", "algorithm=gspo"} | (set() if visible_gpus() else {"hardware=cpu"})
    return [*(text for text in groups if text not in usual), *map(override, changed, changed.values())]


@cache
def _options(*groups: str) -> DictConfig:
    """conf/train.yaml with these options; its references are resolved by who reads it. The jobs of a sweep
    have the same ones, and to compose them takes a fifth of a second."""
    return composed(groups)
