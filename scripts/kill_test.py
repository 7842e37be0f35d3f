"""Runs that are killed at random moments and resumed, against the same runs left alone: equal to the bit?

    python scripts/kill_test.py                          # two kills of each kind of run, a few minutes
    python scripts/kill_test.py --minutes 120 --seed 7   # as many as two hours allow
    python scripts/kill_test.py --kinds lora ranks

Each kind is trained whole once. Then the same command is killed (SIGKILL) once or twice, at a random moment
of its start or of a random iteration, and resumed until it is complete. Compared are all logged numbers but
times and memory, the weights, the optimizer's state and the counters of the last checkpoint. Gradients must
not be zero, so that there is something to lose. Exits with 1 where anything differs."""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from gspo_cli.rewards.base import RewardFunction
from gspo_cli.types import RewardResult

ROOT = Path(__file__).resolve().parent.parent
ITERATIONS = 6
SHAPE = "hidden_size=32 layers=2 head_dim=8 intermediate_size=48"
COMMON = [
    "reward=kill_test.Even",
    f"training.num_outer_iterations={ITERATIONS}",
    "training.num_generations=4",
    "training.generations_per_iteration=16",
    "training.updates_per_rollout=2",
    "model.cold_start.steps=3",
    "model.cold_start.stop_score=null",
    "evaluation.problems=4",
    "evaluation.every=2",
    "checkpoint.every=2",
    "hardware.threads=1",
    "logging=none",
    *(f"model.shape.{text}" for text in SHAPE.split()),
]
SHORT = "rollout.max_completion_length=8"
KINDS = {
    "lora": ["task=arithmetic", "model=tiny", "model.use_lora=true", SHORT, "algorithm.beta=0.05"],
    "conversations": ["task=customer_service", "model=tiny", SHORT, "rollout.max_turns=3"],
    "experts": ["task=arithmetic", "model=tiny_moe", "algorithm=grpo_replay", SHORT],
    "ranks": ["task=arithmetic", "model=tiny", SHORT, "hardware=cpu", "hardware.zero_stage=2",
              "hardware.processes=2"],
}  # fmt: skip
CLOCKS = ("time/", "memory/", "tokens_per_second", "wall_seconds")
LOGS = ("metrics.jsonl", "evals.jsonl", "samples.jsonl", "heldout.jsonl")
PATIENCE = 300.0  # seconds for a run of six tiny iterations


class Even(RewardFunction):
    """Share of sampled ids that are even: it differs within groups, and can be learned by any model."""

    def compute_reward(self, trajectory: Any, turn: Any, context: Any) -> RewardResult:
        """The share of one conversation."""
        spoken = zip(trajectory.token_ids, trajectory.action_mask, strict=True)
        ids = [token for token, is_spoken in spoken if is_spoken]
        return RewardResult(sum(token % 2 == 0 for token in ids) / len(ids))


def start(folder: Path, overrides: list[str]) -> subprocess.Popen[bytes]:
    """gspo-train in a process of its own, whose output goes to a file beside `folder`."""
    wait_for_ranks(folder)
    paths = os.pathsep.join([str(ROOT), str(ROOT / "scripts")])
    with folder.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "gspo_cli.commands.train", *overrides],
            env=os.environ | {"PYTHONPATH": paths},
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def iterations(folder: Path) -> int:
    """Whole lines of metrics.jsonl."""
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def killed(folder: Path, overrides: list[str], draw: random.Random) -> str:
    """Start, and kill at a random moment; returns it in words, "" where the run was complete before."""
    reached = draw.randrange(min(iterations(folder), ITERATIONS - 1), ITERATIONS)
    running = start(folder, overrides)
    if reached == 0:
        time.sleep(draw.uniform(1.0, 10.0))
    else:
        while iterations(folder) < reached and running.poll() is None:
            time.sleep(0.005)
        time.sleep(draw.uniform(0.0, 0.4))
    if running.poll() is None:
        running.kill()
        running.wait()
        return f"after {iterations(folder)} iterations"
    require_completed(folder, running)
    return ""


def killed_often(folder: Path, overrides: list[str], draw: random.Random) -> list[str]:
    """A run that is killed once or twice and then completed; returns the moments."""
    moments: list[str] = []
    for _ in range(1 + draw.randrange(2)):
        moment = killed(folder, overrides, draw)
        if not moment:
            return moments
        moments.append(moment)
        if (folder / "config.yaml").exists():
            overrides = [f"resume={folder}"]
    completed(folder, overrides)
    return moments


