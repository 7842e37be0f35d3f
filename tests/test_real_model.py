"""A real pretrained chat model, from the package registry to a trained policy: SmolLM2-135M-Instruct."""

from __future__ import annotations

import runpy
import sys

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from gspo_cli.rewards.base import RewardFunction
from gspo_cli.run.folder import RunFolder
from gspo_cli.types import RewardResult
from tests.support.command_line import ROOT, call, gspo_train
from tests.support.tasks import write
from tests.support.whole_runs import dotted

pytestmark = pytest.mark.long

NUMBERS = [{"prompt": f"Say a number above {n}.", "answer": str(n + 1)} for n in range(10, 18)]


class Digits(RewardFunction):
    """Share of an answer's characters that are digits: dense, so that ten small iterations show a rise."""

    async def compute_reward(self, trajectory, turn, context):
        text = trajectory.answer
        share = sum(char.isdigit() for char in text) / max(1, len(text))
        return RewardResult(share, {"digits": share})


def train(model, folder, *overrides):
    """GSPO with LoRA on 2 prompts with 6 answers each, in the folder `run`."""
    path = write(folder / "numbers.jsonl", *NUMBERS)
    done = gspo_train(
        f"model.name={model}",
        *("model=smollm2", "task=jsonl", f"task.path={path}", "task.heldout=2", dotted(Digits)),
        *("task.system_prompt=Reply.", "task.instructions=false", "rollout.max_completion_length=6"),
        *("training.num_generations=6", "training.generations_per_iteration=12", "hardware.threads=1"),
        *("training.updates_per_rollout=2", "training.minibatch_by=answer"),
        *("evaluation.every=0", "evaluation.samples=0"),
        *("hydra.run.dir=run", *overrides),
        cwd=folder,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return RunFolder(folder / "run")


@pytest.fixture(scope="module")
def run(smollm2, tmp_path_factory):
    """Ten iterations from the pretrained model."""
    return train(smollm2, tmp_path_factory.mktemp("real"), "training.num_outer_iterations=10")


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


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft 0.21 asks by it
@torch.no_grad()
def test_the_export_loads_in_transformers_with_the_logits_of_the_policy(run, smollm2, tmp_path):
    done = call(
        "gspo-export", str(run.path), "plain", "--checkpoint", "last", "--dtype=float32", cwd=tmp_path
    )
    assert (done.returncode, done.stderr) == (0, "")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "plain")
    ids = tokenizer("Say a number above 17.", return_tensors="pt").input_ids
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")(ids).logits
    base = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    untrained = base(ids).logits
    trained = PeftModel.from_pretrained(base, run.checkpoints / "last")(ids).logits
    scale = trained.max() - trained.min()
    assert (plain - trained).abs().max() < 1e-4 * scale
    assert (plain - untrained).abs().max() > 1e-2 * scale


def test_a_second_stage_starts_from_what_the_first_has_learned(run, tmp_path):
    second = train(run.path, tmp_path, "training.num_outer_iterations=1")
    [start], first = second.read("metrics.jsonl"), run.read("metrics.jsonl")
    assert start["reward"] > first[0]["reward"] + 0.2
