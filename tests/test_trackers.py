"""Mirrors with the real packages: what was logged can be read back, and a broken mirror never ends a run."""

from __future__ import annotations

import importlib.util
import math
import os
import subprocess
import sys

import pytest

from gspo_cli.config.choices import Tracker, WandbMode
from gspo_cli.config.schema import LoggingConfig
from gspo_cli.errors import UserError
from gspo_cli.run.trackers import NoTracker, make_tracker

needs_wandb = pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
needs_tensorboard = pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed"
)
VALUES = {"reward": 0.5, "clip_ratio/token": 3.5e-4, "ratio/max": math.inf, "entropy": None}


def unexpected(text):
    raise AssertionError(text)


def logging(tracker, mode=WandbMode.offline):
    return LoggingConfig(report_to=tracker, wandb_mode=mode, run_name="a run", wandb_tags=["t"])


@pytest.fixture
def wandb_alone(tmp_path, monkeypatch):
    """wandb without the user's settings and keys, silent, writing below tmp_path only."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name in ("CONFIG_DIR", "CACHE_DIR", "DATA_DIR"):
        monkeypatch.setenv(f"WANDB_{name}", str(tmp_path / name))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    run = tmp_path / "run"
    run.mkdir()
    yield run
    import wandb

    wandb.teardown()


def test_no_tracker_does_nothing(tmp_path):
    tracker = make_tracker(logging(Tracker.none), tmp_path, {}, unexpected)
    tracker.log(VALUES, 1)
    tracker.finish("completed")
    assert isinstance(tracker, NoTracker)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
@needs_wandb
def test_an_offline_wandb_run_holds_what_was_logged_and_is_continued_under_its_id(wandb_alone):
    import wandb

    contents = []
    for step, status in ((1, "interrupted"), (2, "failed")):
        tracker = make_tracker(logging(Tracker.wandb), wandb_alone, {"task": {"name": "sums"}}, unexpected)
        tracker.log({**VALUES, "reward": step + 0.125}, step)
        tracker.finish(status)
        wandb.teardown()  # its own process ends, as between two commands
        (file,) = set((wandb_alone / "wandb").glob("offline-run-*/*.wandb")) - {file for file, _ in contents}
        contents.append((file, file.read_bytes()))
    identity = (wandb_alone / "wandb_id").read_text().strip()
    assert [file.name for file, _ in contents] == [f"run-{identity}.wandb"] * 2
    first, second = (content for _, content in contents)
    for expected in (
        b"1.125",
        b"clip_ratio/token",
        b"0.00035",
        b"Infinity",
        b"interrupted",
        b"sums",
        b"a run",
    ):
        assert expected in first
    assert b"entropy" not in first  # absent, not null
    assert b"2.125" in second
    assert b"failed" in second


@needs_wandb
def test_a_disabled_wandb_run_writes_no_numbers(wandb_alone):
    tracker = make_tracker(logging(Tracker.wandb, WandbMode.disabled), wandb_alone, {}, unexpected)
    tracker.log(VALUES, 1)
    tracker.finish("completed")
    assert not (wandb_alone / "wandb").exists()


@needs_wandb
def test_online_without_a_key_is_a_sentence_and_not_a_prompt(wandb_alone):
    with pytest.raises(UserError, match=r"not logged in; run `wandb login`, .*logging.wandb_mode=offline"):
        make_tracker(logging(Tracker.wandb, WandbMode.online), wandb_alone, {}, unexpected)


@needs_wandb
def test_a_key_that_wandb_rejects_is_a_sentence(wandb_alone, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "too short")
    with pytest.raises(UserError, match=r"logging\.report_to=wandb: wandb did not start"):
        make_tracker(logging(Tracker.wandb, WandbMode.online), wandb_alone, {}, unexpected)


@needs_wandb
def test_a_wandb_run_that_ends_under_way_is_reported_once_and_left(wandb_alone):
    import wandb

    warnings = []
    tracker = make_tracker(logging(Tracker.wandb), wandb_alone, {}, warnings.append)
    tracker.log(VALUES, 1)
    wandb.finish()
    for step in (2, 3):
        tracker.log(VALUES, step)
    tracker.finish("completed")
    (warning,) = warnings
    assert warning.startswith("wandb: stopped mirroring (")
    assert warning.endswith("metrics.jsonl in the run folder has every number")


def events(folder):
    """Every (step, tag, value) of the event files below `folder`, file by file in order of writing."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    files = sorted((folder / "tensorboard").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    for file in files:
        for event in LegacyEventFileLoader(str(file)).Load():
            for value in event.summary.value:
                yield event.step, value.tag, value.simple_value


@needs_tensorboard
def test_tensorboard_files_hold_what_was_logged(tmp_path):
    tracker = make_tracker(logging(Tracker.tensorboard), tmp_path, {}, unexpected)
    tracker.log(VALUES, 1)
    tracker.log({"reward": 0.75}, 2)
    assert [step for step, _, _ in events(tmp_path)] == [1, 1, 1, 2]  # on disk before the run ends
    tracker.finish("completed")
    assert list(events(tmp_path)) == [
        (1, "reward", 0.5),
        (1, "clip_ratio/token", pytest.approx(3.5e-4, rel=1e-7)),  # stored as fp32
        (1, "ratio/max", math.inf),
        (2, "reward", 0.75),
    ]


@needs_tensorboard
def test_tensorboard_shows_a_resumed_run_without_what_it_repeats(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for start, reward in ((1, 0.25), (3, 0.75)):  # killed after step 4, resumed from the checkpoint of step 2
        tracker = make_tracker(logging(Tracker.tensorboard), tmp_path, {}, unexpected)
        for step in (start, start + 1, start + 2, start + 3):
            tracker.log({"reward": reward}, step)
        tracker.finish("interrupted")
    shown = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("reward")
    assert [(scalar.step, scalar.value) for scalar in shown] == [
        (1, 0.25),
        (2, 0.25),
        (3, 0.75),
        (4, 0.75),
        (5, 0.75),
        (6, 0.75),
    ]


@needs_tensorboard
def test_tensorboard_without_a_folder_to_write_in_is_a_sentence(tmp_path):
    (tmp_path / "tensorboard").write_text("a file in the way")
    with pytest.raises(UserError, match="tensorboard cannot write"):
        make_tracker(logging(Tracker.tensorboard), tmp_path, {}, unexpected)


FULL_DISK = """
import resource, sys
from pathlib import Path
from gspo_cli.config.schema import LoggingConfig, Tracker
from gspo_cli.run.trackers import make_tracker
tracker = make_tracker(LoggingConfig(report_to=Tracker.tensorboard), Path(sys.argv[1]), {}, print)
tracker.log({"reward": 0.5}, 1)
resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))  # files end there, as on a full disk
for step in range(2, 20):
    tracker.log({"reward": 0.5}, step)
tracker.finish("completed")
"""


@needs_tensorboard
def test_a_full_disk_ends_tensorboard_with_one_warning_and_not_the_run(tmp_path):
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    (warning,) = done.stdout.splitlines()
    assert warning.startswith("tensorboard: stopped mirroring (")


@pytest.mark.parametrize("package", ["wandb", "tensorboard"])
def test_an_absent_package_is_named_with_the_command_that_installs_it(package, tmp_path, monkeypatch):
    for name in [package, *(name for name in sys.modules if name.startswith(f"{package}."))]:
        monkeypatch.setitem(sys.modules, name, None)  # importing it now fails as if it were not there
    with pytest.raises(UserError, match=rf"{package} is not installed; pip install '{package}>="):
        make_tracker(logging(Tracker[package]), tmp_path, {}, unexpected)
