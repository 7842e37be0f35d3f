"""`gspo-train`: compose the configuration with Hydra, check it, and only then import torch and train."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gspo_cli.config.choices import Device
from gspo_cli.config.compose import (
    CONF_DIR,
    build_config,
    explain,
    load_saved,
    register,
    resolved_yaml,
    with_overrides,
)
from gspo_cli.config.schema import RunConfig
from gspo_cli.console.words import override
from gspo_cli.errors import UserError
from gspo_cli.launching.processes import INTERRUPTED, launch, require_deepspeed
from gspo_cli.launching.queue_launcher import offer_queue
from gspo_cli.launching.sweep import (
    SweepStart,
    continued,
    ended_jobs,
    exit_code,
    in_sweep,
    prepared,
    record_this,
    table,
)
from gspo_cli.run.identity import RESUMABLE, State, matches
from gspo_cli.run.summary import RunStatus

if TYPE_CHECKING:
    from gspo_cli.run.folder import RunFolder
    from gspo_cli.training.process_group import ProcessGroup

register()
offer_queue()


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="train")
def job(node: DictConfig) -> float | None:
    """One run, alone or of a sweep, for which it returns the final held-out score."""
    register()  # a launcher may have brought this to a process of its own
    try:
        code, why = run_guarded("gspo-train", lambda: train(node))
    except Exception as error:  # a bug of ours or of the user's code, whole
        traceback.print_exc()
        code, why = 1, f"{type(error).__name__}: {error}"
    finally:
        remove_if_empty(Path(HydraConfig.get().runtime.output_dir))
    if in_sweep():
        return record_this(code, why)
    # exits from here: Hydra would print its own lines around an exception
    if code:
        sys.exit(code)
    return None


def composed_job() -> int:
    """`job`, with what Hydra raises bare on bad input as UserError. Returns the exit code of a sweep."""
    try:
        job()
    except (HydraException, OmegaConfBaseException):  # some are OSErrors or ValueErrors too
        raise
    except OSError as error:
        raise UserError(
            f"{error.filename}: cannot be made a run folder ({error.strerror}); choose another hydra.run.dir"
        ) from error
    except ValueError as error:
        if not ended_jobs():  # with some, a sweeper has no result to give
            raise UserError(f"{' '.join(str(error).split())}; write group=option and key=value") from error
    finally:
        if ended_jobs():
            print(f"\n{table(ended_jobs())}", flush=True)
            if exit_code(ended_jobs()) == INTERRUPTED:
                print(f"go on: gspo-train -m {override('resume', str(SweepStart.folder))}", flush=True)
            elif sum(ended.code == 0 for ended in ended_jobs()) > 1:
                print(f"compare them: gspo-compare {shlex.quote(str(SweepStart.folder))}", flush=True)
    return exit_code(ended_jobs())


def remove_if_empty(folder: Path) -> None:
    """Drop the folder that Hydra makes before a configuration is checked, while nothing is in it."""
    with suppress(OSError):
        folder.rmdir()


def train(node: DictConfig) -> int:
    """Train what `node` says; returns the exit code. Raises UserError on bad input."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    if HydraConfig.get().run.dir == "":
        raise UserError("hydra.run.dir: is empty; give a folder")
    if node.resume == "":
        raise UserError("resume: is empty; give a run folder with resume=<folder>")
    if node.resume is not None:
        folder = Path(node.resume)
        node = resumed(folder, list(HydraConfig.get().overrides.task))
    config = build_config(node)  # before torch is imported: bad input answers at once

    from gspo_cli.run.files import write_atomically
    from gspo_cli.run.folder import RunFolder

    processes = how_many(config)
    run = RunFolder(folder)
    if node.resume is not None:
        write_atomically(run.config, resolved_yaml(node))
    elif not in_sweep():
        run.create(resolved_yaml(node))
    elif prepared(folder, resolved_yaml(node)) is State.complete:
        return 0
    if config.hardware.nodes > 1:
        nodes = config.hardware.nodes
        print(f"{folder}: is ready; on each of the {nodes} nodes run\n\n  {torchrun(config, run)}")
        return 0
    if config.hardware.zero_stage == 0:
        return train_here(config, node, run)
    return train_in_workers(config, run, processes)


def train_here(config: RunConfig, node: DictConfig, run: RunFolder, ranks: ProcessGroup | None = None) -> int:
    """Train in this process, alone or as one of `ranks`; returns the exit code."""
    from gspo_cli.console.live import make_console
    from gspo_cli.run.trackers import NoTracker, make_tracker
    from gspo_cli.training.session import run_training

    console = make_console()
    tracker = NoTracker()
    if run.writes:
        settings = OmegaConf.to_container(node, resolve=True)
        tracker = make_tracker(config.logging, run.path, settings, console.warn)
    status = RunStatus.failed
    try:
        status = RunStatus(run_training(config, run, console, tracker.log, ranks=ranks)["status"])
    finally:
        tracker.finish(status)
        console.close()
    return INTERRUPTED if status is RunStatus.interrupted else 0


