"""Every shipped experiment trains two iterations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from gspo_cli.config.compose import CONF_DIR
from tests.support.command_line import gspo_train

pytestmark = pytest.mark.long

EXPERIMENTS = sorted(path.stem for path in (CONF_DIR / "experiment").glob("*.yaml"))
SMALL = [  # sizes only: what an experiment is about stays as it is
    "model.shape.hidden_size=32",
    "model.shape.layers=1",
    "model.cold_start.steps=3",
    "model.cold_start.stop_score=null",
    "training.num_outer_iterations=2",
    "training.num_generations=4",
    "training.generations_per_iteration=16",
    "rollout.max_completion_length=8",
    "evaluation.problems=4",
    "evaluation.samples=2",
    "task.demonstrations_count=50",
]
REAL = [  # a real model takes a hundred times the computation
    "model.cold_start.steps=1",
    "model.cold_start.cache=false",
    "model.cold_start.batch_tokens=100",
    "training.num_generations=2",
    "training.generations_per_iteration=4",
    "rollout.max_turns=2",
    "rollout.max_prompt_length=128",
    "evaluation.problems=1",
    "evaluation.samples=1",
    "evaluation.every=0",
    "rollout.max_completion_length=4",
]
CONVERSATIONS = ["task.problems=60", "task.heldout=4"]


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_trains(experiment, tmp_path, request):
    values = leaves(CONF_DIR / "experiment" / f"{experiment}.yaml")
    sizes = SMALL if experiment == "arithmetic" else [*SMALL, *CONVERSATIONS]
    if experiment.startswith("smollm2"):
        sizes = [*sizes, *REAL, f"model.name={request.getfixturevalue('smollm2')}"]
    done = gspo_train(f"experiment={experiment}", *sizes, "hydra.run.dir=run", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    run = tmp_path / "run"
    assert json.loads((run / "summary.json").read_text())["status"] == "completed"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [1, 2]
    ran, small = leaves(run / "config.yaml"), [text.partition("=")[0] for text in sizes]
    assert {key: ran[key] for key in values if key not in small} == {
        key: value for key, value in values.items() if key not in small
    }


def leaves(path: Path) -> dict[str, object]:
    """Values of a YAML file by dotted key, without the choice of options (`defaults`) and what is a sweep's
    (`hydra`)."""
    found = {}
    pending = [("", OmegaConf.to_container(OmegaConf.load(path)))]
    for prefix, node in pending:
        for key, value in node.items():
            if isinstance(value, dict):
                pending.append((f"{prefix}{key}.", value))
            elif key != "defaults" and not prefix.startswith("hydra."):
                found[f"{prefix}{key}"] = value
    return found
