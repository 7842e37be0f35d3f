"""How far ratios spread and what clip bands clip, against what one update before training foretells.

    python scripts/bands.py                  # trains what is missing, and writes docs/results/bands.jsonl
    python scripts/bands.py --only smollm2   # some of the runs

A sweep for each model and task over algorithm, learning rate and updates per rollout, three iterations
each, in outputs/bands. `make results` writes the table of docs/results.md from the stored logs."""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

from omegaconf import OmegaConf

ROOT = Path(__file__).resolve().parents[1]
LOGS = ROOT / "docs" / "results" / "bands.jsonl"
FOLDER = ROOT / "outputs" / "bands"
SWEEPS = {
    "tiny-arithmetic": ["experiment=arithmetic", "algorithm.learning_rate=2.5e-5,1e-4,4e-4"],
    "tiny-shop": ["model=tiny", "task=customer_service", "algorithm.learning_rate=2.5e-5,1e-4,4e-4"],
    "smollm2-arithmetic": ["model=smollm2", "task=arithmetic", "algorithm.learning_rate=5e-5,2e-4"],
}
UPDATES = {"smollm2-arithmetic": "2"}
ALL = [
    *("algorithm=gspo,grpo", "training.num_outer_iterations=3", "hardware.threads=1"),
    *("evaluation.every=0", "evaluation.problems=8", "evaluation.samples=0"),
]
KEPT = ("ratio/std", "clip_ratio/token", "completions/mean_length", "frac_reward_zero_std")
COLUMNS = {
    **{"model, task": ":--", "algorithm": ":--", "learning rate": "--:", "updates": "--:", "tokens": "--:"},
    **dict.fromkeys(["spread foretold", "spread, iteration 1", "spread, later"], "--:"),
    **dict.fromkeys(["clipped foretold", "clipped, iteration 1", "clipped, later"], "--:"),
}


def sweep(name: str) -> None:
    """Train a sweep, or what is missing of it."""
    command = [sys.executable, "-m", "gspo_cli.commands.train", "-m", f"hydra.sweep.dir={FOLDER / name}"]
    updates = f"training.updates_per_rollout={UPDATES.get(name, '2,4')}"
    subprocess.run([*command, *SWEEPS[name], updates, *ALL], check=True)


def read(name: str) -> list[dict[str, Any]]:
    """What the table needs of the runs of a sweep."""
    found = []
    for card in sorted((FOLDER / name).glob("*/card.json")):
        config = OmegaConf.load(card.with_name("config.yaml"))
        lines = card.with_name("metrics.jsonl").read_text(encoding="utf-8").splitlines()
        metrics = [{key: json.loads(line).get(key) for key in KEPT} for line in lines]
        rehearsal = json.loads(card.read_text(encoding="utf-8"))["rehearsal"]
        settings = {"algorithm": config.algorithm.name, "learning_rate": config.algorithm.learning_rate}
        updates = {"updates": config.training.updates_per_rollout}
        found.append({"sweep": name, **settings, **updates, "rehearsal": rehearsal, "metrics": metrics})
    return found


def table(runs: list[dict[str, Any]]) -> str:
    """The Markdown table. The spread measured is that after one update: the deviation of all ratios of an
    iteration by the root of the mean number of updates before them. Clipped is a share of the tokens of
    groups whose rewards differ. An iteration in which none do has no update and is not counted."""
    lines = [f"| {' | '.join(COLUMNS)} |", f"| {' | '.join(COLUMNS.values())} |"]
    varied = ("sweep", "algorithm", "learning_rate", "updates")
    for run in sorted(runs, key=lambda run: [run[key] for key in varied]):
        said, steps = run["rehearsal"], run["updates"]
        updated = [m for m in run["metrics"] if m["ratio/std"] is not None]
        spreads = [m["ratio/std"] / math.sqrt((steps - 1) / 2) for m in updated]
        clipped = [m["clip_ratio/token"] / (1 - m["frac_reward_zero_std"]) for m in updated]
        length = fmean(m["completions/mean_length"] for m in run["metrics"])
        cells = [run["sweep"].replace("-", ", "), run["algorithm"], f"{run['learning_rate']:g}", str(steps)]
        cells += [f"{length:.0f}", *(f"{x:.2g}" for x in (said["spread"], spreads[0], fmean(spreads[1:])))]
        cells += [f"{100 * x:.2g}%" for x in (said["clipped"], clipped[0], fmean(clipped[1:]))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def stored() -> list[dict[str, Any]]:
    """The runs of the page."""
    if not LOGS.exists():
        return []
    return [json.loads(line) for line in LOGS.read_text(encoding="utf-8").splitlines()]


def main() -> None:
    """Train, store, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="part of a sweep's name")
    arguments = parser.parse_args()
    trained = [name for name in SWEEPS if arguments.only in name]
    for name in trained:
        sweep(name)
    kept = [run for run in stored() if run["sweep"] not in trained]
    runs = [*kept, *(run for name in trained for run in read(name))]
    LOGS.write_text("".join(json.dumps(run) + "\n" for run in runs), encoding="utf-8")
    print(table(runs))


if __name__ == "__main__":
    main()
