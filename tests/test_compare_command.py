"""gspo-compare as a user calls it: real runs, found again, continued after a kill, tuned; and bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gspo_cli.compare.missing_runs import SharedSettings, reward_at_end
from tests.stored_runs import write_run

ROOT = Path(__file__).resolve().parent.parent
FAST = (
    "task=arithmetic", "model.cold_start.steps=3", "model.cold_start.stop_score=null",
    "model.cold_start.batch_tokens=100", "model.shape.hidden_size=32", "model.shape.layers=2",
    "model.shape.heads=4", "model.shape.key_value_heads=2", "model.shape.head_dim=8",
    "model.shape.intermediate_size=48", "training.num_generations=4", "training.generations_per_iteration=16",
    "rollout.max_completion_length=8", "evaluation.problems=4", "evaluation.samples=2", "hardware.threads=1",
)  # fmt: skip


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "gspo_cli.commands.compare", *arguments]


def compare(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    return subprocess.run(
        command(*arguments), cwd=folder, env=environment, capture_output=True, text=True, timeout=200
    )


def runs_in(folder: Path) -> dict[str, float]:
    """Run folders and when they were summed up."""
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.rglob("runs/*/summary.json")}


def test_missing_runs_are_made_once_and_more_are_added(tmp_path):
    short = ("training.num_outer_iterations=2",)
    first = compare(tmp_path, *FAST, *short, "compare.seeds=[0,1]")
    assert first.returncode == 0, first.stdout + first.stderr
    base = tmp_path / "outputs" / "compare" / "arithmetic-tiny"
    made = runs_in(base)
    names = sorted(name.rpartition("-")[0] for name in made)  # without the fingerprint
    assert names == ["grpo-s0", "grpo-s1", "gspo-s0", "gspo-s1"]
    report = json.loads((base / "report.json").read_text())
    assert [sorted(run["seed"] for run in arm["runs"]) for arm in report["arms"]] == [[0, 1], [0, 1]]
    again = compare(tmp_path, *FAST, *short, "compare.seeds=[0,1,2]", "logging.samples_per_iteration=1")
    assert again.returncode == 0, again.stdout + again.stderr
    later = runs_in(base)
    assert {name: later[name] for name in made} == made, "what is there is not trained again"
    assert len(later) == 6


def begun(process: subprocess.Popen, logs: Path, iteration: int) -> str:
    """The name of the run in which `iteration` is saved."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        found = list(logs.glob(f"*/checkpoints/iteration-{iteration:06d}"))
        if found:
            return found[0].parent.parent.name
        assert process.poll() is None
        time.sleep(0.05)
    raise AssertionError("no run began")


