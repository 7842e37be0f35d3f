"""The examples run and do what they say."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from tests.support.talking_runs import SMALL

pytestmark = pytest.mark.long

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def test_one_iteration_learns_from_groups_with_different_rewards():
    path = EXAMPLES / "one_iteration.py"
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 150
    found = runpy.run_path(str(path))["main"]()
    assert 0 < found["reward"] < 1
    assert 0 < found["informative"] <= 16
    assert found["norm"] > 0


FEW = [
    *(text for text in SMALL if text.startswith(("model.", "evaluation.", "hardware.", "rollout."))),
    *("task.problems=60", "task.heldout=4", "task.demonstrations_count=50"),
    *("training.num_generations=4", "training.generations_per_iteration=8"),
]


def guide(capsys, *flags):
    """What examples/guide/train.py prints under these flags of the guide, and the error it exits with."""
    main = runpy.run_path(str(EXAMPLES / "guide" / "train.py"))["main"]
    try:
        main([*flags, "--set", *FEW])
    except SystemExit as error:
        return capsys.readouterr().out, error.code
    return capsys.readouterr().out, None


@pytest.mark.parametrize("flags", [["--model", "tiny"], ["--use-gspo-token"]], ids=["gspo", "gspo-token"])
def test_the_script_of_the_guide_trains_and_answers(flags, tmp_path, capsys):
    folder = ["--output-dir", str(tmp_path)]
    out, error = guide(capsys, "--task", "customer_service", "--iterations", "1", *flags, *folder)
    assert error is None
    algorithm = "gspo_token" if "--use-gspo-token" in flags else "gspo"
    assert f"Completed 1 of 1 iterations: {algorithm} on customer_service" in out
    assert out.startswith("customer_service: 2000 scenarios to train on\n")
    assert out.count("evaluated iteration") == 2
    assert re.search(r"\nUser:  .+\nAgent: ", out)
    assert len(list(tmp_path.glob(f"customer_service-tiny-{algorithm}/*/summary.json"))) == 1


def test_the_script_of_the_guide_compares_by_training_both(tmp_path, capsys):
    flags = ["--task", "sales", "--compare", "--iterations", "1", "--output-dir", str(tmp_path)]
    out, error = guide(capsys, *flags)
    assert error is None
    assert re.search(r"\ngspo, seed 0: held-out [\d.]+ [\d.]+, reward [\d.]+ to [\d.]+, ", out)
    assert re.search(r"\ngrpo, seed 0: held-out ", out)
    assert len(list(tmp_path.glob("compare/*/runs/*/summary.json"))) == 2
    assert len(list(tmp_path.glob("compare/*/report.html"))) == 1


def test_the_script_of_the_guide_says_what_is_wrong_in_one_sentence(capsys):
    _, error = guide(capsys, "--iterations", "0")
    assert error.startswith("train.py: training.num_outer_iterations=0: must be above 0")
    assert "\n" not in error
