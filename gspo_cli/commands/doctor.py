"""`gspo-doctor`: what is wrong with a run, from its own numbers, and what to type. Loads no torch."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gspo_cli.commands.train import RESUMABLE, run_command
from gspo_cli.config.choices import Device
from gspo_cli.config.compose import OBJECT, composed, literal, plain_values
from gspo_cli.config.stored import StoredConfig, read_stored
from gspo_cli.console.words import clean, number, override
from gspo_cli.diagnosis.diagnosis import diagnose
from gspo_cli.diagnosis.guide import Answer, guide
from gspo_cli.diagnosis.history import Finding, History, Record, Severity
from gspo_cli.errors import UserError
from gspo_cli.run.folder import RunFolder, read_log
from gspo_cli.run.identity import leaves

STYLES = {Severity.collapse: "bold red", Severity.warning: "yellow", Severity.note: "cyan"}
WIDTH = 9  # of the column that says how grave a finding is


@dataclass(frozen=True)
class Report:
    """All that the doctor says of a run. `unread` tells what of its logs could not be read, `commands` are
    (command, why)."""

    run: str
    verdict: str
    unread: str
    findings: Sequence[Finding]
    guide: Sequence[Answer]
    commands: Sequence[tuple[str, str]]


def main() -> None:
    """Entry point of `gspo-doctor`."""
    run_command("gspo-doctor", doctor_command)


def doctor_command() -> int:
    """Diagnose and print; --json prints one line of JSON and nothing else."""
    parser = argparse.ArgumentParser(
        prog="gspo-doctor",
        description="Diagnose a run of gspo-train from its own numbers: what goes wrong, since when, and "
        "what to change. Works while the run goes on, too.",
    )
    parser.add_argument("folder", type=Path, help="run folder of gspo-train")
    parser.add_argument("--json", action="store_true", help="print one line of JSON and nothing else")
    arguments = parser.parse_args()
    report = examine(arguments.folder)
    if arguments.json:
        print(json.dumps(as_json(report)))
    elif sys.stdout.isatty():
        show(report, Console())
    else:
        print("\n".join(lines(report)))
    return 0


def examine(path: Path) -> Report:
    """The report on a run folder. Raises UserError where it is none, or nothing has been measured yet."""
    if not path.is_dir():
        raise UserError(f"{path}: is not a folder; give the run folder of a gspo-train")
    folder = RunFolder(path)
    config = read_stored(folder.config)
    metrics, cut = read_numbers(path / "metrics.jsonl")
    evals, _ = read_numbers(path / "evals.jsonl")
    if not metrics and cut:
        raise UserError(f"{path / 'metrics.jsonl'}: cannot be read from line 1 on; restore the file")
    if not metrics:
        raise UserError(f"{path}: has no iterations yet; wait for the first one, then ask again")
    findings = diagnose(config, metrics, evals)
    history = History(config, metrics, evals)
    unread = ""
    if cut:
        last = metrics[-1]["iteration"]
        unread = f"metrics.jsonl cannot be read from line {cut} on: this is about the iterations to {last}"
    return Report(
        str(path),
        verdict(config, history, findings),
        unread,
        findings,
        guide(history, findings, folder.read_card()),
        commands(path, config, metrics, findings),
    )


def read_numbers(path: Path) -> tuple[list[Record], int | None]:
    """`read_log`, of whose values only numbers are taken."""
    records, damaged = read_log(path)
    numbers = (int, float)
    return [{name: v for name, v in record.items() if isinstance(v, numbers)} for record in records], damaged


def verdict(config: StoredConfig, history: History, findings: Sequence[Finding]) -> str:
    """One sentence: healthy or not, and what was looked at."""
    grave = [finding for finding in findings if finding.severity is not Severity.note]
    done, total = history.everything[-1]["iteration"], config.training.num_outer_iterations
    task, model = config.task.get("name"), config.model.label
    about = f"{config.algorithm.name} on {task}, model {model}"
    rewards = history.values("reward")
    course = f", reward {number(rewards[0])} to {number(rewards[-1])}" if rewards else ""
    state = "healthy" if not grave else f"{len(grave)} finding{'s' * (len(grave) > 1)}"
    return clean(f"{state}: {done} of {total} iterations of {about}{course}")


def commands(
    path: Path, config: StoredConfig, metrics: Sequence[Record], findings: Sequence[Finding]
) -> list[tuple[str, str]]:
    """What to type: (command, why)."""
    grave = [finding for finding in findings if finding.severity is not Severity.note]
    wanted: dict[str, str] = {}
    for finding in grave:
        for setting in finding.settings:
            wanted.setdefault(setting.split("=")[0], setting)
    if not wanted or (config.reward or "").startswith(OBJECT):
        return []  # nothing to change, or a script has to
    unfinished = metrics[-1]["iteration"] < config.training.num_outer_iterations
    resume = f"gspo-train {override('resume', str(path))}"
    found = []
    if unfinished and all(key.startswith(RESUMABLE) for key in wanted):
        return [
            (f"{resume} {' '.join(wanted.values())}", "go on from the last checkpoint with these changes")
        ]
    if any(f.severity is Severity.collapse for f in grave) and unfinished:
        why = "return to the checkpoint before the collapse and continue with a lower learning rate"
        found.append((f"{resume} training.on_collapse=rollback", why))
    own = own_overrides(config)
    if own is None:
        changes = " ".join(wanted.values())
        return [*found, (f"gspo-train ... {changes}", "a new run: your own settings, and these")]
    kept = [text for text in own if text.split("=")[0] not in wanted]
    why = "a new run with the settings of this one, and the changes"
    return [*found, (" ".join(["gspo-train", *kept, *wanted.values()]), why)]


def own_overrides(config: StoredConfig) -> list[str] | None:
    """The overrides that compose these settings from conf/; None where its options do not hold them."""
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
        # through the same reading as the saved settings, so that only real differences differ
        preset = leaves(plain_values(composed(groups)))
    except (UserError, OmegaConfBaseException):
        return None
    own = leaves(plain_values(OmegaConf.create(literal(config.plain))))
    changed = {
        key: value for key, value in own.items() if key in preset and preset[key] != value and key != "resume"
    }
    if any(key not in preset for key in own if key.startswith("task.")):
        return None
    usual = {"hardware=cpu", "logging=none", "algorithm=gspo"}
    return [*(text for text in groups if text not in usual), *map(typed, changed, changed.values())]


def typed(key: str, value: Any) -> str:
    """A setting as an override."""
    if isinstance(value, str):
        return override(key, value)
    written = json.dumps(
        value, ensure_ascii=False
    )  # Hydra takes null, true, numbers and lists as JSON has them
    return (
        f"{key}={written}"
        if isinstance(value, bool | int | float | None)
        else shlex.quote(f"{key}={written}")
    )


def as_json(report: Report) -> dict[str, Any]:
    """The report as plain values."""
    values = asdict(report)
    for finding in values["findings"]:
        finding["severity"] = finding["severity"].name
    return values


def lines(report: Report) -> list[str]:
    """The report as text for a pipe or a log."""
    told = [report.verdict, *([f"note: {report.unread}"] if report.unread else [])]
    for finding in report.findings:
        since = f"since iteration {finding.since}"
        told += ["", f"{finding.severity.name:<{WIDTH}} {finding.rule}, {since}: {finding.what}"]
        told += [f"{'':<{WIDTH}} {finding.fix}"]
    for answer in report.guide:
        told += [
            "",
            f"{answer.entry}: {answer.what}",
            *([f"{'':<{WIDTH}} {answer.fix}"] if answer.fix else []),
        ]
    told += ["", "Next:"] if report.commands else []
    for command, why in report.commands:
        told += [f"  # {why}", f"  {command}"]
    return told


def show(report: Report, console: Console) -> None:
    """The report on a terminal; commands are never broken, for copying."""
    healthy = report.verdict.startswith("healthy")
    console.print(Text(report.verdict, "bold green" if healthy else "bold"))
    if report.unread:
        console.print(Text(report.unread, "yellow"))
    for finding in report.findings:
        about = (f"{finding.rule}, since iteration {finding.since}: ", "bold")
        body = Text.assemble(about, finding.what, "\n", (finding.fix, "cyan"))
        _row(console, Text(finding.severity.name, STYLES[finding.severity]), body)
    console.print()
    console.rule(Text("the guide's list", "dim"), align="left", style="dim")
    for answer in report.guide:
        mark = Text("fine", "green") if answer.ok else Text("look", "yellow")
        body = Text.assemble((answer.entry, "bold"), f": {answer.what}")
        if answer.fix:
            body.append("\n").append(answer.fix, "dim" if answer.ok else "cyan")
        _row(console, mark, body)
    if report.commands:
        console.print("\nNext:")
    for command, why in report.commands:
        console.print(Text(f"  # {why}", "dim"))
        console.print(Text(f"  {command}", "cyan"), soft_wrap=True)


def _row(console: Console, mark: Text, body: Text) -> None:
    table = Table.grid(padding=(0, 1), expand=True)
    table.add_column(width=WIDTH)
    table.add_column(ratio=1)
    table.add_row(mark, body)
    console.print()
    console.print(table)


if __name__ == "__main__":
    main()
