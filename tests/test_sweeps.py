"""Sweeps with the real command: a job that fails ends no sweep, and a sweep that was killed continues."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from omegaconf import DictConfig, OmegaConf

from gspo_cli.config.compose import CONF_DIR, composed, resolved_yaml
from gspo_cli.launching.queue_launcher import offer_queue
from gspo_cli.launching.sweep import job_names, resumed_sweep
from gspo_cli.run.folder import RunFolder
from gspo_cli.run.identity import State, changed_settings, fingerprint, prepare, saved_settings, state_of
from gspo_cli.training.session import run_training
from tests.support.command_line import environment, gspo_train, script
from tests.support.whole_runs import ARITHMETIC

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parent.parent
SMALL = [
    *ARITHMETIC,
    "model.init_seed=1",  # says something from the start
    "model.shape.hidden_size=32",
    "model.shape.layers=1",
    "model.cold_start.steps=3",
    "model.cold_start.stop_score=null",
    "training.num_outer_iterations=2",
    "training.num_generations=4",
    "training.generations_per_iteration=16",
    "rollout.max_completion_length=8",
    "evaluation.problems=4",
    "evaluation.samples=0",
]
REWARDS = """
from gspo_cli.rewards.base import RewardFunction, RewardResult

class First(RewardFunction):
    def compute_reward(self, trajectory, turn, context):
        return RewardResult(float(len(turn.content)))

class Breaks(RewardFunction):
    def compute_reward(self, trajectory, turn, context):
        raise RuntimeError("no such judge")

class Last(First):
    pass