def test_a_comparison_that_is_stopped_and_then_killed_goes_on(tmp_path):
    arguments = [*FAST, "training.num_outer_iterations=60", "checkpoint.every=1", "checkpoint.keep=100",
                 "evaluation.every=0", "compare.seeds=[0]", "compare.algorithms=[gspo,grpo]"]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    base = tmp_path / "outputs" / "compare" / "arithmetic-tiny"
    options = {"cwd": tmp_path, "env": environment, "text": True, "start_new_session": True}
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with subprocess.Popen(command(*arguments), **options, **pipes) as stopped:
        name = begun(stopped, base / "runs", 2)
        os.kill(stopped.pid, signal.SIGINT)
        told = stopped.communicate()[1]
    assert (stopped.returncode, told) == (
        130,
        "gspo-compare: stopped; the same command resumes from the last checkpoints\n",
    )
    reached = json.loads((base / "runs" / name / "summary.json").read_text())["iterations"]
    assert 2 <= reached < 60
    with subprocess.Popen(command(*arguments), **options, **pipes) as killed:
        assert begun(killed, base / "runs", reached + 1) == name
        os.kill(killed.pid, signal.SIGKILL)
    done = compare(tmp_path, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = (base / "runs" / name / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in lines] == list(range(1, 61))
    assert "one seed" in done.stdout


def test_each_algorithm_is_tuned_by_the_same_budget_with_a_seed_of_its_own(tmp_path):
    done = compare(
        tmp_path, *FAST, "training.num_outer_iterations=2", "compare.seeds=[0]",
        "compare.folder=my runs (a,b)",
        "compare.tune.trials=2", "compare.tune.iterations=1", "compare.parallel=2",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    base = tmp_path / "my runs (a,b)"
    assert len(runs_in(base)) == 2
    assert sum("-s1000-" in path.parent.name for path in base.glob("trials/*/summary.json")) == 4
    methods = " ".join(json.loads((base / "report.json").read_text())["methods"])
    for algorithm in ("gspo", "grpo"):
        assert f"{algorithm} was tuned with 2 trials, seed 1000" in methods
    assert "algorithm.learning_rate=0.0003" in methods


def test_a_run_that_fails_is_said_and_the_others_are_compared(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from gspo_cli import RewardFunction, RewardResult\n"
        "class Broken(RewardFunction):\n"
        "    def __init__(self, seed):\n"
        "        self.seed = seed\n"
        "    def compute_reward(self, trajectory, turn, context):\n"
        "        if self.seed == 1:\n"
        "            raise ValueError('the grader is down')\n"
        "        return RewardResult(trajectory.token_ids[-1] % 2)\n"
    )
    done = compare(
        tmp_path, *FAST, "training.num_outer_iterations=2", "compare.seeds=[0,1]",
        "reward=mine.Broken", "+reward_settings={seed: ${seed}}",
    )  # fmt: skip
    assert done.returncode == 1
    assert "left out" in done.stdout
    report = json.loads((tmp_path / "outputs/compare/arithmetic-tiny/report.json").read_text())
    assert [sorted(run["seed"] for run in arm["runs"]) for arm in report["arms"]] == [[0], [0]]
    assert len(report["left_out"]) == 2


def test_given_folders_are_compared_as_they_are(tmp_path):
    for algorithm, final in (("gspo", 0.8), ("grpo", 0.5)):
        for seed in range(3):
            write_run(tmp_path / "sweep" / f"{algorithm}-{seed}", algorithm=algorithm, seed=seed, final=final)
    done = compare(tmp_path, "sweep")
    assert done.returncode == 0, done.stderr
    assert "gspo is higher" in " ".join(done.stdout.split())
    assert {"report.html", "report.json", "report.md"} <= {
        path.name for path in (tmp_path / "sweep").iterdir()
    }
    first = (tmp_path / "sweep" / "report.html").read_bytes()
    assert compare(tmp_path, "sweep").returncode == 0
    assert (tmp_path / "sweep" / "report.html").read_bytes() == first
    several = compare(tmp_path, *(f"sweep/{a}-{s}" for a in ("gspo", "grpo") for s in range(3)))
    assert several.returncode == 0
    assert list((tmp_path / "outputs" / "compare").glob("*/report.html"))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "nothing to compare; give run folders, or what to train"),
        (["nowhere"], "nowhere: does not exist"),
        (["."], "contains no run"),
        (["seed=3"], "seed=3: is set by the comparison"),
        (["algorithm=grpo"], "algorithm=grpo: is set by the comparison"),
        (["hydra.run.dir=x"], "hydra.run.dir=x: is set by the comparison"),
        (["task=nope"], "task=nope: is not an option"),
        (["task=arithmetic", "compare.algorithms=[gspo,nope]"], "algorithm=nope: is not an option"),
        (["training.updates_per_rollout=1"], "training.updates_per_rollout=1: the ratio is then 1"),
        (["compare.sed=1"], "compare.sed: is not a setting; did you mean seeds?"),
        (["compare.tune.trals=1"], "did you mean tune.trials?"),
        (["compare.seeds=[0,0]"], "compare.seeds=[0, 0]: has a seed twice"),
        (["compare.seeds=[0"], "compare.seeds=[0: cannot be read"),
        (["compare.algorithms=[gspo]"], "there is nothing to compare it with"),
        (
            ['compare.algorithms=[grpo,"grpo algorithm.beta=0.0"]'],
            "grpo and grpo algorithm.beta=0.0 are one configuration",
        ),
        (["compare.baseline=grp0"], "compare.baseline=grp0: must be one of the arms gspo; grpo"),
        (["compare.folder=/dev/null/x"], "compare.folder=/dev/null/x: cannot be created"),
        (["-cd", "nowhere", "task=arithmetic"], "-cd nowhere: is not a folder"),
        (["compare.level=2"], "compare.level=2.0: must be"),
        (["compare.tune.trials=99"], "compare.tune.trials=99: there are 9 candidates"),
        (["compare.tune.trials=2", "compare.seeds=[1000]"], "compare.tune.seed=1000: is also compared"),
        (["model.name=nothing", "model.use_8bit=maybe"], "model.use_8bit"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(tmp_path, arguments, sentence):
    done = compare(tmp_path, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("gspo-compare: ")
    assert sentence in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_folders_take_no_settings_of_runs(tmp_path):
    write_run(tmp_path / "run")
    for text, reason in (
        ("task=arithmetic", "does not apply to runs in folders"),
        ("compare.seeds=[0]", "sets what is trained, but folders are given"),
        ("compare.tune.trials=3", "sets what is trained, but folders are given"),
    ):
        done = compare(tmp_path, "run", text)
        assert done.returncode == 2
        assert f"{text}: {reason}" in done.stderr


def test_runs_from_before_a_change_of_the_users_code_or_data_are_other_runs(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    code, data = tmp_path / "judged.py", tmp_path / "mine.jsonl"
    code.write_text("from gspo_cli import RewardFunction\nclass Mine(RewardFunction): pass\n")
    data.write_text('{"prompt": "1+1", "answer": "2"}\n' * 20)
    source = SharedSettings(["task=jsonl", f"task.path={data}", "reward=judged.Mine"])
    names = [source.run("gspo", 0, None).folder.name]
    code.write_text(code.read_text() + "# better\n")
    names.append(source.run("gspo", 0, None).folder.name)
    data.write_text(data.read_text() * 2)
    names.append(source.run("gspo", 0, None).folder.name)
    assert len(set(names)) == 3
    assert source.run("gspo", 0, None).folder.name == names[-1]


def test_a_trial_that_did_not_end_has_no_reward(tmp_path):
    assert reward_at_end(write_run(tmp_path / "a")) is not None
    assert reward_at_end(write_run(tmp_path / "b", status="interrupted", ends=20)) is None
