"""Runs that stop go on as if they had not: bit-exact on CPU, after Ctrl-C, kill -9, or a full disk."""

from __future__ import annotations

import json
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from gspo_cli.errors import UserError
from gspo_cli.run.folder import RunFolder
from gspo_cli.training.session import run_training
from tests.support.command_line import environment, gspo_train, script
from tests.support.whole_runs import SMALL, assert_same_run, numbers

pytestmark = pytest.mark.long

ROOT = Path(__file__).parent.parent


def train(folder: Path, *overrides: str) -> subprocess.CompletedProcess:
    return gspo_train(*SMALL, f"hydra.run.dir={folder}", *overrides)


def resume(folder: Path, *overrides: str) -> subprocess.CompletedProcess:
    return gspo_train(f"resume={folder}", *overrides)


@pytest.fixture
def process(warm_python):
    """`process(folder)`: `train` in a process of its own, for signals."""

    def started(folder: Path, *overrides: str) -> subprocess.Popen:
        command = script("gspo-train", *SMALL, f"hydra.run.dir={folder}", *overrides, python=warm_python)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, cwd=ROOT, env=environment(), **pipes)

    return started


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """Six iterations without a stop."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    done = train(folder, "training.num_outer_iterations=6")
    assert done.returncode == 0, done.stderr
    return folder


def test_a_longer_run_continues_a_shorter_one_to_the_bit(whole, tmp_path):
    folder = tmp_path / "run"
    assert train(folder, "training.num_outer_iterations=3").returncode == 0
    done = resume(folder, "training.num_outer_iterations=6")
    assert done.returncode == 0, done.stderr
    # the shorter run evaluated at its end, too
    for log in ("evals.jsonl", "heldout.jsonl"):
        lines = [line for line in RunFolder(folder).read(log) if line["iteration"] != 3]
        (folder / log).write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert_same_run(folder, whole)
    assert json.loads((folder / "summary.json").read_text())["status"] == "completed"


def wait_for(condition, process, seconds=90):
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError(f"the run ended or took too long: {process.stderr.read() if process.stderr else ''}")


@pytest.mark.parametrize("moment", ["before the first checkpoint", "between", "while saving"])
def test_a_killed_run_is_resumed_to_the_bit(whole, process, tmp_path, moment):
    folder = tmp_path / "run"
    running = process(folder, "training.num_outer_iterations=6")
    checkpoints = folder / "checkpoints"
    conditions = {
        "before the first checkpoint": lambda: len(RunFolder(folder).read("metrics.jsonl")) >= 1,
        "between": lambda: len(RunFolder(folder).read("metrics.jsonl")) >= 3,
        "while saving": lambda: any(checkpoints.glob(".writing-iteration-*")),
    }
    wait_for(conditions[moment], running)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 99, "rew')  # the line that the kill cut
    done = resume(folder)
    assert done.returncode == 0, done.stderr
    assert_same_run(folder, whole)


def test_ctrl_c_saves_and_says_interrupted(process, tmp_path):
    folder = tmp_path / "run"
    rare = ["checkpoint.every=4000", "evaluation.every=0"]  # no checkpoint but that of the signal
    running = process(folder, "training.num_outer_iterations=4000", *rare)
    wait_for(lambda: len(RunFolder(folder).read("metrics.jsonl")) >= 3, running)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "interrupted"
    saved = torch.load(folder / "checkpoints" / "last" / "trainer.pt", weights_only=True)
    assert (
        saved["state"]["iteration"] == summary["iterations"] == len(RunFolder(folder).read("metrics.jsonl"))
    )
    assert f"resume={folder}" in out


def test_a_half_written_checkpoint_is_never_taken_for_a_whole_one(whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder, symlinks=True)
    shutil.copytree(
        folder / "checkpoints" / "iteration-000006", folder / "checkpoints" / ".writing-iteration-000007-1"
    )
    done = resume(folder, "training.num_outer_iterations=7")
    assert done.returncode == 0, done.stderr
    assert [line["iteration"] for line in numbers(folder)] == [1, 2, 3, 4, 5, 6, 7]
    assert not list((folder / "checkpoints").glob(".writing-*"))


def test_rotation_keeps_the_newest_and_the_best(whole):
    names = sorted(path.name for path in (whole / "checkpoints").glob("iteration-*"))
    best = (whole / "checkpoints" / "best").resolve().name
    assert names == sorted({"iteration-000004", "iteration-000006", best})
    assert (whole / "checkpoints" / "last").resolve().name == "iteration-000006"


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """A block in which this process writes no larger file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_while_saving_loses_no_checkpoint(tmp_path):
    # a limit on file size is a real OSError in the same place as a full disk
    folder = tmp_path / "run"
    assert train(folder, "training.num_outer_iterations=2").returncode == 0
    before = (folder / "checkpoints" / "iteration-000002" / "trainer.pt").read_bytes()
    with files_of_at_most(50_000):
        limited = resume(folder, "training.num_outer_iterations=4")
    assert limited.returncode == 2
    assert "cannot be saved" in limited.stderr
    assert "Traceback" not in limited.stderr
    left = sorted(p.name for p in (folder / "checkpoints").glob("[.i]*"))
    assert left == ["iteration-000000", "iteration-000002"]
    assert (folder / "checkpoints" / "last" / "trainer.pt").read_bytes() == before
    assert resume(folder).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["algorithm=grpo"], "algorithm: cannot change when a run is resumed"),
        (["seed=3"], "seed: cannot change"),
        ([], "is complete"),
    ],
)
def test_what_cannot_be_resumed_is_said_in_one_line(whole, arguments, fragment):
    before = (whole / "metrics.jsonl").read_bytes()
    done = resume(whole, *arguments)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert fragment in done.stderr
    assert (whole / "metrics.jsonl").read_bytes() == before


def test_a_folder_that_is_no_run_is_said_in_one_line(tmp_path):
    done = resume(tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "is not a run folder" in done.stderr


def test_two_processes_never_train_in_one_folder(configure, tmp_path, reporter):
    config, yaml = configure()
    folder = RunFolder(tmp_path / "run")
    folder.create(yaml)
    with folder.locked(), ThreadPoolExecutor() as elsewhere:
        other = elsewhere.submit(run_training, config, RunFolder(tmp_path / "run"), reporter)
        with pytest.raises(UserError, match="another process trains in this folder"):
            other.result()
    assert sorted(path.name for path in folder.path.iterdir()) == [".config.yaml", "config.yaml"]
    assert run_training(config, folder, reporter)["status"] == "completed"
