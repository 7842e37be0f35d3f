"""`gspo-train`: Hydra composes the configuration, it is checked, and only then is torch imported."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from gspo_cli.commands.entry import TRAINING_STOPPED, guarded, run_command, version
from gspo_cli.config import trust
from gspo_cli.config.checks import require
from gspo_cli.config.compose import CONF_DIR, build_config, plain_values, register, resolved_yaml
from gspo_cli.config.schema import RunConfig
from gspo_cli.config.typed import override
from gspo_cli.errors import UserError, as_exception
from gspo_cli.launching.queue_launcher import offer_queue
from gspo_cli.launching.start import idle_gpu_note, process_count, resumed, torchrun_command
from gspo_cli.launching.sweep import (
    SweepStart,
    in_sweep,
    job_results,
    prepare_job,
    record_present_job,
    report_sweep,
    resumed_sweep,
)
from gspo_cli.run.data_stamp import CHANGED_DATA, check_data, write_data_stamp
from gspo_cli.run.files import make_folder, remove_empty
from gspo_cli.run.folder import RunFolder
from gspo_cli.run.identity import State, state_of
from gspo_cli.signals import Stopped
from gspo_cli.sources import settled

REPAIR = "--repair"  # a flag of ours: Hydra takes its own only
REFUSED = 2
FLAGS: set[str] = set()  # those of this command line


def main() -> None:
    """Entry point of `gspo-train`."""
    if "--version" in sys.argv[1:]:  # Hydra has its own --version
        print(version())
        sys.exit()
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors reach run_command instead of Hydra's own printer
    given = sys.argv[1:]
    FLAGS.clear()
    FLAGS.update(text for text in given if text in (REPAIR, CHANGED_DATA, trust.FLAG))
    run_command("gspo-train", composed_job, TRAINING_STOPPED, given)


def composed_job() -> int:
    """`job`, with what Hydra raises bare on bad input as UserError. Returns the exit code of a sweep."""
    sys.argv[1:] = resumed_sweep([text for text in sys.argv[1:] if text not in FLAGS])
    register()
    offer_queue()
    try:
        job()
    except (HydraException, OmegaConfBaseException):  # some are OSErrors or ValueErrors too
        raise
    except OSError as error:
        raise UserError(
            f"{error.filename}: cannot be used as a run folder ({error.strerror}); choose another "
            "hydra.run.dir"
        ) from error
    except ValueError as error:
        if not job_results():  # a search in which all trials failed also ends with such an error
            raise UserError(f"{' '.join(str(error).split())}; write group=option and key=value") from error
    finally:
        code = report_sweep()
    ran = SweepStart.folder is None or bool(job_results())
    require(ran, "the sweep has no jobs; give at least one value for each setting, as in seed=0,1")
    return code


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="train")
def job(node: DictConfig) -> float | None:
    """One run, alone or in a sweep; returns the final held-out score, which sweepers use."""
    try:
        code, why = guarded("gspo-train", lambda: train(node), TRAINING_STOPPED)
    except (Exception, SystemExit) as error:  # a bug, here or in the user's code: print all of it
        traceback.print_exc()
        code, why = 1, f"{type(error).__name__}: {as_exception(error)}"
    finally:
        # Hydra makes the folder before the configuration is checked
        remove_empty(Path(HydraConfig.get().runtime.output_dir))
    if in_sweep():
        return record_present_job(code, why)
    # exit here: Hydra would print lines of its own around an exception
    if code:
        sys.exit(code)
    return None


def usable_gpus() -> int:
    """GPUs that torch finds: CUDA_VISIBLE_DEVICES may list more than there are."""
    from gspo_cli.training.process_group import gpu_count  # torch: only where a run is to use GPUs

    return gpu_count()


def train(node: DictConfig) -> int:
    """Train as `node` configures it; returns the exit code. Raises UserError on bad input."""
    settings = HydraConfig.get()
    folder = Path(settings.runtime.output_dir)
    require(settings.run.dir != "", "hydra.run.dir: is empty; give a folder")
    require(node.resume != "", "resume: is empty; give a run folder with resume=<folder>")
    if node.resume is not None:
        folder = Path(node.resume)
        node, notes = resumed(folder, list(settings.overrides.task))
        for note in notes:
            print(f"note: {note}", flush=True)
    else:
        settled(node, list(settings.overrides.task))
    config = build_config(node)
    processes = process_count(config, usable_gpus, resumes=node.resume is not None)
    run = RunFolder(folder)
    make_folder(folder, "hydra.run.dir")
    with run.locked():  # before anything is written
        trust.trust_own(plain_values(node), RunConfig)
        return start(node, config, run, processes)


def start(node: DictConfig, config: RunConfig, run: RunFolder, processes: int) -> int:
    """Begin or continue a run in its folder, which is locked; returns the exit code. What is refused before
    it came to anything leaves nothing behind."""
    continues = node.resume is not None or (in_sweep() and state_of(run.path) is State.started)
    accepts = continues and CHANGED_DATA in FLAGS
    if continues and not accepts:
        check_data(run, config)
    notes = run.check_logs(REPAIR in FLAGS) if node.resume is not None else []
    for note in notes:
        print(f"note: {note}", flush=True)
    if accepts:
        write_data_stamp(run, config)
    if node.resume is not None:
        run.write_config(resolved_yaml(node))
        if run.checkpoints.exists() and (note := idle_gpu_note(config)):
            print(f"note: {note}", flush=True)
    elif in_sweep():
        if prepare_job(run.path, resolved_yaml(node)) is State.complete:
            return 0
    else:
        run.create(resolved_yaml(node))
        try:
            code = work(node, config, run, processes)
        except UserError as error:
            if not isinstance(error.__cause__, OSError):  # a full disk: the run can go on
                run.discard()
            raise
        if code == REFUSED:
            run.discard()
        return code
    return work(node, config, run, processes)


def work(node: DictConfig, config: RunConfig, run: RunFolder, processes: int) -> int:
    """Train in a prepared folder; returns the exit code. A signal is raised as Stopped that says how to go
    on."""
    try:
        return _work(node, config, run, processes)
    except Stopped as error:
        raise Stopped(f"{TRAINING_STOPPED}; go on with gspo-train {override('resume', run.path)}") from error


def _work(node: DictConfig, config: RunConfig, run: RunFolder, processes: int) -> int:
    if config.hardware.nodes > 1:
        command = torchrun_command(config, run.path)
        print(f"{run.path}: is ready; on each of the {config.hardware.nodes} nodes, run\n\n  {command}")
        return 0

    from gspo_cli.training.job import (  # bad input was reported before loading torch
        exit_code,
        train_here,
        train_on_ranks,
    )

    if config.hardware.zero_stage == 0:
        return exit_code(train_here(config, node, run))
    return train_on_ranks(config, run, processes)


if __name__ == "__main__":
    main()
