"""One rank of a run on many processes, started by gspo-train itself, or by torchrun on each of many nodes:

    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 \\
        -m gspo_cli.commands.worker RUN_FOLDER

The configuration was composed and checked before and is read from the run folder."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import NoReturn

from gspo_cli.commands.entry import TRAINING_STOPPED, command_parser, run_command
from gspo_cli.config.compose import build_config, load_saved, plain_values
from gspo_cli.config.schema import RunConfig
from gspo_cli.config.trust import FLAG, require_trust
from gspo_cli.config.typed import override
from gspo_cli.errors import UserError
from gspo_cli.launching.processes import log_file
from gspo_cli.run.folder import RunFolder


def main() -> None:
    """Entry point of `python -m gspo_cli.commands.worker`."""
    parser = command_parser("python -m gspo_cli.commands.worker", str(__doc__))
    parser.add_argument("folder", type=Path, help="run folder made by gspo-train")
    parser.add_argument(FLAG, action="store_true", help="honor code, addresses, files that the folder names")
    folder, code = parser.parse_args().folder, 0
    rank = int(os.environ["RANK"])
    if rank > 0 and "GSPO_LAUNCHER" not in os.environ:  # torchrun shows what all ranks print
        log = log_file(RunFolder(folder).logs, rank)
        log.parent.mkdir(exist_ok=True)
        sys.stdout = log.open("w", encoding="utf-8", buffering=1)
    stopped = f"{TRAINING_STOPPED}; go on with gspo-train {override('resume', folder)}"
    try:
        run_command("gspo-train", lambda: guarded_work(folder, rank), stopped)
    except SystemExit as ended:
        code = int(ended.code or 0)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # communicators that are still open can hang or abort an interpreter that shuts down


def guarded_work(folder: Path, rank: int) -> int:
    """`work`. The traceback of a bug goes to this rank's log, where the launcher finds it. -> 1, its exit
    code"""
    try:
        work(folder)
    except UserError:
        raise
    except (Exception, SystemExit):
        if rank == 0 and "GSPO_LAUNCHER" in os.environ:
            # the terminal shows only what a user can act on
            log_file(RunFolder(folder).logs, 0).write_text(traceback.format_exc(), encoding="utf-8")
        else:
            traceback.print_exc()
        return 1


def work(folder: Path) -> NoReturn:
    """Train in `folder` as the rank that the environment names, and end this process."""
    node = load_saved(folder / "config.yaml")
    require_trust(plain_values(node), RunConfig, folder)
    config = build_config(node)

    from gspo_cli.training.job import exit_code, train_here
    from gspo_cli.training.process_group import join, leave

    ranks = join(config.hardware)
    summary = train_here(config, node, RunFolder(folder, writes=ranks.is_first), ranks)
    leave(ranks, exit_code(summary))


if __name__ == "__main__":
    main()
