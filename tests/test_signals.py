"""Signals end a command in every phase with a sentence and a folder that goes on; code of others cannot."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time

import pytest

from gspo_cli.errors import as_exception
from gspo_cli.rewards.base import RewardFunction
from gspo_cli.rewards.scoring import score_all
from gspo_cli.run.folder import RunFolder
from gspo_cli.signals import Stopped, signals_handled_by, stop
from tests.support.command_line import ROOT, environment, gspo_train, script
from tests.support.whole_runs import SMALL, dotted

pytestmark = pytest.mark.long

LONG = [text for text in SMALL if not text.startswith("model.cold_start.")]
SLOW_START = [
    "model.cold_start.steps=100000",
    "model.cold_start.stop_score=null",
    "model.cold_start.cache=false",
]
NUMBERS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


class Interrupts(RewardFunction):
    def compute_reward(self, trajectory, turn, context):
        raise KeyboardInterrupt


@pytest.fixture
def begin(warm_python):
    """`begin(folder, *overrides)`: gspo-train in a process of its own."""
    started = []

    def begun(folder, *overrides, **more):
        command = script("gspo-train", *SMALL, *overrides, f"hydra.run.dir={folder}", python=warm_python)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | more
        started.append(subprocess.Popen(command, env=environment(), text=True, **pipes))
        return started[-1]

    yield begun
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def wait_for(condition, process):
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_in_the_cold_start_leaves_a_folder_that_goes_on(begin, tmp_path, number):
    folder = tmp_path / "run"
    running = begin(folder, *SLOW_START)
    wait_for(lambda: any(folder.glob(".writing-initial_model-*")), running)
    running.send_signal(number)
    _, err = running.communicate(timeout=30)
    assert running.returncode == 130
    last = err.strip().splitlines()[-1]
    assert last.endswith(f"go on with gspo-train resume={folder}")
    assert "Traceback" not in err
    assert json.loads((folder / "summary.json").read_text())["status"] == "interrupted"
    assert not any(folder.glob(".writing-*"))
    config = RunFolder(folder).config
    config.write_text(config.read_text().replace("steps: 100000", "steps: 3"))
    RunFolder(folder).written_config.write_text(config.read_text())
    done = gspo_train(f"resume={folder}")
    assert done.returncode == 0, done.stderr
    assert json.loads((folder / "summary.json").read_text())["status"] == "completed"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_in_training_finishes_the_iteration(begin, tmp_path, number):
    folder = tmp_path / "run"
    running = begin(
        folder, "training.num_outer_iterations=4000", "checkpoint.every=4000", "evaluation.every=0"
    )
    wait_for(lambda: len(RunFolder(folder).read("metrics.jsonl")) >= 2, running)
    running.send_signal(number)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    assert json.loads((folder / "summary.json").read_text())["status"] == "interrupted"
    assert (folder / "checkpoints" / "last").exists()


def test_a_terminal_that_closes_ends_the_run_with_a_checkpoint(begin, tmp_path):
    """What is printed afterwards has nowhere to go, which must not cost the checkpoint."""
    folder, (ours, theirs) = tmp_path / "run", pty.openpty()
    rare = ["training.num_outer_iterations=4000", "checkpoint.every=4000", "evaluation.every=0"]
    running = begin(folder, *rare, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    threading.Thread(target=lambda: _drain(ours), daemon=True).start()
    wait_for(lambda: len(RunFolder(folder).read("metrics.jsonl")) >= 2, running)
    os.close(ours)
    running.send_signal(signal.SIGHUP)
    running.wait(timeout=60)
    assert running.returncode == 130
    assert (folder / "checkpoints" / "last").exists()


def _drain(descriptor):
    while True:
        try:
            os.read(descriptor, 1 << 16)
        except OSError:
            return


def test_a_second_signal_ends_at_once(begin, tmp_path):
    folder = tmp_path / "run"
    endless = ["training.num_outer_iterations=4000", "reward=tests.test_signals.Sleeps", "reward_settings={}"]
    running = begin(folder, *endless)
    wait_for(lambda: (folder / "card.txt").exists(), running)
    time.sleep(1)
    running.send_signal(signal.SIGINT)
    time.sleep(0.5)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=30)
    assert running.returncode == 130
    assert f"go on with gspo-train resume={folder}" in err


@pytest.mark.parametrize("seconds", [0, 0.05, 0.2, 0.4])
def test_ctrl_c_while_modules_are_imported_is_no_traceback(tmp_path, seconds):
    begun = (
        "import gspo_cli.start as s; load = s.import_module; "
        "s.import_module = lambda name: print(flush=True) or load(name); s.train()"
    )
    asked = [sys.executable, "-c", begun, *SMALL, f"hydra.run.dir={tmp_path / 'run'}"]
    child = subprocess.Popen(asked, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    child.stdout.readline()
    time.sleep(seconds)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "Traceback" not in err
    assert "stopped" in err


def test_a_signal_in_a_destructor_is_not_lost():
    class Interrupted:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)

    def wait():
        Interrupted()
        time.sleep(5)

    with signals_handled_by(stop), pytest.raises(Stopped):
        wait()


class Sleeps(RewardFunction):
    def compute_reward(self, trajectory, turn, context):
        time.sleep(600)


def test_a_reward_that_raises_what_ctrl_c_raises_is_a_reward_that_fails(tmp_path):
    done = gspo_train(*SMALL, dotted(Interrupts), f"hydra.run.dir={tmp_path / 'run'}")
    assert done.returncode == 2
    assert "Interrupts raised RuntimeError: raised KeyboardInterrupt" in done.stderr


def test_only_what_a_signal_raised_passes_through_code_of_others():
    with signals_handled_by(stop):
        assert str(as_exception(KeyboardInterrupt())) == "raised KeyboardInterrupt"
        with pytest.raises(Stopped):
            as_exception(Stopped())
        with pytest.raises(Stopped):
            signal.raise_signal(signal.SIGTERM)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt):  # in a notebook it can only be the user's
        as_exception(KeyboardInterrupt())
    signal.signal(signal.SIGINT, before)


def test_nohup_is_honored(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with signals_handled_by(stop):
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(0.1)
    signal.signal(signal.SIGHUP, before)


def test_a_reward_is_named_while_it_hangs(capsys):
    class Slow(RewardFunction):
        def compute_rewards(self, trajectories):
            time.sleep(0.5)
            return []

    score_all(Slow(), [], None, timeout=0.2)
    said = capsys.readouterr().err
    assert "warning: reward Slow has not returned for 0.2 s; Ctrl-C twice stops the run" in said
    assert "training.isolate_reward=true" in said
    time.sleep(0.3)
    assert capsys.readouterr().err == ""  # nothing more once it has ended
