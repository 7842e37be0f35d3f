"""Training on problems that are built when they are drawn: the length cap is checked at the draw."""

from __future__ import annotations

import json

import pytest

from gspo_cli.errors import UserError
from gspo_cli.run.folder import RunFolder
from gspo_cli.training.session import run_training
from tests.support.tasks import write
from tests.support.whole_runs import EvenReward, assert_same_run, dotted, run

LONG = "1+" * 60 + "1="


@pytest.fixture
def many(monkeypatch, tmp_path):
    """The overrides of a task of 40 problems, every third too long, of which 4 are measured at the start."""
    for module in ("gspo_cli.tasks.problem_index", "gspo_cli.tasks.files"):
        monkeypatch.setattr(f"{module}.MANY", 10)
    monkeypatch.setattr("gspo_cli.training.lengths.CHECKED", 4)
    rows = [{"prompt": f"{LONG if n % 3 == 0 else ''}{n}+1=", "answer": str(n + 1)} for n in range(40)]
    demonstrations = write(tmp_path / "solved.jsonl", *rows)
    return [
        "task=jsonl", f"task.path={write(tmp_path / 'a.jsonl', *rows)}", "task.heldout=8",
        f"model.cold_start.demonstrations={demonstrations}", "rollout.max_prompt_length=40",
        dotted(EvenReward),
    ]  # fmt: skip


@pytest.mark.long
def test_too_long_problems_are_skipped_and_counted_and_a_resumed_run_is_the_same(
    many, configure, tmp_path, reporter
):
    many += ["training.num_outer_iterations=8", "evaluation.every=2"]
    _, whole = run(configure(*many), tmp_path / "whole", reporter)
    _, parted = run(configure(*many, "training.num_outer_iterations=4"), tmp_path / "parted", reporter)
    run_training(configure(*many)[0], RunFolder(parted.path), reporter)
    assert_same_run(whole.path, parted.path)
    metrics = whole.read("metrics.jsonl")
    skipped = [line["sampling/skipped_problems"] for line in metrics]
    assert sum(skipped) > 0
    assert metrics[-1]["epoch"] * (32 - left_out(reporter)) == pytest.approx(8 * 4 + sum(skipped))
    assert all(LONG not in json.dumps(sample) for sample in whole.read("samples.jsonl"))


def left_out(reporter):
    """How many of the measured training problems are left out before training, by the run's own note."""
    notes = [text for text in reporter.warnings if "first training problems are left out" in text]
    return int(notes[0].split()[0]) if notes else 0


def test_problems_that_are_all_too_long_are_an_error(many, configure, tmp_path, reporter):
    with pytest.raises(UserError, match=r"rollout\.max_prompt_length=2: all 4 first training problems are"):
        run(configure(*many, "rollout.max_prompt_length=2"), tmp_path, reporter)


def test_a_log_takes_any_text(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.create("seed: 0\n")
    folder.append("metrics.jsonl", {"iteration": 1, "text": "half \ud800, whole 😀"})
    assert folder.read("metrics.jsonl") == [{"iteration": 1, "text": "half \ud800, whole 😀"}]
