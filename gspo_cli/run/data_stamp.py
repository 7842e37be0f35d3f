"""Whether a task still reads what its run began with: other rows are other problems, held out another way.

A run folder of before this check has no stamp, and its run continues without a question."""

from __future__ import annotations

from gspo_cli.errors import UserError
from gspo_cli.run.files import read_json, write_json
from gspo_cli.run.folder import DATA, RunFolder
from gspo_cli.tasks.base import Task

CHANGED_DATA = "--changed-data"  # the flag of gspo-train that continues with it


def check_data(run: RunFolder, task: Task) -> None:
    """Raise UserError where the data of `task` is not what the run began with. Writes nothing."""
    saved = read_json(run.path / DATA)
    if saved is None or not run.has_progress or saved.get("stamp") == task.data_stamp():
        return
    raise UserError(
        f"{run.path}: the data of task={task.name} has changed since this run began, and problems that were "
        f"trained on may now be held out; restore the data, or continue with it as it is by gspo-train "
        f"resume={run.path} {CHANGED_DATA}"
    )


def write_data_stamp(run: RunFolder, task: Task) -> None:
    """Save what `check_data` compares; nothing for a task that generates its problems."""
    stamp = task.data_stamp()
    if run.writes and stamp and (read_json(run.path / DATA) or {}).get("stamp") != stamp:
        write_json(run.path / DATA, {"stamp": stamp})
