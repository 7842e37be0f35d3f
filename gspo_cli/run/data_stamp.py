"""Whether a task still reads what its run began with: other rows are other problems, held out another way.

A run folder of before this check has no stamp, and its run continues without a question."""

from __future__ import annotations

from gspo_cli.config.schema import RunConfig
from gspo_cli.config.typed import override
from gspo_cli.errors import UserError
from gspo_cli.run.files import read_json, write_json
from gspo_cli.run.folder import DATA, RunFolder
from gspo_cli.tasks.pairs import pairs_stamp

CHANGED_DATA = "--changed-data"  # the flag of gspo-train that continues with it


def check_data(run: RunFolder, config: RunConfig) -> None:
    """Raise UserError where the data of the task, or the pairs, are not what the run began with. Writes
    nothing."""
    saved = read_json(run.path / DATA)
    if saved is None or not run.has_progress or saved == _stamps(config):
        return
    same = saved.get("stamp") == config.task.data_stamp()
    what = (
        f"algorithm.pairs={config.algorithm.pairs} has changed since this run began; restore the file"
        if same
        else f"the data of task={config.task.name} has changed since this run began, and problems that were "
        "trained on may now be held out; restore the data"
    )
    raise UserError(
        f"{run.path}: {what}, or continue with it as it is by gspo-train {override('resume', run.path)} "
        f"{CHANGED_DATA}"
    )


def write_data_stamp(run: RunFolder, config: RunConfig) -> None:
    """Save what `check_data` compares; nothing where all data is generated."""
    stamps = _stamps(config)
    if run.writes and any(stamps.values()) and read_json(run.path / DATA) != stamps:
        write_json(run.path / DATA, stamps)


def _stamps(config: RunConfig) -> dict[str, str]:
    stamps = {"stamp": config.task.data_stamp()}
    pairs = config.algorithm.pairs
    return stamps if pairs is None else stamps | {"pairs": pairs_stamp(pairs)}