def train_in_workers(config: RunConfig, run: RunFolder, processes: int) -> int:
    """Train in processes of their own, which load the saved configuration; returns the exit code."""
    from gspo_cli.training.session import summarize

    started = time.time()
    worker = [sys.executable, "-m", "gspo_cli.commands.worker", str(run.path)]
    ended = launch(worker, processes, run.logs)
    summary = run.path / "summary.json"
    if ended.code != 0 and not (summary.exists() and summary.stat().st_mtime >= started):
        with suppress(UserError), run.locked():  # no rank could; or another process trains in the folder
            run.write_summary(summarize(config, run, None, RunStatus.failed, reward_object=False))
    if ended.message:
        if sys.stdout.isatty():
            print("\x1b[?25h", end="")  # a live view that was killed leaves no cursor
        again = f"continue with resume={run.path}" if ended.code == 1 else ""
        print(f"gspo-train: {'; '.join(filter(None, (ended.message, again)))}", file=sys.stderr)
    return ended.code


def how_many(config: RunConfig) -> int:
    """Processes of a run on this machine. Raises UserError where they are too many for its prompts, or none
    can run."""
    hardware = config.hardware
    if hardware.zero_stage == 0:
        return 1
    require_deepspeed()
    here = hardware.device is Device.cuda and hardware.nodes == 1
    if hardware.processes is not None and not here:
        return hardware.processes
    if hardware.device is Device.cpu or hardware.nodes > 1:
        raise UserError(
            "hardware.processes: has no value; say how many processes "
            + ("share this CPU" if hardware.device is Device.cpu else "run on each node")
        )
    from gspo_cli.training.process_group import visible_gpus

    found = visible_gpus()
    if found == 0:
        raise UserError(
            "hardware.device=cuda: no GPU is visible; use hardware=cpu, or check CUDA_VISIBLE_DEVICES"
        )
    if (hardware.processes or 0) > found:
        raise UserError(
            f"hardware.processes={hardware.processes}: {found} GPUs are visible; use as many at most, or "
            "check CUDA_VISIBLE_DEVICES"
        )
    processes = hardware.processes or found
    config.check_processes(processes)
    return processes


def torchrun(config: RunConfig, run: RunFolder) -> str:
    """The command that each node of a run on many runs."""
    hardware = config.hardware
    return (
        f"torchrun --nnodes {hardware.nodes} --nproc-per-node {hardware.processes} --rdzv-backend c10d "
        f"--rdzv-endpoint HOST:29500 -m gspo_cli.commands.worker {shlex.quote(str(run.path.absolute()))}"
    )


def resumed(folder: Path, overrides: list[str]) -> DictConfig:
    """The saved configuration of a run, with the few settings that may change on the way.

    Raises UserError where the folder is no run, is finished, or another setting is overridden."""
    saved = load_saved(folder / "config.yaml")
    changes = [text.lstrip("+") for text in overrides if not text.lstrip("+").startswith("resume=")]
    allowed_keys = ", ".join(f"{key}*" if key.endswith(".") else key for key in RESUMABLE)
    for text in changes:
        key = text.lstrip("~").split("=")[0]
        if not matches(key, RESUMABLE):
            raise UserError(
                f"{key}: cannot change when a run is resumed (only {allowed_keys} can); start a "
                "new run for it"
            )
    node = with_overrides(saved, changes)
    done = finished_iterations(folder)
    if done is not None and done >= node.training.num_outer_iterations:
        raise UserError(
            f"{folder}: is complete after {done} iterations; go on with "
            f"training.num_outer_iterations={2 * done}"
        )
    node.resume = str(folder)
    return node


def finished_iterations(folder: Path) -> int | None:
    """How many iterations a completed run has; None of one that did not complete."""
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return summary["iterations"] if summary["status"] == RunStatus.completed else None


def run_command(name: str, command: Callable[[], int | None]) -> None:
    """Run a command's body; user errors become one sentence and exit code 2, a second Ctrl-C 130."""
    code, _ = run_guarded(name, command)
    if code:
        sys.exit(code)


def run_guarded(name: str, command: Callable[[], int | None]) -> tuple[int, str]:
    """Run a command's body. Returns the exit code, and the sentence that was printed where it is not 0."""
    code, why = 0, ""
    try:
        code = command() or 0
    except (UserError, HydraException, OmegaConfBaseException) as error:
        code, why = 2, str(error) if isinstance(error, UserError) else explain(error)
    except KeyboardInterrupt:
        code, why = INTERRUPTED, "stopped; nothing after the last checkpoint is kept"
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    if why:
        print(f"{name}: {why}", file=sys.stderr)
    return code, why


def main() -> None:
    """Entry point of `gspo-train`."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors reach run_command instead of Hydra's own printer
    sys.path.insert(0, os.getcwd())  # rewards and verifiers by dotted path from the user's folder
    sys.argv[1:] = continued(sys.argv[1:])
    run_command("gspo-train", composed_job)


if __name__ == "__main__":
    main()
