"""The report at the end of gspo-compare: compares the runs, writes the report and what else was asked for,
and shows its first page."""

from __future__ import annotations

import argparse
import hashlib
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gspo_cli.config.compare_schema import CompareConfig

FEW = 3  # files that are listed


@dataclass(frozen=True)
class Extras:
    """What is written beside the report: its tables, its figures, and all of it packed with the logs."""

    csv: bool = False
    png: bool = False
    zip: bool = False


def add_extras(parser: argparse.ArgumentParser) -> None:
    """Add the flags of Extras to a command line."""
    parser.add_argument("--csv", action="store_true", help="write all tables as tables/<name>.csv too")
    parser.add_argument("--png", action="store_true", help="write all figures as figures/<name>.svg and .png")
    parser.add_argument(
        "--zip", action="store_true", help="also pack report, configs and logs in one file, without secrets"
    )


def extras_of(arguments: argparse.Namespace) -> Extras:
    """The extras that a command line asks for. Raises UserError where PNG cannot be drawn, so that nothing is
    trained before."""
    if arguments.png:
        from gspo_cli.compare.pictures import require_png

        require_png()
    return Extras(arguments.csv, arguments.png, arguments.zip)


def report_folder(settings: CompareConfig, paths: Sequence[Path]) -> Path:
    """Where the report on given folders goes: into the folder itself, or into one named after all of them."""
    if settings.folder is not None:
        return Path(settings.folder)
    if len(paths) == 1:
        return paths[0]
    names = "\n".join(sorted(str(path.resolve()) for path in paths))
    return Path("outputs", "compare", hashlib.sha256(names.encode()).hexdigest()[:8])


def _note_stale(folder: Path, result: Path) -> None:
    """Say which files that were asked for earlier are not of the report that was just written: those older
    than its `result`."""
    asked = [
        *folder.glob("tables/**/*.csv"),
        *folder.glob("figures/**/*.[sp][vn]g"),
        folder / "comparison.zip",
    ]
    written = result.stat().st_mtime_ns
    old = [str(path) for path in asked if path.is_file() and path.stat().st_mtime_ns < written]
    if old:
        listed = ", ".join(sorted(old)[:FEW]) + (f" and {len(old) - FEW} more" if len(old) > FEW else "")
        print(f"note: of an earlier report, and not written again: {listed}", file=sys.stderr)


def report(
    paths: Sequence[Path], settings: CompareConfig, folder: Path, extras: Extras, notes: Sequence[str] = ()
) -> None:
    """Compare the runs in `paths`, write the report with its extras to `folder`, and show its first page.
    `notes` are further methods of a comparison whose runs were trained for it."""
    from rich.console import Console

    from gspo_cli.commands.compare_view import show
    from gspo_cli.compare.across import compare_subjects
    from gspo_cli.compare.report import write_report
    from gspo_cli.compare.result import Across
    from gspo_cli.compare.runs import find_runs
    from gspo_cli.compare.until_settled import looked_at

    runs, left_out = find_runs(paths, settings.allow)
    if extras.zip:
        from gspo_cli.compare.packing import require_packable

        require_packable(runs, settings)
    found = compare_subjects(runs, left_out, settings, looked_at)
    again = shlex.join(["gspo-compare", *sys.argv[1:]])
    if isinstance(found, Across):
        found = replace(found, summary=replace(found.summary, reproduce=[again]))
    else:
        found = replace(found, methods=[*found.methods, *notes], reproduce=[again, *found.reproduce[1:]])
    result = folder / "report.json"
    before = result.read_bytes() if result.is_file() else None
    files = write_report(found, folder)
    changed = before not in (None, result.read_bytes())
    if extras.csv:
        from gspo_cli.compare.csv_files import write_tables

        files.append(write_tables(found, folder))
    if extras.png:
        from gspo_cli.compare.pictures import write_figures

        files.append(write_figures(found, folder))
    show(found, files, Console())
    if extras.zip:
        from gspo_cli.compare.packing import pack

        packed = pack(runs, found, settings, folder)
        print(f"Packed: {packed.path} ({packed.summary})")
    if changed:
        _note_stale(folder, result)
