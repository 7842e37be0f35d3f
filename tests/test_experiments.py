"""Every shipped experiment trains two iterations with the real command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from gspo_cli.config.compose import CONF_DIR

ROOT = Path(__file__).resolve().parent.parent
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
]


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_trains(experiment, tmp_path):
    command = [sys.executable, "-W", "error", "-m", "gspo_cli.commands.train"]
    overrides = [f"experiment={experiment}", *SMALL, "hydra.run.dir=run"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, *overrides], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    run = tmp_path / "run"
    assert json.loads((run / "summary.json").read_text())["status"] == "completed"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [1, 2]
    ran, sizes = leaves(run / "config.yaml"), [text.partition("=")[0] for text in SMALL]
    for key, value in leaves(CONF_DIR / "experiment" / f"{experiment}.yaml").items():
        assert key in sizes or ran[key] == value


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