"""
VARYING = ("time", "memory/", "tokens_per_second", "wall")


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """`sweep(*arguments)`: gspo-train with small runs, in this process and an empty folder. Returns its exit
    code."""
    monkeypatch.chdir(tmp_path)

    def called(*arguments: str, small: list[str] | tuple[str, ...] = SMALL) -> int:
        done = gspo_train(*arguments, *small, cwd=tmp_path)
        sys.stdout.write(done.stdout)
        sys.stderr.write(done.stderr)
        return done.returncode

    return called


def jobs_of(folder: Path) -> list[dict]:
    lines = (folder / "jobs.jsonl").read_text().splitlines()
    return sorted(map(json.loads, lines), key=lambda job: job["job"])


def computed(folder: Path) -> list[dict]:
    """metrics.jsonl without what a clock or the process says."""
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in record.items() if not k.startswith(VARYING)} for record in records]


def plain(node: DictConfig) -> dict:
    return OmegaConf.to_container(node, resolve=True, enum_to_str=True)


def score_of(folder: Path) -> float:
    return json.loads((folder / "evals.jsonl").read_text().splitlines()[-1])["score"]


def until(condition) -> None:
    deadline = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_failing_job_ends_no_sweep_and_the_next_one_runs_as_if_alone(sweep, tmp_path, capfd):
    (tmp_path / "judges.py").write_text(REWARDS)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert sweep("-m", "reward=judges.First,judges.Breaks,judges.Last", "hydra.sweep.dir=s") == 1
    told = capfd.readouterr()
    rows = [line.split() for line in told.out.splitlines()[-5:-2]]
    assert [row[:3] for row in rows] == [
        ["0", "reward=judges.First", "completed"],
        ["1", "reward=judges.Breaks", "failed"],
        ["2", "reward=judges.Last", "completed"],
    ]
    assert told.out.splitlines()[-2:] == ["3 jobs, 1 failed", "compare with: gspo-compare s"]
    assert "no such judge" in told.err
    assert "sweep s: if interrupted, continue with: gspo-train -m resume=s" in told.out
    first, broken, last = jobs_of(tmp_path / "s")
    assert (first["code"], broken["code"], last["code"]) == (0, 2, 0)
    assert first["score"] == score_of(Path(first["folder"])) > 0
    assert "no such judge" in broken["why"]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert sweep("reward=judges.Last", "hydra.run.dir=alone") == 0
    assert computed(tmp_path / "alone") == computed(Path(last["folder"]))
    assert len(computed(tmp_path / "alone")) == 2


def test_a_sweep_in_which_all_input_is_bad_ends_with_2_and_no_run_folder(sweep, tmp_path, capfd):
    assert sweep("-m", "seed=-1,-2", "hydra.sweep.dir=s") == 2
    assert "seed=-2: must be 0 or more" in capfd.readouterr().err
    assert [path.name for path in (tmp_path / "s").iterdir() if path.is_dir()] == []
    assert sweep("-m", "seed=a,b", "hydra.sweep.dir=t") == 2  # Hydra composes all jobs first


def test_threads_of_one_run_are_not_those_of_the_next(configure, tmp_path, reporter):
    torch.set_num_threads(1)
    config, text = configure("hardware.threads=2", "training.num_outer_iterations=1", "evaluation.every=0")
    folder = RunFolder(tmp_path / "run")
    folder.create(text)
    run_training(config, folder, reporter)
    assert torch.get_num_threads() == 1


def test_a_killed_sweep_continues_where_it_stands(sweep, tmp_path, capfd, warm_python):
    long = [*SMALL, "training.num_outer_iterations=6", "checkpoint.every=1", "evaluation.every=0"]
    arguments = ["-m", "seed=0,1,2", "hydra.sweep.dir=s", *long]
    command = script("gspo-train", *arguments, python=warm_python)
    process = subprocess.Popen(command, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE)
    until(lambda: list(tmp_path.glob("s/1-*/checkpoints/last")))
    process.kill()
    process.communicate()
    done, cut = (next(tmp_path.glob(f"s/{i}-*")) for i in (0, 1))
    assert (state_of(done), state_of(cut)) == (State.complete, State.started)
    written = (done / "metrics.jsonl").stat().st_mtime_ns
    assert sweep("-m", "resume=s", small=()) == 0
    out = capfd.readouterr().out
    assert f"{done}: is already complete" in out
    assert f"{cut}: continues" in out
    assert (done / "metrics.jsonl").stat().st_mtime_ns == written
    assert [job["code"] for job in jobs_of(tmp_path / "s")] == [0, 0, 0]
    for folder in tmp_path.glob("s/?-*"):
        assert [record["iteration"] for record in computed(folder)] == list(range(1, 7))


def test_a_sweep_with_other_settings_does_not_take_the_folder_of_another(sweep, tmp_path, capfd):
    job = tmp_path / "s" / "0-arithmetic-tiny-gspo-s0"
    prepare(job, resolved_yaml(composed(SMALL)))
    assert sweep("-m", "seed=0", "algorithm.learning_rate=0.5", "hydra.sweep.dir=s") == 2
    assert "contains a run with another configuration (algorithm.learning_rate)" in capfd.readouterr().err


def test_ctrl_c_ends_a_sweep_after_the_checkpoint_of_its_job(sweep, tmp_path, capfd):
    def press() -> None:
        until(lambda: any(path.stat().st_size for path in tmp_path.glob("s/0-*/metrics.jsonl")))
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press, daemon=True).start()
    long = [*SMALL, "training.num_outer_iterations=1000"]
    assert sweep("-m", "seed=0,1", "hydra.sweep.dir=s", small=long) == 130
    (job,) = jobs_of(tmp_path / "s")
    assert (job["job"], job["code"], job["score"]) == (0, 130, None)
    folder = Path(job["folder"])
    assert [path.name for path in (tmp_path / "s").iterdir() if path.is_dir()] == [folder.name]
    done = json.loads((folder / "summary.json").read_text())["iterations"]
    assert done == computed(folder)[-1]["iteration"] > 0
    assert int(re.search(r"\d+$", (folder / "checkpoints" / "last").resolve().name)[0]) == done
    assert "  interrupted  " in capfd.readouterr().out


def test_the_queue_checks_all_jobs_before_it_starts_one(sweep, tmp_path, capfd):
    assert sweep("-m", "sweep=queue", "seed=0,-1", "hydra.sweep.dir=s") == 2
    assert "job 1 (sweep=queue" in (err := capfd.readouterr().err)
    assert "seed=-1: must be 0 or more" in err
    assert [path for path in (tmp_path / "s").iterdir() if path.is_dir()] == []
    assert sweep("-m", "sweep=queue", "seed=0,1", "hydra.sweep.dir=s", "hydra.sweep.subdir=same") == 2
    assert "jobs 0 and 1 have the same folder" in capfd.readouterr().err


def test_the_queue_trains_in_processes_of_its_own(sweep, tmp_path, capfd, monkeypatch, warm_python):
    monkeypatch.setattr(sys, "executable", warm_python)
    (tmp_path / "judges.py").write_text(REWARDS)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    queue = ["-m", "sweep=queue", "hydra.launcher.parallel=2", "hydra.sweep.dir=s"]
    assert sweep(*queue, "reward=judges.First,judges.Breaks") == 1
    good, broken = jobs_of(tmp_path / "s")
    assert (good["code"], good["score"], broken["code"]) == (0, score_of(Path(good["folder"])), 2)
    assert "no such judge" in broken["why"]
    assert "Completed 2 of 2 iterations" in (Path(good["folder"]) / "log.txt").read_text()
    out = capfd.readouterr().out
    assert "reward=judges.First   running on CPU" in out
    assert sweep("reward=judges.First", "hydra.run.dir=alone") == 0
    assert computed(tmp_path / "alone") == computed(Path(good["folder"]))


def test_joblib_trains_in_processes_of_its_own(sweep, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="joblib's launcher is not installed")
    done = subprocess.run(
        script("gspo-train", "-m", "sweep=joblib", "seed=0,-1", "hydra.sweep.dir=s", *SMALL),
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr == "gspo-train: seed=-1: must be 0 or more, and below 2**63; give 0\n"
    good, bad = jobs_of(tmp_path / "s")
    assert (good["code"], good["score"], bad["code"]) == (0, 0.0, 2)
    assert sweep("seed=0", "hydra.run.dir=alone") == 0
    assert computed(tmp_path / "alone") == computed(Path(good["folder"]))


@pytest.mark.filterwarnings("ignore:Deprecated API features detected")  # of the sqlalchemy that optuna takes
@pytest.mark.filterwarnings("ignore::DeprecationWarning:optuna")
def test_optuna_maximises_the_held_out_score_and_a_search_repeats_its_draws(sweep, tmp_path, capfd):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="optuna's sweeper is not installed")
    search = ["-m", "sweep=optuna", "hydra.sweep.dir=s", "training.num_outer_iterations=1"]
    small = [text for text in SMALL if "iterations" not in text]
    assert sweep(*search, "hydra.sweeper.n_trials=2", small=small) == 0
    before = jobs_of(tmp_path / "s")
    rates = [text for job in before for text in job["overrides"] if "learning_rate" in text]
    assert len(set(rates)) == 2
    best = OmegaConf.load(tmp_path / "s" / "optimization_results.yaml")
    assert best.best_value == max(job["score"] for job in before) == 0.0
    assert 1e-5 <= best.best_params["algorithm.learning_rate"] <= 1e-3
    capfd.readouterr()
    assert sweep("-m", "resume=s", "hydra.sweeper.n_trials=3", small=()) == 0
    assert capfd.readouterr().out.count("is already complete") == 2
    assert jobs_of(tmp_path / "s")[:2] == before
    assert len(jobs_of(tmp_path / "s")) == 3


@pytest.mark.filterwarnings("ignore:Deprecated API features detected")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:optuna")
def test_a_search_in_which_all_fails_says_why_each_trial_did(sweep, tmp_path, capfd):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="optuna's sweeper is not installed")
    assert sweep("-m", "sweep=optuna", "hydra.sweep.dir=s", "hydra.sweeper.n_trials=1", "seed=-1") == 2
    told = capfd.readouterr()
    assert "gspo-train: seed=-1: must be 0 or more" in told.err
    assert told.out.splitlines()[-1] == "1 job, 1 failed"


def test_submitit_composes(monkeypatch):
    pytest.importorskip(
        "hydra_plugins.hydra_submitit_launcher", reason="submitit's launcher is not installed"
    )
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        node = compose("train", overrides=["sweep=submitit"], return_hydra_config=True)
    assert node.hydra.launcher._target_.endswith("SlurmLauncher")
    assert node.hydra.launcher.gpus_per_node == 1


def jobs_in(experiment: str, *arguments: str) -> list[list[str]]:
    """The overrides of each job of a sweep."""
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        overrides = [f"experiment={experiment}"]
        node = compose("train", overrides=overrides, return_hydra_config=True)
    texts = [f"{key}={value}" for key, value in node.hydra.sweeper.params.items()]
    parsed = OverridesParser.create().parse_overrides([*texts, *overrides, *arguments])
    return BasicSweeper.split_arguments(parsed, None)[0]


@pytest.mark.parametrize(
    ("experiment", "count", "key", "values"),
    [
        ("grpo_vs_gspo", 2, "algorithm.name", {"gspo", "grpo"}),
        ("moe_replay", 3, "algorithm.routing_replay", {True, False}),
        ("clip_sweep", 4, "algorithm.clip_range_left", {3e-4, 9e-4, 3e-3, 9e-3}),
        ("long_answers", 6, "task.difficulty", {1, 2, 4}),
    ],
)
def test_an_experiment_sweeps_over_what_it_says(experiment, count, key, values):
    assert len(jobs_in(experiment)) == 3 * count  # seeds
    nodes = [composed(overrides) for overrides in jobs_in(experiment, "seed=0")]
    assert {OmegaConf.select(node, key) for node in nodes} == values
    assert len({fingerprint(plain(node)) for node in nodes}) == count


def test_clip_widths_keep_their_proportion():
    widths = [composed(overrides).algorithm for overrides in jobs_in("clip_sweep", "seed=0")]
    assert [w.clip_range_right / w.clip_range_left for w in widths] == pytest.approx([4 / 3] * 4, rel=1e-12)


def test_the_command_line_replaces_a_part_of_an_experiments_sweep():
    jobs = jobs_in("grpo_vs_gspo", "seed=7", "algorithm=gspo,grpo,gspo_token")
    assert [composed(overrides).algorithm.name for overrides in jobs] == ["gspo", "grpo", "gspo_token"]
    assert {composed(overrides).seed for overrides in jobs} == {7}


def test_routing_replay_is_the_only_difference_between_grpo_and_grpo_replay():
    one, other = (
        plain(composed(["experiment=moe_replay", f"algorithm={name}"])) for name in ("grpo", "grpo_replay")
    )
    assert changed_settings(one, other) == ["algorithm.name", "algorithm.routing_replay"]


def test_moe_replay_trains_its_three_arms(sweep, tmp_path):
    small = [text for text in SMALL if "iterations" not in text]
    few = ["seed=0", "hydra.sweep.dir=s", "evaluation.every=0", "training.num_outer_iterations=1"]
    assert sweep("-m", "experiment=moe_replay", *few, small=small) == 0
    settings = [saved_settings(Path(job["folder"]))["algorithm"] for job in jobs_of(tmp_path / "s")]
    assert [(each["name"], each["routing_replay"]) for each in settings] == [
        ("grpo", False),
        ("grpo_replay", True),
        ("gspo", False),
    ]


def test_jobs_are_told_apart_by_what_not_all_have():
    jobs = [["seed=0", "algorithm.learning_rate=0.00012520653814999459", "task=x"], ["seed=1", "task=x"]]
    assert job_names(jobs) == ["seed=0 learning_rate=0.0001252", "seed=1"]


def test_resume_of_a_sweep_gives_its_command_again_in_its_folder(tmp_path):
    folder = tmp_path / "a sweep"
    folder.mkdir()
    (folder / "sweep.json").write_text(json.dumps({"arguments": ["-m", "seed=0,1", "hydra.sweep.dir=x"]}))
    again = resumed_sweep(["-m", f"resume={folder}", "hydra.launcher.parallel=2"])
    assert again == ["-m", "seed=0,1", "hydra.launcher.parallel=2", f'hydra.sweep.dir="{folder}"']
    assert resumed_sweep(["-m", "resume=elsewhere"]) == ["-m", "resume=elsewhere"]
    assert resumed_sweep([f"resume={folder}"]) == [f"resume={folder}"]


def test_the_queue_is_found_as_a_plugin():
    offer_queue()
    assert "hydra_plugins.gspo_cli.QueueLauncher" in Plugins.instance().class_name_to_class
