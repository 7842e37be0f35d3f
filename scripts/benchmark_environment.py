"""Steps per second of the environment of customer_service, and how long its conversations are.

    python scripts/benchmark_environment.py

The oracle plays every problem once per answer of a group. Only the environment's own time is counted:
reset, step and finish, on one core. The time of the oracle, or of the model in training, is not included."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import mean
from typing import Any

from omegaconf import OmegaConf

from gspo_cli.tasks.base import Environment
from gspo_cli.tasks.customer_service.task import CustomerService
from gspo_cli.tasks.scripted import converse


class TimedEnvironment:
    """An environment that adds up the seconds of its calls."""

    single_turn = False

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self.seconds = 0.0

    def reset(self, *arguments: Any) -> Any:
        return self._timed("reset", *arguments)

    def step(self, text: str) -> Any:
        return self._timed("step", text)

    def finish(self) -> Any:
        return self._timed("finish")

    def _timed(self, name: str, *arguments: Any) -> Any:
        start = time.perf_counter()
        result = getattr(self.environment, name)(*arguments)
        self.seconds += time.perf_counter() - start
        return result


def main() -> None:
    """Print a line for each difficulty."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--problems", type=int, default=200, help="problems of each difficulty (200)")
    parser.add_argument("--answers", type=int, default=8, help="conversations about each problem (8)")
    parser.add_argument("--run", type=Path, help="run folder: print the share of its iterations, too")
    options = parser.parse_args()
    print("difficulty  conversations  agent turns  words  ms/conversation  steps/s")
    for difficulty in (1, 2, 3, 4):
        task = CustomerService("customer_service", "", "", difficulty=difficulty, problems=options.problems)
        environment = TimedEnvironment(task.environment())
        transcripts = [
            converse(environment, problem, task.agent, seed)
            for seed, problem in enumerate(task.train_problems())
            for _ in range(options.answers)
        ]
        turns = sum(transcript.turns for transcript in transcripts)
        words = mean(sum(len(m.content.split()) for m in transcript.messages) for transcript in transcripts)
        print(
            f"{difficulty:10}  {len(transcripts):13}  {turns / len(transcripts):11.1f}  {words:5.0f}"
            f"  {1000 * environment.seconds / len(transcripts):15.2f}  {turns / environment.seconds:7.0f}"
        )
        if options.run and difficulty == 1:
            print_share(options.run, environment.seconds / turns)


def print_share(run: Path, seconds_per_step: float) -> None:
    """The share of a run's iterations that the steps of its conversations take, at the speed just
    measured."""
    config = OmegaConf.load(run / "config.yaml")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = config.training.generations_per_iteration * mean(line["num_turns"] for line in lines)
    whole = mean(line["time/iteration"] for line in lines)
    share = steps * seconds_per_step / whole
    print(f"            {share:.1%} of an iteration of {whole:.2f} s with {steps:.0f} steps: {run}")


if __name__ == "__main__":
    main()
