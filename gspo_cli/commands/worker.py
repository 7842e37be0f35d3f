"""One rank of a run of many processes: started by `gspo-train` itself, or by torchrun on each of many nodes.

    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 \\
        -m gspo_cli.commands.worker RUN_FOLDER

The configuration is composed and checked once, before: the run folder holds it."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from pathlib import Path
from typing import NoReturn

from gspo_cli.commands.train import run_command, train_here
from gspo_cli.config.compose import build_config, load_saved, register
from gspo_cli.errors import UserError
from gspo_cli.launching.processes import log_file
from gspo_cli.run.folder import RunFolder


def work(folder: Path) -> NoReturn:
    """Train in `folder` as the rank that the environment says, and end this process."""
    register()
    node = load_saved(folder / "config.yaml")
    config = build_config(node)

    from gspo_cli.training.process_group import join, leave

    ranks = join(config.hardware)
    leave(
        ranks,
        train_here(config, node, RunFolder(folder, writes=ranks.is_first), ranks),
    )


def guarded(folder: Path) -> int:
    """`work`; a bug's traceback goes to this rank's log, where the launcher finds it. -> 1, its exit code"""
    try:
        work(folder)
    except UserError:
        raise
    except Exception:
        if int(os.environ["RANK"]) == 0 and "GSPO_LAUNCHER" in os.environ:
            # the terminal is for what a user can do about it
            log_file(RunFolder(folder).logs, 0).write_text(traceback.format_exc(), encoding="utf-8")
        else:
            traceback.print_exc()
        return 1


def main() -> None:
    """Entry point of `python -m gspo_cli.commands.worker`."""
    parser = argparse.ArgumentParser(prog="python -m gspo_cli.commands.worker", description=__doc__)
    parser.add_argument("folder", type=Path, help="run folder made by gspo-train")
    folder = parser.parse_args().folder
    sys.path.insert(0, os.getcwd())
    if (
        int(os.environ["RANK"]) > 0 and "GSPO_LAUNCHER" not in os.environ
    ):  # torchrun shows what all ranks print
        log = log_file(RunFolder(folder).logs, int(os.environ["RANK"]))
        log.parent.mkdir(exist_ok=True)
        sys.stdout = log.open("w", encoding="utf-8", buffering=1)
    code = 0
    try:
        run_command("gspo-train", lambda: guarded(folder))
    except SystemExit as ended:
        code = int(ended.code or 0)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # communicators that are still open can hang or abort an interpreter that goes down


if __name__ == "__main__":
    main()
