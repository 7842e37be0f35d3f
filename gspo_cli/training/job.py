"""The run of a prepared folder as gspo-train executes it: in this process, or in worker processes."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from omegaconf import DictConfig

from gspo_cli.config.compose import plain_values
from gspo_cli.config.schema import RunConfig
from gspo_cli.config.typed import override
from gspo_cli.console.live import make_console
from gspo_cli.console.reporting import Reporter
from gspo_cli.errors import UserError
from gspo_cli.launching.processes import INTERRUPTED, launch
from gspo_cli.rewards.base import RewardFunction
from gspo_cli.run.folder import RunFolder
from gspo_cli.run.summary import RunStatus
from gspo_cli.run.trackers import Mirror, NoTracker, make_tracker
from gspo_cli.training.process_group import ProcessGroup
from gspo_cli.training.run_summary import summarize
from gspo_cli.training.session import run_training
from gspo_cli.training.watch import Watch


def train_here(
    config: RunConfig,
    node: DictConfig,
    run: RunFolder,
    ranks: ProcessGroup | None = None,
    reporter: Reporter | None = None,
    reward: RewardFunction | None = None,
    watch: Watch | None = None,
) -> dict[str, Any]:
    """Train in this process, alone or as one of `ranks`, with a tracker, and the terminal or `reporter`;
    `watch` hears of all events, too, and may end the run. Returns the summary."""
    terminal = make_console()
    shown = terminal if reporter is None else reporter
    stop = None
    if watch is not None:
        shown, stop = watch.showing(shown), watch.stop
    tracker: Mirror = NoTracker()
    if run.writes:
        tracker = make_tracker(config.logging, run.path, plain_values(node), shown.warn)
    status = RunStatus.failed
    try:
        summary = run_training(config, run, shown, tracker.log, reward, ranks, stop)
        status = RunStatus(summary["status"])
    finally:
        tracker.finish(status)
        terminal.close()
    return summary


def exit_code(summary: Mapping[str, Any]) -> int:
    """The result of a run that ended with `summary`."""
    return INTERRUPTED if summary["status"] == RunStatus.interrupted.value else 0


def train_on_ranks(config: RunConfig, run: RunFolder, processes: int) -> int:
    """Train in `processes` worker processes, which load the saved configuration; returns the exit code."""
    started = time.time()
    worker = [sys.executable, "-P", "-m", "gspo_cli.commands.worker", str(run.path)]
    result = launch(worker, processes, run.logs, run.lock)
    summary = run.path / "summary.json"
    if result.code != 0 and not (summary.exists() and summary.stat().st_mtime >= started):
        with (
            suppress(UserError),
            run.locked(),
        ):  # no rank wrote one, unless another process trains in the folder
            run.write_summary(summarize(config, run, None, RunStatus.failed, reward_object=False))
    if result.message:
        if sys.stdout.isatty():
            print("\x1b[?25h", end="")  # a killed live view leaves the cursor hidden
        again = f"; continue with {override('resume', run.path)}" if result.code == 1 else ""
        print(f"gspo-train: {result.message}{again}", file=sys.stderr)
    return result.code
