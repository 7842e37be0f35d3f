"""Whole runs, small: how they are made, and whether two of them are the same."""

from __future__ import annotations

from pathlib import Path

import torch

from gspo_cli.rewards.base import RewardFunction
from gspo_cli.run.folder import RunFolder
from gspo_cli.training.session import run_training
from gspo_cli.types import RewardResult

ARITHMETIC = ("task=arithmetic", "task.digits=1", "task.heldout=20")  # 100 problems instead of 10,000
SMALL = [
    *ARITHMETIC,
    "model.cold_start.steps=3",
    "model.cold_start.stop_score=null",
    "model.shape.hidden_size=32",
    "model.shape.layers=2",
    "model.shape.head_dim=8",
    "model.shape.intermediate_size=48",
    "training.num_generations=4",
    "training.generations_per_iteration=16",
    "rollout.max_completion_length=8",
    "evaluation.problems=4",
    "evaluation.every=2",
    "checkpoint.every=2",
    "hardware.threads=1",
    "reward=tests.support.whole_runs.EvenReward",
]


class EvenReward(RewardFunction):
    """Share of sampled ids that are even: differs inside every group, and can be learned."""

    async def compute_reward(self, trajectory, turn, context):
        ids = [t for t, spoken in zip(trajectory.token_ids, trajectory.action_mask, strict=True) if spoken]
        value = sum(t % 2 == 0 for t in ids) / len(ids)
        return RewardResult(value, {"even": value})


def dotted(cls):
    """The override that trains with a reward of the tests."""
    return f"reward={cls.__module__}.{cls.__name__}"


def run(configured, tmp_path, reporter):
    """Train in the folder `run` of `tmp_path`; returns the summary and the run folder."""
    config, yaml = configured
    folder = RunFolder(tmp_path / "run")
    folder.create(yaml)
    return run_training(config, folder, reporter), folder


def numbers(folder: Path, log="metrics.jsonl"):
    """All logged values but those that measure time and memory."""
    clocks = ("time/", "memory/", "tokens_per_second")
    return [
        {k: v for k, v in line.items() if not k.startswith(clocks)} for line in RunFolder(folder).read(log)
    ]


def state(folder: Path):
    saved = torch.load(folder / "checkpoints" / "last" / "trainer.pt", weights_only=True)
    model = sorted((folder / "checkpoints" / "last").glob("*.safetensors"))[0].read_bytes()
    return model, saved["optimizer"]["state"], saved["steps"], saved["state"]["cursor"]


def assert_same_run(one: Path, other: Path):
    for log in ("metrics.jsonl", "evals.jsonl", "samples.jsonl", "heldout.jsonl"):
        assert numbers(one, log) == numbers(other, log)
    (model, optimizer, *counters), (model2, optimizer2, *counters2) = state(one), state(other)
    assert model == model2
    assert counters == counters2
    for key, moments in optimizer.items():
        assert all(torch.equal(value, optimizer2[key][name]) for name, value in moments.items())
