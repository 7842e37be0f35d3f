"""`gspo-doctor`: diagnoses a run from its metrics and suggests what to change. Does not load torch."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gspo_cli.commands.entry import command_parser, run_command
from gspo_cli.diagnosis.examination import Report, examine
from gspo_cli.diagnosis.history import Severity

DESCRIPTION = """Diagnose a gspo-train run from its metrics: what went wrong, since which iteration, and what
to change. Also works while the run is in progress."""
STYLES = {Severity.collapse: "bold red", Severity.warning: "yellow", Severity.note: "cyan"}
WIDTH = 9  # of the column that shows a finding's severity


def main() -> None:
    """Entry point of `gspo-doctor`."""
    run_command("gspo-doctor", doctor_command)


def doctor_command() -> int:
    """Diagnose and print; --json prints one line of JSON and nothing else."""
    parser = command_parser("gspo-doctor", DESCRIPTION)
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


def as_json(report: Report) -> dict[str, Any]:
    """The report as plain values."""
    values = asdict(report)
    for finding in values["findings"]:
        finding["severity"] = finding["severity"].name
    return values


def lines(report: Report) -> list[str]:
    """The report as text for a pipe or a log."""
    text = [report.verdict, *([f"note: {report.unread}"] if report.unread else [])]
    for finding in report.findings:
        since = f"since iteration {finding.since}"
        text += ["", f"{finding.severity.name:<{WIDTH}} {finding.rule}, {since}: {finding.what}"]
        text += [f"{'':<{WIDTH}} {finding.fix}"]
    for answer in report.guide:
        text += ["", f"{answer.entry}: {answer.what}"]
        text += [f"{'':<{WIDTH}} {answer.fix}"] if answer.fix else []
    text += ["", "Next:"] if report.commands else []
    for command, why in report.commands:
        text += [f"  # {why}", f"  {command}"]
    return text


def show(report: Report, console: Console) -> None:
    """The report on a terminal; commands stay on one line, so that they can be copied."""
    healthy = report.verdict.startswith("healthy")
    console.print(Text(report.verdict, "bold green" if healthy else "bold"))
    if report.unread:
        console.print(Text(report.unread, "yellow"))
    for finding in report.findings:
        about = (f"{finding.rule}, since iteration {finding.since}: ", "bold")
        body = Text.assemble(about, finding.what, "\n", (finding.fix, "cyan"))
        _row(console, Text(finding.severity.name, STYLES[finding.severity]), body)
    console.print()
    console.rule(Text("checklist of the guide", "dim"), align="left", style="dim")
    for answer in report.guide:
        mark = Text("ok", "green") if answer.ok else Text("check", "yellow")
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
