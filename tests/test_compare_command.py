"""gspo-compare as a user calls it: real runs, found again, continued after a kill, tuned; and bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from gspo_cli.compare.missing_runs import ComparisonRun, SharedSettings, reward_at_end, tuning_trials
from gspo_cli.config.compare_schema import CompareConfig, TuneConfig
from gspo_cli.config.compose import resolved_yaml
from gspo_cli.run.folder import RunFolder
from gspo_cli.run.identity import prepare, saved_settings
from tests.support.command_line import ROOT, call, environment, script
from tests.support.stored_runs import changed, stored_run, write_run, write_stored
from tests.support.whole_runs import ARITHMETIC

pytestmark = pytest.mark.long

FOUND = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}  # for the processes of its runs
FAST = (
    *ARITHMETIC, "model.cold_start.steps=3", "model.cold_start.stop_score=null",
    "model.cold_start.batch_tokens=100", "model.shape.hidden_size=32", "model.shape.layers=2",
    "model.shape.heads=4", "model.shape.key_value_heads=2", "model.shape.head_dim=8",
    "model.shape.intermediate_size=48", "training.num_generations=4", "training.generations_per_iteration=16",
    "rollout.max_completion_length=8", "evaluation.problems=4", "evaluation.samples=2", "hardware.threads=1",
)  # fmt: skip
BROKEN = (
    "training.num_outer_iterations=2", "reward=mine.Broken",
    "+reward_settings={run: '${algorithm.name} ${seed}'}",
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _runs_start_at_once(warm_python):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", warm_python)
        yield


def compare(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    return call("gspo-compare", *arguments, cwd=folder, **FOUND, COLUMNS="100")


def runs_in(folder: Path) -> dict[str, float]:
    """Run folders and when they were summed up."""
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.rglob("runs/*/summary.json")}


def logs_in(folder: Path) -> dict[str, str]:
    """What the processes of runs printed."""
    return {path.name: path.read_text() for path in folder.rglob("runs/*.log")}


@pytest.fixture(scope="module")
def compared(tmp_path_factory) -> SimpleNamespace:
    """A comparison over seed 0, to which seed 1 is then added, where the run of GRPO fails."""
    folder = tmp_path_factory.mktemp("compared")
    (folder / "mine.py").write_text(
        "from gspo_cli import RewardFunction, RewardResult\n"
        "class Broken(RewardFunction):\n"
        "    def __init__(self, run):\n"
        "        self.run = run\n"
        "    def compute_reward(self, trajectory, turn, context):\n"
        "        if self.run == 'grpo 1':\n"
        "            raise ValueError('the grader is down')\n"
        "        return RewardResult(trajectory.token_ids[-1] % 2)\n"
    )
    base = folder / "outputs" / "compare" / "arithmetic-tiny"
    first = compare(folder, *FAST, *BROKEN, "compare.seeds=[0]")
    made, logs, report = runs_in(base), logs_in(base), json.loads((base / "report.json").read_text())
    again = compare(folder, *FAST, *BROKEN, "compare.seeds=[0,1]", "logging.samples_per_iteration=1")
    return SimpleNamespace(base=base, first=first, made=made, logs=logs, report=report, again=again)


def test_missing_runs_are_made_once_and_more_are_added(compared):
    assert compared.first.returncode == 0, compared.first.stdout + compared.first.stderr
    names = sorted(name.rpartition("-")[0] for name in compared.made)  # without the fingerprint
    assert names == ["grpo-s0", "gspo-s0"]
    assert [[run["seed"] for run in arm["runs"]] for arm in compared.report["arms"]] == [[0], [0]]
    later = runs_in(compared.base)
    assert {name: later[name] for name in compared.made} == compared.made, (
        "what is there is not trained again"
    )
    printed = logs_in(compared.base)
    assert {name: printed[name] for name in compared.logs} == compared.logs != {}
    names = sorted(name.rpartition("-")[0] for name in later)
    assert names == ["grpo-s0", "grpo-s1", "gspo-s0", "gspo-s1"]


def test_a_run_that_fails_is_said_and_the_others_are_compared(compared):
    assert compared.again.returncode == 1
    assert "left out" in compared.again.stdout
    report = json.loads((compared.base / "report.json").read_text())
    seeds = {arm["name"]: sorted(run["seed"] for run in arm["runs"]) for arm in report["arms"]}
    assert seeds == {"gspo": [0, 1], "grpo": [0]}
    assert len(report["left_out"]) == 1


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
    arguments = [*FAST, "training.num_outer_iterations=16", "checkpoint.every=1", "checkpoint.keep=100",
                 "evaluation.every=0", "compare.seeds=[0]", "compare.algorithms=[gspo,grpo]"]  # fmt: skip
    base = tmp_path / "outputs" / "compare" / "arithmetic-tiny"
    options = {"cwd": tmp_path, "env": environment(), "text": True, "start_new_session": True}
    command = script("gspo-compare", *arguments, python=sys.executable)
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **options, **pipes) as stopped:
        name = begun(stopped, base / "runs", 2)
        os.kill(stopped.pid, signal.SIGINT)
        told = stopped.communicate()[1]
    assert (stopped.returncode, told) == (
        130,
        "gspo-compare: stopped; the same command resumes from the last checkpoints\n",
    )
    reached = json.loads((base / "runs" / name / "summary.json").read_text())["iterations"]
    assert 2 <= reached < 16
    with subprocess.Popen(command, **options, **pipes) as killed:
        assert begun(killed, base / "runs", reached + 1) == name
        os.kill(killed.pid, signal.SIGKILL)
        killed.communicate()
    done = compare(tmp_path, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = (base / "runs" / name / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in lines] == list(range(1, 17))
    assert "one seed" in done.stdout


def test_seeds_are_added_to_real_runs_and_a_second_time_trains_nothing(tmp_path):
    arguments = (*FAST, "training.num_outer_iterations=2", "compare.until=settled", "compare.seeds=[0,1]")
    base = tmp_path / "outputs" / "compare" / "arithmetic-tiny"
    done = compare(tmp_path, *arguments, "compare.max_seeds=3")
    assert done.returncode == 0, done.stdout + done.stderr
    looks = [line for line in done.stdout.splitlines() if line.startswith("after ")]
    assert [line.rpartition("; ")[2] for line in looks] == ["adding seed 2", "compare.max_seeds=3 is reached"]
    made, report = runs_in(base), (base / "report.json").read_bytes()
    names = sorted(name.rpartition("-")[0] for name in made)
    assert names == [f"{algorithm}-s{seed}" for algorithm in ("grpo", "gspo") for seed in range(3)]
    again = compare(tmp_path, *arguments, "compare.max_seeds=3")
    assert again.returncode == 0, again.stdout + again.stderr
    assert (runs_in(base), (base / "report.json").read_bytes()) == (made, report)


def finished(planned: ComparisonRun, reward: float) -> None:
    """The folder of a run as if it had been trained, with this reward at its end."""
    prepare(planned.folder, resolved_yaml(planned.node))
    folder, last = RunFolder(planned.folder), planned.config.training.num_outer_iterations
    folder.append("metrics.jsonl", {"iteration": last, "reward": reward})
    folder.write_summary({"status": "completed", "iterations": last})


def test_each_algorithm_is_tuned_by_the_same_budget_with_a_seed_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    few = [*FAST, "training.num_outer_iterations=2"]
    settings = CompareConfig(seeds=[0], folder="my runs (a,b)", tune=TuneConfig(trials=2, iterations=1))
    (preset, faster), (own, _) = (
        tuning_trials(SharedSettings(few), settings, name) for name in ("gspo", "grpo")
    )
    for trial, reward in ((preset, 0.1), (faster, 0.9), (own, 2.0)):  # the fourth one is trained here
        finished(trial, reward)
    done = compare(
        tmp_path, *few, "compare.seeds=[0]", "compare.folder=my runs (a,b)",
        "compare.tune.trials=2", "compare.tune.iterations=1", "compare.parallel=2",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    base = tmp_path / "my runs (a,b)"
    assert sum("-s1000-" in path.parent.name for path in base.glob("trials/*/summary.json")) == 4
    runs = {name.partition("-")[0]: saved_settings(base / "runs" / name) for name in runs_in(base)}
    rates = {name: run["algorithm"]["learning_rate"] for name, run in runs.items()}
    assert rates == {"gspo": 3e-4, "grpo": own.config.algorithm.learning_rate}
    assert {run["training"]["num_outer_iterations"] for run in runs.values()} == {2}
    methods = " ".join(json.loads((base / "report.json").read_text())["methods"])
    for algorithm in ("gspo", "grpo"):
        assert f"{algorithm} was tuned with 2 trials, seed 1000" in methods
    assert "algorithm.learning_rate=0.0003" in methods


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


def test_folders_of_several_tasks_make_one_report(tmp_path):
    for task in ("arithmetic", "countdown"):
        for algorithm, final in (("gspo", 0.8), ("grpo", 0.5)):
            for seed in range(2):
                run = stored_run(algorithm, seed, final=final)
                write_stored(tmp_path / task / f"{algorithm}-{seed}", changed(run, task__name=task))
    done = compare(tmp_path, "arithmetic", "countdown", "compare.folder=both", "compare.baseline=gspo")
    assert done.returncode == 0, done.stderr
    assert "grpo is higher in 0 of 2 sections and lower in 2" in " ".join(done.stdout.split())
    report = json.loads((tmp_path / "both" / "report.json").read_text())
    assert [each["task"] for each in report["sections"]] == ["arithmetic", "countdown"]
    assert report["summary"]["reproduce"] == [
        "gspo-compare arithmetic countdown compare.folder=both compare.baseline=gspo"
    ]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "nothing to compare; give run folders, or settings to train with"),
        (["nowhere"], "nowhere: does not exist"),
        ([""], "'': is no folder (an empty variable of the shell?)"),
        (["compare.tune.trials", "."], "compare.tune.trials: has no value; type compare.tune.trials=<value>"),
        (["task=arithmetic", "compare.allow=[rollout.temprature]"], "did you mean rollout.temperature?"),
        (["."], "contains no run"),
        (["seed=3"], "seed=3: is set by the comparison"),
        (["algorithm=grpo"], "algorithm=grpo: is set by the comparison"),
        (["hydra.run.dir=x"], "hydra.run.dir=x: is set by the comparison"),
        (["task=nope"], "task=nope: is not an option"),
        (["task=arithmetic", "compare.algorithms=[gspo,nope]"], "algorithm=nope: is not an option"),
        (
            ["task=arithmetic,countdown"],
            "task=arithmetic,countdown: gspo-compare trains with one task at a time",
        ),
        (
            ["model=tiny", "model=tiny_moe"],
            "run gspo-compare model=tiny and gspo-compare model=tiny_moe, each",
        ),
        (["rollout.temperature=0.7,1.0"], "rollout.temperature=0.7,1.0: has several values"),
        (["training.updates_per_rollout=1"], "training.updates_per_rollout=1: the ratio is then 1"),
        (["compare.sed=1"], "compare.sed: is not a setting; did you mean seeds?"),
        (["compare.tune.trals=1"], "did you mean tune.trials?"),
        (["compare.seeds=[0,0]"], "compare.seeds=[0, 0]: has a duplicate seed"),
        (["compare.seeds=[0"], "compare.seeds=[0: cannot be read"),
        (["compare.algorithms=[gspo]"], "there is nothing to compare it with"),
        (
            ['compare.algorithms=[grpo,"grpo algorithm.beta=0.0"]'],
            "grpo and grpo algorithm.beta=0.0 are the same configuration",
        ),
        (
            ["compare.baseline=grp0"],
            "compare.baseline=grp0: is not one of the arms; choose one of gspo; grpo",
        ),
        (["compare.folder=/dev/null/x"], "compare.folder=/dev/null/x: cannot be created"),
        (["-cd", "nowhere", "task=arithmetic"], "-cd nowhere: is not a folder"),
        (["compare.level=2"], "compare.level=2.0: must be"),
        (["compare.tune.trials=99"], "compare.tune.trials=99: there are only 9 candidates"),
        (
            ["compare.tune.trials=2", "compare.seeds=[1000]"],
            "compare.tune.seed=1000: is also a compared seed",
        ),
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
        ("task=arithmetic", "does not apply to existing runs"),
        ("compare.seeds=[0]", "is a training setting, but run folders are given"),
        ("compare.tune.trials=3", "is a training setting, but run folders are given"),
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
