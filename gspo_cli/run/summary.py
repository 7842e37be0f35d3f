"""How a run ended, and reading its summary.json."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Any

from gspo_cli.run.files import read_json


class RunStatus(StrEnum):
    """How a run ended; the values are those of `status` in summary.json.

    `stopped_early`: the held-out score reached evaluation.stop_at_score. `collapsed`: the monitor found that
    the policy collapsed, and training.on_collapse ended the run."""

    completed = "completed"
    interrupted = "interrupted"
    stopped_early = "stopped_early"
    collapsed = "collapsed"
    failed = "failed"


def read_summary(folder: Path) -> dict[str, Any] | None:
    """summary.json of a run folder; None if there is none. Raises UserError if it is not JSON."""
    return read_json(folder / "summary.json")
