"""How a run ended, reading its summary.json, and how certain a held-out score is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

from gspo_cli.config.typed import override
from gspo_cli.errors import UserError
from gspo_cli.plain_files import is_bounded
from gspo_cli.run.files import read_json
from gspo_cli.run.logs import has_iteration


class RunStatus(StrEnum):
    """How a run ended; the values are those of `status` in summary.json.

    `stopped_early`: the held-out score reached evaluation.stop_at_score, or a callback of a script ended the
    run. `collapsed`: the monitor found that the policy collapsed, and training.on_collapse ended the run."""

    completed = "completed"
    interrupted = "interrupted"
    stopped_early = "stopped_early"
    collapsed = "collapsed"
    failed = "failed"


ENDED = (RunStatus.completed, RunStatus.stopped_early, RunStatus.collapsed)  # others can go on as they were
SCORES = ("initial_eval", "best_eval", "final_eval")


def read_summary(folder: Path) -> dict[str, Any] | None:
    """summary.json of a run folder; None if there is none. Raises UserError if it is not what a run wrote."""
    path = folder / "summary.json"
    found = read_json(path)
    wrong = None if found is None else _wrong(found)
    if wrong is not None:
        raise UserError(
            f"{path}: is not the summary of a run ({wrong}); remove it, and gspo-train "
            f"{override('resume', folder)} writes it again"
        )
    return found


def known_summary(folder: Path) -> dict[str, Any] | None:
    """`read_summary`, or None where the file is damaged: a run that goes on writes it again."""
    try:
        return read_summary(folder)
    except UserError:
        return None


def scored_problems(record: Mapping[str, Any]) -> float:
    """How many problems the held-out score of an evaluation is over, 1 at least."""
    total, excluded = record.get("num_problems", 1), record.get("excluded", 0)
    return max(1.0, (total if is_bounded(total) else 1) - (excluded if is_bounded(excluded) else 0))


def score_error(record: Mapping[str, Any]) -> float:
    """Binomial standard error of the held-out score of an evaluation, an upper bound for any mean of values
    in [0, 1]."""
    share = min(1.0, max(0.0, record["score"]))
    return math.sqrt(share * (1 - share) / scored_problems(record))


def _wrong(found: dict[str, Any]) -> str | None:
    """What is not as a run writes it, None if all is."""
    if found.get("status") not in list(RunStatus):
        return f"status is {found.get('status')!r}"[:80]
    done = found.get("iterations")
    if not has_iteration({"iteration": done}):
        return f"iterations is {done!r}"[:80]
    for key in SCORES:
        record = found.get(key)
        if record is not None and not (isinstance(record, dict) and is_bounded(record.get("score"))):
            return f"{key} is {record!r}"[:80]
    return None
