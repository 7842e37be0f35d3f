"""How a run ended, and reading its summary.json."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Any

from gspo_cli.errors import UserError


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
    """summary.json of a run folder; None where there is none. Raises UserError where it is not JSON."""
    path = folder / "summary.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}); restore or remove the file") from error
