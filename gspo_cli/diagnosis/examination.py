"""The report of gspo-doctor on a run folder: what its numbers show, and which commands to run next."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gspo_cli.config.compose import OBJECT, composed, literal
from gspo_cli.console.words import clean, number, override
from gspo_cli.diagnosis.diagnosis import diagnose, settings_of
from gspo_cli.diagnosis.guide import Answer, guide
from gspo_cli.diagnosis.history import Finding, History, Record, Severity, number_of
from gspo_cli.errors import UserError
from gspo_cli.run.folder import RunFolder
from gspo_cli.run.identity import RESUMABLE, leaves, matches


@dataclass(frozen=True)
class Report:
    """What gspo-doctor reports on a run. `unread` names the part of its logs that could not be read;
    `commands` are (command, why)."""

    run: str
    verdict: str
    unread: str
    findings: Sequence[Finding]
    guide: Sequence[Answer]
    commands: Sequence[tuple[str, str]]


def examine(path: Path) -> Report:
    """The report on a run folder. Raises UserError where it is not one, or has no measurements yet."""
    if not path.is_dir():
        raise UserError(f"{path}: is not a folder; give a run folder of gspo-train")
    folder = RunFolder(path)
    settings = settings_of(folder.config)
    metrics, damaged = read_log(path / "metrics.jsonl")
    evals, _ = read_log(path / "evals.jsonl")
    if not metrics and damaged:
        raise UserError(f"{path / 'metrics.jsonl'}: cannot be read from line 1 on; restore the file")
    if not metrics:
        raise UserError(f"{path}: has no iterations yet; try again after the first one")
    findings = diagnose(settings, metrics, evals)
    history = History(settings, metrics, evals)
    card = path / "card.txt"
    text = card.read_text(encoding="utf-8", errors="replace") if card.exists() else ""
    unread = ""
    if damaged:
        last = metrics[-1]["iteration"]
        unread = f"metrics.jsonl cannot be read from line {damaged} on; this report ends at iteration {last}"
    return Report(
        str(path),
        verdict(settings, history, findings),
        unread,
        findings,
        guide(history, findings, text),
        commands(path, settings, metrics, findings),
    )


def read_log(path: Path) -> tuple[list[Record], int | None]:
    """The records of a log up to the first damaged line, and the number of that line. Only values that are
    numbers are kept."""
    if not path.exists():
        return [], None
    found: list[Record] = []
    # not splitlines: it also breaks at U+2028 and the like
    for place, line in enumerate(path.read_text(encoding="utf-8", errors="replace").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            return found, place
        if not isinstance(record, dict) or number_of(record, "iteration") is None:
            return found, place
        found.append({name: value for name, value in record.items() if isinstance(value, int | float)})
    return found, None


def verdict(settings: Mapping[str, Any], history: History, findings: Sequence[Finding]) -> str:
    """One sentence: healthy or not, and which run."""
    serious = [finding for finding in findings if finding.severity is not Severity.note]
    done, total = history.everything[-1]["iteration"], settings["training"]["num_outer_iterations"]
    task, model = settings["task"].get("name"), settings["model"]["label"]
    about = f"{settings['algorithm']['name']} on {task}, model {model}"
    rewards = history.values("reward")
    course = f", reward {number(rewards[0])} to {number(rewards[-1])}" if rewards else ""
    state = "healthy" if not serious else f"{len(serious)} finding{'s' * (len(serious) > 1)}"
    return clean(f"{state}: {done} of {total} iterations of {about}{course}")


def commands(
    path: Path, settings: Mapping[str, Any], metrics: Sequence[Record], findings: Sequence[Finding]
) -> list[tuple[str, str]]:
    """What to run next: (command, why)."""
    serious = [finding for finding in findings if finding.severity is not Severity.note]
    wanted: dict[str, str] = {}
    for finding in serious:
        for setting in finding.settings:
            wanted.setdefault(setting.split("=")[0], setting)
    if not wanted or str(settings.get("reward") or "").startswith(OBJECT):
        return []  # nothing to change, or only the script that made the reward can train again
    changes = " ".join(wanted.values())
    unfinished = metrics[-1]["iteration"] < settings["training"]["num_outer_iterations"]
    resume = f"gspo-train {override('resume', str(path))}"
    if unfinished and all(matches(key, RESUMABLE) for key in wanted):
        return [(f"{resume} {changes}", "continue from the last checkpoint with these changes")]
    found = []
    if unfinished and any(finding.severity is Severity.collapse for finding in serious):
        why = "return to the checkpoint before the collapse and continue with a lower learning rate"
        found.append((f"{resume} training.on_collapse=rollback", why))
    own = own_overrides(settings)
    if own is None:
        return [*found, (f"gspo-train ... {changes}", "a new run: your settings with these changes")]
    kept = [text for text in own if text.split("=")[0] not in wanted]
    why = "a new run with the settings of this one and the changes"
    return [*found, (" ".join(["gspo-train", *kept, changes]), why)]


def own_overrides(settings: Mapping[str, Any]) -> list[str] | None:
    """The overrides that compose these settings from conf/. None where its options cannot express them."""
    hardware = settings["hardware"]
    place = f"zero{hardware['zero_stage']}" if hardware["zero_stage"] else "single_gpu"
    chosen = {
        "task": str(settings["task"].get("name")),
        "model": settings["model"]["label"],
        "algorithm": settings["algorithm"]["name"],
        "hardware": "cpu" if hardware["device"] == "cpu" and not hardware["zero_stage"] else place,
        "logging": settings["logging"]["report_to"],
    }
    groups = [override(group, option) for group, option in chosen.items()]
    try:
        # both through OmegaConf, so that only real differences remain
        preset = leaves(plain(composed(groups)))
    except (UserError, OmegaConfBaseException):
        return None
    own = leaves(plain(OmegaConf.create(literal(settings))))
    if any(key not in preset for key in own if key.startswith("task.")):
        return None
    changed = {
        key: value for key, value in own.items() if key in preset and preset[key] != value and key != "resume"
    }
    usual = {"hardware=cpu", "logging=none", "algorithm=gspo"}
    return [*(text for text in groups if text not in usual), *map(typed, changed, changed.values())]


def plain(node: DictConfig) -> dict[str, Any]:
    """A configuration as plain values."""
    values: Any = OmegaConf.to_container(node, resolve=True, enum_to_str=True)  # typed as any container
    return values


def typed(key: str, value: Any) -> str:
    """A setting as an override, quoted for a shell."""
    if isinstance(value, str):
        return override(key, value)
    # Hydra takes null, true, numbers and lists as JSON has them
    text = f"{key}={json.dumps(value, ensure_ascii=False)}"
    return text if isinstance(value, bool | int | float | None) else shlex.quote(text)
