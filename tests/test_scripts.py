"""Every script under scripts/ runs. `make wheel` runs check_wheel.py."""

from __future__ import annotations

import importlib
import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from gspo_cli.run.folder import RunFolder
from gspo_cli.training.session import run_training

pytestmark = pytest.mark.long

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
PARTS = ("score", "update")  # of what benchmark_growth.py measures


@pytest.fixture
def run_script(monkeypatch, capsys):
    """`run_script(name, *arguments)`: what the script prints, run in this process to import torch once."""

    def run(name, *arguments):
        monkeypatch.syspath_prepend(str(SCRIPTS))
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(SCRIPTS / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_every_script_is_run():
    run_by_make = {"check_wheel.py", "kill_test.py"}
    imported = {"benchmark_sides.py", "benchmark_operations.py", "benchmark_point.py"}
    imported |= {"gpu_check_iteration.py", "mutants.py", "algorithm_mutants.py"}
    assert "scripts/check_wheel.py" in (SCRIPTS.parent / "Makefile").read_text(encoding="utf-8")
    assert "scripts/kill_test.py" in (SCRIPTS.parent / "Makefile").read_text(encoding="utf-8")
    assert "check kills" in (SCRIPTS.parent / ".ci" / "run").read_text(encoding="utf-8")
    assert "check wheel" in (SCRIPTS.parent / ".ci" / "run").read_text(encoding="utf-8")
    here = Path(__file__).read_text(encoding="utf-8")
    real = (SCRIPTS.parent / "tests" / "test_real_model.py").read_text(encoding="utf-8")
    assert "check_generation.py" in real
    assert "fetch_smollm2.py" in (SCRIPTS.parent / "tests/support/real_model.py").read_text(encoding="utf-8")
    imported |= {"check_generation.py", "fetch_smollm2.py"}  # run on the real model
    here += (SCRIPTS.parent / "tests" / "test_results.py").read_text(encoding="utf-8")
    others = {path.name for path in SCRIPTS.iterdir() if path.is_file()} - run_by_make - imported
    assert [name for name in others if f'"{name}"' not in here] == []


# ---- mutation.py


def test_a_wrong_line_is_noticed_and_one_that_changes_nothing_survives(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    # by name, as its processes find what they run
    script = importlib.import_module(Path("mutation.py").stem)
    assert len(list(script.mutants(""))) >= 100
    file, tests, place = "gspo_cli/tasks/expression.py", ("test_expression",), script.copy()
    try:
        original = (place / file).read_text()
        assert script.noticed(place, script.Mutant(file, "Fraction(", "1 + Fraction(", tests))
        assert not script.noticed(place, script.Mutant(file, '"""', '"""Another word: ', tests))
        assert (place / file).read_text() == original
    finally:
        shutil.rmtree(place)


# ---- benchmark_agents.py


def test_the_benchmark_of_agents_compares_the_same_tokens(run_script, capsys):
    pytest.importorskip("openai", reason="needs the extra dev")
    with pytest.raises(SystemExit) as ended:
        run_script(
            "benchmark_agents.py", "--conversations", "3", "--turns", "2", "--repeats", "1", "--threads", "1"
        )
    printed = capsys.readouterr().out
    assert ended.value.code == 0
    assert "6 requests of" in printed
    assert "same tokens in lock-step: yes" in printed
    for way in ("in process", "plain client", "OpenAI SDK, async", "plain client, continuous"):
        assert f"| {way} | " in printed


def test_nothing_is_left_of_conversations_that_end_in_all_ways(run_script, capsys):
    pytest.importorskip("openai", reason="needs the extra dev")
    with pytest.raises(SystemExit) as ended:
        run_script("benchmark_agents.py", "--leaks", "100", "--threads", "1")
    assert ended.value.code == 0, capsys.readouterr().out


# ---- benchmark.py


def test_the_benchmark_measures_our_side_without_trl(run_script):
    printed = run_script("benchmark.py", "--ours-only", "--smoke", "--repeats", "1", "--iterations", "1")
    tables = {part.partition(",")[0]: part for part in printed.split("\n\n") if ", medians of" in part}
    assert list(tables) == ["fixed", "geometric", "tools"]
    for name, drawn in (("fixed", False), ("geometric", True), ("tools", False)):
        part = printed.partition(f"\n{name}, medians")[2].partition(", medians")[0]
        rows = {line[:34].strip(): line[34:].split() for line in part.splitlines() if line[:1].isalpha()}
        assert all(float(speed) > 0 for speed in rows["answer tokens per second"])
        assert [cell.endswith("%") for cell in rows["update, of matrix rate"]] == [True, True]
        ours, recomputing = map(float, rows["mean answer, tokens"])
        assert ours == recomputing
        assert (1 <= ours < 16) if drawn else ours == 16


def test_the_benchmark_names_what_it_lacks_where_trl_is_not_installed():
    command = [sys.executable, "-S", str(SCRIPTS / "benchmark.py")]  # -S: no installed packages
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "TRL is not installed: pip install -e '.[bench]'" in done.stderr


@pytest.fixture
def unequal_work(monkeypatch):
    """The check of benchmark.py: None, or why two sides cannot be compared."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return runpy.run_path(str(SCRIPTS / "benchmark.py"))["unequal_work"]


@pytest.mark.parametrize(
    ("ours", "trl", "expected"),
    [(1024, 1024, 1024), (1000, 1050, None), (1050, 1000, None), (900, 1000, None)],
)
def test_sides_that_train_on_the_same_tokens_are_compared(ours, trl, expected, unequal_work):
    assert unequal_work({"ours": ours, "trl": trl}, expected) is None


@pytest.mark.parametrize(
    ("ours", "trl", "expected"),
    [
        (0, 1024, 1024),  # answers that nobody trained on, as when the default task changed
        (1023, 1024, 1024),
        (1024, 1023, 1024),
        (0, 0, 1024),
        (0, 1024, None),
        (0, 0, None),
        (890, 1000, None),
        (1000, 890, None),
    ],
)
def test_sides_that_train_on_other_tokens_are_refused_with_both_counts(ours, trl, expected, unequal_work):
    reason = unequal_work({"ours": ours, "trl": trl}, expected)
    assert f"gspo-cli trained on {ours} tokens, TRL trained on {trl} tokens" in reason


def test_the_benchmark_exits_with_1_where_nothing_was_trained(run_script, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    sides = __import__("benchmark_sides")
    nothing = [{"iteration": 1.0, "tokens": 0, "mean_length": 0.0, "groups_skipped": 1.0}] * 2
    for record in nothing:
        record |= {"score": 0.0, "score_operations": 0.0, "update": 1.0, "update_operations": 0.0}
    monkeypatch.setattr(sides, "run_ours", lambda *_: (nothing, 0.1))
    with pytest.raises(SystemExit) as end:
        run_script("benchmark.py", "--ours-only", "--smoke", "--workload", "geometric")
    assert end.value.code == (
        "geometric: gspo-cli trained on 0 tokens, recomputing trained on 0 tokens; without tokens nothing is "
        "measured"
    )


# ---- benchmark_growth.py


def test_the_growth_benchmark_measures_each_size_with_shared_beginnings_and_without(run_script, tmp_path):
    file = tmp_path / "growth.json"
    printed = run_script("benchmark_growth.py", "--smoke", "--repeats", "1", "--json", str(file))
    tables = {part.partition(",")[0]: part for part in printed.split("\n\n") if ", medians of" in part}
    assert list(tables) == ["prompt", "group", "answer", "vocabulary"]
    found = json.loads(file.read_text(encoding="utf-8"))["points"]
    assert len(found) == 10  # the base point belongs to every axis
    for point in found:
        unique = point["prompt"] + point["group"] * point["answer"]
        plain = point["group"] * (point["prompt"] + point["answer"])
        assert point["unique_tokens"] == unique
        assert point["computed_tokens"] == (unique if point["share"] else plain)
        assert all(point[f"{part}_{kind}"] > 0 for part in PARTS for kind in ("seconds", "operations"))
    by_point = {(p["prompt"], p["group"], p["answer"], p["vocabulary"], p["share"]): p for p in found}
    assert (
        by_point[100, 2, 4, 512, True]["update_operations"]
        == (by_point[100, 2, 4, 512, False]["update_operations"])
    )
    assert "target: a spread of at most 25%" in printed


# ---- the others


def test_the_memory_benchmark_measures_both_phases(run_script):
    rows = [line.split() for line in run_script("benchmark_memory.py", "--smoke").splitlines()]
    found = {(row[0], row[-3]): [int(cell) for cell in row[-2:]] for row in rows}
    assert {("full", "update"), ("full", "rollout"), ("gpt2,", "update"), ("gpt2,", "rollout")} <= set(found)
    assert all(planned > 0 for planned, _ in found.values())


def test_the_environment_benchmark_prints_a_line_for_each_difficulty_and_the_share_of_a_run(
    run_script, configure, reporter, tmp_path
):
    overrides = ["experiment=smoke", "task=arithmetic", "model.cold_start.steps=2", "evaluation.problems=4"]
    config, yaml = configure(*overrides)
    folder = RunFolder(tmp_path / "run")
    folder.create(yaml)
    run_training(config, folder, reporter)
    options = ["--problems", "2", "--answers", "1", "--run", str(folder.path)]
    head, *lines = run_script("benchmark_environment.py", *options).splitlines()
    assert head.startswith("difficulty  conversations  agent turns")
    assert [line.split()[0] for line in lines if "%" not in line] == ["1", "2", "3", "4"]
    [share] = [line for line in lines if "%" in line]
    assert share.endswith(f"with {config.training.generations_per_iteration} steps: {folder.path}")


WITHOUT_HYDRA = """
import runpy, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("hydra", "omegaconf"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
sys.argv = sys.argv[1:]
sys.path[0] = sys.argv[0].rpartition("/")[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_the_gpu_check_needs_neither_hydra_nor_omegaconf(tmp_path):
    written = tmp_path / "found.json"
    script = [str(SCRIPTS / "gpu_check.py"), "--small", "--out", str(written)]
    command = [sys.executable, "-c", WITHOUT_HYDRA, *script]
    variables = os.environ | {"PYTHONPATH": str(SCRIPTS.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(written.read_text(encoding="utf-8"))
    assert (found["small"], found["failed"], found["notes"]) == (True, [], [])
    parts = found["parts"]
    assert parts["ceilings"]["matmul_tflops"] > 0
    for name in ("Qwen3", "Qwen3-MoE"):
        assert parts[f"packed rows, {name}"]["equal"]
        assert 0 < parts[f"packed rows, {name}"]["fp32"]["logprobs"] < 1e-4
    for name in ("Qwen3-0.6B", "Qwen3-4B"):
        assert parts[name]["rollout"]["answers"] == parts[name]["rollout"]["of"] == 16
        for phase, share in (("rollout", "bandwidth"), ("score", "matmul"), ("update", "matmul")):
            assert parts[name][phase]["tokens_per_s"] > 0
            assert 0 < parts[name][phase][f"share_of_{share}"] < 1
        assert parts[name]["score"]["tokens_per_s"] > 1.5 * parts[name]["score"]["unique_tokens_per_s"]
    skipped = [line for line in done.stdout.splitlines() if "skipped: flex_attention has no backward" in line]
    assert len(skipped) == 3


def test_the_gpu_check_reports_what_fails_or_has_no_time_and_runs_the_rest(run_script, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    script = runpy.run_path(str(SCRIPTS / "gpu_check.py"))
    report = script["Report"](Path(os.devnull), {"parts": {}})

    def fail(_):
        raise RuntimeError("CUDA out of\nmemory")

    report.run("first", 10, fail)
    report.run("second", -1, lambda _: {})
    report.run("third", 10, lambda _: {"equal": False, "fp32": {"logprobs": 0.5}})
    report.run("fourth", 10, lambda _: {"equal": True})
    report.run(
        "fifth", 10, lambda _: {"planned_update_gb": 1.5, "rollout": {"error": "no"}, "score": {"seconds": 2}}
    )
    assert report.failed == ["first", "second", "third", "fifth"]
    assert capsys.readouterr().out.splitlines() == [
        "first: failed: RuntimeError: CUDA out of memory",
        "second: failed: not run, no time was left",
        "third: DIFFERENT",
        "  fp32         logprobs 0.5",
        "fourth: equal",
        f"fifth: planned_update_gb 1.5, part_s {report.found['parts']['fifth']['part_s']:.3g}",
        "  rollout      failed: no",
        "  score        seconds 2",
    ]


@pytest.fixture
def small_iteration(monkeypatch):
    """`small_iteration(note)`: the iteration of a tiny job on the CPU, against no ceilings."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    script = runpy.run_path(str(SCRIPTS / "gpu_check.py"))
    job, none = script["tiny"](script["JOBS"]["Qwen3-0.6B"]), script["Ceilings"](0.0, 0.0)
    return lambda note: script["Iteration"](job, torch.device("cpu"), none, note)


def test_an_iteration_without_time_is_cut_with_notes(small_iteration):
    notes = []
    found = small_iteration(notes.append).run(0.0, 0.0)
    assert notes == [
        "rollout cut at 0 of 16 answers: its time was up",
        "scoring cut at 1 of 4 micro-batches: its time was up",
        "update cut at 1 of 4 micro-batches: its time was up",
    ]
    assert found["update"]["tokens_per_s"] > 0
    assert found["update"]["share_of_matmul"] is None


def test_useful_operations_are_those_that_torch_counts(small_iteration):
    iteration = small_iteration(print)
    from gpu_check_iteration import Work, samples

    minibatch = iteration.updater.collator.minibatch(samples(iteration.job)[:4])
    [micro] = minibatch.micro_batches
    work, shape = Work.of(micro), iteration.job.shape
    assert work.unique == micro.computed  # nothing is padding
    # torch does not count attention here
    attention = 4 * shape.layers * shape.heads * shape.head_dim * work.pairs
    with FlopCounterMode(display=False) as scoring, torch.no_grad():
        iteration._logprobs(micro)
    assert iteration.operations(work, backward=False) == scoring.get_total_flops() + attention
    with FlopCounterMode(display=False) as update:
        iteration._gradient(micro, minibatch, first=True)
    logits = 2 * shape.hidden_size * iteration.job.vocabulary * work.targets  # computed again in backward
    outputs = (shape.heads + 2 * shape.key_value_heads) * shape.head_dim
    # the first layer's inputs need no gradient
    first = 2 * work.unique * shape.hidden_size * (outputs + 3 * iteration.job.lora_r)
    counted = update.get_total_flops() - logits + first + 3 * attention
    assert iteration.operations(work, backward=True) == counted


def test_the_reference_is_written_where_it_is_asked_for(run_script, tmp_path):
    page = tmp_path / "page.md"
    assert run_script("reference.py", str(page)) == f"{page}: written\n"
    assert page.read_text(encoding="utf-8").startswith("# Configuration reference\n")


def test_the_slurm_script_composes_once_then_starts_a_worker_on_each_node(tmp_path):
    script = SCRIPTS / "multi_node.slurm"
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0
    for name, line in {"scontrol": "echo node1", "gspo-train": "echo train $@", "srun": "echo $@"}.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{line}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NNODES": "2", "RUN": "new"}
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = ["bash", str(script), "model=moe"]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | slurm | path, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    train, torchrun = done.stdout.splitlines()
    assert train == (
        "train hardware=multi_node hardware.nodes=2 hardware.processes=8 hydra.run.dir=new model=moe"
    )
    assert torchrun.startswith("torchrun --nnodes 2 --nproc-per-node 8 ")
    assert torchrun.endswith("--rdzv-endpoint node1:29500 -m gspo_cli.commands.worker new")
