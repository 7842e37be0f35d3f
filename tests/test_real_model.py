"""A real pretrained chat model, from the package registry to a trained policy: SmolLM2-135M-Instruct."""

from __future__ import annotations

import runpy
import sys

import pytest

from gspo_cli.rewards.base import RewardFunction
from gspo_cli.run.folder import RunFolder
from gspo_cli.types import RewardResult
from tests.support.command_line import ROOT, gspo_train
from tests.support.tasks import write
from tests.support.whole_runs import dotted

NUMBERS = [{"prompt": f"Say a number above {n}.", "answer": str(n + 1)} for n in range(10, 18)]


class Digits(RewardFunction):
    """Share of an answer's characters that are digits: dense, so that ten small iterations show a rise."""

    async def compute_reward(self, trajectory, turn, context):
        text = trajectory.answer
        share = sum(char.isdigit() for char in text) / max(1, len(text))
        return RewardResult(share, {"digits": share})


@pytest.fixture(scope="module")
def run(smollm2, tmp_path_factory):
    """Ten iterations of GSPO with LoRA, 2 prompts with 6 answers each."""
    folder = tmp_path_factory.mktemp("real")
    path = write(folder / "numbers.jsonl", *NUMBERS)
    done = gspo_train(
        f"model.name={smollm2}",
        *("model=smollm2", "task=jsonl", f"task.path={path}", "task.heldout=2", dotted(Digits)),
        *("task.system_prompt=Reply.", "task.instructions=false", "rollout.max_completion_length=6"),
        *("training.num_outer_iterations=10", "training.num_generations=6", "hardware.threads=1"),
        *("training.generations_per_iteration=12", "training.updates_per_rollout=2"),
        *("evaluation.every=0", "evaluation.samples=0", "hydra.run.dir=run"),
        cwd=folder,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return RunFolder(folder / "run")


def test_the_reward_rises_on_the_real_model(run):
    rewards = [record["reward"] for record in run.read("metrics.jsonl")]
    assert len(rewards) == 10
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.2, rewards


def test_greedy_answers_equal_those_of_transformers(smollm2, tmp_path, monkeypatch, capsys):
    path = write(tmp_path / "numbers.jsonl", *NUMBERS)
    task = ["task=jsonl", f"task.path={path}", "task.heldout=4", "rollout.max_completion_length=12"]
    script = str(ROOT / "scripts" / "check_generation.py")
    monkeypatch.setattr(sys, "argv", [script, "model=smollm2", f"model.name={smollm2}", *task])
    runpy.run_path(script, run_name="__main__")  # exits with 1 where an answer differs
    assert "equal answers: 4 of 4" in capsys.readouterr().out
