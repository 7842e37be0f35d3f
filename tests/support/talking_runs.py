"""Runs on customer_service that take a second or two, for tests."""

from __future__ import annotations

from gspo_cli.config.compose import build_config, resolved_yaml
from gspo_cli.run.folder import RunFolder
from gspo_cli.training.session import run_training
from tests.support.configs import composed_from_parts
from tests.support.models import SMALL as SHAPE

SMALL = [
    "task=customer_service",
    "task.demonstrations_count=50",
    "task.problems=60",
    "task.heldout=4",
    "task.max_turns=8",
    "model.cold_start.steps=3",
    "model.cold_start.stop_score=null",
    "model.cold_start.batch_tokens=100",
    *(f"model.shape.{key}={value}" for key, value in SHAPE.items()),
    "training.num_outer_iterations=2",
    "training.num_generations=4",
    "training.generations_per_iteration=8",
    "evaluation.problems=2",
    "evaluation.samples=0",
    "rollout.max_completion_length=12",
    "hardware.threads=1",
]
CLOCKS = ("time/", "memory/", "tokens_per_second")


def configured(*overrides):
    """The checked configuration of such a run, and its YAML."""
    node = composed_from_parts(*SMALL, *overrides)
    return build_config(node), resolved_yaml(node)


def trained(path, reporter, *overrides, reward=None):
    """A finished run in `path`."""
    config, yaml = configured(*overrides)
    folder = RunFolder(path)
    folder.create(yaml)
    run_training(config, folder, reporter, reward=reward)
    return folder


def logged(folder, log):
    """The lines of a log without what measures time and memory."""
    return [{k: v for k, v in line.items() if not k.startswith(CLOCKS)} for line in folder.read(log)]
