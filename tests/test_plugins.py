"""Launchers and sweepers that packages bring, where they are not installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gspo_cli.config.extras import install

ROOT = Path(__file__).resolve().parent.parent
HERE = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "120"}

WITHOUT = """
import sys, types
package = types.ModuleType("hydra_plugins")
package.__path__ = [sys.argv.pop(1)]
sys.modules["hydra_plugins"] = package
from gspo_cli.config.extras import install
from gspo_cli.commands.train import main
main()
"""


@pytest.mark.parametrize(
    ("option", "chosen", "extra"),
    [
        ("joblib", "hydra/launcher=joblib", "joblib"),
        ("optuna", "hydra/sweeper=optuna", "optuna"),
        ("submitit", "hydra/launcher=submitit_slurm", "submitit"),
    ],
)
def test_a_missing_plugin_is_one_sentence(tmp_path, option, chosen, extra):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, str(tmp_path), "-m", f"sweep={option}", "seed=0,1"],
        cwd=tmp_path,
        env=HERE,
        capture_output=True,
        text=True,
    )
    sentence = f"gspo-train: {chosen}: is not installed; {install(extra)}\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", sentence)


NO_PLUGIN = (
    "import sys; sys.modules['hydra_plugins'] = None; from gspo_cli.commands.train import main; main()"
)


def test_the_queue_needs_no_installed_plugin(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", NO_PLUGIN, "-m", "sweep=queue", "seed=0,-1", "hydra.sweep.dir=s"],
        cwd=tmp_path,
        env=HERE,
        capture_output=True,
        text=True,
    )
    said = "seed=-1: must be 0 or more, and below 2**63; give 0"
    assert done.stderr == f"gspo-train: job 1 (sweep=queue seed=-1): {said}\n"
    assert done.returncode == 2