def unfinished(kills: dict[str, int], wanted: int, deadline: float | None) -> bool:
    """Whether there is time, or a kind that was killed less often than `wanted`."""
    if deadline is not None:
        return time.monotonic() < deadline
    return min(kills.values()) < wanted


def wait_for_ranks(folder: Path) -> None:
    """Wait until no process holds the folder: the ranks of a launcher that was killed live for a moment."""
    if not folder.exists():
        return
    descriptor, deadline = os.open(folder, os.O_RDONLY), time.monotonic() + PATIENCE
    try:
        while True:
            try:
                return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
    finally:
        os.close(descriptor)  # which unlocks


def completed(folder: Path, overrides: list[str]) -> None:
    """Run to the end. Raises RuntimeError with the end of the output where that fails."""
    running = start(folder, overrides)
    running.wait(timeout=PATIENCE)
    require_completed(folder, running)


def require_completed(folder: Path, ended: subprocess.Popen[bytes]) -> None:
    """Ranks may reach the end after their launcher was killed: resuming them is refused, and no failure.

    Raises RuntimeError with the end of the output where a run failed."""
    was_complete = f"{folder}: is complete after {ITERATIONS} iterations" in output(folder)
    if ended.returncode and not (ended.returncode == 2 and was_complete):
        raise RuntimeError(f"{folder.name}: exit code {ended.returncode}\n{output(folder)}")


def output(folder: Path) -> str:
    """The end of what the processes of a run printed."""
    return folder.with_suffix(".log").read_text(encoding="utf-8", errors="replace")[-2000:]


def without_clocks(values: dict[Any, Any]) -> dict[Any, Any]:
    """All values but those that measure time and memory."""
    return {key: value for key, value in values.items() if not str(key).startswith(CLOCKS)}


def lines(folder: Path, log: str) -> list[dict[str, Any]]:
    """The lines of a log without clocks."""
    found = (folder / log).read_text(encoding="utf-8").splitlines()
    return [without_clocks(json.loads(line)) for line in found]


def equal(one: Any, other: Any) -> bool:
    """Whether two saved values are equal to the bit, but for clocks."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        one, other = without_clocks(one), without_clocks(other)
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def differences(one: Path, other: Path) -> list[str]:
    """What differs between two complete runs."""
    found = [log for log in LOGS if lines(one, log) != lines(other, log)]
    first, second = one / "checkpoints" / "last", other / "checkpoints" / "last"
    names = sorted({path.name for folder in (first, second) for path in folder.glob("*.safetensors")})
    found += [name for name in names if (first / name).read_bytes() != (second / name).read_bytes()]
    for path in sorted(first.glob("*.pt")):
        saved = [torch.load(folder / path.name, weights_only=True) for folder in (first, second)]
        if not equal(*saved):
            found.append(path.name)
    return found


def gradients(folder: Path) -> tuple[float, float]:
    """Smallest and largest gradient norm of a run."""
    norms = [line["grad_norm"] for line in lines(folder, "metrics.jsonl")]
    return min(norms), max(norms)


def main() -> int:
    """Kill, resume, compare; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--kills", type=int, default=2, help="of each kind (default: 2)")
    parser.add_argument("--minutes", type=float, help="go on for so long in place of --kills")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    given = parser.parse_args()
    deadline = None if given.minutes is None else time.monotonic() + 60 * given.minutes
    draw, kills, resumed, wrong = random.Random(given.seed), dict.fromkeys(given.kinds, 0), 0, 0
    with TemporaryDirectory() as place:
        wholes = {}
        for kind in given.kinds:
            wholes[kind] = folder = Path(place) / kind
            completed(folder, [*COMMON, *KINDS[kind], f"hydra.run.dir={folder}"])
            low, high = gradients(folder)
            print(f"{kind}: whole, gradient norms {low:.3g} to {high:.3g}", flush=True)
            if not low > 0:
                print(f"{kind}: a gradient is zero: nothing could be lost")
                return 1
        while unfinished(kills, given.kills, deadline):
            kind = min(kills, key=kills.__getitem__)
            folder = Path(place) / f"{kind}-{resumed}"
            moments = killed_often(folder, [*COMMON, *KINDS[kind], f"hydra.run.dir={folder}"], draw)
            found = differences(wholes[kind], folder)
            kills[kind], resumed, wrong = kills[kind] + len(moments), resumed + 1, wrong + bool(found)
            what = f"differs in {', '.join(found)}" if found else "equal"
            print(f"{kind}: killed {', then '.join(moments) or 'too late'}: {what}", flush=True)
    print(f"{sum(kills.values())} kills, {resumed} resumed runs, {resumed - wrong} equal to the bit")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
